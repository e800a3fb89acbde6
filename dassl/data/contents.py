"""SHA-256 of files. A process reads a file once, and knows it again by path, size and times of change."""
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from dassl.utils.files import open_regular

State = tuple[int, int, int]  # of a file: size, time of modification, time of change (ns)
UNSETTLED = 2 * 10**9  # ns after a change in which another one may leave the times as they are: some disks count so
MOST_KNOWN = 2**21  # files
THREADS = 8
CHUNK = 64  # files that one thread is given together
_KNOWN: dict[str, tuple[State, bytes]] = {}  # absolute path -> its state and its digest then
Item = TypeVar("Item")
Value = TypeVar("Value")


def each(function: Callable[[Item], Value], items: Sequence[Item]) -> list[Value]:
    """[function(item), ...], made by several threads. What one raises ends the work soon."""
    chunks = [items[start:start + CHUNK] for start in range(0, len(items), CHUNK)]
    if len(chunks) < 2:
        return list(map(function, items))
    pool = ThreadPoolExecutor(THREADS)
    try:
        return [value for values in pool.map(lambda chunk: list(map(function, chunk)), chunks) for value in values]
    finally:
        pool.shutdown(cancel_futures=True)


def state_of(found: os.stat_result) -> State:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def known(path: str, state: State) -> str | None:
    """The SHA-256 of a file in that state; None where this process has not learned it."""
    found = _KNOWN.get(path) or _KNOWN.get(os.path.abspath(path))
    return found[1].hex() if found and found[0] == state else None


def learn(path: str, state: State, digest: str) -> None:
    """Remember the SHA-256 of a file in that state."""
    if len(_KNOWN) >= MOST_KNOWN:
        _KNOWN.clear()
    _KNOWN[os.path.abspath(path)] = state, bytes.fromhex(digest)


def sha256_of(path: str, state: State) -> str:
    """SHA-256 of a file that a moment ago had that state, 64 digits. Raises OSError for one that cannot be read.

    It is remembered, unless the file changes meanwhile, or has changed so lately that its times may not tell."""
    if digest := known(path, state):
        return digest
    content, now = hashlib.sha256(), time.time_ns()
    with open_regular(path) as file:
        before = state_of(os.fstat(file.fileno()))
        while part := file.read(2**20):
            content.update(part)
        after = state_of(os.fstat(file.fileno()))
    digest = content.hexdigest()
    if before == after and not any(abs(now - changed) < UNSETTLED for changed in before[1:]):
        learn(path, before, digest)
    return digest
