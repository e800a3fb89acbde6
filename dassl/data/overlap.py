"""Test images that a run has learned from. Every run counts them: the same file under whatever path, and other files
with the same content.

Little is read: all files are asked for their size; of those whose size both lists have, the first and last bytes are
compared; only what is still alike is read as a whole.
"""
import csv
import functools
import gzip
import hashlib
import io
import os
import zlib
from collections import defaultdict
from dataclasses import dataclass

from dassl.data.contents import each, known, sha256_of
from dassl.data.datasets import composed, relative_path
from dassl.utils import InputError, csv_text, is_class_bound, open_regular, printable, write_atomically

RECORD = "train_images.csv.gz"  # in the folder of a run that has learned from images
COLUMNS = ("path", "size", "sha256")
MOST_IMAGES, MOST_RECORD_BYTES = 3 * 10**6, 2**28  # of such a list; ImageNet has 1.3 million
DIGITS = 16  # of a SHA-256 that are kept
ENDS = 4096  # first and last bytes of a file that are compared before the rest
REMEMBERED = 2**16  # number of files whose digests a process keeps
NAMES = {"train": "training", "val": "validation", "test": "test"}


# ---- files -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """A file as the disk knows it; size 0 where it cannot be asked.

    identity: the same for all paths, and all symbolic and hard links, of one file."""

    path: str
    identity: tuple[object, ...] = ()
    size: int = 0
    time: int = 0
    changed: int = 0

    @classmethod
    def at(cls, path):
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            return cls(path, (os.path.normpath(path),))
        identity = (found.st_dev, found.st_ino) if found.st_ino else (os.path.realpath(path),)
        return cls(path, identity, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def ends(self):
        """A digest of the first and last bytes."""
        return _ends(self.path, self.size, self.time)

    def digest(self):
        """The first digits of the content's SHA-256; "" for a file that cannot be read."""
        return _digest(self.path, self.size, self.time, self.changed)

    def is_known(self):
        """Whether its digest is known without reading it."""
        return known(self.path, (self.size, self.time, self.changed)) is not None


@functools.lru_cache(REMEMBERED)
def _ends(path, size, time):
    try:
        with open_regular(path) as file:
            start = file.read(ENDS)
            file.seek(max(0, size - ENDS))
            return hashlib.sha256(start + file.read(ENDS)).digest()
    except OSError:
        return None


@functools.lru_cache(REMEMBERED)
def _digest(path, size, time, changed):
    try:
        return sha256_of(path, (size, time, changed))[:DIGITS]
    except OSError:
        return ""


# ---- images in common --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Common:
    """What a list of images has in common with another.

    by_path: how many of its `of` images are the same file; by_content: how many more have the same content.
    first_file, first_copy: (path, the other's path) of the first of either, or None.
    """

    of: int
    by_path: int = 0
    by_content: int = 0
    first_file: tuple | None = None
    first_copy: tuple | None = None

    @property
    def count(self):
        return self.by_path + self.by_content


