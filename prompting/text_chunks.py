"""Passes of the text tower over some classes at a time, so that what they keep for their backward pass has room."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prompting.indices import index_on

if TYPE_CHECKING:
    from prompting.text import TextTower

# What a layer keeps for the backward pass, in vectors of the tower's width: so many per token, and so many more per key
# of a class (its own tokens and a copy of the prefix).
KEPT_PER_TOKEN = 10
KEPT_PER_TOKEN_TRAINED = 18  # where its weights want gradients, which keep the inputs of the linear layers, too
KEPT_PER_KEY = 2


def in_chunks(tower: TextTower, run: Callable[[list[int]], Tensor], lengths: Sequence[int], groups: int, shared: int,
              per_token: int, per_class: int = 0, draws: bool = False) -> Tensor:
    """What `run` gives for the classes at some places, (G, C', ...), for all of them, (G, C, ...).

    They are run from the shortest to the longest: in one chunk or, where the tower's `activation_bytes` allow no other
    way, in several that are computed again in the backward pass.

    Args:
        run: places of classes -> (G, C', ...).
        lengths: how many tokens of its own each class has, behind `shared` ones.
        per_token, per_class: how many vectors a layer keeps for a token and for a class, beside its keys.
        draws: whether `run` draws random numbers.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    chunks = chunks_of(tower, order, lengths, groups, shared, per_token, per_class)
    found = [run(order)] if len(chunks) == 1 else [
        checkpoint(run, chunk, use_reentrant=False, preserve_rng_state=draws) for chunk in chunks]
    places = sorted(range(len(order)), key=order.__getitem__)  # where each class now is
    return torch.cat(found, dim=1).index_select(1, index_on(tuple(places), tower.device))


def chunks_of(tower: TextTower, order: list[int], lengths: Sequence[int], groups: int, shared: int,
              per_token: int = KEPT_PER_TOKEN, per_class: int = 0) -> list[list[int]]:
    """The sorted classes in as few pieces as `activation_bytes` allows; one piece where nothing is kept. The arguments
    are those of `in_chunks`."""
    if not torch.is_grad_enabled():
        return [order]
    vector = tower.width * tower.layers * tower.dtype.itemsize * groups
    of_prefix = (per_token + KEPT_PER_KEY) * shared
    kept = [per_class + per_token * lengths[index] + KEPT_PER_KEY * (shared + lengths[index]) for index in order]
    tower.largest_pass = max(tower.largest_pass, vector * (of_prefix + sum(kept)))
    if tower.activation_bytes is None:
        return [order]
    room = tower.activation_bytes // vector - of_prefix
    chunks: list[list[int]] = [[]]
    used = 0
    for index, own in zip(order, kept):
        if chunks[-1] and used + own > room:
            chunks.append([])
            used = 0
        chunks[-1].append(index)
        used += own
    return chunks
