"""The parts of trainers/ one by one: published defaults, named draws, notes, refusals, checkpoints, another device."""
import copy
import math
import os
import random
import warnings
from types import SimpleNamespace

import pytest
import torch
from test_training_options import METHODS, SMALL
from torch.nn import functional as F

import tiny_clip
from benchmarks import other_device
from dassl.config import get_cfg_default
from dassl.data.datasets import Datum
from dassl.data.samplers import RandomSampler
from dassl.engine import TRAINER_REGISTRY, SimpleTrainer, TrainerX
from dassl.utils import INTERRUPTED, InputError, NonFiniteError, derive_seed, isolated_rng
from harness import make_trainer
from prompting import ClassPrompts, PromptingError, load_clip
from prompting.episodes import splittable_order
from prompting.precision import GradientOverflow
from trainers.prograd import soft_cross_entropy
from training import PromptTrainer
from training import towers as towers_module
from training.batches import to_device
from training.episodes import MetaEpisodeSampler, split_of
from training.options import options_set
from training.without_data import DataManagerWithoutData, NeedsImages

NAMES = tiny_clip.CLASSNAMES
WORDS = "a photo of a"
# One of each kind is looked at with all other tests, the rest with the slow ones: text prompts, per image, in both
# towers, within the image tower, adapters of features, a cache, a layer on top; weights of the towers, tokens
# within them.
OF_EACH_KIND = ("CoOp", "CoCoOp", "MetaPrompt", "MaPLe", "VPT", "CLIPAdapter", "TipAdapterF", "LinearProbe", "DePT",
                "CLIPLoRA", "MMRL")
DEEP = {"CTX_INIT": WORDS, "PREC": "auto"}
INDEPENDENT = {**DEEP, "PROMPT_DEPTH_VISION": 9, "PROMPT_DEPTH_TEXT": 9}
COUPLED = {**DEEP, "N_CTX": 2, "PROMPT_DEPTH": 9}
CACHE = {"BETA": 5.5, "ALPHA": 1.17, "SEARCH_SCALE": (7.0, 3.0), "SEARCH_STEP": (200, 20), "AUGMENT_EPOCH": 10,
         "TEMPLATES": (), "PREC": "auto"}
DEFAULTS = {  # as published
    "ZeroshotCLIP": {"PREC": "auto"},
    "ZeroshotCLIP2": {"PREC": "auto", "TEMPLATES": "selected"},
    "CoOp": {"N_CTX": 16, "CSC": False, "CTX_INIT": "", "CLASS_TOKEN_POSITION": "end", "PREC": "auto"},
    "CoCoOp": {"N_CTX": 16, "CTX_INIT": "", "PREC": "auto"},
    "KgCoOp": {"N_CTX": 4, "CTX_INIT": WORDS, "W": 8.0, "PREC": "auto"},
    "ProGrad": {"N_CTX": 16, "TEMPLATE_INIT": False, "LAMBDA": 1.0, "T": 1.0, "PREC": "auto"},
    "TCP": {"N_CTX": 4, "CTX_INIT": "", "W": 8.0, "LAYER": 8, "PREC": "auto"},
    "DePT": {"N_CTX": 16, "CTX_INIT": "", "WEIGHT": 0.7, "HEAD_LR": 6.5, "PREC": "auto"},
    "VPT": {"N_CTX_VISION": 8, "PROMPT_DEPTH_VISION": 12, "PREC": "auto"},
    "IVLP": {**INDEPENDENT, "N_CTX_VISION": 2, "N_CTX_TEXT": 2},
    "MaPLe": COUPLED,
    "PromptSRC": {**INDEPENDENT, "N_CTX_VISION": 4, "N_CTX_TEXT": 4, "TEXT_LOSS_WEIGHT": 25.0,
                  "IMAGE_LOSS_WEIGHT": 10.0, "GPA_MEAN": 15.0, "GPA_STD": 1.0},
    "CoPrompt": {**COUPLED, "W": 8.0, "IMAGE_ADAPTER_RATIO": 0.1, "TEXT_ADAPTER_RATIO": 0.2, "SENTENCES": ""},
    "ProMetaR": {**INDEPENDENT, "N_CTX_VISION": 4, "N_CTX_TEXT": 4, "TEXT_LOSS_WEIGHT": 50.0, "IMAGE_LOSS_WEIGHT": 20.0,
                 "ADAPT_LR": 0.0005, "LR_RATIO": 0.0005, "ORDER": 2, "MIXUP_ALPHA": 0.5, "MIXUP_BETA": 0.5,
                 "DIM_RATE": 8, "VNET_LR": 1e-6, "VNET_WEIGHT_DECAY": 5e-4},
    "MetaPrompt": {"N_CTX": 2, "N_PRO": 2, "LAYERS": 12, "META_STEP": 0.2, "SPLIT": "auto", "ORDER": 1,
                   "VARIANT": "paper", "PREC": "auto"},
    "CLIPAdapter": {"RATIO": 0.2, "REDUCTION": 4, "PREC": "auto"},
    "TipAdapter": CACHE, "TipAdapterF": CACHE,
    "LinearProbe": {"INIT": "zero", "PREC": "auto"},
    "TaskRes": {"RESIDUAL_SCALE": 0.5, "PREC": "auto"},
    "PLOT": {"N": 4, "N_CTX": 16, "POOLED_ON": ("ImageNet",), "PREC": "auto"},
    "PLOTPP": {"N": 4, "M": 4, "N_CTX_V": 2, "STARTS": (), "MODEL_UPD": "joint", "TRADE_OFF": False, "PREC": "auto"},
    "CLIPLoRA": {"RANK": 2, "ALPHA": 1.0, "PARAMS": "qkv", "POSITION": "all", "ENCODER": "both", "DROPOUT": 0.25,
                 "LOGIT_SCALE": 100.0, "PREC": "auto"},
    "MMA": {"TEXT_CTX_INIT": WORDS, "ADAPTER_START": 5, "ADAPTER_END": 12, "ADAPTER_DIM": 32, "ADAPTER_SCALE": 0.001,
            "PREC": "auto"},
    "MMRL": {"ALPHA": 0.7, "REG_WEIGHT": 0.5, "N_REP_TOKENS": 5, "REP_LAYERS": [6, 7, 8, 9, 10, 11, 12],
             "REP_DIM": 512, "LOGIT_SCALE": 100.0, "PREC": "auto"},
    "RPO": {"K": 24, "PREC": "auto"},
    "FineTune": {"TEMPLATES": "simple", "WARMUP": 0.0, "PREC": "auto"},
    "WiSEFT": {"ALPHA": 0.5, "TEMPLATES": "all", "WARMUP": 0.0, "PREC": "auto"},
    "CLIPood": {"MARGIN": 0.3, "BETA": 0.5, "TEMPERATURE": 0.0, "PREC": "auto"},
    "TwoSFS": {"FRAC": 0.6, "PREC": "auto"},
    "TPT": {"VIEWS": 63, "SELECTION": 0.1, "STEPS": 1, "LR": 0.005, "WEIGHT_DECAY": 0.01, "AUGMIX": "auto",
            "N_CTX": 4, "CTX_INIT": WORDS, "PREC": "auto"},
    "DPL": {"N_DOMAIN_TOKENS": 16, "MLP_WIDTH": 512, "MLP_DEPTH": 3, "MLP_DROPOUT": 0.1, "TARGETS": "released",
            "PREC": "auto"},
}
UNDRAWN = {"CLIPLoRA": {"DROPOUT": 0.0}, "DPL": {"MLP_DROPOUT": 0.0}}  # devices draw other numbers
TRAIN_TOWERS = ("CLIPood", "FineTune", "TwoSFS", "WiSEFT")  # which are never in half precision
OF_CLASSES = {"DePT": ("linear_probe_proj.",), "FineTune": ("head.",), "WiSEFT": ("head.",),
              "TwoSFS": ("classifier",), "TaskRes": ("prompt_learner.",)}  # what is of classes, left out for others
TRAITS = {  # (trains, learns_from_images, class_bound, min_batch, sampler) of those that are not as most
    "ZeroshotCLIP": (False, False, False, 1, None), "ZeroshotCLIP2": (False, False, False, 1, None),
    "TipAdapter": (False, True, True, 1, None), "TipAdapterF": (True, True, True, 1, None),
    "LinearProbe": (True, True, True, 1, None), "ProMetaR": (True, True, False, 2, None),
    "MetaPrompt": (True, True, False, 2, "MetaEpisodeSampler"), "TaskRes": (True, True, True, 1, None),
    "TPT": (False, False, False, 1, None), "DPL": (True, True, False, 1, "SeqDomainSampler"),
}


def batch(size=8, step=0):
    return tiny_clip.batch("parts", step, size, 10)


@torch.no_grad()
def logits(trainer, images=None):
    trainer.set_model_mode("eval")
    found = trainer.model_inference((batch(5)["img"] if images is None else images).to(trainer.device))
    trainer.set_model_mode("train")
    return found


def built(trainer, clip_model, names):
    """The method again, to predict with."""
    return type(trainer)(trainer.cfg, clip_model=clip_model, classnames=names)


@pytest.mark.parametrize("method", DEFAULTS)
def test_defaults_are_those_published(method):
    cfg, cls = get_cfg_default(), TRAINER_REGISTRY.get(method)
    cls.extend_cfg(cfg)
    assert dict(cfg.TRAINER[method.upper()]) == DEFAULTS[method]
    if method != "CoOp":  # whose class_bound depends on CSC
        traits = (cls.trains, cls.learns_from_images, cls.class_bound(cfg), cls.min_batch, cls.sampler)
        assert traits == TRAITS.get(method, (True, True, False, 1, None))
    assert cls.class_tensors == OF_CLASSES.get(method, ())


