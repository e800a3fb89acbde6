"""Shapes: 40 classes of patterned shapes in four domains, drawn by this code from a seed.

A class is a pattern and a shape ("striped star"); place, size, tilt, colours, ground, light and noise vary freely. Each
picture is a function of (domain, class, number), so a part can be drawn again, or on another machine, to the same
pixels.
They are written once under the data root as `shapes/<domain>/<class>/<number>.png`, to be looked at.
"""

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import InputError
from datasets._drawing import DOMAINS, PATTERNS, SHAPES, draw, hash32
from datasets.base import DomainDataset, FewShotDataset
from datasets.files import check_images

CLASS_SHAPES = SHAPES[:5]
CLASS_PATTERNS = PATTERNS[:8]


def _class_list():
    """Base classes are the first half of the labels: like the squares of a chessboard, so that each half holds every
    pattern (with two or three of the five shapes) and every shape (with four of the eight patterns).

    Patterns and shapes that are close to each other (striped and pinstriped, star and hexagram) are on squares of the
    same colour, so that each half has to tell them apart."""
    grid = [(p, s) for p in range(len(CLASS_PATTERNS)) for s in range(len(CLASS_SHAPES))]
    ordered = sorted(grid, key=lambda cell: (sum(cell) % 2, cell))
    return tuple(f"{CLASS_PATTERNS[p]} {CLASS_SHAPES[s]}" for p, s in ordered)


CLASSNAMES = _class_list()
PARTS = ("train", "val", "test")
# pictures per class: base-to-new tests half of the classes, on photos; the other domains serve leave-one-out
PART_SIZES = {"photo": (24, 8, 76)} | dict.fromkeys(DOMAINS[1:], (8, 4, 30))
SEED = 20261127


def part_numbers(domain, part):
    """The picture numbers of a part, as a range."""
    sizes = PART_SIZES[domain]
    index = PARTS.index(part)
    return range(sum(sizes[:index]), sum(sizes[: index + 1]))


def class_attributes(classname):
    """Pattern and shape of a class as indices into `_drawing.PATTERNS` and `_drawing.SHAPES`."""
    pattern, shape = classname.split()
    return PATTERNS.index(pattern), SHAPES.index(shape)


def picture_keys(domain, label, numbers):
    """The drawing keys of a class's pictures, (len(numbers),) uint32.

    The highest bit is clear; the pretraining of the tiny CLIP sets it, so no picture of this dataset can occur there.
    """
    place = (DOMAINS.index(domain) * len(CLASSNAMES) + label) * 4096
    return hash32(hash32(np.asarray(numbers, np.uint32) + np.uint32(place)) + np.uint32(SEED)) & np.uint32(0x7FFFFFFF)


def draw_pictures(domain, labels, numbers):
    """Pictures of the dataset. labels, numbers: (B,). Returns (B, 64, 64, 3) uint8."""
    keys = np.array([picture_keys(domain, y, [n])[0] for y, n in zip(labels, numbers)], np.uint32)
    patterns, shapes = np.array([class_attributes(CLASSNAMES[y]) for y in labels]).T
    return draw(keys, shapes, patterns, np.full(len(keys), DOMAINS.index(domain)))


def draw_part(domain, part):
    """All pictures of a part in the order (label, number): images (N, 64, 64, 3) uint8 and labels (N,) int64."""
    numbers = part_numbers(domain, part)
    labels = np.repeat(np.arange(len(CLASSNAMES)), len(numbers))
    return draw_pictures(domain, labels, np.tile(numbers, len(CLASSNAMES))), labels


def picture_path(domain, classname, number):
    """Path of a picture relative to the dataset's folder."""
    return os.path.join(domain, classname.replace(" ", "_"), f"{number:03d}.png")


def _write_class(folder, domain, label):
    numbers = range(sum(PART_SIZES[domain]))
    os.makedirs(os.path.dirname(os.path.join(folder, picture_path(domain, CLASSNAMES[label], 0))))
    for number, image in zip(numbers, draw_pictures(domain, [label] * len(numbers), numbers)):
        path = os.path.join(folder, picture_path(domain, CLASSNAMES[label], number))
        Image.fromarray(image).save(path, compress_level=1)


def require_these_classes(folder):
    """Raise InputError where a domain's folder holds classes that are not drawn here."""
    known = {os.path.dirname(picture_path("", name, 0)) for name in CLASSNAMES}
    for domain in DOMAINS:
        place = os.path.join(folder, domain)
        found = os.listdir(place) if os.path.isdir(place) else ()
        if other := sorted(name for name in found if name not in known and not name.startswith(".")):
            raise InputError(f"{place} holds {other[0]}, which is no class of Shapes: drawings of an earlier release? "
                             f"Remove {folder}, and they are drawn anew")


def write_shapes(folder):
    """Draws the whole dataset into `folder` unless it is there. It appears whole or not at all.

    Raises:
        InputError: the folder holds other classes, such as the drawings of an earlier release.
    """
    if os.path.isdir(folder):
        require_these_classes(folder)
        return
    parent = os.path.dirname(os.path.abspath(folder))
    os.makedirs(parent, exist_ok=True)
    unfinished = tempfile.mkdtemp(prefix=".shapes-", dir=parent)
    try:
        jobs = [(unfinished, domain, label) for domain in DOMAINS for label in range(len(CLASSNAMES))]
        with ThreadPoolExecutor(2) as threads:  # the work of numpy and of zlib lets another thread go on
            list(threads.map(lambda job: _write_class(*job), jobs))
        os.chmod(unfinished, 0o755)
        try:
            os.rename(unfinished, folder)
        except OSError:
            if not os.path.isdir(folder):  # otherwise another process drew the same pictures meanwhile
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@DATASET_REGISTRY.register()
class Shapes(DomainDataset):
    """The dataset: photos only, or with DATASET.SOURCE_DOMAINS and DATASET.TARGET_DOMAINS, domains against each other.

    It is drawn into DATASET.ROOT at first use. A target domain is by default tested on its test part, so that numbers
    of the two settings are on the same pictures.
    """

    dataset_dir = "shapes"
    domains = list(DOMAINS)
    target_part = "test"
    drawn_at_first_use = True

    def __init__(self, cfg):
        self.folder = os.path.join(os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT)), self.dataset_dir)
        write_shapes(self.folder)
        if cfg.DATASET.SOURCE_DOMAINS or cfg.DATASET.TARGET_DOMAINS:
            self.build(cfg, self.folder)
        else:
            parts = [self.read("photo", part) for part in PARTS]
            for items in parts:
                check_images(items, "the list of Shapes")
            FewShotDataset.__init__(self, cfg, self.folder, *parts)

    def read(self, domain, part):
        """The pictures of a part of a domain, or all of them."""
        numbers = range(sum(PART_SIZES[domain])) if part == "all" else part_numbers(domain, part)
        return [
            Datum(os.path.join(self.folder, picture_path(domain, classname, number)), label, 0, classname)
            for label, classname in enumerate(CLASSNAMES)
            for number in numbers
        ]
