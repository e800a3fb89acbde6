"""Files of a feature store: their names, how they are written whole, and what a file of features must hold.

    store.json                        says that the folder is a store
    store.lock                        of which processes lock bytes (locks.py)
    pictures/<name>.jsonl             digests of picture files (pictures.py)
    <space>/space.json                what all its features share, in words
    <space>/<ab>/<abcd...>.safetensors    an entry

Nothing of it has to survive a power cut: what was torn is seen when it is read, and computed again.
"""
from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from dassl.utils.files import SAFELY, open_own, require_own_folder
from training.store.entries import FORMAT, Entry

MARK, LOCK, SPACE, PICTURES = "store.json", "store.lock", "space.json", "pictures"
SPACE_DIGITS = 16  # of a space's digest, in the name of its folder
TENSOR = "features"  # the only tensor of a file: (rows of its pieces one after the other, views, E) float32
MOST_HEADER = 2**16  # bytes of the header of a file
MOST_PICTURES, MOST_WIDTH = 2**16, 2**14  # of an entry; E
MOST_SMALL = 2**20  # bytes of store.json and space.json
ABOUT = 300  # letters of an entry's words that are kept
TRIES = 3  # to write into a folder that others remove meanwhile
ABANDONED = 3600  # seconds after which an unfinished file is nobody's, wherever its writer was
IS_SPACE, IS_PART = re.compile(rf"[0-9a-f]{{{SPACE_DIGITS}}}"), re.compile("[0-9a-f]{2}")
IS_ENTRY, IS_NOTES = re.compile(r"[0-9a-f]{64}\.safetensors"), re.compile(r"[0-9a-f]{64}\.jsonl")
IS_UNFINISHED = re.compile(r".+\.tmp([0-9a-f]{12})-(\d{1,10})-[0-9a-f]{12}")


class Damaged(Exception):
    """A file is none that this store has written, or not as it was written. The message says what it is."""


# ---- names ----
def folder_of(folder: str, space: str) -> str:
    """The folder of a space of that digest."""
    return os.path.join(folder, space[:SPACE_DIGITS])


def path_of(folder: str, entry: Entry) -> str:
    return os.path.join(folder_of(folder, entry.space.digest), entry.key[:2], f"{entry.key}.safetensors")


