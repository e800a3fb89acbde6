"""PromptTrainers that change weights of the towers: what they get, what is trained and stored, and what is refused."""
import copy

import pytest
import torch
from torch import nn
from yacs.config import CfgNode as CN

import tiny_clip
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError
from harness import make_trainer
from prompting import PromptingError, load_clip
from prompting.model import FrozenCLIP
from training import PromptTrainer

NAMES = ["dog", "alarm clock", "house", "tree"]


class Base(PromptTrainer):
    trains_towers = True

    @classmethod
    def extend_cfg(cls, cfg):
        cfg.TRAINER[cls.__name__.upper()] = CN({"PREC": "auto"})

    def build_model(self, towers, classnames):
        model = FrozenCLIP(towers, classnames, ["a photo of a {}."])
        self.thaw(towers.model)
        return model

    def thaw(self, clip):
        for norm in (clip.ln_final, clip.visual.ln_post):
            norm.requires_grad_(True)


def made(clip_model, options=None, **methods):
    """A trainer of a class with these attributes."""
    cls = type("Made", (Base,), methods)
    TRAINER_REGISTRY.register(cls, force=True)
    return make_trainer("Made", clip_model, NAMES, options)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = tiny_clip.RESOLUTION
    return {"img": torch.randn(8, 3, size, size, generator=generator), "label": torch.arange(8) % 4,
            "domain": torch.zeros(8, dtype=torch.long), "impath": [f"{i}.png" for i in range(8)]}


def test_a_copy_is_trained_and_the_clip_of_the_run_stays(clip_model):
    before = copy.deepcopy(clip_model.state_dict())
    trainer = made(clip_model)
    first = trainer.forward_backward(batch())["loss"]
    for _ in range(5):
        last = trainer.forward_backward(batch())["loss"]
    assert last < first
    names = {f"clip.{norm}.{kind}" for norm in ("ln_final", "visual.ln_post") for kind in ("weight", "bias")}
    assert set(trainer.trained_state()) == set(trainer.trained_tensors()) == names
    assert all(not torch.equal(tensor, before[name.removeprefix("clip.")])
               for name, tensor in trainer.trained_state().items())
    assert all(torch.equal(tensor, clip_model.state_dict()[name]) for name, tensor in before.items())
    assert not any(p.requires_grad for p in clip_model.parameters())

    assert trainer.frozen_towers.model is clip_model and trainer.frozen_towers is trainer.frozen_towers
    assert trainer.frozen_towers.passes is trainer.towers.passes
    images = batch()["img"]
    assert not torch.allclose(trainer.towers.encode_image(images), trainer.frozen_towers.encode_image(images))
    plain = make_trainer("CoOp", clip_model, NAMES)
    assert plain.frozen_towers is plain.towers


def test_an_update_drops_the_class_features_of_an_evaluation(clip_model):
    trainer = made(clip_model)
    images = batch()["img"]
    trainer.set_model_mode("eval")
    with torch.no_grad():
        first = trainer.model_inference(images)
        kept = trainer.model.class_features()
        assert trainer.model.class_features() is kept
    trainer.training_step(batch())  # the model is in evaluation all the time, as at test time
    with torch.no_grad():
        second = trainer.model_inference(images)
        torch.testing.assert_close(second, trainer.model.logits(trainer.model.encode_images(images),
                                                                trainer.model.encode_classes()))
    assert not torch.allclose(first, second)


class Alone(nn.Module):
    """No PromptedCLIP: what it does not register is no part of it."""

    def __init__(self, towers, classnames):
        super().__init__()
        self.towers = towers
        self.text = nn.Parameter(towers.encode_classnames(classnames, ["{}"]))

    def forward(self, images):
        return self.towers.cosine_logits(self.towers.encode_image(images), self.text)


def build_alone(self, towers, classnames):
    self.thaw(towers.model)
    return Alone(towers, classnames)


def thaw_in_place(self, towers, classnames):
    towers.model.ln_final.requires_grad_(True)
    return FrozenCLIP(towers, classnames, ["{}"])


def replace_a_module(self, towers, classnames):
    towers.model.ln_final = nn.Sequential(towers.model.ln_final)
    return FrozenCLIP(towers, classnames, ["{}"])


