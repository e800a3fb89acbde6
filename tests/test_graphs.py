"""Training steps as graphs (training/graphs.py), on a recorder that stands in for a GPU's."""
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from tape import Tape, as_on_a_gpu
from test_training_options import METHODS, SMALL
from torch.utils._pytree import tree_flatten

import tiny_clip
import train
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import NonFiniteError
from harness import make_trainer
from training import graphs
from training.once_again import OnceAgain
from training.recorders import CudaRecorder, recorder_for

NAMES = ["cat", "dog", "alarm clock", "big red car", "cow", "ape", "ant", "mouse trap"]
PER_EPOCH = 5
# Of the methods that are trained, those whose steps are not the same for each batch: parts of a batch by index, an
# iteration that ends when it is close enough, stages, an average whose weights the host knows.
NOT_STATIC = {"CLIPood", "DPL", "PLOT", "PLOTPP", "ProMetaR", "TwoSFS"}
# One update and two, two gradients, dropout, tokens that come in, towers that are trained.
OF_EACH_SORT = ("CoOp", "MetaPrompt", "ProGrad", "CLIPLoRA", "MMRL", "FineTune")
IN_PIECES = {"MetaPrompt": 2}  # other methods have one update per step


def trainer_of(method, clip_model, static=True, options=None, settings=None, **more):
    """A trainer whose epochs have PER_EPOCH batches."""
    settings = {"TRAIN.GRAPHS": "auto" if static else "off", **(settings or {})}
    trainer = make_trainer(method, clip_model, NAMES, {**SMALL.get(method, {}), **(options or {})}, settings=settings,
                           **more)
    trainer.num_batches = PER_EPOCH
    return trainer


def make_steps(trainer, numbers, size=8, domains=1):
    """What some steps say, by the number of the batch in the training."""
    torch.manual_seed(0)  # of what a step draws
    found = []
    for number in numbers:
        trainer.epoch, trainer.batch_idx = divmod(number, PER_EPOCH)
        found.append(trainer.forward_backward(tiny_clip.batch("graphs", number, size, len(NAMES), domains)))
    return found


def state_of(trainer):
    """All that a run would store of the training."""
    return {"trained": trainer.trained_state(), "optimizers": [part.state_dict() for pair in trainer.optimizers
                                                               for part in pair],
            "precision": trainer.precision.state_dict(), "extra": trainer.extra_state(),
            "passes": vars(trainer.towers.passes), "rng": torch.get_rng_state()}


def same(first, second):
    (ours, form), (theirs, other) = tree_flatten(first), tree_flatten(second)
    return form == other and all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(ours, theirs))


def test_the_methods_that_say_it():
    train.discover()
    says = {name for name in METHODS if vars(TRAINER_REGISTRY.get(name)).get("static_step")}
    assert says == set(METHODS) - NOT_STATIC
    section = (ROOT / "trainers" / "README.md").read_text().split("## Graphs\n")[1].split("\n## ")[0]
    listed, others = (set(re.findall(r"\w+", part)) for part in section.split("The steps of the others"))
    assert listed & set(METHODS) == says and others & set(METHODS) == NOT_STATIC


@pytest.mark.parametrize("method", [name if name in OF_EACH_SORT else pytest.param(name, marks=pytest.mark.slow)
                                    for name in sorted(set(METHODS) - NOT_STATIC)])
def test_steps_in_graphs_are_the_steps_without(method, clip_model):
    with as_on_a_gpu() as tapes:
        captured, without = (trainer_of(method, clip_model, static) for static in (True, False))
        for trainer in (captured, without):
            trainer.towers.passes.counting = True
        assert same(make_steps(captured, range(8)), make_steps(without, range(8)))
    assert captured._graphs.refused == "" and without._graphs.refused == "TRAIN.GRAPHS is off"
    (graph,) = captured._graphs.captured.values()
    assert graph.trials == graphs.TRIALS and len(tapes) == 1
    assert [piece.update is not None for piece in graph.pieces] == [*[True] * IN_PIECES.get(method, 1), False]
    assert min(tapes[0].pieces[:-1]) > 20 and tapes[0].pieces[-1] == 0  # nothing is left behind the last update
    assert same(state_of(captured), state_of(without))


