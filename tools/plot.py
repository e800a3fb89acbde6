"""Figures of finished runs: PNG and SVG, sized for a column of a two-column paper.

    python tools/plot.py output                 # every figure that the runs there allow, into output/figures
    python tools/plot.py output --only dg fewshot

base2new: base against new with lines of equal H, and a radar of H over datasets; dg: bars a domain; fewshot: curves
with bands of one standard deviation over seeds; training: loss, accuracy and learning rate by step. A method has the
same colour in all figures of an output folder.
"""
import os
import sys
import textwrap

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import matplotlib  # noqa: E402

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.container import ErrorbarContainer  # noqa: E402

import train  # noqa: E402
from dassl.utils import InputError, printable, require_own_folder, write_atomically  # noqa: E402
from tools.marks import signs  # noqa: E402
from tools.plans import Place  # noqa: E402
from tools.run_folders import find_runs, require_comparable  # noqa: E402
from tools.tables import COMPARED, Cells, average, base_new_h, xd_groups  # noqa: E402

WIDTH = 3.3  # inches, a column
STYLE = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "legend.frameon": False, "lines.linewidth": 1.2, "lines.markersize": 5, "axes.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "errorbar.capsize": 2, "svg.fonttype": "none", "svg.hashsalt": "", "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a $ in a name is one
}
# Okabe and Ito's colours, told apart by colour-blind readers; with a marker a method also in grey
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MARKERS = "osD^vP*Xhp"
HATCHES = ("", "////", "....", "xxxx")  # of bars, and
LINES = ("-", "--", ":", "-.")  # of lines, where there are more methods than colours
MARKED = {"*": "* trained on some of its test images", "!": "! evaluated under other settings than trained"}
NAME_WIDTH = 46  # characters of a line in a legend of the figure's width
TITLE_WIDTH = 52
INSIDE = 18  # characters of a name that a legend inside the axes has room for


def looks(methods):
    """{method: {"color", "marker", "hatch", "line"}}: first the methods that are compared by default, there or not,
    then the others in the order of their names."""
    ordered = [*COMPARED, *sorted(set(methods) - set(COMPARED))]
    return {method: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)],
                     "hatch": HATCHES[i // len(COLOURS) % len(HATCHES)], "line": LINES[i // len(COLOURS) % len(LINES)]}
            for i, method in enumerate(ordered)}


def method_names(places):
    """The names of the methods of all protocols that are among some Places."""
    cells = Cells(dict.fromkeys(places))
    return list(dict.fromkeys(name for protocol in cells.values("protocol")
                              for name, _ in cells.where(protocol=protocol).methods()))


def places_below(folder):
    """The Places of all finished runs below a folder; their results are not read."""
    return [place for path, _, files in os.walk(folder) if "results.json" in files
            for place in [Place.parse(path)] if place]


def labelled(method, numbers):
    """A method's name with the signs of its Numbers (tools/marks.py)."""
    return shown(method) + signs(frozenset().union(*(number.marks for number in numbers)))


def shown(name):
    """A name as it is drawn; of a label that begins with _ matplotlib would make no line in a legend."""
    return f" {printable(name)}" if name.startswith("_") else printable(name)


def explained(axes, title, numbers):
    """Set a title, and below it what the signs of the Numbers mean."""
    present = signs(frozenset().union(*(number.marks for number in numbers)))
    axes.set_title("\n".join([*textwrap.wrap(printable(title), TITLE_WIDTH), *(MARKED[sign] for sign in present)]))


def save(figure, path):
    """Write `path`.png and `path`.svg; returns their names."""
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)  # once; each file would do it twice over
        layout.execute(figure)  # and the ticks of axes that it has made smaller may be others
        figure.set_layout_engine("none")
    write_atomically(f"{path}.png", lambda file: figure.savefig(file, format="png", dpi=300))
    write_atomically(f"{path}.svg", lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))
    plt.close(figure)
    return [f"{path}.png", f"{path}.svg"]


def draw(make, path, *args, **kwargs):
    """Call `make(...)` -> figure in this module's style and save the figure; [] where it has nothing to show."""
    with plt.rc_context(STYLE):
        figure = make(*args, **kwargs)
        return save(figure, path) if figure is not None else []