def replace_a_layer(self, towers, classnames):
    """What is left has no weight to read: the model cannot even be built."""
    for block in towers.model.transformer.resblocks:
        block.mlp.c_fc = nn.Sequential(block.mlp.c_fc)
    return FrozenCLIP(towers, classnames, ["{}"])


@pytest.mark.parametrize(("methods", "message"), [
    ({"build_model": replace_a_layer, "trains_towers": False},
     "Made changes transformer.resblocks.0.mlp.c_fc of the CLIP that all runs share; with trains_towers = True"),
    ({"build_model": build_alone}, "Made: visual.ln_post.weight of the CLIP wants to be trained and is no parameter of "
                                   "the module that build_model returns; register towers.model in it"),
    ({"build_model": thaw_in_place, "trains_towers": False},
     "Made changes ln_final.weight of the CLIP that all runs share; with trains_towers = True build_model gets towers"),
    ({"build_model": replace_a_module, "trains_towers": False}, "Made changes ln_final of the CLIP that all runs"),
])
def test_what_would_train_something_else_is_refused_when_it_is_built(methods, message, clip_model):
    with pytest.raises(InputError, match=message):
        made(copy.deepcopy(clip_model), **methods)


def test_a_clip_that_was_changed_is_loaded_anew_by_the_next_run(clip_file):
    clips = {clip_file: load_clip(clip_file)}
    changed = clips[clip_file]
    cls = type("Made", (Base,), {"build_model": thaw_in_place, "trains_towers": False})
    TRAINER_REGISTRY.register(cls, force=True)
    plain = make_trainer("CoOp", clips[clip_file], NAMES)
    plain.cfg.defrost()
    plain.cfg.TRAINER.NAME, plain.cfg.MODEL.BACKBONE.NAME = "Made", clip_file
    cls.extend_cfg(plain.cfg)
    with pytest.raises(InputError, match="changes ln_final.weight"):
        cls(plain.cfg, clips=clips, classnames=NAMES)
    assert clip_file not in clips and changed.ln_final.weight.requires_grad


@pytest.mark.parametrize(("methods", "names"), [
    ({"thaw": lambda self, clip: clip.requires_grad_(True)}, None),  # everything is reached
    ({"thaw": lambda self, clip: [m.requires_grad_(True) for m in (clip.ln_final, clip.visual.ln_post)],
      "compute_loss": lambda self, batch: image_loss(self, batch)},
     "Made: no gradient reaches clip.ln_final.weight, clip.ln_final.bias in the first step; let the loss depend on it"),
    ({"compute_loss": lambda self, batch: image_loss(self, batch), "trains_in_turns": True}, None),
])
def test_a_tensor_that_no_gradient_reaches_is_named(methods, names, clip_model):
    trainer = made(clip_model, **methods)
    if names is None:
        trainer.forward_backward(batch())
        return
    with pytest.raises(InputError, match=names):
        trainer.forward_backward(batch())


def image_loss(trainer, batch):
    logits = trainer.model.logits(trainer.model.encode_images(batch["img"]), trainer.model.frozen_text_features)
    return trainer.cross_entropy(logits, batch["label"]), logits


def test_a_method_that_trains_in_turns_is_judged_after_the_epoch(clip_model):
    trainer = made(clip_model, compute_loss=image_loss, trains_in_turns=True)
    trainer.num_batches = 3
    trainer.batch_idx = 2
    trainer.forward_backward(batch())  # the rest of an epoch in which a run goes on
    for trainer.batch_idx in range(2):
        trainer.forward_backward(batch())
    trainer.batch_idx = 2
    with pytest.raises(InputError, match="clip.ln_final.bias in the first epoch; "):
        trainer.forward_backward(batch())