def test_these_are_all_methods():
    own = {name for name, cls in TRAINER_REGISTRY.items() if cls.__module__.startswith("trainers.")}
    assert own == set(DEFAULTS)


# ---- draws ----
def test_draws_follow_from_named_streams(clip_model):
    """A stream of another name would change every number that was published with a seed."""
    before = torch.get_rng_state()
    coop = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 3})
    assert torch.equal(torch.get_rng_state(), before)
    with isolated_rng(derive_seed("init", 1)):
        assert torch.equal(coop.model.prompt_learner.ctx.detach(), torch.randn(3, 128) * 0.02)
    with isolated_rng(derive_seed("init", 1)):
        csc = torch.randn(10, 3, 128) * 0.02
    own = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 3, "CSC": True}).model.prompt_learner.ctx.detach()
    assert torch.equal(own.view_as(csc), csc)

    def stream(name, epoch=2, step=5):
        return random.Random(derive_seed(name, 1, epoch, step))

    label = torch.tensor([0, 0, 1, 2])
    for method, options, name, draw, expected in (
            ("MetaPrompt", {"LAYERS": 2, "VARIANT": "released"}, "class halves",
             lambda trainer: trainer.class_order(label), lambda rng: rng.sample(range(10), 10)),
            ("CoPrompt", {"PROMPT_DEPTH": 2}, "sentence", lambda trainer: trainer.sentence_number(1000),
             lambda rng: rng.randrange(1000)),
            ("ProMetaR", SMALL["ProMetaR"], "episode", lambda trainer: trainer.draw_episode(label)[0],
             lambda rng: rng.choice([0, 1, 2]))):
        trainer = make_trainer(method, clip_model, NAMES, options)
        trainer.epoch, trainer.batch_idx = 2, 5
        assert draw(trainer) == expected(stream(name)), method


def test_prometars_episode_is_drawn_in_order(clip_model):
    trainer = make_trainer("ProMetaR", clip_model, NAMES, {**SMALL["ProMetaR"], "MIXUP_ALPHA": 2.0, "MIXUP_BETA": 3.0})
    label = torch.tensor([4, 4, 7, 7, 7, 9])
    trainer.epoch = trainer.batch_idx = 0
    chosen, ratio, partners = trainer.draw_episode(label)
    rng = random.Random(derive_seed("episode", 1, 0, 0))
    assert chosen == rng.choice([4, 7, 9])
    size = int((label == chosen).sum())
    assert torch.equal(ratio, torch.tensor([rng.betavariate(2.0, 3.0) for _ in range(size)]))
    assert partners.tolist() == [rng.randrange(6 - size) for _ in range(size)]
    assert ratio.dtype == torch.float32 and partners.dtype == torch.int64


# ---- the start of a context ----
@pytest.mark.parametrize("method", ["CoOp", "CoCoOp", "KgCoOp", "DePT", "TCP"])
def test_words_overrule_the_number_of_context_vectors_and_it_is_noted(method, clip_model):
    options = {**SMALL.get(method, {}), "CTX_INIT": "a photo of a", "N_CTX": 7}
    trainer = make_trainer(method, clip_model, NAMES, options)
    start = trainer.towers.text.embed_words("a photo of a")
    assert torch.equal(trainer.model.prompt_learner.ctx.detach(), start)
    assert trainer.overruled == {f"TRAINER.{method.upper()}.N_CTX": "the 4 tokens of CTX_INIT are the context"}
    assert make_trainer(method, clip_model, NAMES, {**options, "N_CTX": 4}).overruled == {}
    if method != "TCP":
        fewest = make_trainer(method, clip_model, NAMES, {"CTX_INIT": "", "N_CTX": 1})
        assert fewest.model.prompt_learner.ctx.shape == (1, 128) and fewest.overruled == {}
        with pytest.raises(InputError, match=f"TRAINER.{method.upper()}.N_CTX must be at least 1, not 0"):
            make_trainer(method, clip_model, NAMES, {"CTX_INIT": "", "N_CTX": 0})


# ---- what is printed and refused ----
def test_what_a_trainer_says_when_it_is_built(clip_model, clip_file, capsys):
    make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 3}, settings={"VERBOSE": True})
    said = capsys.readouterr().out
    assert "Backbone: as given, precision fp32, on cpu" in said
    assert "Trained: 384 parameters in 1 tensors" in said and "is not one of OpenAI's" not in said
    settings = {"VERBOSE": True, "MODEL.BACKBONE.NAME": clip_file}
    make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 3}, settings=settings)
    said = capsys.readouterr().out
    assert f"Backbone: {clip_file}, precision fp32" in said and said.count("is not one of OpenAI's") == 1
    make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 3})
    assert "Backbone:" not in capsys.readouterr().out
    make_trainer("ZeroshotCLIP", clip_model, NAMES)
    assert "Trained" not in capsys.readouterr().out
    make_trainer("CoOp", clip_model, NAMES, settings={"DATASET.TEMPLATES": ["a {}."]})
    assert "DATASET.TEMPLATES changes nothing here: CoOp has no frozen prompts" in capsys.readouterr().out


def test_a_method_brings_its_sampler(clip_model, capsys):
    trainer = make_trainer("MetaPrompt", clip_model, NAMES, {"LAYERS": 2})
    assert trainer.cfg.DATALOADER.TRAIN_X.SAMPLER == "MetaEpisodeSampler"
    assert "trains with" not in capsys.readouterr().out
    settings = {"DATALOADER.TRAIN_X.SAMPLER": "SequentialSampler"}
    trainer = make_trainer("MetaPrompt", clip_model, NAMES, {"LAYERS": 2}, settings=settings)
    assert trainer.cfg.DATALOADER.TRAIN_X.SAMPLER == "MetaEpisodeSampler"
    assert "MetaPrompt trains with MetaEpisodeSampler, not with SequentialSampler" in capsys.readouterr().out
    settings = {"DATALOADER.TRAIN_X.SAMPLER": "MetaEpisodeSampler"}
    make_trainer("MetaPrompt", clip_model, NAMES, {"LAYERS": 2}, settings=settings)
    assert "trains with" not in capsys.readouterr().out
    assert make_trainer("CoOp", clip_model, NAMES, settings={"DATALOADER.TRAIN_X.SAMPLER": "SequentialSampler"}
                        ).cfg.DATALOADER.TRAIN_X.SAMPLER == "SequentialSampler"


def test_batches_that_are_too_small_are_refused_where_a_method_trains(clip_model):
    for method in ("MetaPrompt", "ProMetaR"):
        with pytest.raises(InputError, match=f"{method} needs batches of at least 2 images; raise DATALOADER"):
            make_trainer(method, clip_model, NAMES, SMALL[method], batch=1)
        make_trainer(method, clip_model, NAMES, SMALL[method], batch=2)
    make_trainer("CoOp", clip_model, NAMES, batch=1)


def test_images_of_another_size_than_the_backbones_are_refused(clip_model):
    with pytest.raises(InputError, match=r"INPUT.SIZE is \(32, 64\), but the backbone takes images of 32 x 32; set "):
        make_trainer("CoOp", clip_model, NAMES, settings={"INPUT.SIZE": (32, 64)})


def test_a_method_without_settings_has_an_empty_node(clip_model):
    trainer = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 2})
    assert trainer.node is trainer.cfg.TRAINER.COOP
    trainer.cfg.defrost()
    del trainer.cfg.TRAINER["COOP"]
    assert dict(trainer.node) == {} and trainer.node.get("PREC", "auto") == "auto"


def test_cocoop_runs_so_many_prompts_at_once(clip_model, monkeypatch):
    trainer, sizes = make_trainer("CoCoOp", clip_model, NAMES, {"N_CTX": 2}), []
    run = trainer.model.logits_of
    monkeypatch.setattr(trainer.model, "logits_of", lambda features: sizes.append(len(features)) or run(features))
    for most, expected in ((4096, [5]), (20, [2, 2, 1]), (29, [2, 2, 1]), (3, [1] * 5)):
        monkeypatch.setattr("trainers.cocoop.PROMPTS_AT_ONCE", most)
        sizes.clear()
        logits(trainer)
        assert sizes == expected
    sizes.clear()
    trainer.forward_backward(batch(5))
    assert sizes == [5]  # all that a gradient is taken of


def test_options_that_are_set_are_listed():
    cfg = get_cfg_default()
    assert options_set(cfg) == []
    cfg.merge_from_list(["OPTIM.CLIP_GRAD_NORM", 1.0, "TRAIN.PATIENCE", 3])
    assert options_set(cfg) == ["OPTIM.CLIP_GRAD_NORM", "TRAIN.PATIENCE"]
    cfg.OPTIM.LABEL_SMOOTHING = 0.1
    assert options_set(cfg) == ["OPTIM.LABEL_SMOOTHING", "OPTIM.CLIP_GRAD_NORM", "TRAIN.PATIENCE"]


@pytest.mark.parametrize(("option", "value", "how"), [
    ("OPTIM.LABEL_SMOOTHING", 0.1, "computes its loss without self.cross_entropy"),
    ("OPTIM.CLIP_GRAD_NORM", 1.0, "makes its steps without apply_gradients")])
