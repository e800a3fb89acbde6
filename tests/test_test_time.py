"""Methods that learn of test images, answer for a whole batch, or evaluate other weights than they train
(training/test_time.py). The methods are tests/plugins/at_test_time.py."""
import copy
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tiny_clip
import train
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import NonFiniteError, Terminated
from harness import make_trainer
from prompting.model import FrozenCLIP
from prompting.precision import GradientOverflow
from training import PromptTrainer, test_time

PLUGIN = ROOT / "tests" / "plugins" / "at_test_time.py"
NAMES = tiny_clip.CLASSNAMES
SMALL = ("TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", 2, "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", 2,
         "TRAINER.PROMPTSRC.GPA_MEAN", 2.0, "TRAINER.PROMPTSRC.GPA_STD", 2.0)
KINDS = ("Entropy", "Continual", "MeanOfStream", "MeanOfBatch")


@pytest.fixture(autouse=True)
def methods():
    train.discover([str(PLUGIN)])


@pytest.fixture
def run(arguments, clips):
    def run(method, output, *words, **kwargs):
        words = (*words, *(SMALL if method == "PromptSRC" else ()), "TEST.SAVE_LOGITS", True)
        return train.main(arguments(method, output, *words, **kwargs), clips=clips)

    return run


@pytest.fixture
def trainer_of(clip_model):
    def trainer_of(method, **settings):
        cls = TRAINER_REGISTRY.get(method)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cls, "extend_cfg", staticmethod(with_precision(cls)))
            trainer = make_trainer(method, clip_model, NAMES, settings=settings)
        trainer.set_model_mode("eval")
        return trainer

    return trainer_of


def with_precision(cls):
    """An `extend_cfg` that gives the method's node a PREC, which the harness sets."""
    def extend_cfg(cfg):
        cfg.TRAINER[cls.__name__.upper()] = type(cfg)({"PREC": "auto"})

    return extend_cfg


def images(number=5, step=0):
    batch = tiny_clip.batch("test", step, number, len(NAMES))
    return {"img": batch["img"], "label": batch["label"], "impath": [f"{i}.png" for i in range(number)]}


def rows(batch, order):
    return {key: value[order] if torch.is_tensor(value) else [value[i] for i in order] for key, value in batch.items()}


def logits_of(folder):
    with np.load(folder / "logits.npz") as stored:
        return dict(zip(stored["paths"].tolist(), stored["logits"]))


def same_logits(one, other):
    one, other = logits_of(one), logits_of(other)
    return one.keys() == other.keys() and all(np.array_equal(one[path], other[path]) for path in one)


def checkpoint(folder, name="model.pth.tar-2"):
    return torch.load(Path(folder) / "prompt_learner" / name, weights_only=True)


