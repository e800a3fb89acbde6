"""Training steps as graphs: a GPU gets the operations of a step at once, and does not wait until each is launched.

A step of a method that says `static_step` is captured in pieces, one in front of each update. Updates, and what needs a
number (whether a loss is finite, whether a gradient has overflowed), stay with the host, between two pieces: they are
what they are without graphs. The first step of a shape is made without; so are the next two (and those in which a
gradient overflows), each beside a trial with graphs, whose gradients must be the same.
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from dassl.engine.part import OfTrainer
from dassl.optim import FormulaSchedule
from dassl.utils import NonFiniteError, get_rng_state, set_rng_state
from prompting.precision import GradientOverflow, require_now
from training.batches import Batch
from training.recorders import Recorder, recorder_for
from training.test_time import Snapshot

if TYPE_CHECKING:
    from training.prompt_trainer import PromptTrainer

SHAPES = 2  # of batches, that have graphs of their own
TRIALS = 2  # steps that are made with and without graphs, and compared
ALLOWED = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}  # relative differences of the gradients
Update = tuple[Sequence[Tensor], Sequence[Tensor], Any]  # the arguments of `make_update`
Condition = tuple[Tensor, Callable[[], None]]


@dataclass
class Piece:
    """What is captured up to an update, or behind the last. holds: whether each condition does, (n,); failed: what is
    done where it does not; update: what is then updated; images, texts: passes through the towers."""

    replay: Callable[[], None]
    holds: Tensor | None
    failed: list[Callable[[], None]]
    update: Update | None
    images: int
    texts: int

    def run(self, make_update: Callable[..., None]) -> None:
        self.replay()
        if self.holds is not None:
            for holds, failed in zip(self.holds.tolist(), self.failed):
                if not holds:
                    failed()
        if self.update is not None:
            make_update(*self.update)


@dataclass
class Captured:
    """The graphs of a step. batch: the tensors that they read; summary: the numbers that they leave."""

    batch: Batch
    pieces: list[Piece] = field(default_factory=list)
    summary: Mapping[str, Any] = field(default_factory=dict)
    trials: int = 0  # that have agreed

    def take(self, batch: Batch) -> None:
        """Put a batch in the place of the one before."""
        for name, value in batch.items():
            for there, new in zip(_tensors(self.batch[name]), _tensors(value)):
                there.copy_(new, non_blocking=True)


@dataclass
class Made:
    """What a step has done: the gradients of its updates, and whether one overflowed."""

    gradients: list[Tensor] = field(default_factory=list)
    overflow: bool = False

    def note(self, gradients: Sequence[Tensor]) -> None:
        self.gradients += [gradient.detach().clone() for gradient in gradients]

    def differs_from(self, other: Made, allowed: float) -> bool:
        """Whether the norm of the difference of any gradient is more than so much of the other's norm."""
        return len(self.gradients) != len(other.gradients) or any(
            not (ours - theirs).norm() <= allowed * theirs.norm()
            for ours, theirs in zip(self.gradients, other.gradients))


