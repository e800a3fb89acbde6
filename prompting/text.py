"""CLIP's text tower: embedded prompts -> text features.

The tower is causal, and its output is read at the end-of-text token. Hence the tokens behind a class's end-of-text
token change nothing and are not computed. The tokens before the class name are the same for every class: they are
computed once (the prefix), not once per class. A prompt has 77 tokens, a class of ImageNet about four of its own.
"""
from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prompting.block_adapters import Adapters, adapted, draw
from prompting.blocks import Block, Blocks, Tower, has_hooks
from prompting.class_prompts import EOS, SOS, ClassPrompts, Prompts, readable
from prompting.errors import PromptingError
from prompting.openai import tokenizer
from prompting.parallel import Collectives, SingleProcess, divide
from prompting.passes import Passes
from prompting.text_chunks import KEPT_PER_TOKEN, KEPT_PER_TOKEN_TRAINED, in_chunks
from prompting.text_layout import Bucket, behind, buckets_of, common_start, last_tokens, take_apart
from prompting.text_learned import Learned, require_room
from prompting.text_memory import Remembered
from prompting.text_rows import encode_rows, rows_of

if TYPE_CHECKING:
    from clip.model import CLIP

# Method files import ClassPrompts and readable from here, tools the tokenizer.
__all__ = ["ClassPrompts", "TextTower", "readable", "tokenizer"]

PADDING_ON_GPU = 512  # padding tokens that one piece may have
# Tokens that a rank must be spared for a pass to be divided: fewer take less time than exchanging the features. A GPU
# runs a small pass hardly faster than one of a few thousand tokens.
WORTH_DIVIDING = {"cpu": 16, "cuda": 2048}