def test_an_option_that_a_step_does_not_honour_is_an_error(option, value, how, clip_model):
    def training_step(self, batch):
        if option == "OPTIM.CLIP_GRAD_NORM":
            self.cross_entropy(torch.zeros(1, 2), torch.tensor([0]))
        else:
            self.clipped([torch.zeros(1)])
        torch.autograd.grad(sum(p.sum() for p in self.trainables), self.trainables)  # all of it is reached
        return {}

    overrides = {"training_step": training_step}
    make_trainer("CoOp", clip_model, NAMES, overrides=overrides).forward_backward(batch(2))
    trainer = make_trainer("CoOp", clip_model, NAMES, overrides=overrides, settings={option: value})
    with pytest.raises(InputError, match=f"{option} has no effect: CoOp {how}; leave the option out"):
        trainer.forward_backward(batch(2))


BOUNDS = [  # (method, options that are just allowed, options that are just refused)
    ("KgCoOp", {"W": 0.0}, {"W": -0.1}), ("TCP", {"W": 0.0}, {"W": -0.1}), ("TCP", {"LAYER": 3}, {"LAYER": 4}),
    ("TCP", {"LAYER": 1}, {"LAYER": 0}), ("TCP", {"N_CTX": 4}, {"N_CTX": 3}),
    ("ProGrad", {"LAMBDA": 0.0}, {"LAMBDA": -0.1}),
    ("ProGrad", {"T": 0.1}, {"T": 0.0}), ("DePT", {"WEIGHT": 0.0}, {"WEIGHT": -0.1}),
    ("DePT", {"WEIGHT": 1.0}, {"WEIGHT": 1.1}), ("DePT", {"HEAD_LR": 0.1}, {"HEAD_LR": 0.0}),
    ("CLIPAdapter", {"RATIO": 0.0}, {"RATIO": -0.1}), ("CLIPAdapter", {"RATIO": 1.0}, {"RATIO": 1.1}),
    ("CLIPAdapter", {"REDUCTION": 1}, {"REDUCTION": 0}), ("CLIPAdapter", {"REDUCTION": 64}, {"REDUCTION": 65}),
    ("MetaPrompt", {"META_STEP": 0.0}, {"META_STEP": -0.1}), ("MetaPrompt", {"LAYERS": 4}, {"LAYERS": 5}),
    ("MetaPrompt", {"LAYERS": 1, "N_PRO": 1}, {"N_PRO": 0}), ("MetaPrompt", {"N_CTX": 1}, {"N_CTX": 0}),
    ("MetaPrompt", {"ORDER": 2}, {"ORDER": 3}), ("MetaPrompt", {"ORDER": 1}, {"ORDER": 0}),
    ("PromptSRC", {"GPA_STD": 0.1}, {"GPA_STD": 0.0}), ("ProMetaR", {"DIM_RATE": 1}, {"DIM_RATE": 0}),
    ("ProMetaR", {"DIM_RATE": 256}, {"DIM_RATE": 257}), ("ProMetaR", {"ORDER": 1}, {"ORDER": 0}),
    ("ProMetaR", {"MIXUP_ALPHA": 0.1}, {"MIXUP_ALPHA": 0.0}), ("ProMetaR", {"MIXUP_BETA": 0.1}, {"MIXUP_BETA": 0.0}),
    ("TipAdapter", {"AUGMENT_EPOCH": 1}, {"AUGMENT_EPOCH": 0}),
    ("TipAdapter", {"SEARCH_STEP": (1, 1)}, {"SEARCH_STEP": (1, 0)}),
    ("TipAdapterF", {"SEARCH_SCALE": (1.0, 2.0)}, {"SEARCH_SCALE": (1.0, 2.0, 3.0)}),
    ("TipAdapterF", {"SEARCH_STEP": (3, 3)}, {"SEARCH_STEP": (3, 3, 3)}),
    ("VPT", {"PROMPT_DEPTH_VISION": 4}, {"PROMPT_DEPTH_VISION": 5}), ("VPT", {"N_CTX_VISION": 1}, {"N_CTX_VISION": 0}),
    ("MaPLe", {"PROMPT_DEPTH": 4}, {"PROMPT_DEPTH": 5}), ("IVLP", {"N_CTX_TEXT": 1}, {"N_CTX_TEXT": 0}),
    ("LinearProbe", {"INIT": "text"}, {"INIT": "texts"}), ("ZeroshotCLIP2", {"TEMPLATES": "all"}, {"TEMPLATES": "al"}),
    ("MetaPrompt", {"VARIANT": "released"}, {"VARIANT": "mine"}), ("MetaPrompt", {"SPLIT": "class"}, {"SPLIT": "both"}),
]


@pytest.mark.parametrize(("method", "allowed", "refused"), BOUNDS)
def test_settings_at_their_bounds(method, allowed, refused, clip_model):
    small = SMALL.get(method, {})
    assert make_trainer(method, clip_model, NAMES, {**small, **allowed}).model
    with pytest.raises((InputError, PromptingError), match=rf"TRAINER\.{method.upper()}\b.*\b{next(iter(refused))}\b"):
        make_trainer(method, clip_model, NAMES, {**small, **refused})


# ---- one step ----
def test_a_step_by_hand(clip_model):
    """SGD with momentum down smoothed cross-entropy; what is printed is the loss and the accuracy in per cent."""
    trainer = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 2}, settings={
        "OPTIM.LABEL_SMOOTHING": 0.1, "OPTIM.LR": 0.3, "OPTIM.MOMENTUM": 0.0, "OPTIM.WEIGHT_DECAY": 0.0})
    ctx, data = trainer.trainables[0], batch()
    scores = trainer.model(data["img"])
    loss = F.cross_entropy(scores, data["label"], label_smoothing=0.1)
    expected = ctx.detach() - 0.3 * torch.autograd.grad(loss, ctx)[0]
    right = (scores.argmax(1) == data["label"]).float().mean().item()
    summary = trainer.forward_backward(data)
    assert summary == {"loss": pytest.approx(loss.item()), "acc": pytest.approx(100 * right)}
    torch.testing.assert_close(ctx.detach(), expected)
    assert ctx.grad is None and trainer.precision.good_steps == 1
    rows = trainer.cross_entropy(scores, data["label"], reduction="none")
    assert rows.shape == (8,) and rows.mean().item() == pytest.approx(loss.item())


def test_rates_change_after_the_last_batch_of_an_epoch_only(clip_model):
    trainer = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 2}, settings={
        "OPTIM.MAX_EPOCH": 4, "OPTIM.LR_SCHEDULER": "cosine"})
    calls = []
    trainer.num_batches, trainer.update_lr = 3, lambda: calls.append(trainer.batch_idx)
    for trainer.batch_idx in range(3):
        trainer.forward_backward(batch(2))
    assert calls == [2]
    del trainer.update_lr
    trainer.update_lr()
    assert trainer.get_current_lr() == pytest.approx(0.01 * (1 + 2 ** -0.5) / 2)  # a quarter of the cosine


def test_an_epoch_all_of_whose_steps_were_left_out_is_no_warning(clip_model):
    trainer = make_trainer("ProMetaR", clip_model, NAMES, SMALL["ProMetaR"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.update_lr()
        _, schedule = trainer.optimizers[1]
        schedule.step = lambda: warnings.warn("another", UserWarning, stacklevel=1)
        with pytest.raises(UserWarning, match="another"):
            trainer.update_lr()


def test_an_overflow_ends_the_batch_and_says_so(clip_model):
    def overflows(self, batch):
        raise GradientOverflow

    trainer = make_trainer("CoOp", clip_model, NAMES, overrides={"training_step": overflows})
    assert trainer.forward_backward(batch(2)) == {"overflow": 1}


def test_a_gradient_that_is_not_finite_is_named_with_step_rate_and_files(clip_model):
    trainer = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 2})
    trainer.batch, trainer.batch_idx, trainer.epoch = {"impath": ["a.jpg", "b.jpg"]}, 3, 1
    start = trainer.trainables[0].detach().clone()
    with pytest.raises(NonFiniteError, match=r"in epoch 2, batch 4, at learning rate 0.01, on a.jpg.*; lower OPTIM.LR"):
        trainer.apply_gradients([torch.full_like(start, float("nan"))])
    assert torch.equal(trainer.trainables[0].detach(), start)


def test_only_the_tensors_that_are_named_are_updated(clip_model):
    trainer = make_trainer("CoCoOp", clip_model, NAMES, {"N_CTX": 2})
    first, second, *_ = trainer.trainables
    before = [tensor.detach().clone() for tensor in trainer.trainables]
    sgd = torch.optim.SGD([first, second], lr=0.5)
    trainer.apply_gradients([torch.ones_like(first)], [first], sgd)
    torch.testing.assert_close(first.detach(), before[0] - 0.5)
    assert all(torch.equal(tensor, old) for tensor, old in zip(trainer.trainables[1:], before[1:]))
    assert all(tensor.grad is None for tensor in trainer.trainables)


def test_methods_that_call_backward_are_clipped_too(clip_model):
    trainer = make_trainer("CoCoOp", clip_model, NAMES, {"N_CTX": 2}, settings={
        "OPTIM.CLIP_GRAD_NORM": 0.5, "OPTIM.LR": 1.0, "OPTIM.MOMENTUM": 0.0, "OPTIM.WEIGHT_DECAY": 0.0})
    first, second = trainer.trainables[:2]
    before = [tensor.detach().clone() for tensor in trainer.trainables]
    trainer.model_zero_grad()
    trainer.model_backward(3 * first.sum() + 4 * second.sum())
    assert (first.grad == 3).all() and (second.grad == 4).all() and trainer.trainables[2].grad is None
    trainer.model_update()
    moved = torch.cat([(tensor.detach() - old).flatten() for tensor, old in zip(trainer.trainables, before)])
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-4)
    assert "OPTIM.CLIP_GRAD_NORM" in trainer.honoured


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("MetaPrompt", "ProMetaR", "ProGrad")])
def test_accuracy_is_of_the_logits_that_are_evaluated(method, clip_model):
    without = {"MLP_DROPOUT": 0.0} if method == "DPL" else {}
    trainer = make_trainer(method, clip_model, NAMES, {**SMALL.get(method, {}), **without})
    if method == "LinearProbe":
        trainer.model.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    data = trainer.prepared(batch())
    loss, found = trainer.compute_loss({**data, "frozen": trainer.towers.encode_image(data["img"])})
    assert loss.dim() == 0 and loss.requires_grad
    torch.testing.assert_close(found, trainer.model(data["img"]))


