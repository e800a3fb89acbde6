"""The folder of the feature store."""
from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from dassl.utils import InputError, printable
from training.store.budget import MEGABYTE, usage_of
from training.store.entries import FORMAT, Entry
from training.store.files import (
    LOCK,
    MARK,
    SPACE,
    Damaged,
    Head,
    Opened,
    encoded,
    folder_of,
    mark,
    path_of,
    plain,
    write_whole,
)
from training.store.locks import WRITE, Locks, locks_of

LONGEST_WAIT = 900  # seconds for news of an entry of which another process says that it computes it
POLLS = 0.05, 1.0  # seconds between two looks: at first, at most
WRITERS_WAIT = 5.0  # seconds for another process that changes the same file


class Store:
    """Entries of frozen features in a folder that many processes read and write.

    Nothing that happens to the folder ends a run. What cannot be used is computed again and replaced; where nothing can
    be written, nothing is. Either is said in one line for all of a store's calls.

    Args:
        folder: made when something is first written or claimed.
        megabytes: the most that is kept; what was not used for longest goes first. 0: nothing is, nor read.
    """

    def __init__(self, folder: str, megabytes: int) -> None:
        self.folder, self.megabytes = folder, megabytes
        self._real = os.path.realpath(folder)
        self._told: set[str] = set()
        self._marked = False  # whether the folder says that it is a store
        self._writes = megabytes > 0
        self._waited = 0.0  # seconds, for entries that have not come

    def read(self, entry: Entry) -> dict[int, Tensor]:
        """{number of a piece: features (rows, views, E) float32} of the pieces that are kept."""
        if not self.megabytes:
            return {}
        path = path_of(self._real, entry)
        try:
            return self._read(path, entry)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except Damaged as damage:
            self._tell_damage(path, str(damage))
        except OSError as error:
            if error.errno == errno.ESTALE:  # NFS: another machine has just replaced or removed it
                return {}
            self._tell_damage(path, "it is a link" if error.errno == errno.ELOOP else _reason(error))
        return {}

    def _read(self, path: str, entry: Entry) -> dict[int, Tensor]:
        with Opened(path) as opened:
            head = Head(opened)
            head.require(entry)
            features = head.features(opened)
        usage_of(self._real).used(path, opened.found.st_mtime)
        pieces, start = {}, 0
        for number in head.pieces:
            rows = entry.rows(number)
            pieces[number] = features[start:start + rows.stop - rows.start]
            start += rows.stop - rows.start
        return pieces

    def write(self, entry: Entry, pieces: Mapping[int, Tensor]) -> None:
        """Keep pieces of an entry beside those that are kept already. What is not finite is not kept."""
        new = {number: _plain(entry, number, piece) for number, piece in pieces.items()}
        new = {number: piece for number, piece in new.items() if torch.isfinite(piece).all()}
        if not self._writes or not new:
            return
        try:
            with self._alone(entry):
                self._write(entry, new)
        except Damaged as damage:
            self._tell_damage(path_of(self._real, entry), str(damage))
        except (OSError, InputError) as error:
            self._writes = False
            reason = "it is no folder" if os.path.isfile(self._real) else _reason(error)
            self._tell("unwritten", f"Warning: the feature store {self.folder} cannot be written ({reason}): "
                       "features are computed anew by each run; mend that, let STORE.DIR name another folder, or set "
                       "STORE.USE False")

    def _write(self, entry: Entry, new: dict[int, Tensor]) -> None:
        path = path_of(self._real, entry)
        there: dict[int, Tensor] = {}
        with contextlib.suppress(OSError, Damaged):
            there = self._read(path, entry)
        if there and next(iter(there.values())).shape[2] == next(iter(new.values())).shape[2]:
            if set(new) <= set(there):
                return
            new = {**there, **new}
        data = encoded(entry, new)
        if len(data) > self.megabytes * MEGABYTE:
            self._tell("large", f"Note: the feature store keeps {self.megabytes} MB (STORE.MB), less than some of its "
                       "files have: their features are computed anew by each run")
            return
        usage = usage_of(self._real)
        usage.make_room(len(data), self.megabytes)
        self._describe(entry)
        write_whole(self._real, path, data)
        usage.used(path)

    def _describe(self, entry: Entry) -> None:
        """Let the folders say what they are."""
        if not (self._marked and os.path.isfile(os.path.join(self._real, MARK))):  # somebody may delete the folder
            mark(self._real, self.megabytes)
            self._marked = True
        path = os.path.join(folder_of(self._real, entry.space.digest), SPACE)
        if not os.path.isfile(path):
            told = {"format": FORMAT, "digest": entry.space.digest, "name": entry.space.name,
                    "facts": entry.space.facts}
            write_whole(self._real, path, plain(told))

    # ---- who computes what ----
    @contextlib.contextmanager
    def claim(self, entry: Entry) -> Iterator[bool]:
        """Context in which no other process, and no other thread, computes this entry; gives whether that is so, at
        once.

        It gives True, too, where there are no locks, and where `wait` has given up: features are then computed twice,
        and are the same."""
        if not self._writes:  # nobody would find it
            yield True
            return
        taken = self._locks.take(entry.key)
        try:
            yield taken or self._waited >= LONGEST_WAIT
        finally:
            if taken:
                self._locks.free(entry.key)

    def busy(self, entry: Entry) -> bool:
        """Whether another process, or a thread, has claimed an entry."""
        if not self._writes:
            return False
        free = self._locks.take(entry.key)
        if free:
            self._locks.free(entry.key)
        return not free

    def wait(self, entry: Entry, meanwhile: Callable[[], object] = lambda: None) -> bool:
        """Wait until nobody has a claim on an entry: it was then computed, or who had it is gone.

        Args:
            meanwhile: called again and again; what it raises ends the waiting.
        Returns:
            False where nothing that was waited for has come for LONGEST_WAIT seconds, nor a part of it. This store then
            waits for no entry any more.
        """
        (pause, most), state = POLLS, self._state(entry)
        while self.busy(entry):
            meanwhile()
            if (now := self._state(entry)) != state:  # a slow process keeps what it has now and then
                self._waited, state = 0.0, now
            if self._waited >= LONGEST_WAIT:
                return False
            began = time.monotonic()
            time.sleep(pause)
            self._waited += time.monotonic() - began
            pause = min(2 * pause, most)
        self._waited = 0.0
        return True

    def _state(self, entry: Entry) -> tuple[int, int] | None:
        """What tells whether an entry's file has been written; None where there is none."""
        try:
            found = os.stat(path_of(self._real, entry), follow_symlinks=False)
        except OSError:
            return None
        return found.st_ino, found.st_size  # its times are changed by who reads it, too

    @property
    def _locks(self) -> Locks:
        return locks_of(os.path.join(self._real, LOCK))

    @contextlib.contextmanager
    def _alone(self, entry: Entry) -> Iterator[None]:
        """Context in which no other process changes an entry's file, unless one does for long: what it adds at the same
        time would be lost, and computed again."""
        locks, end = self._locks, time.monotonic() + WRITERS_WAIT
        while not (taken := locks.take(entry.key, WRITE)) and time.monotonic() < end:
            time.sleep(POLLS[0])
        try:
            yield
        finally:
            if taken:
                locks.free(entry.key, WRITE)

    # ---- what is said ----
    def _tell_damage(self, path: str, what: str) -> None:
        self._tell("damage", f"Note: {path} in the feature store is not used ({what}): its features are computed "
                   "again, and so are those of other files that cannot be used")

    def _tell(self, about: str, line: str) -> None:
        if about not in self._told:
            self._told.add(about)
            print(printable(line))


def _plain(entry: Entry, number: int, piece: Tensor) -> Tensor:
    """A piece as it is stored. Raises ValueError for one of another shape."""
    rows = entry.rows(number)
    if not 0 <= rows.start < rows.stop or piece.shape[:-1] != (rows.stop - rows.start, entry.views):
        raise ValueError(f"piece {number} of {len(entry.pictures)} pictures has the shape {tuple(piece.shape)}")
    return piece.detach().to("cpu", torch.float32).contiguous()


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())[:200]
