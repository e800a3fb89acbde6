"""Label smoothing and gradient clipping reach every method; a run that goes on has the settings of its config."""
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

import tiny_clip
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from dassl.optim import build_lr_scheduler, build_optimizer, go_on
from dassl.utils import InputError
from harness import make_trainer
from prompting.backbone import describe_backbone, load_clip, weights_digest
from training import PromptTrainer

SMALL: dict[str, dict] = {"MaPLe": {"PROMPT_DEPTH": 2}, "CoPrompt": {"PROMPT_DEPTH": 2}, "MetaPrompt": {"LAYERS": 2},
         "TCP": {"LAYER": 2}, "VPT": {"PROMPT_DEPTH_VISION": 2}}
SMALL |= {name: {"PROMPT_DEPTH_TEXT": 2, "PROMPT_DEPTH_VISION": 2} for name in ("IVLP", "PromptSRC", "ProMetaR")}
SMALL |= {"MMA": {"ADAPTER_START": 2, "ADAPTER_END": 4}, "MMRL": {"REP_LAYERS": [2, 3], "REP_DIM": 16}}
METHODS = ["CLIPAdapter", "CLIPLoRA", "CLIPood", "CoCoOp", "CoOp", "CoPrompt", "DPL", "DePT", "FineTune", "IVLP",
           "KgCoOp", "LinearProbe", "MMA", "MMRL", "MaPLe", "MetaPrompt", "PLOT", "PLOTPP", "ProGrad", "ProMetaR",
           "PromptSRC", "RPO", "TCP", "TaskRes", "TipAdapterF", "TwoSFS", "VPT", "WiSEFT"]


def test_every_method_that_trains_is_here():
    own = {name for name, cls in TRAINER_REGISTRY.items()
           if issubclass(cls, PromptTrainer) and cls.trains and cls.__module__.startswith("trainers.")}
    assert own == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_smoothing_and_clipping_reach_every_method(method, clip_model, monkeypatch):
    smoothed, lengths, cross_entropy = [], [], F.cross_entropy

    def watch(logits, target, **words):
        if target.dtype == torch.int64:  # labels; a distillation's targets are probabilities
            smoothed.append(words.get("label_smoothing"))
        return cross_entropy(logits, target, **words)

    def stepped(optimizer, args, kwargs):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        lengths.append(torch.stack([grad.norm() for grad in grads]).norm().item())

    trainer = make_trainer(method, clip_model, tiny_clip.CLASSNAMES, SMALL.get(method),
                           settings={"OPTIM.LABEL_SMOOTHING": 0.2, "OPTIM.CLIP_GRAD_NORM": 1e-4})
    handle = register_optimizer_step_pre_hook(stepped)
    try:
        monkeypatch.setattr(F, "cross_entropy", watch)
        trainer.forward_backward(tiny_clip.batch("options", 0, 8, 10))
    finally:
        handle.remove()
    assert smoothed and set(smoothed) == {0.2}
    assert lengths and max(lengths) <= 1e-4 * (1 + 1e-5)
    assert max(lengths) == pytest.approx(1e-4, rel=1e-4)


def test_clipping_keeps_the_direction_and_lets_short_gradients_be(clip_model):
    trainer = make_trainer("CoOp", clip_model, tiny_clip.CLASSNAMES, settings={"OPTIM.CLIP_GRAD_NORM": 1.0})
    first, second = trainer.clipped([torch.tensor([3.0, 0.0]), torch.tensor([4.0])])
    assert torch.equal(first, torch.tensor([3.0, 0.0]) / 5) and torch.equal(second, torch.tensor([4.0]) / 5)
    short = [torch.tensor([0.3]), torch.zeros(1)]
    assert all(torch.equal(one, other) for one, other in zip(trainer.clipped(short), short))


@pytest.mark.parametrize("method", METHODS)
def test_rate_and_weight_decay_reach_all_that_is_trained(method, clip_model):
    """Down a gradient of 0 SGD's first step is p <- p - rate * decay * p."""
    own = {"DePT": {"HEAD_LR": 2.0}, "ProMetaR": {"VNET_LR": 0.25, "VNET_WEIGHT_DECAY": 0.4}}.get(method, {})
    trainer = make_trainer(method, clip_model, tiny_clip.CLASSNAMES, {**SMALL.get(method, {}), **own},
                           settings={"OPTIM.LR": 0.5, "OPTIM.WEIGHT_DECAY": 0.1, "OPTIM.MOMENTUM": 0.9})
    starts = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    for p in trainer.trainables:
        p.grad = torch.zeros_like(p)
    for optimizer, _ in trainer.optimizers:
        optimizer.step()
    for name, p in trainer.model.named_parameters():
        if p.requires_grad:
            rate, decay = 0.5, 0.1
            if method == "DePT" and not name.endswith("ctx"):
                rate = 0.5 * 2.0
            if name.startswith("vnet."):
                rate, decay = 0.25, 0.4
            torch.testing.assert_close(p.detach(), starts.pop(name) * (1 - rate * decay))
    assert not starts


