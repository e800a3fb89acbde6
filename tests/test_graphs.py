"""Training steps as graphs (training/graphs.py), on a recorder that stands in for a GPU's."""
import contextlib
import copy
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
from dassl.engine import TRAINER_REGISTRY, evaluation
from dassl.utils import InputError, NonFiniteError
from harness import make_trainer
from training import graphs
from training.once_again import OnceAgain
from training.recorders import CudaRecorder, Reads, recorder_for

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
    return copy.deepcopy({
        "trained": trainer.trained_state(), "optimizers": [part.state_dict() for pair in trainer.optimizers
                                                           for part in pair],
        "precision": trainer.precision.state_dict(), "extra": trainer.extra_state(),
        "passes": vars(trainer.towers.passes), "rng": torch.get_rng_state()})


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
    ("CoOp", {"CLASS_TOKEN_POSITION": "middle"}, {}), pytest.param("CoOp", {"PREC": "amp"}, {}, marks=pytest.mark.slow),
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
        trainer.precision.scale, trainer.towers.passes.counting = 2.0 ** 20, True
        first = make_steps(trainer, range(10))
        trainer.precision.scale = 2.0 ** 20
        return first + make_steps(trainer, range(10, 17)), state_of(trainer), trainer

    with as_on_a_gpu():
        (captured, after, trainer), (without, expected, _) = steps(True), steps(False)
    overflows = [number for number, said in enumerate(captured) if "overflow" in said]
    assert trainer._graphs.refused == "" and 0 in overflows and 10 in overflows  # of steps without, and of replays
    assert max(number for number in overflows if number < 10) < 7 and max(overflows) < 16
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


@pytest.mark.parametrize(("method", "full_in", "twice"), [
    ("CoOp", "trial", False), ("CoOp", "step", True), ("VPT", "step", True),
    *(pytest.param(method, full_in, False, marks=pytest.mark.slow) for method in ("CoOp", "VPT")
      for full_in in ("step", "later step"))])
def test_memory_that_does_not_suffice(method, full_in, twice, clip_model, monkeypatch, capsys):
    """Graphs are given up first: a step that fits without them is made, of the size that it had."""
    monkeypatch.setattr(OnceAgain, "possible", property(lambda self: self.trainer._graphs.held or not self.spent))
    # The calls of the method's step: a step, the trial of the next, it itself, ...
    full = [{"trial": 2, "step": 3, "later step": 5}[full_in]]
    full += [full[0] + 1] * twice
    numbers = [*range(3), *range(4, 9)]
    with as_on_a_gpu():
        trainer, without = (trainer_of(method, clip_model, static) for static in (True, False))
        made, calls = trainer.training_step, []

        def limited(batch):
            calls.append(trainer._graphs._now is not None)
            if len(calls) in full:
                trainer.compute_loss(batch)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return made(batch)

        monkeypatch.setattr(trainer, "training_step", limited)
        if method == "VPT" and twice:  # its text is frozen, so that no pieces can be smaller
            with pytest.raises(torch.OutOfMemoryError):
                make_steps(trainer, numbers)
            return
        found, expected = (make_steps(each, numbers[:3]) + make_steps(each, [3], size=5) + make_steps(each, numbers[3:])
                           for each in (trainer, without))
    torch.testing.assert_close((found, trainer.trained_state()), (expected, without.trained_state()), rtol=1e-5,
                               atol=1e-6)
    assert calls[:3] == [False, True, False]
    said = capsys.readouterr().out
    reason = "CUDA out of memory" if full_in == "trial" else "the GPU's memory does not suffice for a step beside them"
    assert said.count(f"Note: training steps are not captured as graphs: {reason}") == 1
    assert not trainer._graphs.usable and not trainer._graphs.held
    assert trainer._once_again.spent is twice and said.count("smaller pieces") == twice


def give_test_images(trainer, monkeypatch):
    """Two batches of them."""
    trainer.test_loader = [tiny_clip.batch("test", number, 4, len(NAMES)) for number in (0, 1)]
    monkeypatch.setattr(evaluation, "divided", lambda *_: contextlib.nullcontext(lambda number: 4))


def test_memory_that_does_not_suffice_for_an_evaluation(clip_model, monkeypatch, capsys):
    with as_on_a_gpu():
        trainer = trainer_of("CoOp", clip_model)
        answers, tries = trainer.logits_of, []

        def limited(batch):
            tries.append(1)
            if len(tries) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return answers(batch)

        give_test_images(trainer, monkeypatch)
        monkeypatch.setattr(trainer, "logits_of", limited)
        with pytest.raises(torch.OutOfMemoryError):
            trainer.test()
        make_steps(trainer, range(4))
        tries.clear()
        accuracy = trainer.test()
        assert len(tries) == 3 and not trainer._graphs.held
        assert "does not suffice for an evaluation beside them" in capsys.readouterr().out
        assert accuracy == trainer.test()


def test_an_evaluation_between_steps_changes_nothing(clip_model, monkeypatch):
    """One after each epoch, as a validation; with Adam, and a rate that changes."""
    found = []
    with as_on_a_gpu():
        for static in (True, False):
            trainer = trainer_of("PromptSRC", clip_model, static, settings={"OPTIM.NAME": "adamw"})
            give_test_images(trainer, monkeypatch)
            said = []
            for epoch in range(4):
                trainer.set_model_mode("train")
                said += make_steps(trainer, range(PER_EPOCH * epoch, PER_EPOCH * (epoch + 1)))
                said.append(trainer.test())
            found.append((said, state_of(trainer)))
            assert trainer._graphs.refused == ("" if static else "TRAIN.GRAPHS is off")
    assert same(*found)


