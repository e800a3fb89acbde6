"""Figures of base and new classes: base against new accuracy, H over datasets."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from dassl.utils import printable
from protocols.parts.base_new import base_new_h, columns_of
from protocols.parts.cells import Cells, Look
from protocols.parts.numbers import Column, Number, average
from protocols.parts.style import WIDTH, explained, labelled, legend, looks, spread


def _base_and_new(cells: Cells) -> tuple[list[Column], list[Column]]:
    """(base, new), a Column per dataset each, in the order of the cells' datasets."""
    columns = [columns_of(cells.where(dataset=name)) for name in cells.values("dataset")]
    return [base for base, _ in columns], [new for _, new in columns]


def base_against_new(cells: Cells, title: str = "", look: Look | None = None) -> Figure | None:
    """A point per method, base against new accuracy, with bars of one standard deviation over seeds and lines of equal
    H.

    Args:
        cells: base2new Cells; of several datasets, the averages are shown. Methods without a new accuracy are left out.
        look: from `looks`; default of these methods alone.
    Returns:
        a figure, None where no method has both accuracies.
    """
    points = {method: (average(bases), average(news)) for method, chosen in cells.methods()
              for bases, news in [_base_and_new(chosen)]}
    points = {method: point for method, point in points.items() if None not in (point[0].mean, point[1].mean)}
    if not points:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 0.86 * WIDTH))
    look = look or looks(points)
    for method, (base, new) in points.items():
        axes.errorbar(base.value, new.value, xerr=spread(base), yerr=spread(new), fmt=look[method]["marker"],
                      color=look[method]["color"], elinewidth=0.8, label=labelled(method, (base, new)), zorder=3)
    axes.set_xlim(_room([point[0] for point in points.values()]))
    axes.set_ylim(_room([point[1] for point in points.values()]))
    x, y = np.meshgrid(np.linspace(*axes.get_xlim(), 200), np.linspace(*axes.get_ylim(), 200))
    h = 2 * x * y / np.maximum(x + y, 1e-9)
    lines = axes.contour(x, y, h, levels=5, colors="0.8", linewidths=0.6, zorder=0)
    axes.clabel(lines, fmt="H %g", fontsize=6, colors="0.45")
    axes.set(xlabel="accuracy on base classes (%)", ylabel="accuracy on new classes (%)")
    explained(axes, title, [number for point in points.values() for number in point])
    legend(axes)
    return figure


def _room(numbers: Sequence[Number]) -> tuple[float, float]:
    """Limits around points and their bars, within 0 to 100 with a little room for a marker."""
    low = min(number.value - (spread(number) or 0) for number in numbers)
    high = max(number.value + (spread(number) or 0) for number in numbers)
    room = max(2.0, 0.15 * (high - low))
    return max(0.0, low - room), min(102.0, high + room)


def radar(cells: Cells, look: Look | None = None) -> Figure | None:
    """H over datasets, a ring per method. A figure, None for fewer than three datasets."""
    names = cells.values("dataset")
    if len(names) < 3:
        return None
    values = {}
    for method, chosen in cells.methods():
        rows = [base_new_h(*([column] for column in columns_of(chosen.where(dataset=name))))
                for name in names]
        if None not in [h.mean for *_, h in rows]:
            values[method] = [h for *_, h in rows]
    if not values:
        return None
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    axes: Any  # polar ones
    figure, axes = plt.subplots(figsize=(WIDTH, 0.95 * WIDTH), subplot_kw={"projection": "polar"})
    look = look or looks(values)
    for method, row in values.items():
        ring = [number.value for number in row]
        axes.plot([*angles, angles[0]], [*ring, ring[0]], linestyle=look[method]["line"], markersize=3,
                  color=look[method]["color"], marker=look[method]["marker"], label=labelled(method, row))
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_xticks(angles, [printable(name).replace("_", "\n") for name in names])
    for angle, label in zip(angles, axes.get_xticklabels()):
        side = np.sin(angle)
        label.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
    axes.tick_params(axis="x", pad=0)
    shown = [number.value for row in values.values() for number in row]
    low, high = min(shown), max(shown)
    low, high = max(0, 10 * np.floor((low - 5) / 10)), min(100, 10 * np.ceil((high + 1) / 10))
    step = 10 if high - low <= 40 else 20
    axes.set_ylim(low, high)
    axes.set_yticks(np.arange(low + step, high + 1, step))
    axes.set_rlabel_position(180 / len(names))
    axes.tick_params(axis="y", labelsize=6, colors="0.4")
    axes.grid(color="0.85", linewidth=0.5)
    axes.spines["polar"].set_color("0.85")
    explained(axes, "H of base and new accuracy (%)", [number for row in values.values() for number in row])
    legend(axes)
    return figure