# ---- going on ----
def optimizer_of(**values):
    node = get_cfg_default().OPTIM
    for key, value in {"NAME": "sgd", "LR": 0.1, "LR_SCHEDULER": "cosine", "MAX_EPOCH": 4, **values}.items():
        node[key] = value
    torch.manual_seed(0)
    optimizer = build_optimizer(nn.Linear(3, 2), node)
    return optimizer, build_lr_scheduler(optimizer, node)


def stored(epochs=2, schedule=None, **values):
    optimizer, own = optimizer_of(**values)
    sched = schedule(optimizer) if schedule else own
    for _ in range(epochs):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        optimizer.step()
        sched.step()
    return optimizer.state_dict(), sched.state_dict()


def test_a_run_that_goes_on_keeps_its_memory_and_takes_new_settings():
    optimizer, schedule = optimizer_of(LR=0.4, MOMENTUM=0.5, WEIGHT_DECAY=0.0, MAX_EPOCH=8)
    state = stored()
    go_on(optimizer, schedule, *state, changed=("OPTIM.LR",))
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["initial_lr"]) == (0.5, 0.0, 0.4)
    assert group["lr"] == schedule.rate(0.4, 2) == schedule.get_last_lr()[0]
    buffers = [state[0]["state"][i]["momentum_buffer"] for i in range(2)]
    assert all(torch.equal(optimizer.state[p]["momentum_buffer"], b) for p, b in zip(group["params"], buffers))
    optimizer.step()
    schedule.step()
    assert group["lr"] == schedule.rate(0.4, 3)


def test_another_kind_of_schedule_is_stepped_to_where_the_run_is():
    def cosine(length):
        return lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, length)

    state = stored(3, cosine(4))
    optimizer, _ = optimizer_of(LR=0.2)
    schedule = cosine(10)(optimizer)
    go_on(optimizer, schedule, *state, changed=("OPTIM.LR",))
    fresh, _ = optimizer_of(LR=0.2)
    other = cosine(10)(fresh)
    for _ in range(3):
        fresh.step()
        other.step()
    assert optimizer.param_groups[0]["lr"] == fresh.param_groups[0]["lr"]
    assert schedule.last_epoch == 3 and schedule.T_max == 10


def test_without_a_change_another_kind_of_schedule_is_as_it_was():
    state = stored(3, lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))
    optimizer, _ = optimizer_of()
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    go_on(optimizer, schedule, *state)
    assert optimizer.param_groups[0]["lr"] == state[0]["param_groups"][0]["lr"]
    assert schedule.state_dict() == state[1]


@pytest.mark.parametrize(("then", "now"), [("sgd", "adam"), ("adam", "sgd"), ("adam", "amsgrad"), ("sgd", "rmsprop"),
                                           ("adam", "adamw")])
def test_another_kind_of_optimizer_is_refused(then, now):
    optimizer, schedule = optimizer_of(NAME=now)
    with pytest.raises(InputError, match="of another kind than"):
        go_on(optimizer, schedule, *stored(NAME=then))


# ---- backbones by content ----
def test_a_clip_that_is_handed_in_is_known_by_its_tensors(clip_file):
    model = load_clip(clip_file)
    assert describe_backbone(model)["digest"] == weights_digest(clip_file)
    del model.weights_digest
    digest = describe_backbone(model)["digest"]
    with torch.no_grad():
        model.visual.proj[0, 0] += 1
    assert describe_backbone(model)["digest"] != digest != weights_digest(clip_file)


def test_published_weights_are_known_without_a_download():
    assert weights_digest("ViT-B/16") == "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"
    assert weights_digest("no such CLIP") is None


def test_a_file_that_changes_has_another_digest(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"one")
    first = weights_digest(str(path))
    path.write_bytes(b"another")
    assert weights_digest(str(path)) != first