@pytest.mark.parametrize("method", METHODS)
def test_each_gradient_belongs_to_a_tensor(method, clip_model):
    trainer = make_trainer(method, clip_model, NAMES, SMALL.get(method))
    apply, calls = trainer.apply_gradients, []

    def watched(gradients, tensors=None, optimizer=None):
        of = trainer.trainables if tensors is None else tensors
        calls.append([gradient.shape for gradient in gradients] == [tensor.shape for tensor in of])
        apply(gradients, tensors, optimizer)

    trainer.apply_gradients = watched
    trainer.forward_backward(batch())
    assert calls == [True] * {"ProMetaR": 3, "MetaPrompt": 2}.get(method, 1)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_step_says(method, clip_model):
    trainer = make_trainer(method, clip_model, NAMES, SMALL.get(method))
    if method == "LinearProbe":
        trainer.model.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    data = batch()
    right = 100 * (trainer.model(data["img"]).argmax(1) == data["label"]).float().mean().item()
    summary = trainer.forward_backward(data)
    more = {"MetaPrompt": {"held_out"}, "ProMetaR": {"query"}, "ProGrad": {"divergence", "agreement"}}
    assert set(summary) == {"loss", "acc"} | more.get(method, set())
    assert summary["acc"] == pytest.approx(right)
    if method == "MetaPrompt":
        assert summary["held_out"] == pytest.approx(sum(map(float, trainer.held_out_losses)) / 2)


def test_each_class_has_the_context_of_its_own(clip_model):
    own = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 3, "CSC": True})
    shared = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 3})
    features, ctx = own.model.encode_classes(), own.model.prompt_learner.ctx
    assert features.shape == (10, 64)
    for number in (0, 4, 9):
        shared.model.prompt_learner.ctx.data.copy_(ctx[number].view(3, 128))
        torch.testing.assert_close(shared.model.encode_classes()[number], features[number], rtol=1e-4, atol=1e-5)