def equal(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def state(trainer):
    """Everything of a trainer that predictions must leave alone."""
    return copy.deepcopy({
        "tensors": trainer.model.state_dict(),
        "grads": [p.grad for p in trainer.trainables], "extra": trainer.extra_state(),
        "scale": trainer.precision.state_dict(), "modes": [module.training for module in trainer.model.modules()],
        "torch": torch.get_rng_state(), "numpy": np.random.get_state()[1].tolist(), "python": random.getstate()})


def same_state(one, other):
    return equal(one.pop("tensors"), other.pop("tensors")) and torch.equal(one.pop("torch"), other.pop("torch")) and \
        str(one) == str(other)


# ---- learning of a test image ----
def test_what_is_learned_of_an_image_is_forgotten_before_the_next(trainer_of):
    trainer, batch = trainer_of("Entropy"), images()
    with torch.no_grad():
        plain = trainer.model_inference(batch["img"])
    together = trainer.logits_of(batch)
    assert together.shape == (5, len(NAMES)) and together.dtype == torch.float32 and not together.requires_grad
    assert (together - plain).abs().amax(1).min() > 1e-3  # each image has taught something
    order = [3, 0, 4, 1, 2]
    with trainer.predicting(), torch.no_grad():
        assert torch.equal(trainer.logits_of(rows(batch, order)), together[order])
        assert torch.equal(trainer.logits_of(rows(batch, [2])), together[[2]])
    with torch.no_grad():
        assert torch.equal(trainer.model_inference(batch["img"]), plain)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", KINDS)
def test_everything_is_as_before(method, training, trainer_of):
    trainer = trainer_of(method)
    trainer.set_model_mode("train" if training else "eval")
    before, optimizer = state(trainer), (trainer.optim, trainer._optims["prompt_learner"])
    first = trainer.logits_of(images())
    assert same_state(before, state(trainer))
    assert (trainer.optim, trainer._optims["prompt_learner"]) == optimizer == (None, None)
    assert torch.equal(trainer.logits_of(images()), first)


def test_an_error_leaves_nothing_behind(trainer_of, monkeypatch):
    for method in ("Entropy", "Continual", "MeanOfStream"):
        trainer, infer = trainer_of(method), PromptTrainer.model_inference
        before = state(trainer)

        def broken(self, batch, infer=infer):
            infer(self, batch)
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(PromptTrainer, "model_inference", broken)
            with pytest.raises(MemoryError):
                trainer.logits_of(images())
        assert same_state(before, state(trainer))
        assert trainer.step_in_words().startswith("in epoch")


def test_each_image_has_a_new_optimizer_and_a_stream_has_one(trainer_of, monkeypatch):
    for method, number in (("Entropy", 5), ("Continual", 1)):
        trainer, held = trainer_of(method), []
        step = torch.optim.SGD.step

        def look(self, *args, held=held, step=step):
            held.append((id(self), bool(self.state)))
            return step(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.SGD, "step", look)
            trainer.logits_of(images())
        fresh = [has for _, has in held].count(False)
        assert len(held) == 10 and fresh == number  # without a momentum of images before


def test_methods_with_loss_backward_step_the_same_optimizer(trainer_of, monkeypatch):
    def predict(self, batch):
        logits = self.model(batch["img"])
        self.model_backward_and_update(-logits.softmax(1).amax(1).mean())
        return self.model(batch["img"])

    trainer, batch = trainer_of("Entropy"), images()
    monkeypatch.setattr(type(trainer), "predict", predict)
    found = trainer.logits_of(batch)
    assert torch.equal(trainer.logits_of(rows(batch, [4, 3, 2, 1, 0]))[[4, 3, 2, 1, 0]], found)
    assert not torch.equal(found, trainer.model_inference(batch["img"]))


def test_what_predict_is_shown(trainer_of, monkeypatch):
    shown = []

    def predict(self, batch):
        shown.append((sorted(batch), batch["img"].shape, batch["impath"], batch.get("views", torch.zeros(0)).shape,
                      torch.is_grad_enabled(), self.model.training))
        return self.model_inference(batch["img"])

    batch = {**images(3), "domain": torch.zeros(3), "index": torch.arange(3), "views": torch.zeros(3, 2, 3, 32, 32)}
    keys = ["img", "impath", "views"]
    for method, number, grad in (("Entropy", 1, True), ("MeanOfStream", 1, False), ("MeanOfBatch", 3, False)):
        trainer = trainer_of(method)
        monkeypatch.setattr(type(trainer), "predict", predict)
        trainer.set_model_mode("train")
        shown.clear()
        trainer.logits_of(batch)
        for row, found in enumerate(shown):
            files = [f"{row}.png"] if number == 1 else batch["impath"]
            assert found == (keys, (number, 3, 32, 32), files, (number, 2, 3, 32, 32), grad, False)
        assert len(shown) == 3 // number


def test_draws_follow_from_the_seed_and_the_pixels(trainer_of):
    batch = images(2)
    twice = {"img": batch["img"][[0, 0]], "impath": ["a.png", "b.png"]}
    torch.manual_seed(1)
    found = trainer_of("Entropy").logits_of(twice)
    torch.manual_seed(2)
    assert torch.equal(found[0], found[1]) and torch.equal(trainer_of("Entropy").logits_of(twice), found)
    assert not torch.equal(trainer_of("Entropy", SEED=7).logits_of(twice), found)
    digest = test_time.digest_of
    assert digest(batch["img"][:1]) != digest(batch["img"][1:]) and digest(batch["img"]) == digest(batch["img"].clone())
    assert digest(torch.zeros(2, 3)) != digest(torch.zeros(3, 2)) != digest(torch.zeros(3, 2).double())


@pytest.mark.parametrize("method", ["Entropy", "Continual"])
def test_an_overflow_begins_the_image_again_with_a_lower_scale(method, trainer_of, monkeypatch):
    batch, expected = images(4), None
    for scaled in (False, True):
        trainer, tried = trainer_of(method), []
        trainer.factor = 2.0**116  # times a scale of 2^16 it overflows
        predict = type(trainer).predict

        def counted(self, batch, tried=tried, predict=predict):
            tried.append(self.precision.scale)
            return predict(self, batch)

        with monkeypatch.context() as patch:
            patch.setattr(type(trainer), "predict", counted)
            trainer.precision.scaled, trainer.precision.scale = scaled, 2.0**16 if scaled else 1.0
            before = state(trainer)
            found = trainer.logits_of(batch)
        assert same_state(before, state(trainer))
        if scaled:
            assert len(set(tried)) > 1 and tried[0] == 2.0**16
            # It was lowered; for each image anew, but for a stream.
            assert tried.count(2.0**16) == (4 if method == "Entropy" else 1)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        expected = found


def test_an_overflow_that_lowers_nothing_is_no_endless_loop(trainer_of, monkeypatch):
    trainer = trainer_of("Entropy")

    def predict(self, batch):
        raise GradientOverflow

    monkeypatch.setattr(type(trainer), "predict", predict)
    with pytest.raises(GradientOverflow):
        trainer.logits_of(images())


def test_a_loss_that_is_not_finite_names_the_image(trainer_of):
    trainer, batch = trainer_of("Entropy"), images()
    batch["img"][2] = float("nan")
    with pytest.raises(NonFiniteError, match=r"the loss is nan at test time, on 2\.png;"):
        trainer.logits_of(batch)


def test_a_tensor_that_no_gradient_reaches_is_named(trainer_of, one_line):
    trainer = trainer_of("Entropy")
    trainer.model.unused = torch.nn.Parameter(torch.zeros(3))
    trainer.trainables.append(trainer.model.unused)
    line = one_line(lambda: trainer.logits_of(images()))
    assert "Entropy: no gradient reaches unused at test time" in line


def test_logits_of_another_shape_are_named(trainer_of, monkeypatch, one_line):
    trainer = trainer_of("Entropy")
    monkeypatch.setattr(type(trainer), "predict", lambda self, batch: self.model_inference(batch["img"])[0])
    assert "Entropy.predict gives (10,) for 1 image(s)" in one_line(lambda: trainer.logits_of(images()))


def test_a_method_that_adapts_must_say_how(run, tmp_path, one_line, monkeypatch):
    monkeypatch.setattr(TRAINER_REGISTRY.get("Averaged"), "adapts", True, raising=False)
    line = one_line(lambda: run("Averaged", tmp_path / "a"))
    assert "Averaged says `adapts = True` and defines no `predict`" in line


# ---- streams and batches ----
@pytest.mark.parametrize("method", ["Continual", "MeanOfStream"])
def test_a_stream_lasts_until_the_context_ends(method, trainer_of):
    trainer, batch = trainer_of(method), images()
    whole = trainer.logits_of(batch)
    with trainer.predicting():
        parts = [trainer.logits_of(rows(batch, part)) for part in ([0, 1], [2], [3, 4])]
        with trainer.predicting():  # within it nothing begins or ends
            assert not torch.equal(trainer.logits_of(rows(batch, [0])), whole[[0]])
        assert not torch.equal(trainer.logits_of(rows(batch, [0])), whole[[0]])
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(trainer.logits_of(rows(batch, [0])), whole[[0]])
    assert not torch.equal(trainer.logits_of(rows(batch, [1]))[0], whole[1])


def test_a_transductive_answer_is_of_the_whole_batch(trainer_of):
    trainer, batch = trainer_of("MeanOfBatch"), images()
    assert not torch.allclose(trainer.logits_of(rows(batch, [0, 1]))[0], trainer.logits_of(batch)[0], atol=1e-3)


# ---- runs ----
def test_runs_of_methods_that_learn_at_test_time(run, tmp_path):
    """The size of a test batch matters to a transductive method alone; results.json says what the method is."""
    for method in KINDS:
        for size in (1, 4):
            found = run(method, tmp_path / method / str(size), "DATALOADER.TEST.BATCH_SIZE", size, "OPTIM.LR", 0.03)
            transductive = method == "MeanOfBatch"
            assert found["test_time"] == {
                "adapts": method in ("Entropy", "Continual"), "stateful": method in ("Continual", "MeanOfStream"),
                "transductive": transductive, "views": 0, **({"batch_size": size} if transductive else {})}
            assert ("OPTIM.LR" in found.get("without_effect", ())) is (method in ("MeanOfStream", "MeanOfBatch"))
            assert found["budget"]["updates"] == 0
        assert same_logits(tmp_path / method / "1", tmp_path / method / "4") is not transductive
    assert len({tuple(logits_of(tmp_path / method / "4").popitem()[1]) for method in KINDS}) == len(KINDS)
    from dassl.engine.run_folder import read_results

    assert read_results(tmp_path / "MeanOfBatch" / "4")["test_time"]["batch_size"] == 4
    assert "test_time" not in run("CoOp", tmp_path / "CoOp")


def test_an_evaluation_of_an_ordinary_method_costs_nothing_more(clip_model, monkeypatch):
    """Not one operation on a tensor beside those of the model."""
    class Counter(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.append(str(function))
            return function(*args, **(kwargs or {}))

    def refused(*args, **kwargs):
        raise AssertionError("an ordinary method has no use for it")

    for name in ("Snapshot", "digest_of", "own_rng"):
        monkeypatch.setattr(test_time, name, refused)
    trainer, batch = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 2}), images()
    trainer.set_model_mode("eval")
    with torch.no_grad():
        trainer.model_inference(batch["img"])  # which keeps the class features
        with Counter() as plain:
            trainer.model_inference(batch["img"])
        with Counter() as evaluated:
            trainer.logits_of(batch)
    assert evaluated.names == plain.names and len(plain.names) > 20


