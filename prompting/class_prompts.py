"""Class names and a context -> embedded prompts."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prompting.errors import PromptingError, meant
from prompting.openai import tokenizer

if TYPE_CHECKING:
    from prompting.text import TextTower

POSITIONS = ("end", "middle", "front")  # of the class name, seen from the context
SOS, EOS = 49406, 49407  # <|startoftext|> and <|endoftext|>, the last of the vocabulary


def readable(classname: str) -> str:
    """A class name as it stands in a prompt: "alarm_clock" -> "alarm clock"."""
    return classname.replace("_", " ")


@dataclass
class Prompts:
    """Embedded prompts of C classes, positions added.

    prefix: (G, P, W), the tokens that all classes of a group share (a group is an image with prompts of its own;
        otherwise G = 1); suffix: (G or 1, C, S, W), each class's own tokens; eot: (C,), the position of each class's
        end-of-text token in the whole sequence of P + S tokens; ends: the same numbers where the host knows them, which
        then waits for no device.
    """

    prefix: Tensor
    suffix: Tensor
    eot: Tensor
    ends: tuple[int, ...] | None = None

    def own_lengths(self) -> list[int]:
        """How many tokens of its own each class has."""
        ends = self.eot.tolist() if self.ends is None else self.ends
        return [end - self.prefix.shape[1] + 1 for end in ends]


class ClassPrompts:
    """The prompts of a list of classes around a learned context.

    The sequence of a class is, with SOS and EOS around it, for `position`
        end:    ctx, name, words after it, "."
        middle: first half of ctx, name, second half, "."
        front:  name, ctx, "."

    Args:
        tower: the TextTower.
        classnames: names; "_" is read as a space.
        n_ctx: number of context vectors.
        position: end, middle or front (CoOp, section 3.1).
        between: fixed words between the context and the name ("of a" where only "a photo" is learned).
        after: what stands right behind the name (" texture." where that word belongs to the prompt).
    Raises:
        PromptingError: unknown position, or a class name with which the prompt is longer than CLIP's context.
    """

    def __init__(self, tower: TextTower, classnames: Sequence[str], n_ctx: int, position: str = "end",
                 between: str = "", after: str = ".") -> None:
        if position not in POSITIONS:
            raise PromptingError("the class token's position is end, middle or front, not "
                                 f"'{position}'{meant(position, POSITIONS)}")
        self.tower, self.n_ctx, self.n_cls = tower, n_ctx, len(classnames)
        self.before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]  # context vectors before the name
        behind = n_ctx - self.before
        rows, places = [], []
        for name in classnames:
            named = f"{between} {readable(name)}".strip()
            words = tokenizer.encode(f"{named}{after}")  # as one text: CLIP's BPE joins punctuation, as in "St."
            length = len(words) + n_ctx + 2
            if length > tower.context_length:
                raise PromptingError(f"class name '{name[:80]}' is too long: with {n_ctx} context tokens its prompt "
                                     f"has {length} tokens, CLIP reads {tower.context_length}; shorten "
                                     "it, or take fewer")
            split = min(len(tokenizer.encode(named)), len(words))
            rows.append([SOS] + [0] * self.before + words[:split] + [0] * behind + words[split:] + [EOS])
            start = 1 + self.before + split
            places.append(list(range(start, start + behind)))
        length = max(len(row) for row in rows)
        self.tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=tower.device)
        # (vectors of all tokens, of all positions) of a frozen tower
        self._kept = None if tower.trainable else (self.embedded, self.positions)
        self.ends = tuple(len(row) - 1 for row in rows)
        self.eot = torch.tensor(self.ends, device=tower.device)
        self.places = torch.tensor(places, dtype=torch.long, device=tower.device).view(len(rows), behind)

    @property
    def embedded(self) -> Tensor:
        """The vectors of all tokens, (C, T, W). Those in the context's places are not used."""
        return self.tower.embed_tokens(self.tokens)

    @property
    def positions(self) -> Tensor:
        """The vectors of the positions, (T, W)."""
        return self.tower.positions(0, self.tokens.shape[1])

    def __call__(self, ctx: Tensor, classes: Tensor | None = None) -> Prompts:
        """Put the context in.

        Args:
            ctx: (n_ctx, W) for all classes; (C, 1, n_ctx, W) class-specific; (G, n_ctx, W) one per group (image).
            classes: indices of the classes wanted, (C',); default all.
        Returns:
            Prompts of the C' classes.
        """
        embedded, positions = self._kept or (self.embedded, self.positions)
        eot, places, ends = self.eot, self.places, self.ends if classes is None else None
        if classes is not None:
            embedded, eot, places = embedded[classes], eot[classes], places[classes]
        own = ctx.dim() == 4
        if own:  # (C, 1, n, W) -> (1, C, n, W): nothing but the start token is shared
            ctx = (ctx if classes is None else ctx[classes]).transpose(0, 1)
            in_prefix = 0
        else:
            ctx = (ctx[None] if ctx.dim() == 2 else ctx)[:, None]  # (G, 1, n, W)
            in_prefix = self.before
        groups, shared = ctx.shape[0], 1 + in_prefix
        start = embedded[:1, :1].expand(groups, -1, -1)
        prefix = torch.cat([start, ctx[:, 0, :in_prefix]], dim=1) + positions[:shared]

        suffix = embedded[None, :, shared:]
        if in_prefix < self.n_ctx:
            n_cls, width = len(embedded), embedded.shape[-1]
            front = torch.arange(1, 1 + self.before, device=places.device).expand(n_cls, -1)
            index = (torch.cat([front, places], dim=1) if own else places) - shared
            index = index.view(1, n_cls, -1, 1).expand(groups, -1, -1, width)
            learned = ctx[:, :, in_prefix:].expand(-1, n_cls, -1, -1)
            suffix = suffix.expand(groups, -1, -1, -1).scatter(2, index, learned.to(suffix.dtype))
        return Prompts(prefix, suffix + positions[shared:], eot, ends)
