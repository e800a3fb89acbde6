"""Methods of every kind as plugins that a stranger would write, one file each (tests/plugins/kinds): they compute what
plain autograd through OpenAI's CLIP computes, learn, go on where they were stopped, and run in two processes."""
import copy
import math
import os
import shutil
import signal
import subprocess
import sys

import kinds
import kinds_plain
import pytest
import ranks
import torch
from chaos import same
from clip.model import CLIP
from conftest import registered_for_a_while
from kinds import KINDS
from torch import nn

import train
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError, Terminated
from harness import make_trainer
from prompting import load_clip
from prompting.model import FrozenCLIP
from training import PromptTrainer
from training.trained_tensors import FOLDER

TOLERANCE = 1e-5
TRAINED = [name for name, kind in KINDS.items() if kind.trains]
CLASSNAMES = ["striped star", "plain circle", "dotted square", "ringed pentagon", "checked hexagram"]
STEPS, RATE = 2, 0.01


@pytest.fixture(scope="module", autouse=True)
def plugins():
    """The registry holds the plugins while this file is tested."""
    with registered_for_a_while():
        train.discover([str(kind.path) for kind in KINDS.values()])
        yield


def test_a_plugin_is_one_short_file():
    for kind in KINDS.values():
        assert len(kind.path.read_text().splitlines()) < 80


# ---- the same numbers as plain autograd ----
def odd_clip():
    """Random weights; towers of different widths and depths, heads of 24 channels in the text tower, a logit scale with
    which an update at test time does not enlarge differences of rounding."""
    torch.manual_seed(5)
    model = CLIP(embed_dim=48, image_resolution=32, vision_layers=3, vision_width=192, vision_patch_size=8,
                 context_length=77, vocab_size=49408, transformer_width=96, transformer_heads=4, transformer_layers=2)
    nn.init.constant_(model.logit_scale, math.log(5))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=[lambda: load_clip("tiny"), odd_clip], ids=["tiny", "odd"])
def model(request):
    return request.param()


def built(name, model, pixels=0):
    trainer = make_trainer(name, copy.deepcopy(model), CLASSNAMES, settings={
        "INPUT.SIZE": (pixels or model.visual.input_resolution,) * 2, "OPTIM.LR": RATE})
    trainer.set_model_mode("train" if trainer.trains else "eval")
    return trainer


def images(model, number, seed):
    size = model.visual.input_resolution
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(seed))


def watched(trainer):
    """[(loss, gradients)] of the updates to come."""
    seen, gradients = [], trainer.gradients

    def recording(loss, *arguments, **options):
        found = gradients(loss, *arguments, **options)
        seen.append((loss.detach().clone(), [g.clone() for g in found]))
        return found

    trainer.gradients = recording
    return seen


def difference(found, expected):
    """|found - expected| / |expected| of lists of tensors, taken together."""
    found, expected = (torch.cat([t.detach().double().flatten() for t in tensors]) for tensors in (found, expected))
    return float((found - expected).norm() / expected.norm())


def leaves_of(trainer):
    return {name: p.detach().clone().requires_grad_() for name, p in trainer.model.named_parameters()
            if p.requires_grad}


@pytest.mark.parametrize("name", TRAINED)
def test_two_steps_agree_with_plain_autograd(name, model):
    trainer = built(name, model)
    leaves, seen = leaves_of(trainer), watched(trainer)
    optimizer = torch.optim.SGD(leaves.values(), RATE, trainer.cfg.OPTIM.MOMENTUM,
                                weight_decay=trainer.cfg.OPTIM.WEIGHT_DECAY)
    for step in range(STEPS):
        batch = {"img": images(model, 6, step), "label": torch.arange(6) % len(CLASSNAMES)}
        trainer.batch_idx = step
        trainer.forward_backward(batch)
        logits = kinds_plain.LOGITS[name](model, leaves, trainer.node, batch["img"], CLASSNAMES)
        loss = nn.functional.cross_entropy(logits, batch["label"])
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        assert difference([seen[step][0]], [loss]) < TOLERANCE
        assert difference(seen[step][1], gradients) < TOLERANCE
        largest = max(float(g.norm()) for g in gradients)
        for tensor, found, expected in zip(leaves, seen[step][1], gradients, strict=True):
            assert float((found - expected).norm()) < TOLERANCE * max(float(expected.norm()), largest / 100), tensor
        for leaf, gradient in zip(leaves.values(), gradients):
            leaf.grad = gradient
        optimizer.step()
    now = dict(trainer.model.named_parameters())
    assert difference([now[name] for name in leaves], list(leaves.values())) < TOLERANCE