class Touching(PromptTrainer):
    """Changes more of itself than what it trains, as a stranger might."""

    trains = False
    adapts = True

    def build_model(self, towers, classnames):
        model = FrozenCLIP(towers, classnames, ["{}"])
        model.scale, model.other = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
        model.count = nn.Parameter(torch.zeros(()), requires_grad=False)
        return model

    def predict(self, batch):
        self.model.count += 1
        logits = self.model.count * self.model.scale * self.model.other * self.model(batch["img"])
        self.apply_gradients(self.gradients(logits.sum(), self.trainables))
        self.model.other.requires_grad_(False)
        return self.model.count * self.model.scale * self.model(batch["img"])


def test_what_is_not_trained_and_what_wants_gradients_are_as_before(trainer_of):
    TRAINER_REGISTRY.register(Touching)
    trainer = trainer_of("Touching")
    both = trainer.logits_of(images(2))
    assert trainer.model.count == 0 and list(trainer.trained_tensors()) == ["scale", "other"]
    assert torch.equal(both[1:], trainer.logits_of(rows(images(2), [1])))  # nothing is left of the first image


def test_an_optimizer_of_the_training_is_refused(trainer_of, one_line, monkeypatch):
    monkeypatch.setattr(Touching, "trains", True)
    monkeypatch.setattr(Touching, "apply_gradients", lambda self, gradients: PromptTrainer.apply_gradients(
        self, gradients, optimizer=self.optimizers[0][0]))
    TRAINER_REGISTRY.register(Touching)
    trainer = trainer_of("Touching")
    line = one_line(lambda: trainer.logits_of(images(1)))
    assert "Touching.predict takes an optimizer of the training; an update at test time is made by that of" in line
    assert not trainer.optimizers[0][0].state


