"""Numbers of tables: a mean and its deviation over seeds, with the marks of the runs that it is made of."""
from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from protocols.parts.marks import Mark, signs

NO_MARKS: frozenset[Mark] = frozenset()


@dataclass(frozen=True)
class Number:
    """A mean and its standard deviation over seeds (n - 1).

    Attributes:
        mean: None: there is no such number, and "-" stands in its place.
        std: None for one seed, or where it is not known.
        marks: what is to be said of the runs it is made of (protocols/parts/marks.py).
    """

    mean: float | None = None
    std: float | None = None
    marks: frozenset[Mark] = NO_MARKS

    @property
    def value(self) -> float:
        """The mean of a number that exists."""
        assert self.mean is not None
        return self.mean

    @classmethod
    def stated(cls, value: Any) -> Number:
        """A number that is only quoted; None where it was not stated."""
        return cls() if value is None else cls(float(value))

    @classmethod
    def over(cls, values: Iterable[float | None]) -> Number:
        """The Number of one value per seed; none where a value is missing."""
        listed = list(values)
        known = [value for value in listed if value is not None]
        if not listed or len(known) < len(listed):
            return cls()
        return cls(statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None)

    def text(self, digits: int = 2, sign: str = "+-", marks: Mapping[str, str] | None = None) -> str:
        """The number as it is printed. marks: {sign of a mark: how it is written}, where that is not as it is."""
        if self.mean is None:
            return "-"
        spread = f" {sign} {self.std:.{digits}f}" if self.std is not None else ""
        beside = "".join((marks or {}).get(sign, sign) for sign in signs(self.marks))
        return f"{self.mean:.{digits}f}{spread}{beside}"

    def plain(self) -> str:
        """The mean as a program reads it."""
        return "" if self.mean is None else f"{self.mean:.4f}"


class Column(dict[int, "float | None"]):
    """{seed: accuracy in percent} of one method on one test set. None: there is no such number.

    Attributes:
        marks: {seed: the marks of its run}.
    """

    def __init__(self, values: Any = (), marks: Mapping[int, frozenset[Mark]] | None = None) -> None:
        super().__init__(values)
        self.marks = dict(marks or {})

    def at(self, seed: int) -> Column:
        """The column of one seed; empty where it is not there."""
        return Column({seed: self[seed]} if seed in self else (), {seed: self.marks.get(seed, NO_MARKS)})


def average(columns: Iterable[Mapping[int, float | None]]) -> Number:
    """The Number of an average over columns, each {seed: value}: first over the columns, per seed; then over the seeds.

    It does not exist where a column is empty or lacks a value. Where the columns have different seeds, the means are
    averaged and no deviation is given."""
    listed = list(columns)
    marks = frozenset(mark for column in listed for found in getattr(column, "marks", {}).values() for mark in found)
    if not listed or any(not column or None in column.values() for column in listed):
        return Number(marks=marks)
    known = [{seed: value for seed, value in column.items() if value is not None} for column in listed]
    if len({frozenset(column) for column in known}) > 1:
        return Number(statistics.mean(statistics.mean(column.values()) for column in known), marks=marks)
    over_seeds = Number.over(statistics.mean(column[seed] for column in known) for seed in known[0])
    return replace(over_seeds, marks=marks)


def difference(first: Column | Iterable[Column], second: Column | Iterable[Column]) -> Number:
    """The Number of first minus second, paired: a difference per seed, then mean and deviation over the seeds.

    It does not exist where a value is missing or the seeds are not the same. It has the marks of both.

    Args:
        first, second: a Column each, or several, which are averaged per seed first."""
    sides = [[side] if isinstance(side, Mapping) else list(side) for side in (first, second)]
    marks = average(sides[0]).marks | average(sides[1]).marks
    columns = [*sides[0], *sides[1]]
    if not all(sides) or any(set(column) != set(columns[0]) for column in columns):
        return Number(marks=marks)
    if any(value is None for column in columns for value in column.values()):
        return Number(marks=marks)
    means = [{seed: average({seed: column[seed]} for column in side).value for seed in columns[0]} for side in sides]
    return replace(Number.over(means[0][seed] - means[1][seed] for seed in columns[0]), marks=marks)


def harmonic(base: float | None, new: float | None) -> float | None:
    """H = 2 / (1 / base + 1 / new), 0 when either is; None when either does not exist."""
    if base is None or new is None:
        return None
    return 2 * base * new / (base + new) if base + new else 0.0