# ---- base to new ----
def base_against_new(cells, path, title="", look=None):
    """A point a method, base against new accuracy, with bars of one standard deviation over seeds and lines of equal H.

    Args:
        cells: base2new Cells; of several datasets, the averages are shown. Methods without a new accuracy are left out.
        path: the figure's file name without its ending.
        look: from `looks`; default of these methods alone.
    Returns:
        the names of the files; none where no method has both accuracies.
    """
    return draw(_base_against_new, path, cells, title, look)


def _base_and_new(cells):
    """({dataset: {seed: base}}, {dataset: {seed: new}}), lists in the order of `cells`' datasets."""
    return [[cells.where(dataset=name, part=part).by_seed() for name in cells.values("dataset")]
            for part in ("train_base", "test_new")]


def _base_against_new(cells, title, look=None):
    points = {method: (average(bases), average(news)) for method, chosen in cells.methods()
              for bases, news in [_base_and_new(chosen)]}
    points = {method: point for method, point in points.items() if None not in (point[0].mean, point[1].mean)}
    if not points:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 0.86 * WIDTH))
    look = look or looks(points)
    for method, (base, new) in points.items():
        axes.errorbar(base.mean, new.mean, xerr=base.std or None, yerr=new.std or None, fmt=look[method]["marker"],
                      color=look[method]["color"], elinewidth=0.8, label=labelled(method, (base, new)), zorder=3)
    axes.set_xlim(_room([point[0] for point in points.values()]))
    axes.set_ylim(_room([point[1] for point in points.values()]))
    base, new = np.meshgrid(np.linspace(*axes.get_xlim(), 200), np.linspace(*axes.get_ylim(), 200))
    h = 2 * base * new / np.maximum(base + new, 1e-9)
    lines = axes.contour(base, new, h, levels=5, colors="0.8", linewidths=0.6, zorder=0)
    axes.clabel(lines, fmt="H %g", fontsize=6, colors="0.45")
    axes.set(xlabel="accuracy on base classes (%)", ylabel="accuracy on new classes (%)")
    explained(axes, title, [number for point in points.values() for number in point])
    _legend(axes)
    return figure


def _room(numbers):
    """Limits around points and their bars, within 0 to 100 with a little room for a marker."""
    low = min(number.mean - (number.std or 0) for number in numbers)
    high = max(number.mean + (number.std or 0) for number in numbers)
    room = max(2.0, 0.15 * (high - low))
    return max(0.0, low - room), min(102.0, high + room)


def _legend(axes):
    """Inside for a few short names, else below the figure; a marker without its error bars."""
    handles, labels = axes.get_legend_handles_labels()
    handles = [handle[0] if isinstance(handle, ErrorbarContainer) else handle for handle in handles]
    if len(labels) > 6 or max(map(len, labels), default=0) > INSIDE:
        legend_below(axes.figure, handles, labels)
    elif labels:
        axes.legend(handles, labels, loc="best", handletextpad=0.3, borderpad=0.2)


def legend_below(figure, handles, labels, **spacing):
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


def radar(cells, look=None):
    """H over datasets, a ring a method. A figure, None for fewer than three datasets."""
    names = cells.values("dataset")
    if len(names) < 3:
        return None
    values = {}
    for method, chosen in cells.methods():
        rows = [base_new_h(*([chosen.where(dataset=name, part=part).by_seed()] for part in ("train_base", "test_new")))
                for name in names]
        if None not in [h.mean for *_, h in rows]:
            values[method] = [h for *_, h in rows]
    if not values:
        return None
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    figure, axes = plt.subplots(figsize=(WIDTH, 1.1 * WIDTH), subplot_kw={"projection": "polar"})
    look = look or looks(values)
    for method, row in values.items():
        ring = [number.mean for number in row]
        axes.plot([*angles, angles[0]], [*ring, ring[0]], label=labelled(method, row), markersize=3,
                  color=look[method]["color"], marker=look[method]["marker"])
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_xticks(angles, [printable(name).replace("_", "\n") for name in names])
    for angle, label in zip(angles, axes.get_xticklabels()):
        side = np.sin(angle)
        label.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
    axes.tick_params(axis="x", pad=0)
    shown = [number.mean for row in values.values() for number in row]
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
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


