"""Get the datasets, lay them out, verify them.

    metaprompt data caltech101 pacs --root data
    metaprompt data base2new --root data
    metaprompt data all --root data --check        # only verify what is there

Run it again at any time: what is there is left alone, an interrupted download goes on where it stopped. For what needs
a login or has lost its server, the steps to do by hand are printed. docs/DATASETS.md shows the layouts;
tools/downloads/sources.py holds the addresses and the published numbers.
"""
import contextlib
import errno
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

from tabulate import tabulate
from torchvision.datasets.utils import calculate_md5

import train
from dassl.config import get_cfg_default, merge_file
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from dassl.utils import InputError, open_own
from dassl.utils.registry import nearest
from datasets.base import DomainDataset, DrawnDomains, SplitDataset
from datasets.files import class_folders
from tools.downloads.archives import Refused, remove_folder, unfinished_folder, unpack
from tools.downloads.disk import FullDisk, size_of
from tools.downloads.download import download
from tools.downloads.drive import download_from_drive
from tools.downloads.sources import DRIVE, GROUPS, SOURCES, parts

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# ---- one dataset -------------------------------------------------------------------------------------------------


class OtherLayout(InputError):
    """A whole archive that holds other folders than the published one; it is kept, to be laid out by hand."""

    def __init__(self, archive, inside):
        super().__init__(f"{archive} does not hold {inside}; the archive is kept: lay its content out by hand as "
                         "docs/DATASETS.md shows, or delete it to fetch it again")


def fetch(file, source, root):
    """Download one file of a source and put what it holds into its places; leave alone what is there. A place is filled
    at once, by a rename, so that a place that exists is whole."""
    missing = {inside: place for inside, place in file.places.items() if not os.path.exists(os.path.join(root, place))}
    if not missing:
        return
    for place in missing.values():
        require_own_place(root, place)
    path = os.path.join(root, ".downloads", file.filename)
    if not os.path.lexists(path):
        print(f"fetching {file.filename}", flush=True)
        if file.address.startswith(DRIVE):
            download_from_drive(file.address[len(DRIVE):], path, file.md5, file.size, source.most_bytes)
        else:
            download(file.address, path, file.md5, file.size, source.most_bytes)
    size = size_of(path)  # also of one that was put there by hand, which must be a file, too
    if "" in missing:
        move(path, root, missing[""])
        return
    try:
        with unfinished_folder(root) as folder:
            bounds = source.bounds(size)
            unpack(path, folder, bounds)
            if file.inner:
                inner = os.path.join(folder, file.inner)
                if not os.path.isfile(inner):
                    raise OtherLayout(path, file.inner)
                unpack(inner, folder, bounds)
            for inside in file.places:
                if not os.path.exists(os.path.join(folder, inside)):
                    raise OtherLayout(path, inside)
            for inside, place in missing.items():
                move(os.path.join(folder, inside), root, place)
    except (FullDisk, OtherLayout):
        raise
    except InputError as error:
        if isinstance(error, Refused) and file.md5 and calculate_md5(path) == file.md5:  # it would come again
            raise InputError(f"{error}; the archive is kept: lay its content out by hand as docs/DATASETS.md shows, or "
                             "delete it to fetch it again") from None
        os.remove(path)
        raise InputError(f"{error}; the archive was removed: run the same command to fetch it again") from None
    os.remove(path)


def require_own_place(root, place):
    """Raise InputError where a place to be filled is a link that leads nowhere, or lies below a link. Only the folder
    of the dataset may be one: that is the user's way to another disk, and what is deeper is made here."""
    parts = place.split("/")
    for depth in range(2, len(parts) + 1):
        path = os.path.join(root, *parts[:depth])
        if os.path.islink(path):
            raise InputError(f"{path} is a link, and nothing is written through one; remove it (only the dataset's own "
                             "folder may be a link)")


@contextlib.contextmanager
def alone(root):
    """Keep a second run out of `root`, and clear away what a killed one left unfinished."""
    import fcntl

    downloads = os.path.join(root, ".downloads")
    if os.path.islink(downloads):
        raise InputError(f"{downloads} is a link, and nothing is written through one; remove it")
    os.makedirs(downloads, exist_ok=True)
    path = os.path.join(downloads, "lock")
    with open_own(path, "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another prepare_data.py is at work in {root}; wait for its end") from None
        for below in ("", "*/", "imagenet/images/"):
            for unfinished in Path(root).glob(f"{below}.unfinished-*"):
                remove_folder(unfinished)
        try:
            yield
        finally:
            os.remove(path)
            with contextlib.suppress(OSError):  # it stays where a download is unfinished
                os.rmdir(downloads)


def move(source, root, place):
    target = os.path.join(root, place)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with unfinished_folder(os.path.join(root, place.split("/")[0])) as folder:  # a link to another disk
            shutil.move(source, folder)
            os.rename(os.path.join(folder, os.path.basename(source)), target)


def prepare(name, root):
    """Fetch and arrange a dataset as far as it is not there yet."""
    source = SOURCES[name]
    if source.complete and all(os.path.exists(os.path.join(root, path)) for path in source.complete):
        return
    for file in source.files:
        fetch(file, source, root)
    if source.arrange:
        source.arrange(root, source.bounds)


