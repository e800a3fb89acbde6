"""How the frozen towers run, and the loss scaling that half precision needs."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypedDict

import torch
from torch import Tensor
from typing_extensions import NotRequired

from prompting.errors import PromptingError, meant
from prompting.parallel import Collectives, SingleProcess

PRECISIONS = ("auto", "fp32", "amp", "bf16", "fp16")
AUTOCAST = ("amp", "bf16")
FIRST_SCALE, DOUBLED_AFTER = 2.0 ** 16, 2000


class GradientOverflow(ArithmeticError):
    """A scaled gradient left the range of half precision. The scale is lowered, and the rest of the batch left out."""


class ScaleState(TypedDict):
    """The state of the loss scaling."""

    scale: float
    good_steps: int
    scaled: NotRequired[bool]  # whether there is loss scaling


Require = Callable[[Tensor, Callable[[], None]], None]  # (a condition (), what is done, at the latest, where it fails)


def finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether no number in any of the tensors is NaN or infinite, on their device: ()."""
    return torch.stack([t.isfinite().all() for t in tensors]).all()


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no number in any of the tensors is NaN or infinite."""
    return bool(finite(tensors))


def require_now(holds: Tensor, failed: Callable[[], None]) -> None:
    """Call `failed` unless a condition () holds."""
    if not holds:
        failed()


class Precision:
    """fp32; amp (autocast: float16 with loss scaling on CUDA, bfloat16 on CPU); bf16 (autocast in bfloat16); fp16
    (frozen weights in float16, with loss scaling); auto: amp on CUDA, fp32 on the CPU. What is trained is float32 in
    all of them.

    The scale of the loss starts at FIRST_SCALE, is halved when a gradient overflows, and doubled after DOUBLED_AFTER
    good updates.

    Args:
        name, device, ranks.
        keeps_casts: whether autocast may keep the half-precision copy of a tensor for later passes. One that is made
            where gradients are off has none: not for towers that are trained, or used while a method learns of a test
            image, which may run in both ways.
    Raises:
        PromptingError: no such precision, or a GPU that lacks it.
    """

    def __init__(self, name: str, device: torch.device, ranks: Collectives | None = None,
                 keeps_casts: bool = True) -> None:
        if name not in PRECISIONS:
            raise PromptingError(f"PREC is one of {', '.join(PRECISIONS)}, not '{name}'{meant(name, PRECISIONS)}")
        if name == "auto":
            name = "amp" if device.type == "cuda" else "fp32"
        if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():  # autocast would refuse
            raise PromptingError("PREC bf16: this GPU has no bfloat16; use PREC amp or fp32")
        self.name, self.device, self.ranks = name, device, ranks or SingleProcess()
        self.keeps_casts = keeps_casts
        self.half = name == "fp16"
        scaled = self.half or (name == "amp" and device.type == "cuda")
        self.scaled, self.good_steps = scaled, 0
        self._scale = FIRST_SCALE if scaled else 1.0
        self._on_device: Tensor | None = None  # the scale, for a graph that reads it

    @property
    def scale(self) -> float:
        return self._scale

    @scale.setter
    def scale(self, scale: float) -> None:
        self._scale = scale
        if self._on_device is not None:
            self._on_device.fill_(scale)

    @property
    def dtype(self) -> torch.dtype:
        """The type that the towers compute in."""
        if self.name in AUTOCAST:
            on_gpu = self.name == "amp" and self.device.type == "cuda"
            return torch.float16 if on_gpu else torch.bfloat16
        return torch.float16 if self.half else torch.float32

    def autocast(self) -> AbstractContextManager[None]:
        """Context in which the towers run."""
        if self.name not in AUTOCAST:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype, cache_enabled=self.keeps_casts)

    def gradients(self, loss: Tensor, tensors: Sequence[Tensor], create_graph: bool = False,
                  retain_graph: bool | None = None, require: Require = require_now) -> list[Tensor]:
        """d loss / d tensors, unscaled, the mean over the ranks; zeros for a tensor that the loss does not use.

        Raises GradientOverflow when the scaled gradient is not finite; the scale has then been lowered. `require` may
        put that off."""
        # Within the towers the ranks' gradients are summed. Divided by the number of ranks, they stay as large as those
        # of one process.
        scale: float | Tensor = self.scale / self.ranks.world_size
        if self.scaled and self.ranks.world_size == 1:
            if self._on_device is None:
                self._on_device = torch.tensor(self.scale, device=self.device)
            scale = self._on_device
        scaled = torch.autograd.grad(loss * scale, tensors, create_graph=create_graph, retain_graph=retain_graph,
                                     allow_unused=True)
        found = [torch.zeros_like(t) if g is None else g / scale for g, t in zip(scaled, tensors)]
        found = self.ranks.all_reduce_mean(found)
        if self.scaled:
            require(finite(found), self._overflowed)
        return found

    def _overflowed(self) -> None:
        if self.scale > 1:
            self.scale, self.good_steps = self.scale / 2, 0
            raise GradientOverflow

    def good_step(self) -> None:
        """Note that an update was made."""
        self.good_steps += 1
        if self.scaled and self.good_steps == DOUBLED_AFTER:
            self.scale, self.good_steps = self.scale * 2, 0

    def state_dict(self) -> ScaleState:
        return {"scale": self.scale, "good_steps": self.good_steps, "scaled": self.scaled}

    def load_state_dict(self, state: ScaleState) -> None:
        """Take over a stored scale. That of a run without loss scaling is none: it begins as in a new run."""
        self.scale, self.good_steps = state["scale"] if self.scaled else 1.0, state["good_steps"]
        # Earlier releases did not say whether there was scaling; a scale of 1 is hardly ever one.
        if self.scaled and not state.get("scaled", state["scale"] != 1):
            self.scale, self.good_steps = FIRST_SCALE, 0