class TextTower(Tower):
    """CLIP's text tower over `Prompts`.

    Attributes: width W, embed_dim E, layers, context_length (77 tokens);
        trainable: whether its modules and weights may change and want gradients;
        activation_bytes: how much a pass may keep for its backward pass. A pass that would need more runs its classes
        in chunks, and computes them again in the backward pass. None: no limit. Chunks change rounding, so set it once
        per run;
        largest_pass: how much a pass has wanted to keep at most, in bytes; who looks at it sets it to 0;
        packed: whether many classes share a row of tokens, which launches fewer kernels (`text_rows`);
        padding: where they do not, how many tokens may pad classes to one length, to run them in one piece;
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
        self.largest_pass = 0
        self.memory: Remembered | None = None
        self.packed, self.padding = False, 0
        if self.device.type != "cpu":
            self.run_as_on_gpu()

    def run_as_on_gpu(self) -> None:
        """Launch as few kernels as can be, at the price of some tokens that nobody reads."""
        self.packed, self.padding = True, PADDING_ON_GPU

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

    def encode(self, prompts: Prompts, deep: Mapping[int, Tensor] | None = None, adapters: Adapters | None = None,
               inserted: bool = False) -> Tensor:
        """Run the tower.

        Args:
            prompts: a `Prompts`.
            deep: {layer: (n, W)}: vectors that replace the tokens at positions 1..n before that layer (from 1 on).
                (C, n, W) gives each class its own; the prompts' prefix must then be the start token alone.
            adapters: {layer: BlockAdapter} of what is learned beside the blocks.
            inserted: whether the vectors of the first layer of `deep` (from 0 on) are not to replace tokens but come in
                between the start token and the next; those of the other layers then replace them.
        Returns:
            (G, C, E), not normalised.
        Raises:
            PromptingError: there are more shared deep prompts than context vectors in the prefix; or the tower has
                blocks that can only be called as a whole, which takes neither adapters nor inserted tokens; or there
                are deep prompts beside adapters that draw, inserted ones that differ in number or by class, or an
                adapter of AT_INPUT, which the prompts take themselves.
        """
        self.passes.add(texts=len(prompts.prefix) * len(prompts.eot))
        learned = Learned(deep or {}, adapters, inserted)
        learned.require_one_kind()
        return self._encode(prompts, learned)

    def _encode(self, prompts: Prompts, learned: Learned | None = None) -> Tensor:
        """`encode`, divided between the ranks where that is worth it."""
        learned = learned or Learned({})
        if draw(learned.adapters):  # each class draws for all of its tokens
            start = prompts.prefix[:, None].expand(-1, len(prompts.eot), -1, -1)
            suffix = prompts.suffix.expand(len(start), -1, -1, -1)
            prompts = Prompts(prompts.prefix[:, :0], torch.cat([start, suffix], dim=2), prompts.eot, prompts.ends)
        if self.ranks.world_size == 1:
            return self._encode_share(prompts, learned)
        groups, shared = prompts.prefix.shape[:2]
        lengths = prompts.own_lengths()
        divided = self._divided_by(groups, shared, lengths)
        if divided is None:
            return self._encode_share(prompts, learned, lengths)

        def some_groups(rows: slice) -> Tensor:
            suffix = prompts.suffix[rows] if len(prompts.suffix) > 1 else prompts.suffix
            return self._encode_share(Prompts(prompts.prefix[rows], suffix, prompts.eot), learned, lengths)

        def some_classes(rows: slice) -> Tensor:
            return self._encode_share(Prompts(prompts.prefix, prompts.suffix[:, rows], prompts.eot[rows]),
                                      learned.of_classes(rows), lengths[rows])

        draws = self.device if self.trainable or draw(learned.adapters) else None
        if divided == "groups":
            return divide(self.ranks, groups, some_groups, draws=draws)
        return divide(self.ranks, len(lengths), some_classes, dim=1, draws=draws)

    def _divided_by(self, groups: int, shared: int, lengths: Sequence[int]) -> str | None:
        """What the ranks divide a pass by: "groups", "classes", or None where every rank runs all of it."""
        ranks = self.ranks.world_size
        own, n_cls = sum(lengths), len(lengths)
        tokens = {"groups": -(-groups // ranks) * (shared + own),
                  "classes": groups * (shared + own * -(-n_cls // ranks) / n_cls)}  # of the longest share
        best = min(tokens, key=tokens.__getitem__)
        spared = groups * (shared + own) - tokens[best]
        return best if spared >= WORTH_DIVIDING.get(self.device.type, 0) else None

    def _encode_share(self, prompts: Prompts, learned: Learned, lengths: Sequence[int] | None = None) -> Tensor:
        """`encode` on this rank. lengths: how many tokens of its own each class has, if that was asked for before."""
        (groups, shared), own_tokens = prompts.prefix.shape[:2], prompts.suffix.shape[2]
        blocks, draws = adapted(self.blocks, learned.adapters), draw(learned.adapters)
        whole = any(block.whole for block in blocks)
        in_rows = self.packed and learned.in_prefix and not whole
        # What only the device knows is not waited for: each class is as long as the longest may be.
        padded = in_rows and lengths is None and prompts.ends is None
        if whole:
            lengths, shared = [self.context_length] * len(prompts.eot), 0
        elif padded:
            lengths = [own_tokens] * len(prompts.eot)
        elif lengths is None:
            lengths = prompts.own_lengths()

        def run(chunk: list[int]) -> Tensor:
            if whole:
                return self._encode_whole(prompts, chunk, learned)
            own = tuple(lengths[index] for index in chunk)
            if in_rows:
                rows = rows_of(tuple(chunk), own, shared, own_tokens, self.device)
                if padded:  # they are in their order, as all are equally long
                    rows = rows.ending_earlier(shared + own_tokens - 1 - prompts.eot[chunk[0]:chunk[-1] + 1])
                return encode_rows(self, prompts, rows, learned.deep, blocks)
            buckets = buckets_of(tuple(chunk), own, self.padding, self.device)
            return self._encode_chunk(prompts, buckets, learned, blocks)

        per_token = KEPT_PER_TOKEN_TRAINED if self.trainable or learned.adapters else KEPT_PER_TOKEN
        # A tower that is trained, or an adapter, may have dropout.
        return in_chunks(self, run, lengths, groups, shared + learned.inserted_tokens, per_token,
                         draws=self.trainable or draws)

    def _encode_chunk(self, prompts: Prompts, buckets: list[Bucket], learned: Learned, blocks: list[Block]) -> Tensor:
        """-> (G, C', E), the classes of the buckets in turn."""
        x, shared = self.lay_out(prompts, buckets), prompts.prefix.shape[1]
        for layer, block in enumerate(blocks):
            if layer in learned.deep:
                vectors = learned.deep[layer].to(self.dtype)
                if learned.inserted and layer == min(learned.deep):
                    x = torch.cat([x[:, :1], vectors.expand(len(x), -1, -1), x[:, 1:]], dim=1)
                    shared += len(vectors)
                else:
                    x = self.replace(x, shared, buckets, vectors)
            if layer < len(blocks) - 1:
                x = self.run_block(block, x, shared, buckets)
        return self._read_out(block, x, shared, buckets)

    def lay_out(self, prompts: Prompts, buckets: list[Bucket]) -> Tensor:
        """The tokens of the prefix and the own tokens of the classes of all buckets, concatenated to one row (G, N, W),
        without padding; only attention takes them apart."""
        groups = len(prompts.prefix)
        suffix = prompts.suffix.to(self.dtype).expand(groups, -1, -1, -1)
        own = [suffix[:, bucket.classes, :bucket.length].flatten(1, 2) for bucket in buckets]
        return torch.cat([prompts.prefix.to(self.dtype), *own], dim=1)

    def _encode_whole(self, prompts: Prompts, classes: list[int], learned: Learned) -> Tensor:
        """-> (G, C', E), some classes in sequences as CLIP has them: all of the context's tokens, nothing shared. So
        that blocks can be called which may be anything."""
        if learned.inserted:
            raise PromptingError("tokens can be inserted between CLIP's own blocks only; a block of this CLIP is "
                                 "another one, or has hooks")
        place = torch.tensor(classes, device=self.device)
        groups, shared = prompts.prefix.shape[:2]
        own = prompts.suffix.expand(groups, -1, -1, -1)[:, place]  # (G, C', S, W)
        start = prompts.prefix[:, None].expand(-1, len(classes), -1, -1)
        length = shared + own.shape[2]
        padding = self.embed_tokens(torch.zeros(self.context_length - length, dtype=torch.long))
        padding = padding + self.positions(length, len(padding))
        x = torch.cat([start, own, padding.expand(groups, len(classes), -1, -1)], dim=2).flatten(0, 1).to(self.dtype)
        for layer, block in enumerate(self.blocks):
            if layer in learned.deep:
                vectors = learned.deep[layer].to(self.dtype)
                require_room(vectors, shared)
                vectors = vectors.expand(len(x), -1, -1) if vectors.dim() == 2 else vectors[place].repeat(groups, 1, 1)
                x = torch.cat([x[:, :1], vectors, x[:, 1 + vectors.shape[1]:]], dim=1)
            x = block.run_whole(x)
        return self.project(x[torch.arange(len(x), device=x.device), prompts.eot[place].repeat(groups)]).view(
            groups, len(classes), -1)

    def project(self, tokens: Tensor) -> Tensor:
        """The final norm and the projection: (..., W) -> (..., E)."""
        features: Tensor = self.model.ln_final(tokens)
        projection: Tensor = self.model.text_projection
        return features.to(projection.dtype) @ projection

    def replace(self, x: Tensor, shared: int, buckets: Sequence[Bucket], deep: Tensor) -> Tensor:
        """Put deep prompts, (n, W) or (C, n, W), at the positions 1..n of the sequence."""
        require_room(deep, shared)
        if deep.dim() == 2:
            start, _, end = x.split_with_sizes([1, len(deep), x.shape[1] - 1 - len(deep)], dim=1)
            return torch.cat([start, deep.expand(len(x), -1, -1), end], dim=1)
        first, own = take_apart(x, shared, buckets)  # per class, in the suffix
        n = deep.shape[1]
        own = [torch.cat([deep[bucket.classes].expand(len(x), -1, -1, -1), part[:, :, n:]], dim=2).flatten(1, 2)
               for bucket, part in zip(buckets, own)]
        return torch.cat([first, *own], dim=1)

    def run_block(self, block: Block, x: Tensor, shared: int, buckets: list[Bucket],
                  qkv: Tensor | None = None) -> Tensor:
        """One block for all tokens (G, N, W): the prefix attends to itself, the tokens of a class to the prefix and to
        themselves. qkv: the block's `query_key_value` of them, where it is known."""
        prefix, own = take_apart(block.query_key_value(x) if qkv is None else qkv, shared, buckets)
        q, k, v = prefix.chunk(3, dim=-1)
        seen = [block.attend(q, k, v, causal=True)] if shared else []
        for bucket, part in zip(buckets, own):
            query, key_value = part.split_with_sizes([self.width, 2 * self.width], dim=-1)
            keys, values = behind(prefix[..., self.width:], key_value)
            mask = bucket.causal(shared, query.dtype)
            seen.append(block.attend(query, keys, values, mask=mask).flatten(1, 2))
        return block.finish(x, torch.cat(seen, dim=1))

    def _read_out(self, block: Block, x: Tensor, shared: int, buckets: list[Bucket]) -> Tensor:
        """The last block for the end-of-text tokens only, the final norm and the projection -> (G, C', E)."""
        last = last_tokens(take_apart(x, shared, buckets)[1], buckets)  # (G, C', W)
        queries = block.query(last).split_with_sizes([len(bucket) for bucket in buckets], dim=1)
        prefix, own = take_apart(block.key_value(x), shared, buckets)
        seen = []
        for bucket, query, key_value in zip(buckets, queries, own):
            keys, values = behind(prefix, key_value)
            mask = bucket.up_to_end(shared, len(x), query.dtype)
            seen.append(block.attend(query[:, :, None], keys, values, mask=mask)[:, :, 0])
        return self.project(block.finish(last, torch.cat(seen, dim=1)))

    def encode_texts(self, texts: Sequence[str], chunk: int = 256) -> Tensor:
        """Plain sentences -> (len(texts), E) float32, not normalised; with gradients where the tower is trained.

        Raises PromptingError for a sentence longer than CLIP's context."""
        learns = torch.is_grad_enabled() and self.trained
        if learns:
            self.passes.add(texts=len(texts))
        chunk = len(texts) if learns else chunk  # what is kept for the backward pass has its own limit
        encode = self.encode_sentences if self.memory is None else functools.partial(self.memory.features, self)
        with torch.set_grad_enabled(learns):
            return torch.cat([encode(self.tokenize(texts[start:start + chunk]))  # a copy, also of a single tensor
                              for start in range(0, len(texts), chunk)])

    def encode_sentences(self, tokens: Tensor) -> Tensor:
        """Token numbers of whole sentences (C, T) -> (C, E) float32, not normalised."""
        return self._encode(self.sentences(tokens, share=self.trainable))[0].float()

    def sentences(self, tokens: Tensor, share: bool = True, embedded: Tensor | None = None) -> Prompts:
        """Token numbers of whole sentences (C, T) -> their Prompts. share: whether what they all start with is the
        prefix; else that is the start token. embedded: the vectors of the tokens (C, T, W), where they are not CLIP's.
        """
        eot = tokens.argmax(dim=1)
        x = (self.embed_tokens(tokens) if embedded is None else embedded) + self.positions(0, tokens.shape[1])
        ends = tuple(eot.tolist())
        shared = common_start(tokens, min(ends)) if share else 1
        return Prompts(x[:1, :shared], x[None, :, shared:], eot, ends)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """(len(texts), T) token numbers; T is the length of the longest sentence with its start and end tokens."""
        rows = [[SOS, *_words_of(text), EOS] for text in texts]
        length = max(len(row) for row in rows)
        if length > self.context_length:
            longest = max(range(len(rows)), key=lambda i: len(rows[i]))
            raise PromptingError(f"'{texts[longest][:80]}' has {length} tokens, more than the {self.context_length} "
                                 "that CLIP reads; shorten the class name or the template")
        return torch.tensor([row + [0] * (length - len(row)) for row in rows], device=self.device)


@functools.lru_cache(maxsize=2**14)  # a text tower that is trained reads the same sentences in each step
def _words_of(text: str) -> tuple[int, ...]:
    """The token numbers of a sentence."""
    return tuple(tokenizer.encode(text))
