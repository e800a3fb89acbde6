"""A GPU whose memory does not suffice: a step is made once again, its classes in smaller pieces; then it is a line."""
import json
import weakref

import pytest
import torch

import tiny_clip
import train
from benchmarks import other_device
from harness import make_trainer
from prompting import ClassPrompts
from prompting.text import TextTower
from training import PromptTrainer
from training.once_again import SMALLER, OnceAgain

NAMES = tiny_clip.CLASSNAMES
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.57 GiB"
ADVICE = ("the GPU is out of memory", "DATALOADER.TRAIN_X.BATCH_SIZE", "DATALOADER.TEST.BATCH_SIZE",
          "TRAIN.TEXT_MEMORY_MB", "PREC amp or bf16", "nvidia-smi", "goes on from the last checkpoint")
NOTE = "Note: the GPU's memory does not suffice for a step (CUDA out of memory); it is made again"


def full():
    return torch.cuda.OutOfMemoryError(FULL)


@pytest.fixture
def as_on_gpu(monkeypatch):
    """A step may begin again on the CPU, too."""
    monkeypatch.setattr(OnceAgain, "possible", property(lambda self: not self.spent))


@pytest.fixture
def runs_out(monkeypatch, as_on_gpu):
    """A function: of the text passes with gradients those of these numbers (from 1) find the memory full, when they
    are over and some random numbers are drawn."""
    encode, wanted, made = TextTower.encode, set(), [0]

    def limited(self, *args, **kwargs):
        found = encode(self, *args, **kwargs)
        if torch.is_grad_enabled():
            made[0] += 1
            if made[0] in wanted:
                torch.rand(3)
                raise full()
        return found

    def set_to(*numbers):
        wanted.clear()
        wanted.update(numbers)
        made[0] = 0

    monkeypatch.setattr(TextTower, "encode", limited)
    return set_to


def trained(folder, epoch=2):
    return torch.load(folder / "prompt_learner" / f"model.pth.tar-{epoch}", weights_only=True)


@pytest.mark.parametrize("method", ["CoOp", pytest.param("CoCoOp", marks=pytest.mark.slow),
                                    pytest.param("MetaPrompt", marks=pytest.mark.slow)])
def test_a_run_goes_on_in_smaller_pieces(method, runs_out, arguments, clips, tmp_path):
    whole = train.main(arguments(method, tmp_path / "whole"), clips=clips)
    runs_out(1)
    results = train.main(arguments(method, tmp_path / "out"), clips=clips)
    assert (tmp_path / "out" / "log.txt").read_text().count(NOTE) == 1
    assert NOTE not in (tmp_path / "whole" / "log.txt").read_text()
    one, other = trained(tmp_path / "whole"), trained(tmp_path / "out")
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(other["state_dict"][name], tensor, rtol=1e-5, atol=1e-5)
    assert results["metrics"] == whole["metrics"] and results["budget"] == whole["budget"]
    assert other["activation_bytes"] < one["activation_bytes"] / SMALLER  # which was more than a pass needs
    assert torch.equal(one["rng"]["torch"], other["rng"]["torch"])


def test_the_second_time_is_one_line_and_the_checkpoint_stays(runs_out, arguments, clips, one_line, tmp_path):
    whole = train.main(arguments("CoOp", tmp_path / "whole"), clips=clips)
    steps = len((tmp_path / "whole" / "log.txt").read_text().split("epoch [1/2] batch")) - 1
    assert steps > 1
    runs_out(1, steps + 2)  # in the first step; in the first of the second epoch, as the first step had two passes
    line = one_line(lambda: train.main(arguments("CoOp", tmp_path / "out"), clips=clips))
    assert all(part in line for part in ADVICE) and "2.00 GiB" not in line
    kept = trained(tmp_path / "out", 1)
    assert sorted(path.name for path in (tmp_path / "out" / "prompt_learner").glob("model*")) == ["model.pth.tar-1"]
    runs_out()
    results = train.main(arguments("CoOp", tmp_path / "out"), clips=clips)
    assert results["metrics"] == whole["metrics"]
    assert trained(tmp_path / "out")["activation_bytes"] == kept["activation_bytes"]  # as the run had gone on
    runs_out(1, 2)
    line = one_line(lambda: train.main(arguments("CoOp", tmp_path / "at once"), clips=clips))
    assert all(part in line for part in ADVICE)
    assert not list((tmp_path / "at once").rglob("model*"))


def test_an_evaluation_that_runs_out_is_one_line_and_is_made_again(arguments, clips, one_line, tmp_path, monkeypatch):
    def answer(self, *args):
        raise full()

    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "model_inference", answer)
        line = one_line(lambda: train.main(arguments("CoOp", tmp_path / "out"), clips=clips))
    assert all(part in line for part in ADVICE)
    before = trained(tmp_path / "out")["state_dict"]
    results = train.main(arguments("CoOp", tmp_path / "out"), clips=clips)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["metrics"] == results["metrics"]
    assert all(torch.equal(before[name], tensor) for name, tensor in trained(tmp_path / "out")["state_dict"].items())


# ---- one step ----
def batch(step=0):
    return tiny_clip.batch("once again", step, 8, len(NAMES))


def made(clip_model, training_step):
    """A CoOp with this training step."""
    return make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 2}, overrides={"training_step": training_step})


