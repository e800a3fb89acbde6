"""Figures of results. `base_against_new` is drawn by `tools/protocol.py compare`."""
import os
import statistics

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

MARKERS = "osD^vP*Xhp"


def base_against_new(results, path, title=""):
    """A point a method, base against new accuracy, with bars of one standard deviation over seeds and lines of equal H.

    Args:
        results: {method: [(seed, base, new, seconds)]} in percent; methods without a new accuracy are left out.
        path: the figure's file name without its ending; .png and .svg are written.
    Returns:
        the names of the files.
    """
    points = {}
    for method, rows in results.items():
        if all(row[2] is not None for row in rows):
            base, new = [row[1] for row in rows], [row[2] for row in rows]
            spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in (base, new)]
            points[method] = (statistics.mean(base), statistics.mean(new), *spread)
    figure, axes = plt.subplots(figsize=(4.6, 3.8), layout="constrained")
    for (method, (x, y, dx, dy)), marker in zip(points.items(), MARKERS * len(points)):
        axes.errorbar(x, y, xerr=dx, yerr=dy, fmt=marker, markersize=7, capsize=3, label=method)
    _limits(axes, points)
    base, new = np.meshgrid(np.linspace(*axes.get_xlim(), 200), np.linspace(*axes.get_ylim(), 200))
    h = 2 * base * new / np.maximum(base + new, 1e-9)
    lines = axes.contour(base, new, h, levels=6, colors="0.75", linewidths=0.8, zorder=0)
    axes.clabel(lines, fmt="H %g", fontsize=7)
    axes.set_xlabel("accuracy on base classes (%)")
    axes.set_ylabel("accuracy on new classes (%)")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8, loc="best")
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    files = [f"{path}.png", f"{path}.svg"]
    for name in files:
        figure.savefig(name, dpi=200)
    plt.close(figure)
    return files


def _limits(axes, points):
    """Room around the points, within 0 to 100."""
    for values, spreads, set_limits in (([p[0] for p in points.values()], [p[2] for p in points.values()],
                                         axes.set_xlim),
                                        ([p[1] for p in points.values()], [p[3] for p in points.values()],
                                         axes.set_ylim)):
        if values:
            low = min(v - s for v, s in zip(values, spreads))
            high = max(v + s for v, s in zip(values, spreads))
            room = max(2.0, 0.15 * (high - low))
            set_limits(max(0.0, low - room), min(102.0, high + room))
