"""`frozen_images` and `frozen_features`: which methods say so, and that features are as good as pictures to them."""
import re

import pytest
import torch
from conftest import ROOT
from test_training_options import SMALL

import tiny_clip
import train
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import isolated_rng
from harness import make_trainer
from prompting import PromptingError, Towers, load_clip
from trainers.metaprompt import MetaPrompt

NAMES = tiny_clip.CLASSNAMES
IN_PLACE = ["CLIPAdapter", "CoCoOp", "CoOp", "DPL", "DePT", "KgCoOp", "LinearProbe", "ProGrad", "TCP", "TaskRes",
            "TipAdapter", "TipAdapterF", "ZeroshotCLIP", "ZeroshotCLIP2"]
BESIDE = ["CoPrompt", "MMRL", "MetaPrompt", "ProMetaR", "PromptSRC"]


def batch(size=8, step=0):
    return tiny_clip.batch("statements", step, size, 10)


def built(method, clip_model, precision="fp32"):
    trainer = make_trainer(method, clip_model, NAMES, {**SMALL.get(method, {}), "PREC": precision})
    trainer.precision.scale = min(trainer.precision.scale, 256.0)
    return trainer


def features(trainer, images):
    """As the feature store gives them: float32, and then in the type that the towers compute in."""
    with torch.no_grad(), trainer.precision.autocast():
        return trainer.towers.encode_image(images).float().to(trainer.precision.dtype)


def answers(trainer, change):
    """(what a step prints, what is trained after it, logits)"""
    with isolated_rng(0):
        summary = trainer.forward_backward(change(batch())) if trainer.trains else {}
        trainer.set_model_mode("eval")
        with torch.no_grad():
            found = trainer.logits_of(change(batch(5, step=1)))
    return torch.tensor([*map(float, summary.values())]), *trainer.trained_state().values(), found


def test_the_page_of_methods_lists_who_says_what():
    text = " ".join((ROOT / "trainers" / "README.md").read_text().split())
    own = {name: cls for name, cls in TRAINER_REGISTRY.items() if cls.__module__.startswith("trainers.")}
    for statement, names in (("frozen_images", IN_PLACE), ("frozen_features", BESIDE)):
        assert sorted(name for name, cls in own.items() if vars(cls).get(statement)) == names
        told, = re.findall(rf"`{statement}`[^:]*: ([\w, ]+)\.", text)
        assert told.split(", ") == names


@pytest.mark.parametrize("method", IN_PLACE)
@pytest.mark.parametrize("precision", ["amp", pytest.param("fp32", marks=pytest.mark.slow),
                                       pytest.param("fp16", marks=pytest.mark.slow)])
def test_features_in_the_place_of_images_give_the_same_numbers(method, precision, clip_model):
    pictures = answers(built(method, clip_model, precision), lambda batch: batch)
    trainer = built(method, clip_model, precision)
    handed = answers(trainer, lambda batch: {**batch, "img": features(trainer, batch["img"])})
    assert len(handed) == len(pictures) and all(map(torch.equal, handed, pictures))


@pytest.mark.parametrize("method", BESIDE)
def test_frozen_features_that_are_given_are_used(method, clip_model):
    def beside(batch, other=0):
        return {**batch, "frozen": features(trainer, batch["img"]).roll(other, 0)}

    computed = answers(built(method, clip_model), lambda batch: batch)
    trainer = built(method, clip_model)
    given = answers(trainer, lambda batch: beside(batch) if len(batch["img"]) == 8 else batch)
    assert all(map(torch.equal, given, computed))
    trainer = built(method, clip_model)
    others = answers(trainer, lambda batch: beside(batch, 1) if len(batch["img"]) == 8 else batch)
    assert not torch.equal(others[0], given[0])


def test_metaprompt_predicts_with_frozen_features_that_are_given(clip_model):
    trainer = built("MetaPrompt", clip_model)
    images = batch()["img"]
    trainer.set_model_mode("eval")
    with torch.no_grad():
        given = features(trainer, images)
        assert torch.equal(trainer.model(images, given), trainer.model(images))
        assert not torch.allclose(trainer.model(images, given.roll(1, 0)), trainer.model(images))


@pytest.mark.parametrize("method", [*BESIDE, "VPT", "MaPLe"])
def test_a_method_that_prompts_images_refuses_features_in_one_line(method, clip_model):
    trainer = built(method, clip_model)
    with pytest.raises(PromptingError, match=r"pictures \(B, 3, H, W\) are needed, and frozen features \(8, \d+\) "
                                             r".*`frozen_images`.*leave the statement out") as refusal:
        trainer.forward_backward({**batch(), "img": features(trainer, batch()["img"])})
    assert "\n" not in str(refusal.value)


def test_towers_refuse_features_that_are_not_theirs(clip_model, resnet_file):
    given = torch.zeros(3, clip_model.text_projection.shape[1])
    with pytest.raises(PromptingError, match="frozen features"):
        Towers(clip_model).encode_image_tokens(given)
    for model in (clip_model, load_clip(resnet_file)):
        given = torch.zeros(3, model.text_projection.shape[1])
        assert Towers(model).encode_image(given) is given
        towers = Towers(model, trainable=True)
        assert towers.encode_image(given) is given  # the image tower is not trained
        next(towers.model.visual.parameters()).requires_grad_(True)
        with pytest.raises(PromptingError, match="frozen features"):
            towers.encode_image(given)


def test_a_metaprompt_whose_model_takes_images_alone_goes_on_working(arguments, clips, tmp_path):
    class Alone(MetaPrompt):
        @staticmethod
        def extend_cfg(cfg):
            MetaPrompt.extend_cfg(cfg)
            cfg.TRAINER.ALONE = cfg.TRAINER.METAPROMPT.clone()

        def build_model(self, towers, classnames):
            model = super().build_model(towers, classnames)
            forward = model.forward
            model.forward = lambda images: forward(images)
            return model

        def model_inference(self, images):
            return super().model_inference(images)

    TRAINER_REGISTRY.register(Alone)
    words = ["TRAINER.ALONE.LAYERS", 2, "OPTIM.MAX_EPOCH", 1]
    results = train.main(arguments("Alone", tmp_path, *words), clips=clips)
    assert results["budget"]["image_passes"] == 2 * results["budget"]["images"] > 0  # prompted and frozen
    assert 0 <= results["metrics"]["test"]["accuracy"] <= 100


def of_coop(**own):
    """A subclass of CoOp under its name, with definitions of its own."""
    return type("CoOp", (TRAINER_REGISTRY.get("CoOp"),), own)


@pytest.mark.parametrize(("own", "said"), [
    ({"frozen_images": True, "compute_loss": lambda self, batch: self.model(batch["img"].flip(3))},
     "says frozen_images, so that batch"),
    ({"frozen_images": True, "predict": lambda self, batch: self.model(batch["img"][:, :, None])}, None),
    ({"compute_loss": lambda self, batch: self.model(batch["frozen"])}, "with frozen_features = True it is given them"),
    ({"frozen_images": "yes"}, "frozen_images must be True or False, not 'yes'"),
    ({"frozen_features": 1}, "frozen_features must be True or False, not 1")])
def test_a_statement_that_does_not_fit_is_told_in_one_line(own, said, arguments, tmp_path, clips,
                                                           one_line):
    TRAINER_REGISTRY.register(of_coop(**own), force=True)

    def run():
        train.main(arguments("CoOp", tmp_path / "run"), clips=clips)

    if said is None:  # a prediction of its own is shown pictures
        with pytest.raises(RuntimeError):
            run()
        return
    assert said in one_line(run)
