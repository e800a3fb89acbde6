"""What a download leaves on the disk: its size, its checksum, and the room that it needs."""
import contextlib
import errno
import os
import shutil
import stat
import sys

from torchvision.datasets.utils import calculate_md5

from dassl.utils import InputError

AGAIN = "run the same command again, and if it stays so the file at its source changed"
SPARE = 100 << 20  # bytes of a disk that are never filled


class FullDisk(InputError):
    """There is no room; what was fetched is kept."""


def check_file(path, md5, size, source):
    """Remove a file of another checksum or size than was published and raise InputError."""
    found = size_of(path)
    if size and found != size:
        forget(path)
    check_size(found, size, sys.maxsize, source)
    if md5 and (digest := calculate_md5(path)) != md5:
        forget(path)
        raise InputError(f"{source} has the MD5 {digest}, {md5} is published; it was removed: {AGAIN}")


def check_size(found, size, most, source):
    """Raise InputError where `found`, the (least) bytes of a file, is not its published size, or is above `most`."""
    if size and found != size:
        raise InputError(f"{source} has {found:,} bytes, {size:,} are published; {AGAIN}")
    if found > most:
        raise InputError(f"{source} has {found:,} bytes or more, {most:,} are the most that it can have; {AGAIN}")


def forget(path):
    """Remove a file and what is known of its version."""
    for name in (path, f"{path}.version"):
        with contextlib.suppress(FileNotFoundError):
            os.remove(name)


def size_of(path):
    """Bytes of a file that lies at `path`, 0 where nothing does. Raises InputError for what is no regular file: a link,
    a pipe, a device."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return 0
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is a link or not a regular file; remove it, or put the file itself there")
    return found.st_size


def need_space(folder, size):
    """Raise FullDisk where `size` bytes more would leave less than SPARE of the folder's disk."""
    free = shutil.disk_usage(folder).free
    if size + SPARE > free:
        raise FullDisk(f"no space left in {folder}: {size / 1e9:.1f} GB are to come, {free / 1e9:.1f} GB are free")


@contextlib.contextmanager
def full_disk(path):
    """Turn the disk's being full into FullDisk."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise FullDisk(f"no space left on the disk of {path} ({error.strerror}); free some and run the same command "
                       "again, it goes on where it stopped") from None
