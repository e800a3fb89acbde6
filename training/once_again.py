"""A training step for which the memory of the GPU does not suffice: made once again, with its classes in smaller pieces
(`prompting.text_chunks`)."""
from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dassl.engine.part import OfTrainer
from dassl.utils.random import get_rng_state, set_rng_state
from training.batches import Batch

if TYPE_CHECKING:
    from training.prompt_trainer import PromptTrainer

SMALLER = 4  # the pieces are so many times smaller


class OnceAgain(OfTrainer["PromptTrainer"]):
    """Makes the steps of a PromptTrainer; once in a run a step may begin again.

    Attributes:
        spent: whether it has. The text tower's `activation_bytes` are smaller since, and checkpoints keep them.
    """

    def __init__(self, trainer: PromptTrainer) -> None:
        super().__init__(trainer)
        self.spent = False

    @functools.cached_property
    def _buffers(self) -> list[Tensor]:
        return list(self.trainer.model.buffers())  # a walk through all modules, which takes longer than all the rest

    @property
    def possible(self) -> bool:
        """Whether a step may begin again: not where other processes would wait for what this one exchanges in it."""
        trainer = self.trainer
        return ((trainer._graphs.held or not self.spent) and trainer.device.type == "cuda"
                and trainer.ranks.world_size == 1)

    def step(self, batch: Batch) -> Mapping[str, Any]:
        """What the method's `training_step` gives.

        Raises OutOfMemoryError where memory does not suffice for the second time, where a tensor that lasts had been
        changed, such as by an update, or where the text tower keeps nothing that could be less
        (`dassl.utils.surroundings` says in one line what helps). Graphs that are held give their memory first."""
        trainer = self.trainer
        while self.possible:
            start = Start(trainer, batch, self._buffers)
            try:
                with start.watched():
                    return trainer.training_step(batch)
            except torch.OutOfMemoryError as error:
                graphs, largest = trainer._graphs.held, trainer.towers.text.largest_pass
                if start.changed() or not graphs and (self.spent or not largest):
                    raise
                said = str(error).partition(". ")[0]
            # Only now, without the error and its traceback, can what the step had kept be freed.
            start.put_back(trainer, batch)
            if graphs:
                trainer._graphs.refuse("the GPU's memory does not suffice for a step beside them")
            else:
                self._shrink(largest, said)
            gc.collect()
            torch.cuda.empty_cache()
        return trainer.training_step(batch)

    def _shrink(self, largest: int, said: str) -> None:
        """Let classes run in smaller pieces. largest: bytes that the text tower has kept for a pass; said: the error.
        """
        self.spent, text = True, self.trainer.towers.text
        text.activation_bytes = max(1, min(text.activation_bytes or largest, largest) // SMALLER)
        self.trainer._graphs.forget()
        megabytes = max(1, text.activation_bytes // 2**20)
        print(f"Note: the GPU's memory does not suffice for a step ({' '.join(said.split())}); it is made again, and "
              f"from here on classes run in smaller pieces, {megabytes} MB at a time (TRAIN.TEXT_MEMORY_MB {megabytes} "
              "begins so)")


class Start:
    """What a step begins with: the random generators, the entries of the batch, the gradients that tensors have, the
    counted passes, and how often each tensor that outlasts the step was changed in place. While it is `watched`, it
    notes whether an optimizer begins an update."""

    def __init__(self, trainer: PromptTrainer, batch: Batch, buffers: Sequence[Tensor]) -> None:
        self.rng, self.batch = get_rng_state(), dict(batch)
        passes = trainer.towers.passes
        self.passes = passes.images, passes.texts
        self.gradients = [(parameter, parameter.grad) for parameter in trainer.trainables]
        lasting = (*trainer.trainables, *buffers, *(grad for _, grad in self.gradients), *batch.values())
        self.versions = [(tensor, tensor._version) for tensor in lasting if torch.is_tensor(tensor)]
        self.updated = False
        trainer.towers.text.largest_pass = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        handle = register_optimizer_step_pre_hook(self._begins_update)
        try:
            yield
        finally:
            handle.remove()

    def _begins_update(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self.updated = True

    def changed(self) -> bool:
        """Whether an update has begun since, or anything else has changed one of these tensors."""
        return self.updated or any(tensor._version != version for tensor, version in self.versions)

    def put_back(self, trainer: PromptTrainer, batch: Batch) -> None:
        """Bring back what the step may have changed, but for tensors."""
        set_rng_state(self.rng)
        batch.clear()
        batch.update(self.batch)
        trainer.towers.passes.images, trainer.towers.passes.texts = self.passes
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
