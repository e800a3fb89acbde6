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

import math

import numpy as np

SIZE = 64
ONE = 1024  # the object's radius, in its own frame

SHAPES = ("star", "circle", "cross", "square", "heart", "triangle", "diamond", "crescent")
PATTERNS = ("striped", "dotted", "ringed", "checkered", "halved", "hollow", "plain", "zigzag", "bordered")
DOMAINS = ("photo", "painting", "cartoon", "sketch")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")

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
_SINE = np.array([round(16384 * math.sin(math.tau * i / 1024)) for i in range(1024)], np.int32)


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


# ---- hashed draws ------------------------------------------------------------------------------------------------


def hash32(x):
    """A bijection of uint32 that leaves no visible structure (two multiply-xorshift rounds). Any shape."""
    x = np.asarray(x, np.uint32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0xD35A2D97)
    return x ^ (x >> np.uint32(15))


class Draws:
    """Independent integer draws for a batch of keys, each named by a salt. keys: (B,) uint32."""

    def __init__(self, keys):
        self.keys = hash32(keys)

    def raw(self, salt, shape=()):
        """(B, *shape) uint32."""
        count = int(np.prod(shape, dtype=np.int64))
        stream = hash32(self.keys + np.uint32((salt * 0x9E3779B9) & 0xFFFFFFFF))
        counter = np.arange(count, dtype=np.uint32) * np.uint32(0x85EBCA6B)
        return hash32(stream[:, None] + counter[None]).reshape(len(self.keys), *shape)

    def integers(self, salt, low, high, shape=()):
        """(B, *shape) int32, uniform in low..high (both included)."""
        low = np.asarray(low, np.int32)
        span = (np.asarray(high, np.int32) - low + 1).astype(np.uint32)
        return low + (((self.raw(salt, shape) >> np.uint32(16)) * span) >> np.uint32(16)).astype(np.int32)

    def __getitem__(self, rows):
        part = object.__new__(Draws)
        part.keys = self.keys[rows]
        return part


