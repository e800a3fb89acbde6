"""Draws small pictures of one patterned shape, in four styles, with the same pixels on every machine.

A picture is a pure function of a 32-bit key, a shape, a pattern and a domain: every nuisance (place, size, tilt,
colours, background, light, noise) is hashed from the key, so pictures can be drawn one by one or in batches of any
size.

Everything is 32-bit integer arithmetic. The two exceptions are exact by IEEE 754 and so are integers too: square roots
are correctly rounded before their floor is taken, and the interpolation of noise lattices is a product of small
integers whose sums stay below 2**24 and therefore do not depend on the order of summation.

Units: places and radii are in 1/16 pixel; the object's own frame is in 1/1024 of its radius ("milliradii", Q10 below);
coverages and blending weights run from 0 to 256; angles are in 1/1024 of a turn.
"""

import numpy as np

from datasets._hashing import SIZE, Draws, hash32, smooth_noise, white_noise
from datasets._outlines import ONE, OUTLINES, PATTERNS, SHAPES, SINE, cover, length, pattern, turned, wave

DOMAINS = ("photo", "painting", "cartoon", "sketch")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
__all__ = ["COLORS", "DOMAINS", "PATTERNS", "SHAPES", "SIZE", "draw", "hash32", "main_colors"]

_RGB = np.array(
    [
        (205, 38, 38),
        (240, 135, 25),
        (245, 215, 45),
        (45, 150, 60),
        (40, 80, 200),
        (120, 50, 150),
        (245, 130, 175),
        (240, 240, 235),
        (30, 30, 35),
    ],
    np.int32,
)
_BACKGROUND_RGB = np.array(
    [
        (150, 120, 90),
        (90, 105, 80),
        (110, 130, 150),
        (190, 180, 160),
        (80, 70, 65),
        (165, 165, 165),
        (60, 75, 100),
        (200, 195, 205),
        (130, 90, 85),
        (100, 140, 130),
        (215, 205, 170),
        (55, 60, 55),
    ],
    np.int32,
)
_FLAT_RGB = np.array(
    [
        (130, 205, 240),
        (250, 240, 190),
        (175, 230, 150),
        (250, 190, 150),
        (210, 190, 240),
        (250, 250, 250),
        (90, 190, 180),
        (240, 215, 90),
        (70, 110, 170),
        (235, 160, 190),
        (160, 120, 90),
        (90, 90, 110),
    ],
    np.int32,
)


def _distance(a, b):
    """Summed absolute difference of two lists of colours, brightness counted double, (len(a), len(b))."""
    difference = a[:, None] - b[None]
    return np.abs(difference).sum(-1) + np.abs(difference.sum(-1))


def _partners(count=4):
    """For each colour, the colours and then the backgrounds that stand out from it most.

    A pattern nobody could see, or an object that melts into its ground, would be label noise and not a nuisance.
    """
    second = np.argsort(-_distance(_RGB, _RGB), axis=1, kind="stable")[:, :count]
    grounds = []
    for palette in (_BACKGROUND_RGB, _FLAT_RGB):
        contrast = _distance(_RGB, palette)
        both = np.minimum(contrast[:, None] * 2, contrast[None] * 3)  # the first colour fills the larger part
        grounds.append(np.argsort(-both, axis=2, kind="stable")[..., :count])
    return second, grounds


_SECOND, _GROUNDS = _partners()