@pytest.mark.parametrize(("method", "options", "more"), [
    ("MetaPrompt", {"SPLIT": "domain"}, {"domains": 3}), ("MetaPrompt", {"ORDER": 2}, {}),
    pytest.param("MetaPrompt", {"SPLIT": "domain", "ORDER": 2, "PREC": "amp"}, {"domains": 3}, marks=pytest.mark.slow),
    ("CoOp", {"CSC": True}, {}),
    ("CoOp", {"CLASS_TOKEN_POSITION": "middle"}, {}), ("CoOp", {"PREC": "amp"}, {}),
    ("CoOp", {}, {"settings": {"TRAIN.TEXT_MEMORY_MB": 1}}), ("CoOp", {}, {"settings": {"OPTIM.CLIP_GRAD_NORM": 0.01}}),
    ("KgCoOp", {}, {"settings": {"OPTIM.NAME": "adamw"}}), ("MMA", {"ADAPTER_START": 0}, {})])
def test_options_that_change_the_operations(method, options, more, clip_model):
    with as_on_a_gpu():
        captured, without = (trainer_of(method, clip_model, static, options, **more) for static in (True, False))
        domains = more.get("domains", 1)
        assert same(*(make_steps(trainer, range(7), domains=domains) for trainer in (captured, without)))
    assert captured._graphs.refused == "" and [*captured._graphs.captured.values()][0].trials == graphs.TRIALS
    assert same(state_of(captured), state_of(without))


def test_batches_that_lack_a_domain_share_the_graphs(clip_model):
    """Batches of two of three domains have the shapes of the others."""
    found = []
    with as_on_a_gpu():
        for static in (True, False):
            trainer = trainer_of("MetaPrompt", clip_model, static, {"SPLIT": "domain"}, domains=3)
            summaries = []
            for number in range(8):
                batch = tiny_clip.batch("graphs", number, 9, len(NAMES), 3)
                batch["domain"][batch["domain"] == number % 4] = 3 - number % 4 if number % 4 else 1
                summaries.append(trainer.forward_backward(batch))
            found.append((summaries, trainer.trained_state()))
            if static:
                assert trainer._graphs.refused == "" and len(trainer._graphs.captured) == 1
    assert same(*found)


def test_an_absent_domain_counts_for_nothing(clip_model):
    """The same batch, with two and with three domains that could be in it."""
    found = []
    for domains in (2, 3):
        trainer = trainer_of("MetaPrompt", clip_model, False, {"SPLIT": "domain"}, domains=domains)
        found.append((make_steps(trainer, range(2), domains=2), trainer.trained_state()))
        assert [loss > 0 for loss in map(float, trainer.held_out_losses)] == [True, True, *[False] * (domains - 2)]
    torch.testing.assert_close(*found)


def test_graphs_begin_with_the_fourth_step_of_a_shape(clip_model, monkeypatch):
    steps = []
    with as_on_a_gpu():
        trainer = trainer_of("CoOp", clip_model)
        made = trainer.training_step
        monkeypatch.setattr(trainer, "training_step", lambda batch: steps.append(len(batch["img"])) or made(batch))
        make_steps(trainer, range(6))
        assert steps == [8, 8, 8, 8]  # one without, one that is captured, and the two that are compared
        make_steps(trainer, [6], size=3)
        make_steps(trainer, range(7, 9))
        assert steps[4:] == [3]
        make_steps(trainer, range(9, 13), size=3)
        assert steps[5:] == [3] * 3 and len(trainer._graphs.captured) == graphs.SHAPES
        make_steps(trainer, range(13, 18), size=5)  # a shape too many
        assert steps[8:] == [5] * 5 and trainer._graphs.refused == ""


