"""What is in a feature store, for who looks after it. All of it is safe while runs use the store: they compute again
what is gone."""
from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dassl.utils import InputError
from training.store.budget import Kept, kept, remove
from training.store.entries import FORMAT, digest_of
from training.store.files import (
    IS_ENTRY,
    IS_PART,
    IS_SPACE,
    LOCK,
    MARK,
    PICTURES,
    SPACE,
    SPACE_DIGITS,
    Damaged,
    Head,
    Opened,
    is_abandoned,
    read_small,
    write_whole,
)
from training.store.folder import NAME
from training.store.pictures import read_notes


@dataclass
class Part:
    """What a store keeps of one space.

    name: of its folder; told: what its space.json says, {} where that is missing or damaged.
    pictures: how many pictures have their features here; views: how many augmented ones; bytes: on the disk, about.
    used: when last (s); damaged: entries whose header is none, which are in no other number but `entries`.
    """

    name: str
    told: dict[str, Any]
    entries: int = 0
    pictures: int = 0
    views: int = 0
    bytes: int = 0
    used: float = 0.0
    damaged: int = 0

    @property
    def facts(self) -> dict[str, Any]:
        facts = self.told.get("facts")
        return facts if isinstance(facts, dict) else {}


@dataclass
class Inventory:
    """What a store keeps. parts: by space, largest first; bytes: of all files; megabytes: the budget of the run that
    wrote to it last, None where it is not known; unfinished: files that are being written, or whose writer is gone."""

    parts: list[Part]
    bytes: int = 0
    megabytes: int | None = None
    unfinished: int = 0


@dataclass
class Deleted:
    """How many files were deleted, and how many bytes they had, about."""

    files: int = 0
    bytes: int = 0
    left: list[str] = field(default_factory=list)  # paths that could not be deleted

    def take(self, file: Kept) -> None:
        if remove(file.path):
            self.files += 1
            self.bytes += file.bytes
        else:
            self.left.append(file.path)


def store_in(folder: str) -> str:
    """The store that a folder is, or that lies in an output folder. Raises InputError where there is none."""
    folder = os.path.expanduser(folder)
    for place in (folder, os.path.join(folder, NAME)):
        with contextlib.suppress(OSError, Damaged):
            if "feature store" in read_small(os.path.join(place, MARK)):
                return os.path.realpath(place)
        if os.path.isfile(os.path.join(place, LOCK)):  # its first features are being computed
            return os.path.realpath(place)
    raise InputError(f"{folder} is no feature store, and there is none in it; give an output folder, whose store is "
                     f"the folder {NAME} in it, or the folder that STORE.DIR names")


def _folder_in_store(folder: str, path: str) -> str:
    """The first folder below the store's that a file of it lies in: a space's, or that of the pictures' digests."""
    return os.path.relpath(path, folder).split(os.sep)[0]


def told_of(folder: str, name: str) -> dict[str, Any]:
    """What the space.json of a space's folder says; {} where it is missing or damaged."""
    with contextlib.suppress(OSError, Damaged):
        told = read_small(os.path.join(folder, name, SPACE))
        if isinstance(told, dict):
            return told
    return {}


def inventory(folder: str) -> Inventory:
    """What a store keeps; of entries the headers are read."""
    parts: dict[str, Part] = {}
    found = Inventory([])
    with contextlib.suppress(OSError, Damaged, LookupError, TypeError):
        megabytes = read_small(os.path.join(folder, MARK))["megabytes"]
        found.megabytes = megabytes if isinstance(megabytes, int) else None
    for file in kept(folder):
        found.bytes += file.bytes
        found.unfinished += file.unfinished
        name = _folder_in_store(folder, file.path)
        if file.unfinished or not IS_SPACE.fullmatch(name):
            continue
        part = parts.setdefault(name, Part(name, told_of(folder, name)))
        _count(part, file)
    found.parts = sorted(parts.values(), key=lambda part: (-part.bytes, part.name))
    return found


def _count(part: Part, file: Kept) -> None:
    part.entries += 1
    part.bytes += file.bytes
    part.used = max(part.used, file.used)
    try:
        with Opened(file.path) as opened:
            head = Head(opened)
    except FileNotFoundError:  # removed just now
        part.entries -= 1
    except (OSError, Damaged):
        part.damaged += 1
    else:
        if head.facts.get("kind") == "pictures":
            part.pictures += head.shape[0]
        else:
            part.views += head.shape[0] * head.shape[1]


