"""Steps: one training step of a method, from a batch of the loader to updates."""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dassl.engine import TrainerX
from dassl.metrics import accuracies, require_finite
from dassl.utils import InputError, NonFiniteError
from dassl.utils.distributed import Ranks
from prompting.precision import GradientOverflow, Precision, finite
from training.batches import Batch, all_gather_batch, numbers_of, to_device
from training.gradient_watch import GradientWatch
from training.graphs import StepGraphs
from training.method import Method
from training.once_again import OnceAgain
from training.options import CLIP_GRAD_NORM, require_honoured
from training.schedules import after_epoch, after_update
from training.store.feed import Feed
from training.test_time import TestTime


class Steps(Method, TrainerX):
    """The part of a PromptTrainer that makes its training steps."""

    ranks: Ranks
    precision: Precision
    watch: GradientWatch
    optimizers: list[tuple[Optimizer, LRScheduler]]
    optim: Any
    trained_tensors: Callable[[], dict[str, nn.Parameter]]
    forget_class_features: Callable[[], None]
    _feed: Feed
    _graphs: StepGraphs
    _once_again: OnceAgain
    _test_time: TestTime

    def forward_backward(self, batch: Batch) -> dict[str, float]:
        batch = self.batch = self._feed.with_frozen(self.prepared(batch))
        if not self.watch.over:
            self.watch.begin(self.trained_tensors())
        try:
            with self.precision.autocast(), self._feed.explained(batch):
                summary = numbers_of(self._graphs.step(batch))
            require_honoured(self.cfg, self.honoured, type(self).__name__)
            self.watch.step_made(self.batch_idx, self.num_batches, self.trains_in_turns)
        except GradientOverflow:
            summary = {"overflow": 1}
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return summary

    def prepared(self, batch: Batch) -> Batch:
        """The batch of one process, on the device, with the method's `step_inputs`."""
        def more(batch: Batch) -> Batch:
            with self.precision.autocast():  # it may begin with frozen features that are then kept
                found = self.step_inputs(batch)
            if taken := set(found) & set(batch):
                raise InputError(f"{type(self).__name__}.step_inputs gives {', '.join(sorted(taken))}, which the batch "
                                 "has already; choose another name")
            return found

        divided = self.ranks.world_size > 1
        known = {} if divided else more(batch)  # of the loader's batch, whose numbers the host need not wait for
        batch = self.all_gather_batch(to_device(batch, self.device))
        return {**batch, **to_device(more(batch) if divided else known, self.device)}

    def all_gather_batch(self, batch: Batch) -> Batch:
        """The batch of one process from the parts that the ranks have read."""
        if self.ranks.world_size == 1:
            return batch
        return all_gather_batch(batch, self.ranks, self.train_loader_x.batch_sampler.size_of(self.batch_idx))

    def update_lr(self, names=None):
        after_epoch(self.optimizers)

    # ---- gradients ----
    def gradients(self, loss: Tensor, tensors: Sequence[Tensor], create_graph: bool = False,
                  retain_graph: bool | None = None) -> list[Tensor]:
        """d loss / d tensors in float32. Raises NonFiniteError for a loss that is not finite; GradientOverflow, which
        ends the batch, for a scaled gradient that is not; InputError for a loss that depends on nothing trained."""
        self._graphs.require(loss.isfinite().all(), functools.partial(self.detect_anomaly, loss.detach()))
        untold = self._test_time.files is not None and not self.adapts
        self.watch.require_graph(loss, "to learn from test images, say adapts = True" if untold else "")
        self.watch.asked(tensors)
        return self.precision.gradients(loss, tensors, create_graph, retain_graph, self._graphs.require)

    def apply_gradients(self, gradients: Sequence[Tensor], tensors: Iterable[Tensor] | None = None,
                        optimizer: Optimizer | Callable[[], Optimizer] | None = None) -> None:
        """The one place where gradients become an update.

        Args:
            gradients: unscaled gradients, one for each tensor, of its shape.
            tensors: what they belong to; default everything that is trained.
            optimizer: whose `step()` is made, or a function that makes it, which is called for each update anew;
                default the method's.
        Raises:
            InputError: it is one of the training, and this is an update at test time.
            NonFiniteError: a gradient is not finite.
        """
        tensors = self.trainables if tensors is None else list(tensors)
        self.watch.given(tensors)
        self._graphs.require(finite(gradients), self._refuse_gradients)
        self._graphs.update(self.clipped(gradients), tensors, optimizer)

    def make_update(self, gradients: Sequence[Tensor], tensors: Sequence[Tensor],
                    optimizer: Optimizer | Callable[[], Optimizer] | None) -> None:
        """The update of `apply_gradients`, of gradients that are finite and clipped."""
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            optimizer = optimizer()
        self._test_time.require_own(optimizer)
        for tensor, gradient in zip(tensors, gradients):
            tensor.grad = gradient
        updated = optimizer or self.optim
        updated.step()
        after_update(self.optimizers, updated)
        self._weights_changed()
        self.precision.good_step()
        for tensor in tensors:
            tensor.grad = None

    def batch_accuracy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The top-1 accuracy () in percent of a training batch, from its logits (B, n_cls) and labels (B,). Raises
        NonFiniteError for a logit that is not finite."""
        logits = logits.detach()
        self._graphs.require(logits.isfinite().all(), functools.partial(require_finite, logits))
        found: Tensor = accuracies(logits, labels)[0].squeeze()
        return found

    def _refuse_gradients(self) -> None:
        raise NonFiniteError(f"a gradient is not finite {self.step_in_words()}; lower OPTIM.LR, or use PREC bf16 or "
                             "fp32")

    def _weights_changed(self) -> None:
        """Drop what was computed from the tensors that an update has just changed."""
        torch.clear_autocast_cache()  # which holds half-precision copies of them
        self.forget_class_features()

    def clipped(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Gradients of tensors that are updated together, scaled to a common length of OPTIM.CLIP_GRAD_NORM at most."""
        self.honoured.add(CLIP_GRAD_NORM)
        most = self.cfg.OPTIM.CLIP_GRAD_NORM
        if not most:
            return gradients
        length = torch.stack([gradient.norm() for gradient in gradients]).norm()
        scale = (most / length).clamp(max=1.0)
        return [gradient * scale for gradient in gradients]

    # ---- for methods that are written with `loss.backward()` ----
    def model_update(self, names=None):
        tensors = [tensor for tensor in self.trainables if tensor.grad is not None]
        for tensor, gradient in zip(tensors, self.clipped([t.grad for t in tensors if t.grad is not None])):
            tensor.grad = gradient
        super().model_update(names)
        after_update(self.optimizers, self.optim)
        self._weights_changed()

    def model_backward(self, loss):
        """What it leaves is the mean over the ranks."""
        super().model_backward(loss)
        tensors = [tensor for tensor in self.trainables if tensor.grad is not None]
        own = [tensor.grad for tensor in tensors if tensor.grad is not None]
        for tensor, gradient in zip(tensors, self.ranks.all_reduce_mean(own)):
            tensor.grad = gradient
