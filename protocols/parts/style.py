"""How figures look: PNG and SVG, sized for a column of a two-column paper, one look per method."""
from __future__ import annotations

import math
import textwrap
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.container import ErrorbarContainer  # noqa: E402

import trainers  # noqa: E402
from dassl.engine import TRAINER_REGISTRY  # noqa: E402
from dassl.utils import import_package_modules, printable, write_atomically  # noqa: E402
from protocols.parts.cells import COMPARED, Cells, Look  # noqa: E402
from protocols.parts.marks import signs  # noqa: E402
from protocols.parts.numbers import Number  # noqa: E402
from protocols.parts.place import Place  # noqa: E402

WIDTH = 3.3  # inches, a column
WIDE = 6.9  # two columns and the space between them
STYLE: Any = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "legend.frameon": False, "lines.linewidth": 1.2, "lines.markersize": 5, "axes.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "errorbar.capsize": 2, "svg.fonttype": "none", "svg.hashsalt": "", "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a $ in a name is one
}
# Okabe and Ito's colours, told apart by colour-blind readers; a marker, hatch or kind of line says the same in grey,
# and tells methods of one colour apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MARKERS = "osD^vP*Xhp"
HATCHES = ("", "////", "....", "xxxx", "----", "OO", "||||", "++++")  # of bars
LINES: Sequence[Any] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (7, 3)), (0, (1, 3)), (0, (7, 2, 1, 2)))
MARKED = {"*": "* trained on some of its test images", "!": "! evaluated under other settings than trained"}
NAME_WIDTH = 46  # characters of a line in a legend of the figure's width
TITLE_WIDTH = 52


def own_methods() -> list[str]:
    """The methods of this project: those that are compared by default, then the others by name."""
    import_package_modules(trainers)
    classes = {**dict(TRAINER_REGISTRY.items()), **TRAINER_REGISTRY.replaced}  # a plugin may stand in for one
    own = {name for name, method in classes.items() if method.__module__.startswith(f"{trainers.__name__}.")}
    return [*COMPARED, *sorted(own - set(COMPARED))]


def looks(methods: Iterable[str]) -> Look:
    """{method: {"color", "marker", "hatch", "line"}} of this project's methods, which have theirs whatever is drawn,
    and of others, such as a plugin's or variants.

    The look of another method follows from its name. It is none of this project's, and where two would have the same
    one, the later by name has the next.
    """
    own = own_methods()
    kinds = {method: i for i, method in enumerate(own)}
    for method in sorted(set(methods) - set(own)):
        kinds[method] = _kind_of(method, kinds.values())
    return {method: _look(kind) for method, kind in kinds.items()}


def _look(kind: int) -> dict[str, Any]:
    """The look of a number; those of 64 numbers in a row differ in colour and marker, colour and hatch, and colour and
    line."""
    colour, turn = kind % len(COLOURS), kind // len(COLOURS)
    return {"color": COLOURS[colour], "marker": MARKERS[(colour + 3 * turn) % len(MARKERS)],
            "hatch": HATCHES[turn % len(HATCHES)], "line": LINES[turn % len(LINES)]}


def _kind_of(method: str, taken: Collection[int]) -> int:
    """The number of a method's look, by its name: preferably in a colour that no method compared by default has."""
    half, start = len(COLOURS) // 2, zlib.crc32(method.encode(errors="backslashreplace"))
    colours = [first + (start + i) % half for first in (half, 0) for i in range(half)]
    wanted = [len(COLOURS) * turn + colour for turn in range(len(HATCHES)) for colour in colours]
    return next((kind for kind in wanted if kind not in taken), wanted[start % len(wanted)])


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


def spread(number: Number) -> float | None:
    """The standard deviation that is drawn: None of one seed, and where it is printed as 0.00. A bar of no length would
    show its caps alone."""
    return number.std if number.std is not None and round(number.std, 2) > 0 else None


def rows_of(items: Sequence[Any], most: int) -> list[Sequence[Any]]:
    """Items in their order in rows of about equal length, of at most `most` each."""
    rows = math.ceil(len(items) / max(1, most))
    length = math.ceil(len(items) / rows)
    return [items[start:start + length] for start in range(0, len(items), length)]


def explained(axes: Any, title: str, numbers: Iterable[Number]) -> None:
    """Set a title, of one line or several, and below it what the signs of the Numbers mean."""
    present = signs(frozenset().union(*(number.marks for number in numbers)))
    lines = [part for line in title.split("\n") for part in textwrap.wrap(printable(line), TITLE_WIDTH)]
    axes.set_title("\n".join([*lines, *(MARKED[sign] for sign in present)]))


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


def legend(axes: Any, **spacing: Any) -> Any:
    """The methods below the figure, where no point can lie under them; a marker without its error bars."""
    handles, labels = axes.get_legend_handles_labels()
    handles = [handle[0] if isinstance(handle, ErrorbarContainer) else handle for handle in handles]
    return legend_below(axes.figure, handles, labels, **spacing)


def legend_below(figure: Any, handles: Any, labels: list[str], **spacing: Any) -> Any:
    """A legend below the axes in as many columns as fit the figure's width, names too long for one column in several
    lines. The figure grows by the legend's height, so that the axes keep theirs."""
    spacing = {"columnspacing": 0.9, "handletextpad": 0.4, "handlelength": 1.4} | spacing
    labels = ["\n".join(textwrap.wrap(label, NAME_WIDTH)) or label for label in labels]
    for columns in range(min(int(4 * figure.get_figwidth() / WIDTH), len(labels)), 0, -1):
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, **spacing)
        extent = legend.get_window_extent(figure.canvas.get_renderer())
        if columns == 1 or extent.width <= 0.99 * figure.bbox.width:
            break
        legend.remove()
    figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() + extent.height / figure.dpi)
    return legend
