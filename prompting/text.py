"""Class names -> prompt embeddings -> text features.

CLIP's text tower is causal and reads its output at the end-of-text token. Hence tokens behind a class's end-of-text
change nothing and are not computed, and the tokens before the class name, which are the same for every class, are
computed once (the prefix), not once a class. A prompt has 77 tokens, a class of ImageNet about four of its own.
"""
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

from prompting.blocks import Block
from prompting.errors import PromptingError
from prompting.openai import tokenizer
from prompting.passes import Passes
from prompting.ranks import Ranks

KEPT_PER_TOKEN = 10  # vectors of the tower's width that a token of a layer keeps for the backward pass, and
KEPT_PER_KEY = 2  # that each of a class's keys does (its own tokens and a copy of the prefix)
PADDING_ON_GPU = 512  # tokens that may be padded to spare a piece
# Tokens that dividing a pass must spare a rank: fewer take less time than exchanging the features. A GPU runs a small
# pass hardly faster than one of a few thousand tokens.
WORTH_DIVIDING = {"cpu": 16, "cuda": 2048}

SOS, EOS = 49406, 49407  # <|startoftext|> and <|endoftext|>, the last of the vocabulary


def readable(classname):
    """A class name as it stands in a prompt: "alarm_clock" -> "alarm clock"."""
    return classname.replace("_", " ")


@dataclass
class Prompts:
    """Embedded prompts, positions added.

    prefix: (G, P, W), the tokens all C classes of a group share (a group is an image whose prompts are its own;
        otherwise G = 1); suffix: (G or 1, C, S, W), each class's own tokens; eot: (C,), where in the whole sequence of
        P + S tokens a class's end-of-text token is.
    """

    prefix: torch.Tensor
    suffix: torch.Tensor
    eot: torch.Tensor


@dataclass
class Bucket:
    """Classes whose own tokens are run in one piece.

    classes: (C',) their places in the list; length: own tokens of the longest; ends: (C',) each one's last token, or
    None where all are equally long.
    """

    classes: torch.Tensor
    length: int
    ends: torch.Tensor | None

    def __len__(self):
        return len(self.classes)