def test_a_training_that_goes_on_ends_the_same(clip_model, tmp_path):
    """Stopped in the middle of an epoch, behind the first steps in graphs; it begins again with steps without."""
    with as_on_a_gpu():
        whole, cut, resumed = (trainer_of("MetaPrompt", clip_model) for _ in range(3))
        make_steps(whole, range(12))
        make_steps(cut, range(7))
        cut.batches_done = 2
        cut.save_model(0, str(tmp_path), model_name="model-interrupted.pth.tar")
        assert resumed.resume_model_if_exist(str(tmp_path)) == 1 and resumed.first_batch == 2
        make_steps(resumed, range(7, 12))
        assert all(trainer._graphs.held for trainer in (whole, cut, resumed))
    assert same(resumed.trained_state(), whole.trained_state())


def test_updates_that_are_not_compared_are_not_trusted(clip_model, monkeypatch):
    """A step that changes what is trained by itself would keep the rate that it was captured with."""
    with as_on_a_gpu():
        trainer = trainer_of("CoOp", clip_model)

        def training_step(batch):
            loss, _ = trainer.compute_loss(batch)
            trainer.gradients(loss, trainer.trainables)
            return {"loss": loss.detach()}

        trainer.watch.end()
        monkeypatch.setattr(trainer, "training_step", training_step)
        make_steps(trainer, range(3))
        assert trainer._graphs.refused == "apply_gradients makes no update in them"


def test_the_reason_is_the_first_line_of_an_error(clip_model, monkeypatch):
    with as_on_a_gpu():
        trainer = trainer_of("CoOp", clip_model)
        monkeypatch.setattr(Tape, "end", lambda self: (_ for _ in ()).throw(RuntimeError(
            "CUDA error: operation not permitted when stream is capturing\nCUDA kernel errors might be ...\nCompile")))
        make_steps(trainer, range(2))
        assert trainer._graphs.refused == "CUDA error: operation not permitted when stream is capturing"


def test_a_trial_that_is_broken_off_changes_nothing(clip_model, monkeypatch):
    with as_on_a_gpu():
        trainer = trainer_of("CoOp", clip_model)
        make_steps(trainer, range(1))
        before, update = state_of(trainer), trainer.make_update

        def stopped(*args):
            update(*args)
            raise KeyboardInterrupt

        monkeypatch.setattr(trainer, "make_update", stopped)
        with pytest.raises(KeyboardInterrupt):
            make_steps(trainer, [1])
        assert same(state_of(trainer), before) and trainer._graphs._now is None is trainer._graphs._made


def test_a_schedule_of_another_kind_is_not_put_back(clip_model):
    with as_on_a_gpu():
        trainer = trainer_of("CoOp", clip_model)
        (optimizer, _), = trainer.optimizers
        kind = type("Warmup", (torch.optim.lr_scheduler.LambdaLR,), {})
        trainer.optimizers = [(optimizer, kind(optimizer, lambda epoch: 1.0))]
        assert not trainer._graphs.usable and "schedule" in trainer._graphs.refused


def test_step_inputs_have_names_of_their_own(clip_model, monkeypatch):
    trainer = trainer_of("CoOp", clip_model)
    monkeypatch.setattr(trainer, "step_inputs", lambda batch: {"label": batch["label"]})
    with pytest.raises(InputError, match="step_inputs gives label, which the batch has already"):
        make_steps(trainer, [0])


def test_what_a_graph_reads_stays():
    """Also what nobody else keeps: an index of a cache that was emptied."""
    index, weight = torch.tensor([1, 0]), torch.ones(2)
    with Reads() as reads:
        picked = (weight * 2).index_select(0, index).view(1, 2)
        picked.add_(1).sum()
    kept = {memory.data_ptr() for memory in reads.memory.values()}
    assert kept == {tensor.untyped_storage().data_ptr() for tensor in (index, weight)}


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

        def capture_begin(self, pool=None, capture_error_mode="global"):
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
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *words: calls.append(("free", *words)),
                        raising=False)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: calls.append("zeros") or setattr(Graph, "valid", True))
    recorder = recorder_for(torch.device("cuda"))
    assert isinstance(recorder, CudaRecorder)
    index = torch.tensor([1])
    recorder.begin()
    torch.ones(2).index_select(0, index)
    replay = recorder.end()
    replay()
    kept, *_ = replay.__defaults__  # for as long as the graph is there
    assert index.untyped_storage().data_ptr() in kept.memory
    begun = ["synchronize", "in a stream", ("begin", "pool", "thread_local")]
    assert calls == [*begun, "end", "out of a stream", "replay"]
    recorder.abandon()
    assert calls[6:] == []
    recorder.begin()
    monkeypatch.setattr(Graph, "valid", False)
    recorder.abandon()
    assert calls[6:] == [*begun, "end", "out of a stream", ("free", 3, "pool"), "in a stream",
                         ("begin", None, "global"), "zeros", "end", "out of a stream"]
