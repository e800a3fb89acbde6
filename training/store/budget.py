"""How much a feature store keeps."""
from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from training.store.files import IS_ENTRY, IS_NOTES, IS_PART, IS_SPACE, IS_UNFINISHED, PICTURES, is_abandoned

MEGABYTE = 2**20
BLOCK = 4096  # bytes that a disk gives out together
USED_AGAIN = 300  # seconds after which another use of a file is noted on the disk
RECENT = 900  # seconds for which what this process has used is removed after all other files
LOOK_AGAIN = 600  # seconds between two looks at the whole folder by a process that writes
SHARE = 16  # a process that has written 1/16 of the budget looks at the whole folder: others write, too
ROOM = 0.9  # of the budget is left where something is removed
_HERE: dict[tuple[int, str], Usage] = {}  # (process, real path of the store) -> what it knows of its size
_GUARD = threading.Lock()


@dataclass(frozen=True)
class Kept:
    """A file of the store. used: when (s); bytes: on the disk, about."""

    path: str
    bytes: int
    used: float
    unfinished: bool = False


def blocks(size: int) -> int:
    """Bytes that a file of that size takes on a disk, about."""
    return -(-size // BLOCK) * BLOCK


def kept(folder: str) -> Iterator[Kept]:
    """All files of a store that count: entries, digests of pictures, unfinished files. Links are not followed, and
    what has other names is none of it."""
    for top in _entries(folder):
        if not _is_folder(top):
            continue
        if top.name == PICTURES:
            yield from _files(top.path, IS_NOTES)
        elif IS_SPACE.fullmatch(top.name):
            yield from _files(top.path, None)
            for part in _entries(top.path):
                if IS_PART.fullmatch(part.name) and _is_folder(part):
                    yield from _files(part.path, IS_ENTRY)
    yield from _files(folder, None)


def _files(folder: str, named: object) -> Iterator[Kept]:
    for entry in _entries(folder):
        unfinished = IS_UNFINISHED.fullmatch(entry.name) is not None
        if unfinished or (named is not None and named.fullmatch(entry.name)):  # type: ignore[attr-defined]
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    yield Kept(entry.path, blocks(found.st_size), found.st_mtime, unfinished)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def usage_of(folder: str) -> Usage:
    """What this process knows of the size of a store, by its real path."""
    with _GUARD:
        return _HERE.setdefault((os.getpid(), folder), Usage(folder))


class Usage:
    """The size of a store, as one process knows it. It looks at the whole folder when it first writes, and again now
    and then; in between it counts what it writes itself."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._used: dict[str, float] = {}  # path -> when this process has used it last
        self._bytes = self._written = 0
        self._looked: float | None = None
        self._guard = threading.Lock()

    def used(self, path: str, on_disk: float | None = None) -> None:
        """Note that this process has used a file. on_disk: when it was used by what the disk says; None: just now."""
        now = time.time()
        with self._guard:
            self._used[path] = now
            if len(self._used) > 2**16:
                self._used = {name: when for name, when in self._used.items() if now - when < RECENT}
        if on_disk is not None and not 0 <= now - on_disk < USED_AGAIN:
            with contextlib.suppress(OSError):  # another user's file, or a disk that cannot be written
                os.utime(path)

    def make_room(self, size: int, megabytes: int) -> None:
        """Call it before `size` bytes are written: what was used longest ago is removed where the budget asks for it.
        """
        budget, now = megabytes * MEGABYTE, time.time()
        with self._guard:
            self._bytes += blocks(size)
            self._written += blocks(size)
            if (self._looked is not None and 0 <= now - self._looked < LOOK_AGAIN and self._bytes <= budget
                    and self._written <= budget // SHARE):
                return
            self._looked, self._written = now, 0
            used = {path: when for path, when in self._used.items() if now - when < RECENT}
        left = trim(self.folder, budget - blocks(size), int(budget * ROOM) - blocks(size), used)
        with self._guard:
            self._bytes = left + blocks(size)


def trim(folder: str, most: int, down_to: int, recent: dict[str, float] | None = None) -> int:
    """Remove what killed writers have left, and, where a store has more than `most` bytes, what was used longest ago
    until it has at most `down_to`. Returns how many are left.

    recent: {path: when it was used (s)} of files that go last.
    """
    recent, files = recent or {}, []
    for file in kept(folder):
        if not (file.unfinished and is_abandoned(os.path.basename(file.path), file.used) and remove(file.path)):
            files.append(file)
    total = sum(file.bytes for file in files)
    if total > most:
        for file in sorted((file for file in files if not file.unfinished),
                           key=lambda file: (file.path in recent, recent.get(file.path, file.used))):
            if total <= down_to:
                break
            if remove(file.path):
                total -= file.bytes
    return total


def remove(path: str) -> bool:
    """Remove a file of the store. Returns whether it is gone."""
    try:
        os.remove(path)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True
