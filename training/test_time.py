"""What a trainer does with test images: the evaluated weights take the place of the trained ones, a method may learn of
the images it is shown, and afterwards everything is as it was before."""
from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dassl.engine.part import OfTrainer
from dassl.utils import InputError, derive_seed, isolated_rng
from prompting.precision import GradientOverflow
from training.batches import Batch, to_device
from training.method import Method
from training.trained_tensors import FOLDER

if TYPE_CHECKING:
    from training.prompt_trainer import PromptTrainer

KINDS = ("adapts", "stateful", "transductive")  # the statements of a method that make its predictions special
HIDDEN = ("label", "domain", "index")  # what a batch of test images holds and `predict` is not shown


class TestTime(OfTrainer["PromptTrainer"]):
    """Evaluations and predictions of a PromptTrainer: `predicting` is the context of one, `logits_of` its one step.

    Attributes:
        files: the images that `predict` is shown at the moment; None outside of it.
        open: whether a context is entered.
    """

    __test__ = False  # its name is not that of a test

    def __init__(self, trainer: PromptTrainer) -> None:
        super().__init__(trainer)
        self.files: list[str] | None = None
        self.open = False
        self._aside: list[tuple[Tensor, Tensor]] = []  # (parameter, its trained value) where another one is in place
        self._start: Snapshot | None = None  # of the start of a context in which the method may learn

    @property
    def learns(self) -> bool:
        """Whether anything of the method may change while it predicts."""
        return self.trainer.adapts or self.trainer.stateful

    @property
    def divisible(self) -> bool:
        """Whether the ranks may divide the images of an evaluation."""
        return not (self.trainer.stateful or self.trainer.transductive)

    # ---- the context ----
    @contextlib.contextmanager
    def predicting(self) -> Iterator[None]:
        """Context of one evaluation, or of one stream of predictions. It may be entered again within itself, which does
        nothing.

        Raises InputError where `evaluated_weights` do not fit."""
        if self.open:
            yield
            return
        with contextlib.ExitStack() as stack:
            self.open = True
            stack.callback(setattr, self, "open", False)
            stack.enter_context(self._in_evaluation())
            stack.enter_context(self._evaluated_weights())
            if self.learns:
                stack.enter_context(self._learning())
            yield

    @contextlib.contextmanager
    def _in_evaluation(self) -> Iterator[None]:
        """Context in which the model is in evaluation."""
        trainer, training = self.trainer, self.trainer.model.training
        if training:  # else its remembered class features stay
            trainer.set_model_mode("eval")
        try:
            yield
        finally:
            if training:
                trainer.set_model_mode("train")

    def evaluated(self) -> dict[str, Tensor]:
        """The method's `evaluated_weights`, {} without any. Raises InputError where they do not fit."""
        with torch.no_grad():
            weights = self.trainer.evaluated_weights() or {}
        if weights:
            require_evaluable(weights, self.trainer.trained_tensors(), type(self.trainer).__name__)
        return weights

    @contextlib.contextmanager
    def _evaluated_weights(self) -> Iterator[None]:
        """Context in which `evaluated_weights` are in the place of the trained tensors of their names."""
        weights = self.evaluated()
        if not weights:
            yield
            return
        own = self.trainer.trained_tensors()
        self._aside = [(own[name], own[name].detach().clone()) for name in weights]
        try:
            self._put((own[name], value) for name, value in weights.items())
            yield
        finally:
            self._put(self._aside)
            self._aside = []

    @contextlib.contextmanager
    def _learning(self) -> Iterator[None]:
        """Context in which the method may learn of test images; at its end all is as it was."""
        trainer = self.trainer
        optimizer, gradients = trainer.optim, [(p, p.grad) for p in trainer.trainables]
        self._start = Snapshot(trainer)
        try:
            self._begin_anew()
            yield
        finally:
            self._start.put_back(trainer)
            self._start = None
            self._take_optimizer(optimizer)
            for parameter, gradient in gradients:
                parameter.grad = gradient

    def require_own(self, optimizer: Any) -> None:
        """Raise InputError where a method that learns of a test image takes an optimizer of its training, whose state
        would go on from image to image and into the training."""
        trainer = self.trainer
        if self._start is not None and any(optimizer is known for known, _ in trainer.optimizers):
            raise InputError(f"{type(trainer).__name__}.predict takes an optimizer of the training; an update at test "
                             "time is made by that of build_test_optimizer, which apply_gradients takes by itself")

    def _put(self, values: Any) -> None:
        """Set each tensor of (tensor, value) pairs."""
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        self.trainer.forget_class_features()

    def _take_optimizer(self, optimizer: Any) -> None:
        """Let updates be made by an optimizer: those of `apply_gradients` and of `model_update`."""
        self.trainer.optim = self.trainer._optims[FOLDER] = optimizer

    def _begin_anew(self) -> None:
        """Optimizer and gradients as before the first image."""
        trainer = self.trainer
        for parameter in trainer.trainables:
            parameter.grad = None
        if trainer.adapts:
            self._take_optimizer(trainer.build_test_optimizer())

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Context in which everything is as the training left it, for a checkpoint that is written while an evaluation
        goes on."""
        trainer = self.trainer
        now = Snapshot(trainer) if self._start is not None else None
        evaluated = [(tensor, tensor.detach().clone()) for tensor, _ in self._aside]
        if self._start is not None:
            self._start.put_back(trainer)
        if self._aside:
            self._put(self._aside)
        try:
            yield
        finally:
            if evaluated:
                self._put(evaluated)
            if now is not None:
                now.put_back(trainer)

    # ---- predictions ----
    def logits_of(self, batch: Batch) -> Tensor:
        """Logits (B, n_cls) float32 of a batch of test images, by `predict`.

        Args:
            batch: "img" (B, 3, H, W), "views" (B, V, 3, H, W) where the method has `test_views`, "impath", ... on any
                device; labels are not handed on.
        Raises:
            InputError: `predict` gives no row of logits for each image.
            NonFiniteError: a loss or a gradient of an update at test time is not finite.
        """
        trainer = self.trainer
        shown = {key: to_device(value, trainer.device) for key, value in batch.items() if key not in HIDDEN}
        with self.predicting():
            if not self.learns and type(trainer).predict is Method.predict:
                with torch.no_grad(), trainer._feed.explained(shown):
                    return trainer.predict(shown)
            together = trainer.transductive or not self.learns
            parts = [shown] if together else [only(shown, row) for row in range(len(shown["img"]))]
            return torch.cat([self._predicted(part) for part in parts])

    def _predicted(self, batch: Batch) -> Tensor:
        """Logits of images that are shown to the method together."""
        trainer = self.trainer
        modes = [(module, module.training) for module in trainer.model.modules()]
        self.files = list(batch.get("impath", ()))
        watched = trainer.adapts and not (trainer.trains or trainer.trains_in_turns or trainer.watch.over)
        try:
            if watched:
                trainer.watch.begin(trainer.trained_tensors())
            logits = self._until_no_overflow(batch)
            if watched and trainer.watch.used:  # a method may leave out images, the first too
                trainer.watch.require_all("at test time")
            return self._checked(logits, len(batch["img"]))
        finally:
            self.files = None
            for module, training in modes:
                module.training = training
            if self._start is not None and not trainer.stateful:
                self._start.put_back(trainer)
                self._begin_anew()

    def _until_no_overflow(self, batch: Batch) -> Tensor:
        """What `predict` gives. After a scaled gradient has overflowed, which lowers the scale of the loss, it begins
        again with the state that it had begun with."""
        trainer, precision = self.trainer, self.trainer.precision
        seed = derive_seed("predict", trainer.cfg.SEED, digest_of(batch["img"]))
        begun = optimizer = None
        if precision.scaled and trainer.adapts and trainer.stateful:
            begun, optimizer = Snapshot(trainer), copy.deepcopy(trainer.optim.state_dict())
        while True:
            scale = precision.scale
            try:
                with own_rng(seed, trainer.device), torch.set_grad_enabled(trainer.adapts), precision.autocast():
                    return trainer.predict(batch)
            except GradientOverflow:
                start = begun or self._start
                if start is None or not precision.scale < scale:
                    raise
                start.put_back(trainer, with_scale=False)
                self._begin_anew()
                if optimizer is not None:
                    trainer.optim.load_state_dict(copy.deepcopy(optimizer))

    def _checked(self, logits: Any, images: int) -> Tensor:
        """Logits as float32 without a graph. Raises InputError unless there is a row of them for each image."""
        if not torch.is_tensor(logits) or logits.dim() != 2 or len(logits) != images:
            found = tuple(logits.shape) if torch.is_tensor(logits) else type(logits).__name__
            raise InputError(f"{type(self.trainer).__name__}.predict gives {found} for {images} image(s); it must give "
                             f"logits ({images}, number of classes)")
        return logits.detach().float()


class Snapshot:
    """A copy of all that a method may change while it predicts: the model's parameters, but for those of the CLIP that
    are not trained, its buffers, what wants gradients, `extra_state` and the scale of the loss."""

    def __init__(self, trainer: PromptTrainer) -> None:
        parameters, of_clip = list(trainer.model.parameters()), set(map(id, trainer.towers.model.parameters()))
        self.wanting = [(tensor, tensor.requires_grad) for tensor in parameters]
        self.tensors = [(tensor, tensor.detach().clone()) for tensor in (
            *trainer.trainables, *(p for p in parameters if not p.requires_grad and id(p) not in of_clip),
            *trainer.model.buffers())]
        # A buffer, or a parameter, may also be replaced by another one.
        self.places: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (held, dict(held)) for module in trainer.model.modules() for held in (module._buffers, module._parameters)]
        self.extra = copy.deepcopy(trainer.extra_state())
        self.scale = trainer.precision.state_dict()

    def put_back(self, trainer: PromptTrainer, with_scale: bool = True) -> None:
        """Bring all of it back; without `with_scale` the scale of the loss stays as it is now."""
        for held, before in self.places:
            held.clear()
            held.update(before)
        for tensor, wants in self.wanting:
            tensor.requires_grad_(wants)
        trainer.load_extra_state(copy.deepcopy(self.extra))  # which it may keep, and change
        with torch.no_grad():
            for tensor, value in self.tensors:
                tensor.copy_(value)
        if with_scale:
            trainer.precision.load_state_dict(self.scale)
        torch.clear_autocast_cache()
        trainer.forget_class_features()


def require_evaluable(weights: Any, own: dict[str, nn.Parameter], method: str) -> None:
    """Raise InputError unless every one of {name: tensor} can take the place of the trained tensor of its name."""
    for name, value in weights.items():
        if name not in own:
            raise InputError(f"{method}.evaluated_weights gives '{name}', which is not trained; trained are "
                             f"{', '.join(sorted(own))[:300]}")
        if not torch.is_tensor(value) or value.shape != own[name].shape:
            found = f"shape {tuple(value.shape)}" if torch.is_tensor(value) else f"type {type(value).__name__}"
            raise InputError(f"{method}.evaluated_weights gives '{name}' with {found}; the trained tensor of that name "
                             f"has shape {tuple(own[name].shape)}")


def require_predict(method: type[Method]) -> None:
    """Raise InputError for a method that `adapts` and does not say how."""
    if method.adapts and method.predict is Method.predict:
        raise InputError(f"{method.__name__} says `adapts = True` and defines no `predict`, in which it would learn of "
                         "test images; define it, or leave the statement out")


def only(batch: Batch, row: int) -> Batch:
    """A batch with one of its images."""
    def part(value: Any) -> Any:
        if isinstance(value, list) and value and torch.is_tensor(value[0]):  # several views, each of all images
            return [part(view) for view in value]
        return value[row:row + 1] if torch.is_tensor(value) or isinstance(value, (list, tuple)) else value

    return {key: part(value) for key, value in batch.items()}


def digest_of(images: Tensor) -> str:
    """The digest of the numbers of images, the same on every device."""
    pixels = images.detach().cpu().contiguous()
    content = hashlib.blake2b(repr((pixels.dtype, tuple(pixels.shape))).encode(), digest_size=16)
    content.update(pixels.view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


@contextlib.contextmanager
def own_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Within it the global generators, that of the device too, start from `seed`; afterwards they are as before."""
    with isolated_rng(seed):
        if device.type != "cuda":
            yield
            return
        before = torch.cuda.get_rng_state(device)
        torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            torch.cuda.set_rng_state(before, device)


def facts_of(trainer: Any) -> dict[str, Any]:
    """What results.json says of a method whose predictions are special, {"adapts", "stateful", "transductive", "views",
    and, where the answers depend on it, "batch_size"}; {} for others."""
    if not isinstance(trainer, Method) or not (trainer.test_views or any(getattr(trainer, kind) for kind in KINDS)):
        return {}
    facts: dict[str, Any] = {**{kind: bool(getattr(trainer, kind)) for kind in KINDS}, "views": trainer.test_views}
    return facts | ({"batch_size": trainer.cfg.DATALOADER.TEST.BATCH_SIZE} if trainer.transductive else {})
