"""The drawings that the tiny CLIP is trained on, and those that it is watched with; none of the dataset."""

import os
import time

import numpy as np
import torch

from datasets import shapes as dataset
from datasets._drawing import DOMAINS, SHAPES, SIZE, draw, hash32, main_colors

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
CHECK_PICTURES = 30  # per class and domain, to watch the training with
LEFT_OUT = (
    "pinstriped star", "dotted pentagon", "ringed cross",  # base classes
    "striped circle", "speckled hexagram", "bordered cross",  # new ones
)
DOMAIN_SHARE = (52, 18, 15, 15)
SHAPE_SHARE = (3,) * 5 + (1,) * 5
PATTERN_SHARE = (3,) * 8 + (1,) * 3


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


def check_pictures(domain, count, seed):
    """Pictures of the dataset's classes that are neither in the dataset nor in the pool."""
    labels = np.repeat(np.arange(len(dataset.CLASSNAMES)), count)
    keys = hash32(
        np.arange(len(labels), dtype=np.uint32) + np.uint32(seed + 7919 * (1 + DOMAINS.index(domain)))
    ) | np.uint32(0x80000000)
    patterns, shapes = np.array([dataset.class_attributes(dataset.CLASSNAMES[y]) for y in labels]).T
    return draw(keys, shapes, patterns, np.full(len(keys), DOMAINS.index(domain))), labels


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
    pixels = torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float() / 255
    return (pixels - pixels.new_tensor(PIXEL_MEAN).view(3, 1, 1)) / pixels.new_tensor(PIXEL_STD).view(3, 1, 1)
