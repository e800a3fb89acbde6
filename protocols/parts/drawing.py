"""Figures that are still to be drawn: matplotlib is loaded when one is, not by every program that knows a protocol."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocols.parts.cells import Cells, Look
from protocols.parts.tables import Groups

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure of metaprompt plot.

    Attributes:
        kind: what --only calls it.
        name: of the file, without its ending.
        draw: look -> a matplotlib figure, or None where there is nothing to show.
    """

    kind: str
    name: str
    draw: Callable[[Look], Figure | None]


def bar_chart(kind: str, name: str, cells: Cells, title: str, groups: Groups | None = None,
              averages: Groups | None = None) -> Drawing:
    """Bars, a group per part of the cells (`protocols.parts.figures.bars`)."""
    def draw(look: Look) -> Figure | None:
        from protocols.parts.figures import bars

        return bars(cells, title, groups, averages, look)

    return Drawing(kind, name, draw)


def shot_curves(kind: str, name: str, cells: Cells, title: str) -> Drawing:
    """Accuracy by shots, a line per method (`protocols.parts.figures.curves`)."""
    def draw(look: Look) -> Figure | None:
        from protocols.parts.figures import curves

        return curves(cells, title, look)

    return Drawing(kind, name, draw)


def plane(kind: str, name: str, cells: Cells, title: str) -> Drawing:
    """Base against new accuracy, a point per method (`protocols.parts.base_new_figures.base_against_new`)."""
    def draw(look: Look) -> Figure | None:
        from protocols.parts.base_new_figures import base_against_new

        return base_against_new(cells, title, look)

    return Drawing(kind, name, draw)


def radar_chart(kind: str, name: str, cells: Cells) -> Drawing:
    """H over datasets, a ring per method (`protocols.parts.base_new_figures.radar`)."""
    def draw(look: Look) -> Figure | None:
        from protocols.parts.base_new_figures import radar

        return radar(cells, look)

    return Drawing(kind, name, draw)
