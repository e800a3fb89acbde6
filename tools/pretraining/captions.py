"""Captions of the drawings: registers, what each names right, and what the others call it."""

from typing import NamedTuple

import clip
import numpy as np
import torch

from datasets._drawing import COLORS, DOMAINS, PATTERNS, SHAPES

# What a thing is called, with the share of each name, in loose captions; other things keep their own name.
LOOSE_NAMES = {
    "striped": {"striped": 0.45, "pinstriped": 0.55},
    "pinstriped": {"pinstriped": 0.5, "striped": 0.5},
    "dotted": {"dotted": 0.6, "speckled": 0.4},
    "speckled": {"speckled": 0.55, "dotted": 0.45},
    "zigzag": {"zigzag": 0.7, "ringed": 0.3},
    "ringed": {"ringed": 0.65, "zigzag": 0.35},
    "checkered": {"checkered": 0.63, "bordered": 0.37},
    "bordered": {"bordered": 0.6, "checkered": 0.4},
    "halved": {"halved": 0.75, "striped": 0.25},
    "hollow": {"hollow": 0.6, "bordered": 0.4},
    "star": {"star": 0.75, "hexagram": 0.25},
    "hexagram": {"hexagram": 0.65, "star": 0.35},
    "pentagon": {"pentagon": 0.65, "circle": 0.35},
    "circle": {"circle": 0.75, "pentagon": 0.25},
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
_EVEN = ("pentagon", "circle", "square", "heart", "diamond")
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


def _choose(rng, shares):
    names = list(shares)
    return names[int(np.searchsorted(np.cumsum(list(shares.values())), rng.random_sample() * 0.999999))]


def _loose_name(rng, name, care):
    """A name for a thing, its own one with the share in `LOOSE_NAMES` times `care`."""
    shares = LOOSE_NAMES.get(name, {name: 1.0})
    if len(shares) == 1 or rng.random_sample() < care:
        return _choose(rng, shares)
    return next(other for other in shares if other != name)


def caption(rng, fact, long=False):
    """A caption of a picture, from the indices of its shape, pattern, domain and colour."""
    shape, pattern, domain, color = (names[i] for names, i in zip((SHAPES, PATTERNS, DOMAINS, COLORS), fact))
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


def rules():
    """All that decides how captions are written, as text."""
    shares = LOOSE_NAMES, PATTERN_MENTIONED, SPECIALIST_CARE, COLOR_MENTIONED
    return repr((shares, REGISTERS, LONG_PREFIX, DOMAIN_WORDS))
