"""Random draws that are pure functions of a 32-bit key, and smooth and white noise made of them (`_drawing.py`)."""
import numpy as np

SIZE = 64  # pixels of a picture's side


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


def smooth_noise(draws, salt, tall, wide):
    """Smooth noise with tall x wide cells, (B, SIZE, SIZE) int32 in 0..255."""
    lattice = (draws.raw(salt, (tall + 1, wide + 1)) >> np.uint32(24)).astype(np.float32)
    return (_WEIGHTS[tall] @ lattice @ _WEIGHTS[wide].T).astype(np.int32) >> 12


def white_noise(draws, salt, channels):
    """White noise, (B, SIZE, SIZE, channels) int32 in -128..127, four bytes from each hash."""
    raw = draws.raw(salt, (SIZE * SIZE * channels // 4,)).astype("<u4")
    return raw.view(np.uint8).reshape(len(raw), SIZE, SIZE, channels).astype(np.int32) - 128