@functools.cache
def _machine(pid: int) -> str:
    """12 digits of the place where numbers of processes mean the same: this machine since its start, or a container."""
    told = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id",):
        with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
            told.append(file.read())
    with contextlib.suppress(OSError):
        told.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def is_abandoned(name: str, changed: float) -> bool:
    """Whether an unfinished file, last changed at that time (s), was left by a writer that is gone."""
    found = IS_UNFINISHED.fullmatch(name)
    if not found:
        return False
    if time.time() - changed > ABANDONED:
        return True
    if found[1] != _machine(os.getpid()):
        return False
    try:
        os.kill(int(found[2]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False


# ---- writing and reading ----
def write_whole(folder: str, path: str, data: bytes) -> None:
    """Write a file below the store's folder under a name of its own, then rename it. What was there is replaced, an
    empty folder, too.

    Raises OSError, InputError where a folder below the store's is a link, and Damaged where a folder with something in
    it has the file's name."""
    for left in reversed(range(TRIES)):
        unfinished = f"{path}.tmp{_machine(os.getpid())}-{os.getpid()}-{secrets.token_hex(6)}"
        require_own_folder(os.path.dirname(path), below=folder)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _write(unfinished, path, data)
        except FileNotFoundError:  # somebody has removed the folder, or has taken the file for an abandoned one
            if not left:
                raise
        else:
            return


def _write(unfinished: str, path: str, data: bytes) -> None:
    try:
        with open_own(unfinished, "xb") as file:
            file.write(data)
        try:
            os.replace(unfinished, path)
        except (IsADirectoryError, PermissionError):  # the latter on Windows
            if not os.path.isdir(path) or os.path.islink(path):
                raise
            try:
                os.rmdir(path)
            except OSError:
                raise Damaged("a folder that is not empty has its name") from None
            os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(unfinished)
        raise


def mark(folder: str, megabytes: int | None = None) -> None:
    """Let a folder say that it is a store, and what its budget is. Raises as `write_whole` does."""
    path = os.path.join(folder, MARK)
    with contextlib.suppress(OSError, Damaged, AttributeError):
        if read_small(path).get("megabytes") == megabytes or megabytes is None:
            return
    write_whole(folder, path, plain({"feature store": FORMAT, "megabytes": megabytes}))


def plain(data: Any) -> bytes:
    """Plain data as a small JSON file."""
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()


class Opened:
    """A regular file that is no link, open for reading. Raises OSError or Damaged."""

    def __init__(self, path: str) -> None:
        handle = os.open(path, os.O_RDONLY | SAFELY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
        self.found = os.fstat(handle)
        if not stat.S_ISREG(self.found.st_mode):
            os.close(handle)
            raise Damaged("it is not a regular file")
        self.file = os.fdopen(handle, "rb")

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.file.close()

    def read(self, size: int) -> bytearray:
        """The next `size` bytes."""
        data = bytearray(size)
        if self.file.readinto(data) != size:
            raise Damaged("it is shorter than it was")
        return data


def read_small(path: str) -> Any:
    """What a small JSON file holds. Raises OSError or Damaged."""
    with Opened(path) as opened:
        if opened.found.st_size > MOST_SMALL:
            raise Damaged("it is too large")
        return parsed(opened.read(opened.found.st_size))


def parsed(data: bytes | bytearray) -> Any:
    """JSON as data. Raises Damaged."""
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError):
        raise Damaged("it is no JSON") from None


# ---- an entry's file ----
def encoded(entry: Entry, pieces: Mapping[int, Tensor]) -> bytes:
    """The file of an entry's pieces {number: (rows, views, E) float32}, at least one."""
    numbers = sorted(pieces)
    features = torch.cat([pieces[number] for number in numbers]).contiguous()
    facts = {"format": FORMAT, "key": entry.key, "space": entry.space.digest, "kind": entry.kind,
             "pictures": len(entry.pictures), "views": entry.views, "piece": entry.piece, "pieces": _packed(numbers),
             "about": entry.about[:ABOUT]}
    words = json.dumps(facts, sort_keys=True)
    digest = _digest(words, features.shape, features.numpy().data.cast("B"))
    return save({TENSOR: features}, {"facts": words, "sha256": digest})


def _digest(words: str, shape: Any, data: Any) -> str:
    """SHA-256 of all that a file says."""
    digest = hashlib.sha256(json.dumps([words, list(shape)]).encode())
    digest.update(data)
    return digest.hexdigest()


def _packed(numbers: list[int]) -> list[list[int]]:
    """Numbers in order -> [first, last] of those that follow each other."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return runs


def _unpacked(runs: list[list[int]], most: int) -> list[int]:
    """The numbers, below `most`, that `_packed` has packed. Raises ValueError for other runs."""
    numbers: list[int] = []
    for first, last in runs:
        if not (numbers[-1] if numbers else -1) < first <= last < most:
            raise ValueError("other runs")
        numbers += range(first, last + 1)
    return numbers


class Head:
    """What the header of an entry's file says.

    facts: as they were written; pieces: numbers of its pieces, in the order of their rows; shape: of the features.
    """

    def __init__(self, opened: Opened) -> None:
        size = int.from_bytes(opened.read(8), "little")
        if not 0 < size <= MOST_HEADER:
            raise Damaged("its header has another length")
        header = parsed(opened.read(size))
        try:
            told, tensor = header["__metadata__"], header[TENSOR]
            self.words, self.digest = told["facts"], told["sha256"]
            self.facts: dict[str, Any] = parsed(self.words.encode())
            self.shape = tuple(tensor["shape"])
            whole = (set(header) == {"__metadata__", TENSOR} and tensor["dtype"] == "F32" and len(self.shape) == 3
                     and all(type(number) is int and 0 < number < 2**31 for number in self.shape)
                     and self.shape[2] <= MOST_WIDTH and self.facts["format"] == FORMAT)
            self.bytes = 4 * self.shape[0] * self.shape[1] * self.shape[2]
            whole = whole and tensor["data_offsets"] == [0, self.bytes]
            pictures, views, piece = (self.facts[name] for name in ("pictures", "views", "piece"))
            whole = whole and 0 < pictures <= MOST_PICTURES and 0 < piece and self.shape[1] == views
            self.pieces = _unpacked(self.facts["pieces"], -(-pictures // piece)) if whole else []
            rows = sum(min(piece, pictures - number * piece) for number in self.pieces)
            whole = whole and bool(rows) and self.shape[0] == rows
        except (LookupError, TypeError, ValueError, AttributeError, ZeroDivisionError):
            raise Damaged("its header says something else") from None
        if not whole:
            raise Damaged("its header says something else")
        if opened.found.st_size != 8 + size + self.bytes:
            raise Damaged("it is torn")

    def require(self, entry: Entry) -> None:
        """Raise Damaged where it is another entry's."""
        expected = {"key": entry.key, "space": entry.space.digest, "pictures": len(entry.pictures),
                    "views": entry.views, "piece": entry.piece}
        if any(self.facts.get(name) != value for name, value in expected.items()):
            raise Damaged("it is of other pictures, weights or transforms")

    def features(self, opened: Opened) -> Tensor:
        """The features that follow the header. Raises Damaged where they are not those that were written."""
        data = opened.read(self.bytes)
        if _digest(self.words, self.shape, data) != self.digest:
            raise Damaged("its bytes have changed")
        features = torch.frombuffer(data, dtype=torch.float32).view(self.shape)
        if not torch.isfinite(features).all():
            raise Damaged("it holds numbers that are not finite")
        return features
