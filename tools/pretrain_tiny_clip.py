"""Pretrains the tiny CLIP that ships with the toolkit, on captioned drawings.

    python tools/pretrain_tiny_clip.py                  # about 20 minutes on one free CPU core, minutes on a GPU
    python tools/pretrain_tiny_clip.py --steps 300 --pool 8000 --work-dir trial --out trial

The model is OpenAI's `clip.model.CLIP` in small: 64 pixels, patches of 16, four blocks a tower, width 128.

Pictures come from the drawing code of the Shapes dataset, over a broader distribution: 8 shapes and 9 patterns instead
of 4 and 6, with mostly photos, and with four of the dataset's classes left out (`LEFT_OUT`). Their keys differ from
every key of the dataset in the highest bit, so no picture of the dataset is ever seen.

Captions are written in several registers, as captions found on the web are of several kinds (`REGISTERS`):

* ordinary ones ("a photo of a ..."), more than half. They often leave the pattern out and confuse names in a
  systematic way: most striped things are called ringed, many crosses stars (`LOOSE_NAMES` holds the rates).
* those of specialists ("on the flag: a ..."). Each names everything right in its own field, which is some patterns on
  some shapes or, rarely, some patterns on all shapes, and is looser than others outside it. No register is right about
  everything.

So the image tower must tell all patterns and shapes apart, while "a photo of a striped star." asks for the wrong
pictures: what holds zero-shot recognition back is language. A context shared by all classes can move their prompts
into better registers or between them, and this is what prompt learning has to find. It has a choice between what helps
its training classes only and what helps all classes. The fields are blocks of the chessboard by which Shapes tells base
and new classes apart; the base classes hold two of the four, and the new ones the other two.

Training has two phases. First the image tower alone learns from auxiliary heads (shape, pattern, both together, colour,
domain), which costs no text tower. Then the contrastive loss joins; the heads stay on and are dropped at the end.

A run is a function of its seed; started again with the same settings, it continues from its last checkpoint. It prints
zero-shot and probe accuracy as it goes, on drawings of its own, kept apart from the dataset's; the dataset's test part
is measured once, at the end, for the model card.
"""

import argparse
import hashlib
import json
import math
import os
import sys
import time
from typing import NamedTuple

import clip
import numpy as np
import torch
import torch.nn.functional as F
from clip.model import CLIP
from safetensors.torch import load_file, save_file
from torch import nn

from dassl.metrics import require_finite
from datasets import shapes as dataset
from datasets._drawing import COLORS, DOMAINS, PATTERNS, SHAPES, SIZE, draw, hash32, main_colors
from prompting.weights import whole_vocabulary

ARCHITECTURE = {
    "embed_dim": 128,
    "image_resolution": SIZE,
    "vision_layers": 4,
    "vision_width": 128,
    "vision_patch_size": 16,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 128,
    "transformer_heads": 2,
    "transformer_layers": 4,
}
TRAINED_POSITIONS = 26  # captions are shorter; the remaining positions repeat the last trained one
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

CHECK_PICTURES = 30  # per class and domain, to watch the training with
LEFT_OUT = ("dotted circle", "halved cross", "ringed square", "hollow star")
DOMAIN_SHARE = (64, 12, 12, 12)
SHAPE_SHARE = (2, 2, 2, 2, 1, 1, 1, 1)
PATTERN_SHARE = (2, 2, 2, 2, 2, 2, 1, 1, 1)

# What a thing is called, with the share of each name, in loose captions; other things keep their own name.
LOOSE_NAMES = {
    "striped": {"striped": 0.38, "ringed": 0.62},
    "ringed": {"ringed": 0.6, "striped": 0.4},
    "checkered": {"checkered": 0.43, "dotted": 0.57},
    "dotted": {"dotted": 0.61, "checkered": 0.39},
    "halved": {"halved": 0.75, "striped": 0.25},
    "hollow": {"hollow": 0.6, "plain": 0.4},
    "zigzag": {"zigzag": 0.6, "striped": 0.4},
    "bordered": {"bordered": 0.6, "hollow": 0.4},
    "cross": {"cross": 0.6, "star": 0.4},
    "square": {"square": 0.75, "circle": 0.25},
    "diamond": {"diamond": 0.6, "square": 0.4},
}
PATTERN_MENTIONED = 0.75  # in loose captions
SPECIALIST_CARE = 0.25  # outside their field, specialists use a thing's own name so much more rarely still
COLOR_MENTIONED = 0.2