class ImageSet:
    """Images to find others among: files, and what earlier runs noted of theirs.

    Args:
        paths: files; root: DATASET.ROOT, below which notes say where theirs lay.
    """

    def __init__(self, paths=(), root=""):
        self.root = root
        self.files: dict[tuple[object, ...], File] = {}  # identity -> File
        self.noted = {}  # (path below its root, size, digest) -> None, in order
        for file in each(File.at, list(paths)):
            self.files.setdefault(file.identity, file)

    def __len__(self):
        return len(self.files) + len(self.noted)

    def common(self, paths):
        """The `Common` of a list of paths with this set."""
        files, found, copies = each(File.at, list(paths)), {}, {}
        sizes, noted, noted_sizes = defaultdict(list), defaultdict(list), {size for _, size, _ in self.noted}
        for file in self.files.values():
            sizes[file.size].append(file)
        for path, size, digest in self.noted:
            noted[size, digest].append(composed(path))
        rest = []
        for number, file in enumerate(files):
            if file.identity in self.files:
                found[number] = self.files[file.identity].path
            elif file.size and (file.size in sizes or file.size in noted_sizes):
                rest.append(number)

        # Alike by size; then by first and last bytes, which notes do not have; then by content.
        candidates = {file for size in {files[number].size for number in rest} for file in sizes.get(size, ())}
        compared = [*candidates, *(files[number] for number in rest if files[number].size in sizes)]
        ends = File.digest if all(file.is_known() for file in compared) else File.ends  # which opens the files
        each(ends, compared)
        alike_ends = {(file.size, ends(file)) for file in candidates}
        rest = [number for number in rest
                if files[number].size in noted_sizes or (files[number].size, ends(files[number])) in alike_ends]
        alike_ends = {(files[number].size, ends(files[number])) for number in rest if files[number].size in sizes}
        alike = [file for file in self.files.values() if file in candidates and (file.size, ends(file)) in alike_ends]
        each(File.digest, [*alike, *(files[number] for number in rest)])
        known: dict[tuple[int, str], str] = {}  # (size, digest) -> path
        for file in alike:
            known.setdefault((file.size, file.digest()), file.path)
        for number in rest:
            file = files[number]
            key = file.size, file.digest()
            if not key[1]:
                continue
            below = composed(relative_path(os.path.abspath(file.path), self.root))
            if below in noted.get(key, ()):
                found[number] = below
            elif key in known or key in noted:
                copies[number] = known.get(key) or noted[key][0]
        first_file, first_copy = ((files[min(pairs)].path, pairs[min(pairs)]) if pairs else None
                                  for pairs in (found, copies))
        return Common(len(files), len(found), len(copies), first_file, first_copy)

    # ---- what a run notes of its training images, for evaluations of it ----
    def write(self, folder):
        """Write `train_images.csv.gz`, one row per image: path below the root, size in bytes, first digits of the
        SHA-256."""
        files = list(self.files.values())
        each(File.digest, files)
        rows = [(relative_path(os.path.abspath(file.path), self.root), file.size, file.digest()) for file in files]
        text = csv_text([COLUMNS, *dict.fromkeys([*rows, *self.noted])])
        packed = gzip.compress(text.encode("utf-8", "surrogateescape"), mtime=0)
        write_atomically(os.path.join(folder, RECORD), lambda file: file.write(packed))

    def add_noted(self, folder):
        """Add the images that the run in a folder has noted. Returns whether it has.

        Raises InputError for a file that is no such note."""
        path = os.path.join(folder, RECORD)
        if not os.path.isfile(path):
            return False
        try:
            self.noted.update(_noted_rows(path))
        except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
            raise InputError(f"{path} is not a run's list of its training images ({error}); fetch it again, or delete "
                             "it: the run's overlap with test images is then unknown") from None
        return True


def _noted_rows(path):
    """{(path, size, digest): None} of a list of images. Raises ValueError and what its readers raise for another file,
    or one that a few bytes have made larger than any list is."""
    with open_regular(path) as packed, gzip.open(packed) as file:
        content = file.read(MOST_RECORD_BYTES + 1)
    if len(content) > MOST_RECORD_BYTES:
        raise ValueError(f"it unpacks to more than {MOST_RECORD_BYTES:,} bytes")
    lines = csv.reader(io.TextIOWrapper(io.BytesIO(content), "utf-8", "surrogateescape", newline=""))
    rows: dict[tuple[str, int, str], None] = {}
    if tuple(next(lines, ())) != COLUMNS:
        raise ValueError("other columns")
    for below, size, digest in lines:
        rows[below, int(size), digest] = None
        if len(rows) > MOST_IMAGES:
            raise ValueError(f"it lists more than {MOST_IMAGES:,} images")
    return rows


# ---- of a run ----------------------------------------------------------------------------------------------------


def evaluated_part(cfg, dataset):
    """The part that TEST.SPLIT names: train, val or test; test for a dataset without validation images."""
    return "test" if cfg.TEST.SPLIT == "val" and not dataset.val else cfg.TEST.SPLIT


def images_of(dataset, part):
    """The list of Datum of a part: train, val or test."""
    return (dataset.train_x if part == "train" else getattr(dataset, part)) or []