def test_the_update_of_each_test_image_agrees_with_plain_autograd(model):
    trainer = built("EntropyOverViews", model)
    leaves, seen = leaves_of(trainer), watched(trainer)
    size = model.visual.input_resolution
    batch = {"img": images(model, 3, 1), "views": images(model, 24, 2).view(3, 8, 3, size, size),
             "impath": ["a", "b", "c"]}
    found = trainer.logits_of(batch)
    for image in range(3):
        loss, gradient, logits = kinds_plain.adapted(model, leaves, trainer.node, batch["views"][image],
                                                     batch["img"][image:image + 1], CLASSNAMES)
        assert difference([seen[image][0]], [loss]) < TOLERANCE
        assert difference(seen[image][1], [gradient]) < TOLERANCE
        assert difference([found[image]], [logits]) < TOLERANCE
    assert same(leaves, leaves_of(trainer))


def test_predictions_of_a_batch_agree_with_the_plain_formulas(model):
    trainer = built("BatchPrototypes", model)
    batch = {"img": images(model, 9, 1), "impath": list("abcdefghi")}
    found, expected = trainer.logits_of(batch), kinds_plain.refined(model, trainer.node, batch["img"], CLASSNAMES)
    assert difference([found], [expected]) < TOLERANCE
    assert difference([trainer.logits_of({"img": batch["img"][:4], "impath": list("abcd")})], [expected[:4]]) > 1e-3


def test_the_average_is_what_is_evaluated(model):
    trainer = built("FineTunedAverage", model)
    average = leaves_of(trainer)
    for step in range(STEPS):
        trainer.batch_idx = step
        trainer.forward_backward({"img": images(model, 6, step), "label": torch.arange(6) % len(CLASSNAMES)})
        for name, tensor in leaves_of(trainer).items():
            average[name] = trainer.node.DECAY * average[name] + (1 - trainer.node.DECAY) * tensor.detach()
    test, before = images(model, 5, 9), leaves_of(trainer)
    plain = [kinds_plain.LOGITS["FineTunedAverage"](model, leaves, trainer.node, test, CLASSNAMES)
             for leaves in (average, before)]
    trainer.set_model_mode("eval")
    found = trainer.logits_of({"img": test, "impath": list("abcde")})
    assert difference([found], [plain[0]]) < TOLERANCE
    assert difference([plain[1]], [plain[0]]) > 100 * TOLERANCE
    assert same(before, leaves_of(trainer))


# ---- on Shapes ----
@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    kinds.draw(root)
    return root


@pytest.fixture(scope="module")
def clips():
    return {"tiny": load_clip("tiny")}


@pytest.fixture(scope="module")
def zero_shot(root, clips, tmp_path_factory):
    """{test pictures per class: (folder, results) of zero-shot CLIP}"""
    folders = {number: tmp_path_factory.mktemp("zero") for number in sorted({kind.tested for kind in KINDS.values()})}
    return {number: (folder, kinds.run("ZeroshotCLIP", root, folder, clips, tested=number))
            for number, folder in folders.items()}


# What runs share: weights under a parametrisation, an average that is evaluated, updates and a cache at test time.
USUAL = ("LoRAParametrized", "FineTunedAverage", "EntropyOverViews", "FeatureCache")