# ---- verify ------------------------------------------------------------------------------------------------------


def dataset_class(name):
    cfg = get_cfg_default()
    merge_file(cfg, os.path.join(ROOT, "configs", "datasets", f"{name}.yaml"))
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)


def count(name, root):
    """What lies below `root` of a dataset, in the form of its `expected`. Nothing is written.

    Raises:
        InputError: it is not there or not whole.
    """
    cls, source = dataset_class(name), SOURCES[name]
    folder = os.path.join(root, cls.dataset_dir)
    others = getattr(cls, "unsplit_dir", cls.dataset_dir)  # another layout that the dataset reads
    if not any(os.path.isdir(os.path.join(root, name)) for name in (cls.dataset_dir, others)):
        raise InputError(f"no folder {cls.dataset_dir}")
    if issubclass(cls, SplitDataset) and not os.path.isfile(os.path.join(folder, cls.split_file)):
        raise InputError(f"no {cls.dataset_dir}/{cls.split_file}")
    cfg = get_cfg_default()
    cfg.VERBOSE, cfg.DATASET.NAME, cfg.DATASET.ROOT = False, cls.__name__, root
    if issubclass(cls, DrawnDomains) and "images" in source.expected:
        return count_drawn(cls, folder)
    if issubclass(cls, DomainDataset):
        cfg.DATASET.SOURCE_DOMAINS = cfg.DATASET.TARGET_DOMAINS = tuple(cls.domains)
        cfg.DATASET.TARGET_PART = "all"
        with contextlib.redirect_stdout(sys.stderr):
            dataset = build_dataset(cfg)
        images = Counter(cls.domains[item.domain] for item in dataset.test)
        return {"classes": dataset.num_classes, **{domain: images[domain] for domain in cls.domains}}
    with contextlib.redirect_stdout(sys.stderr):
        dataset = build_dataset(cfg)
    found = parts(dataset.num_classes, len(dataset.train_x), len(dataset.val or []), len(dataset.test))
    return {key: found[key] for key in source.expected}


def count_drawn(cls, folder):
    """Domains without a published split, for which none is drawn only to count."""
    missing = [domain for domain in cls.domains if domain not in class_folders(folder)]
    if missing:
        raise InputError(f"no folder {cls.dataset_dir}/{missing[0]}")
    items = cls.list_domains(folder, cls.domains)
    return {"classes": len({item.label for item in items}), "images": len(items)}


def check(names, root):
    """Print the table of what is expected and found. Returns whether all of it agrees."""
    rows = []
    for name in names:
        expected = SOURCES[name].expected
        try:
            found = count(name, root)
            rows.append([name, words(expected), words(found), "ok" if found == expected else "differs"])
        except (InputError, OSError) as error:
            rows.append([name, words(expected), str(error)[:160], "missing"])
    print(tabulate(rows, headers=["dataset", "expected", "found", ""], maxcolwidths=[None, 44, 44, None]))
    return all(row[-1] == "ok" for row in rows)


def words(numbers):
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items())


# ---- command line ------------------------------------------------------------------------------------------------


def parse_arguments(argv):
    parser = train.ArgumentParser(description="Get datasets, lay them out, verify them.",
                                  epilog=f"datasets: {', '.join(SOURCES)}")
    parser.add_argument("datasets", nargs="+", metavar="DATASET", help=f"names, or a group: {', '.join(GROUPS)}")
    parser.add_argument("--root", default="data", help="folder that holds the datasets (default data)")
    parser.add_argument("--check", action="store_true", help="only verify what is there")
    args = parser.parse_args(argv)
    names = [name for word in args.datasets for name in GROUPS.get(word, (word,))]
    for name in names:
        if name not in SOURCES:
            known = [*GROUPS, *SOURCES]
            raise InputError(f"unknown dataset '{name}'{nearest(name, known)}; known: {', '.join(known)}")
    args.datasets = list(dict.fromkeys(names))
    args.root = os.path.abspath(os.path.expanduser(args.root))
    return args


def main(argv=None):
    """Do as the command line says. Returns whether every dataset named is there with its published numbers."""
    args = parse_arguments(argv)
    train.discover()
    if not args.check:
        with alone(args.root):
            for name in args.datasets:
                try:
                    prepare(name, args.root)
                except (InputError, OSError) as error:
                    print(f"{name}: {error}", file=sys.stderr)
    whole = check(args.datasets, args.root)
    if not args.check:
        for name in args.datasets:
            if SOURCES[name].by_hand and not is_there(name, args.root):
                print(f"\n{SOURCES[name].by_hand.format(root=args.root)}")
    return whole


def is_there(name, root):
    try:
        return bool(count(name, root))
    except (InputError, OSError):
        return False


def command_line():
    """The program; returns its exit status."""
    whole = []
    status = train.command_line(lambda: whole.append(main()))
    return status or int(not whole[0])


if __name__ == "__main__":
    sys.exit(command_line())
