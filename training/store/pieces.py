"""Which pictures are encoded together: canonical pieces, which follow from the data alone.

A feature's last digits depend on the batch in which the tower computes it. So features are not computed in the batches
of the method that asks, but in pieces that are the same for every batch size, number of workers and of ranks, sampler
with a repaired order, and point at which a run goes on.
"""
from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from training.store.entries import MOST, PIECE, Entry, Space

Key = tuple[int, int, int]  # (index of the picture in the loader's list, epoch, place in the order of the epoch)
Digests = Callable[[Sequence[str]], list[str]]  # paths of pictures -> SHA-256 of each


@dataclass
class Part:
    """An entry, what a pass over a loader wants of it, and what there is.

    keys: of its rows; wanted: numbers of its pieces; pieces: {number: features (rows, views, E)}.
    """

    entry: Entry
    keys: Sequence[Key]
    wanted: set[int] = field(default_factory=set)
    pieces: dict[int, Tensor] = field(default_factory=dict)

    def keys_of(self, piece: int) -> list[Key]:
        return list(self.keys[self.entry.rows(piece)])

    @property
    def missing(self) -> list[int]:
        """The pieces that are wanted and not there."""
        return sorted(self.wanted - self.pieces.keys())

    def pictures(self, pieces: Iterable[int]) -> int:
        """How many pictures some pieces have."""
        return sum(len(self.keys_of(piece)) for piece in pieces)


class Plan:
    """The entries of a pass over a loader.

    Args:
        parts: all that it may want.
        by: key -> what of it tells the features apart.
        keys: those of the pass.
    Attributes:
        parts: those that are wanted.
    """

    def __init__(self, parts: Iterable[Part], by: Callable[[Key], Hashable], keys: Iterable[Key]) -> None:
        self.by, asked = by, {by(key) for key in keys}
        for part in (parts := list(parts)):
            part.wanted = {row // part.entry.piece for row, key in enumerate(part.keys) if by(key) in asked}
        self.parts = [part for part in parts if part.wanted]

    def table(self) -> Table:
        """All features that are wanted, once they are there."""
        pieces = [(part, piece) for part in self.parts for piece in sorted(part.wanted)]
        keys = [key for part, piece in pieces for key in part.keys_of(piece)]
        return Table(torch.cat([part.pieces[piece] for part, piece in pieces]),
                     {self.by(key): row for row, key in enumerate(keys)}, self.by)


class Table:
    """Features (N, views, E), and the row of each key."""

    def __init__(self, features: Tensor, rows: dict[Hashable, int], by: Callable[[Key], Hashable]) -> None:
        self.features, self.rows, self.by = features, rows, by

    def __contains__(self, key: Key) -> bool:
        return self.by(key) in self.rows

    def of(self, keys: Iterable[Key]) -> Tensor:
        """The features (keys, views, E) of some keys."""
        return self.features[[self.rows[self.by(key)] for key in keys]]


def plan_of_pictures(items: Sequence[Any], keys: Sequence[Key], space: Space, views: int, digests: Digests,
                     about: str) -> Plan:
    """The plan of pictures whose transform draws nothing. The pictures of a class (of a domain) are encoded together,
    in the order of the list: every list with the whole class shares them.

    Args:
        items: the loader's list of Datum; keys: those of the pass; about: the name of the data.
    """
    classes: dict[tuple[str, int], list[int]] = {}
    for index, item in enumerate(items):
        classes.setdefault((item.classname, item.domain), []).append(index)
    asked = {index for index, _, _ in keys}
    groups = [(name, indices[start:start + MOST]) for (name, _), indices in classes.items()
              if not asked.isdisjoint(indices) for start in range(0, len(indices), MOST)]
    of_file = _digests_of(items, (index for _, indices in groups for index in indices), digests)
    parts = [Part(Entry(space, tuple(of_file[index] for index in indices), views, about=f"{about}, {name}"),
                  [(index, 0, 0) for index in indices]) for name, indices in groups]
    return Plan(parts, lambda key: key[0], keys)


def plan_of_views(items: Sequence[Any], sampler: Any, keys: Sequence[Key], seed: int, space: Space, views: int,
                  digests: Digests, about: str) -> Plan:
    """The plan of augmented pictures, whose draws are a function of (seed, epoch, place in the epoch). They are encoded
    together in the canonical order of the epoch; a picture that a sampler has put in another one's place is encoded by
    itself.

    Args:
        items: the loader's list of Datum; sampler: an EpochSampler, at the epoch; keys: those of the pass.
    """
    epoch, order, canonical = sampler.epoch, list(sampler), sampler.canonical()
    of_file = _digests_of(items, {*order, *canonical}, digests)
    about = f"{about}, seed {seed}, epoch {epoch + 1}"
    groups: list[tuple[int, Any, list[Key]]] = [
        (PIECE, start, [(index, epoch, start + row) for row, index in enumerate(canonical[start:start + MOST])])
        for start in range(0, len(canonical), MOST)]
    moved = [(index, epoch, place) for place, index in enumerate(order)
             if place >= len(canonical) or canonical[place] != index]
    groups += [(1, [place for _, _, place in part], part)
               for part in (moved[start:start + MOST] for start in range(0, len(moved), MOST))]
    parts = [Part(Entry(space, tuple(of_file[index] for index, _, _ in rows), views, (seed, epoch, at), piece, about),
                  rows) for piece, at, rows in groups]
    return Plan(parts, lambda key: key, keys)


def _digests_of(items: Sequence[Any], indices: Iterable[int], digests: Digests) -> dict[int, str]:
    """{index: digest of the file} of some items."""
    known = list(dict.fromkeys(indices))
    return dict(zip(known, digests([items[index].impath for index in known])))


def chunks(parts: Sequence[Part], most: int) -> Iterator[list[Part]]:
    """Parts in their order, so many at a time that they want `most` pieces, or one part."""
    chunk: list[Part] = []
    for part in parts:
        if chunk and sum(len(other.wanted) for other in chunk) + len(part.wanted) > most:
            yield chunk
            chunk = []
        chunk.append(part)
    if chunk:
        yield chunk