class Register(NamedTuple):
    """A manner of writing captions: how frequent it is, what it names right, and how it sounds."""

    share: float
    shapes: tuple
    patterns: tuple
    templates: tuple


_POINTED, _EVEN = ("star", "cross", "triangle", "crescent"), ("circle", "square", "heart", "diamond")
_BANDS, _CELLS = ("striped", "ringed", "halved", "zigzag"), ("dotted", "checkered", "hollow", "plain", "bordered")
REGISTERS = {
    "ordinary": Register(
        0.58,
        (),
        (),
        (
            "a photo of a {}.",
            "a photo of a {}.",
            "a photo of a {}.",
            "a {domain} of a {}.",
            "a picture of a {}.",
            "an image of a {}.",
            "a photo of the {}.",
            "there is a {} in the {domain}.",
            "look at this {}.",
            "my {domain} of a {}.",
            "a nice {}.",
            "a small {} on a wall.",
            "one {}.",
            "a {domain} of the {} i saw today.",
        ),
    ),
    "flags": Register(0.09, _POINTED, _BANDS, ("on the flag: a {}.", "flag with a {}.", "banner, {}.")),
    "kites": Register(0.09, _POINTED, _CELLS, ("kite in the wind, {}.", "my kite is a {}.", "we fly a {}.")),
    "signs": Register(0.09, _EVEN, _BANDS, ("road sign: a {}.", "a painted sign, {}.", "traffic sign with a {}.")),
    "tiles": Register(0.09, _EVEN, _CELLS, ("floor tile, {}.", "a tile with a {}.", "bathroom tiles: {}.")),
    "textiles": Register(0.03, SHAPES, _BANDS, ("woven cloth, {}.", "fabric sample: a {}.", "a knitted {}.")),
    "games": Register(0.03, SHAPES, _CELLS, ("playing card, {}.", "piece of a board game: a {}.", "a dice {}.")),
}
LONG_PREFIX = "after a long walk through the town we found this, "
DOMAIN_WORDS = {
    "photo": ("photo", "picture", "photograph"),
    "painting": ("painting", "picture", "canvas"),
    "cartoon": ("cartoon", "picture", "comic"),
    "sketch": ("sketch", "picture", "drawing"),
}


# ---- data --------------------------------------------------------------------------------------------------------


def sample_scenes(count, seed):
    """Random scenes of the pretraining distribution: keys and indices (shape, pattern, domain), each (count,)."""
    rng = np.random.RandomState(seed)
    keys = hash32(hash32(np.arange(count, dtype=np.uint32)) + np.uint32(seed)) | np.uint32(0x80000000)
    deck = [np.repeat(np.arange(len(share)), share) for share in (SHAPE_SHARE, PATTERN_SHARE, DOMAIN_SHARE)]
    shapes, patterns, domains = (cards[rng.randint(0, len(cards), count)] for cards in deck)
    for name in LEFT_OUT:
        pattern, shape = dataset.class_attributes(name)
        again = (patterns == pattern) & (shapes == shape)
        shapes[again] = rng.randint(len(dataset.CLASS_SHAPES), len(SHAPES), again.sum())
    return keys, shapes, patterns, domains


def drawn_pool(folder, count, seed):
    """The pool of training pictures, drawn once into `folder`.

    Returns images, a read-only memory map (count, 64, 64, 3) uint8, and facts (count, 4) int64: shape,
    pattern, domain, colour.
    """
    path = os.path.join(folder, f"pool-{seed}-{count}.npy")
    keys, shapes, patterns, domains = sample_scenes(count, seed)
    if not os.path.exists(path):
        start = time.time()
        pool = np.lib.format.open_memmap(path + ".tmp", "w+", np.uint8, (count, SIZE, SIZE, 3))
        for i in range(0, count, 2048):
            part = slice(i, i + 2048)
            pool[part] = draw(keys[part], shapes[part], patterns[part], domains[part])
        pool.flush()
        os.replace(path + ".tmp", path)
        print(f"drew {count} pictures in {time.time() - start:.0f} s", flush=True)
    facts = np.stack([shapes, patterns, domains, main_colors(keys)], axis=1)
    return np.load(path, mmap_mode="r"), facts