@pytest.fixture(scope="module", params=[name if name in USUAL else pytest.param(name, marks=pytest.mark.slow)
                                        for name in KINDS])
def whole(request, root, clips, tmp_path_factory):
    """(name, folder, results) of the run that nothing disturbs."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, kinds.run(request.param, root, folder, clips)


def accuracy(results):
    return results["metrics"]["test"]["accuracy"]


def entropy(folder):
    """The mean entropy of the predictions, in nats."""
    log_p = kinds.logits_in(folder).float().log_softmax(dim=1)
    return float(-(log_p.exp() * log_p).sum(dim=1).mean())


def test_it_learns(whole, zero_shot):
    name, folder, results = whole
    plain, before = zero_shot[KINDS[name].tested]
    print(f"{name}: {accuracy(results):.1f}, zero-shot {accuracy(before):.1f}")
    assert accuracy(results) >= accuracy(before) + KINDS[name].gain
    if KINDS[name].surer:  # what its updates are for
        print(f"entropy {entropy(folder):.4f}, zero-shot {entropy(plain):.4f}")
        assert entropy(folder) < entropy(plain) - KINDS[name].surer


def stop(name, monkeypatch):
    """Send this process SIGTERM within the last epoch, or during the evaluation where nothing is trained."""
    cls, calls = TRAINER_REGISTRY.get(name), []
    hook = "training_step" if KINDS[name].trains else "predict"
    original = getattr(cls, hook)

    def stopped(self, batch):
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    monkeypatch.setattr(cls, hook, stopped)


def kept(folder):
    """All that a training ends with."""
    path = folder / FOLDER / f"model.pth.tar-{kinds.EPOCHS}"
    state = torch.load(path, weights_only=True) if path.exists() else {}
    return [state.get(key) for key in ("state_dict", "optimizers", "schedules", "rng", "extra")]


def test_stopped_and_resumed_it_ends_the_same(whole, root, clips, tmp_path, monkeypatch):
    """From the last but one epoch's checkpoint on, stopped within the last epoch, and resumed from there."""
    name, folder, results = whole
    if KINDS[name].trains:
        (tmp_path / FOLDER).mkdir()
        newest = f"model.pth.tar-{kinds.EPOCHS - 1}"
        shutil.copy(folder / FOLDER / newest, tmp_path / FOLDER)
        (tmp_path / FOLDER / "checkpoint").write_text(f"{newest}\n")
    with monkeypatch.context() as patch:
        stop(name, patch)
        with pytest.raises(Terminated):
            kinds.run(name, root, tmp_path, clips)
    assert not (tmp_path / "results.json").exists()
    if KINDS[name].trains:
        stopped = torch.load(tmp_path / FOLDER / "model-interrupted.pth.tar", weights_only=True)
        assert (stopped["epoch"], stopped["step"]) == (kinds.EPOCHS - 1, 2)
    again = kinds.run(name, root, tmp_path, clips)
    assert again["metrics"] == results["metrics"]
    assert torch.equal(kinds.logits_in(tmp_path), kinds.logits_in(folder))
    assert same(kept(tmp_path), kept(folder))


def by_torchrun(folder, names):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", kinds.__file__,
         str(folder), *names], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def by_fork(folder, names):
    told = ranks.fork(2, folder, lambda: kinds.main(folder, *names))
    assert [status for status, _ in told] == [0, 0], told


@pytest.mark.parametrize(("names", "start"), [
    (("LoRAParametrized", "BatchPrototypes"), by_fork),
    pytest.param(tuple(KINDS), by_torchrun, marks=pytest.mark.slow)], ids=["some", "all"])