# ---- leave one domain out, cross-dataset ----
def bars(cells, title, averages=None, look=None):
    """A group of bars a test set (a target domain, a tested dataset), a bar a method, with standard deviations.

    averages: {name: test sets} that follow; default one over all."""
    parts = cells.values("part")
    averages = averages or {"average": parts}
    methods = cells.methods()
    look = look or looks([method for method, _ in methods])
    numbers = {method: [average([chosen.where(part=part).by_seed()]) for part in parts]
               + [average(chosen.where(part=part).by_seed() for part in group) for group in averages.values()]
               for method, chosen in methods}
    groups = [*parts, *averages]
    width = 0.82 / len(methods)
    figure, axes = plt.subplots(figsize=(WIDTH, 0.72 * WIDTH))
    for i, (method, row) in enumerate(numbers.items()):
        places = [group + (i - (len(methods) - 1) / 2) * width for group in range(len(groups))]
        shown = [(x, number) for x, number in zip(places, row) if number.mean is not None]
        axes.bar([x for x, _ in shown], [number.mean for _, number in shown], width, color=look[method]["color"],
                 hatch=look[method]["hatch"], edgecolor="white", linewidth=0, label=labelled(method, row))
        spread = [(x, number) for x, number in shown if number.std]
        if spread:
            axes.errorbar([x for x, _ in spread], [number.mean for _, number in spread],
                          yerr=[number.std for _, number in spread], fmt="none", ecolor="black", elinewidth=0.7,
                          capsize=1.5)
    axes.set_xticks(range(len(groups)), [printable(group).replace("_", " ") for group in groups],
                    rotation=0 if sum(map(len, groups)) < 42 else 35, ha="center" if sum(map(len, groups)) < 42
                    else "right", rotation_mode="anchor")
    axes.axvline(len(parts) - 0.5, color="0.8", linewidth=0.6)
    axes.set(ylabel="accuracy (%)")
    explained(axes, title, [number for row in numbers.values() for number in row])
    axes.set_ylim(0, None)
    legend_below(figure, *axes.get_legend_handles_labels(), handlelength=1.0)
    return figure


# ---- few-shot curves ----
def curves(cells, title, look=None):
    """Accuracy by shots, a line a method, with a band of one standard deviation over seeds; several datasets are
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
        x, mean = [x for x, _ in row], np.array([number.mean for _, number in row])
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
    _legend(axes)
    return figure


# ---- training curves ----
def scalars(folder):
    """{tag: (steps, values)} of a run's TensorBoard event files; later files go on where earlier ones were cut."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(os.path.join(folder, "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        by_step = {event.step: event.value for event in events.Scalars(tag)}
        found[tag] = (np.array(sorted(by_step)), np.array([by_step[step] for step in sorted(by_step)]))
    return found


