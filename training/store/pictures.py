"""Files of pictures, known by their content."""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Sequence

from pydantic_core import from_json

from dassl.data.contents import State, each, known, learn, sha256_of, state_of
from dassl.utils import InputError, read_image
from training.store.budget import usage_of
from training.store.entries import FORMAT
from training.store.files import PICTURES, Damaged, Opened, mark, parsed, write_whole

MOST_BYTES = 2**29  # of a file of notes
MOST_NOTES = 2**21  # pictures in it
IS_DIGEST = re.compile("[0-9a-f]{64}")
Note = tuple[State, str]  # a file's state and its digest then


class Pictures:
    """SHA-256 of files, read once and then known by path, size and times of change.

    Args:
        folder: of the store, where they are noted for later runs; None: they are known to this process only.
        notes: whether this process notes them; it knows what is noted in any case.
    """

    def __init__(self, folder: str | None, notes: bool = True) -> None:
        self.folder, self.notes = folder and os.path.realpath(folder), notes

    def digests(self, paths: Sequence[str]) -> list[str]:
        """SHA-256 of each file. Raises InputError as `read_image` does for one that cannot be read."""
        places = [os.path.abspath(path) for path in paths]
        states = each(_state, places)
        found = [state and known(place, state) for place, state in zip(places, states)]
        new = [number for number, digest in enumerate(found) if digest is None]
        top = _top(places) if new and self.folder else ""
        noted = self._noted(top) if top else {}
        for number in new:
            state, note = states[number], noted.get(places[number][len(top):])
            if note and note[0] == state:
                learn(places[number], *note)
                found[number] = note[1]
        new = [number for number in new if found[number] is None]
        for number, digest in zip(new, each(_digest, [(places[number], states[number]) for number in new])):
            found[number] = digest
        if top and self.notes:
            self._note(top, noted, [places[number] for number in new])
        return [digest or "" for digest in found]

    # ---- notes of earlier runs: one file for all pictures below the folder that those of a list have in common ----
    def _path(self, top: str) -> str:
        name = hashlib.sha256(top.encode("utf-8", "surrogatepass")).hexdigest()
        return os.path.join(self.folder or "", PICTURES, f"{name}.jsonl")

    def _noted(self, top: str) -> dict[str, Note]:
        """{path below `top`: its note}; {} for a file that is not there, or not as it was written."""
        path = self._path(top)
        with contextlib.suppress(OSError, Damaged):
            folder, notes, used = read_notes(path)
            if folder == top:
                usage_of(self.folder or "").used(path, used)
                return notes
        return {}

    def _note(self, top: str, noted: dict[str, Note], places: list[str]) -> None:
        """Note what this process knows of these files. Where nothing can be written, the store says so."""
        added: dict[str, Note] = {}
        for place, state in zip(places, each(_state, places)):
            digest = state and known(place, state)
            if state and digest and noted.get(place[len(top):]) != (state, digest):
                added[place[len(top):]] = state, digest
        if not added:
            return
        noted = {**self._noted(top), **added}  # what others have noted meanwhile, too
        body = _body(noted if len(noted) <= MOST_NOTES else added)
        head = {"format": FORMAT, "folder": top, "sha256": hashlib.sha256(body).hexdigest()}
        with contextlib.suppress(OSError, InputError, Damaged):
            mark(self.folder or "")
            write_whole(self.folder or "", self._path(top), json.dumps(head).encode() + b"\n" + body)


def _top(places: list[str]) -> str:
    """The folder, with its separator, that files have in common; "" where they have none."""
    with contextlib.suppress(ValueError):  # on several drives of Windows
        return os.path.join(os.path.commonpath({os.path.dirname(place) for place in places}), "")
    return ""


def _state(path: str) -> State | None:
    with contextlib.suppress(OSError, ValueError):
        return state_of(os.stat(path))
    return None


def _digest(file: tuple[str, State | None]) -> str:
    path, state = file
    for _ in range(2):
        with contextlib.suppress(OSError, ValueError):
            return sha256_of(path, state or state_of(os.stat(path)))
        read_image(path)  # which says why it cannot be read
    raise InputError(f"cannot read the image {path}; replace the file, take it out of the split, or leave it out with "
                     "--skip-bad-images")


def _body(notes: dict[str, Note]) -> bytes:
    return json.dumps({below: [*state, digest] for below, (state, digest) in notes.items()}).encode()


def read_notes(path: str) -> tuple[str, dict[str, Note], float]:
    """(folder, {path below it: its note}, when it was used last) of a file of notes. Raises OSError or Damaged."""
    with Opened(path) as opened:
        if opened.found.st_size > MOST_BYTES:
            raise Damaged("it is too large")
        head, _, body = bytes(opened.read(opened.found.st_size)).partition(b"\n")
    told = parsed(head)
    if not isinstance(told, dict) or told.get("format") != FORMAT or not isinstance(told.get("folder"), str):
        raise Damaged("it says something else")
    if told.get("sha256") != hashlib.sha256(body).hexdigest():
        raise Damaged("its bytes have changed")
    try:
        found = from_json(body)  # in half of json's time; it refuses names that are no text
    except ValueError:
        found = parsed(body)
    try:
        notes: dict[str, Note] = {below: ((size, modified, changed), digest)
                                  for below, (size, modified, changed, digest) in found.items()}
        whole = all(IS_DIGEST.fullmatch(digest) for _, digest in notes.values())
    except (AttributeError, TypeError, ValueError):
        whole = False
    if not whole:
        raise Damaged("it says something else")
    return told["folder"], notes, opened.found.st_mtime
