"""How the text tower lays out the tokens of many classes: which are run together, in one row without padding."""
from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prompting.indices import index_on

ALIGNED = 16  # numbers, from one row of a mask to the next


@dataclass
class Bucket:
    """Classes whose own tokens are run in one piece.

    classes: (C',), their places in the list; length: own tokens of the longest class; ends: (C',), the place of each
    class's last token, or None where all are equally long.

    Its masks are what `Block.attend` adds to the scores: 0 where a query may attend, else -inf. One that is made serves
    all layers.
    """

    classes: Tensor
    length: int
    ends: Tensor | None
    _causal: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict, repr=False)
    _up_to_end: dict[tuple[int, int, torch.dtype], Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.classes)

    def causal(self, shared: int, dtype: torch.dtype) -> Tensor:
        """The mask (S, P + S) of the tokens of a class, which see the prefix of `shared` tokens and their own up to
        themselves."""
        key = shared, dtype
        if key not in self._causal:
            total = shared + self.length
            with torch.inference_mode(False):  # a later pass may want gradients
                mask = hidden(self.length, total, dtype, self.classes.device)
                self._causal[key] = mask.triu(shared + 1)[:, :total]
        return self._causal[key]

    def up_to_end(self, shared: int, groups: int, dtype: torch.dtype) -> Tensor | None:
        """The mask of a query that sees the prefix of `shared` tokens and those of its class up to the end-of-text
        token, to be broadcast to (G C', heads, queries, P + S); None where all are such."""
        if self.ends is None:
            return None
        key = shared, groups, dtype
        if key not in self._up_to_end:
            total = shared + self.length
            with torch.inference_mode(False):
                mask = hidden(len(self), total, dtype, self.ends.device)
                seen = torch.arange(mask.shape[1], device=mask.device) <= shared + self.ends[:, None]
                self._up_to_end[key] = mask.masked_fill(seen, 0).repeat(groups, 1)[:, None, None, :total]
        return self._up_to_end[key]


def hidden(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """-inf (rows, columns or a few more). Each row starts where the attention of a GPU can read it; else a copy of the
    mask would be made in every layer."""
    return torch.full((rows, -(-columns // ALIGNED) * ALIGNED), -torch.inf, dtype=dtype, device=device)


@functools.lru_cache(maxsize=16)  # most methods lay the same classes out in every step
def buckets_of(order: tuple[int, ...], lengths: tuple[int, ...], padding: int, device: torch.device) -> list[Bucket]:
    """Classes of one length together. A GPU runs few large pieces faster than many small ones: there shorter classes
    join longer ones as long as few tokens of padding are needed.

    Args:
        order: places of the classes, from the shortest to the longest.
        lengths: own tokens of each class in `order`; padding: how many tokens one piece may waste.
    """
    pieces: list[list[int]] = []
    longest = padded = 0
    for number in reversed(range(len(order))):
        shorter = longest - lengths[number]
        if not pieces or padded + shorter > padding:
            pieces.append([])
            longest, shorter, padded = lengths[number], 0, 0
        pieces[-1].append(number)
        padded += shorter
    buckets = []
    for piece in (piece[::-1] for piece in reversed(pieces)):  # in the order of `order`
        ends = tuple(lengths[number] - 1 for number in piece)
        buckets.append(Bucket(index_on(tuple(order[number] for number in piece), device), ends[-1] + 1,
                              None if ends[0] == ends[-1] else index_on(ends, device)))
    return buckets


def take_apart(tokens: Tensor, shared: int, buckets: Sequence[Bucket]) -> tuple[Tensor, list[Tensor]]:
    """(G, N, W) -> the tokens of the prefix (G, P, W), and those of each bucket (G, C', S, W)."""
    parts = tokens.split_with_sizes([shared, *(len(b) * b.length for b in buckets)], dim=1)
    return parts[0], [part.view(len(part), len(b), b.length, part.shape[-1]) for part, b in zip(parts[1:], buckets)]


def behind(shared: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the prefix (G, P, 2 W) in front of those of each class (G, C, S, 2 W)
    -> keys and values, (G, C, P + S, W) each."""
    keys, values = torch.cat([shared[:, None].expand(-1, own.shape[1], -1, -1), own], dim=2).chunk(2, dim=-1)
    return keys, values


def last_tokens(parts: Sequence[Tensor], buckets: Sequence[Bucket]) -> Tensor:
    """The end-of-text tokens (G, C', W) of the tokens of each bucket (G, C', S, W)."""
    return torch.cat([part[:, :, -1] if bucket.ends is None else
                      part[:, torch.arange(len(bucket), device=part.device), bucket.ends]
                      for bucket, part in zip(buckets, parts)], dim=1)


def common_start(tokens: Tensor, first_end: int) -> int:
    """How many tokens at the start all sentences (C, T) have in common; at least 1, and at most all in front of the
    first end-of-text token, which stands at `first_end`."""
    same = (tokens == tokens[:1]).all(dim=0).tolist()
    common = same.index(False) if False in same else len(same)
    return max(1, min(common, first_end))
