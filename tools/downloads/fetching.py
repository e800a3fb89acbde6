"""Getting one dataset: its files are downloaded, unpacked and put into their places. What is there is left alone."""
import contextlib
import errno
import os
import shutil
from pathlib import Path

from torchvision.datasets.utils import calculate_md5

from dassl.utils import InputError, open_own
from tools.downloads.archives import Refused, remove_folder, unfinished_folder, unpack
from tools.downloads.disk import FullDisk, size_of
from tools.downloads.download import download
from tools.downloads.drive import download_from_drive
from tools.downloads.sources import DRIVE, SOURCES


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
            raise InputError(f"another `metaprompt data` is at work in {root}; wait for its end") from None
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