def test_two_processes_give_the_numbers_of_one(names, start, tmp_path):
    one = kinds.small_runs(tmp_path / "one", names)
    start(tmp_path / "two", names)
    two = torch.load(tmp_path / "two" / "found.pt", weights_only=True)
    for name in names:
        losses, learned, counted, counted_here, same_images = ranks.compare(one[name], two[name])
        logits = ranks.difference([one[name]["logits"]], [two[name]["logits"]])
        print(f"{name}: losses {losses:.1e}, learned {learned:.1e}, logits {logits:.1e}")
        assert max(losses, learned, logits) < TOLERANCE, name
        assert same_images and counted == counted_here == 20
        assert one[name]["accuracy"] == two[name]["accuracy"]


# ---- a tensor that no gradient reaches ----
class Shifted(FrozenCLIP):
    def __init__(self, towers, classnames):
        super().__init__(towers, classnames, ["a photo of a {}."])
        self.shift = nn.Parameter(torch.zeros(towers.embed_dim))

    def encode_classes(self):
        return super().encode_classes() + self.shift


class WithSpareTensor(Shifted):
    def __init__(self, towers, classnames):
        super().__init__(towers, classnames)
        self.spare = nn.Parameter(torch.zeros(3))


def test_a_trained_tensor_without_a_gradient_ends_the_run_with_its_name(root, clips, tmp_path):
    @TRAINER_REGISTRY.register()
    class Unreached(PromptTrainer):
        def build_model(self, towers, classnames):
            return WithSpareTensor(towers, classnames)

    with pytest.raises(InputError, match="Unreached: no gradient reaches spare") as raised:
        kinds.run("Unreached", root, tmp_path, clips)
    assert "shift" not in str(raised.value)
    assert not (tmp_path / "results.json").exists()


# ---- what a first method gets wrong ----
class PlainTensor(PromptTrainer):
    """What is learned is no parameter."""

    def build_model(self, towers, classnames):
        self.shift = torch.zeros(towers.embed_dim, requires_grad=True)
        return FrozenCLIP(towers, classnames, ["a photo of a {}."])


class CutsItsGraph(PromptTrainer):
    def build_model(self, towers, classnames):
        return Shifted(towers, classnames)

    def compute_loss(self, batch):
        loss, logits = super().compute_loss(batch)
        return loss.detach(), logits


class SaysNothing(CutsItsGraph):
    """Learns from test images without a word of it."""

    trains = learns_from_images = False

    def predict(self, batch):
        logits = self.model(batch["img"])
        loss = -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()
        self.apply_gradients(self.gradients(loss, self.trainables))
        return logits


@pytest.mark.parametrize(("method", "told"), [
    (PlainTensor, "PlainTensor trains nothing: .* make what is learned an nn.Parameter"),
    (CutsItsGraph, "depends on nothing that is trained; compute it with self.model"),
    (SaysNothing, "depends on nothing that is trained; to learn from test images, say adapts = True"),
])
def test_a_first_method_is_told_what_it_lacks(method, told, root, clips, tmp_path):
    TRAINER_REGISTRY.register(method)
    with pytest.raises(InputError, match=told):
        kinds.run(method.__name__, root, tmp_path, clips)
    assert not (tmp_path / "results.json").exists()


def test_gradients_of_tensors_of_ones_own_need_no_trained_ones(root, clips, tmp_path):
    @TRAINER_REGISTRY.register()
    class OwnTensor(PromptTrainer):
        trains = learns_from_images = False
        adapts = True

        def build_model(self, towers, classnames):
            return FrozenCLIP(towers, classnames, ["a photo of a {}."])

        def predict(self, batch):
            images, words = self.model.encode_images(batch["img"]), self.model.class_features()
            shift = torch.zeros_like(words, requires_grad=True)
            logits = self.model.logits(images, words + shift)
            slope, = self.gradients(-logits.logsumexp(dim=1).sum(), [shift])
            assert slope.abs().max() > 0
            return self.model.logits(images, words - 0.01 * slope)

    results = kinds.run("OwnTensor", root, tmp_path, clips, tested=2)
    assert results["metrics"]["test"]["accuracy"] > 30