def learned_from(trainer, eval_only, model_dir):
    """The images that what is evaluated was learned from.

    Args:
        trainer: built, with its data.
        eval_only: whether nothing is trained now; model_dir: the folder of the run that is evaluated, if any.
    Returns:
        ImageSet; None where nothing was learned from images, or where it is not known, which is then said.
    """
    cfg, dataset = trainer.cfg, getattr(getattr(trainer, "dm", None), "dataset", None)
    trains = getattr(trainer, "trains", True)
    if dataset is None:
        return None
    if not trains and not is_class_bound(trainer, cfg):  # such as zero-shot CLIP
        return None
    if eval_only and trains:
        images = ImageSet(root=cfg.DATASET.ROOT)
        before = [model_dir] if model_dir else []
    else:  # also what fills itself from the training images each time, such as Tip-Adapter
        images = ImageSet((item.impath for item in dataset.train_x), cfg.DATASET.ROOT)
        weights = cfg.MODEL.INIT_WEIGHTS
        before = [cfg.RESUME, os.path.dirname(os.path.dirname(os.path.abspath(weights))) if weights else ""]
    for folder in filter(None, before):
        if not images.add_noted(folder):
            print(f"Note: {folder} does not say which images it was trained on ({RECORD}): whether test images are "
                  "among them is unknown")
    return images if len(images) else None


def count_overlap(trainer, images, eval_only):
    """{"test", "val", "of", "by_path", "val_train"} of a run, for results.json.

    test: how many images of the evaluated part are among those learned from, by_path: how many of them are the same
    file; of: how many the part has; val: how many of it are validation images; val_train: how many validation images
    are training images; part: which part that is, where it is not the test part.

    Args:
        trainer: built, with its data; images: an ImageSet, or None: nothing is counted.
        eval_only: whether nothing is trained now.
    Returns:
        the dict, or None.
    Raises:
        InputError: the same files are trained on (or selected on) and measured on, and DATASET.ALLOW_OVERLAP is False.
    """
    if images is None:
        return None
    cfg, dataset = trainer.cfg, trainer.dm.dataset
    part = evaluated_part(cfg, dataset)
    paths = {name: [item.impath for item in images_of(dataset, name)] for name in ("val", part)}
    trained = images.common(paths[part])
    validation = ImageSet(paths["val"], cfg.DATASET.ROOT) if part == "test" else ImageSet()
    chosen = validation.common(paths[part])
    val_train = images.common(paths["val"])
    counts = {"test": trained.count, "val": chosen.count, "of": trained.of, "by_path": trained.by_path,
              "val_train": val_train.count}
    if part != "test":
        counts["part"] = part
    evaluated = eval_only or not cfg.TEST.NO_TEST
    if part != "train":  # an accuracy on the training part says what it is
        _tell(cfg, trained, NAMES[part], "training", evaluated)
    selects = evaluated and not eval_only and (cfg.TEST.FINAL_MODEL == "best_val" or cfg.TRAIN.get("PATIENCE", 0) > 0)
    if part == "test" and selects:
        _tell(cfg, chosen, "test", "validation", True)
        _tell(cfg, val_train, "validation", "training", True)
    if part == "val" and selects:
        print("Warning: the epoch is chosen on the validation images, and TEST.SPLIT val measures on the same")
    if part == "test" and not trained.count:
        print(f"Overlap: none of {trained.of:,} test images is a training image")
    return counts


def _tell(cfg, common, images, others, matters):
    """Say what two parts have in common. Raises InputError for the same files, where that `matters` and is not allowed.
    """
    if common.by_path:
        path, other = common.first_file
        line = (f"{common.by_path} of {common.of} {images} images are {others} images, first {path}"
                + (f" (trained on as {other})" if os.path.isabs(other) and other != path else ""))
        if matters and not cfg.DATASET.ALLOW_OVERLAP:
            raise InputError(f"{line}; give other images or domains, or set DATASET.ALLOW_OVERLAP True to measure on "
                             "them all the same")
        print(f"Warning: {printable(line)}")
    if common.by_content:
        print(f"Warning: {common.by_content} of {common.of} {images} images have the same content as {others} images, "
              f"first {printable(common.first_copy[0])} (as {printable(common.first_copy[1])})")
