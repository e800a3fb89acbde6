"""Miniature copies of the datasets' folder layouts, with drawn pictures of 32 to 40 pixels."""
import json
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.pacs import PACS

CLASSES = ["horse", "dog", "alarm_clock", "house", "guitar", "water_lilly"]  # label order, not the order of names
PACS_CLASSES = ["dog", "elephant", "guitar", "house"]
PARTS = {"train": 4, "val": 5, "test": 3}  # images a class
DOMAIN_PARTS = {"train": 3, "crossval": 2}


def draw(path, kind):
    """A picture that is a function of its path: a colour of its kind under noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.RandomState(zlib.crc32(path.name.encode() + kind.encode()) & 0x7FFFFFFF)
    colour = np.random.RandomState(zlib.crc32(kind.encode()) & 0x7FFFFFFF).randint(0, 256, 3)
    pixels = 0.6 * colour + 0.4 * rng.randint(0, 256, (rng.randint(32, 41), rng.randint(32, 41), 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def caltech_entries(classes=CLASSES, parts=PARTS):
    """{part: [[path, label, class name]]}; the classes of a part come in the order 1, 0, 3, 2, ..., interleaved."""
    order = sorted(range(len(classes)), key=lambda label: label ^ 1)
    split, start = {}, 0
    for part, count in parts.items():
        split[part] = [[f"{classes[label]}/image_{start + i:04d}.png", label, classes[label]]
                       for i in range(count) for label in order]
        start += count
    return split


def write_caltech(root, classes=CLASSES, parts=PARTS):
    """Caltech101's layout below `root`. Returns the dataset's folder."""
    folder = Path(root) / "caltech-101"
    split = caltech_entries(classes, parts)
    for part in split.values():
        for impath, _, name in part:
            draw(folder / "101_ObjectCategories" / impath, name[:40])
    (folder / "split_zhou_Caltech101.json").write_text(json.dumps(split))
    return folder


def write_pacs(root, classes=PACS_CLASSES, parts=DOMAIN_PARTS):
    """PACS's layout below `root`. Returns the dataset's folder."""
    folder = Path(root) / "pacs"
    (folder / "splits").mkdir(parents=True)
    for domain in PACS.domains:
        start = 0
        for part, count in parts.items():
            lines = []
            for label, name in enumerate(classes, start=1):
                for i in range(count):
                    impath = f"{domain}/{name}/pic_{start + i:03d}.png"
                    draw(folder / "images" / impath, name + domain)
                    lines.append(f"{impath} {label}\n")
            start += count
            (folder / "splits" / f"{domain}_{part}_kfold.txt").write_text("".join(lines))
    return folder