class Stream(PromptTrainer):
    """Doubles a weight within `predict`, without a gradient."""

    trains = False
    stateful = True

    def build_model(self, towers, classnames):
        model = FrozenCLIP(towers, classnames, ["{}"])
        model.layer = nn.Linear(towers.embed_dim, len(classnames), bias=False)
        return model

    def predict(self, batch):
        features = self.towers.encode_image(batch["img"]).float()
        before = self.model.layer(features)
        self.model.layer.weight.mul_(2.0)
        return self.model.layer(features) - 2 * before


def test_mixed_precision_sees_what_a_stream_has_changed(trainer_of):
    """Autocast keeps half-precision copies of weights, which would be those of before the change."""
    TRAINER_REGISTRY.register(Stream)
    trainer = trainer_of("Stream", **{"TRAINER.STREAM.PREC": "amp"})
    assert trainer.logits_of(images(2)).abs().max() < 1e-3


# ---- evaluated weights ----
def test_the_evaluated_weights_take_part_in_evaluations_only(run, tmp_path, monkeypatch):
    seen, infer = [], PromptTrainer.model_inference

    def look(self, batch):
        seen.append((self.epoch, self.model.shift.detach().clone(), self.average["shift"]))
        return infer(self, batch)

    monkeypatch.setattr(PromptTrainer, "model_inference", look)
    results = run("Averaged", tmp_path / "a", "TEST.FINAL_MODEL", "best_val", "TRAIN.CHECKPOINT_FREQ", 1)
    assert "test_time" not in results
    assert {epoch for epoch, *_ in seen} == {0, 1} and all(torch.equal(now, average) for _, now, average in seen)
    for epoch in (1, 2):
        stored = checkpoint(tmp_path / "a", f"model.pth.tar-{epoch}")
        assert not torch.equal(stored["state_dict"]["shift"], stored["extra"]["average"]["shift"])
    steps = run("Averaged", tmp_path / "plain", "TRAIN.CHECKPOINT_FREQ", 1)  # without validations between the epochs
    assert steps["metrics"]["test"] and equal(checkpoint(tmp_path / "a")["state_dict"],
                                              checkpoint(tmp_path / "plain")["state_dict"])
    words = ("--eval-only", "--model-dir", tmp_path / "plain")
    run("Averaged", tmp_path / "eval", *words)
    assert same_logits(tmp_path / "plain", tmp_path / "eval")
    monkeypatch.setattr(TRAINER_REGISTRY.get("Averaged"), "evaluated_weights", lambda self: None)
    monkeypatch.setattr(PromptTrainer, "model_inference", infer)
    run("Averaged", tmp_path / "trained", *words)
    assert not same_logits(tmp_path / "eval", tmp_path / "trained")


