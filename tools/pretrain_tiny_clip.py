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
LEFT_OUT = (
    "pinstriped star", "dotted hexagon", "ringed cross",  # base classes
    "striped circle", "speckled hexagram", "bordered cross",  # new ones
)
DOMAIN_SHARE = (64, 12, 12, 12)
SHAPE_SHARE = (3,) * 5 + (1,) * 5
PATTERN_SHARE = (3,) * 8 + (1,) * 3

# What a thing is called, with the share of each name, in loose captions; other things keep their own name.
LOOSE_NAMES = {
    "striped": {"striped": 0.45, "pinstriped": 0.55},
    "pinstriped": {"pinstriped": 0.5, "striped": 0.5},
    "dotted": {"dotted": 0.6, "speckled": 0.4},
    "speckled": {"speckled": 0.45, "dotted": 0.55},
    "zigzag": {"zigzag": 0.6, "ringed": 0.4},
    "ringed": {"ringed": 0.5, "zigzag": 0.5},
    "checkered": {"checkered": 0.45, "bordered": 0.55},
    "bordered": {"bordered": 0.5, "checkered": 0.5},
    "halved": {"halved": 0.75, "striped": 0.25},
    "hollow": {"hollow": 0.6, "bordered": 0.4},
    "star": {"star": 0.7, "hexagram": 0.3},
    "hexagram": {"hexagram": 0.5, "star": 0.5},
    "hexagon": {"hexagon": 0.55, "circle": 0.45},
    "circle": {"circle": 0.7, "hexagon": 0.3},
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


_POINTED = ("star", "hexagram", "cross", "triangle", "crescent")
_EVEN = ("hexagon", "circle", "square", "heart", "diamond")
_BANDS = ("striped", "pinstriped", "zigzag", "ringed", "halved")
_CELLS = ("dotted", "speckled", "checkered", "bordered", "hollow", "plain")
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


def text_features(model, tokens):
    """Unit-length text features, running no token after the longest end of text.

    tokens: (N, L) in the reduced vocabulary.
    """
    ends = tokens.argmax(dim=-1)
    length = int(ends.max()) + 1
    x = model.token_embedding(tokens[:, :length])
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


def build_optimizers(tower, others, lr):
    """Muon for the matrices of the tower's blocks, AdamW for everything else. others: modules beside the tower."""
    named = [*tower.named_parameters(), *(pair for other in others for pair in other.named_parameters())]
    matrices = [p for name, p in named if "resblocks." in name and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    return [Muon(matrices, lr), torch.optim.AdamW(rest, lr, betas=(0.9, 0.98), weight_decay=0.01)]


def learning_rate(step, steps, peak, warmup=100):
    """Linear warm-up, then a cosine to 2 % of the peak at the end."""
    return peak * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


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

    def __call__(self, model):
        """Zero-shot accuracy on each domain, and on photos with the prompts of each register."""
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
        return result

    def probes(self, model):
        """Accuracy of a probe on the features of 16 photos a class, on each domain."""
        images, labels = self.train
        features, labels = image_features(model, images, self.device), torch.as_tensor(labels, device=self.device)
        few = torch.cat([torch.nonzero(labels == y).flatten()[:16] for y in range(len(dataset.CLASSNAMES))])
        readout = fit_probe(features[few], labels[few])
        result = {}
        for domain, (images, labels) in self.pictures.items():
            right = readout(image_features(model, images, self.device)) == torch.as_tensor(labels, device=self.device)
            result[f"probe {domain}"] = 100 * right.float().mean().item()
        return result


def fit_probe(features, labels, decay=1e-3):
    """Logistic regression on frozen features: a function from features (B, dim) to labels (B,)."""
    mean, std = features.mean(0), features.std(0) + 1e-6
    features = (features - mean) / std
    readout = nn.Linear(features.shape[1], int(labels.max()) + 1).to(features.device)
    nn.init.zeros_(readout.weight)
    optimizer = torch.optim.LBFGS(readout.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(readout(features), labels) + decay * readout.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)

    def predict(tested):
        with torch.no_grad():
            logits = readout((tested - mean) / std)
        require_finite(logits)
        return logits.argmax(1)

    return predict


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
    parser.add_argument("--work-dir", default="build/tiny_clip", help="folder of the picture pool and the checkpoints")
    parser.add_argument("--steps", type=int, default=5500, help="of the image tower")
    parser.add_argument("--text-steps", type=int, default=1800, help="of the text tower")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pool", type=int, default=120000, help="number of drawings (12 kB each on disk)")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--eval-every", type=int, default=500)
    parser.add_argument("--save-every", type=int, default=250)
    return parser.parse_args(argv)


def image_settings(args):
    """What the image tower's checkpoint must agree on to be continued."""
    return {k: getattr(args, k) for k in ("steps", "batch", "pool", "lr", "seed")}


def text_settings(args):
    """What the text tower's checkpoint must agree on to be continued: the image tower and the captions, too."""
    captions = repr((LOOSE_NAMES, PATTERN_MENTIONED, SPECIALIST_CARE, COLOR_MENTIONED, REGISTERS, LONG_PREFIX))
    digest = hashlib.sha256(captions.encode()).hexdigest()
    return image_settings(args) | {"text_steps": args.text_steps, "captions": digest}


def save_checkpoint(path, settings, step, seconds, parts):
    saved = {"settings": settings, "step": step, "seconds": seconds, "states": [x.state_dict() for x in parts]}
    torch.save(saved, path + ".tmp")
    os.replace(path + ".tmp", path)


def load_checkpoint(path, settings, parts, device):
    """Steps done and seconds spent, (0, 0) if there is no checkpoint. Exits if it was made with other settings."""
    if not os.path.exists(path):
        return 0, 0.0
    saved = torch.load(path, map_location=device, weights_only=True)
    if saved["settings"] != settings:
        print(f"{path} was made with other settings ({saved['settings']}); remove it or choose another --work-dir")
        sys.exit(2)
    for x, state in zip(parts, saved["states"]):
        x.load_state_dict(state)
    print(f"continuing {os.path.basename(path)} after step {saved['step']}", flush=True)
    return saved["step"], saved["seconds"]


def train(name, args, steps, settings, parts, optimizers, losses_of, after_step, evaluate):
    """Trains for `steps` steps, or what a checkpoint leaves of them.

    parts: what a checkpoint holds besides the optimizers; losses_of: step -> losses by name; after_step: called without
    gradients; evaluate: -> accuracies by name. Returns the seconds it took, those before a stop included.
    """
    path = os.path.join(args.work_dir, f"{name}.pt")
    done, before = load_checkpoint(path, settings, (*parts, *optimizers), args.device)
    start, begin = time.time() - before, done
    recent: dict[str, list[float]] = {}
    for step in range(done, steps):
        losses = losses_of(step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, args.lr)
            optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            after_step()

        done = step + 1
        for key, value in losses.items():
            recent[key] = [*recent.get(key, [])[-49:], value.item()]
        if done % 50 == 0:
            means = "  ".join(f"{key} {np.mean(values):.3f}" for key, values in recent.items())
            speed = args.batch * (done - begin) / (time.time() - start - before)
            print(f"{name} step {done}/{steps}  {means}  {speed:.0f} pictures/s", flush=True)
        if done % args.save_every == 0 or done == steps:
            save_checkpoint(path, settings, done, time.time() - start, (*parts, *optimizers))
        if done % args.eval_every == 0 or done == steps:
            print("  " + "  ".join(f"{key} {value:.1f}" for key, value in evaluate().items()), flush=True)
    return time.time() - start


def image_losses(model, heads, pool, facts, args, step):
    """The losses of a step of the image tower. Its batch depends on the seed and the step alone, so that a continued
    run sees what an unbroken one sees."""
    rng = np.random.RandomState([args.seed, step])
    rows = np.sort(rng.randint(0, len(pool), args.batch))
    images = F.normalize(model.visual(to_pixels(shifted(pool[rows], rng), args.device)), dim=-1)
    return {"heads": heads.loss(images, torch.from_numpy(facts[rows]).to(args.device))}


def text_losses(model, vocab, features, facts, args, step):
    """The losses of a step of the text tower; its batch, too, depends on the seed and the step alone."""
    rng = np.random.RandomState([args.seed, 1, step])
    rows = rng.randint(0, len(features), args.batch)
    long = step % 10 == 0  # long captions are rare but together, so that the others stay short
    lines = [caption(rng, *fact, long=long and i % 4 == 0) for i, fact in enumerate(facts[rows])]
    unique = sorted(set(lines))
    which = torch.tensor([unique.index(line) for line in lines], device=args.device)
    tokens = torch.searchsorted(vocab, clip.tokenize(unique)).to(args.device)
    return {"contrast": contrast(model, features[torch.from_numpy(rows)], tokens, which)}


def main(argv=None):
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    os.makedirs(args.work_dir, exist_ok=True)
    os.makedirs(args.out, exist_ok=True)

    pool, facts = drawn_pool(args.work_dir, args.pool, args.seed)
    vocab = vocabulary()
    torch.manual_seed(args.seed)
    heads = Heads(ARCHITECTURE["embed_dim"]).to(args.device)
    torch.manual_seed(args.seed + 1)
    model = build_model(vocab).to(args.device)
    image = build_optimizers(model.visual, [heads], args.lr)
    probe_shots = dataset.draw_part("photo", "train")
    check = {domain: check_pictures(domain, CHECK_PICTURES, args.seed) for domain in DOMAINS}
    evaluate = Evaluation(vocab, probe_shots, check, args.device)

    seconds = train(
        "image", args, args.steps, image_settings(args), (model.visual, heads), image,
        lambda step: image_losses(model.train(), heads, pool, facts, args, step),
        lambda: None, lambda: evaluate.probes(model.eval()),
    )  # fmt: skip
    for parameter in model.visual.parameters():
        parameter.requires_grad_(False)
    model.eval()
    features = image_features(model, pool, args.device)
    rest = nn.ModuleDict({"transformer": model.transformer, "tokens": model.token_embedding, "norm": model.ln_final})
    loose = nn.ParameterDict({k: getattr(model, k) for k in ("positional_embedding", "text_projection", "logit_scale")})
    text = build_optimizers(rest, [loose], args.lr)
    seconds += train(
        "text", args, args.text_steps, text_settings(args), (rest, loose), text,
        lambda step: text_losses(model, vocab, features, facts, args, step),
        lambda: model.logit_scale.clamp_(max=math.log(100)), lambda: evaluate(model),
    )  # fmt: skip

    weights = os.path.join(args.out, "tiny_clip.safetensors")
    digest = export(model, vocab, weights)
    test = {domain: dataset.draw_part(domain, "test") for domain in DOMAINS}
    everything = torch.arange(ARCHITECTURE["vocab_size"])
    exported = load(weights, args.device)
    measured = Evaluation(everything, probe_shots, test, args.device)
    result = measured(exported) | measured.probes(exported)
    print("test part:\n" + "\n".join(f"  {name} {value:.1f}" for name, value in result.items()), flush=True)
    write_card(os.path.join(args.out, "tiny_clip.md"), args, digest, os.path.getsize(weights), result, seconds)
    return result


if __name__ == "__main__":
    main()
