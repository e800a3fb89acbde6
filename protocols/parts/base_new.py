"""Accuracies on base and new classes."""
from __future__ import annotations

from collections.abc import Iterable

from protocols.parts.cells import Cells
from protocols.parts.numbers import Column, Number, average, harmonic

BASE, NEW = "train_base", "test_new"  # parts of Places


def columns_of(cells: Cells) -> tuple[Column, Column]:
    """(base, new), the Columns of one method's cells on one dataset."""
    return cells.where(part=BASE).by_seed(), cells.where(part=NEW).by_seed()


def base_new_h(bases: Iterable[Column], news: Iterable[Column]) -> tuple[Number, Number, Number]:
    """(base, new, H) averaged over datasets; H is the H of the averaged base and new, as the papers have it.

    bases, news: a Column per dataset."""
    base, new = average(bases), average(news)
    return base, new, Number(harmonic(base.mean, new.mean), marks=base.marks | new.marks)