def test_a_gradient_that_overflows_ends_the_batch(clip_model):
    """In half precision the first batches lower the scale of the loss, later ones may again."""
    def steps(static):
        trainer = trainer_of("CoOp", clip_model, static, {"PREC": "fp16"})
        trainer.precision.scale = 2.0 ** 22
        first = make_steps(trainer, range(14))
        trainer.precision.scale = 2.0 ** 22
        return first + make_steps(trainer, range(14, 24)), state_of(trainer), trainer

    with as_on_a_gpu():
        (captured, after, trainer), (without, expected, _) = steps(True), steps(False)
    overflows = [number for number, said in enumerate(captured) if "overflow" in said]
    assert trainer._graphs.refused == "" and min(overflows) == 0 and 14 in overflows
    assert max(overflows[:overflows.index(14)]) < 9 and max(overflows) < 23
    assert same(captured, without) and same(after, expected)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_loss_that_is_not_finite_is_named(number, clip_model):
    """In a trial or in a replay as in a step without graphs, and before an update."""
    with as_on_a_gpu():
        trainer = trainer_of("CoOp", clip_model)
        make_steps(trainer, range(number))
        before = trainer.trained_state()
        batch = tiny_clip.batch("graphs", number, 8, len(NAMES))
        batch["img"][3] = torch.nan
        trainer.batch_idx = number
        with pytest.raises(NonFiniteError, match=f"the loss is nan in epoch 1, batch {number + 1}, at .*, on a.png, b"):
            trainer.forward_backward({**batch, "impath": ["a.png", "b.png"]})
        assert same(trainer.trained_state(), before) and trainer._graphs.refused == ""


@pytest.mark.parametrize(("loss_of", "reason"), [
    (lambda trainer, loss: loss * loss.item(), "_local_scalar_dense"),
    (lambda trainer, loss: loss * torch.tensor([2.0])[0], "lift_fresh"),
    (lambda trainer, loss: loss * (1 + trainer.batch_idx), "their gradients are not those")])
def test_what_cannot_be_captured_is_made_as_before(loss_of, reason, clip_model, monkeypatch, capsys):
    coop = TRAINER_REGISTRY.get("CoOp")

    def compute_loss(trainer, batch):
        loss, logits = super(coop, trainer).compute_loss(batch)
        return loss_of(trainer, loss), logits

    monkeypatch.setattr(coop, "compute_loss", compute_loss, raising=False)
    with as_on_a_gpu():
        captured, without = (trainer_of("CoOp", clip_model, static) for static in (True, False))
        capsys.readouterr()
        assert same(*(make_steps(trainer, range(6)) for trainer in (captured, without)))
    said = capsys.readouterr().out
    assert said.count("Note: training steps are not captured as graphs: ") == 1 and reason in said
    assert said.count("\n") == 1 and reason in captured._graphs.refused and not captured._graphs.captured
    assert same(state_of(captured), state_of(without))


def test_a_subclass_must_say_it_again(clip_model):
    train.discover()
    coop = TRAINER_REGISTRY.get("CoOp")
    for said, reason in (({}, "Heir does not say static_step"), ({"static_step": True}, "")):
        heir = type("Heir", (coop,), {**said, "node": property(lambda self: self.cfg.TRAINER.COOP)})
        TRAINER_REGISTRY.register(heir, force=True)
        with as_on_a_gpu():
            trainer = make_heir(heir, clip_model)
            make_steps(trainer, range(2))
            assert trainer._graphs.refused == reason


def make_heir(heir, clip_model):
    heir.extend_cfg = staticmethod(lambda cfg: cfg.TRAINER.update({"HEIR": cfg.TRAINER.get("HEIR") or extended(cfg)}))
    return trainer_of("Heir", clip_model)


def extended(cfg):
    TRAINER_REGISTRY.get("CoOp").extend_cfg(cfg)
    return cfg.TRAINER.COOP


def test_the_released_variant_and_the_cpu_have_no_graphs(clip_model):
    with as_on_a_gpu() as tapes:
        trainer = trainer_of("MetaPrompt", clip_model, options={"VARIANT": "released"})
        make_steps(trainer, range(2))
        assert trainer._graphs.refused == "MetaPrompt does not say static_step" and not tapes
    trainer = trainer_of("CoOp", clip_model)
    make_steps(trainer, range(2))
    assert trainer._graphs.refused == "cpu has no graphs"
    assert recorder_for(torch.device("cpu")) is None


def test_several_processes_have_no_graphs(clip_model, monkeypatch):
    with as_on_a_gpu() as tapes:
        trainer = trainer_of("CoOp", clip_model)
        monkeypatch.setattr(trainer, "ranks", SimpleNamespace(world_size=2))
        assert not trainer._graphs.usable and trainer._graphs.refused.startswith("several processes") and not tapes