def training(cells, where, title, look=None):
    """Loss, accuracy on the batches and learning rate by step, a line a method, the seeds' mean, smoothed over a
    twentieth of the run. A figure, None when no run was trained."""
    wanted = {"train/loss": "loss", "train/acc": "batch accuracy (%)", "train/lr": "learning rate"}
    lines = {}
    for method, chosen in cells.methods():
        runs = [scalars(where[place]) for place in chosen if os.path.isdir(os.path.join(where[place], "tensorboard"))]
        runs = [run for run in runs if "train/loss" in run]
        if runs:
            lines[method] = runs
    if not lines:
        return None
    figure, axes = plt.subplots(len(wanted), 1, figsize=(WIDTH, 1.15 * WIDTH), sharex=True,
                                height_ratios=[2, 2, 1])
    look = look or looks([method for method, _ in cells.methods()])
    for method, runs in lines.items():
        for axis, tag in zip(axes, wanted):
            series = [run[tag] for run in runs if tag in run]
            if series:
                length = min(len(steps) for steps, _ in series)
                mean = np.mean([values[:length] for _, values in series], axis=0)
                window = 1 if tag == "train/lr" else max(1, length // 20)
                axis.plot(series[0][0][:length], _smooth(mean, window), look[method]["line"],
                          color=look[method]["color"], label=shown(method))
    for axis, label in zip(axes, wanted.values()):
        axis.set_ylabel(label)
    explained(axes[0], title, [])
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    axes[-1].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes[-1].yaxis.get_offset_text().set_fontsize(6)
    figure.align_ylabels(axes)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    legend_below(figure, list(handles.values()), list(handles))
    return figure


def _smooth(values, window):
    """Running mean over the last `window` values (fewer at the start)."""
    total = np.cumsum(np.concatenate([[0.0], values]))
    start = np.maximum(np.arange(1, len(values) + 1) - window, 0)
    return (total[1:] - total[start]) / (np.arange(1, len(values) + 1) - start)


# ---- the program ----
KINDS = ("base2new", "radar", "dg", "xd", "fewshot", "training")


def figures(cells, where, folder, kinds=KINDS):
    """Draw what the runs allow into `folder`; returns the names of the files."""
    files, look = [], looks(method_names(cells))

    def add(make, name, *args):
        files.extend(draw(make, os.path.join(folder, name), *args, look=look))

    for protocol in cells.values("protocol"):
        chosen = cells.where(protocol=protocol)
        names = chosen.values("dataset")
        each = {name: chosen.where(dataset=name) for name in names}
        if protocol == "base2new" and "base2new" in kinds:
            for name, own in each.items():
                add(_base_against_new, f"base2new_{name}", own, name)
            if len(names) > 1:
                add(_base_against_new, "base2new_average", chosen, f"average of {len(names)} datasets")
        if protocol == "base2new" and "radar" in kinds:
            add(radar, "base2new_radar", chosen)
        if protocol in ("dg", "xd") and protocol in kinds:
            for name, own in each.items():
                title = f"{name}, each domain left out in turn" if protocol == "dg" else f"trained on {name}"
                own = own if protocol == "dg" else type(own)({place: results for place, results in own.items()
                                                              if place.part != name})
                if own:
                    averages = xd_groups(name, own.values("part")) if protocol == "xd" else None
                    add(bars, f"{protocol}_{name}", own, title, averages)
        if protocol == "fewshot" and "fewshot" in kinds:
            for name, own in each.items():
                add(curves, f"fewshot_{name}", own, name)
            if len(names) > 1:
                add(curves, "fewshot_average", chosen, f"average of {len(names)} datasets")
        if protocol != "zeroshot" and "training" in kinds:
            for name, own in each.items():
                for more, title, group in trainings(protocol, own):
                    add(training, f"training_{protocol}_{name}{more}", group, where, f"{name}, {title}")
    return files


def trainings(protocol, cells):
    """[(end of the file's name, title, cells)] of the trainings of one dataset that a figure can show together: those
    for one target domain, of few-shot curves those of the most shots."""
    if protocol == "dg":
        return [(f"_{part}", f"trained for the target {part.replace('_', ' ')}", cells.where(part=part))
                for part in cells.values("part")]
    if protocol == "fewshot":
        most = max(cells.values("shots"))
        return [("", f"{protocol}, {most} shot{'s' if most > 1 else ''}", cells.where(shots=most))]
    trained = {"base2new": {"part": "train_base"}, "xd": {"part": cells.values("dataset")[0]}}[protocol]
    return [("", protocol, cells.where(**trained))]


def parse_arguments(argv):
    parser = train.ArgumentParser(description="Draw figures of finished runs.")
    parser.add_argument("output", nargs="+", help="output folders of protocols, or folders in them")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="only these figures")
    parser.add_argument("--to", help="folder of the figures; default figures in the first output folder")
    return parser.parse_args(argv)


def main(argv=None):
    """Draw the figures and print their names; returns the names."""
    args = parse_arguments(argv)
    cells, where = find_runs(args.output)
    require_comparable(cells, where)
    folder = args.to or os.path.join(args.output[0], "figures")
    if not args.to:
        require_own_folder(folder)
    files = figures(cells, where, folder, args.only)
    if not files:
        raise InputError(f"nothing to draw of {', '.join(args.only)} in {', '.join(args.output)}")
    print("\n".join(files))
    return files


if __name__ == "__main__":
    sys.exit(train.command_line(main))
