"""Splits into training, validation and test images: published ones are read, others drawn by CoOp's rule.

What is drawn is a function of the files and lists that are there. It is written into the folder of the run, never into
that of the dataset; a drawn split that lies there counts while it is one of the same images.
"""
import os
import random
from collections import defaultdict
from dataclasses import replace

from dassl.data.datasets import Datum, composed, source_digest
from dassl.utils import InputError, read_json
from dassl.utils.stored import require
from datasets.files import check_images, leave_out_non_images, report_left_out

SPLIT_SEED = 0  # of splits that are drawn here: one split for every run, whatever its SEED
PART_NAMES = ("train", "val", "test")
OWN_SPLIT = "split_drawn.json"  # in a folder of one's own pictures


def read_split(path, image_dir):
    """A `split_zhou_*.json` file -> (train, val, test) lists of Datum.

    Its entries are [path below image_dir, label, class name]. Raises InputError for another form or missing images.
    """
    parts = parse_split(read_json(path), path, image_dir)
    for part in parts:
        check_images(part, path)
    return parts


def parse_split(split, path, image_dir):
    """[train, val, test] of what a split file holds, whether the images are there or not."""
    if isinstance(split, dict):
        require("split", split, path, "mend it, or delete it to draw anew")
    try:
        return [[Datum(os.path.join(image_dir, impath), int(str(label)), 0, composed(str(name)))  # 1.5 is no label
                 for impath, label, name in split[key]] for key in PART_NAMES]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InputError(f"{path} is not a split file: it must hold train, val and test, lists of "
                         "[path, label, class name]") from None


def draw_split(items, rng=None):
    """CoOp's split of a dataset that comes without one: of every class (of a domain) 50% train, 20% val, 30% test.

    The images of a class are shuffled, classes in the order they first appear. Where a class is so small that a part
    would be empty, test and then validation take an image of the training part; one image is training.

    Returns:
        [train, val, test], lists of Datum.
    """
    rng = rng or random.Random(SPLIT_SEED)
    parts: list[list[Datum]] = [[], [], []]
    for group in _by_class(items).values():
        rng.shuffle(group)
        count = len(group)
        n_val = max(round(0.2 * count), int(count >= 3))
        n_train = max(min(round(0.5 * count), count - n_val - int(count >= 2)), 1)
        for part, chosen in zip(parts, (group[:n_train], group[n_train:n_train + n_val], group[n_train + n_val:])):
            part.extend(chosen)
    return parts


def split_trainval(items, rng=None):
    """CoOp's split where only training and test images are told apart: of every class 20% validation, the others
    training. Returns (train, val), lists of Datum."""
    rng = rng or random.Random(SPLIT_SEED)
    train, val = [], []
    for group in _by_class(items).values():
        rng.shuffle(group)
        n_val = max(round(0.2 * len(group)), int(len(group) >= 2))
        val.extend(group[:n_val])
        train.extend(group[n_val:])
    return train, val


def _by_class(items):
    groups = defaultdict(list)
    for item in items:
        groups[item.domain, item.label].append(item)
    return groups


def drawn_split(path, image_dir, draw, published="", fixed_test=False):
    """The split that `draw()` makes, or the one at `path` where that lies there and is one of the same images.

    Args:
        path: a file of the form `read_split` takes, from an earlier version or put there by hand.
        image_dir: the folder its paths are relative to.
        draw: () -> [train, val, test].
        published: what it stands in for, the dataset's published split, where there is one.
        fixed_test: the test part is the dataset's own, only training and validation are drawn.
    Returns:
        ([train, val, test], its record for `DatasetBase.draw_records`).
    """
    warning = f"; numbers do not compare with those on {published}, which is not there" if published else ""
    there = os.path.isfile(path)
    try:
        parts = draw()
    except InputError as error:
        if not there:
            raise
        print(f"Split: {path}{warning}; it cannot be compared with what it was drawn from ({error})")
        parts = read_split(path, image_dir)
        return parts, record_of(parts, image_dir, read_json(path).get("source", ""))
    for part in parts:
        check_images(part, "the dataset's own list")
    source = split_source(parts, image_dir, fixed_test)
    if there and (kept := fitting_split(path, image_dir, parts, fixed_test)):
        print(f"Split: {path}, drawn by this code{warning}")
        return kept, record_of(kept, image_dir, source)
    print(f"Split: {_drawn(parts)}{warning}")
    return parts, record_of(parts, image_dir, source)


def fitting_split(path, image_dir, drawn, fixed_test=False):
    """The split kept at `path` if it is one of the images of the split `drawn`; else None, which is said.

    Raises InputError where the file is no split."""
    stored, source = read_json(path), split_source(drawn, image_dir, fixed_test)
    known = {_place(item): item.impath for part in drawn for item in part}
    parts = [[replace(item, impath=known.get(_place(item), item.impath)) for item in part]
             for part in parse_split(stored, path, image_dir)]
    digests = {split_source(parts, image_dir, fixed_test), stored.get("source", source)}
    if digests == {source}:
        return parts
    print(f"Note: {path} was drawn from other images, labels or class names than are there now; drawn anew, the file "
          "is not used")
    return None


def _place(item):
    """An image's path, however the disk that a list was made on composes accents."""
    return composed(os.path.normpath(item.impath))


def split_source(parts, image_dir, fixed_test=False):
    """The digest of what a split was drawn from, whichever part each image is in."""
    groups = [parts[0] + parts[1], parts[2]] if fixed_test else [sum(parts, [])]
    return source_digest([[Datum(path, label, 0, name) for path, label, name in sorted(
        {(_place(item), item.label, item.classname) for item in group})] for group in groups], image_dir)


def record_of(parts, image_dir, source, **more):
    """A split as JSON, in the form of a split file, with the digest of what it was drawn from."""
    entries = {name: [[os.path.relpath(item.impath, image_dir), item.label, item.classname] for item in part]
               for name, part in zip(PART_NAMES, parts)}
    return {**entries, **more, "source": source}


def _drawn(parts):
    counts = ", ".join(f"{len(part):,} {name}" for part, name in zip(parts, PART_NAMES))
    return f"drawn by CoOp's rule ({counts})"


def own_split(folder, listed):
    """The split of a folder of one's own pictures, drawn by `draw_split`: a function of its files.

    A `split_drawn.json` in the folder counts as long as the images are those it was drawn from.

    Args:
        folder: the folder; paths are kept relative to it.
        listed: all its files, a list of Datum, images or not.
    Returns:
        ([train, val, test], its record), without the files that are no images, which are named.
    Raises:
        InputError: a class folder has no image.
    """
    images, left_out = leave_out_non_images(listed, folder)
    path = os.path.join(folder, OWN_SPLIT)
    parts = draw_split(images)
    kept = fitting_split(path, folder, parts) if os.path.isfile(path) else None
    print(f"Split: {path}" if kept else f"Split: {_drawn(parts)}")
    report_left_out(left_out, folder)
    return kept or parts, record_of(kept or parts, folder, split_source(parts, folder), left_out=left_out)