class StepGraphs(OfTrainer["PromptTrainer"]):
    """Makes the training steps of a trainer, as graphs where that can be done (`TRAIN.GRAPHS`).

    Attributes:
        captured: {shapes of a batch: its graphs, or None where one step was made without}.
        refused: why no graphs are made; "" where they are, None before that is known.
        recorder: what captures.
    """

    def __init__(self, trainer: PromptTrainer) -> None:
        super().__init__(trainer)
        self.captured: dict[Hashable, Captured | None] = {}
        self.refused: str | None = None
        self.recorder: Recorder | None = None
        self._now: Captured | None = None  # what is being captured
        self._conditions: list[Condition] = []
        self._counted = 0, 0  # passes when the piece began
        self._made: Made | None = None  # what notes the gradients of updates

    # ---- what a step calls ----
    def require(self, holds: Tensor, failed: Callable[[], None]) -> None:
        """Call `failed`, which may raise, unless a condition () holds: now or, in a capture, before the next update."""
        if self._now is None:
            require_now(holds, failed)
        else:
            self._conditions.append((holds, failed))

    def update(self, gradients: Sequence[Tensor], tensors: Sequence[Tensor], optimizer: Any) -> None:
        """The trainer's `make_update`; in a capture behind the piece that ends here."""
        if self._now is None:
            self._make_update(gradients, tensors, optimizer)
        else:
            self._end_piece((gradients, tensors, optimizer))
            self._begin_piece()

    def _make_update(self, gradients: Sequence[Tensor], tensors: Sequence[Tensor], optimizer: Any) -> None:
        if self._made is not None:
            self._made.note(gradients)
        self.trainer.make_update(gradients, tensors, optimizer)

    # ---- steps ----
    def step(self, batch: Batch) -> Mapping[str, Any]:
        """The numbers of the trainer's `training_step` of a batch on the device."""
        if not self.usable:
            return self.trainer._once_again.step(batch)
        shapes = shapes_of(batch)
        if shapes not in self.captured or not self.trainer.watch.over:
            if len(self.captured) < SHAPES:
                self.captured[shapes] = None
            return self.trainer._once_again.step(batch)
        captured = self.captured[shapes]
        if captured is not None and captured.trials >= TRIALS:
            return self._replay(captured, batch)
        return self._compared(shapes, batch)

    @property
    def usable(self) -> bool:
        """Whether steps are made as graphs, as far as is known."""
        if self.refused is None:
            self.refused = self._why_not()
        return not self.refused

    def _why_not(self) -> str:
        trainer = self.trainer
        if trainer.cfg.TRAIN.GRAPHS != "auto":
            return "TRAIN.GRAPHS is off"
        if not trainer.steps_are_static:
            return f"{type(trainer).__name__} does not say static_step"
        if trainer.ranks.world_size > 1:
            return "several processes exchange what they compute"
        if not all(_can_be_put_back(schedule) for _, schedule in trainer.optimizers):
            return "a learning-rate schedule is of another kind than torch's"
        self.recorder = recorder_for(trainer.device)
        return "" if self.recorder else f"{trainer.device.type} has no graphs"

    def forget(self) -> None:
        """Give back the memory of the graphs; steps that come are captured anew. For the end of a training, and where
        what the steps compute has changed."""
        self.captured.clear()
        self.recorder, self.refused = None, self.refused or None

    @property
    def held(self) -> bool:
        """Whether graphs are there, and their memory with them."""
        return any(captured is not None for captured in self.captured.values())

    def refuse(self, why: str) -> None:
        """Make no graphs any more, give back the memory of those there are, and say so."""
        self.refused = why
        self.forget()
        self.trainer.note(f"Note: training steps are not captured as graphs: {why}")

    def _replay(self, captured: Captured, batch: Batch) -> Mapping[str, Any]:
        captured.take(batch)
        for piece in captured.pieces:
            self.trainer.towers.passes.add(piece.images, piece.texts)
            piece.run(self._make_update)
        return captured.summary

    # ---- trials ----
    def _compared(self, shapes: Hashable, batch: Batch) -> Mapping[str, Any]:
        """A step without graphs. Before it the same one is tried with them."""
        trial, why = self._trial(shapes, batch)
        self._made = made = Made()
        try:
            summary = self.trainer._once_again.step(batch)
        except GradientOverflow:
            made.overflow = True
            self._judge(shapes, trial, made, why)
            raise
        finally:
            self._made = None
        self._judge(shapes, trial, made, why)
        return summary

    def _judge(self, shapes: Hashable, trial: Made, made: Made, why: str) -> None:
        """Keep the graphs of a trial or refuse all. made: what the step has done; why: the trial came to no end."""
        same = trial.overflow == made.overflow
        if same and not made.overflow:
            same = not trial.differs_from(made, ALLOWED[self.trainer.precision.dtype])
        if not why and not made.overflow and not made.gradients:
            why = "apply_gradients makes no update in them"  # and whatever does was not compared
        if why or not same:
            self.refuse(why or "their gradients are not those of the same step without graphs")
        elif (captured := self.captured.get(shapes)) is not None and not made.overflow:
            captured.trials += 1

    def _trial(self, shapes: Hashable, batch: Batch) -> tuple[Made, str]:
        """What a step does with graphs, which are made if there are none, and "" or why there can be none. Everything
        is put back as it was."""
        made, why, before = Made(), "", None
        try:
            before, self._made = _Before(self.trainer), made
            if (captured := self.captured[shapes]) is None:
                self.captured[shapes] = self.capture(batch)
            else:
                self._replay(captured, batch)
        except GradientOverflow:
            made.overflow = True
        except NonFiniteError:
            pass  # the step itself will say so, too
        except Exception as error:  # noqa: BLE001  # whatever it is, it may not come without graphs
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        finally:
            self._made = None
            if before is not None:
                before.put_back(self.trainer)
        return made, why

    def capture(self, batch: Batch) -> Captured:
        """The graphs of a step, each of which is done as soon as it is captured."""
        passes = self.trainer.towers.passes
        self._now = captured = Captured({name: _copied(value) for name, value in batch.items()})
        counting, passes.counting = passes.counting, True
        try:
            self._begin_piece()
            captured.summary = self.trainer.training_step(captured.batch)
            self._end_piece(None)
            return captured
        finally:
            assert self.recorder is not None
            self.recorder.abandon()
            self._now, self._conditions, passes.counting = None, [], counting

    def _begin_piece(self) -> None:
        assert self.recorder is not None
        passes = self.trainer.towers.passes
        self._conditions, self._counted = [], (passes.images, passes.texts)
        self.recorder.begin()

    def _end_piece(self, update: Update | None) -> None:
        assert self.recorder is not None and self._now is not None
        holds = torch.stack([holds for holds, _ in self._conditions]) if self._conditions else None
        passes, (images, texts) = self.trainer.towers.passes, self._counted
        piece = Piece(self.recorder.end(), holds, [failed for _, failed in self._conditions], update,
                      passes.images - images, passes.texts - texts)
        self._now.pieces.append(piece)
        piece.run(self._make_update)