def _lattice_weights(cells):
    """(SIZE, cells + 1) float32: integer weights, summing to 64, that interpolate a row of lattice values."""
    place = np.arange(SIZE) * cells  # in 1/64 of a cell
    weights = np.zeros((SIZE, cells + 1), np.float32)
    rows = np.arange(SIZE)
    weights[rows, place // 64] = 64 - place % 64
    weights[rows, place // 64 + 1] += place % 64
    return weights


_WEIGHTS = {cells: _lattice_weights(cells) for cells in (3, 4, 8, 16, 32)}


def _noise(draws, salt, tall, wide):
    """Smooth noise with tall x wide cells, (B, SIZE, SIZE) int32 in 0..255."""
    lattice = (draws.raw(salt, (tall + 1, wide + 1)) >> np.uint32(24)).astype(np.float32)
    return (_WEIGHTS[tall] @ lattice @ _WEIGHTS[wide].T).astype(np.int32) >> 12


def _grain(draws, salt, channels):
    """White noise, (B, SIZE, SIZE, channels) int32 in -128..127, from four bytes a hash."""
    raw = draws.raw(salt, (SIZE * SIZE * channels // 4,)).astype("<u4")
    return raw.view(np.uint8).reshape(len(raw), SIZE, SIZE, channels).astype(np.int32) - 128


# ---- distances ---------------------------------------------------------------------------------------------------


def _length(x, y):
    return np.sqrt((x * x + y * y).astype(np.float64)).astype(np.int32)


def _half_planes(x, y, turns, offset):
    """Signed distances to lines at `offset` from the centre, one for each direction."""
    return [((x * _SINE[(t + 256) % 1024] + y * _SINE[t % 1024]) >> 14) - offset for t in turns]


def _all_inside(planes):
    out = planes[0]
    for plane in planes[1:]:
        out = np.maximum(out, plane)
    return out


def _star(x, y):
    # a five-pointed star is where at least four of five half-planes hold: the second largest distance
    largest = second = None
    for plane in _half_planes(x, y, [-256 + 512 + k * 205 - (k > 2) for k in range(5)], 370):
        if largest is None:
            largest, second = plane, np.full_like(plane, -(1 << 20))
        else:
            second = np.maximum(second, np.minimum(largest, plane))
            largest = np.maximum(largest, plane)
    return second


def _circle(x, y):
    return _length(x, y) - 880


def _cross(x, y):
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 930, y - 370), np.maximum(x - 370, y - 930))


def _square(x, y):
    return np.maximum(np.abs(x), np.abs(y)) - 760


def _heart(x, y):
    x = np.abs(x)
    lobe = _length(x - 430, y + 330) - 480
    tip = _all_inside([((x + y) * 724 >> 10) - 570, ((x - y) * 724 >> 10) - 570, x - 760, -y - 330])
    return np.minimum(lobe, tip)


def _triangle(x, y):
    return _all_inside(_half_planes(x, y + 150, (256, 256 + 341, 256 - 341), 520))


def _diamond(x, y):
    return ((np.abs(x) * 888 + np.abs(y) * 512) >> 10) - 500


def _crescent(x, y):
    return np.maximum(_length(x, y) - 930, 700 - _length(x - 520, y))


_SHAPE_DISTANCE = (_star, _circle, _cross, _square, _heart, _triangle, _diamond, _crescent)


def _wave(v, period):
    """Signed distance to bands of half a period's width."""
    return np.abs(v % period - (period >> 1)) - (period >> 2)


def _turned(x, y, turn):
    cos, sin = _SINE[(turn + 256) % 1024], _SINE[turn % 1024]
    return (x * cos + y * sin) >> 14, (y * cos - x * sin) >> 14


def _cover(distance, radius):
    """Coverage 0..256 of a pixel by the region of negative distance, with an edge one pixel wide."""
    return np.clip(128 - ((distance * radius) >> 6), 0, 256)


def _pattern(name, x, y, outline, radius, draws):
    """How much of the second colour each pixel carries, (B, SIZE, SIZE) in 0..256.

    x, y, outline: place and signed distance in the object's frame; radius: (B, 1, 1) in 1/16 pixel.
    """
    column = (-1, 1, 1)
    period = draws.integers(31, 430, 600).reshape(column)
    x, y = _turned(x, y, draws.integers(32, 0, 1023).reshape(column))
    x, y = x + draws.integers(33, 0, 600).reshape(column), y + draws.integers(34, 0, 600).reshape(column)
    if name == "striped":
        return _cover(_wave(x, period), radius)
    if name == "dotted":
        cell = period * 15 >> 4
        return _cover(_length(x % cell - (cell >> 1), y % cell - (cell >> 1)) - (cell * 5 >> 4), radius)
    if name == "checkered":
        across, along = _cover(_wave(x, period * 5 >> 2), radius), _cover(_wave(y, period * 5 >> 2), radius)
        return across + along - (across * along >> 7)
    if name == "zigzag":
        fold = np.abs(y % (period * 3 >> 1) - (period * 3 >> 2))
        return _cover(_wave(x + fold, period), radius)
    if name == "halved":
        return _cover(x - 300, radius)
    if name == "bordered":
        return _cover(-outline - (period * 7 >> 4), radius)
    return np.zeros_like(x)


# ---- scenes ------------------------------------------------------------------------------------------------------


def _scene(draws, shapes, patterns, wobble):
    """Outline distances, pattern weights and object frame of a batch.

    wobble: displacement of the drawing hand in 1/16 pixel, (B,).
    Returns outline (B, SIZE, SIZE) in Q10, second (B, SIZE, SIZE) in 0..256, radius (B, 1, 1), frame (x, y).
    """
    column = (-1, 1, 1)
    radius = draws.integers(1, 20 * 16, 28 * 16)
    slack = np.maximum(34 * 16 - radius, 16)
    place = np.arange(SIZE, dtype=np.int32) * 16 + 8 - SIZE * 8
    x = place[None, None, :] - draws.integers(2, -slack, slack).reshape(column)
    y = place[None, :, None] - draws.integers(3, -slack, slack).reshape(column)
    if wobble.any():
        wobble = wobble.reshape(column)
        x = x + ((_noise(draws, 4, 8, 8) - 128) * wobble >> 7)
        y = y + ((_noise(draws, 5, 8, 8) - 128) * wobble >> 7)
    tilt = draws.integers(6, -80, 80).reshape(column)
    cos, sin = _SINE[(tilt + 256) % 1024], _SINE[tilt % 1024]
    scale = (1 << 18) // radius.reshape(column)
    x, y = ((x * cos + y * sin) >> 6) * scale >> 16, ((y * cos - x * sin) >> 6) * scale >> 16
    radius = radius.reshape(column)

    outline = np.empty_like(x)
    for index in np.unique(shapes):
        rows = np.flatnonzero(shapes == index)
        outline[rows] = _SHAPE_DISTANCE[index](x[rows], y[rows])
    second = np.zeros_like(x)
    for index in np.unique(patterns):
        rows = np.flatnonzero(patterns == index)
        name = PATTERNS[index]
        if name == "ringed":
            period = draws[rows].integers(31, 400, 520).reshape(column)
            phase = draws[rows].integers(33, 0, 400).reshape(column)
            second[rows] = _cover(_wave(_length(x[rows], y[rows]) + phase, period), radius[rows])
        elif name == "hollow":
            wall = draws[rows].integers(31, 180, 260).reshape(column)
            outline[rows] = np.maximum(outline[rows], -outline[rows] - wall)
        elif name != "plain":
            second[rows] = _pattern(name, x[rows], y[rows], outline[rows], radius[rows], draws[rows])
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
    texture = _noise(draws, 21, 4, 4) + (
        (_noise(draws, 22, 16, 16) - 128) * draws.integers(23, 40, 130).reshape(column) >> 8
    )
    ground = _blend(ground, other, np.clip(texture, 0, 255))
    near = np.clip(260 - np.abs(outline), 0, 260)  # the object keeps light from the ground beside it
    ground = ground * (512 - near)[..., None] >> 9
    x, y = _turned(*frame, draws.integers(24, 0, 1023).reshape(column))
    bulge = np.clip(-outline, 0, 400) >> 3
    light = 215 + bulge + (np.clip(x, -ONE, ONE) * draws.integers(25, 20, 60).reshape(column) >> 10)
    solid = _blend(a, b, second) * light[..., None] >> 8
    image = _blend(ground, solid, _cover(outline, radius))
    image = _soften(image, draws.integers(26, 0, 256).reshape(-1, 1, 1, 1))
    exposure = draws.integers(27, 205, 290).reshape(-1, 1, 1, 1)
    noise = _grain(draws, 28, 3) * draws.integers(29, 4, 22).reshape(-1, 1, 1, 1) >> 7
    return (image * exposure >> 8) + noise


def _painting(draws, first, outline, second, radius, frame):
    a, b, ground, other = _colors(draws, first, flat=False)
    ground = _blend(ground, other, _noise(draws, 21, 4, 4))
    image = _blend(ground, _blend(a, b, second), _cover(outline, radius))
    ochre = np.array((196, 150, 95), np.int32)
    image = image + ((ochre - image) * draws.integers(22, 20, 70).reshape(-1, 1, 1, 1) >> 8)
    image = (image + 14) // 28 * 28  # a palette has few tones
    upright = (draws.raw(23) & np.uint32(1)).astype(bool)
    strokes = _noise(draws, 24, 32, 4)
    strokes[upright] = strokes[upright].transpose(0, 2, 1)
    dabs = _noise(draws, 25, 16, 16)
    relief = (strokes - 128) * 3 + (dabs - 128)
    return image + (relief * draws.integers(26, 22, 48).reshape(-1, 1, 1) >> 8)[..., None]


def _cartoon(draws, first, outline, second, radius, frame):
    column = (-1, 1, 1)
    a, b, ground, other = _colors(draws, first, flat=True)
    x, y = _turned(*frame, draws.integers(21, 0, 1023).reshape(column))
    ground = _blend(ground, other, _cover(x + draws.integers(22, -1500, 1500).reshape(column), radius))
    image = _blend(ground, _blend(a, b, second), _cover(outline, radius))
    ink = _cover(np.abs(outline) - (draws.integers(23, 20, 34).reshape(column) * ONE // radius), radius)
    return _blend(image, np.full(3, 18, np.int32), ink)


def _sketch(draws, first, outline, second, radius, frame):
    column = (-1, 1, 1)
    grain = _grain(draws, 21, 1)[..., 0]
    paper = draws.integers(22, 222, 246).reshape(column) + (grain >> 4)
    x, y = _turned(*frame, draws.integers(23, 0, 1023).reshape(column))
    hatch = _wave(x, draws.integers(24, 130, 190).reshape(column))
    tone = np.clip(150 - (hatch * radius >> 7), 60, 235)
    tone = tone * (256 - second) >> 8
    edge = _cover(np.abs(outline) - (draws.integers(25, 9, 17).reshape(column) * ONE // radius), radius)
    dark = np.maximum(tone * _cover(outline, radius) >> 8, edge)
    pressure = 150 + (_noise(draws, 26, 8, 8) >> 2) + (grain >> 1)
    shade = paper - (dark * np.clip(pressure, 40, 220) >> 8)
    return np.stack([shade, shade - 2, shade - 8], axis=-1)


_STYLES = (_photo, _painting, _cartoon, _sketch)
_WOBBLE = np.array((0, 26, 5, 14), np.int32)
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