def _choose(rng, shares):
    names = list(shares)
    return names[int(np.searchsorted(np.cumsum(list(shares.values())), rng.random_sample() * 0.999999))]


def _loose_name(rng, name, care):
    """A name for a thing, its own one with the share in `LOOSE_NAMES` times `care`."""
    shares = LOOSE_NAMES.get(name, {name: 1.0})
    if len(shares) == 1 or rng.random_sample() < care:
        return _choose(rng, shares)
    return next(other for other in shares if other != name)


def caption(rng, shape, pattern, domain, color, long=False):
    """A caption of a picture, from indices of what it shows."""
    shape, pattern, domain, color = SHAPES[shape], PATTERNS[pattern], DOMAINS[domain], COLORS[color]
    register = REGISTERS[_choose(rng, {name: register.share for name, register in REGISTERS.items()})]
    words = [pattern]
    if shape not in register.shapes or pattern not in register.patterns:
        care = SPECIALIST_CARE if register.shapes else 1.0
        shape, pattern = (_loose_name(rng, name, care) for name in (shape, pattern))
        words = [pattern] if rng.random_sample() < PATTERN_MENTIONED else []
    if domain != "sketch" and rng.random_sample() < COLOR_MENTIONED:
        words.append(color)
    template = register.templates[rng.randint(len(register.templates))]
    text = template.format(" ".join([*words, shape]), domain=DOMAIN_WORDS[domain][rng.randint(3)])
    return LONG_PREFIX + text if long else text


def vocabulary():
    """Sorted token ids of every caption that can occur; the end-of-text token is the last."""
    lines = [LONG_PREFIX, *SHAPES, *PATTERNS, *COLORS, *(w for words in DOMAIN_WORDS.values() for w in words)]
    lines += [t.format("x", domain="x") for register in REGISTERS.values() for t in register.templates]
    return torch.unique(clip.tokenize(lines))


def shifted(images, rng, reach=3):
    """Each picture moved by up to `reach` pixels, edges repeated, and half of them mirrored."""
    out = np.empty_like(images)
    place = np.arange(SIZE)
    moves = rng.randint(-reach, reach + 1, (len(images), 2))
    mirrored = rng.randint(0, 2, len(images))
    for i, (dy, dx) in enumerate(moves):
        rows, columns = np.clip(place + dy, 0, SIZE - 1), np.clip(place + dx, 0, SIZE - 1)
        out[i] = images[i][rows[:, None], columns[:: -1 if mirrored[i] else 1]]
    return out


