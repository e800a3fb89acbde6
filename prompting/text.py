"""Class names -> prompt embeddings -> text features.

CLIP's text tower is causal and reads its output at the end-of-text token. Hence tokens behind the longest end-of-text
change nothing and are not computed, and the tokens before the class name, which are the same for every class, are
computed once (the prefix), not once a class.
"""
from dataclasses import dataclass

import torch
from clip.clip import _tokenizer as tokenizer

from prompting.blocks import Block, read_at
from prompting.errors import PromptingError

SOS, EOS = tokenizer.encoder["<|startoftext|>"], tokenizer.encoder["<|endoftext|>"]


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


class TextTower:
    """CLIP's text tower over `Prompts`; its weights stay as they are.

    Attributes: width W, embed_dim E, layers, context_length (77 tokens).
    """

    def __init__(self, clip_model):
        self.model = clip_model
        self.blocks = [Block(block) for block in clip_model.transformer.resblocks]
        self.layers = len(self.blocks)
        self.width = clip_model.ln_final.weight.shape[0]
        self.embed_dim = clip_model.text_projection.shape[1]
        self.context_length = clip_model.context_length

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
        """
        dtype = self.model.dtype
        x, y, eot = prompts.prefix.to(dtype), prompts.suffix.to(dtype), prompts.eot
        shared, own = x.shape[1], y.shape[2]
        y = y.expand(x.shape[0], -1, -1, -1)
        seen = torch.ones(own, shared + own, dtype=torch.bool, device=y.device).tril(shared)
        for layer, block in enumerate(self.blocks):
            if deep and layer in deep:
                x, y = _replace(x, y, deep[layer].to(dtype))
            if layer == self.layers - 1:
                break
            q, k, v = block.query_key_value(x)
            own_q, own_k, own_v = block.query_key_value(y)
            keys, values = _behind(k, own_k), _behind(v, own_v)
            x = block.finish(x, q, k, v, causal=True)
            y = block.finish(y, own_q, keys, values, mask=seen)
        return self._read_out(block, x, y, eot)

    def _read_out(self, block, x, y, eot):
        """The last block for the end-of-text tokens only, final norm and projection."""
        shared, length = x.shape[1], x.shape[1] + y.shape[2]
        k, v = block.key_value(x)
        own_k, own_v = block.key_value(y)
        last = read_at(y, eot - shared)
        seen = torch.arange(length, device=y.device) <= eot[:, None]
        seen = seen.view(1, len(eot), 1, 1, length)
        last = block.finish(last, block.query(last), _behind(k, own_k), _behind(v, own_v), mask=seen)
        features = self.model.ln_final(last[:, :, 0]).to(self.model.text_projection.dtype)
        return features @ self.model.text_projection

    @torch.no_grad()
    def encode_texts(self, texts, chunk=256):
        """Plain sentences -> (len(texts), E) float32, not normalised.

        Raises PromptingError for a sentence longer than CLIP's context."""
        features = []
        for start in range(0, len(texts), chunk):
            tokens = self.tokenize(texts[start:start + chunk])
            eot = tokens.argmax(dim=1)
            x = self.embed_tokens(tokens) + self.positions(0, tokens.shape[1])
            features.append(self.encode(Prompts(x[:1, :1], x[None, :, 1:], eot))[0].float())
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
    """Keys or values of the prefix (G, H, P, d) in front of those of each class (G, C, H, S, d)."""
    return torch.cat([shared[:, None].expand(-1, own.shape[1], -1, -1, -1), own], dim=3)


def _replace(x, y, deep):
    """Put the deep prompts in the places 1..n of the sequence."""
    if deep.dim() == 3:  # class by class, in the suffix
        n = deep.shape[1]
        return x, torch.cat([deep[None].expand(len(y), -1, -1, -1), y[:, :, n:]], dim=2)
    n = deep.shape[0]
    return torch.cat([x[:, :1], deep.expand(len(x), -1, -1), x[:, 1 + n:]], dim=1), y


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