def _scene(draws, shapes, patterns, wobble):
    """Outline distances, pattern weights and object frame of a batch.

    wobble: displacement of the drawing hand in 1/16 pixel, (B,).
    Returns outline (B, SIZE, SIZE) in Q10, second (B, SIZE, SIZE) in 0..256, radius (B, 1, 1), frame (x, y).
    """
    column = (-1, 1, 1)
    radius = draws.integers(1, 22 * 16, 29 * 16)
    slack = np.maximum(34 * 16 - radius, 16)
    place = np.arange(SIZE, dtype=np.int32) * 16 + 8 - SIZE * 8
    x = place[None, None, :] - draws.integers(2, -slack, slack).reshape(column)
    y = place[None, :, None] - draws.integers(3, -slack, slack).reshape(column)
    if wobble.any():
        wobble = wobble.reshape(column)
        x = x + ((smooth_noise(draws, 4, 8, 8) - 128) * wobble >> 7)
        y = y + ((smooth_noise(draws, 5, 8, 8) - 128) * wobble >> 7)
    tilt = draws.integers(6, -80, 80).reshape(column)
    cos, sin = SINE[(tilt + 256) % 1024], SINE[tilt % 1024]
    scale = (1 << 18) // radius.reshape(column)
    x, y = ((x * cos + y * sin) >> 6) * scale >> 16, ((y * cos - x * sin) >> 6) * scale >> 16
    radius = radius.reshape(column)

    outline = np.empty_like(x)
    for index in np.unique(shapes):
        rows = np.flatnonzero(shapes == index)
        outline[rows] = OUTLINES[index](x[rows], y[rows])
    second = np.zeros_like(x)
    for index in np.unique(patterns):
        rows = np.flatnonzero(patterns == index)
        name = PATTERNS[index]
        if name == "ringed":
            period = draws[rows].integers(31, 400, 520).reshape(column)
            phase = draws[rows].integers(33, 0, 400).reshape(column)
            second[rows] = cover(wave(length(x[rows], y[rows]) + phase, period), radius[rows])
        elif name == "hollow":
            wall = draws[rows].integers(31, 180, 260).reshape(column)
            outline[rows] = np.maximum(outline[rows], -outline[rows] - wall)
        elif name != "plain":
            second[rows] = pattern(name, x[rows], y[rows], outline[rows], radius[rows], draws[rows])
    return outline, second, radius, (x, y)


def _blend(a, b, weight):
    """a where the weight is 0, b where it is 256. a, b: (B, ..., 3); weight: (B, SIZE, SIZE)."""
    return a + ((b - a) * weight[..., None] >> 8)


def _colors(draws, first, flat):
    """First, second, two ground colours, each (B, 1, 1, 3), jittered."""
    second = _SECOND[first, draws.integers(11, 0, 3)]
    palette = _FLAT_RGB if flat else _BACKGROUND_RGB
    choices = _GROUNDS[int(flat)][first, second]
    rows = np.arange(len(first))
    pick = draws.integers(12, 0, 3)
    grounds = choices[rows, pick], choices[rows, (pick + draws.integers(13, 1, 3)) % 4]
    jitter = draws.integers(14, -18, 18, (4, 3))
    picked = (_RGB[first], _RGB[second], palette[grounds[0]], palette[grounds[1]])
    return [np.clip(c + jitter[:, i], 0, 255)[:, None, None] for i, c in enumerate(picked)]