def test_prograds_divergence_has_a_temperature():
    scores, teacher = torch.tensor([[1.0, 2.0, 4.0], [0.0, 3.0, 1.0]]), torch.tensor([[2.0, 1.0, 1.0], [5.0, 0.0, 1.0]])
    expected = -9 * ((teacher / 3).softmax(1) * (scores / 3).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(soft_cross_entropy(scores, teacher, 3.0), expected)


@pytest.mark.parametrize(("dataset", "between", "after"), [
    ("UCF101", "person doing", "."), ("StanfordCars", "", ", a type of car"), ("Caltech101", "", ".")])
def test_tcps_prompts_have_the_words_of_the_dataset(dataset, between, after, clip_model):
    model = make_trainer("TCP", clip_model, NAMES, SMALL["TCP"], dataset=dataset).model
    ours = model.class_prompts(model.prompt_learner.ctx)
    expected = ClassPrompts(model.towers.text, NAMES, 4, between=between, after=after)(model.prompt_learner.ctx)
    assert torch.equal(ours.suffix, expected.suffix) and torch.equal(ours.eot, expected.eot)


def test_own_templates_say_what_stands_behind_the_name(clip_model):
    settings = {"DATASET.TEMPLATES": ["a {} on an X-ray.", "a {}."]}
    model = make_trainer("TCP", clip_model, NAMES, SMALL["TCP"], dataset="UCF101", settings=settings).model
    expected = ClassPrompts(model.towers.text, NAMES, 4, after=" on an X-ray.")(model.prompt_learner.ctx)
    assert torch.equal(model.class_prompts(model.prompt_learner.ctx).suffix, expected.suffix)
    message = r"none of DATASET.TEMPLATES \(a \{\} on an X-ray., \{\} scan\) has all its words there"
    with pytest.raises(InputError, match=message):
        make_trainer("ProGrad", clip_model, NAMES, {"TEMPLATE_INIT": True}, settings={
            "DATASET.TEMPLATES": ["a {} on an X-ray.", "{} scan"]})


def test_one_class_cannot_be_halved(clip_model):
    trainer = make_trainer("MetaPrompt", clip_model, NAMES, {"LAYERS": 2})
    with pytest.raises(InputError, match="class split halves the classes, the data has one; use data with at least fo"):
        built(trainer, clip_model, ["dog"])
    assert built(trainer, clip_model, ["dog", "cat"]).split == "none"
    assert built(trainer, clip_model, list("abcd")).split == "class"


@pytest.mark.parametrize("method", ["MetaPrompt", "VPT", "IVLP", "MaPLe", "PromptSRC", "CoPrompt", "ProMetaR"])
def test_a_resnet_has_no_image_tower_to_prompt(method, resnet_file):
    with pytest.raises(PromptingError, match=rf"^{method} prompts the image tower and needs a ViT backbone"):
        make_trainer(method, load_clip(resnet_file), NAMES, SMALL[method])


def test_networks_are_as_wide_as_their_settings_say(clip_model):
    def shapes(method, **options):
        trainer = make_trainer(method, clip_model, NAMES, {**SMALL.get(method, {}), **options})
        return {name: tuple(p.shape) for name, p in trainer.model.named_parameters()}

    assert shapes("CLIPAdapter", REDUCTION=8) == {"adapter.fc.0.weight": (8, 64), "adapter.fc.2.weight": (64, 8)}
    narrow = {"fc.0.weight": (16, 64), "fc.2.weight": (64, 16)}
    found = shapes("CoPrompt")
    assert {name: shape for name, shape in found.items() if "adapter" in name} == {
        f"adapter_{side}.{name}": shape for side in ("image", "text") for name, shape in narrow.items()}
    assert {name: shape for name, shape in shapes("CoCoOp").items() if "meta_net" in name} == {
        "prompt_learner.meta_net.linear1.weight": (4, 64), "prompt_learner.meta_net.linear1.bias": (4,),
        "prompt_learner.meta_net.linear2.weight": (128, 4), "prompt_learner.meta_net.linear2.bias": (128,)}
    assert {name: shape for name, shape in shapes("TCP").items() if "weight" in name} == {
        "prompt_learner.meta_net.linear1.weight": (16, 64), "prompt_learner.meta_net.linear2.weight": (512, 16)}
    gates = shapes("ProMetaR", DIM_RATE=16, N_CTX_TEXT=2, N_CTX_VISION=3)
    assert gates["vnet.0.nets.1.0.weight"] == (16, 512) and gates["vnet.0.nets.1.1.weight"] == (16, 16)
    assert gates["vnet.1.nets.0.0.weight"] == (24, 768) and "vnet.1.nets.2.0.weight" not in gates
    assert gates["prompt_learner.ctx"] == (2, 2, 128) and gates["vision_prompt_learner.ctx"] == (2, 3, 128)


def test_prometar_takes_prompts_at_the_input_alone(clip_model):
    shallow = {"PROMPT_DEPTH_TEXT": 1, "PROMPT_DEPTH_VISION": 1}
    assert "query" in make_trainer("ProMetaR", clip_model, NAMES, shallow).forward_backward(batch())


def test_a_sentence_file_of_another_form_is_told_the_form(clip_model, tmp_path):
    (tmp_path / "s.json").write_text("[]")
    with pytest.raises(InputError) as error:
        make_trainer("CoPrompt", clip_model, NAMES, {"PROMPT_DEPTH": 2, "SENTENCES": str(tmp_path / "s.json")})
    assert str(error.value) == (
        f'TRAINER.COPROMPT.SENTENCES: {tmp_path / "s.json"} has another form; a JSON file {{"class name": ["sentence", '
        '...]} is needed; see docs/COPROMPT_SENTENCES.md')


def test_what_goes_to_the_device():
    views, names, empty, device = [torch.ones(2), torch.zeros(2)], ["a", "b"], [], torch.device("cpu")
    assert all(torch.equal(*pair) for pair in zip(to_device(views, device), views, strict=True))
    assert to_device(names, device) is names and to_device(empty, device) is empty and to_device(3, device) == 3


@pytest.mark.parametrize("method", [pytest.param(name, marks=() if name in OF_EACH_KIND else pytest.mark.slow)
                                    for name in METHODS])
def test_a_step_and_an_evaluation_on_another_device(method, clip_model):
    """Nothing is left on the CPU: the stand-in for a GPU refuses to compute with tensors of two devices."""
    def run():
        trainer = make_trainer(method, clip_model, NAMES, {**SMALL.get(method, {}), **UNDRAWN.get(method, {})})
        loss = trainer.forward_backward(batch(4))["loss"]
        return loss, logits(trainer).flatten().tolist(), trainer.device

    loss, scores, device = run()
    assert device.type == "cpu"
    with other_device.runs_on_it():
        other_loss, other_scores, device = run()
    assert device == other_device.DEVICE
    assert other_loss == pytest.approx(loss, rel=1e-4) and other_scores == pytest.approx(scores, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("method", "precision"), [
    pytest.param(name, precision, marks=() if precision == "amp" and name in OF_EACH_KIND or name == "CoOp" else
                 pytest.mark.slow)
    for name in METHODS for precision in ("amp", "fp16")
    if precision == "amp" or name not in TRAIN_TOWERS])
def test_lower_precision_is_used_where_it_is_asked_for(method, precision, clip_model):
    trainer = make_trainer(method, clip_model, NAMES, {**SMALL.get(method, {}), "PREC": precision}, batch=4)
    assert trainer.precision.name == precision
    trainer.precision.scale = min(trainer.precision.scale, 256.0)
    kinds = set()

    def watch(owner, name):
        function = getattr(owner, name)

        def watched(*args, **kwargs):
            found = function(*args, **kwargs)
            kinds.add((found[0] if isinstance(found, tuple) else found).dtype)
            return found

        setattr(owner, name, watched)

    watch(trainer.towers, "encode_image")
    if method in ("MMRL", "PLOT", "RPO"):
        watch(trainer.model, "encode_both" if method == "MMRL" else "encode_images")
    elif method in ("MetaPrompt", "VPT", "IVLP", "MaPLe", "PromptSRC", "CoPrompt", "ProMetaR", "CLIPLoRA", "MMA",
                    "PLOTPP"):
        watch(trainer.towers.image, "encode")
    assert "loss" in trainer.forward_backward(batch(4))
    assert kinds == {torch.bfloat16 if precision == "amp" else torch.float16}
    kinds.clear()
    assert logits(trainer).dtype == torch.float32 and kinds == {torch.bfloat16 if precision == "amp" else torch.float16}


# ---- meta-episodes ----
def episode_cfg(split, domains=()):
    cfg = get_cfg_default()
    TRAINER_REGISTRY.get("MetaPrompt").extend_cfg(cfg)
    cfg.TRAINER.NAME, cfg.TRAINER.METAPROMPT.SPLIT, cfg.SEED = "MetaPrompt", split, 3
    cfg.DATASET.SOURCE_DOMAINS = domains
    return cfg


def test_the_split_of_a_run():
    for split, domains, expected in (("auto", (), "class"), ("auto", ("a",), "class"), ("auto", ("a", "b"), "domain"),
                                     ("class", ("a", "b"), "class"), ("domain", ("a", "b"), "domain")):
        assert split_of(episode_cfg(split, domains)) == expected
    with pytest.raises(InputError, match=r"METAPROMPT.SPLIT is domain, .* 1 given by DATASET.SOURCE_DOMAINS"):
        split_of(episode_cfg("domain", ("a",)))
    with pytest.raises(InputError, match=r"TRAINER.METAPROMPT.SPLIT.*'halves'|'halves'.*"):
        split_of(episode_cfg("halves"))


def test_the_sampler_of_meta_episodes():
    items = [Datum(f"{i}.png", i % 5, i % 3) for i in range(30)]
    for split, domains, group in (("class", (), "label"), ("domain", ("a", "b", "c"), "domain")):
        sampler = MetaEpisodeSampler.from_config(episode_cfg(split, domains), items, 4, 0, 0)
        assert type(sampler) is MetaEpisodeSampler and sampler.seed == 3 and sampler.batch_size == 4
        assert sampler.groups == [getattr(item, group) for item in items]
        rng, again = random.Random(5), random.Random(5)
        plain = again.sample(range(30), 30)
        assert sampler.order(rng) == splittable_order(plain, sampler.groups, 4, again)
    three = [Datum("a.png", i % 3) for i in range(9)]
    assert type(MetaEpisodeSampler.from_config(episode_cfg("class"), three, 4, 0, 0)) is RandomSampler
    four = [Datum("a.png", i % 4) for i in range(9)]
    assert type(MetaEpisodeSampler.from_config(episode_cfg("class"), four, 4, 0, 0)) is MetaEpisodeSampler
    alike = [Datum("a.png", 0, 0) for _ in range(9)]
    for split, what in (("class", "classes"), ("domain", "domains")):
        with pytest.raises(PromptingError, match=f"at least two {what}: "):
            MetaEpisodeSampler(alike, 4, split)


# ---- PromptSRC's average ----
def averaged(clip_model, epochs):
    options = {**SMALL["PromptSRC"], "GPA_MEAN": 3.0, "GPA_STD": 1.5}
    trainer = make_trainer("PromptSRC", clip_model, NAMES, options, settings={"OPTIM.MAX_EPOCH": epochs})
    trainer.start_epoch = 0
    return trainer


def gaussian(epochs):
    weights = [math.exp(-0.5 * ((epoch - 3.0) / 1.5) ** 2) for epoch in range(1, epochs + 1)]
    return [weight / sum(weights) for weight in weights]


def set_to(trainer, value):
    for parameter in trainer.trainables:
        parameter.data.fill_(value)


def end_epoch(trainer, epoch, value):
    set_to(trainer, value)
    trainer.epoch = epoch
    trainer.after_epoch()


def test_epochs_weigh_by_a_gaussian(clip_model, monkeypatch):
    monkeypatch.setattr(PromptTrainer, "after_epoch", lambda self: None)
    trainer = averaged(clip_model, 4)
    assert [trainer.epoch_weight(epoch) for epoch in range(1, 5)] == pytest.approx(gaussian(4))
    assert [trainer.epoch_weight(epoch, 6) for epoch in range(1, 7)] == pytest.approx(gaussian(6))
    assert trainer.extra_state() == {}
    for epoch, value in enumerate((1.0, 2.0, 4.0)):
        end_epoch(trainer, epoch, value)
        assert trainer.trainables[0].unique().item() == value and trainer.last is None
    state = trainer.extra_state()
    assert {key: state[key] for key in ("epochs", "done", "ended")} == {"epochs": 4, "done": 3, "ended": False}
    assert set(state) == {"average", "epochs", "done", "ended"} and trainer.evaluated_weights() is None
    end_epoch(trainer, 3, 8.0)
    mean = sum(weight * value for weight, value in zip(gaussian(4), (1.0, 2.0, 4.0, 8.0)))
    evaluated = trainer.evaluated_weights()
    assert list(evaluated) == list(trainer.trained_state())
    for tensor in evaluated.values():
        assert tensor.unique().item() == pytest.approx(mean)
    assert {tensor.unique().item() for tensor in trainer.trainables} == {8.0}
    assert trainer.extra_state()["ended"] is True


def test_a_training_that_ends_early_has_the_average_of_its_epochs(clip_model, monkeypatch):
    monkeypatch.setattr(PromptTrainer, "after_epoch", lambda self: None)
    trainer = averaged(clip_model, 7)
    end_epoch(trainer, 0, 1.0)
    end_epoch(trainer, 1, 3.0)
    trainer.finish()
    first, second = gaussian(7)[:2]
    for tensor in trainer.evaluated_weights().values():
        assert tensor.unique().item() == pytest.approx((first + 3 * second) / (first + second))


def test_a_finished_training_that_goes_on_longer_weighs_anew(clip_model, monkeypatch):
    monkeypatch.setattr(PromptTrainer, "after_epoch", lambda self: None)
    monkeypatch.setattr(PromptTrainer, "before_train", lambda self: None)
    first = averaged(clip_model, 2)
    for epoch, value in enumerate((1.0, 3.0)):
        end_epoch(first, epoch, value)
    # As earlier releases stored it, whose average had replaced the prompts of the last epoch.
    state = {"average": first.average, "epochs": 2, "last": first.trained_state()}
    longer, same = averaged(clip_model, 4), averaged(clip_model, 2)
    for trainer in (longer, same):
        trainer.load_extra_state(state)
        trainer.start_epoch, trainer.went_on_from_finished = 2, True
        set_to(trainer, 0.5)
        trainer.before_train()
    assert longer.trainables[0].unique().item() == 3.0  # the last epoch's, not the average
    assert same.trainables[0].unique().item() == 0.5 and same.average is state["average"]
    for epoch, value in enumerate((5.0, 7.0), start=2):
        end_epoch(longer, epoch, value)
    weights = gaussian(4)
    kept = weights[1] / gaussian(2)[1]  # both epochs keep their ratio
    assert next(iter(longer.evaluated_weights().values())).unique().item() == pytest.approx(
        kept * (gaussian(2)[0] + 3 * gaussian(2)[1]) + 5 * weights[2] + 7 * weights[3])
    unfinished = averaged(clip_model, 4)
    unfinished.load_extra_state({"average": state["average"], "epochs": 4, "last": state["last"]})
    unfinished.start_epoch, unfinished.went_on_from_finished = 2, False
    set_to(unfinished, 0.5)
    unfinished.before_train()
    assert unfinished.trainables[0].unique().item() == 0.5


# ---- Tip-Adapter ----
def tip(clip_model, method="TipAdapterF", **settings):
    """A trainer whose images are handed in: 20 few-shot ones, another view each time, and 20 for validation."""
    data = batch(20)
    data["label"][:10] = torch.arange(10)

    def few_shot_batches(self, number):
        return [{"img": data["img"][rows] + number, "label": data["label"][rows]}
                for rows in (slice(0, 12), slice(12, 20))]

    trainer = make_trainer(method, clip_model, NAMES, {"AUGMENT_EPOCH": 3, "SEARCH_STEP": (6, 5)},
                           labels=data["label"].tolist(), settings=settings,
                           overrides={"few_shot_batches": few_shot_batches})
    trainer.dm.dataset.val, trainer.val_loader = [], [batch(20, step=7)]
    return trainer, data


def keys(trainer):
    return trainer.model.adapter.weight.detach().clone()


@pytest.mark.parametrize("method", ["TipAdapter", "TipAdapterF"])
def test_the_cache_by_hand(method, clip_model):
    trainer, data = tip(clip_model, method)
    trainer.fill_cache()
    with torch.no_grad():
        passes = [clip_model.encode_image(data["img"] + number) for number in range(3)]
        torch.testing.assert_close(keys(trainer), F.normalize(torch.stack(passes).mean(0), dim=1), rtol=1e-4, atol=1e-5)
        images = clip_model.encode_image(batch(6, step=3)["img"])
        images, text = F.normalize(images, dim=1), trainer.model.frozen_text_features
        cache = torch.exp(-5.5 * (1 - images @ keys(trainer).T)) @ F.one_hot(data["label"], 10).float()
        torch.testing.assert_close(logits(trainer, batch(6, step=3)["img"]), 100 * images @ text.T + 1.17 * cache,
                                   rtol=1e-4, atol=1e-3)
    assert trainer.model.adapter.weight.requires_grad is (method == "TipAdapterF")
    assert trainer.model.adapter.bias is None and trainer.model.values.shape == (20, 10)


def test_the_search_is_over_the_whole_grid(clip_model, capsys):
    trainer, _ = tip(clip_model, "TipAdapter")
    trainer.load_model("anywhere")  # nothing is stored: the cache is filled anew
    features, labels = trainer.validation
    model, best, points = trainer.model, (0, None), []
    with torch.no_grad():
        zero_shot, affinity = model.similarities(features, model.encode_classes())
        for i in range(6):
            for j in range(5):
                beta, alpha = 0.1 + i * 6.9 / 6, 0.1 + j * 2.9 / 5
                cache = ((beta * (affinity - 1)).exp() @ model.values) * alpha
                right = ((zero_shot + cache).argmax(1) == labels).sum().item()
                points.append(right)
                best = max(best, (right, (beta, alpha)), key=lambda entry: entry[0])
    assert len(set(points)) > 1
    assert (model.beta, model.alpha) == pytest.approx(best[1])
    assert (f"Searched on 20 validation images: beta {model.beta:.3f}, alpha {model.alpha:.3f}, accuracy "
            f"{100 * best[0] / 20:.2f} %") in capsys.readouterr().out


def test_own_templates_of_tip_adapter_come_first(clip_model, towers):
    names = [name.replace("_", " ") for name in NAMES]
    for own, expected in (((), ["mine {}."]), (("a {}", "the {}"), ["a {}", "the {}"])):
        trainer = make_trainer("TipAdapter", clip_model, NAMES, {"TEMPLATES": own}, settings={
            "DATASET.TEMPLATES": ["mine {}."]})
        torch.testing.assert_close(trainer.model.frozen_text_features, towers.encode_classnames(names, expected))


def test_tip_adapter_f_learns_by_adamw_along_a_cosine_over_all_steps(clip_model):
    trainer, data = tip(clip_model, **{"OPTIM.NAME": "adamw", "OPTIM.MAX_EPOCH": 4, "OPTIM.LR": 0.01})
    steps = 4 * len(trainer.train_loader_x)
    assert isinstance(trainer.optim, torch.optim.AdamW) and trainer.optim.param_groups[0]["eps"] == 1e-4
    assert trainer.sched.steps == steps and steps == 8  # 20 images in batches of 8
    trainer.fill_cache()
    trainer.num_batches = 2
    for trainer.batch_idx in range(2):
        trainer.forward_backward(data)
    assert trainer.get_current_lr() == pytest.approx(0.01 * (1 + math.cos(math.pi * 2 / 8)) / 2)
    trainer.update_lr()
    assert trainer.get_current_lr() == pytest.approx(0.01 * (1 + math.cos(math.pi * 2 / 8)) / 2)
    sgd, _ = tip(clip_model)
    assert "eps" not in sgd.optim.param_groups[0]


def test_tip_adapter_f_takes_its_best_keys_at_the_end(clip_model, monkeypatch):
    monkeypatch.setattr(PromptTrainer, "after_epoch", lambda self: None)
    monkeypatch.setattr(PromptTrainer, "before_train", lambda self: None)
    trainer, _ = tip(clip_model, **{"OPTIM.MAX_EPOCH": 2})
    trainer.start_epoch = 0
    trainer.before_train()
    filled = keys(trainer)
    assert filled.norm(dim=1).allclose(torch.ones(20))
    accuracies, logits_of = iter((0.5, 0.25)), trainer.model.logits
    labels = trainer.validation[1]

    def scored(features, classes):
        wrong = torch.arange(20) >= 20 * next(accuracies)
        return F.one_hot(torch.where(wrong, (labels + 1) % 10, labels), 10).float()

    trainer.model.logits = scored
    for trainer.epoch in range(2):
        trainer.model.adapter.weight.data.copy_(filled * (trainer.epoch + 1))
        if trainer.epoch == 1:
            monkeypatch.setattr(trainer, "search", lambda: setattr(trainer.model, "beta", 3.5))
        trainer.after_epoch()
        assert (trainer.last_keys is None) is (trainer.epoch == 0)
    trainer.model.logits = logits_of
    assert torch.equal(keys(trainer), filled) and trainer.model.beta == 3.5
    assert torch.equal(trainer.last_keys, 2 * filled) and trainer.best_accuracy == 0.5
    state = {name: value.clone() if torch.is_tensor(value) else value for name, value in trainer.extra_state().items()}
    assert set(state) == {"values", "beta", "alpha", "best_accuracy", "best_keys", "last_keys"}

    other, _ = tip(clip_model, **{"OPTIM.MAX_EPOCH": 3})
    other.load_extra_state({**state, "alpha": 0.25, "values": 2 * state["values"]})
    assert (other.model.beta, other.model.alpha, other.best_accuracy) == (3.5, 0.25, 0.5)
    assert torch.equal(other.model.values, 2 * state["values"]) and torch.equal(other.best_keys, filled)
    other.model.adapter.weight.data.copy_(state["best_keys"])
    monkeypatch.setattr(other, "fill_cache", lambda: pytest.fail("a run that goes on has its keys"))
    other.start_epoch, other.went_on_from_finished = 2, True
    other.before_train()  # goes on from the last epoch's keys at the initial settings
    assert torch.equal(keys(other), 2 * filled) and (other.model.beta, other.model.alpha) == (5.5, 1.17)
    for change in ({"went_on_from_finished": False}, {"start_epoch": 3}, {"last_keys": None}):
        other.load_extra_state(state)
        other.model.adapter.weight.data.fill_(7.0)
        vars(other).update({"went_on_from_finished": True, "start_epoch": 2, **change})
        other.before_train()
        assert keys(other).unique().item() == 7.0 and other.model.beta == 3.5
    other.start_epoch, other.first_batch = 0, 1
    other.before_train()  # within the first epoch
    del state["last_keys"]
    other.load_extra_state(state)  # of an earlier version
    assert other.last_keys is None
    asked = []
    monkeypatch.setattr(PromptTrainer, "load_model", lambda self, folder, epoch: asked.append((folder, epoch)))
    other.load_model("folder", 2)
    other.load_model("folder")
    assert asked == [("folder", 2), ("folder", None)]


def test_what_may_not_be_chosen_by_is_said(clip_model, tmp_path, capsys):
    trainer, _ = tip(clip_model)
    files = []
    for number, content in enumerate(("one", "one", "two")):
        files.append(tmp_path / f"{number}.png")
        files[-1].write_text(content)
    items = [Datum(str(path), 0, 0, NAMES[0]) for path in files]
    trainer.dm.dataset.test, trainer.dm.dataset.train_x, trainer.dm.dataset.val = items[:1], [], items[1:]
    assert trainer.validation is not None
    said = capsys.readouterr().out
    assert "Warning: 1 of 2 validation images have the same content as test or training images, first " in said
    assert f"{files[1]} (as {files[0]})" in said
    for method, kept in (("TipAdapter", "its initial settings"), ("TipAdapterF", "its last epoch and its in")):
        trainer, _ = tip(clip_model, method)
        trainer.val_loader = None
        assert trainer.validation is None
        assert (f"Note: Caltech101 has no validation images apart from its test and training images: {method} keeps "
                f"{kept}") in capsys.readouterr().out


# ---- to predict with ----
def test_a_trainer_without_data_only_predicts(clip_model, capsys, tmp_path):
    trained = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 2})
    trained.forward_backward(batch())
    trained.save_model(0, str(tmp_path))
    capsys.readouterr()
    predicting = built(trained, clip_model, list(NAMES))
    predicting.load_model(str(tmp_path))
    assert capsys.readouterr().out == ""
    torch.testing.assert_close(logits(predicting), logits(trained))
    assert predicting.optimizers == [] and predicting.num_classes == 10
    assert predicting.lab2cname == dict(enumerate(NAMES))
    for name in ("train_loader_x", "train_loader_u", "val_loader", "test_loader"):
        assert getattr(predicting, name) is None
    assert predicting.predicts_only and not trained.predicts_only


