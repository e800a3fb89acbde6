"""Checkpoints, weights, schedules and finished runs that are taken for what they are not."""
import json
import shutil
from pathlib import Path

import drawn
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import tiny_clip
import train
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError
from prompting import PromptingError, load_clip
from prompting.backbone import Towers, weights_digest
from tools import interpret_prompt, predict, protocol, report
from training import PromptTrainer
from written_runs import base2new, share, write_run

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = str(ROOT / "tests" / "plugins" / "habits.v2.py")
CSC = ("TRAINER.COOP.CSC", "True")


@pytest.fixture(scope="module")
def other_file(tmp_path_factory):
    """Another CLIP of the tiny one's shapes."""
    path = tmp_path_factory.mktemp("other") / "other.pt"
    state = tiny_clip.state_dict()
    torch.save({**state, "visual.proj": state["visual.proj"].flip(0)}, path)
    return str(path)


@pytest.fixture(scope="module")
def trained(drawn_root, tiny_config, clip_file, clips, tmp_path_factory):
    """The folder of a CoOp that was trained for two epochs on the tiny CLIP."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train.main(["--root", str(drawn_root), "--seed", "1", "--trainer", "CoOp", "--backbone", clip_file,
                "--dataset-config-file", str(ROOT / "configs/datasets/caltech101.yaml"), "--config-file", tiny_config,
                "--output-dir", str(folder)], clips=clips)
    return folder


@pytest.fixture
def interrupted(trained, tmp_path):
    """A copy of that run as a kill after its first epoch leaves it."""
    folder = tmp_path / "cut"
    shutil.copytree(trained, folder)
    (folder / "results.json").unlink()
    (folder / "prompt_learner" / "model.pth.tar-2").unlink()
    (folder / "prompt_learner" / "checkpoint").write_text("model.pth.tar-1\n")
    return folder


def without_identity(folder, *keys):
    """Checkpoints of the run in `folder` as they were written before: without `keys`, by default all they were made
    for."""
    for path in (folder / "prompt_learner").glob("model.pth.tar-*"):
        state = torch.load(path, weights_only=True)
        for key in keys or ("made_for",):
            del state[key]
        torch.save(state, path)


# ---- a checkpoint is of its backbone and its settings ----
CHANGED = {
    "INPUT.INTERPOLATION": ("INPUT.INTERPOLATION", "bilinear"),
    "INPUT.PIXEL_MEAN": ("INPUT.PIXEL_MEAN", "[0.5, 0.5, 0.5]"),
    "INPUT.PIXEL_STD": ("INPUT.PIXEL_STD", "[0.5, 0.5, 0.5]"),
    "INPUT.TRANSFORMS": ("INPUT.TRANSFORMS", "('random_flip',)"),
    "TRAINER.COOP.CLASS_TOKEN_POSITION": ("TRAINER.COOP.CLASS_TOKEN_POSITION", "front"),
    "TRAINER.COOP.N_CTX": ("TRAINER.COOP.N_CTX", 4),
}
WERE = {"INPUT.INTERPOLATION": "bicubic", "INPUT.PIXEL_MEAN": [0.485, 0.456, 0.406],
        "INPUT.PIXEL_STD": [0.229, 0.224, 0.225], "INPUT.TRANSFORMS": ["normalize"],
        "TRAINER.COOP.CLASS_TOKEN_POSITION": "end", "TRAINER.COOP.N_CTX": 3}


@pytest.mark.parametrize("setting", CHANGED)
def test_evaluated_under_another_setting(setting, refused, trained):
    line = refused("CoOp", "--eval-only", "--model-dir", trained, *CHANGED[setting])
    assert f"trained for something else, {setting}: trained with {WERE[setting]}, now " in line
    assert f"give {setting} \"{WERE[setting]}\"" in line and f"TEST.ALLOW_CHANGED \"{setting}\"" in line


def test_evaluated_on_another_backbone(refused, trained, clip_file, other_file):
    line = refused("CoOp", "--eval-only", "--model-dir", trained, backbone=other_file)
    assert f"backbone: trained with {clip_file} (SHA-256 {weights_digest(clip_file)[:12]}), now {other_file}" in line
    assert f"give --backbone {clip_file}" in line


def test_a_best_epoch_on_another_backbone(refused, made, trained, other_file, tmp_path):
    made("CoOp", "TEST.FINAL_MODEL", "best_val", out="best")
    line = refused("CoOp", "--eval-only", "--model-dir", tmp_path / "best", backbone=other_file, out="eval")
    assert "model-best.pth.tar was trained for something else, backbone" in line


def test_another_backbone_that_is_allowed(made, trained, other_file):
    results, printed = made("CoOp", "--eval-only", "--model-dir", trained, "TEST.ALLOW_CHANGED", "backbone",
                            backbone=other_file)
    (setting, (then, now)), = results["changed"].items()
    assert setting == "backbone" and "tiny.pt" in then and "other.pt" in now
    assert "as TEST.ALLOW_CHANGED permits: backbone: trained with" in printed


def test_one_of_two_changes_is_allowed(refused, made, trained):
    words = ("--eval-only", "--model-dir", trained, *CHANGED["INPUT.PIXEL_MEAN"], *CHANGED["INPUT.INTERPOLATION"],
             "TEST.ALLOW_CHANGED")
    line = refused("CoOp", *words, "INPUT.PIXEL_MEAN")
    assert "else, INPUT.INTERPOLATION: trained with bicubic, now bilinear" in line
    assert "\"INPUT.INTERPOLATION,INPUT.PIXEL_MEAN\"" in line
    results, _ = made("CoOp", *words, "INPUT.PIXEL_MEAN,INPUT.INTERPOLATION", out="both")
    assert results["changed"] == {"INPUT.PIXEL_MEAN": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
                                  "INPUT.INTERPOLATION": ["bicubic", "bilinear"]}


def test_allowing_what_is_not_compared(refused, trained):
    line = refused("CoOp", "--eval-only", "--model-dir", trained, "TEST.ALLOW_CHANGED", "INPUT.PIXEL")
    assert ("'INPUT.PIXEL' is no setting that a checkpoint is compared by (did you mean 'INPUT.PIXEL_STD'?); known: "
            "backbone, INPUT.SIZE") in line


def test_the_same_weights_at_another_path_are_the_same_backbone(made, trained, clip_file, tmp_path):
    shutil.copy(clip_file, tmp_path / "moved.pt")
    results, _ = made("CoOp", "--eval-only", "--model-dir", trained, backbone=tmp_path / "moved.pt")
    before = json.loads((trained / "results.json").read_text())
    assert results["changed"] == {} and results["metrics"] == before["metrics"]
    assert results["backbone"]["digest"] == before["backbone"]["digest"] == weights_digest(clip_file)


def test_an_old_checkpoint_is_read_with_a_warning(made, interrupted):
    without_identity(interrupted)
    results, printed = made("CoOp", "--eval-only", "--model-dir", interrupted)
    assert printed.count("does not say which backbone and settings it was trained with") == 1
    assert results["changed"] == {}


@pytest.mark.parametrize("found", [[], "CoOp", {"backbone": {}}, {"backbone": 1, "settings": {}, "training": {},
                                                                  "data": {}}], ids=str)
def test_an_identity_that_cannot_be_read(found, refused, interrupted):
    path = interrupted / "prompt_learner" / "model.pth.tar-1"
    torch.save({**torch.load(path, weights_only=True), "made_for": found}, path)
    line = refused("CoOp", "--eval-only", "--model-dir", interrupted)
    assert "model.pth.tar-1 is damaged: what it says of its training (made_for) cannot be read" in line


def test_predicting_with_another_backbone(one_line, trained, other_file, drawn_root):
    image = next((drawn_root / "caltech-101").rglob("*.png"))
    line = one_line(lambda: predict.main([str(image), "--model-dir", str(trained), "--backbone", other_file]))
    assert "model.pth.tar-2 was trained for something else, backbone" in line and "ALLOW_CHANGED" not in line


def test_interpreting_with_another_backbone(one_line, trained, other_file):
    line = one_line(lambda: interpret_prompt.main([str(trained), "--backbone", other_file]))
    assert "model.pth.tar-2 was trained for something else, backbone" in line


@pytest.mark.parametrize("way", ["--model-dir", "--resume"])
def test_a_foreign_trainer_under_another_mean(way, refused, made, tmp_path):
    made("OwnTest", "--plugin", FOREIGN, out="first")
    words = ("--eval-only", way) if way == "--model-dir" else (way,)
    line = refused("OwnTest", "--plugin", FOREIGN, *words, tmp_path / "first", *CHANGED["INPUT.PIXEL_MEAN"],
                   out="second")
    assert "model.pth.tar-2 was trained for something else, INPUT.PIXEL_MEAN: trained with [0.485" in line


def test_a_foreign_trainer_on_another_backbone(refused, made, other_file, tmp_path):
    made("OwnTest", "--plugin", FOREIGN, out="first")
    line = refused("OwnTest", "--plugin", FOREIGN, "--eval-only", "--model-dir", tmp_path / "first", out="second",
                   backbone=other_file)
    assert "was trained for something else, backbone: trained with" in line and "other.pt" in line


# ---- going on ----
@pytest.mark.parametrize("setting", ["backbone", "INPUT.PIXEL_MEAN", "INPUT.INTERPOLATION",
                                     "TRAINER.COOP.CLASS_TOKEN_POSITION"])
def test_resumed_for_something_else(setting, refused, interrupted, other_file):
    words = CHANGED.get(setting, ())
    kwargs = {} if words else {"backbone": other_file}
    line = refused("CoOp", "--resume", interrupted, *words, "TEST.ALLOW_CHANGED", setting, **kwargs)
    assert f"model.pth.tar-1 was trained for something else, {setting}: trained with" in line
    assert "or start a new run without --resume" in line


def test_weights_that_are_replaced_under_an_interrupted_run(made, refused, clip_file, other_file, tmp_path):
    shutil.copy(clip_file, tmp_path / "weights.pt")
    made("CoOp", backbone=tmp_path / "weights.pt", shared=False)
    (tmp_path / "out" / "results.json").unlink()
    shutil.copy(other_file, tmp_path / "weights.pt")
    line = refused("CoOp", backbone=tmp_path / "weights.pt", shared=False)
    assert "was trained for something else, backbone" in line and weights_digest(other_file)[:12] in line


@pytest.mark.parametrize("remembered", ["made_for", "nothing"])
@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_resumed_with_another_optimizer(name, remembered, refused, interrupted):
    if remembered == "nothing":
        without_identity(interrupted)
    line = refused("CoOp", "--resume", interrupted, "OPTIM.NAME", name)
    assert "OPTIM.NAME" in line and "nothing to" in line and "delete" not in line
    assert ("was trained with OPTIM.NAME sgd" if remembered == "made_for" else "of another kind than ") in line


def test_rmsprop_that_is_given_a_momentum(made, refused, tmp_path):
    made("CoOp", "OPTIM.NAME", "rmsprop", "OPTIM.MOMENTUM", 0.0, "OPTIM.LR", 1e-3, "OPTIM.MAX_EPOCH", 1, out="first")
    line = refused("CoOp", "--resume", tmp_path / "first", "OPTIM.NAME", "rmsprop", "OPTIM.LR", 1e-3)
    assert "cannot begin with it later; resume with OPTIM.MOMENTUM 0" in line


def test_fewer_epochs_than_are_done(refused, trained):
    line = refused("CoOp", "--resume", trained, "OPTIM.MAX_EPOCH", 1)
    assert "is of epoch 2, OPTIM.MAX_EPOCH is 1; give at least 2" in line


def test_resumed_on_other_images(refused, interrupted):
    line = refused("CoOp", "--resume", interrupted, seed=2)
    assert "model.pth.tar-1 is of other data: the training part of Caltech101 is another list of images now" in line


def test_batches_that_do_not_divide_as_before(refused, interrupted):
    path = interrupted / "prompt_learner" / "model.pth.tar-1"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "step": 1}, path.with_name("model-interrupted.pth.tar"))
    line = refused("CoOp", "--resume", interrupted, "DATALOADER.TRAIN_X.BATCH_SIZE", 3)
    assert "after 1 batches with DATALOADER.TRAIN_X.BATCH_SIZE 4; with 3 the batches are other ones" in line


def rates(monkeypatch, make):
    """The rate of each training step of each optimizer that `make()` makes, {(epoch, optimizer): rate}."""
    seen, step = {}, PromptTrainer.training_step

    def watch(cls):
        own = cls.training_step

        def training_step(self, batch):
            for number, (optim, _) in enumerate(self.optimizers):
                seen.setdefault((self.epoch, number), []).append(optim.param_groups[0]["lr"])
            return own(self, batch)

        return training_step

    with monkeypatch.context() as patch:
        for name in ("CoOp", "MetaPrompt", "ProMetaR"):
            cls = TRAINER_REGISTRY.get(name)
            patch.setattr(cls, "training_step", watch(cls))
        make()
    assert step is PromptTrainer.training_step
    return {key: values[0] for key, values in seen.items()}


@pytest.mark.parametrize("method", ["CoOp", "MetaPrompt", "ProMetaR"])
def test_more_epochs_have_the_rates_of_the_longer_schedule(method, made, tmp_path, monkeypatch):
    words = ("OPTIM.WARMUP_EPOCH", 0, "OPTIM.LR", 2e-3) + (
        ("TRAINER.PROMETAR.PROMPT_DEPTH_TEXT", 2, "TRAINER.PROMETAR.PROMPT_DEPTH_VISION", 2)
        if method == "ProMetaR" else ())
    made(method, *words, out="short")
    seen = rates(monkeypatch, lambda: made(method, "--resume", tmp_path / "short", *words, "OPTIM.MAX_EPOCH", 8))
    want = [0.5 * 2e-3 * (1 + torch.cos(torch.tensor(torch.pi * epoch / 8, dtype=torch.float64)).item())
            for epoch in range(8)]
    assert [seen[epoch, 0] for epoch in range(2, 8)] == pytest.approx(want[2:], rel=1e-12)
    assert (1, 0) not in seen
    if method == "ProMetaR":
        assert {rate for (_, number), rate in seen.items() if number == 1} == {1e-6}  # VNET_LR, at any epoch
    assert "Note: OPTIM.MAX_EPOCH 2 -> 8 from epoch 3 on" in (tmp_path / "out" / "log.txt").read_text()


def test_a_new_rate_and_schedule_act_from_where_the_run_is(made, interrupted, tmp_path, monkeypatch):
    words = ("OPTIM.LR", 0.01, "OPTIM.LR_SCHEDULER", "multi_step", "OPTIM.STEPSIZE", "(2,)", "OPTIM.WARMUP_EPOCH", 0,
             "OPTIM.MAX_EPOCH", 4, "OPTIM.MOMENTUM", 0.5)
    seen = rates(monkeypatch, lambda: made("CoOp", "--resume", interrupted, *words))
    assert [seen[epoch, 0] for epoch in (1, 2, 3)] == pytest.approx([0.01, 0.001, 0.001])
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "OPTIM.LR 0.05 -> 0.01" in log and "OPTIM.LR_SCHEDULER cosine -> multi_step" in log
    state = torch.load(tmp_path / "out" / "prompt_learner" / "model.pth.tar-4", weights_only=True)
    assert state["optimizers"][0]["param_groups"][0]["momentum"] == 0.5


# ---- weights of another make ----
def narrowed(width, tower):
    """The tiny CLIP with one tower of another width."""
    def cut(name, tensor):
        image = name.startswith("visual.")
        if image != (tower == "image"):
            return tensor
        for dim, size in enumerate(tensor.shape):
            if size in (128, 384, 512) and not (dim == 0 and name == "token_embedding.weight"):
                tensor = tensor.narrow(dim, 0, size // 128 * width)
        return tensor.clone()

    return {name: cut(name, tensor) for name, tensor in tiny_clip.state_dict().items()}


@pytest.mark.parametrize("width", [96, 32])
@pytest.mark.parametrize("tower", ["text", "image"])
def test_heads_that_cannot_be_64_wide(tower, width, refused, tmp_path):
    torch.save(narrowed(width, tower), tmp_path / "narrow.pt")
    line = refused("ZeroshotCLIP", backbone=tmp_path / "narrow.pt", shared=False)
    assert f"narrow.pt: its {tower} tower is {width} wide, which cannot be divided into heads of 64" in line


def test_a_resnet_whose_heads_cannot_be_64_wide(one_line, resnet_file, tmp_path):
    from safetensors.torch import load_file

    state = load_file(resnet_file)
    state["visual.layer1.0.conv1.weight"] = state["visual.layer1.0.conv1.weight"][:15].clone()
    save_file(state, tmp_path / "odd.safetensors")
    line = one_line(lambda: load_clip(str(tmp_path / "odd.safetensors")))
    assert "its image tower is 480 wide, which cannot be divided into heads of 64" in line


@pytest.mark.parametrize("own", [True, False], ids=["own", "tiny"])
def test_weights_that_nobody_published_are_named(own, made, clip_file):
    size = () if own else ("INPUT.SIZE", "(64,64)")
    results, printed = made("ZeroshotCLIP", *size, backbone=clip_file if own else "tiny")
    told = f"Backbone {clip_file} is not one of OpenAI's: computed with QuickGELU, 2 text and 2 image heads (64 wide)"
    assert (told in printed) is own and ("not one of OpenAI's" in printed) is own
    assert results["backbone"] == {"name": clip_file if own else "tiny", "published": False, "activation": "QuickGELU",
                                   "digest": weights_digest(clip_file if own else "tiny"),
                                   "heads": {"text": 2, "image": 2}}


def test_weights_of_a_foreign_trainer_are_named(made, clip_file):
    results, printed = made("OwnTest", "--plugin", FOREIGN, out="first")
    assert f"Backbone {clip_file} is not one of OpenAI's" in printed
    assert results["backbone"]["heads"] == {"text": 2, "image": 2}


def test_a_module_with_another_activation(clip_file):
    model = load_clip(clip_file)
    model.transformer.resblocks[1].mlp[1] = torch.nn.GELU()
    with pytest.raises(PromptingError, match="has GELU in its blocks, which are computed with QuickGELU"):
        Towers(model)


# ---- schedules ----
@pytest.mark.parametrize(("words", "message"), [
    (("multi_step", "(-1,)"), r"OPTIM.STEPSIZE (-1,): multi_step needs the epochs at which the rate falls"),
    (("multi_step", "(0,2)"), "from 1 on and ascending"),
    (("multi_step", "(3,3)"), "OPTIM.STEPSIZE (3, 3): multi_step needs"),
    (("multi_step", "(7,3)"), "OPTIM.STEPSIZE (7, 3): multi_step needs"),
    (("multi_step", "(3,-1)"), "OPTIM.STEPSIZE (3, -1): multi_step needs"),
    (("single_step", "(3,7)"), "single_step takes one number, the epochs between two steps"),
    (("single_step", "(0,)"), "single_step needs a number of epochs from 1 on, or (-1,) for no step"),
    (("single_step", "(-2,)"), "single_step needs a number of epochs from 1 on, or (-1,) for no step"),
    (("multi_step", "(1,)", "OPTIM.GAMMA", 0.0, "OPTIM.WARMUP_EPOCH", 0), "OPTIM.GAMMA 0.0: the rate is multiplied"),
], ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "")
def test_a_schedule_that_reads_what_another_means(words, message, refused):
    line = refused("CoOp", "OPTIM.LR_SCHEDULER", words[0], "OPTIM.STEPSIZE", *words[1:])
    assert message in line


@pytest.mark.parametrize(("words", "message"), [
    (("OPTIM.LR_SCHEDULER", "multi_step", "OPTIM.STEPSIZE", "(1,2)", "OPTIM.WARMUP_EPOCH", 0),
     "Note: OPTIM.STEPSIZE 2 is not reached in OPTIM.MAX_EPOCH 2\n"),
    (("OPTIM.LR_SCHEDULER", "multi_step", "OPTIM.STEPSIZE", "(1,2)"),
     "Note: OPTIM.STEPSIZE 1, 2 is not reached in OPTIM.MAX_EPOCH 2, counted from the end of the 1 epochs of warm-up"),
    (("OPTIM.WARMUP_EPOCH", 2), "Note: all of OPTIM.MAX_EPOCH 2 is warm-up (OPTIM.WARMUP_EPOCH 2)"),
    (("OPTIM.WARMUP_CONS_LR", 1.0), "Note: OPTIM.WARMUP_CONS_LR 1 is above OPTIM.LR 0.05"),
    (("OPTIM.WARMUP_CONS_LR", 0.0), "Note: OPTIM.WARMUP_CONS_LR is 0: nothing is learned in the warm-up"),
    (("OPTIM.LR_SCHEDULER", "single_step", "OPTIM.STEPSIZE", 1, "OPTIM.WARMUP_EPOCH", 0, "OPTIM.GAMMA", 10.0,
      "OPTIM.LR", 1e-4), "Note: OPTIM.GAMMA 10.0 is above 1: the rate grows at each step"),
], ids=range(6))
def test_a_schedule_that_is_hardly_meant_is_named(words, message, made):
    _, printed = made("CoOp", "--no-train", *words)
    assert printed.count(message) == 1


# ---- finished runs of other data ----
@pytest.fixture
def other_root(tmp_path):
    """Another Caltech101 below a root of its own: one image less."""
    folder = drawn.write_caltech(tmp_path / "other_data")
    return folder.parent


def edit_split(root, edit):
    path = root / "caltech-101" / "split_zhou_Caltech101.json"
    split = json.loads(path.read_text())
    edit(split)
    path.write_text(json.dumps(split))
    shutil.rmtree(root / "caltech-101" / "split_fewshot", ignore_errors=True)


EDITS = {
    "test": lambda split: split["test"].pop(),
    "validation": lambda split: split["val"].__delitem__(slice(0, 24)),
    "training": lambda split: split["train"].__delitem__(slice(0, 12)),
}


@pytest.mark.parametrize("part", EDITS)
@pytest.mark.parametrize("way", ["finished", "interrupted"])
def test_a_run_of_other_data_is_not_taken_over(part, way, made, refused, other_root):
    made("CoOp", "OPTIM.MAX_EPOCH", 1, root=other_root)
    if way == "interrupted":
        (other_root.parent / "out" / "results.json").unlink()
    edit_split(other_root, EDITS[part])
    line = refused("CoOp", "OPTIM.MAX_EPOCH", 1, root=other_root)
    assert f"is of other data: the {part} part of Caltech101 is another list of images now (digest " in line
    assert "choose another --output-dir (--output, for the scripts OUTPUT), or delete that folder" in line


def test_a_class_that_was_deleted(made, refused, other_root):
    made("ZeroshotCLIP", root=other_root)
    edit_split(other_root, lambda split: split.update(
        {part: [entry for entry in entries if entry[1] != 5] for part, entries in split.items()}))
    assert "is of other data: the training part" in refused("ZeroshotCLIP", root=other_root)


def test_the_same_data_elsewhere_are_the_same(made, drawn_root, tmp_path):
    first, _ = made("ZeroshotCLIP")
    drawn.write_caltech(tmp_path / "copy")
    again, printed = made("ZeroshotCLIP", root=tmp_path / "copy")
    assert again == first and "Finished before" in printed and "Loading dataset" not in printed


def test_data_that_are_gone_are_not_compared(made, other_root):
    first, _ = made("ZeroshotCLIP", root=other_root)
    shutil.rmtree(other_root)
    again, printed = made("ZeroshotCLIP", root=other_root)
    assert again == first and "is finished and is taken over; its data cannot be compared" in printed


def test_the_same_weights_elsewhere_are_the_same_run(made, clip_file, tmp_path):
    first, _ = made("ZeroshotCLIP")
    shutil.copy(clip_file, tmp_path / "moved.pt")
    again, printed = made("ZeroshotCLIP", backbone=tmp_path / "moved.pt")
    assert again == first and "Finished before" in printed


def test_other_weights_at_the_same_path_are_another_run(made, refused, clip_file, other_file, tmp_path):
    shutil.copy(clip_file, tmp_path / "weights.pt")
    made("ZeroshotCLIP", backbone=tmp_path / "weights.pt", shared=False)
    shutil.copy(other_file, tmp_path / "weights.pt")
    line = refused("ZeroshotCLIP", backbone=tmp_path / "weights.pt", shared=False)
    assert "is of other weights: it was made with" in line and weights_digest(other_file)[:12] in line


def test_a_loaded_clip_whose_file_is_another_by_now(made, clip_file, other_file, tmp_path, clips):
    """A process that goes on computing with the weights it once loaded."""
    path = tmp_path / "weights.pt"
    shutil.copy(clip_file, path)
    made("ZeroshotCLIP", backbone=path, out="first")
    shutil.copy(other_file, path)
    results, _ = made("ZeroshotCLIP", backbone=path, out="second")
    assert results["backbone"]["digest"] == weights_digest(other_file)


@pytest.mark.parametrize("lost", ["backbone", "dataset_digest"])
def test_a_run_of_before_is_taken_over_with_a_warning(lost, made, tmp_path):
    made("ZeroshotCLIP")
    path = tmp_path / "out" / "results.json"
    stored = json.loads(path.read_text())
    del stored[lost]
    path.write_text(json.dumps(stored))
    again, printed = made("ZeroshotCLIP")
    assert again == stored and printed.count("cannot be told") == 1


@pytest.fixture
def sweep(tmp_path, tiny_config, clip_file):
    """(root, *words) -> the words of a zero-shot protocol on Caltech101 below `root`."""
    return lambda root, *words: ["zeroshot", "--trainer", "ZeroshotCLIP", "--dataset", "caltech101", "--cfg",
                                 tiny_config, "--root", str(root), "--output", str(tmp_path / "sweep"), "--backbone",
                                 clip_file, *words]


@pytest.fixture
def swept(sweep, other_root):
    """That protocol with its first seed made on data that have changed since."""
    protocol.main(sweep(other_root, "--seeds", "1"))
    edit_split(other_root, EDITS["test"])
    return lambda *words: sweep(other_root, *words)


def test_a_protocol_does_not_mix_two_datasets(swept, protocol_refused, capsys):
    for more, told in (((), "nothing was run: 1 of 2 runs cannot be made"), (["--keep-going"], "1 of 2 runs failed")):
        line = protocol_refused(*swept("--seeds", "1", "2", *more))
        assert told in line and "is of other data: the test part of Caltech101" in line


def test_a_dry_run_says_which_runs_are_of_other_data(swept, capsys):
    with pytest.raises(InputError, match="1 of 2 runs would be refused"):
        protocol.main(swept("--seeds", "1", "2", "--dry-run"))
    listed = capsys.readouterr().out
    assert "refused (" in listed and "is of other data: the test part" in listed and "2 runs, 0 done" in listed


def test_the_status_says_which_runs_are_of_other_data(swept):
    listed = protocol.main(swept("--seeds", "1", "2", "--status"))
    assert "refused" in listed and "is of other data: the test part" in listed and "1 to do" in listed


def test_a_table_of_what_is_done_leaves_out_other_data(swept, protocol_refused):
    assert "none of these 1 runs is done yet" in protocol_refused(*swept("--seeds", "1", "--table"))


def with_digest(folder, digest):
    path = folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"backbone": {"digest": digest}}))


def test_a_report_of_two_files_of_one_name(one_line, tmp_path):
    for seed, digest in ((1, "a" * 64), (2, "b" * 64)):
        with_digest(write_run(tmp_path, base2new("CoOp", seed=seed), share(50), backbone="/data/clip.pt"), digest)
    line = one_line(lambda: report.main([str(tmp_path)]))
    assert "they differ in base2new: backbone: clip.pt (SHA-256 aaaaaaaaaaaa) in" in line and "bbbbbbbbbbbb" in line


def test_a_report_of_one_file_with_two_names(tmp_path, capsys):
    for seed, name in ((1, "clip.pt"), (2, "moved.pt")):
        with_digest(write_run(tmp_path, base2new("CoOp", seed=seed), share(50), backbone=f"/data/{name}"), "a" * 64)
    assert report.main([str(tmp_path)])


# ---- options of a training that cannot act ----
def test_patience_without_validation_images(refused, other_root):
    edit_split(other_root, lambda split: split.update(val=[]))
    line = refused("CoOp", "TRAIN.PATIENCE", 1, "DATASET.NUM_SHOTS", 2, root=other_root)
    assert "TRAIN.PATIENCE needs validation images, but Caltech101 has no validation part" in line


def test_patience_with_test_images(refused, other_root):
    edit_split(other_root, lambda split: split.update(val=split["test"]))
    line = refused("CoOp", "TRAIN.PATIENCE", 1, root=other_root)
    assert "12 of 18 test images are validation images" in line


def test_patience_without_evaluation(refused):
    assert "which TEST.NO_TEST leaves out" in refused("CoOp", "TRAIN.PATIENCE", 1, "TEST.NO_TEST", "True")


@pytest.mark.parametrize("option", [("OPTIM.LABEL_SMOOTHING", 0.1), ("OPTIM.CLIP_GRAD_NORM", 1.0),
                                    ("TRAIN.PATIENCE", 2)], ids=lambda option: option[0])
def test_options_that_a_foreign_trainer_does_not_know(option, refused):
    line = refused("OwnTest", "--plugin", FOREIGN, *option)
    assert f"{option[0]}: OwnTest is no PromptTrainer" in line


class OwnLoss:
    def compute_loss(self, batch):
        logits = self.model(batch["img"])
        return F.cross_entropy(logits, batch["label"]), logits


class OwnStep:
    def training_step(self, batch):
        loss, _ = self.compute_loss(batch)
        loss.backward()
        self.optim.step()
        return {"loss": loss.item()}


@pytest.mark.parametrize(("habit", "option", "message"), [
    (OwnLoss, ("OPTIM.LABEL_SMOOTHING", 0.1), "computes its loss without self.cross_entropy"),
    (OwnStep, ("OPTIM.CLIP_GRAD_NORM", 1.0), "makes its steps without apply_gradients")])
def test_options_that_a_method_leaves_out(habit, option, message, refused):
    coop = TRAINER_REGISTRY.get("CoOp")
    TRAINER_REGISTRY.register(type("CoOp", (habit, coop), {}), force=True)
    assert f"{option[0]} has no effect: CoOp {message}" in refused("CoOp", *option)


@pytest.mark.parametrize("option", [("OPTIM.LABEL_SMOOTHING", 0.1), ("OPTIM.CLIP_GRAD_NORM", 1.0),
                                    ("TRAIN.PATIENCE", 2)], ids=lambda option: option[0])
def test_options_that_have_nothing_to_act_on(option, made):
    _, printed = made("ZeroshotCLIP", *option)
    assert printed.count(f"Note: without effect in this run: {option[0]} (nothing is trained)") == 1


@pytest.mark.parametrize("option", [("OPTIM.LABEL_SMOOTHING", 1.0), ("OPTIM.LABEL_SMOOTHING", -0.1),
                                    ("OPTIM.CLIP_GRAD_NORM", -1.0), ("TRAIN.PATIENCE", -1)], ids=str)
def test_options_out_of_bounds(option, refused):
    assert f"{option[0]} must be between 0 and" in refused("CoOp", *option)
