"""Splits into training, validation and test images: published ones are read, others drawn by CoOp's rule and kept."""
import os
import random
from collections import defaultdict

from dassl.data.datasets import Datum
from dassl.utils import InputError, read_json, write_json
from datasets.files import check_images, leave_out_non_images, report_left_out

SPLIT_SEED = 0  # of splits that are drawn here: one split for every run, whatever its SEED
PART_NAMES = ("train", "val", "test")


def read_split(path, image_dir):
    """A `split_zhou_*.json` file -> (train, val, test) lists of Datum.

    Its entries are [path below image_dir, label, class name]. Raises InputError for another form or missing images.
    """
    split = read_json(path)
    try:
        parts = [[Datum(os.path.join(image_dir, impath), int(str(label)), 0, str(name))  # str: 1.5 is no label
                  for impath, label, name in split[key]] for key in ("train", "val", "test")]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InputError(f"{path} is not a split file: it must hold train, val and test, lists of "
                         "[path, label, class name]") from None
    for part in parts:
        check_images(part, path)
    return parts


def draw_split(items, rng=None):
    """CoOp's split of a dataset that comes without one: of every class (of a domain) 50% train, 20% val, 30% test.

    The images of a class are shuffled, classes in the order they first appear. Where a class is so small that a part
    would be empty, test and then validation take an image of the training part; one image is training.

    Returns:
        [train, val, test], lists of Datum.
    """
    rng = rng or random.Random(SPLIT_SEED)
    parts = [[], [], []]
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


def kept_split(path, image_dir, draw, published=""):
    """The split kept at `path`, or the one that `draw()` makes, kept there where that can be written.

    Args:
        path: a file of the form `read_split` takes.
        image_dir: the folder its paths are relative to.
        draw: () -> [train, val, test].
        published: what it stands in for, the dataset's published split, where there is one.
    """
    warning = f"; numbers do not compare with those on {published}, which is not there" if published else ""
    if os.path.isfile(path):
        print(f"Split: {path}, drawn by this code{warning}")
        return read_split(path, image_dir)
    parts = draw()
    for part in parts:
        check_images(part, "the dataset's own list")
    kept = keep_split(path, image_dir, parts)
    print(f"Split: drawn by CoOp's rule ({', '.join(map(_count, parts, PART_NAMES))}), {kept}{warning}")
    return parts


def _count(part, name):
    return f"{len(part):,} {name}"


def keep_split(path, image_dir, parts, **more):
    """Write the parts of a split, and `more`, as JSON. Returns words that say whether that was possible."""
    entries = {name: [[os.path.relpath(item.impath, image_dir), item.label, item.classname] for item in part]
               for name, part in zip(PART_NAMES, parts)}
    try:
        write_json({**entries, **more}, path)
    except OSError as error:
        return f"not kept ({error.strerror}), the same is drawn next time"
    return f"kept in {path}"


def own_split(folder, listed):
    """The split of a folder of one's own pictures: drawn once by `draw_split`, then kept in `split_drawn.json`.

    Args:
        folder: the folder; paths are kept relative to it.
        listed: all its files, a list of Datum, images or not.
    Returns:
        [train, val, test], without the files that are no images, which are named.
    Raises:
        InputError: the folder's files are not those the kept split was drawn from.
    """
    path = os.path.join(folder, "split_drawn.json")
    if os.path.isfile(path):
        parts, left_out = read_split(path, folder), read_json(path).get("left_out", [])
        known = {os.path.relpath(item.impath, folder) for part in parts for item in part} | set(left_out)
        now = {os.path.relpath(item.impath, folder) for item in listed}
        if known != now:
            raise InputError(f"the files of {folder} changed since its split was drawn ({len(now - known)} new, "
                             f"{len(known - now)} gone); delete {path} to draw anew, or take the change back")
        print(f"Split: {path}")
    else:
        images, left_out = leave_out_non_images(listed, folder)
        if not images:
            raise InputError(f"none of the {len(listed)} files below {folder} is an image that can be read")
        parts = draw_split(images)
        kept = keep_split(path, folder, parts, left_out=left_out)
        print(f"Split: drawn by CoOp's rule ({', '.join(map(_count, parts, PART_NAMES))}), {kept}")
    report_left_out(left_out, folder)
    return parts
