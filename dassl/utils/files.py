"""Opens files safely, also in a run folder that comes from somebody else.

A file that the program reads may have been replaced by a pipe, which would never end. A file that it writes may have
been replaced by a link to another file, which would be overwritten.
"""
import errno
import os
import stat

from dassl.utils.errors import InputError

SAFELY = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)  # a pipe's other end is not waited for
MODES = {"w": os.O_WRONLY | os.O_CREAT, "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
         "a+": os.O_RDWR | os.O_CREAT | os.O_APPEND, "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL}


def open_regular(path, mode="rb", most=None, **words):
    """`open(path, mode, ...)` for reading, of a regular file only. Links are followed, as data folders consist of them.

    most: bytes; a larger file is none of the kind that is expected.
    Raises OSError for what cannot be opened, for a pipe, a device, a socket or a folder, and for a file too large."""
    if "\0" in os.fsdecode(path):
        raise OSError(errno.EINVAL, "there is a zero byte in its name", os.fspath(path))
    handle = os.open(path, os.O_RDONLY | SAFELY)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
        if most is not None and found.st_size > most:
            raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes, and more than {most:,} are not read",
                          os.fspath(path))
        return os.fdopen(handle, mode, **words)
    except BaseException:
        os.close(handle)
        raise


def open_own(path, mode="w", **words):
    """`open(path, mode, ...)` for writing a file of the program's own: a new one, or one with no other name.

    mode: w (truncated), a, a+ or x (must not exist), with b for bytes.
    Raises:
        InputError: the path is a link, a file with a second name (a hard link), or no regular file; nothing of it is
            touched.
        OSError: it cannot be opened.
    """
    path, kind = os.fspath(path), mode.replace("b", "")
    if os.path.islink(path):  # where O_NOFOLLOW is missing, and for a message that says what it is
        raise InputError(f"{path} is a link, and nothing is written through one; remove it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path} is not a regular file; remove it")
    handle = os.open(path, MODES[kind] | getattr(os, "O_NOFOLLOW", 0) | SAFELY, 0o666)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path} is not a regular file; remove it")
        if found.st_nlink > 1:
            raise InputError(f"{path} is a file with {found.st_nlink} names (hard links), and what is written here "
                             "would change it under the others, too; remove it, or put a copy in its place")
        if kind == "w":
            os.ftruncate(handle, 0)
        return os.fdopen(handle, mode, **words)
    except BaseException:
        os.close(handle)
        raise


def require_own_folder(path, below=None):
    """Raise InputError where a folder that the program writes to, or one that leads there, is a link: what is written
    or removed there would be elsewhere. One that does not exist yet is well.

    below: the folder that the user has named, which itself may be a link; default the one that `path` lies in."""
    path = os.path.normpath(path)
    top = os.path.normpath(os.path.dirname(path) if below is None else below)
    while path != top and path != os.path.dirname(path):
        if os.path.islink(path):
            raise InputError(f"{path} is a link, and nothing is written through one; put the folder itself there, or "
                             "choose another --output-dir (--output, for the scripts OUTPUT), which may be a link "
                             "itself")
        path = os.path.dirname(path)