def test_only_class_names_are_there_without_data():
    dm = DataManagerWithoutData(("a", "b"), "Mine")
    assert dm.classnames == ["a", "b"] and dm.lab2cname == {0: "a", 1: "b"} and dm.num_classes == 2
    assert dm.dataset is dm
    with pytest.raises(NeedsImages, match=r"Mine builds its model from the images it was trained on \(train_x\)"):
        dm.dataset.train_x  # noqa: B018
    with pytest.raises(AttributeError):
        dm.__array__  # noqa: B018
    assert copy.deepcopy(dm).classnames == ["a", "b"] and issubclass(NeedsImages, InputError)


def test_a_method_made_of_images_needs_them(clip_model):
    trainer = make_trainer("TipAdapter", clip_model, NAMES)
    with pytest.raises(NeedsImages, match="TipAdapter builds its model from the images"):
        built(trainer, clip_model, NAMES)


# ---- backbones of a trainer ----
def test_a_backbone_is_loaded_once_for_many_runs(clip_file, clip_model, monkeypatch, tmp_path):
    loads, load = [], towers_module.load_clip
    monkeypatch.setattr("training.towers.load_clip", lambda name: loads.append(name) or load(name))
    trainer = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 2}, settings={"MODEL.BACKBONE.NAME": clip_file})
    assert loads == []
    clips, again = {}, type(trainer)
    state = torch.get_rng_state()
    first = again(trainer.cfg.clone(), clips=clips, classnames=NAMES)
    assert torch.equal(torch.get_rng_state(), state)
    second = again(trainer.cfg.clone(), clips=clips, classnames=NAMES)
    assert loads == [clip_file] and second.towers.model is first.towers.model is clips[clip_file]
    assert first.backbone_facts["name"] == clip_file
    clips[clip_file].weights_digest = "another"  # the file has changed since
    again(trainer.cfg.clone(), clips=clips, classnames=NAMES)
    assert loads == [clip_file] * 2
    del clips[clip_file].weights_digest  # a CLIP that says nothing of its weights is taken as it is
    again(trainer.cfg.clone(), clips=clips, classnames=NAMES)
    assert loads == [clip_file] * 2
    again(trainer.cfg.clone(), classnames=NAMES)
    assert loads == [clip_file] * 3