@pytest.mark.parametrize("step", ["backward", "autograd", "functional"])
def test_gradients_that_a_method_computes_itself_count(step, clip_model):
    def training_step(self, batch):
        if step == "functional":
            named = {name: p.detach() for name, p in self.trained_tensors().items()}

            def loss_of(values):
                logits = torch.func.functional_call(self.model, values, (batch["img"],))
                return nn.functional.cross_entropy(logits, batch["label"])
            self.apply_gradients(list(torch.func.grad(loss_of)(named).values()))
            return {"loss": 0.0}
        loss, _ = self.compute_loss(batch)
        if step == "backward":
            self.model_backward_and_update(loss)
        else:
            self.apply_gradients(torch.autograd.grad(loss, self.trainables))
        return {"loss": loss.item()}

    trainer = made(clip_model, training_step=training_step)
    trainer.forward_backward(batch())
    assert trainer.watch.over


def test_half_precision_and_patch_tokens_are_refused_in_one_line(clip_model, resnet_file):
    with pytest.raises(InputError, match="TRAINER.MADE.PREC fp16 keeps the towers in half precision, and Made trains"):
        made(clip_model, {"PREC": "fp16"})
    reader = type("Made", (Base,), {"trains_towers": False, "image_tokens": True})
    TRAINER_REGISTRY.register(reader, force=True)
    with pytest.raises(PromptingError, match="Made reads patch tokens and needs a ViT"):
        make_trainer("Made", load_clip(resnet_file), NAMES, settings={"INPUT.SIZE": "(32, 32)"})


def test_weights_to_begin_with_leave_what_is_not_trained(clip_model, tmp_path, capsys):
    """Class features that were made of a frozen text tower would not follow it."""
    source = made(clip_model, thaw=lambda self, clip: clip.requires_grad_(True))
    changed = {name: 1.5 * tensor for name, tensor in source.trained_state().items()}
    torch.save({"state_dict": changed, "epoch": 1}, tmp_path / "start.pth")
    cls = type("Made", (Base,), {"thaw": lambda self, clip: clip.visual.requires_grad_(True)})
    TRAINER_REGISTRY.register(cls, force=True)
    trainer = make_trainer("Made", clip_model, NAMES, settings={"MODEL.INIT_WEIGHTS": str(tmp_path / "start.pth")})
    model = trainer.model
    torch.testing.assert_close(trainer.towers.encode_classnames(model.classnames, model.templates),
                               model.frozen_text_features)
    assert all(torch.equal(tensor, changed[name]) for name, tensor in trainer.trained_state().items())
    printed = capsys.readouterr().out
    assert "left out: clip.ln_final.bias" in printed and "clip.visual" not in printed.split("left out")[1]


def test_batch_norm_of_a_trained_resnet_keeps_its_statistics(resnet_file):
    model = load_clip(resnet_file)
    cls = type("Made", (Base,), {"thaw": lambda self, clip: clip.visual.requires_grad_(True)})
    TRAINER_REGISTRY.register(cls, force=True)
    trainer = make_trainer("Made", model, NAMES, settings={"INPUT.SIZE": str((model.visual.input_resolution,) * 2)})
    size = model.visual.input_resolution
    data = {**batch(), "img": torch.randn(8, 3, size, size)}
    trainer.set_model_mode("train")
    assert trainer.model.clip.training
    before = {name: buffer.clone() for name, buffer in trainer.model.named_buffers()}
    trainer.forward_backward(data)
    assert before and all(torch.equal(buffer, before[name]) for name, buffer in trainer.model.named_buffers())
    assert any(not torch.equal(p, dict(model.named_parameters())[name.removeprefix("clip.")])
               for name, p in trainer.trained_tensors().items())


def test_mixed_precision_gives_gradients_also_after_a_pass_without(clip_model):
    """Autocast keeps half-precision copies of weights; one made without gradients would take them from a later pass."""
    def compute_loss(self, batch):
        with torch.no_grad():
            before = self.model.encode_images(batch["img"])
        logits = self.model.logits(self.model.encode_images(batch["img"]), self.model.encode_classes())
        return self.cross_entropy(logits, batch["label"]) + 0 * before.sum(), logits

    trainer = made(clip_model, {"PREC": "amp"}, compute_loss=compute_loss,
                   thaw=lambda self, clip: clip.visual.transformer.requires_grad_(True))
    trainer.forward_backward(batch())
    assert all(p.dtype == torch.float32 for p in trainer.trainables)
