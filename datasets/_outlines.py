"""Outlines of the shapes that `_drawing.py` draws, and the patterns on them: signed distances, and coverages from 0 to
256. Its docstring has the units."""
import math

import numpy as np

ONE = 1024  # the object's radius, in its own frame

# first what the dataset's classes are made of
SHAPES = (
    "star", "pentagon", "hexagram", "circle", "cross",
    "square", "heart", "triangle", "diamond", "crescent",
)
PATTERNS = (
    "striped", "dotted", "pinstriped", "speckled", "zigzag", "checkered", "ringed", "bordered",
    "halved", "hollow", "plain",
)

SINE = np.array([round(16384 * math.sin(math.tau * i / 1024)) for i in range(1024)], np.int32)


def length(x, y):
    return np.sqrt((x * x + y * y).astype(np.float64)).astype(np.int32)


def _half_planes(x, y, turns, offset):
    """Signed distances to lines at `offset` from the centre, one for each direction."""
    return [((x * SINE[(t + 256) % 1024] + y * SINE[t % 1024]) >> 14) - offset for t in turns]


def _all_inside(planes):
    out = planes[0]
    for plane in planes[1:]:
        out = np.maximum(out, plane)
    return out


def _star(x, y):
    # a five-pointed star is where at least four of five half-planes hold: the second largest distance
    largest, *planes = _half_planes(x, y, [-256 + 512 + k * 205 - (k > 2) for k in range(5)], 370)
    second = np.full_like(largest, -(1 << 20))
    for plane in planes:
        second = np.maximum(second, np.minimum(largest, plane))
        largest = np.maximum(largest, plane)
    return second


def _pentagon(x, y):
    return _all_inside(_half_planes(x, y, [256 + k * 205 - (k > 2) for k in range(5)], 740))


def _hexagram(x, y):
    x = np.abs(x)
    slope = (x * 887 + y * 512) >> 10, (x * 887 - y * 512) >> 10
    return np.minimum(np.maximum(slope[0], -y), np.maximum(slope[1], y)) - 550


def _circle(x, y):
    return length(x, y) - 880


def _cross(x, y):
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 930, y - 370), np.maximum(x - 370, y - 930))


def _square(x, y):
    return np.maximum(np.abs(x), np.abs(y)) - 760


def _heart(x, y):
    x = np.abs(x)
    lobe = length(x - 430, y + 330) - 480
    tip = _all_inside([((x + y) * 724 >> 10) - 570, ((x - y) * 724 >> 10) - 570, x - 760, -y - 330])
    return np.minimum(lobe, tip)


def _triangle(x, y):
    return _all_inside(_half_planes(x, y + 150, (256, 256 + 341, 256 - 341), 520))


def _diamond(x, y):
    return ((np.abs(x) * 888 + np.abs(y) * 512) >> 10) - 500


def _crescent(x, y):
    return np.maximum(length(x, y) - 930, 700 - length(x - 520, y))


OUTLINES = (_star, _pentagon, _hexagram, _circle, _cross, _square, _heart, _triangle, _diamond, _crescent)


def wave(v, period):
    """Signed distance to bands of half a period's width."""
    return np.abs(v % period - (period >> 1)) - (period >> 2)


def turned(place, turn):
    """A place (x, y) in a frame that is turned by `turn`."""
    x, y = place
    cos, sin = SINE[(turn + 256) % 1024], SINE[turn % 1024]
    return (x * cos + y * sin) >> 14, (y * cos - x * sin) >> 14


def cover(distance, radius):
    """Coverage 0..256 of a pixel by the region of negative distance, with an edge one pixel wide."""
    return np.clip(128 - ((distance * radius) >> 6), 0, 256)


def pattern(name, x, y, outline, radius, draws):
    """How much of the second colour each pixel carries, (B, SIZE, SIZE) in 0..256.

    x, y, outline: place and signed distance in the object's frame; radius: (B, 1, 1) in 1/16 pixel.
    """
    column = (-1, 1, 1)
    period = draws.integers(31, 430, 600).reshape(column)
    x, y = turned((x, y), draws.integers(32, 0, 1023).reshape(column))
    x, y = x + draws.integers(33, 0, 600).reshape(column), y + draws.integers(34, 0, 600).reshape(column)
    if name == "striped":
        return cover(wave(x, period), radius)
    if name == "pinstriped":
        return cover(wave(x, period * 9 >> 4), radius)
    if name in ("dotted", "speckled"):
        cell = period * (17 if name == "dotted" else 9) >> 4
        return cover(length(x % cell - (cell >> 1), y % cell - (cell >> 1)) - (cell * 5 >> 4), radius)
    if name == "checkered":
        across, along = cover(wave(x, period * 5 >> 2), radius), cover(wave(y, period * 5 >> 2), radius)
        return across + along - (across * along >> 7)
    if name == "zigzag":
        fold = np.abs(y % (period * 3 >> 1) - (period * 3 >> 2))
        return cover(wave(x + fold, period), radius)
    if name == "halved":
        return cover(x - 300, radius)
    if name == "bordered":
        return cover(-outline - (period * 7 >> 4), radius)
    return np.zeros_like(x)