def test_memory_for_text_is_a_setting_or_what_is_free(clip_model, monkeypatch):
    asked = []
    monkeypatch.setattr("training.towers.activation_budget",
                        lambda device, processes: asked.append((device, processes)) or 77)
    assert make_trainer("CoOp", clip_model, NAMES).towers.text.activation_bytes == 77
    assert asked == [(torch.device("cpu"), 1)]
    trainer = make_trainer("CoOp", clip_model, NAMES, settings={"TRAIN.TEXT_MEMORY_MB": 3})
    assert trainer.towers.text.activation_bytes == 3 * 2**20


def test_weights_to_start_from(clip_model, tmp_path):
    start = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 2})
    start.forward_backward(batch())
    start.save_model(0, str(tmp_path))
    path = str(tmp_path / "prompt_learner" / "model.pth.tar-1")
    trainer = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 2}, settings={"MODEL.INIT_WEIGHTS": path})
    assert torch.equal(trainer.trainables[0], start.trainables[0])


def test_training_free_methods_have_no_epochs(clip_model, monkeypatch):
    epochs = []
    monkeypatch.setattr(TrainerX, "train", lambda self: epochs.append((self.start_epoch, self.max_epoch)))
    for method in ("ZeroshotCLIP", "CoOp"):
        make_trainer(method, clip_model, NAMES, settings={"OPTIM.MAX_EPOCH": 5}).train()
    assert epochs == [(0, 0), (0, 5)]


# ---- checkpoints ----
def saved(clip_model, folder, method="CoOp", options=None, names=NAMES, **settings):
    trainer = make_trainer(method, clip_model, names, options or {"N_CTX": 2}, settings=settings)
    trainer.output_dir = str(folder)
    return trainer


def rewritten(path, **changes):
    state = torch.load(path, weights_only=True)
    state.update(changes)
    torch.save(state, path)


def test_what_a_checkpoint_holds(clip_model, tmp_path):
    trainer = saved(clip_model, tmp_path, **{"OPTIM.MAX_EPOCH": 3})
    trainer.forward_backward(batch())
    trainer.best_result, trainer.best_epoch, trainer.batches_done = 61.5, 2, 4
    for epoch, name, step in ((1, "", 0), (2, "", 0), (1, INTERRUPTED, 4)):
        trainer.save_model(epoch, str(tmp_path), val_result=7.0, model_name=name)
        state = torch.load(tmp_path / "prompt_learner" / (name or f"model.pth.tar-{epoch + 1}"), weights_only=True)
        assert state["epoch"] == epoch + 1 and state["finished"] is (epoch == 2) and state["step"] == step
    assert state["trainer"] == "CoOp" and state["classnames"] == list(NAMES) and state["val_result"] == 7.0
    assert list(state["state_dict"]) == ["prompt_learner.ctx"] and state["extra"] == {} and state["ranks"] == 1
    assert torch.equal(state["state_dict"]["prompt_learner.ctx"], trainer.trainables[0])
    assert (state["best_result"], state["best_epoch"]) == (61.5, 2)
    assert state["threads"] == torch.get_num_threads() and state["precision"] == {
        "scale": 1.0, "good_steps": 1, "scaled": False}
    assert state["activation_bytes"] == trainer.towers.text.activation_bytes
    assert set(state["made_for"]) == {"backbone", "settings", "training", "data", "dataset"}
    buffers = state["optimizers"][0]["state"][0]["momentum_buffer"]
    assert torch.equal(buffers, trainer.optim.state_dict()["state"][0]["momentum_buffer"])
    assert state["schedules"] == [trainer.sched.state_dict()]
    untrained = saved(clip_model, tmp_path / "no", "ZeroshotCLIP", {"PREC": "fp32"})
    untrained.save_model(0, str(tmp_path / "no"))
    assert not (tmp_path / "no").exists()


def test_a_run_goes_on_as_its_checkpoint_says(clip_model, tmp_path, capsys):
    first = saved(clip_model, tmp_path, options={"N_CTX": 2, "PREC": "fp16"}, **{"OPTIM.MAX_EPOCH": 5})
    for step in range(2):
        first.forward_backward(batch(step=step))
    first.update_lr()
    first.best_result, first.best_epoch = 12.5, 1
    first.precision.scale, first.precision.good_steps = 64.0, 9
    first.towers.text.activation_bytes = 4096
    first.save_model(0, str(tmp_path))
    second = saved(clip_model, tmp_path, options={"N_CTX": 2, "PREC": "fp16"}, **{"OPTIM.MAX_EPOCH": 5})
    capsys.readouterr()
    assert second.resume_model_if_exist(str(tmp_path)) == 1
    folder = os.path.join(str(tmp_path), "prompt_learner")
    assert f"Resuming from {folder} after epoch 1\n" in capsys.readouterr().out
    assert torch.equal(second.trainables[0], first.trainables[0])
    assert (second.best_result, second.best_epoch, second.first_batch) == (12.5, 1, 0)
    assert second.precision.state_dict() == {"scale": 64.0, "good_steps": 9, "scaled": True}
    assert not second.went_on_from_finished
    assert second.towers.text.activation_bytes == 4096
    assert second.sched.state_dict() == first.sched.state_dict()
    path = tmp_path / "prompt_learner" / "model.pth.tar-1"
    rewritten(path, step=3, finished=True, ranks=2, activation_bytes=1)
    assert second.resume_model_if_exist(str(tmp_path)) == 1
    assert "after epoch 1, batch 3\n" in capsys.readouterr().out
    assert second.first_batch == 3 and second.went_on_from_finished
    assert second.towers.text.activation_bytes == 4096  # of another number of processes: not taken
    state = torch.load(path, weights_only=True)
    del state["ranks"], state["best_epoch"], state["finished"]
    state["activation_bytes"] = 2048
    torch.save(state, path)
    second.resume_model_if_exist(str(tmp_path))  # of an earlier version
    assert second.towers.text.activation_bytes == 2048 and second.best_epoch == 0 and not second.went_on_from_finished
    state["activation_bytes"] = 3 * 2**20
    torch.save(state, path)
    for setting, taken in ((0, 3), (2, 2), (4, 3)):  # in MB; a smaller one is what an error has advised
        third = saved(clip_model, tmp_path, options={"N_CTX": 2, "PREC": "fp16"},
                      **{"OPTIM.MAX_EPOCH": 5, "TRAIN.TEXT_MEMORY_MB": setting})
        third.resume_model_if_exist(str(tmp_path))
        assert third.towers.text.activation_bytes == taken * 2**20
    assert saved(clip_model, tmp_path / "new").resume_model_if_exist(str(tmp_path / "new")) == 0
    assert saved(clip_model, tmp_path, "ZeroshotCLIP", {"PREC": "fp32"}).resume_model_if_exist(str(tmp_path)) == 0


def test_generators_go_on_where_they_were(clip_model, tmp_path):
    trainer = saved(clip_model, tmp_path)
    torch.manual_seed(3)
    trainer.save_model(0, str(tmp_path))
    expected = torch.rand(3)
    torch.manual_seed(4)
    trainer.resume_model_if_exist(str(tmp_path))
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_that_lacks_something_is_told(clip_model, tmp_path):
    trainer = saved(clip_model, tmp_path)
    trainer.save_model(0, str(tmp_path))
    path = tmp_path / "prompt_learner" / "model.pth.tar-1"
    state = torch.load(path, weights_only=True)
    for key in ("precision", "optimizers", "threads", "rng", "step"):
        torch.save({name: value for name, value in state.items() if name != key}, path)
        with pytest.raises(InputError, match=r"model.pth.tar-1 lacks what a run needs to go on \(KeyError: .*; delete"):
            trainer.resume_model_if_exist(str(tmp_path))
    torch.save({**state, "optimizers": []}, path)
    with pytest.raises(InputError, match=r"lacks what a run needs to go on \(ValueError"):
        trainer.resume_model_if_exist(str(tmp_path))
    adam = saved(clip_model, tmp_path, **{"OPTIM.NAME": "adam"})
    torch.save(state, path)
    with pytest.raises(InputError, match=r"model.pth.tar-1"):
        adam.resume_model_if_exist(str(tmp_path))