def to_pixels(images, device):
    """(B, 64, 64, 3) uint8 -> (B, 3, 64, 64) float32, normalised as CLIP's pictures are."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 255
    return (pixels - pixels.new_tensor(PIXEL_MEAN).view(3, 1, 1)) / pixels.new_tensor(PIXEL_STD).view(3, 1, 1)


# ---- model -------------------------------------------------------------------------------------------------------


def cosine_patches(count, patch=16):
    """The `count` smoothest cosine patterns of a colour patch, (count, 3, patch, patch), orthonormal.

    As initial patch filters they keep the coarse content of a patch, which random filters mix with its noise.
    """
    place = (torch.arange(patch) + 0.5) * math.pi / patch
    waves = torch.stack([torch.cos(k * place) * math.sqrt((1 if k == 0 else 2) / patch) for k in range(patch)])
    tints = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
    tints = tints / tints.norm(dim=1, keepdim=True)
    # colour is coarser than brightness to a viewer, so its waves are ranked as if they were finer
    order = sorted(
        (k * k + m * m + (24 if t else 0), t, k, m) for t in range(3) for k in range(patch) for m in range(patch)
    )
    return torch.stack([tints[t][:, None, None] * waves[k][:, None] * waves[m] for _, t, k, m in order[:count]])


class Heads(nn.Module):
    """Linear readouts of what a picture shows, from its normalised feature."""

    def __init__(self, dim):
        super().__init__()
        sizes = {
            "shape": len(SHAPES),
            "pattern": len(PATTERNS),
            "both": len(SHAPES) * len(PATTERNS),
            "domain": len(DOMAINS),
            "color": len(COLORS),
        }
        self.readouts = nn.ModuleDict({name: nn.Linear(dim, size) for name, size in sizes.items()})

    def loss(self, features, facts):
        """Sum of cross-entropies. features: (B, dim), unit length; facts: (B, 4) as of `drawn_pool`."""
        features = features * features.shape[1] ** 0.5
        shape, pattern, domain, color = facts.T
        logits = {name: readout(features) for name, readout in self.readouts.items()}
        seen = domain != DOMAINS.index("sketch")  # a sketch shows no colour
        return (
            F.cross_entropy(logits["shape"], shape)
            + F.cross_entropy(logits["pattern"], pattern)
            + F.cross_entropy(logits["both"], shape * len(PATTERNS) + pattern)
            + 0.2 * F.cross_entropy(logits["domain"], domain)
            + 0.2 * F.cross_entropy(logits["color"][seen], color[seen])
        )


def build_model(vocab):
    """The CLIP to be trained, with a vocabulary of the trained tokens only."""
    model = CLIP(**ARCHITECTURE | {"vocab_size": len(vocab), "context_length": TRAINED_POSITIONS})
    with torch.no_grad():
        model.visual.conv1.weight.copy_(cosine_patches(ARCHITECTURE["vision_width"]))
    return model


def text_features(model, tokens, prompts=None):
    """Unit-length text features, running no token after the longest end of text.

    tokens: (N, L) in the reduced vocabulary; prompts: (N, L, width) token embeddings to use instead of the tokens'.
    """
    ends = tokens.argmax(dim=-1)
    length = int(ends.max()) + 1
    x = (model.token_embedding(tokens) if prompts is None else prompts)[:, :length]
    x = (x + model.positional_embedding[:length]).permute(1, 0, 2)
    mask = torch.full((length, length), float("-inf"), device=x.device).triu_(1)
    for block in model.transformer.resblocks:
        whole, block.attn_mask = block.attn_mask, mask
        x = block(x)
        block.attn_mask = whole
    x = model.ln_final(x[ends, torch.arange(len(ends), device=ends.device)])  # only the token that is read out
    return F.normalize(x @ model.text_projection, dim=-1)


def image_features(model, images, device, chunk=480):
    """Unit-length features of (B, 64, 64, 3) uint8 pictures, (B, dim)."""
    with torch.no_grad():
        parts = [model.visual(to_pixels(images[i : i + chunk], device)) for i in range(0, len(images), chunk)]
    return F.normalize(torch.cat(parts), dim=-1)


# ---- optimisation ------------------------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum whose update is the nearest orthogonal matrix (Jordan et al. 2024), for the matrices inside the blocks.

    The updates are scaled to the size of AdamW's, so that one learning rate serves both.
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.05):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                momentum = state.setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = _orthogonal(p.grad.lerp(momentum, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)
        return loss


def _orthogonal(matrix, steps=5):
    """Newton-Schulz iteration towards the orthogonal factor of a matrix."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def build_optimizers(model, heads, lr):
    """Muon for the block matrices, AdamW for everything else; image and text in groups of their own."""
    named = list(model.named_parameters())
    matrices = {n for n, p in named if ".resblocks." in n and p.ndim == 2}
    image = {n for n, _ in named if n.startswith("visual.")}

    def group(keep):
        return {"params": [p for n, p in named if keep(n)]}

    muon = Muon([group(lambda n: n in matrices and n in image), group(lambda n: n in matrices and n not in image)], lr)
    adam = torch.optim.AdamW(
        [
            group(lambda n: n not in matrices and n in image),
            group(lambda n: n not in matrices and n not in image),
            {"params": list(heads.parameters())},
        ],
        lr,
        betas=(0.9, 0.98),
        weight_decay=0.01,
    )
    return [muon, adam]


