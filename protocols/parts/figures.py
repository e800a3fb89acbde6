"""Figures that protocols share: bars per part, curves over shots."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dassl.utils import printable
from protocols.parts.cells import Cells, Look
from protocols.parts.numbers import Number, average
from protocols.parts.style import WIDE, WIDTH, explained, labelled, legend, legend_below, looks, rows_of, spread
from protocols.parts.tables import Groups

MOST_BARS = 28  # in a row of a column's width, so that each is told apart
MOST_ROWS = 6  # in a figure of a column's width


def bars(cells: Cells, title: str, groups: Groups | None = None, averages: Groups | None = None,
         look: Look | None = None) -> Figure | None:
    """A group of bars per part (a target domain, a tested dataset), a bar per method, with standard deviations; many
    bars stand in several rows, in a figure of two columns' width where these would be too many. Methods without any
    number are left out.

    Args:
        groups: {name: parts that are averaged}; default each part by itself.
        averages: the same, behind a line; default one over all parts, where there are several.
        look: from `looks`; default of these methods alone.
    Returns:
        a figure, None where no method has a number.
    """
    parts = cells.values("part")
    groups = {part: [part] for part in parts} if groups is None else groups
    averages = averages or ({"average": parts} if len(groups) > 1 else {})
    names = [*groups, *averages]
    numbers = {method: dict(zip(names, (average(chosen.where(part=part).by_seed() for part in group)
                                        for group in (*groups.values(), *averages.values()))))
               for method, chosen in cells.methods()}
    numbers = {method: row for method, row in numbers.items() if any(n.mean is not None for n in row.values())}
    if not numbers:
        return None
    look = look or looks(numbers)
    width, rows = WIDTH, rows_of(names, MOST_BARS // len(numbers))
    if len(rows) > MOST_ROWS:
        width, rows = WIDE, rows_of(names, int(MOST_BARS * WIDE / WIDTH) // len(numbers))
    slanted = any(sum(map(len, row)) >= 42 * width / WIDTH for row in rows)
    height = 0.72 * WIDTH if len(rows) == 1 else (0.58 if slanted else 0.4) * WIDTH * len(rows)
    figure, panels = plt.subplots(len(rows), 1, figsize=(width, height), sharey=True, squeeze=False)
    for axes, row in zip(panels[:, 0], rows):
        _bars(axes, row, numbers, look)
        axes.set_xticks(range(len(row)), [printable(name).replace("_", " ") for name in row],
                        rotation=35 if slanted else 0, ha="right" if slanted else "center", rotation_mode="anchor")
        if averages and {names[len(groups) - 1], names[len(groups)]} <= set(row):
            axes.axvline(row.index(names[len(groups)]) - 0.5, color="0.8", linewidth=0.6)
        axes.set(ylabel="accuracy (%)", xlim=(-0.5, len(rows[0]) - 0.5))
        axes.set_ylim(0, None)
    explained(panels[0, 0], title, [number for row in numbers.values() for number in row.values()])
    legend_below(figure, [Patch(**_filled(look[method])) for method in numbers],
                 [labelled(method, row.values()) for method, row in numbers.items()], handlelength=1.0)
    return figure


def _bars(axes: Any, names: Sequence[str], numbers: Mapping[str, Mapping[str, Number]], look: Look) -> None:
    """One row of groups, each with the bars of all methods. numbers: {method: {name of a group: Number}}."""
    width = 0.82 / len(numbers)
    for i, (method, row) in enumerate(numbers.items()):
        places = {name: group + (i - (len(numbers) - 1) / 2) * width for group, name in enumerate(names)}
        found = [(places[name], row[name]) for name in names if row[name].mean is not None]
        axes.bar([x for x, _ in found], [number.value for _, number in found], width, **_filled(look[method]))
        varied = [(x, number.value, std) for x, number in found if (std := spread(number)) is not None]
        if varied:
            x, height, deviation = zip(*varied)
            axes.errorbar(x, height, yerr=deviation, fmt="none", ecolor="0.25", elinewidth=0.7, capsize=1.5)


def _filled(look: Mapping[str, Any]) -> dict[str, Any]:
    """What a method's bars and their patch in a legend are drawn with."""
    return {"facecolor": look["color"], "hatch": look["hatch"], "edgecolor": "white", "linewidth": 0}


def curves(cells: Cells, title: str, look: Look | None = None) -> Figure | None:
    """Accuracy by shots, a line per method, with a band of one standard deviation over seeds; several datasets are
    averaged. Lines of methods that learn nothing from the shots are dashed. A figure, None for a single number of shots
    or where no method has a number."""
    shots, names = sorted(cells.values("shots")), cells.values("dataset")
    rows = {method: [(number, average(chosen.where(dataset=name, shots=number).by_seed() for name in names))
                     for number in shots] for method, chosen in cells.methods()}
    rows = {method: [(x, number) for x, number in row if number.mean is not None] for method, row in rows.items()}
    rows = {method: row for method, row in rows.items() if row}
    if len(shots) < 2 or not rows:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 0.8 * WIDTH))
    look = look or looks(rows)
    for method, row in rows.items():
        x, mean = [x for x, _ in row], np.array([number.value for _, number in row])
        flat = len(set(mean.round(6))) == 1 and len(mean) > 1
        axes.plot(x, mean, linestyle="--" if flat else "-", color=look[method]["color"],
                  label=labelled(method, [number for _, number in row]), marker=look[method]["marker"])
        std = np.array([spread(number) or 0 for _, number in row])
        if std.any():
            axes.fill_between(x, mean - std, mean + std, color=look[method]["color"], alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(shots, map(str, shots))
    axes.minorticks_off()
    axes.set(xlabel="shots per class", ylabel="accuracy (%)")
    explained(axes, title, [number for row in rows.values() for _, number in row])
    legend(axes)
    return figure
