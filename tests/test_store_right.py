"""Features that are not those of a run's own tower and pictures are not taken from the store, nor put into it."""
import json
import random

import drawn
import numpy as np
import PIL
import pytest
import torch
import torchvision
from PIL import Image
from test_store_runs import identical, numbers

import tiny_clip
import train
from dassl.data.samplers import SAMPLER_REGISTRY, EpochSampler
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError
from harness import make_trainer
from prompting import load_clip
from prompting.backbone import image_digest
from trainers.coop import CoOp
from training import PromptTrainer
from training.store.feed import Feed
from training.store.pictures import Pictures
from training.store.store import Store


@pytest.fixture
def run(arguments, clip_file, tmp_path):
    """(CLIP, name of the folder, *options) -> the run's numbers."""

    def run(clip, name, *options, store="store", method="CoOp", **kwargs):
        train.main(arguments(method, tmp_path / name, "TEST.SAVE_LOGITS", "True", "STORE.DIR", tmp_path / store,
                             *options, **kwargs), clips={clip_file: clip})
        return numbers(tmp_path / name)

    return run


def logits(found):
    return found["logits"]


def features_of(folder):
    return json.loads((folder / "results.json").read_text()).get("features")


# ---- the tower ----
@torch.no_grad()
def mixed(clip):
    clip.visual.proj.add_(clip.visual.proj.roll(1, 0))


def swapped(clip):
    clip.visual.proj.data = clip.visual.proj.data.flip(0).contiguous()


def less_of_it(clip):
    clip.visual.transformer.resblocks[-1] = clip.visual.transformer.resblocks[0]


@pytest.mark.parametrize("change", [mixed, swapped, less_of_it])
def test_a_clip_that_was_changed_has_features_of_its_own(change, run, clip_model, clip_file, tmp_path):
    """Also where it was loaded from the same file, and changed in a way that no version counts."""
    method = {"method": "ZeroshotCLIP"}
    own = logits(run(clip_model, "own", **method))
    other = load_clip(clip_file)
    change(other)
    changed = logits(run(other, "changed", **method))
    assert features_of(tmp_path / "changed") == {"stored": 0, "computed": 18}
    assert np.array_equal(changed, logits(run(other, "alone", store="other", **method)))
    assert not np.array_equal(changed, own)
    assert np.array_equal(logits(run(clip_model, "again", **method)), own)
    assert features_of(tmp_path / "again") == {"stored": 18, "computed": 0}


def test_what_tells_towers_apart(clip_file):
    clip, other = load_clip(clip_file), load_clip(clip_file)
    assert image_digest(clip) == image_digest(other) == clip.weights_digest
    other.token_embedding.weight.data.mul_(2)
    assert image_digest(other) == clip.weights_digest
    other.visual.conv1.weight.data[[0, 1]] = other.visual.conv1.weight.data[[1, 0]]
    assert len(image_digest(other)) == 64
    assert image_digest(other) != clip.weights_digest
    del other.image_sums  # a CLIP that only says what it was loaded from
    assert image_digest(other) != clip.weights_digest


@pytest.mark.parametrize("how", ["hook", "forward", "class", "everywhere"])
def test_a_tower_that_computes_something_else_is_known_by_nothing(how, run, clip_file, tmp_path):
    clip = load_clip(clip_file)
    layer, handle = clip.visual.transformer.resblocks[0].mlp.c_fc, None
    if how == "hook":
        handle = layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    elif how == "forward":
        layer.forward = lambda x: 2 * x
    elif how == "class":
        layer.__class__ = type("Linear", (torch.nn.Linear,), {})
    else:
        handle = torch.nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)
    try:
        assert image_digest(clip) is None
        if how == "hook":
            run(clip, "hooked", "OPTIM.MAX_EPOCH", 1)
            assert features_of(tmp_path / "hooked") is None
    finally:
        if handle is not None:
            handle.remove()


@pytest.mark.parametrize("how", ["in place", "hook"])
def test_a_method_that_changes_the_tower_later_is_refused_though_the_store_has_all(how, run, clip_model, clip_file,
                                                                                    monkeypatch):
    run(clip_model, "first")
    clip = load_clip(clip_file)
    step = PromptTrainer.training_step

    def changing(self, batch):
        if how == "hook":
            self.towers.model.visual.ln_post.register_forward_hook(lambda module, inputs, output: 2 * output)
        else:
            with torch.no_grad():
                self.towers.model.visual.proj.mul_(2)
        return step(self, batch)

    monkeypatch.setattr(PromptTrainer, "training_step", changing)
    with pytest.raises(InputError, match="CoOp changes the frozen CLIP in a training"):
        run(clip, "second")


# ---- the order ----
class OwnIteration(EpochSampler):
    """In the style of torch: it defines `__iter__`, and another order each time."""

    def __iter__(self):
        return iter(random.sample(range(len(self.data_source)), len(self.data_source)))