def test_a_step_begins_again_from_its_beginning(clip_model, as_on_gpu, capsys):
    """With its draws, its batch, the gradients that were there, and the memory of what it had kept."""
    tries, kept, step = [], [], PromptTrainer.training_step

    def training_step(self, batch):
        text = self.towers.text
        tries.append((torch.rand(1).item(), sorted(batch), self.trainables[0].grad, self.towers.passes.texts))
        assert not kept or kept[0]() is None
        images, features = batch.pop("img"), self.model.class_features()
        if not kept:
            kept.extend((weakref.ref(features), text.largest_pass, text.activation_bytes))
            self.model_backward(features.sum())
            raise full()
        return step(self, {**batch, "img": images})

    trainer = made(clip_model, training_step)
    trainer.towers.passes.counting, trainer.towers.text.largest_pass = True, 2**60  # of an earlier step
    capsys.readouterr()
    state = torch.get_rng_state()
    summary = trainer.forward_backward(batch())
    assert set(summary) == {"loss", "acc"} and trainer._once_again.spent
    assert tries[0] == tries[1] == (tries[0][0], ["domain", "img", "label"], None, 0)
    assert trainer.towers.passes.texts == 2 * len(NAMES)  # of the step that was made
    assert trainer.towers.text.activation_bytes == kept[1] // SMALLER < kept[2]
    torch.set_rng_state(state)
    assert torch.rand(1).item() == tries[0][0]
    told = capsys.readouterr().out
    assert told.count("\n") == 1 and told.startswith(NOTE) and "TRAIN.TEXT_MEMORY_MB 1 begins so" in told


def test_pieces_of_a_limit_that_is_set_become_smaller_than_it(clip_model, as_on_gpu, monkeypatch):
    tries, pieces, encode = [], [], TextTower._encode_chunk
    monkeypatch.setattr(TextTower, "_encode_chunk", lambda *args: pieces.append(1) or encode(*args))

    def training_step(self, batch):
        pieces.clear()
        self.model.class_features()
        tries.append((self.towers.text.activation_bytes, len(pieces)))
        if len(tries) == 1:
            raise full()
        return {}

    trainer = made(clip_model, training_step)
    trainer.watch.over = True
    trainer.model.class_features()
    half = trainer.towers.text.largest_pass // 2
    trainer.towers.text.activation_bytes = half
    trainer.forward_backward(batch())
    (before, few), (after, many) = tries
    assert (before, after) == (half, half // SMALLER) and 1 < few < many


def updated(self, batch):
    self.apply_gradients(self.gradients(self.compute_loss(batch)[0], self.trainables))


def by_fused_optimizer(self, batch):
    optimizer = torch.optim.SGD(self.trainables, lr=0.1, fused=True)  # which changes tensors in silence
    self.model_backward(self.compute_loss(batch)[0])
    optimizer.step()


def buffer_changed(self, batch):
    self.compute_loss(batch)
    self.model.count += 1


def no_text(self, batch):
    with torch.no_grad():
        self.compute_loss(batch)


def images_changed(self, batch):
    self.compute_loss(batch)
    batch["img"] += 1


@pytest.mark.parametrize("work", [updated, by_fused_optimizer, buffer_changed, images_changed, no_text])
def test_what_cannot_begin_again_ends_at_once(work, clip_model, as_on_gpu, capsys):
    tries = []

    def training_step(self, batch):
        tries.append(1)
        work(self, batch)
        raise full()

    trainer = made(clip_model, training_step)
    trainer.model.register_buffer("count", torch.zeros(()))
    before = trainer.towers.text.activation_bytes
    capsys.readouterr()
    with pytest.raises(torch.OutOfMemoryError):
        trainer.forward_backward(batch())
    assert tries == [1] and trainer.towers.text.activation_bytes == before and not trainer._once_again.spent
    assert capsys.readouterr().out == ""


def test_a_step_begins_again_on_one_gpu_only(clip_model):
    trainer = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 2})
    assert not trainer._once_again.possible  # memory of a CPU is not freed by an error
    trainer.device = torch.device("cuda")
    assert trainer._once_again.possible
    trainer.ranks.world_size = 2  # the other process would wait
    assert not trainer._once_again.possible
    trainer.ranks.world_size = 1
    trainer._once_again.spent = True
    assert not trainer._once_again.possible


def test_passes_say_how_much_they_keep(clip_model):
    trainer = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 2})
    text = trainer.towers.text
    with torch.no_grad():
        trainer.model.class_features()
    assert text.largest_pass == 0
    trainer.model.class_features()
    ten = text.largest_pass
    for limit in (None, 1, 2**40):  # whatever the pieces
        text.largest_pass, text.activation_bytes = 0, limit
        trainer.model.class_features()
        assert text.largest_pass == ten > 0
    ctx = torch.zeros(2, text.width, requires_grad=True)
    text.encode(ClassPrompts(text, NAMES[:2], 2)(ctx))
    assert text.largest_pass == ten


def test_a_step_begins_again_on_another_device(clip_model, runs_out):
    def stepped(*full_passes):
        runs_out(*full_passes)
        trainer = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 2})
        loss = trainer.forward_backward(batch())["loss"]
        return trainer, loss, trainer.trainables[0].detach().cpu()

    _, loss, learned = stepped()
    with other_device.runs_on_it():
        trainer, other_loss, other_learned = stepped(1)
        assert trainer.device == other_device.DEVICE and trainer._once_again.spent
    assert other_loss == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(other_learned, learned, rtol=1e-5, atol=1e-5)