def test_what_is_forgotten_is_captured_anew(clip_model):
    with as_on_a_gpu() as tapes:
        trainer = trainer_of("CoOp", clip_model)
        make_steps(trainer, range(4))
        trainer._graphs.forget()
        assert not trainer._graphs.captured
        make_steps(trainer, range(4, 8))
        assert len(tapes) == 2 and [*trainer._graphs.captured.values()][0].trials == graphs.TRIALS


@pytest.mark.parametrize("full_in", ["trial", "step", "later step"])
def test_memory_that_does_not_suffice(full_in, clip_model, monkeypatch, capsys):
    """For graphs: there are none. For the step: it is made again with smaller pieces, which are captured anew."""
    monkeypatch.setattr(OnceAgain, "possible", property(lambda self: not self.spent))
    with as_on_a_gpu() as tapes:
        trainer, without = (trainer_of("CoOp", clip_model, static) for static in (True, False))
        made, calls = trainer.training_step, []
        full = {"trial": 2, "step": 3, "later step": 5}[full_in]  # calls: a step, the trial of the next, it itself, ...

        def limited(batch):
            calls.append(trainer._graphs._now is not None)
            summary = made(batch) if len(calls) != full or full_in == "trial" else trainer.compute_loss(batch)
            if len(calls) == full:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return summary

        monkeypatch.setattr(trainer, "training_step", limited)
        found = make_steps(trainer, range(3)) + make_steps(trainer, [3], size=5) + make_steps(trainer, range(4, 9))
        expected = make_steps(without, range(3)) + make_steps(without, [3], size=5) + make_steps(without, range(4, 9))
    torch.testing.assert_close((found, trainer.trained_state()), (expected, without.trained_state()), rtol=1e-5,
                               atol=1e-6)
    assert calls[:3] == [False, True, False]
    said = capsys.readouterr().out
    if full_in == "trial":
        assert "are not captured as graphs: CUDA out of memory" in said and not trainer._once_again.spent
        assert len(tapes) == 1 and not trainer._graphs.usable
    else:
        assert "does not suffice for a step" in said and trainer._once_again.spent and len(tapes) == 2
        assert any(graph and graph.trials == graphs.TRIALS for graph in trainer._graphs.captured.values())


def test_the_tape_forbids_and_does_what_a_graph_does():
    tape, x = Tape(), torch.arange(3.0)
    tape.begin()
    doubled = x * 2
    total = doubled.view(3, 1).sum()
    doubled.add_(1)
    replay = tape.end()
    assert doubled.isnan().all() and total.isnan() and tape.pieces == [4]
    x += 1
    for _ in range(2):
        replay()
        assert doubled.tolist() == [3, 5, 7] and total == 12
    for forbidden in (lambda: float(x.sum()), lambda: x[x > 1], lambda: torch.tensor([1.0]), lambda: x.add_(1)):
        tape.begin()
        with pytest.raises((RuntimeError, AssertionError)):
            forbidden()
        tape.abandon()
    assert x.tolist() == [1, 2, 3]


def test_a_cuda_graph_is_taken_on_a_stream_of_its_own(monkeypatch):
    """The calls that are made of torch, in their order; a capture that fails is ended, too."""
    calls = []

    class Graph:
        valid = True

        def capture_begin(self, pool, capture_error_mode):
            calls.append(("begin", pool, capture_error_mode))

        def capture_end(self):
            calls.append("end")
            if not self.valid:
                raise RuntimeError("operation failed due to a previous error during capture")

        def replay(self):
            calls.append("replay")

    class Entered:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            calls.append(f"in {self.name}")

        def __exit__(self, *error):
            calls.append(f"out of {self.name}")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "a stream")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "stream", Entered)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: Entered("a capture that is valid"))
    monkeypatch.setattr(torch, "zeros", lambda *size, device: calls.append("zeros"))
    recorder = recorder_for(torch.device("cuda"))
    assert isinstance(recorder, CudaRecorder)
    recorder.begin()
    recorder.end()()
    begun = ["synchronize", "in a stream", ("begin", "pool", "thread_local")]
    assert calls == [*begun, "end", "out of a stream", "replay"]
    recorder.abandon()
    assert calls[6:] == []
    recorder.begin()
    monkeypatch.setattr(Graph, "valid", False)
    recorder.abandon()
    assert calls[6:] == [*begun, "end", "out of a stream", "in a capture that is valid", "zeros",
                         "out of a capture that is valid"]
