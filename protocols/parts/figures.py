"""Figures that protocols share: bars per part, curves over shots."""
from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from dassl.utils import printable
from protocols.parts.cells import Cells, Look
from protocols.parts.numbers import average
from protocols.parts.style import WIDTH, explained, labelled, legend, legend_below, looks
from protocols.parts.tables import Groups


def bars(cells: Cells, title: str, groups: Groups | None = None, averages: Groups | None = None,
         look: Look | None = None) -> Figure:
    """A group of bars per part (a target domain, a tested dataset), a bar per method, with standard deviations.

    Args:
        groups: {name: parts that are averaged}; default each part by itself.
        averages: the same, behind a line; default one over all parts.
        look: from `looks`; default of these methods alone.
    """
    parts = cells.values("part")
    groups = {part: [part] for part in parts} if groups is None else groups
    averages = averages or {"average": parts}
    methods = cells.methods()
    look = look or looks([method for method, _ in methods])
    numbers = {method: [average(chosen.where(part=part).by_seed() for part in group)
                        for group in (*groups.values(), *averages.values())] for method, chosen in methods}
    names = [*groups, *averages]
    width = 0.82 / len(methods)
    figure, axes = plt.subplots(figsize=(WIDTH, 0.72 * WIDTH))
    for i, (method, row) in enumerate(numbers.items()):
        places = [group + (i - (len(methods) - 1) / 2) * width for group in range(len(names))]
        shown = [(x, number) for x, number in zip(places, row) if number.mean is not None]
        axes.bar([x for x, _ in shown], [number.value for _, number in shown], width, color=look[method]["color"],
                 hatch=look[method]["hatch"], edgecolor="white", linewidth=0, label=labelled(method, row))
        spread = [(x, number) for x, number in shown if number.std]
        if spread:
            axes.errorbar([x for x, _ in spread], [number.value for _, number in spread],
                          yerr=[number.std or 0.0 for _, number in spread], fmt="none", ecolor="black", elinewidth=0.7,
                          capsize=1.5)
    short = sum(map(len, names)) < 42
    axes.set_xticks(range(len(names)), [printable(name).replace("_", " ") for name in names],
                    rotation=0 if short else 35, ha="center" if short else "right", rotation_mode="anchor")
    axes.axvline(len(groups) - 0.5, color="0.8", linewidth=0.6)
    axes.set(ylabel="accuracy (%)")
    explained(axes, title, [number for row in numbers.values() for number in row])
    axes.set_ylim(0, None)
    legend_below(figure, *axes.get_legend_handles_labels(), handlelength=1.0)
    return figure


def curves(cells: Cells, title: str, look: Look | None = None) -> Figure | None:
    """Accuracy by shots, a line per method, with a band of one standard deviation over seeds; several datasets are
    averaged. Zero-shot methods are one dashed line. A figure, None for a single number of shots."""
    shots, names = sorted(cells.values("shots")), cells.values("dataset")
    if len(shots) < 2:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 0.8 * WIDTH))
    look, all_shown = look or looks([method for method, _ in cells.methods()]), []
    for method, chosen in cells.methods():
        row = [(number, average(chosen.where(dataset=name, shots=number).by_seed() for name in names))
               for number in shots]
        row = [(x, number) for x, number in row if number.mean is not None]
        if not row:
            continue
        x, mean = [x for x, _ in row], np.array([number.value for _, number in row])
        std = np.array([number.std or 0 for _, number in row])
        all_shown += [number for _, number in row]
        flat = len(set(mean.round(6))) == 1 and len(mean) > 1  # nothing is learned from the shots
        axes.plot(x, mean, linestyle="--" if flat else "-", color=look[method]["color"],
                  label=labelled(method, [number for _, number in row]), marker="" if flat else look[method]["marker"])
        if std.any():
            axes.fill_between(x, mean - std, mean + std, color=look[method]["color"], alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(shots, map(str, shots))
    axes.minorticks_off()
    axes.set(xlabel="shots per class", ylabel="accuracy (%)")
    explained(axes, title, all_shown)
    legend(axes)
    return figure