def test_which_checkpoint_is_loaded(clip_model, tmp_path, capsys):
    trainer = saved(clip_model, tmp_path)
    ctx, folder = trainer.trainables[0], tmp_path / "prompt_learner"

    def save(value, epoch, **words):
        ctx.data.fill_(value)
        trainer.save_model(epoch, str(tmp_path), **words)

    def loaded(epoch=None):
        ctx.data.zero_()
        trainer.load_model(str(tmp_path), epoch)
        return ctx.unique().item()

    with pytest.raises(InputError, match=f"no trained prompts in {folder}; check --model-dir"):
        loaded()
    save(1.0, 0)
    save(2.0, 1)
    capsys.readouterr()
    assert (loaded(), loaded(1), loaded(2)) == (2, 1, 2)
    assert f"Loaded {folder}/model.pth.tar-1 (epoch 1)" in capsys.readouterr().out
    with pytest.raises(InputError, match=rf"no checkpoint at {folder}/model.pth.tar-3; check --model-dir and --load-e"):
        loaded(3)
    trainer.cfg.defrost()
    trainer.cfg.TEST.FINAL_MODEL = "best_val"
    with pytest.raises(InputError, match="no checkpoint at .*model-best.pth.tar"):
        loaded()
    trainer.cfg.TEST.FINAL_MODEL = "last_step"
    save(3.0, 1, is_best=True)
    save(4.0, 2)
    assert (loaded(), loaded(3)) == (3, 4)
    trainer.load_model("")
    assert ctx.unique().item() == 4  # nothing to load
    untrained = make_trainer("ZeroshotCLIP", clip_model, NAMES)
    untrained.load_model(str(tmp_path))


@pytest.mark.parametrize(("changes", "message"), [
    ({"state_dict": [1]}, "is not a checkpoint of prompts: its state_dict does not hold named tensors"),
    ({"state_dict": {"prompt_learner.ctx": 1}}, "does not hold named tensors"),
    ({"trainer": "KgCoOp"}, "holds KgCoOp with prompt_learner.ctx; CoOp needs prompt_learner.ctx"),
    ({"state_dict": {"b": torch.ones(1), "a": torch.ones(1)}}, "holds CoOp with a, b; CoOp needs prompt_learner.ctx"),
    ({"state_dict": {"prompt_learner.ctx": torch.ones(3, 128)}},
     r"prompt_learner.ctx has shape \(3, 128\), this run needs \(2, 128\); use the config it was trained with"),
    ({"state_dict": {"prompt_learner.ctx": torch.full((2, 128), float("nan"))}}, "holds numbers that are not finite"),
])
def test_what_is_no_checkpoint_of_this_run_is_refused(changes, message, clip_model, tmp_path):
    trainer = saved(clip_model, tmp_path)
    trainer.save_model(0, str(tmp_path))
    rewritten(tmp_path / "prompt_learner" / "model.pth.tar-1", **changes)
    start = trainer.trainables[0].detach().clone()
    with pytest.raises(InputError, match=message):
        trainer.load_model(str(tmp_path))
    assert torch.equal(trainer.trainables[0].detach(), start)


def test_what_is_learned_for_classes_is_not_loaded_for_others(clip_model, tmp_path):
    own = {"N_CTX": 2, "CSC": True}
    saved(clip_model, tmp_path, options=own).save_model(0, str(tmp_path))
    fewer = saved(clip_model, tmp_path, options=own, names=NAMES[:4])
    with pytest.raises(InputError, match="it belongs to the classes it was trained on"):
        fewer.load_model(str(tmp_path))
    other = saved(clip_model, tmp_path, options=own, names=NAMES[::-1])
    with pytest.raises(InputError, match=r"was trained on other classes \(dog, elephant, giraffe, ...\), and what "):
        other.load_model(str(tmp_path))
    rewritten(tmp_path / "prompt_learner" / "model.pth.tar-1", classnames=list(NAMES[::-1]))
    other.load_model(str(tmp_path))
    state = torch.load(tmp_path / "prompt_learner" / "model.pth.tar-1", weights_only=True)
    del state["classnames"]
    torch.save(state, tmp_path / "prompt_learner" / "model.pth.tar-1")
    with pytest.raises(InputError, match="was trained on other classes"):
        other.load_model(str(tmp_path))


def test_depts_second_head_stays_with_its_classes(clip_model, tmp_path):
    trained = saved(clip_model, tmp_path, "DePT", names=NAMES[:5])
    trained.save_model(0, str(tmp_path))
    others = saved(clip_model, tmp_path, "DePT", names=NAMES[5:9])  # another number of classes
    head = others.model.linear_probe_proj.weight.detach().clone()
    others.load_model(str(tmp_path))
    assert torch.equal(others.model.linear_probe_proj.weight, head) and not others.model.has_head
    assert torch.equal(others.model.prompt_learner.ctx, trained.model.prompt_learner.ctx)


def test_weights_of_another_backbone_are_told_of_ones_own_method_only(clip_model, tmp_path):
    trainer = saved(clip_model, tmp_path)
    trainer.save_model(0, str(tmp_path))
    path = tmp_path / "prompt_learner" / "model.pth.tar-1"
    trainer.load_model(str(tmp_path))
    assert trainer.changed == {}
    made_for = torch.load(path, weights_only=True)["made_for"]
    rewritten(path, made_for={**made_for, "backbone": {"name": "another", "digest": "0" * 64}})
    for load in (trainer.load_model, trainer.resume_model_if_exist):
        with pytest.raises(InputError, match="another .SHA-256 000000000000"):
            load(str(tmp_path))
    rewritten(path, trainer="KgCoOp")
    with pytest.raises(InputError, match="holds KgCoOp with"):
        trainer.load_model(str(tmp_path))


def test_when_checkpoints_are_written_and_removed(clip_model, tmp_path, monkeypatch):
    """A Dassl-style trainer writes the last epoch's and every CHECKPOINT_FREQ-th, a PromptTrainer each, and removes
    old ones."""
    calls, folder = [], str(tmp_path)
    trainer = saved(clip_model, tmp_path, **{"OPTIM.MAX_EPOCH": 4})
    trainer.save_model = lambda epoch, folder: calls.append((epoch, folder))
    trainer._checkpointer = SimpleNamespace(
        forget_interruption=lambda folder: calls.append(("forget", folder)),
        prune=lambda folder, done, every: calls.append(("prune", folder, done, every)))
    for every, due in ((0, (3,)), (1, (0, 1, 2, 3)), (2, (1, 3)), (3, (2, 3))):
        trainer.cfg.defrost()
        trainer.cfg.TRAIN.CHECKPOINT_FREQ = every
        for trainer.epoch in range(4):
            calls.clear()
            trainer.after_epoch()
            assert calls == [(trainer.epoch, folder), ("forget", folder), ("prune", folder, trainer.epoch + 1, every)]
            calls.clear()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(PromptTrainer, "checkpoint_due", SimpleTrainer.checkpoint_due)
                SimpleTrainer.after_epoch(trainer)
            assert calls == ([(trainer.epoch, folder), ("forget", folder)] if trainer.epoch in due else [])
    trainer.cfg.TRAIN.CHECKPOINT_FREQ = 5
    monkeypatch.setattr(SimpleTrainer, "before_train", lambda self: calls.append("engine"))
    pruned = ("prune", folder, 3, 5)
    for start, batches, expected in ((0, 0, []), (0, 2, []), (3, 0, [pruned, ("forget", folder)]), (3, 2, [pruned])):
        calls.clear()
        trainer.start_epoch, trainer.first_batch = start, batches
        trainer.before_train()
        assert calls == ["engine", *expected]


def test_old_checkpoints_are_removed(clip_model, tmp_path, monkeypatch):
    def left(freq, done, epochs=range(1, 7), others=("model-best.pth.tar", "checkpoint", "model.pth.tar-x")):
        folder = tmp_path / f"{freq} {done}" / "prompt_learner"
        folder.mkdir(parents=True)
        for name in (*(f"model.pth.tar-{epoch}" for epoch in epochs), *others):
            (folder / name).write_text("")
        checkpointer.prune(str(folder.parent), done, freq)
        assert all((folder / name).exists() for name in others)
        return sorted(int(path.name.rsplit("-", 1)[1]) for path in folder.glob("model.pth.tar-[0-9]*"))

    trainer = saved(clip_model, tmp_path)
    checkpointer = trainer.checkpointer
    assert left(0, 6) == [5, 6] and left(0, 4) == [3, 4, 5, 6] and left(2, 6) == [2, 4, 5, 6] and left(1, 6) == [
        1, 2, 3, 4, 5, 6]
    assert left(0, 1) == [1, 2, 3, 4, 5, 6]
    checkpointer.prune(str(tmp_path / "no folder"), 6, 0)
    (tmp_path / "0 6" / "prompt_learner" / "model.pth.tar-1").write_text("")
    with monkeypatch.context() as patch:  # only the first rank removes
        patch.setattr("dassl.engine.checkpointer.rank", lambda: 1)
        checkpointer.prune(str(tmp_path / "0 6"), 6, 0)
    assert (tmp_path / "0 6" / "prompt_learner" / "model.pth.tar-1").exists()
    checkpointer.prune(str(tmp_path / "0 6"), 6, 0)
    assert not (tmp_path / "0 6" / "prompt_learner" / "model.pth.tar-1").exists()


def test_trained_tensors_are_copied(clip_model):
    trainer = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 2})
    state = trainer.trained_state()
    kept = state["prompt_learner.ctx"].clone()
    with torch.no_grad():
        trainer.trainables[0] += 1
    assert torch.equal(state["prompt_learner.ctx"], kept) and not kept.requires_grad
    trainer.model.register_parameter("frozen", torch.nn.Parameter(torch.ones(1), requires_grad=False))
    assert list(trainer.trained_state()) == ["prompt_learner.ctx"]