def test_what_begins_with_a_finished_run_begins_with_its_average(run, tmp_path, clip_model):
    run("PromptSRC", tmp_path / "a", "OPTIM.LR", 5.0, "TRAIN.CHECKPOINT_FREQ", 1)
    path = tmp_path / "a" / "prompt_learner" / "model.pth.tar-2"
    stored = checkpoint(tmp_path / "a")
    assert not equal(stored["state_dict"], stored["extra"]["average"])
    for method in ("PromptSRC", "IVLP"):
        node = {"PROMPT_DEPTH_TEXT": 2, "PROMPT_DEPTH_VISION": 2, "N_CTX_TEXT": 4, "N_CTX_VISION": 4}
        trainer = make_trainer(method, clip_model, NAMES, node, settings={"MODEL.INIT_WEIGHTS": str(path)})
        assert equal(trainer.trained_state(), stored["extra"]["average"])
    former(path)  # whose state_dict holds the average
    trainer = make_trainer("PromptSRC", clip_model, NAMES, node, settings={"MODEL.INIT_WEIGHTS": str(path)})
    assert equal(trainer.trained_state(), stored["extra"]["average"])
    assert "evaluated" not in checkpoint(tmp_path / "a", "model.pth.tar-1")  # before the end there is none


@pytest.mark.parametrize(("weights", "told"), [
    (lambda self: {"shfit": torch.zeros(64)}, "gives 'shfit', which is not trained; trained are shift"),
    (lambda self: {"mean": torch.zeros(64)}, "gives 'mean', which is not trained"),
    (lambda self: {"shift": torch.zeros(1)}, "gives 'shift' with shape (1,); the trained tensor of that name has"),
    (lambda self: {"shift": 1.0}, "gives 'shift' with type float")])
