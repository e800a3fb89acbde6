"""Checkpoints with one field that no training leaves: a run goes on from the one before, an evaluation is refused in
one line that names the file."""
import json
import math
import os
import shutil
import zipfile

import pytest
import torch

import train
from dassl.engine import TrainerX
from dassl.optim import build_optimizer
from dassl.utils import InputError, load_checkpoint, load_pretrained_weights
from harness import make_trainer
from tools import interpret_prompt

NAMES = ("cat", "dog", "elephant", "giraffe", "horse")
CTX = "prompt_learner.ctx"
HUGE = 10**5000  # cannot even be printed


@pytest.fixture(scope="module")
def stored(clip_model, tmp_path_factory):
    """(trainer, folder) of a CoOp whose first two of three epochs are stored."""
    trainer = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 2}, settings={"OPTIM.MAX_EPOCH": 3})
    folder = tmp_path_factory.mktemp("stored") / "run"
    for epoch in range(2):
        trainer.apply_gradients([torch.full_like(tensor, 0.1) for tensor in trainer.trainables])
        trainer.update_lr()
        trainer.save_model(epoch, str(folder))
    return trainer, folder


@pytest.fixture
def damaged(stored, tmp_path):
    """(change) -> a copy of the run, the newest checkpoint of which `change(state)` was done to."""
    def damage(change):
        shutil.copytree(stored[1], tmp_path / "run")
        path = tmp_path / "run" / "prompt_learner" / "model.pth.tar-2"
        state = torch.load(path, weights_only=True)
        state = change(state) or state
        torch.save(state, path)
        return tmp_path / "run"

    return damage


def at(*keys, value):
    """A change that puts a value in a place of the checkpoint."""
    def change(state):
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change


def without(*keys):
    def change(state):
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return change


def tensors(**named):
    return at("state_dict", value={CTX: named["ctx"]})


def endless(state):
    state["extra"] = found = []
    found.append(found)
    state["extra"] = {"a": found}


def laughs(state):
    found = ["ha"] * 10
    for _ in range(12):
        found = [found] * 10
    state["extra"] = {"a": found}


def deep(state):
    found = []
    for _ in range(100):
        found = [found]
    state["extra"] = {"a": found}


