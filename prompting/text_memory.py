"""Features of sentences that a frozen text tower has encoded before, kept for all towers over the same CLIP."""
from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_modules

from prompting.blocks import is_plain

if TYPE_CHECKING:
    from clip.model import CLIP

    from prompting.text import TextTower

BYTES = 64 * 2**20
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes


class TextMemory:
    """Features by what they were computed of, at most `limit` bytes of them; what was not used for longest goes first.

    What is kept is never handed out to be changed: whoever takes it copies it."""

    def __init__(self, limit: int = BYTES) -> None:
        self.limit, self.bytes = limit, 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Tensor | None:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: Hashable, features: Tensor) -> None:
        with self._lock:
            if key in self._kept or features.nbytes > self.limit:
                return
            self._kept[key] = features
            self.bytes += features.nbytes
            while self.bytes > self.limit:
                self.bytes -= self._kept.popitem(last=False)[1].nbytes


class Remembered:
    """A text tower's access to a memory.

    The features are known by the weights, the sentences, and all else on which their last digits depend. A tower that
    was changed since it was made neither takes nor gives any (but through .data, which nothing tells of); one made
    after the change knows other features.

    Args:
        memory: shared by the towers over one CLIP, by the same rank of as many.
        given: the CLIP that the towers were made of; used: the one that they run, the same or a copy of it.
        world_size: how many ranks divide the towers' work. Where they do not for a while, the memory rests: what one of
            them alone has found or pushed out, the others would wait for.
    """

    def __init__(self, memory: TextMemory, given: CLIP, used: CLIP, world_size: int) -> None:
        self.memory, self.model, self.world_size = memory, used, world_size
        # The version of a tensor tells of changes in place, but for those through .data; the sum of its bits does.
        # It is taken once, not for every pass: so many numbers take as long as some prompts.
        self._source, self._made = (text_state(given), *sums_of(given)), text_state(used)

    def features(self, tower: TextTower, tokens: Tensor) -> Tensor:
        """`tower.encode_sentences(tokens)`: features (C, E) of tokens (C, T), which are not to be changed in place."""
        if (tower.ranks.world_size != self.world_size or self._made is None
                or None in self._source or text_state(self.model) != self._made):
            return tower.encode_sentences(tokens)
        kind = tower.device.type
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        key = (self._source, tuple(tokens.shape), tokens.cpu().numpy().tobytes(), str(tower.device), tower.dtype,
               tower.packed, tower.padding, torch.get_autocast_dtype(kind) if autocast else None, *_arithmetic())
        known = self.memory.get(key)
        if known is None:
            known = tower.encode_sentences(tokens)
            self.memory.put(key, known)
        return known


def text_state(model: CLIP) -> Hashable | None:
    """What tells whether the text tower of a CLIP was changed; None where a module in it computes something that its
    weights do not tell: one with hooks or a forward of its own."""
    modules = _modules_of(model)
    hooked: Any = of_modules._has_any_global_hook
    if hooked() or not all(is_plain(module, _own_kind(module)) for module in modules):
        return None
    return (tuple((id(module), type(module)) for module in modules),
            tuple((id(tensor), tensor._version, tensor.dtype, tuple(tensor.shape)) for tensor in _tensors_of(model)))


def sums_of(model: CLIP) -> list[int]:
    """The sums of the bits of a text tower's tensors."""
    sums: list[int] = torch.stack([_sum_of_bits(tensor) for tensor in _tensors_of(model)]).tolist()
    return sums


def _modules_of(model: CLIP) -> list[nn.Module]:
    parts: list[Any] = [model.token_embedding, model.transformer, model.ln_final]
    return [module for part in parts for module in part.modules()]


def _tensors_of(model: CLIP) -> list[Tensor]:
    return [model.positional_embedding, model.text_projection,
            *(tensor for module in _modules_of(model) for tensor in (*module._parameters.values(),
                                                                     *module._buffers.values()) if tensor is not None)]


def _own_kind(module: nn.Module) -> type[nn.Module]:
    """The class of torch or of CLIP that a module is of; a subclass from elsewhere is not plain."""
    return next(kind for kind in type(module).__mro__
                if kind.__module__.startswith("torch.nn.modules") or kind.__module__ == "clip.model")


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """The sum of the bits of a tensor, read as whole numbers, of 64 bits where that is possible: they add up faster."""
    flat = tensor.detach().reshape(-1)
    whole = all(size % 8 == 0 for size in (flat.nbytes, flat.storage_offset() * flat.itemsize))
    return flat.view(torch.int64 if whole else INTEGERS[flat.itemsize]).sum()


def _arithmetic() -> tuple[Hashable, ...]:
    """Settings of this process on which the last digits of a product depend."""
    cuda: Any = torch.backends.cuda
    return (torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(),
            torch.backends.mkldnn.enabled, cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(),
            cuda.math_sdp_enabled(), cuda.matmul.allow_fp16_reduced_precision_reduction)
