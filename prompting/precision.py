"""How the frozen towers run, and the loss scaling that half precision needs."""
import contextlib

import torch

from prompting.errors import PromptingError
from prompting.ranks import Ranks

PRECISIONS = ("auto", "fp32", "amp", "fp16")


class GradientOverflow(ArithmeticError):
    """A scaled gradient left the range of half precision. The rest of the batch is left out, the scale is lowered."""


def all_finite(tensors):
    return bool(torch.stack([t.isfinite().all() for t in tensors]).all())


class Precision:
    """fp32; amp (autocast: float16 with loss scaling on CUDA, bfloat16 on CPU); fp16 (frozen weights in float16, with
    loss scaling); auto: amp on CUDA, fp32 on the CPU. What is trained is float32 in all of them.

    The scale of the loss starts at 2^16, halves when a gradient overflows and doubles after 2,000 good updates.
    """

    def __init__(self, name, device, ranks=None):
        if name not in PRECISIONS:
            raise PromptingError(f"PREC is one of {', '.join(PRECISIONS)}, not '{name}'")
        if name == "auto":
            name = "amp" if device.type == "cuda" else "fp32"
        self.name, self.device, self.ranks = name, device, ranks or Ranks()
        self.half = name == "fp16"
        scaled = self.half or (name == "amp" and device.type == "cuda")
        self.scale, self.good_steps = (2.0 ** 16 if scaled else 1.0), 0
        self.scaled = scaled

    @property
    def dtype(self):
        """The type that the towers compute in."""
        if self.name == "amp":
            return torch.float16 if self.device.type == "cuda" else torch.bfloat16
        return torch.float16 if self.half else torch.float32

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype) if self.name == "amp" else contextlib.nullcontext()

    def gradients(self, loss, tensors, create_graph=False, retain_graph=None):
        """d loss / d tensors, unscaled, the mean over the ranks; zeros for a tensor that the loss does not use.

        Raises GradientOverflow when the scaled gradient is not finite; the scale has then been lowered."""
        # Within the towers the ranks' gradients are added up; a part of the scale each keeps them as large as one's.
        scale = self.scale / self.ranks.size
        found = torch.autograd.grad(loss * scale, tensors, create_graph=create_graph, retain_graph=retain_graph,
                                    allow_unused=True)
        found = [torch.zeros_like(t) if g is None else g / scale for g, t in zip(found, tensors)]
        found = self.ranks.mean(found)
        if self.scaled and self.scale > 1 and not all_finite(found):
            self.scale, self.good_steps = self.scale / 2, 0
            raise GradientOverflow
        return found

    def good_step(self):
        """Note that an update was made."""
        self.good_steps += 1
        if self.scaled and self.good_steps == 2000:
            self.scale, self.good_steps = self.scale * 2, 0

    def state_dict(self):
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state):
        self.scale, self.good_steps = state["scale"], state["good_steps"]