GOOD = torch.zeros(2, 128)
TENSORS = {
    "sparse": tensors(ctx=GOOD.to_sparse()),
    "sparse by rows": tensors(ctx=GOOD.to_sparse_csr()),
    "quantised": tensors(ctx=torch.quantize_per_tensor(GOOD, 1.0, 0, torch.qint8)),
    "nested": tensors(ctx=torch.nested.nested_tensor([torch.ones(128), torch.ones(128)])),
    "on the device meta": tensors(ctx=torch.empty(2, 128, device="meta")),
    "complex": tensors(ctx=GOOD.to(torch.complex64)),
    "whole numbers": tensors(ctx=GOOD.long()),
    "truth values": tensors(ctx=GOOD.bool()),
    "of eight bits": tensors(ctx=GOOD.to(torch.float8_e4m3fn)),
    "of another shape": tensors(ctx=torch.zeros(3, 128)),
    "without a shape": tensors(ctx=torch.tensor(1.0)),
    "NaN": tensors(ctx=GOOD * math.nan),
    "infinite": tensors(ctx=GOOD + math.inf),
    "3e38": tensors(ctx=GOOD + 3e38),
    "1e300": tensors(ctx=GOOD.double() + 1e300),
    "one number seen 10^12 times": tensors(ctx=torch.zeros(1).expand(10**12)),
    "a key that is a number": at("state_dict", value={3: GOOD}),
    "a key that is a tuple": at("state_dict", value={(1, 2): GOOD}),
    "text": at("state_dict", value={CTX: "text"}),
    "a list": at("state_dict", value=[GOOD]),
}
STRUCTURES = {
    "a list that holds itself": endless,
    "a list that doubles": laughs,
    "100 lists in each other": deep,
    "a number of 5000 digits": at("val_result", value=HUGE),
    "the epoch of another file": at("epoch", value=3),
    "an epoch below 0": at("epoch", value=-1),
    "an epoch of 5000 digits": at("epoch", value=HUGE),
    "an epoch that is true": at("epoch", value=True),
    "classes that are numbers": at("classnames", value=[1, 2]),
    "classes that are a text": at("classnames", value="cat"),
    "settings that are a list": at("made_for", "settings", value=[1]),
    "settings of tensors": at("made_for", "settings", value={"INPUT.SIZE": torch.ones(2)}),
    "settings in 60 lists": at("made_for", "settings", "INPUT.SIZE", value=json.loads("[" * 60 + "]" * 60)),
    "a backbone that is a text": at("made_for", "backbone", value="ViT-B/16"),
    "a digest that is a number": at("made_for", "backbone", "digest", value=7),
    "data that are numbers": at("made_for", "data", value={"train": 1}),
    "a validation that is a text": at("val_result", value="good"),
    "a validation that is NaN": at("val_result", value=math.nan),
    "extra that is a list": at("extra", value=[1]),
}
TO_GO_ON = {
    "momentum of another shape": at("optimizers", 0, "state", 0, "momentum_buffer", value=torch.ones(7)),
    "momentum that broadcasts": at("optimizers", 0, "state", 0, "momentum_buffer", value=torch.ones(1, 128)),
    "momentum that is NaN": at("optimizers", 0, "state", 0, "momentum_buffer", value=GOOD * math.nan),
    "momentum of whole numbers": at("optimizers", 0, "state", 0, "momentum_buffer", value=GOOD.long()),
    "momentum that is a text": at("optimizers", 0, "state", 0, "momentum_buffer", value="fast"),
    "momentum of another tensor": at("optimizers", 0, "state", value={7: {"momentum_buffer": GOOD}}),
    "no groups": without("optimizers", 0, "param_groups"),
    "groups that are a text": at("optimizers", 0, "param_groups", value="x"),
    "a group of numbers": at("optimizers", 0, "param_groups", value=[1]),
    "a group without tensors": without("optimizers", 0, "param_groups", 0, "params"),
    "a rate that is a text": at("optimizers", 0, "param_groups", 0, "lr", value="fast"),
    "a rate that is NaN": at("optimizers", 0, "param_groups", 0, "lr", value=math.nan),
    "a rate below 0": at("optimizers", 0, "param_groups", 0, "lr", value=-1.0),
    "a rate that is a tensor": at("optimizers", 0, "param_groups", 0, "lr", value=torch.ones(3)),
    "no rate": without("optimizers", 0, "param_groups", 0, "lr"),
    "a momentum that is infinite": at("optimizers", 0, "param_groups", 0, "momentum", value=math.inf),
    "tensors out of range": at("optimizers", 0, "param_groups", 0, "params", value=[5]),
    "tensors that are texts": at("optimizers", 0, "param_groups", 0, "params", value=["a"]),
    "a schedule at a text": at("schedules", 0, "last_epoch", value="two"),
    "a schedule at true": at("schedules", 0, "last_epoch", value=True),
    "a schedule beyond its end": at("schedules", 0, "last_epoch", value=10**9),
    "a schedule without an epoch": without("schedules", 0, "last_epoch"),
    "a schedule of odd steps": at("schedules", 0, "_step_count", value="two"),
    "a schedule that is a list": at("schedules", value=[[1]]),
    "a batch beyond the epoch's last": at("step", value=10**6),
    "a batch below 0": at("step", value=-1),
    "a batch that is true": at("step", value=True),
    "no threads": at("threads", value=0),
    "threads below 0": at("threads", value=-4),
    "threads that are a text": at("threads", value="all"),
    "generators of another size": at("rng", "torch", value=torch.zeros(3, dtype=torch.uint8)),
    "generators of floats": at("rng", "torch", value=torch.zeros(5056)),
    "numpy's position beyond its numbers": lambda state: state["rng"].update(
        numpy=(*state["rng"]["numpy"][:2], 10**8, 0, 0.0)),
    "numpy's numbers cut": lambda state: state["rng"].update(
        numpy=("MT19937", torch.ones(5, dtype=torch.int64), 0, 0, 0.0)),
    "Python's numbers cut": at("rng", "python", value=(3, (1, 2, 3), None)),
    "generators that are a list": at("rng", value=[1]),
    "a best result that is NaN": at("best_result", value=math.nan),
    "a best result that is a text": at("best_result", value="good"),
    "a best result that is infinite": at("best_result", value=math.inf),
    "a best epoch that is not there": at("best_epoch", value=9),
    "a budget below 0": at("budget", "updates", value=-5),
    "a budget of texts": at("budget", "images", value="many"),
    "a scale of NaN": at("precision", "scale", value=math.nan),
    "a scale of 0": at("precision", "scale", value=0.0),
    "a scale of 1e300": at("precision", "scale", value=1e300),
    "a precision that is a text": at("precision", value="fp32"),
    "an end that is a text": at("finished", value="yes"),
    "chunks of nothing": at("activation_bytes", value=0),
}


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in
                                    (TENSORS | STRUCTURES | TO_GO_ON).items()])
