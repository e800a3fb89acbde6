"""Randomness as a function: every draw has a key (seed, epoch, position, ...) instead of a place in a history."""
import contextlib
import hashlib
import random
from typing import Any

import numpy as np
import torch


def derive_seed(*key):
    """A 63-bit seed that is a function of `key` (numbers and strings) alone, the same on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def set_random_seed(seed):
    """Seed Python's, numpy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_rng_state():
    """The state of the global generators, in types that `torch.load(weights_only=True)` accepts."""
    numpy_state: dict[str, Any] = np.random.get_state(legacy=False)
    keys, position = numpy_state["state"]["key"], numpy_state["state"]["pos"]
    return {
        "python": random.getstate(),
        "numpy": (numpy_state["bit_generator"], torch.from_numpy(keys.astype(np.int64)), position,
                  numpy_state["has_gauss"], numpy_state["gauss"]),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],  # of the device in use
    }


def require_rng_state(state):
    """Raise an error of `dassl.utils.checkpoint.MISFITS` unless `set_rng_state` can take a state; nothing is set."""
    version, internal, gauss = state["python"]
    random.Random().setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    if not (type(position) is int and 0 <= position <= 624):  # numpy would read beyond its numbers
        raise ValueError(f"numpy's generator has no position {position}")
    np.random.RandomState().set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.Generator().set_state(state["torch"])
    for found in state["cuda"][:1] if torch.cuda.is_available() else ():
        torch.Generator("cuda").set_state(found)


def set_rng_state(state):
    """Put the global generators back to what `get_rng_state` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])


def seed_cpu_generators(seed):
    """Seed Python's, numpy's and torch's global generators; those of GPUs are left as they are."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.random.default_generator.manual_seed(seed)


@contextlib.contextmanager
def isolated_rng(seed):
    """Within it the global CPU generators start from `seed`; afterwards they are as before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_cpu_generators(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