def test_evaluated_weights_that_do_not_fit(weights, told, run, tmp_path, one_line, monkeypatch):
    monkeypatch.setattr(TRAINER_REGISTRY.get("Averaged"), "evaluated_weights", weights)
    assert f"Averaged.evaluated_weights {told}" in one_line(lambda: run("Averaged", tmp_path / "a"))


def asked_in(monkeypatch, epoch, part):
    """SIGTERM reaches the process in the evaluation of a part after an epoch (from 0)."""
    answer, inside = PromptTrainer._answer, []

    def interrupted(self, batch):
        if not inside and self.epoch == epoch and (part == "val") == (self.batches_done > 0):
            inside.append({name: p.detach().clone() for name, p in self.model.named_parameters()})
            os.kill(os.getpid(), signal.SIGTERM)
        return answer(self, batch)

    monkeypatch.setattr(PromptTrainer, "_answer", interrupted)
    return inside


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("method", ["Averaged", "PromptSRC"])
def test_a_stop_in_a_validation_keeps_what_is_trained(method, epoch, run, tmp_path, monkeypatch):
    words = ("TEST.FINAL_MODEL", "best_val", "TRAIN.CHECKPOINT_FREQ", 1)
    whole = run(method, tmp_path / "whole", *words)
    with monkeypatch.context() as patch:
        inside = asked_in(patch, epoch, "val")
        with pytest.raises(Terminated):
            run(method, tmp_path / "cut", *words)
    stored = checkpoint(tmp_path / "cut", "model-interrupted.pth.tar")
    assert equal(stored["state_dict"], checkpoint(tmp_path / "whole", f"model.pth.tar-{epoch + 1}")["state_dict"])
    evaluates_another = method == "Averaged" or epoch == 1
    assert equal(stored["state_dict"], inside[0]) is not evaluates_another
    assert run(method, tmp_path / "cut", *words)["metrics"] == whole["metrics"]
    assert same_logits(tmp_path / "whole", tmp_path / "cut")
    one, other = checkpoint(tmp_path / "cut"), checkpoint(tmp_path / "whole")
    assert equal(one["state_dict"], other["state_dict"])
    assert equal(one["extra"]["average"], other["extra"]["average"])


def test_a_stop_of_a_stream_keeps_what_is_trained(run, tmp_path, monkeypatch):
    """A method that trains, and in validations goes on learning from image to image."""
    cls = TRAINER_REGISTRY.get("Continual")
    monkeypatch.setattr(cls, "trains", True)
    words = ("TEST.FINAL_MODEL", "best_val", "DATALOADER.TEST.BATCH_SIZE", 4)
    whole = run("Continual", tmp_path / "whole", *words)
    answer, asked = PromptTrainer._answer, []

    def interrupted(self, batch):
        if asked == [] and self.batches_done and self.epoch == 1 and self.model.mean.abs().sum() > 0:
            asked.append(self.model.shift.detach().clone())
            os.kill(os.getpid(), signal.SIGTERM)
        return answer(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "_answer", interrupted)
        with pytest.raises(Terminated):
            run("Continual", tmp_path / "cut", *words)
    stored, expected = checkpoint(tmp_path / "cut", "model-interrupted.pth.tar"), checkpoint(tmp_path / "whole")
    assert equal(stored["state_dict"], expected["state_dict"])
    assert not torch.equal(asked[0], stored["state_dict"]["shift"])
    assert stored["precision"] == expected["precision"]
    assert run("Continual", tmp_path / "cut", *words)["metrics"] == whole["metrics"]
    assert same_logits(tmp_path / "whole", tmp_path / "cut")