def test_a_run_goes_on_from_the_checkpoint_before(change, stored, damaged, capsys):
    trainer, folder = stored[0], damaged(change)
    start = load_checkpoint(folder / "prompt_learner" / "model.pth.tar-1")
    assert trainer.resume_model_if_exist(str(folder)) == 1
    told = capsys.readouterr().out
    assert "Warning: passed over a checkpoint: " in told and "model.pth.tar-2" in told
    assert torch.equal(trainer.trainables[0], start["state_dict"][CTX])
    assert trainer.optim.state_dict()["state"][0]["momentum_buffer"].shape == (2, 128)


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in
                                    (TENSORS | STRUCTURES).items()])
def test_an_evaluation_is_refused(change, stored, damaged, one_line):
    trainer, folder = stored[0], damaged(change)
    before = trainer.trainables[0].detach().clone()
    line = one_line(lambda: trainer.load_model(str(folder)))
    assert "model.pth.tar-2" in line and len(line) < 1500
    assert torch.equal(trainer.trainables[0], before)


def test_the_run_left_alone_goes_on_from_its_newest(stored, capsys):
    assert stored[0].resume_model_if_exist(str(stored[1])) == 2
    assert "Warning" not in capsys.readouterr().out


@pytest.mark.parametrize("change", ["3e38", "NaN", "whole numbers", "sparse", "text", "a list"])
def test_weights_to_begin_with(change, stored, damaged, one_line):
    path = damaged(TENSORS[change]) / "prompt_learner" / "model.pth.tar-2"
    line = one_line(lambda: load_pretrained_weights(stored[0].model, str(path)))
    assert "model.pth.tar-2" in line


@pytest.mark.parametrize("change", ["3e38", "without a shape", "whole numbers", "text", "a list", "complex"])
def test_interpreted_prompts(change, damaged, one_line):
    folder = damaged(TENSORS[change])
    assert "model.pth.tar-2" in one_line(lambda: interpret_prompt.text_context(str(folder)))


@pytest.mark.parametrize("number", [5000, 100000, 2**40])
def test_threads_of_a_larger_machine_are_not_taken(number, stored, damaged, capsys):
    """So many threads are not to be had: setting them hangs or kills the process."""
    before = torch.get_num_threads()
    assert stored[0].resume_model_if_exist(str(damaged(at("threads", value=number)))) == 2
    assert torch.get_num_threads() == before
    assert f"Warning: the run was computed with {number:,} threads" in capsys.readouterr().out


def test_memory_of_a_larger_machine_is_not_taken(stored, damaged, capsys):
    trainer = stored[0]
    before = trainer.towers.text.activation_bytes
    assert trainer.resume_model_if_exist(str(damaged(at("activation_bytes", value=2**60)))) == 2
    assert trainer.towers.text.activation_bytes == before
    assert "Warning: the run was computed with" in capsys.readouterr().out


def test_an_untrained_checkpoint_does_not_count_as_the_last(stored, damaged, capsys):
    folder = damaged(at("epoch", value=3))
    os.rename(folder / "prompt_learner" / "model.pth.tar-2", folder / "prompt_learner" / "model.pth.tar-3")
    assert stored[0].resume_model_if_exist(str(folder)) == 1
    assert "3 of 3 epochs and 0 batches are done and that the training is not finished" in capsys.readouterr().out


def test_an_archive_that_is_unpacked_to_more_than_it_is(stored, damaged, one_line):
    folder = damaged(lambda state: None)
    path = folder / "prompt_learner" / "model.pth.tar-2"
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    assert "it is compressed" in one_line(lambda: stored[0].load_model(str(folder)))


def test_all_checkpoints_damaged_is_refused(stored, damaged, one_line):
    folder = damaged(TENSORS["NaN"])
    shutil.copy(folder / "prompt_learner" / "model.pth.tar-2", folder / "prompt_learner" / "model.pth.tar-1")
    line = one_line(lambda: stored[0].resume_model_if_exist(str(folder)))
    assert "no checkpoint in" in line and "model.pth.tar-2" in line


# ---- what methods keep of their own ----
@pytest.fixture(scope="module")
def averaging(clip_model):
    return make_trainer("PromptSRC", clip_model, NAMES, {"PROMPT_DEPTH_TEXT": 2, "PROMPT_DEPTH_VISION": 2},
                        settings={"OPTIM.MAX_EPOCH": 3})