class TextTower:
    """CLIP's text tower over `Prompts`; its weights stay as they are.

    Attributes: width W, embed_dim E, layers, context_length (77 tokens);
        activation_bytes: how much a pass may keep for its backward pass. One that would need more runs its classes in
        chunks and computes them again on the way back. None: no limit. Chunks change rounding, so set it once a run;
        padding: how many tokens may pad classes to one length, to run them in one piece;
        ranks: the processes that share a pass;
        passes: the counter of prompts.
    """

    def __init__(self, clip_model, ranks=None, passes=None):
        self.model, self.ranks, self.passes = clip_model, ranks or Ranks(), passes or Passes()
        self.blocks = [Block(block) for block in clip_model.transformer.resblocks]
        self.layers = len(self.blocks)
        self.width = clip_model.ln_final.weight.shape[0]
        self.embed_dim = clip_model.text_projection.shape[1]
        self.context_length = clip_model.context_length
        self.activation_bytes = None
        self.padding = PADDING_ON_GPU if self.device.type == "cuda" else 0

    @property
    def device(self):
        return self.model.text_projection.device

    def embed_tokens(self, tokens):
        """Token numbers (...,) -> float32 vectors (..., W), without positions."""
        return self.model.token_embedding(tokens.to(self.device)).float()

    def embed_words(self, words):
        """A few words -> their token vectors (n, W), the usual start of a learned context.

        Raises PromptingError for more words than fit."""
        tokens = tokenizer.encode(words.replace("_", " "))
        if not 0 < len(tokens) <= self.context_length - 2:
            raise PromptingError(f"the initial context '{words}' has {len(tokens)} tokens; "
                                 f"1 to {self.context_length - 2} fit")
        return self.embed_tokens(torch.tensor(tokens))

    def positions(self, start, length):
        return self.model.positional_embedding[start:start + length].float()

    def encode(self, prompts, deep=None):
        """Run the tower.

        Args:
            prompts: a `Prompts`.
            deep: {layer: (n, W)}: vectors that replace the tokens at positions 1..n before that layer (from 1 on).
                (C, n, W) gives each class its own; the prompts' prefix must then be the start token alone.
        Returns:
            (G, C, E), not normalised.
        Raises:
            PromptingError: shared deep prompts that are more than the prefix's context vectors.
        """
        self.passes.add(texts=len(prompts.prefix) * len(prompts.eot))
        return self._encode(prompts, deep)

    def _encode(self, prompts, deep=None):
        """What `encode` gives, each rank running its part."""
        groups, shared = prompts.prefix.shape[:2]
        lengths = [end - shared + 1 for end in prompts.eot.tolist()]
        divided = self._divided_by(groups, shared, lengths)
        if divided == "groups":
            def part(rows):
                suffix = prompts.suffix[rows] if len(prompts.suffix) > 1 else prompts.suffix
                return self._encode_share(Prompts(prompts.prefix[rows], suffix, prompts.eot), deep, lengths)

            return self.ranks.divide(groups, part)
        if divided == "classes":
            def part(rows):
                own = {layer: vectors[rows] if vectors.dim() == 3 else vectors
                       for layer, vectors in (deep or {}).items()}
                return self._encode_share(Prompts(prompts.prefix, prompts.suffix[:, rows], prompts.eot[rows]), own,
                                          lengths[rows])

            return self.ranks.divide(len(lengths), part, dim=1)
        return self._encode_share(prompts, deep, lengths)

    def _divided_by(self, groups, shared, lengths):
        """What the ranks divide a pass by: groups, classes, or None where all run the whole."""
        if self.ranks.size == 1:
            return None
        own, n_cls = sum(lengths), len(lengths)
        tokens = {"groups": -(-groups // self.ranks.size) * (shared + own),
                  "classes": groups * (shared + own * -(-n_cls // self.ranks.size) / n_cls)}  # the longest share
        best = min(tokens, key=tokens.get)
        spared = groups * (shared + own) - tokens[best]
        return best if spared >= WORTH_DIVIDING.get(self.device.type, 0) else None

    def _encode_share(self, prompts, deep, lengths):
        """What `encode` gives, on this rank; `lengths`: numbers of the classes' own tokens."""
        groups, shared = prompts.prefix.shape[:2]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        features = []
        for chunk in self._chunks(order, lengths, groups, shared):
            buckets = self._buckets(chunk, lengths)
            if len(chunk) < len(order):
                features.append(checkpoint(self._encode_chunk, prompts.prefix, prompts.suffix, buckets, deep,
                                           use_reentrant=False, preserve_rng_state=False))
            else:
                features.append(self._encode_chunk(prompts.prefix, prompts.suffix, buckets, deep))
        places = torch.empty(len(order), dtype=torch.long)
        places[order] = torch.arange(len(order))
        return torch.cat(features, dim=1)[:, places.to(self.device)]

    def _chunks(self, order, lengths, groups, shared):
        """The sorted classes in as few pieces as `activation_bytes` allows; one piece where nothing is kept."""
        if self.activation_bytes is None or not torch.is_grad_enabled():
            return [order]
        vector = self.width * self.layers * self.model.text_projection.element_size() * groups
        room = self.activation_bytes // vector - (KEPT_PER_TOKEN + KEPT_PER_KEY) * shared
        chunks, used = [[]], 0
        for index in order:
            kept = KEPT_PER_TOKEN * lengths[index] + KEPT_PER_KEY * (shared + lengths[index])
            if chunks[-1] and used + kept > room:
                chunks.append([])
                used = 0
            chunks[-1].append(index)
            used += kept
        return chunks

    def _buckets(self, order, lengths):
        """Classes of one length together. A GPU runs few large pieces faster than many small ones: there shorter
        classes join longer ones as long as the tokens that pad them are few."""
        pieces, longest, padding = [], 0, 0
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

    def _encode_chunk(self, prefix, suffix, buckets, deep):
        """-> (G, C', E), the classes of the buckets in turn.

        The prefix and the own tokens of all classes lie behind each other in one row (G, N, W), without padding; only
        attention takes them apart."""
        dtype, groups, shared = self.model.dtype, *prefix.shape[:2]
        suffix = suffix.to(dtype).expand(groups, -1, -1, -1)
        own = [suffix[:, bucket.classes, :bucket.length] for bucket in buckets]
        x = torch.cat([prefix.to(dtype), *(part.flatten(1, 2) for part in own)], dim=1)
        for layer, block in enumerate(self.blocks):
            if deep and layer in deep:
                x = self._replace(x, shared, buckets, deep[layer].to(dtype))
            if layer < self.layers - 1:
                x = self._block(block, x, shared, buckets)
        return self._read_out(block, x, shared, buckets)

    def _take_apart(self, tokens, shared, buckets):
        """(G, N, ...) -> the prefix's tokens (G, P, ...), and each bucket's (G, C', S, ...)."""
        parts = tokens.split([shared, *(len(b) * b.length for b in buckets)], dim=1)
        return parts[0], [part.unflatten(1, (len(b), b.length)) for part, b in zip(parts[1:], buckets)]

    def _replace(self, x, shared, buckets, deep):
        """Put the deep prompts in the places 1..n of the sequence."""
        if deep.dim() == 2:
            if len(deep) >= shared:
                raise PromptingError(f"{len(deep)} deep prompts of all classes need as many context vectors in front "
                                     f"of the class names; there are {shared - 1}")
            return torch.cat([x[:, :1], deep.expand(len(x), -1, -1), x[:, 1 + len(deep):]], dim=1)
        first, own = self._take_apart(x, shared, buckets)  # class by class, in the suffix
        n = deep.shape[1]
        own = [torch.cat([deep[bucket.classes].expand(len(x), -1, -1, -1), part[:, :, n:]], dim=2).flatten(1, 2)
               for bucket, part in zip(buckets, own)]
        return torch.cat([first, *own], dim=1)

    def _block(self, block, x, shared, buckets):
        """One block for all tokens: the prefix looks at itself, a class's tokens at the prefix and at themselves."""
        prefix, own = self._take_apart(block.query_key_value(x), shared, buckets)
        seen = [block.attend(*prefix.chunk(3, dim=-1), causal=True)]
        for bucket, part in zip(buckets, own):
            query, key_value = part.split([self.width, 2 * self.width], dim=-1)
            mask = torch.ones(bucket.length, shared + bucket.length, dtype=torch.bool, device=x.device).tril(shared)
            keys, values = _behind(prefix[..., self.width:], key_value)
            seen.append(block.attend(query, keys, values, mask=mask).flatten(1, 2))
        return block.finish(x, torch.cat(seen, dim=1))

    def _read_out(self, block, x, shared, buckets):
        """The last block for the end-of-text tokens only, final norm and projection."""
        _, tokens = self._take_apart(x, shared, buckets)
        last = torch.cat([part[:, :, -1] if bucket.ends is None else
                          part[:, torch.arange(len(bucket), device=x.device), bucket.ends]
                          for bucket, part in zip(buckets, tokens)], dim=1)  # (G, C', W)
        queries = block.query(last).split([len(bucket) for bucket in buckets], dim=1)
        prefix, own = self._take_apart(block.key_value(x), shared, buckets)
        seen = []
        for bucket, query, key_value in zip(buckets, queries, own):
            keys, values = _behind(prefix, key_value)
            mask = None
            if bucket.ends is not None:
                mask = torch.arange(keys.shape[2], device=x.device) <= shared + bucket.ends[:, None]
                mask = mask.repeat(len(x), 1)[:, None, None]
            seen.append(block.attend(query[:, :, None], keys, values, mask=mask)[:, :, 0])
        features = self.model.ln_final(block.finish(last, torch.cat(seen, dim=1)))
        return features.to(self.model.text_projection.dtype) @ self.model.text_projection

    @torch.no_grad()
    def encode_texts(self, texts, chunk=256):
        """Plain sentences -> (len(texts), E) float32, not normalised.

        Raises PromptingError for a sentence longer than CLIP's context."""
        features = []
        for start in range(0, len(texts), chunk):
            tokens = self.tokenize(texts[start:start + chunk])
            eot = tokens.argmax(dim=1)
            x = self.embed_tokens(tokens) + self.positions(0, tokens.shape[1])
            features.append(self._encode(Prompts(x[:1, :1], x[None, :, 1:], eot))[0].float())
        return torch.cat(features)

    def tokenize(self, texts):
        """(len(texts), T) token numbers, T the longest sentence with its start and end tokens."""
        rows = [[SOS, *tokenizer.encode(text), EOS] for text in texts]
        length = max(len(row) for row in rows)
        if length > self.context_length:
            longest = max(range(len(rows)), key=lambda i: len(rows[i]))
            raise PromptingError(f"'{texts[longest][:80]}' has {length} tokens, more than the {self.context_length} "
                                 "that CLIP reads; shorten the class name or the template")
        return torch.tensor([row + [0] * (length - len(row)) for row in rows], device=self.device)


def _behind(shared, own):
    """Keys and values of the prefix (G, P, 2 W) in front of those of each class (G, C, S, 2 W)
    -> keys and values, (G, C, P + S, W) each."""
    return torch.cat([shared[:, None].expand(-1, own.shape[1], -1, -1), own], dim=2).chunk(2, dim=-1)


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

    def __init__(self, tower, classnames, n_ctx, position="end", between="", after="."):
        if position not in ("end", "middle", "front"):
            raise PromptingError(f"the class token's position is end, middle or front, not '{position}'")
        self.tower, self.n_ctx, self.n_cls = tower, n_ctx, len(classnames)
        self.before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]  # context vectors before the name
        behind = n_ctx - self.before
        rows, places = [], []
        for name in classnames:
            named = f"{between} {readable(name)}".strip()
            words = tokenizer.encode(f"{named}{after}")  # at once: CLIP's BPE joins punctuation, as in "St."
            length = len(words) + n_ctx + 2
            if length > tower.context_length:
                raise PromptingError(f"class name '{name[:80]}' is too long: with {n_ctx} context tokens its prompt "
                                     f"has {length} tokens, CLIP reads {tower.context_length}; shorten it")
            split = min(len(tokenizer.encode(named)), len(words))
            rows.append([SOS] + [0] * self.before + words[:split] + [0] * behind + words[split:] + [EOS])
            start = 1 + self.before + split
            places.append(list(range(start, start + behind)))
        length = max(len(row) for row in rows)
        tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        with torch.no_grad():
            self.embedded = tower.embed_tokens(tokens)  # (C, T, W); what stands in the context's places is unused
            self.positions = tower.positions(0, length)
        self.eot = torch.tensor([len(row) - 1 for row in rows], device=tower.device)
        self.places = torch.tensor(places, dtype=torch.long, device=tower.device).view(len(rows), behind)

    def __call__(self, ctx, classes=None):
        """Put the context in.

        Args:
            ctx: (n_ctx, W) for all classes; (C, 1, n_ctx, W) class-specific; (G, n_ctx, W) one a group (an image).
            classes: indices of the classes wanted, (C',); default all.
        Returns:
            Prompts of the C' classes.
        """
        embedded, eot, places = self.embedded, self.eot, self.places
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
        prefix = torch.cat([start, ctx[:, 0, :in_prefix]], dim=1) + self.positions[:shared]

        suffix = embedded[None, :, shared:]
        if in_prefix < self.n_ctx:
            n_cls, width = len(embedded), embedded.shape[-1]
            front = torch.arange(1, 1 + self.before, device=places.device).expand(n_cls, -1)
            index = (torch.cat([front, places], dim=1) if own else places) - shared
            index = index.view(1, n_cls, -1, 1).expand(groups, -1, -1, width)
            learned = ctx[:, :, in_prefix:].expand(-1, n_cls, -1, -1)
            suffix = suffix.expand(groups, -1, -1, -1).scatter(2, index, learned.to(suffix.dtype))
        return Prompts(prefix, suffix + self.positions[shared:], eot)
