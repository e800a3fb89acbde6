"""What the feature store keeps: entries of frozen image features, known by everything that determines them."""
from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PIECE = 32  # pictures that go through the tower together: a feature's last digits depend on how many they are
MOST = 1024  # pictures of an entry
FORMAT = 1  # of the files and of how features are computed; another number makes others of all


@dataclass(frozen=True)
class Space:
    """What all features of one tower, precision and transform share.

    facts: plain data that reads back from JSON as it is: the tower's weights by their digest and how they are computed,
        precision, kind of device, transforms with their parameters, and the versions of what reads and computes.
    name: what the backbone is called, for lists: the same weights may have several names.
    """

    facts: Mapping[str, Any]
    name: str = ""

    @functools.cached_property
    def digest(self) -> str:
        return digest_of([FORMAT, self.facts])

    def __hash__(self) -> int:
        return hash(self.digest)


@dataclass(frozen=True)
class Entry:
    """Features of up to MOST pictures, which are encoded in pieces of `piece` pictures in their order.

    space: what they share; pictures: SHA-256 of the files; views: how many augmented pictures are made of each.
    draw: (seed, epoch, place of the first picture in the epoch, or of each) where their transform draws; else ().
    piece: PIECE, or 1 for pictures that are in no canonical order.
    about: what they are, in words, for lists: no part of what they are known by.
    """

    space: Space
    pictures: tuple[str, ...]
    views: int = 1
    draw: tuple[Any, ...] = ()
    piece: int = PIECE
    about: str = ""

    @functools.cached_property
    def key(self) -> str:
        """64 hexadecimal digits."""
        return digest_of([self.space.digest, self.pictures, self.views, self.draw, self.piece])

    @property
    def kind(self) -> str:
        return "training views" if self.draw else "pictures"

    def rows(self, piece: int) -> slice:
        """The rows of the piece of a number."""
        return slice(piece * self.piece, min((piece + 1) * self.piece, len(self.pictures)))

    def __hash__(self) -> int:
        return hash(self.key)


def digest_of(plain: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