@pytest.mark.parametrize("spoil", [
    pytest.param(lambda good: {"x": GOOD}, id="of another tensor"),
    pytest.param(lambda good: [1], id="a list"),
    pytest.param(lambda good: "text", id="a text"),
    pytest.param(lambda good: {name: tensor[:1] for name, tensor in good.items()}, id="of another shape"),
    pytest.param(lambda good: {name: tensor * math.nan for name, tensor in good.items()}, id="NaN"),
    pytest.param(lambda good: dict.fromkeys(good, 1.0), id="numbers"),
])
def test_an_average_over_epochs(spoil, averaging):
    good = averaging.trained_state()
    averaging.load_extra_state({"average": good, "epochs": 3})
    for name in ("average", "last"):
        with pytest.raises(InputError, match=f"its {name} over the epochs"):
            averaging.load_extra_state({name: spoil(good), "epochs": 3})


@pytest.mark.parametrize("epochs", [0, "three", True, 1.5], ids=str)
def test_how_many_epochs_an_average_is_over(epochs, averaging):
    with pytest.raises(InputError, match="its average is over"):
        averaging.load_extra_state({"average": averaging.trained_state(), "epochs": epochs})


@pytest.mark.parametrize(("name", "value"), [("values", torch.ones(1)), ("beta", "text"), ("alpha", math.nan),
                                             ("best_keys", torch.ones(1)), ("best_accuracy", None)])
def test_a_cache(name, value, clip_model):
    trainer = make_trainer("TipAdapterF", clip_model, NAMES, settings={"OPTIM.MAX_EPOCH": 3})
    good = trainer.extra_state()
    trainer.load_extra_state(good)
    with pytest.raises(InputError, match="its cache|beta, alpha"):
        trainer.load_extra_state({**good, name: value})


# ---- a trainer that is written for Dassl ----
class Foreign(TrainerX):
    """Two checkpoints of a model with an optimizer, without data."""

    def __init__(self, cfg, folder):
        super(TrainerX.__bases__[0], self).__init__()
        self.cfg = None
        model = torch.nn.Linear(3, 2)
        optim = build_optimizer(model, cfg.OPTIM)
        self.register_model("model", model, optim, torch.optim.lr_scheduler.StepLR(optim, 2))
        model(torch.ones(1, 3)).sum().backward()
        for epoch in range(2):
            optim.step()
            self.update_lr()
            self.save_model(epoch, str(folder))


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    cfg = train.default_config()
    cfg.OPTIM.NAME = "adam"
    return Foreign(cfg, tmp_path), tmp_path


FOREIGN = {
    "another shape": at("state_dict", "weight", value=torch.ones(3, 3)),
    "NaN": at("state_dict", "weight", value=torch.full((2, 3), math.nan)),
    "no tensor": at("state_dict", "weight", value=3),
    "a moment of another shape": at("optimizer", "state", 0, "exp_avg", value=torch.ones(1)),
    "squares below 0": at("optimizer", "state", 0, "exp_avg_sq", value=-torch.ones(2, 3)),
    "no squares": without("optimizer", "state", 0, "exp_avg_sq"),
    "steps below 0": at("optimizer", "state", 0, "step", value=torch.tensor(-1.0)),
    "odd betas": at("optimizer", "param_groups", 0, "betas", value=("a", 1)),
    "an unknown key of the schedule": at("scheduler", "step", value="text"),
    "the schedule's optimizer": at("scheduler", "optimizer", value=1),
    "base rates of another number": at("scheduler", "base_lrs", value=[1.0, 2.0]),
    "base rates of texts": at("scheduler", "base_lrs", value=["fast"]),
    "10^12 steps": at("scheduler", "last_epoch", value=10**12),
    "generators cut": at("rng", "torch", value=torch.zeros(1, dtype=torch.uint8)),
    "an epoch of another file": at("epoch", value=1),
}


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in FOREIGN.items()])
def test_a_foreign_run_goes_on_from_the_checkpoint_before(change, foreign, capsys):
    trainer, folder = foreign
    path = folder / "model" / "model.pth.tar-2"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    capsys.readouterr()
    assert trainer.resume_model_if_exist(str(folder)) == 1
    assert "Warning: passed over a checkpoint: " in capsys.readouterr().out


@pytest.mark.parametrize("change", ["another shape", "NaN", "no tensor"])
def test_a_foreign_evaluation_is_refused(change, foreign, one_line):
    trainer, folder = foreign
    path = folder / "model" / "model.pth.tar-2"
    state = torch.load(path, weights_only=True)
    FOREIGN[change](state)
    torch.save(state, path)
    assert "model.pth.tar-2" in one_line(lambda: trainer.load_model(str(folder), epoch=2))


def test_a_foreign_run_left_alone_goes_on_from_its_newest(foreign):
    assert foreign[0].resume_model_if_exist(str(foreign[1])) == 2