class _Before:
    """All that a training step may change, as it was when this was made."""

    def __init__(self, trainer: PromptTrainer) -> None:
        self.snapshot, self.rng = Snapshot(trainer), get_rng_state()
        self.optimizers = [(_state_of(optimizer), _state_of(schedule)) for optimizer, schedule in trainer.optimizers]
        passes, budget = trainer.towers.passes, trainer._budget
        self.counts = passes.images, passes.texts, passes.counting, budget.updates

    def put_back(self, trainer: PromptTrainer) -> None:
        self.snapshot.put_back(trainer)
        for (optimizer, schedule), states in zip(trainer.optimizers, self.optimizers):
            optimizer.load_state_dict(states[0])
            schedule.load_state_dict(states[1])
        for tensor in trainer.trainables:
            tensor.grad = None
        passes, budget = trainer.towers.passes, trainer._budget
        passes.images, passes.texts, passes.counting, budget.updates = self.counts
        set_rng_state(self.rng)


def _can_be_put_back(schedule: Any) -> bool:
    """Whether `load_state_dict` brings a schedule back: that of a plugin may hold its optimizer or another schedule."""
    return isinstance(schedule, FormulaSchedule) or type(schedule).__module__ == "torch.optim.lr_scheduler"


def _state_of(part: Any) -> dict[str, Any]:
    """The state of an optimizer or a schedule, which later steps leave as it is."""
    state: dict[str, Any] = copy.deepcopy(part.state_dict())
    return state


def shapes_of(batch: Batch) -> Hashable:
    """The names, shapes and types of a batch's tensors."""
    return tuple((name, *((tuple(tensor.shape), tensor.dtype) for tensor in _tensors(value)))
                 for name, value in sorted(batch.items()))


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in one entry of a batch."""
    return [leaf for leaf in tree_leaves(value) if torch.is_tensor(leaf)]


def _copied(value: Any) -> Any:
    """An entry of a batch with tensors of its own."""
    return tree_map_only(Tensor, torch.clone, value)
