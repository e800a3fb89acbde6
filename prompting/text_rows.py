"""The text tower where launching a kernel takes longer than running it, as on a GPU: many classes in one row of tokens.

A row is the tokens of the prefix, behind them the own tokens of some classes, and a little padding. A mask lets each
class see the prefix and itself. So a layer is one attention for all classes, whatever their lengths, and what it costs
is what tokens of a row do for each other in vain: little in short rows.
"""
from __future__ import annotations

import functools
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prompting.blocks import Block
from prompting.class_prompts import Prompts
from prompting.text_layout import ALIGNED, hidden

if TYPE_CHECKING:
    from prompting.text import TextTower

ROW = 256  # tokens of a row, about
SHARED, PADDING = 0, -1  # whose a token is that is no class's
OF_TOKENS, OF_ENDS = 0, 1  # the masks


@dataclass
class Rows:
    """C' classes in R rows of T tokens, of which the first P are the prefix.

    tokens: (R (T - P),), the place of each token among the own tokens of all classes (C S); owners: (R, T), whose each
    token is; ends: (R Q,), the places of the end-of-text tokens among all tokens, as many of each row, so that some are
    those of other tokens; places: (C',), where among these that of each class is.

    Its masks are what `Block.attend` adds to the scores. One that is made serves all layers and passes.
    """

    tokens: Tensor
    owners: Tensor
    ends: Tensor
    places: Tensor
    _of_tokens: dict[torch.dtype, Tensor] = field(default_factory=dict, repr=False)
    _of_ends: dict[torch.dtype, Tensor] = field(default_factory=dict, repr=False)

    def lay_out(self, prompts: Prompts, dtype: torch.dtype) -> Tensor:
        """-> (G R, T, W)."""
        groups, rows = len(prompts.prefix), len(self.owners)
        own = prompts.suffix.to(dtype).flatten(1, 2).index_select(1, self.tokens)
        own = own.view(len(own), rows, -1, own.shape[-1]).expand(groups, -1, -1, -1)
        prefix = prompts.prefix.to(dtype)[:, None].expand(-1, rows, -1, -1)
        return torch.cat([prefix, own], dim=2).flatten(0, 1)

    def masks(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Those of all tokens, (R, 1, T, T), and of the end-of-text tokens, (R, 1, Q, T), for each group the same."""
        rows, length = self.owners.shape
        with torch.inference_mode(False):  # a later pass may want gradients
            if dtype not in self._of_tokens:
                query, seen = self.owners[:, :, None], self.owners[:, None]
                visible = ((query == seen) | (seen == SHARED)).tril()
                self._of_tokens[dtype] = hidden(length, length, dtype, visible.device).masked_fill(visible, 0)
            mask = self._of_tokens[dtype]
            if dtype not in self._of_ends:
                self._of_ends[dtype] = mask.flatten(0, 1).index_select(0, self.ends).view(rows, -1, length)
        return mask[:, None], self._of_ends[dtype][:, None]

    def ending_earlier(self, by: Tensor) -> Rows:
        """The rows with end-of-text tokens that stand so many tokens, (C',), in front of those that they have now."""
        ends = self.ends.index_copy(0, self.places, self.ends.index_select(0, self.places) - by)
        return replace(self, ends=ends, _of_ends={})

    def read(self, x: Tensor) -> Tensor:
        """The end-of-text tokens of all tokens (G R, T, W), (G R, Q, W)."""
        grouped = x.reshape(len(x) // len(self.owners), -1, x.shape[-1])
        return grouped.index_select(1, self.ends).view(len(x), -1, x.shape[-1])

    def classes(self, x: Tensor) -> Tensor:
        """What belongs to the classes, (G, C', E), of what belongs to the tokens that are read, (G R, Q, E)."""
        return x.reshape(len(x) // len(self.owners), -1, x.shape[-1]).index_select(1, self.places)


@functools.lru_cache(maxsize=16)  # most methods lay the same classes out in every step
def rows_of(order: tuple[int, ...], lengths: tuple[int, ...], shared: int, stride: int, device: torch.device) -> Rows:
    """As few rows of about ROW tokens as hold the classes, about equally long.

    Args:
        order: places of the classes.
        lengths: own tokens of each class in `order`; shared: tokens of the prefix.
        stride: how many tokens each class has in the suffix, padding included.
    """
    room = max(ROW - shared, *lengths)
    rows: list[list[int]] = [[] for _ in range(-(-sum(lengths) // room))]
    shortest = [(0, row) for row in range(len(rows))]
    for index in sorted(range(len(order)), key=lengths.__getitem__, reverse=True):
        used, row = heapq.heappop(shortest)
        rows[row].append(index)
        heapq.heappush(shortest, (used + lengths[index], row))
    total = -(-(shared + max(used for used, _ in shortest)) // ALIGNED) * ALIGNED
    tokens, owners, ends, places = [], [], [], [0] * len(order)
    most = max(map(len, rows))
    for row, members in enumerate(rows):
        own: list[int] = []
        owner, end = [SHARED] * shared, [row * total] * most
        for number, index in enumerate(members):
            own += range(order[index] * stride, order[index] * stride + lengths[index])
            owner += [1 + number] * lengths[index]
            end[number], places[index] = row * total + len(owner) - 1, row * most + number
        tokens += own + [0] * (total - shared - len(own))
        owners += owner + [PADDING] * (total - len(owner))
        ends += end
    sizes = [len(part) for part in (tokens, owners, ends, places)]
    with torch.inference_mode(False):
        # In one copy to the device, which waits for all that is to be done there.
        parts = torch.tensor(tokens + owners + ends + places, device=device).split_with_sizes(sizes)
        return Rows(parts[0], parts[1].view(len(rows), total), parts[2], parts[3])


def encode_rows(tower: TextTower, prompts: Prompts, rows: Rows, deep: Mapping[int, Tensor],
                blocks: Sequence[Block]) -> Tensor:
    """The tower over rows -> (G, C', E), not normalised.

    deep: {layer: (n, W)}, what replaces the tokens at positions 1..n of the prefix before that layer."""
    x, (groups, shared) = rows.lay_out(prompts, tower.dtype), prompts.prefix.shape[:2]
    masks: dict[torch.dtype, list[Tensor]] = {}

    def mask(of: int, dtype: torch.dtype) -> Tensor:
        if dtype not in masks:  # one row serves all groups as it is
            times = groups if len(rows.owners) > 1 else 1
            masks[dtype] = [each.repeat(times, 1, 1, 1) if times > 1 else each for each in rows.masks(dtype)]
        return masks[dtype][of]

    for layer, block in enumerate(blocks):
        if layer in deep:
            x = tower.replace(x, shared, (), deep[layer].to(tower.dtype))
        if layer < len(blocks) - 1:
            q, k, v = block.query_key_value(x).chunk(3, dim=-1)
            x = block.finish(x, block.attend(q, k, v, mask=mask(OF_TOKENS, q.dtype)))
    last = rows.read(x)
    k, v = block.key_value(x).chunk(2, dim=-1)
    attended = block.attend(block.query(last), k, v, mask=mask(OF_ENDS, k.dtype))
    return rows.classes(tower.project(block.finish(last, attended)))