def test_within_a_suspended_evaluation_all_is_as_trained(trainer_of):
    trainer, batch = trainer_of("Averaged"), images()
    trained, average = trainer.trained_state(), {"shift": torch.ones(64)}
    trainer.average = average
    with trainer.predicting():
        inside = trainer.logits_of(batch)
        with trainer._test_time.suspended():
            assert equal(trainer.trained_state(), trained)
        assert equal(trainer.trained_state(), average) and torch.equal(trainer.logits_of(batch), inside)
    assert equal(trainer.trained_state(), trained)


# ---- PromptSRC ----
def former(path):
    """Rewrite a PromptSRC checkpoint of the end of a training as earlier releases wrote it: the average in the place of
    the prompts."""
    stored = torch.load(path, weights_only=True)
    extra = stored["extra"]
    del stored["evaluated"]
    assert extra.pop("ended") and extra.pop("done") == extra["epochs"]
    extra["last"], stored["state_dict"] = stored["state_dict"], extra["average"]
    torch.save(stored, path)


def test_folders_of_earlier_releases_are_evaluated_and_gone_on_with(run, tmp_path):
    run("PromptSRC", tmp_path / "a", "OPTIM.LR_SCHEDULER", "single_step", "OPTIM.WARMUP_EPOCH", 0)
    words = ("--resume", tmp_path / "a", "OPTIM.LR_SCHEDULER", "single_step", "OPTIM.WARMUP_EPOCH", 0,
             "OPTIM.MAX_EPOCH", 3)
    run("PromptSRC", tmp_path / "longer", *words)
    former(tmp_path / "a" / "prompt_learner" / "model.pth.tar-2")
    run("PromptSRC", tmp_path / "eval", "--eval-only", "--model-dir", tmp_path / "a")
    run("PromptSRC", tmp_path / "former", *words)
    assert same_logits(tmp_path / "a", tmp_path / "eval") and same_logits(tmp_path / "longer", tmp_path / "former")
    assert equal(*(checkpoint(tmp_path / name, "model.pth.tar-3")["state_dict"] for name in ("longer", "former")))


def test_the_words_near_a_context_are_those_of_what_is_evaluated(run, tmp_path, monkeypatch, clip_model):
    from tools import interpret_prompt

    monkeypatch.setattr("training.towers.load_clip", lambda name: clip_model)
    monkeypatch.setattr(interpret_prompt, "load_clip", lambda name: clip_model)
    run("PromptSRC", tmp_path / "a", "OPTIM.LR", 5.0, "TRAIN.CHECKPOINT_FREQ", 1)
    ended = interpret_prompt.main([str(tmp_path / "a")])
    path = tmp_path / "a" / "prompt_learner" / "model.pth.tar-2"
    former(path)  # whose state_dict holds the average
    assert interpret_prompt.main([str(tmp_path / "a")]) == ended
    stored = torch.load(path, weights_only=True)
    stored["state_dict"] = stored["extra"]["last"]
    torch.save(stored, path)
    assert interpret_prompt.main([str(tmp_path / "a")]) != ended


# ---- several processes ----
@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(run, arguments, tmp_path):
    """They divide the images of a method that forgets them; of a stream, or of whole batches, each computes all."""
    more = ("DATALOADER.TEST.BATCH_SIZE", 4, "TEST.SAVE_LOGITS", True, "USE_CUDA", False)
    for method in ("Entropy", "Continual", "MeanOfBatch"):
        words = arguments(method, tmp_path / method / "2", "--plugin", PLUGIN, *more)
        subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                        "train.py", *words], check=True, cwd=ROOT, capture_output=True, timeout=300)
        found = run(method, tmp_path / method / "1", *more)
        one, two = (logits_of(tmp_path / method / number) for number in ("1", "2"))
        assert list(one) == list(two)
        # The class features are rounded otherwise, and what is learned from image to image makes more of it. Images
        # that are divided where they must not be change the logits by far more.
        largest = max(1.0, *(np.abs(row).max() for row in one.values()))
        assert max(np.abs(one[path] - two[path]).max() for path in one) < 1e-4 * largest, method
        several = json.loads((tmp_path / method / "2" / "results.json").read_text())
        assert found["metrics"] == several["metrics"] and several["processes"] == 2