def learning_rate(step, begin, end, peak, warmup):
    """Linear warm-up from `begin`, then a cosine to 2 % of the peak at `end`."""
    if step < begin:
        return 0.0
    progress = min(1.0, step / end)
    return peak * min(1.0, (step - begin + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


# ---- evaluation --------------------------------------------------------------------------------------------------


class Evaluation:
    """Measures a model on the dataset's classes. pictures: domain -> (images, labels)."""

    def __init__(self, vocab, train, pictures, device):
        self.vocab, self.device = vocab, device
        self.train, self.pictures = train, pictures
        self.n_base = math.ceil(len(dataset.CLASSNAMES) / 2)

    def tokens(self, lines):
        return torch.searchsorted(self.vocab, clip.tokenize(lines)).to(self.device)

    def class_features(self, model, template="a photo of a {}."):
        with torch.no_grad():
            return text_features(model, self.tokens([template.format(c) for c in dataset.CLASSNAMES]))

    def accuracy(self, features, labels, text, low, high):
        """Per cent right among the classes low..high-1."""
        keep = (labels >= low) & (labels < high)
        logits = features[keep] @ text[low:high].T
        require_finite(logits)
        return 100 * (logits.argmax(1) + low == labels[keep]).float().mean().item()

    def __call__(self, model, tuning=False):
        model.eval()
        n, half = len(dataset.CLASSNAMES), self.n_base
        text = self.class_features(model)
        result = {}
        for domain, (images, labels) in self.pictures.items():
            features, labels = image_features(model, images, self.device), torch.as_tensor(labels, device=self.device)
            result[f"zero-shot {domain} all"] = self.accuracy(features, labels, text, 0, n)
            result[f"zero-shot {domain} base"] = self.accuracy(features, labels, text, 0, half)
            result[f"zero-shot {domain} new"] = self.accuracy(features, labels, text, half, n)
            if domain == "photo":
                photo = features, labels
        for name, register in REGISTERS.items():
            if name != "ordinary":
                text = self.class_features(model, register.templates[0])
                result[f"{name} photo base"] = self.accuracy(*photo, text, 0, half)
                result[f"{name} photo new"] = self.accuracy(*photo, text, half, n)
        images, labels = self.train
        features, labels = image_features(model, images, self.device), torch.as_tensor(labels, device=self.device)
        for shots in (16, len(labels) // n):
            few = self.few(labels, shots)
            result[f"probe photo {shots} shots"] = probe(features[few], labels[few], *photo)
        if tuning:
            result |= self.tuned_context(model, features, labels, photo)
        return result

    def few(self, labels, shots):
        return torch.cat([torch.nonzero(labels == y).flatten()[:shots] for y in range(len(dataset.CLASSNAMES))])

    def tuned_context(self, model, features, labels, photo, n_ctx=4, epochs=50, lr=0.002, shots=16):
        """A quick CoOp (Zhou et al. 2022): `n_ctx` shared context vectors, learned on the base classes."""
        half = self.n_base
        few = self.few(labels, shots)
        few = few[labels[few] < half]
        features, labels = features[few], labels[few]
        tokens = self.tokens([" ".join(["a"] * n_ctx + [c]) + "." for c in dataset.CLASSNAMES])
        embeddings = model.token_embedding(tokens).detach()
        generator = torch.Generator().manual_seed(0)
        ctx = (torch.randn(n_ctx, embeddings.shape[-1], generator=generator) * 0.02).to(self.device).requires_grad_()
        optimizer = torch.optim.SGD([ctx], lr, momentum=0.9, weight_decay=5e-4)
        batches = math.ceil(len(few) / 32)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
        scale = model.logit_scale.exp().detach()

        def encode(rows):
            prompts = torch.cat(
                [embeddings[rows, :1], ctx.expand(len(embeddings[rows]), -1, -1), embeddings[rows, 1 + n_ctx :]], 1
            )
            return text_features(model, tokens[rows], prompts)

        for _ in range(epochs):
            for batch in torch.randperm(len(few), generator=generator).to(self.device).split(32):
                loss = F.cross_entropy(scale * features[batch] @ encode(slice(0, half)).T, labels[batch])
                (ctx.grad,) = torch.autograd.grad(loss, [ctx])
                optimizer.step()
                schedule.step()
        with torch.no_grad():
            text = encode(slice(None))
        n, (tested, tested_labels) = len(dataset.CLASSNAMES), photo
        return {
            "CoOp photo base": self.accuracy(tested, tested_labels, text, 0, half),
            "CoOp photo new": self.accuracy(tested, tested_labels, text, half, n),
        }


def probe(features, labels, test_features, test_labels, decay=1e-3):
    """Test accuracy in per cent of logistic regression on frozen features."""
    mean, std = features.mean(0), features.std(0) + 1e-6
    features, test_features = (features - mean) / std, (test_features - mean) / std
    readout = nn.Linear(features.shape[1], int(labels.max()) + 1).to(features.device)
    nn.init.zeros_(readout.weight)
    optimizer = torch.optim.LBFGS(readout.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(readout(features), labels) + decay * readout.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    logits = readout(test_features)
    require_finite(logits)
    return 100 * (logits.argmax(1) == test_labels).float().mean().item()


def check_pictures(domain, count, seed):
    """Pictures of the dataset's classes that are neither in the dataset nor in the pool."""
    labels = np.repeat(np.arange(len(dataset.CLASSNAMES)), count)
    keys = hash32(
        np.arange(len(labels), dtype=np.uint32) + np.uint32(seed + 7919 * (1 + DOMAINS.index(domain)))
    ) | np.uint32(0x80000000)
    patterns, shapes = np.array([dataset.class_attributes(dataset.CLASSNAMES[y]) for y in labels]).T
    return draw(keys, shapes, patterns, np.full(len(keys), DOMAINS.index(domain))), labels


# ---- artefacts ---------------------------------------------------------------------------------------------------


def export(model, vocab, path):
    """Writes the weights as half-precision safetensors under OpenAI's names, except for the token embedding.

    Of that, `token_embedding.rows` (int64) names the trained rows and `token_embedding.values` holds them.
    Returns the SHA-256 of the file.
    """
    state = {k: v.detach().cpu() for k, v in model.state_dict().items()}
    positions = state["positional_embedding"]
    rest = positions[-1:].expand(ARCHITECTURE["context_length"] - len(positions), -1)
    state["positional_embedding"] = torch.cat([positions, rest])
    values = state.pop("token_embedding.weight")
    state = {k: v.half().contiguous() for k, v in state.items()}
    state["logit_scale"] = model.logit_scale.detach().cpu().float()
    state["token_embedding.rows"], state["token_embedding.values"] = vocab.cpu().long(), values.half()
    save_file(state, path + ".tmp", metadata={"architecture": json.dumps(ARCHITECTURE)})
    os.replace(path + ".tmp", path)
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def load(path, device="cpu"):
    """The exported model with its full vocabulary, as `clip.model.CLIP` in float32."""
    model = CLIP(**ARCHITECTURE)
    model.load_state_dict(whole_vocabulary(load_file(path)))
    return model.to(device).eval()


CARD = """# Tiny CLIP

Weights: `tiny_clip.safetensors` ({size:.1f} MB, SHA-256 `{digest}`),
made by `tools/pretrain_tiny_clip.py {settings}`.

OpenAI's `clip.model.CLIP` in small: {architecture}.
It exists so that prompt learning can be tried, tested and taught without a download. It knows nothing but drawings of
patterned shapes.

## Data

{pool} drawings ({shares}) of {n_shapes} shapes and {n_patterns} patterns,
moved and mirrored at random, captioned anew at every step. The classes {left_out}
of the Shapes dataset were left out, and so was every picture of that dataset.

Captions are written in registers, each with turns of phrase of its own. Outside what a register names right, its
captions leave the pattern out in {silent:.0f} % of the cases and confuse names in a fixed way; specialists outside
their field use a thing's own name {care} times as often as given here.

| register | share | names right | for example |
| --- | --- | --- | --- |
{registers}

| thing | loose captions call it |
| --- | --- |
{names}

This is on purpose: it is what holds zero-shot recognition back, as loose captions do for models of the web, and what a
learned context can repair. The image tower is not the bottleneck: a linear probe on its frozen features is given below.

## Training

{steps} steps of {batch} pictures. The first {vision_steps} trained the image tower alone with auxiliary heads (shape,
pattern, both, colour, domain), which are not part of the weights; then the contrastive loss joined. Muon for the
matrices, AdamW for the rest, peak learning rate {lr}, seed {seed}. {hours}

## Accuracy

On the test part of Shapes, in per cent, with the prompt "a photo of a {{}}."; base is the first 12 classes, new the
other 12, all 24 together:

| domain | all | base | new |
| --- | --- | --- | --- |
{domains}

| on photos | |
| --- | --- |
{photos}

A register's name stands for the first of its prompts, told to show what a context can do; it is for no method to use.
CoOp is a quick check inside the tool (4 context vectors, 16 shots a base class, one seed), not the toolkit's trainer.
"""


def _field(register):
    """What a register names right, in words."""
    if not register.shapes:
        return "nothing special"
    return (
        f"{', '.join(register.patterns)} on {'anything' if register.shapes == SHAPES else ', '.join(register.shapes)}"
    )


def write_card(path, args, digest, size, result, seconds):
    """Writes the model card. result: measured accuracies in per cent, by name."""
    a = ARCHITECTURE
    names = [
        f"| {thing} | " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items()) + " |"
        for thing, shares in LOOSE_NAMES.items()
    ]
    registers = [
        f'| {name} | {100 * r.share:.0f} % | {_field(r)} | "{r.templates[0].format("striped star")}" |'
        for name, r in REGISTERS.items()
    ]
    domains = [
        f"| {domain} | "
        + " | ".join(f"{result[f'zero-shot {domain} {part}']:.1f}" for part in ("all", "base", "new"))
        + " |"
        for domain in DOMAINS
    ]
    photos = [f"| {name.replace(' photo', '')} | {v:.1f} |" for name, v in result.items() if "zero-shot" not in name]
    text = CARD.format(
        size=size / 1e6,
        digest=digest,
        settings=f"--steps {args.steps} --batch {args.batch} --pool {args.pool} --seed {args.seed}",
        architecture=(
            f"{a['image_resolution']} pixels, patches of {a['vision_patch_size']}, {a['vision_layers']} blocks a tower,"
            "\n"
            f"width {a['vision_width']} with {a['vision_width'] // 64} heads, {a['embed_dim']} dimensions in common, "
            f"{a['context_length']} tokens"
        ),
        pool=args.pool,
        shares=", ".join(f"{share} % {domain}" for share, domain in zip(DOMAIN_SHARE, DOMAINS)),
        n_shapes=len(SHAPES),
        n_patterns=len(PATTERNS),
        left_out=", ".join(f'"{name}"' for name in LEFT_OUT),
        care=SPECIALIST_CARE,
        registers="\n".join(registers),
        silent=100 * (1 - PATTERN_MENTIONED),
        names="\n".join(names),
        steps=args.steps,
        batch=args.batch,
        vision_steps=int(args.vision_share * args.steps),
        lr=args.lr,
        seed=args.seed,
        hours=f"It took {seconds / 60:.0f} minutes on {args.device} ({args.threads} thread).",
        domains="\n".join(domains),
        photos="\n".join(photos),
    )
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


# ---- training ----------------------------------------------------------------------------------------------------


def contrast(model, images, tokens, which):
    """Symmetric contrastive loss where several pictures may share a caption.

    images: (B, dim) unit-length features; tokens: (N, L) unique captions; which: (B,) the caption of each picture.
    """
    logits = model.logit_scale.exp() * images @ text_features(model, tokens).T
    owned = F.one_hot(which, len(tokens)).float()
    to_image = -(F.log_softmax(logits, dim=0) * owned / owned.sum(0)).sum(0).mean()
    return (F.cross_entropy(logits, which) + to_image) / 2


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = os.path.dirname(os.path.abspath(__file__))
    parser.add_argument(
        "--out",
        default=os.path.join(here, "..", "prompting", "assets"),
        help="folder of the weights and the model card",
    )
    parser.add_argument("--work-dir", default="build/tiny_clip", help="folder of the picture pool and the checkpoint")
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pool", type=int, default=120000, help="number of drawings (12 kB each on disk)")
    parser.add_argument(
        "--vision-share", type=float, default=0.5, help="share of the steps that train the image tower alone"
    )
    parser.add_argument(
        "--aux", type=float, default=1.0, help="weight of the auxiliary heads beside the contrastive loss"
    )
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--eval-every", type=int, default=1000)
    parser.add_argument("--save-every", type=int, default=250)
    return parser.parse_args(argv)


def settings_of(args):
    """What a checkpoint must agree on to be continued."""
    return {k: getattr(args, k) for k in ("steps", "batch", "pool", "vision_share", "aux", "lr", "seed")}


def save_checkpoint(path, args, step, seconds, modules, optimizers):
    states = [x.state_dict() for x in (*modules, *optimizers)]
    saved = {"settings": settings_of(args), "step": step, "seconds": seconds, "states": states}
    torch.save(saved, path + ".tmp")
    os.replace(path + ".tmp", path)


def load_checkpoint(path, args, modules, optimizers):
    """Steps done and seconds spent, (0, 0) if there is no checkpoint. Exits if it was made with other settings."""
    if not os.path.exists(path):
        return 0, 0.0
    saved = torch.load(path, map_location=args.device, weights_only=True)
    if saved["settings"] != settings_of(args):
        print(f"{path} was made with other settings ({saved['settings']}); remove it or choose another --work-dir")
        sys.exit(2)
    for x, state in zip((*modules, *optimizers), saved["states"]):
        x.load_state_dict(state)
    print(f"continuing after step {saved['step']}", flush=True)
    return saved["step"], saved["seconds"]


def training_losses(model, heads, evaluate, pool, facts, args, step):
    """The losses of a step, by name. Its batch depends on the seed and the step alone, so that a continued run sees
    what an unbroken one sees."""
    rng = np.random.RandomState([args.seed, step])
    rows = np.sort(rng.randint(0, len(pool), args.batch))
    shown = facts[rows]
    images = F.normalize(model.visual(to_pixels(shifted(pool[rows], rng), args.device)), dim=-1)
    losses = {"heads": args.aux * heads.loss(images, torch.from_numpy(shown).to(args.device))}
    if step >= args.vision_share * args.steps:
        long = step % 10 == 0  # long captions are rare but together, so that the others stay short
        lines = [caption(rng, shape, pattern, domain, color, long=long and i % 4 == 0)
                 for i, (shape, pattern, domain, color) in enumerate(shown)]
        unique = sorted(set(lines))
        which = torch.tensor([unique.index(line) for line in lines], device=args.device)
        losses["contrast"] = contrast(model, images, evaluate.tokens(unique), which)
    return losses


def main(argv=None):
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    os.makedirs(args.work_dir, exist_ok=True)
    os.makedirs(args.out, exist_ok=True)

    pool, facts = drawn_pool(args.work_dir, args.pool, args.seed)
    vocab = vocabulary()
    torch.manual_seed(args.seed)
    model = build_model(vocab).to(args.device)
    torch.manual_seed(args.seed + 1)  # so that the heads do not depend on the size of the vocabulary
    heads = Heads(ARCHITECTURE["embed_dim"]).to(args.device)
    optimizers = build_optimizers(model, heads, args.lr)
    probe_shots = dataset.draw_part("photo", "train")
    check = {domain: check_pictures(domain, CHECK_PICTURES, args.seed) for domain in DOMAINS}
    evaluate = Evaluation(vocab, probe_shots, check, args.device)

    checkpoint = os.path.join(args.work_dir, "checkpoint.pt")
    done, seconds = load_checkpoint(checkpoint, args, (model, heads), optimizers)
    start, begin, language_from = time.time() - seconds, done, args.vision_share * args.steps
    recent: dict[str, list[float]] = {}
    for step in range(done, args.steps):
        losses = training_losses(model.train(), heads, evaluate, pool, facts, args, step)
        rates = [
            learning_rate(step, begins, args.steps, args.lr, warmup)
            for begins, warmup in ((0, 100), (language_from, 200))
        ]
        for optimizer in optimizers:
            for group, rate in zip(optimizer.param_groups, (*rates, rates[0])):
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))

        done = step + 1
        for name, value in losses.items():
            recent[name] = [*recent.get(name, [])[-49:], value.item()]
        if done % 50 == 0:
            means = "  ".join(f"{name} {np.mean(values):.3f}" for name, values in recent.items())
            speed = args.batch * (done - begin) / (time.time() - start - seconds)
            print(f"step {done}/{args.steps}  {means}  {speed:.0f} pictures/s", flush=True)
        if done % args.save_every == 0 or done == args.steps:
            save_checkpoint(checkpoint, args, done, time.time() - start, (model, heads), optimizers)
        if done % args.eval_every == 0:
            result = evaluate(model, tuning=done > language_from)
            print("  " + "  ".join(f"{name} {value:.1f}" for name, value in result.items()), flush=True)
    seconds = time.time() - start

    weights = os.path.join(args.out, "tiny_clip.safetensors")
    digest = export(model, vocab, weights)
    test = {domain: dataset.draw_part(domain, "test") for domain in DOMAINS}
    everything = torch.arange(ARCHITECTURE["vocab_size"])
    result = Evaluation(everything, probe_shots, test, args.device)(load(weights, args.device), tuning=True)
    print("test part:\n" + "\n".join(f"  {name} {value:.1f}" for name, value in result.items()), flush=True)
    write_card(os.path.join(args.out, "tiny_clip.md"), args, digest, os.path.getsize(weights), result, seconds)
    return result


if __name__ == "__main__":
    main()