def test_a_sampler_with_an_iteration_of_its_own_gets_pictures(run, clip_model, tmp_path, monkeypatch):
    monkeypatch.setitem(SAMPLER_REGISTRY._objects, "OwnIteration", OwnIteration)
    run(clip_model, "run", "DATALOADER.TRAIN_X.SAMPLER", "OwnIteration")
    assert features_of(tmp_path / "run") == {"stored": 0, "computed": 18}  # of test images


# ---- the pictures ----
@pytest.mark.parametrize(("owner", "name", "restored"), [(Feed, "_encode", False), (Pictures, "digests", True)])
def test_a_picture_that_changes_in_a_run_leaves_nothing_wrong(owner, name, restored, run, clip_model, tmp_path,
                                                              monkeypatch):
    """Between two epochs, when it lies decoded in memory; and between the look at it and its decoding, when it may be
    what it was some time later."""
    root = tmp_path / "data"
    root.mkdir()
    drawn.write_caltech(root)
    pictures = {path: path.read_bytes() for path in root.rglob("*") if path.suffix in (".jpg", ".png")}
    function, calls = getattr(owner, name), []

    def changing(self, images):
        found = function(self, images)
        calls.append(found)
        if len(calls) == 1:
            for path in pictures:
                with Image.open(path) as picture:
                    picture.rotate(180).save(path)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, changing)
        run(clip_model, "changing", root=root)
    assert pictures and len(calls) > 1
    if restored:
        for path, content in pictures.items():
            path.write_bytes(content)
    assert identical(run(clip_model, "after", root=root), run(clip_model, "alone", root=root, store="other"))


def test_a_plugin_that_looks_at_pixels_gets_them(run, clip_model, tmp_path, monkeypatch):
    """A subclass of a method with the statement does not say it itself."""
    shapes = set()

    class Looks(CoOp):
        def compute_loss(self, batch):
            shapes.add(batch["img"].dim())
            return super().compute_loss(batch)

        @staticmethod
        def extend_cfg(cfg):
            CoOp.extend_cfg(cfg)
            cfg.TRAINER.LOOKS = cfg.TRAINER.COOP

    monkeypatch.setitem(TRAINER_REGISTRY._objects, "Looks", Looks)
    run(clip_model, "run", method="Looks")
    assert shapes == {4}
    assert features_of(tmp_path / "run") is None


def test_features_of_another_width_are_computed_again(run, clip_model, tmp_path, monkeypatch):
    """No tower of these weights gives them: somebody has written them by hand."""
    def narrow(self, entry, pieces):
        write(self, entry, {piece: rows[..., :3] for piece, rows in pieces.items()})

    write = Store.write
    own = run(clip_model, "own", method="ZeroshotCLIP", store="other")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", narrow)
        run(clip_model, "narrow", method="ZeroshotCLIP")
    assert np.array_equal(logits(run(clip_model, "again", method="ZeroshotCLIP")), logits(own))
    assert features_of(tmp_path / "again") == {"stored": 0, "computed": 18}
    run(clip_model, "mended", method="ZeroshotCLIP")
    assert features_of(tmp_path / "mended") == {"stored": 18, "computed": 0}


# ---- the names of features ----
def spaces(clip, **settings):
    """Digests of what the features of training images and of test images share."""
    precision = settings.pop("PREC", "fp32")
    settings = {"INPUT_TRANSFORMS": ("random_flip", "normalize"), **settings}
    trainer = make_trainer("CoOp", clip, tiny_clip.CLASSNAMES, {"PREC": precision}, settings={
        key.replace("_", ".", 1): value for key, value in settings.items()})
    return [loader.source.request.space.digest for loader in (trainer.train_loader_x, trainer.test_loader)]


@pytest.mark.parametrize("settings", [
    {"INPUT_EXIF": True}, {"INPUT_INTERPOLATION": "nearest"}, {"INPUT_PIXEL_MEAN": [0.5, 0.5, 0.5]},
    {"INPUT_TRANSFORMS": ("instance_norm",)}, {"PREC": "amp"}, {"PREC": "fp16"}])
def test_all_that_determines_features_tells_them_apart(settings, clip_model):
    assert all(one != other for one, other in zip(spaces(clip_model, **settings), spaces(clip_model)))


def test_several_views_tell_those_apart_that_are_drawn(clip_model):
    (views, test), (view, same) = spaces(clip_model, DATALOADER_K_TRANSFORMS=2), spaces(clip_model)
    assert views != view
    assert test == same


@pytest.mark.parametrize(("module", "name", "value"), [
    (torch, "__version__", "9.9"), (torchvision, "__version__", "9.9"), (PIL, "__version__", "9.9"),
    (torch, "get_float32_matmul_precision", lambda: "medium"), (torch.backends.cudnn, "allow_tf32", False)])
def test_versions_and_settings_of_torch_tell_features_apart(module, name, value, clip_model, monkeypatch):
    before = spaces(clip_model)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, value)
        after = spaces(clip_model)
    assert all(one != other for one, other in zip(before, after))


def test_a_seed_and_a_rate_tell_no_features_apart(clip_model):
    assert spaces(clip_model, SEED=2, OPTIM_LR=0.5, DATASET_SKIP_BAD_IMAGES=False) == spaces(clip_model)