def _soften(image, weight):
    """Blends each picture with its 3 x 3 binomial blur. weight: (B, 1, 1, 1) in 0..256."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    blurred = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) >> 4
    return image + ((blurred - image) * weight >> 8)


def _photo(draws, first, outline, second, radius, frame):
    column = (-1, 1, 1)
    a, b, ground, other = _colors(draws, first, flat=False)
    texture = smooth_noise(draws, 21, 4, 4) + (
        (smooth_noise(draws, 22, 16, 16) - 128) * draws.integers(23, 40, 130).reshape(column) >> 8
    )
    ground = _blend(ground, other, np.clip(texture, 0, 255))
    near = np.clip(260 - np.abs(outline), 0, 260)  # the object keeps light from the ground beside it
    ground = ground * (512 - near)[..., None] >> 9
    x, y = turned(frame, draws.integers(24, 0, 1023).reshape(column))
    bulge = np.clip(-outline, 0, 400) >> 3
    light = 215 + bulge + (np.clip(x, -ONE, ONE) * draws.integers(25, 20, 60).reshape(column) >> 10)
    solid = _blend(a, b, second) * light[..., None] >> 8
    image = _blend(ground, solid, cover(outline, radius))
    image = _soften(image, draws.integers(26, 0, 200).reshape(-1, 1, 1, 1))
    exposure = draws.integers(27, 205, 290).reshape(-1, 1, 1, 1)
    noise = white_noise(draws, 28, 3) * draws.integers(29, 4, 22).reshape(-1, 1, 1, 1) >> 7
    return (image * exposure >> 8) + noise


def _painting(draws, first, outline, second, radius, frame):
    a, b, ground, other = _colors(draws, first, flat=False)
    ground = _blend(ground, other, smooth_noise(draws, 21, 4, 4))
    inside = cover(outline, radius)
    image = _blend(ground, _blend(a, b, second), inside)
    ochre = np.array((196, 150, 95), np.int32)
    image = image + ((ochre - image) * draws.integers(22, 25, 75).reshape(-1, 1, 1, 1) >> 8)
    image = (image + 14) // 28 * 28  # a palette has few tones
    upright = (draws.raw(23) & np.uint32(1)).astype(bool)
    strokes = smooth_noise(draws, 24, 32, 4)
    strokes[upright] = strokes[upright].transpose(0, 2, 1)
    dabs = smooth_noise(draws, 25, 16, 16)
    relief = ((strokes - 128) * 3 + (dabs - 128)) * draws.integers(26, 26, 56).reshape(-1, 1, 1) >> 8
    return image + (relief * (448 - inside) >> 9)[..., None]  # thinner paint on the object


def _cartoon(draws, first, outline, second, radius, frame):
    column = (-1, 1, 1)
    a, b, ground, other = _colors(draws, first, flat=True)
    x, y = turned(frame, draws.integers(21, 0, 1023).reshape(column))
    sides = cover(x + draws.integers(22, -1500, 1500).reshape(column), radius)
    cell = draws.integers(24, 300, 520).reshape(column)
    screen = cover(length(x % cell - (cell >> 1), y % cell - (cell >> 1)) - (cell * 5 >> 4), radius)
    screened = (draws.raw(25) & np.uint32(1)).astype(bool).reshape(column)
    ground = _blend(ground, other, np.where(screened, screen, sides))
    image = _blend(ground, _blend(a, b, second), cover(outline, radius))
    ink = cover(np.abs(outline) - (draws.integers(23, 24, 40).reshape(column) * ONE // radius), radius)
    return _blend(image, np.full(3, 18, np.int32), ink)


def _sketch(draws, first, outline, second, radius, frame):
    column = (-1, 1, 1)
    grain = white_noise(draws, 21, 1)[..., 0]
    paper = draws.integers(22, 222, 246).reshape(column) + (grain >> 4)
    x, y = turned(frame, draws.integers(23, 0, 1023).reshape(column))
    hatch = wave(x, draws.integers(24, 110, 150).reshape(column))
    tone = np.clip(160 - (hatch * radius >> 8), 110, 210)
    tone = tone * (256 - second) >> 8
    edge = cover(np.abs(outline) - (draws.integers(25, 9, 17).reshape(column) * ONE // radius), radius)
    dark = np.maximum(tone * cover(outline, radius) >> 8, edge)
    pressure = 150 + (smooth_noise(draws, 26, 8, 8) >> 2) + (grain >> 1)
    mark = dark * np.clip(pressure, 40, 220) >> 8
    chalk = (draws.raw(27) & np.uint32(1)).astype(bool).reshape(column)  # light on a blackboard
    shade = np.where(chalk, 275 - paper + mark, paper - mark)
    return np.stack([shade, shade - 2, shade - 8], axis=-1)


_STYLES = (_photo, _painting, _cartoon, _sketch)
_WOBBLE = np.array((0, 22, 6, 18), np.int32)
_CHUNK = 32  # pictures at a time: keeps the intermediate planes within a core's cache


def main_colors(keys):
    """The index into COLORS of each object's main colour, (B,) int64. A sketch does not show it."""
    return Draws(keys).integers(10, 0, len(COLORS) - 1).astype(np.int64)


def draw(keys, shapes, patterns, domains):
    """Draws a batch of pictures.

    Args:
        keys: (B,) uint32, what every nuisance is hashed from.
        shapes, patterns, domains: (B,) indices into SHAPES, PATTERNS and DOMAINS.
    Returns:
        (B, SIZE, SIZE, 3) uint8.
    """
    keys = np.asarray(keys, np.uint32)
    shapes, patterns, domains = (np.asarray(v, np.int64) for v in (shapes, patterns, domains))
    images = np.empty((len(keys), SIZE, SIZE, 3), np.uint8)
    colors = main_colors(keys)
    for style in range(len(DOMAINS)):
        for rows in np.array_split(np.flatnonzero(domains == style), -(-np.sum(domains == style) // _CHUNK) or 1):
            if not len(rows):
                continue
            draws = Draws(keys[rows])
            wobble = np.full(len(rows), _WOBBLE[style], np.int32)
            scene = _scene(draws, shapes[rows], patterns[rows], wobble)
            images[rows] = np.clip(_STYLES[style](draws, colors[rows], *scene), 0, 255).astype(np.uint8)
    return images
