"""CLIP's text tower: embedded prompts -> text features.

The tower is causal, and its output is read at the end-of-text token. Hence the tokens behind a class's end-of-text
token change nothing and are not computed. The tokens before the class name are the same for every class: they are
computed once (the prefix), not once per class. A prompt has 77 tokens, a class of ImageNet about four of its own.
"""
from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prompting.blocks import Block, Blocks, Tower, has_hooks
from prompting.class_prompts import EOS, SOS, ClassPrompts, Prompts, readable
from prompting.errors import PromptingError
from prompting.openai import tokenizer
from prompting.parallel import Collectives, SingleProcess, divide
from prompting.passes import Passes
from prompting.text_memory import Remembered

if TYPE_CHECKING:
    from clip.model import CLIP

# Method files import ClassPrompts and readable from here, tools the tokenizer.
__all__ = ["ClassPrompts", "TextTower", "readable", "tokenizer"]

# What a layer keeps for the backward pass, in vectors of the tower's width: so many per token, and so many more per key
# of a class (its own tokens and a copy of the prefix).
KEPT_PER_TOKEN = 10
KEPT_PER_TOKEN_TRAINED = 18  # where its weights want gradients, which keep the inputs of the linear layers, too
KEPT_PER_KEY = 2
PADDING_ON_GPU = 512  # padding tokens that one piece may have
# Tokens that a rank must be spared for a pass to be divided: fewer take less time than exchanging the features. A GPU
# runs a small pass hardly faster than one of a few thousand tokens.
WORTH_DIVIDING = {"cpu": 16, "cuda": 2048}


@dataclass
class Bucket:
    """Classes whose own tokens are run in one piece.

    classes: (C',), their places in the list; length: own tokens of the longest class; ends: (C',), the place of each
    class's last token, or None where all are equally long.
    """

    classes: Tensor
    length: int
    ends: Tensor | None

    def __len__(self) -> int:
        return len(self.classes)


