"""How figures look: PNG and SVG, sized for a column of a two-column paper, one look per method."""
from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.container import ErrorbarContainer  # noqa: E402

from dassl.utils import printable, write_atomically  # noqa: E402
from protocols.parts.cells import COMPARED, Cells, Look  # noqa: E402
from protocols.parts.marks import signs  # noqa: E402
from protocols.parts.numbers import Number  # noqa: E402
from protocols.parts.place import Place  # noqa: E402

WIDTH = 3.3  # inches, a column
STYLE: Any = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "legend.frameon": False, "lines.linewidth": 1.2, "lines.markersize": 5, "axes.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "errorbar.capsize": 2, "svg.fonttype": "none", "svg.hashsalt": "", "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a $ in a name is one
}
# Okabe and Ito's colours, told apart by colour-blind readers; with a marker per method also in grey
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MARKERS = "osD^vP*Xhp"
HATCHES = ("", "////", "....", "xxxx")  # of bars, and
LINES = ("-", "--", ":", "-.")  # of lines, where there are more methods than colours
MARKED = {"*": "* trained on some of its test images", "!": "! evaluated under other settings than trained"}
NAME_WIDTH = 46  # characters of a line in a legend of the figure's width
TITLE_WIDTH = 52
INSIDE = 18  # characters of a name that a legend inside the axes has room for


def looks(methods: Iterable[str]) -> Look:
    """{method: {"color", "marker", "hatch", "line"}}: first the methods that are compared by default, there or not,
    then the others in the order of their names."""
    ordered = [*COMPARED, *sorted(set(methods) - set(COMPARED))]
    return {method: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)],
                     "hatch": HATCHES[i // len(COLOURS) % len(HATCHES)], "line": LINES[i // len(COLOURS) % len(LINES)]}
            for i, method in enumerate(ordered)}


def method_names(places: Iterable[Place]) -> list[str]:
    """The names of the methods of all protocols that are among some Places."""
    cells = Cells((place, {}) for place in places)
    return list(dict.fromkeys(name for protocol in cells.values("protocol")
                              for name, _ in cells.where(protocol=protocol).methods()))


def labelled(method: str, numbers: Iterable[Number]) -> str:
    """A method's name with the signs of its Numbers (protocols/parts/marks.py)."""
    return shown(method) + signs(frozenset().union(*(number.marks for number in numbers)))


def shown(name: str) -> str:
    """A name as it is drawn; of a label that begins with _ matplotlib would make no line in a legend."""
    return f" {printable(name)}" if name.startswith("_") else printable(name)


def explained(axes: Any, title: str, numbers: Iterable[Number]) -> None:
    """Set a title, and below it what the signs of the Numbers mean."""
    present = signs(frozenset().union(*(number.marks for number in numbers)))
    axes.set_title("\n".join([*textwrap.wrap(printable(title), TITLE_WIDTH), *(MARKED[sign] for sign in present)]))


def save(figure: Any, path: str) -> list[str]:
    """Write `path`.png and `path`.svg; returns their names."""
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)  # once; each file would do it twice over
        layout.execute(figure)  # and the ticks of axes that it has made smaller may be others
        figure.set_layout_engine("none")
    write_atomically(f"{path}.png", lambda file: figure.savefig(file, format="png", dpi=300))
    write_atomically(f"{path}.svg", lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))
    plt.close(figure)
    return [f"{path}.png", f"{path}.svg"]


def draw(make: Callable[[], Any], path: str) -> list[str]:
    """Call `make()` -> figure in this module's style and save the figure; [] where it has nothing to show."""
    with plt.rc_context(STYLE):
        figure = make()
        return save(figure, path) if figure is not None else []


def legend(axes: Any) -> None:
    """Inside for a few short names, else below the figure; a marker without its error bars."""
    handles, labels = axes.get_legend_handles_labels()
    handles = [handle[0] if isinstance(handle, ErrorbarContainer) else handle for handle in handles]
    if len(labels) > 6 or max(map(len, labels), default=0) > INSIDE:
        legend_below(axes.figure, handles, labels)
    elif labels:
        axes.legend(handles, labels, loc="best", handletextpad=0.3, borderpad=0.2)


def legend_below(figure: Any, handles: Any, labels: list[str], **spacing: Any) -> Any:
    """A legend below the axes in as many columns as fit the figure's width, names too long for one column in several
    lines. The figure grows by the legend's height, so that the axes keep theirs."""
    spacing = {"columnspacing": 0.9, "handletextpad": 0.4, "handlelength": 1.4} | spacing
    labels = ["\n".join(textwrap.wrap(label, NAME_WIDTH)) or label for label in labels]
    for columns in range(min(4, len(labels)), 0, -1):
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, **spacing)
        extent = legend.get_window_extent(figure.canvas.get_renderer())
        if columns == 1 or extent.width <= 0.99 * figure.bbox.width:
            break
        legend.remove()
    figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() + extent.height / figure.dpi)
    return legend