# ---- whether all is as it was written ----
def faults(folder: str) -> Iterator[tuple[str, str]]:
    """(path, what is wrong) of all that a store would not use, or that is none of it. Every file is read."""
    names = {MARK, LOCK, PICTURES}
    for top in sorted(_names(folder)):
        path = os.path.join(folder, top)
        if not (top in names or IS_SPACE.fullmatch(top)):
            yield path, "it is none of the store's"
        elif top not in (MARK, LOCK) and (os.path.islink(path) or not os.path.isdir(path)):
            yield path, "it is no folder"
        elif top == PICTURES:
            yield from _faults_below(path, read_notes)
        elif top == MARK:
            yield from _fault(path, read_small)
        elif IS_SPACE.fullmatch(top):
            yield from _faults_of_space(path, top)


def _faults_of_space(path: str, name: str) -> Iterator[tuple[str, str]]:
    yield from _fault(os.path.join(path, SPACE), lambda file: _require_space(file, name))
    for part in sorted(_names(path)):
        if part == SPACE:
            continue
        below = os.path.join(path, part)
        if not IS_PART.fullmatch(part) or os.path.islink(below) or not os.path.isdir(below):
            if not is_unfinished(part):
                yield below, "it is none of the store's"
            continue
        yield from _faults_below(below, lambda file: _require_entry(file, name))


def is_unfinished(name: str) -> bool:
    return ".tmp" in name


def _faults_below(folder: str, read: Callable[[str], object]) -> Iterator[tuple[str, str]]:
    for name in sorted(_names(folder)):
        if not is_unfinished(name):
            yield from _fault(os.path.join(folder, name), read)


def _fault(path: str, read: Callable[[str], object]) -> Iterator[tuple[str, str]]:
    try:
        read(path)
    except FileNotFoundError:
        if os.path.basename(path) == SPACE and _names(os.path.dirname(path)):
            yield path, "it is missing"
    except Damaged as damage:
        yield path, str(damage)
    except OSError as error:
        yield path, "it is a link" if os.path.islink(path) else error.strerror or type(error).__name__


def _require_space(path: str, name: str) -> None:
    told = read_small(path)
    facts = told.get("facts") if isinstance(told, dict) else None
    if facts is None or digest_of([FORMAT, facts])[:SPACE_DIGITS] != name:
        raise Damaged("it tells of another space than its folder has")


def _require_entry(path: str, space: str) -> None:
    name = os.path.basename(path)
    if not IS_ENTRY.fullmatch(name):
        raise Damaged("it is none of the store's")
    with Opened(path) as opened:
        head = Head(opened)
        head.features(opened)
    if head.facts["key"] != name.partition(".")[0] or head.facts["space"][:SPACE_DIGITS] != space:
        raise Damaged("it is another entry's")


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


# ---- deleting ----
def delete(folder: str, unused_for: float | None = None, spaces: list[str] | None = None) -> Deleted:
    """Delete files of a store: all, or those that were not used for so many seconds, of the spaces of these names.

    Nothing but a store's own files is deleted. The lock file stays, as runs may hold locks by it."""
    deleted, now = Deleted(), time.time()
    for file in kept(folder):
        if file.unfinished:
            if is_abandoned(os.path.basename(file.path), file.used):
                deleted.take(file)
        elif ((spaces is None or _folder_in_store(folder, file.path) in spaces)
              and (unused_for is None or now - file.used > unused_for)):
            deleted.take(file)
    for name in _names(folder):
        if (spaces is None or name in spaces) and IS_SPACE.fullmatch(name):
            _remove_empty_space(folder, os.path.join(folder, name))
    _rmdir(os.path.join(folder, PICTURES))
    return deleted


def _remove_empty_space(folder: str, path: str) -> None:
    if os.path.islink(path):
        return
    for part in _names(path):
        if IS_PART.fullmatch(part):
            _rmdir(os.path.join(path, part))
    told = os.path.join(path, SPACE)
    if _names(path) != [SPACE]:
        return
    with contextlib.suppress(OSError, Damaged, InputError), Opened(told) as opened:
        content = bytes(opened.read(opened.found.st_size))
        remove(told)
        _rmdir(path)
        if os.path.isdir(path):  # a run has written into it meanwhile
            write_whole(folder, told, content)


def _rmdir(path: str) -> None:
    """Remove a folder that is empty and no link."""
    with contextlib.suppress(OSError):
        os.rmdir(path)