class TextTower(Tower):
    """CLIP's text tower over `Prompts`.

    Attributes: width W, embed_dim E, layers, context_length (77 tokens);
        trainable: whether its modules and weights may change and want gradients;
        activation_bytes: how much a pass may keep for its backward pass. A pass that would need more runs its classes
        in chunks, and computes them again in the backward pass. None: no limit. Chunks change rounding, so set it once
        per run;
        padding: how many tokens may pad classes to one length, to run them in one piece;
        ranks: the processes that share a pass;
        passes: the counter of prompts; memory: of the frozen sentences that were encoded before, or None.
    """

    def __init__(self, clip_model: CLIP, ranks: Collectives | None = None, passes: Passes | None = None,
                 trainable: bool = False) -> None:
        self.model, self.ranks, self.passes = clip_model, ranks or SingleProcess(), passes or Passes()
        self.trainable, self.dtype = trainable, clip_model.text_projection.dtype
        self.stack = Blocks(clip_model, text=True, changing=trainable)
        self.width, self.embed_dim = clip_model.text_projection.shape
        self.context_length: int = clip_model.context_length
        self.activation_bytes: int | None = None
        self.memory: Remembered | None = None
        self.padding = PADDING_ON_GPU if self.device.type == "cuda" else 0

    @property
    def trained(self) -> bool:
        """Whether a weight of the tower wants a gradient, or a hook in it may bring in something that does."""
        model = self.model
        return self.trainable and (
            model.positional_embedding.requires_grad or model.text_projection.requires_grad
            or any(any(map(has_hooks, part.modules())) or any(p.requires_grad for p in part.parameters())
                   for part in (model.transformer, model.token_embedding, model.ln_final)))

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.text_projection.device
        return device

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Token numbers (...,) -> float32 vectors (..., W), without positions."""
        embedded: Tensor = self.model.token_embedding(tokens.to(self.device))
        return embedded.float()

    def embed_words(self, words: str) -> Tensor:
        """A few words -> their token vectors (n, W), the usual start of a learned context.

        Raises PromptingError for more words than fit."""
        tokens = tokenizer.encode(words.replace("_", " "))
        if not 0 < len(tokens) <= self.context_length - 2:
            raise PromptingError(f"the initial context '{words}' has {len(tokens)} tokens; "
                                 f"1 to {self.context_length - 2} fit")
        return self.embed_tokens(torch.tensor(tokens))

    def positions(self, start: int, length: int) -> Tensor:
        """The vectors of `length` positions from `start` on, (length, W) float32."""
        embedding: Tensor = self.model.positional_embedding
        return embedding[start:start + length].float()

    def encode(self, prompts: Prompts, deep: Mapping[int, Tensor] | None = None) -> Tensor:
        """Run the tower.

        Args:
            prompts: a `Prompts`.
            deep: {layer: (n, W)}: vectors that replace the tokens at positions 1..n before that layer (from 1 on).
                (C, n, W) gives each class its own; the prompts' prefix must then be the start token alone.
        Returns:
            (G, C, E), not normalised.
        Raises:
            PromptingError: there are more shared deep prompts than context vectors in the prefix.
        """
        self.passes.add(texts=len(prompts.prefix) * len(prompts.eot))
        return self._encode(prompts, deep)

    def _encode(self, prompts: Prompts, deep: Mapping[int, Tensor] | None = None) -> Tensor:
        """`encode`, divided between the ranks where that is worth it."""
        groups, shared = prompts.prefix.shape[:2]
        lengths = [end - shared + 1 for end in prompts.eot.tolist()]
        divided = self._divided_by(groups, shared, lengths)
        if divided is None:
            return self._encode_share(prompts, deep, lengths)

        def some_groups(rows: slice) -> Tensor:
            suffix = prompts.suffix[rows] if len(prompts.suffix) > 1 else prompts.suffix
            return self._encode_share(Prompts(prompts.prefix[rows], suffix, prompts.eot), deep, lengths)

        def some_classes(rows: slice) -> Tensor:
            own = {layer: vectors[rows] if vectors.dim() == 3 else vectors for layer, vectors in (deep or {}).items()}
            return self._encode_share(Prompts(prompts.prefix, prompts.suffix[:, rows], prompts.eot[rows]), own,
                                      lengths[rows])

        if divided == "groups":
            return divide(self.ranks, groups, some_groups, draws=self.device if self.trainable else None)
        return divide(self.ranks, len(lengths), some_classes, dim=1, draws=self.device if self.trainable else None)

    def _divided_by(self, groups: int, shared: int, lengths: Sequence[int]) -> str | None:
        """What the ranks divide a pass by: "groups", "classes", or None where every rank runs all of it."""
        ranks = self.ranks.world_size
        if ranks == 1:
            return None
        own, n_cls = sum(lengths), len(lengths)
        tokens = {"groups": -(-groups // ranks) * (shared + own),
                  "classes": groups * (shared + own * -(-n_cls // ranks) / n_cls)}  # of the longest share
        best = min(tokens, key=tokens.__getitem__)
        spared = groups * (shared + own) - tokens[best]
        return best if spared >= WORTH_DIVIDING.get(self.device.type, 0) else None

    def _encode_share(self, prompts: Prompts, deep: Mapping[int, Tensor] | None, lengths: Sequence[int]) -> Tensor:
        """`encode` on this rank; `lengths`: how many tokens of its own each class has."""
        groups, shared = prompts.prefix.shape[:2]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        whole = any(block.whole for block in self.blocks)
        if whole:
            lengths, shared = [self.context_length] * len(order), 0
        features = []
        for chunk in self._chunks(order, lengths, groups, shared):
            run = functools.partial(self._encode_whole, prompts, chunk, deep) if whole else functools.partial(
                self._encode_chunk, prompts.prefix, prompts.suffix, self._buckets(chunk, lengths), deep)
            # A tower that is trained may have dropout.
            features.append(run() if len(chunk) == len(order) else
                            checkpoint(run, use_reentrant=False, preserve_rng_state=self.trainable))
        places = torch.empty(len(order), dtype=torch.long)
        places[order] = torch.arange(len(order))
        return torch.cat(features, dim=1)[:, places.to(self.device)]

    def _chunks(self, order: list[int], lengths: Sequence[int], groups: int, shared: int) -> list[list[int]]:
        """The sorted classes in as few pieces as `activation_bytes` allows; one piece where nothing is kept."""
        if self.activation_bytes is None or not torch.is_grad_enabled():
            return [order]
        vector = self.width * self.layers * self.dtype.itemsize * groups
        per_token = KEPT_PER_TOKEN_TRAINED if self.trainable else KEPT_PER_TOKEN
        room = self.activation_bytes // vector - (per_token + KEPT_PER_KEY) * shared
        chunks: list[list[int]] = [[]]
        used = 0
        for index in order:
            kept = per_token * lengths[index] + KEPT_PER_KEY * (shared + lengths[index])
            if chunks[-1] and used + kept > room:
                chunks.append([])
                used = 0
            chunks[-1].append(index)
            used += kept
        return chunks

    def _buckets(self, order: list[int], lengths: Sequence[int]) -> list[Bucket]:
        """Classes of one length together. A GPU runs few large pieces faster than many small ones: there shorter
        classes join longer ones as long as few tokens of padding are needed."""
        pieces: list[list[int]] = []
        longest = padding = 0
        for index in reversed(order):
            shorter = longest - lengths[index]
            if not pieces or padding + shorter > self.padding:
                pieces.append([])
                longest, shorter, padding = lengths[index], 0, 0
            pieces[-1].append(index)
            padding += shorter
        buckets = []
        for piece in (piece[::-1] for piece in reversed(pieces)):  # in the order of `order`
            ends = [lengths[i] - 1 for i in piece]
            buckets.append(Bucket(torch.tensor(piece, device=self.device), ends[-1] + 1,
                                  None if ends[0] == ends[-1] else torch.tensor(ends, device=self.device)))
        return buckets

    def _encode_chunk(self, prefix: Tensor, suffix: Tensor, buckets: list[Bucket],
                      deep: Mapping[int, Tensor] | None) -> Tensor:
        """-> (G, C', E), the classes of the buckets in turn.

        The tokens of the prefix and the own tokens of all classes are concatenated to one row (G, N, W), without
        padding; only attention takes them apart."""
        dtype, groups, shared = self.dtype, *prefix.shape[:2]
        suffix = suffix.to(dtype).expand(groups, -1, -1, -1)
        own = [suffix[:, bucket.classes, :bucket.length] for bucket in buckets]
        x = torch.cat([prefix.to(dtype), *(part.flatten(1, 2) for part in own)], dim=1)
        blocks = self.blocks
        for layer, block in enumerate(blocks):
            if deep and layer in deep:
                x = self._replace(x, shared, buckets, deep[layer].to(dtype))
            if layer < len(blocks) - 1:
                x = self._block(block, x, shared, buckets)
        return self._read_out(block, x, shared, buckets)

    def _encode_whole(self, prompts: Prompts, classes: list[int], deep: Mapping[int, Tensor] | None) -> Tensor:
        """-> (G, C', E), some classes in sequences as CLIP has them: all of the context's tokens, nothing shared. So
        that blocks can be called which may be anything."""
        place = torch.tensor(classes, device=self.device)
        groups, shared = prompts.prefix.shape[:2]
        own = prompts.suffix.expand(groups, -1, -1, -1)[:, place]  # (G, C', S, W)
        start = prompts.prefix[:, None].expand(-1, len(classes), -1, -1)
        length = shared + own.shape[2]
        padding = self.embed_tokens(torch.zeros(self.context_length - length, dtype=torch.long))
        padding = padding + self.positions(length, len(padding))
        x = torch.cat([start, own, padding.expand(groups, len(classes), -1, -1)], dim=2).flatten(0, 1).to(self.dtype)
        for layer, block in enumerate(self.blocks):
            if deep and layer in deep:
                vectors = deep[layer].to(self.dtype)
                _require_room(vectors, shared)
                vectors = vectors.expand(len(x), -1, -1) if vectors.dim() == 2 else vectors[place].repeat(groups, 1, 1)
                x = torch.cat([x[:, :1], vectors, x[:, 1 + vectors.shape[1]:]], dim=1)
            x = block.run_whole(x)
        return self._project(x[torch.arange(len(x), device=x.device), prompts.eot[place].repeat(groups)]).view(
            groups, len(classes), -1)

    def _project(self, tokens: Tensor) -> Tensor:
        """The final norm and the projection: (..., W) -> (..., E)."""
        features: Tensor = self.model.ln_final(tokens)
        projection: Tensor = self.model.text_projection
        return features.to(projection.dtype) @ projection

    def _take_apart(self, tokens: Tensor, shared: int, buckets: list[Bucket]) -> tuple[Tensor, list[Tensor]]:
        """(G, N, W) -> the tokens of the prefix (G, P, W), and those of each bucket (G, C', S, W)."""
        parts = tokens.split_with_sizes([shared, *(len(b) * b.length for b in buckets)], dim=1)
        return parts[0], [part.view(len(part), len(b), b.length, part.shape[-1]) for part, b in zip(parts[1:], buckets)]

    def _replace(self, x: Tensor, shared: int, buckets: list[Bucket], deep: Tensor) -> Tensor:
        """Put deep prompts, (n, W) or (C, n, W), at the positions 1..n of the sequence."""
        _require_room(deep, shared)
        if deep.dim() == 2:
            return torch.cat([x[:, :1], deep.expand(len(x), -1, -1), x[:, 1 + len(deep):]], dim=1)
        first, own = self._take_apart(x, shared, buckets)  # per class, in the suffix
        n = deep.shape[1]
        own = [torch.cat([deep[bucket.classes].expand(len(x), -1, -1, -1), part[:, :, n:]], dim=2).flatten(1, 2)
               for bucket, part in zip(buckets, own)]
        return torch.cat([first, *own], dim=1)

    def _block(self, block: Block, x: Tensor, shared: int, buckets: list[Bucket]) -> Tensor:
        """One block for all tokens: the prefix attends to itself, the tokens of a class to the prefix and to
        themselves."""
        prefix, own = self._take_apart(block.query_key_value(x), shared, buckets)
        q, k, v = prefix.chunk(3, dim=-1)
        seen = [block.attend(q, k, v, causal=True)]
        for bucket, part in zip(buckets, own):
            query, key_value = part.split_with_sizes([self.width, 2 * self.width], dim=-1)
            mask = torch.ones(bucket.length, shared + bucket.length, dtype=torch.bool, device=x.device).tril(shared)
            keys, values = _behind(prefix[..., self.width:], key_value)
            seen.append(block.attend(query, keys, values, mask=mask).flatten(1, 2))
        return block.finish(x, torch.cat(seen, dim=1))

    def _read_out(self, block: Block, x: Tensor, shared: int, buckets: list[Bucket]) -> Tensor:
        """The last block for the end-of-text tokens only, the final norm and the projection -> (G, C', E)."""
        _, tokens = self._take_apart(x, shared, buckets)
        last = torch.cat([part[:, :, -1] if bucket.ends is None else
                          part[:, torch.arange(len(bucket), device=x.device), bucket.ends]
                          for bucket, part in zip(buckets, tokens)], dim=1)  # (G, C', W)
        queries = block.query(last).split_with_sizes([len(bucket) for bucket in buckets], dim=1)
        prefix, own = self._take_apart(block.key_value(x), shared, buckets)
        seen = []
        for bucket, query, key_value in zip(buckets, queries, own):
            keys, values = _behind(prefix, key_value)
            mask = None
            if bucket.ends is not None:
                mask = torch.arange(keys.shape[2], device=x.device) <= shared + bucket.ends[:, None]
                mask = mask.repeat(len(x), 1)[:, None, None]
            seen.append(block.attend(query[:, :, None], keys, values, mask=mask)[:, :, 0])
        return self._project(block.finish(last, torch.cat(seen, dim=1)))

    def encode_texts(self, texts: Sequence[str], chunk: int = 256) -> Tensor:
        """Plain sentences -> (len(texts), E) float32, not normalised; with gradients where the tower is trained.

        Raises PromptingError for a sentence longer than CLIP's context."""
        learns = torch.is_grad_enabled() and self.trained
        chunk = len(texts) if learns else chunk  # what is kept for the backward pass has its own limit
        encode = self.encode_sentences if self.memory is None else functools.partial(self.memory.features, self)
        with torch.set_grad_enabled(learns):
            return torch.cat([encode(self.tokenize(texts[start:start + chunk]))  # a copy, also of a single tensor
                              for start in range(0, len(texts), chunk)])

    def encode_sentences(self, tokens: Tensor) -> Tensor:
        """Token numbers of whole sentences (C, T) -> (C, E) float32, not normalised."""
        x = self.embed_tokens(tokens) + self.positions(0, tokens.shape[1])
        return self._encode(Prompts(x[:1, :1], x[None, :, 1:], tokens.argmax(dim=1)))[0].float()

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """(len(texts), T) token numbers; T is the length of the longest sentence with its start and end tokens."""
        rows = [[SOS, *tokenizer.encode(text), EOS] for text in texts]
        length = max(len(row) for row in rows)
        if length > self.context_length:
            longest = max(range(len(rows)), key=lambda i: len(rows[i]))
            raise PromptingError(f"'{texts[longest][:80]}' has {length} tokens, more than the {self.context_length} "
                                 "that CLIP reads; shorten the class name or the template")
        return torch.tensor([row + [0] * (length - len(row)) for row in rows], device=self.device)


def _require_room(deep: Tensor, shared: int) -> None:
    """Raise PromptingError where deep prompts of all classes, (n, W), are more than the prefix has context vectors."""
    if deep.dim() == 2 and len(deep) >= shared:
        raise PromptingError(f"{len(deep)} deep prompts of all classes need as many context vectors in front of the "
                             f"class names; there are {shared - 1}")


def _behind(shared: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the prefix (G, P, 2 W) in front of those of each class (G, C, S, 2 W)
    -> keys and values, (G, C, P + S, W) each."""
    keys, values = torch.cat([shared[:, None].expand(-1, own.shape[1], -1, -1), own], dim=2).chunk(2, dim=-1)
    return keys, values
