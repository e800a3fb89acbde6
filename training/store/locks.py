"""Who computes what: locks on entries, held by processes and threads.

They are POSIX record locks on single bytes of one file. A process that is killed frees its own, they hold across
machines on NFS, and no file has to be removed afterwards. The kernel drops all of a process's locks on a file when the
process closes it, whichever of its handles it closes: a process has one handle for all its threads and stores.
"""
from __future__ import annotations

import contextlib
import errno
import os
import threading

from dassl.utils.errors import InputError
from dassl.utils.files import SAFELY, require_own_folder
from dassl.utils.optional import optional_module

fcntl = optional_module("fcntl")  # None: there are no locks between processes
HELD = (errno.EACCES, errno.EAGAIN)
DIGITS = 15  # hexadecimal digits of a key that choose its bytes
CLAIM, WRITE = 0, 1  # kinds of locks on an entry: to compute it, to change its file
_HERE: dict[tuple[int, str], Locks] = {}  # (process, real path of the lock file) -> its locks
_GUARD = threading.Lock()


def locks_of(path: str) -> Locks:
    """The locks of a file, by its real path: one object for all of a process."""
    with _GUARD:
        return _HERE.setdefault((os.getpid(), path), Locks(path))


class Locks:
    """Locks on bytes of the file `path`, which is made with the first one."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._guard = threading.Lock()
        self._held: set[int] = set()
        self._handle: int | None = None

    def take(self, key: str, kind: int = CLAIM) -> bool:
        """Take the lock of a key, without waiting. Returns whether it was free; it counts as free, and is kept for
        this process only, where the file system has no locks or the file cannot be made."""
        byte = 2 * int(key[:DIGITS], 16) + kind
        with self._guard:
            if byte in self._held:
                return False
            if not self._locked(byte):
                self._close_unused()
                return False
            self._held.add(byte)
            return True

    def free(self, key: str, kind: int = CLAIM) -> None:
        """Give a lock back that this process has taken."""
        byte = 2 * int(key[:DIGITS], 16) + kind
        with self._guard:
            self._held.discard(byte)
            if fcntl is not None and self._handle is not None and self._held:
                with contextlib.suppress(OSError):  # it was never the kernel's
                    fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, byte)
            self._close_unused()

    def _close_unused(self) -> None:
        if self._handle is not None and not self._held:
            os.close(self._handle)
            self._handle = None

    def _locked(self, byte: int) -> bool:
        if fcntl is None:
            return True
        try:
            if self._handle is None:
                self._handle = self._open()
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except OSError as error:
            return self._handle is None or error.errno not in HELD
        except InputError:
            return True
        return True

    def _open(self) -> int:
        folder = os.path.dirname(self.path)
        require_own_folder(self.path, below=folder)
        os.makedirs(folder, exist_ok=True)
        return os.open(self.path, os.O_RDWR | os.O_CREAT | SAFELY | getattr(os, "O_NOFOLLOW", 0), 0o666)
