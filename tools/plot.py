"""Figures of finished runs: PNG and SVG, sized for a column of a two-column paper.

    python tools/plot.py output                 # every figure that the runs there allow, into output/figures
    python tools/plot.py output --only dg fewshot

base2new: base against new with lines of equal H, and a radar of H over datasets; dg: bars a domain; fewshot: curves
with bands of one standard deviation over seeds; training: loss, accuracy and learning rate by step.
"""
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import matplotlib  # noqa: E402

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.container import ErrorbarContainer  # noqa: E402

import train  # noqa: E402
from dassl.utils import InputError  # noqa: E402
from tools.run_folders import find_runs, require_comparable  # noqa: E402
from tools.tables import average, base_new_h, xd_groups  # noqa: E402

WIDTH = 3.3  # inches, a column
STYLE = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "legend.frameon": False, "lines.linewidth": 1.2, "lines.markersize": 5, "axes.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "errorbar.capsize": 2, "svg.fonttype": "none", "svg.hashsalt": "", "figure.constrained_layout.use": True,
}
# Okabe and Ito's colours, told apart by colour-blind readers; with a marker a method also in grey
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MARKERS = "osD^vP*Xhp"


def looks(methods):
    """{method: {"color", "marker"}}, the same in every figure of the same methods."""
    return {method: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            for i, method in enumerate(methods)}


def save(figure, path):
    """Write `path`.png and `path`.svg; returns their names."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    files = [f"{path}.png", f"{path}.svg"]
    figure.savefig(files[0], dpi=300)
    figure.savefig(files[1], metadata={"Date": None})
    plt.close(figure)
    return files


def draw(make, path, *args, **kwargs):
    """Call `make(...)` -> figure in this module's style and save the figure; [] where it has nothing to show."""
    with plt.rc_context(STYLE):
        figure = make(*args, **kwargs)
        return save(figure, path) if figure is not None else []


# ---- base to new ----
def base_against_new(cells, path, title=""):
    """A point a method, base against new accuracy, with bars of one standard deviation over seeds and lines of equal H.

    Args:
        cells: base2new Cells; of several datasets, the averages are shown. Methods without a new accuracy are left out.
        path: the figure's file name without its ending.
    Returns:
        the names of the files.
    """
    return draw(_base_against_new, path, cells, title)


def _base_and_new(cells):
    """({dataset: {seed: base}}, {dataset: {seed: new}}), lists in the order of `cells`' datasets."""
    return [[cells.where(dataset=name, part=part).by_seed() for name in cells.values("dataset")]
            for part in ("train_base", "test_new")]


def _base_against_new(cells, title):
    points = {method: (average(bases), average(news)) for method, chosen in cells.methods()
              for bases, news in [_base_and_new(chosen)]}
    points = {method: point for method, point in points.items() if None not in (point[0].mean, point[1].mean)}
    figure, axes = plt.subplots(figsize=(WIDTH, 0.86 * WIDTH))
    look = looks(points)
    for method, (base, new) in points.items():
        axes.errorbar(base.mean, new.mean, xerr=base.std or 0, yerr=new.std or 0, fmt=look[method]["marker"],
                      color=look[method]["color"], elinewidth=0.8, label=method, zorder=3)
    if points:
        axes.set_xlim(_room([point[0] for point in points.values()]))
        axes.set_ylim(_room([point[1] for point in points.values()]))
    base, new = np.meshgrid(np.linspace(*axes.get_xlim(), 200), np.linspace(*axes.get_ylim(), 200))
    h = 2 * base * new / np.maximum(base + new, 1e-9)
    lines = axes.contour(base, new, h, levels=5, colors="0.8", linewidths=0.6, zorder=0)
    axes.clabel(lines, fmt="H %g", fontsize=6, colors="0.45")
    axes.set(xlabel="accuracy on base classes (%)", ylabel="accuracy on new classes (%)", title=title)
    _legend(axes, len(points))
    return figure


def _room(numbers):
    """Limits around points and their bars, within 0 to 100 with a little room for a marker."""
    low = min(number.mean - (number.std or 0) for number in numbers)
    high = max(number.mean + (number.std or 0) for number in numbers)
    room = max(2.0, 0.15 * (high - low))
    return max(0.0, low - room), min(102.0, high + room)


def _legend(axes, entries):
    """Inside for a few entries, below the figure for many; a marker without its error bars."""
    handles, labels = axes.get_legend_handles_labels()
    handles = [handle[0] if isinstance(handle, ErrorbarContainer) else handle for handle in handles]
    if entries > 6:
        axes.figure.legend(handles, labels, loc="outside lower center", ncols=3, columnspacing=0.8, handletextpad=0.3)
    elif entries:
        axes.legend(handles, labels, loc="best", handletextpad=0.3, borderpad=0.2)


def radar(cells):
    """H over datasets, a ring a method. A figure, None for fewer than three datasets."""
    names = cells.values("dataset")
    if len(names) < 3:
        return None
    values = {}
    for method, chosen in cells.methods():
        rows = [base_new_h(*([chosen.where(dataset=name, part=part).by_seed()] for part in ("train_base", "test_new")))
                for name in names]
        if None not in [h.mean for *_, h in rows]:
            values[method] = [h.mean for *_, h in rows]
    if not values:
        return None
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    figure, axes = plt.subplots(figsize=(WIDTH, 1.1 * WIDTH), subplot_kw={"projection": "polar"})
    look = looks(values)
    for method, ring in values.items():
        axes.plot([*angles, angles[0]], [*ring, ring[0]], label=method, markersize=3, **look[method])
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_xticks(angles, [name.replace("_", "\n") for name in names])
    for angle, label in zip(angles, axes.get_xticklabels()):
        side = np.sin(angle)
        label.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
    axes.tick_params(axis="x", pad=0)
    low, high = min(map(min, values.values())), max(map(max, values.values()))
    low, high = max(0, 10 * np.floor((low - 5) / 10)), min(100, 10 * np.ceil((high + 1) / 10))
    step = 10 if high - low <= 40 else 20
    axes.set_ylim(low, high)
    axes.set_yticks(np.arange(low + step, high + 1, step))
    axes.set_rlabel_position(180 / len(names))
    axes.tick_params(axis="y", labelsize=6, colors="0.4")
    axes.grid(color="0.85", linewidth=0.5)
    axes.spines["polar"].set_color("0.85")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(3, len(values)),
                  columnspacing=1.0)
    axes.set_title("H of base and new accuracy (%)")
    return figure


# ---- leave one domain out, cross-dataset ----
def bars(cells, title, averages=None):
    """A group of bars a test set (a target domain, a tested dataset), a bar a method, with standard deviations.

    averages: {name: test sets} that follow; default one over all."""
    parts = cells.values("part")
    averages = averages or {"average": parts}
    methods = cells.methods()
    look = looks([method for method, _ in methods])
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
                 yerr=[number.std or 0 for _, number in shown], error_kw={"elinewidth": 0.7, "capsize": 1.5},
                 label=method)
    axes.set_xticks(range(len(groups)), [group.replace("_", " ") for group in groups],
                    rotation=0 if sum(map(len, groups)) < 42 else 35, ha="center" if sum(map(len, groups)) < 42
                    else "right", rotation_mode="anchor")
    axes.axvline(len(parts) - 0.5, color="0.8", linewidth=0.6)
    axes.set(ylabel="accuracy (%)", title=title)
    axes.set_ylim(0, None)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(methods)),
                  columnspacing=1.0, handlelength=1.0, handletextpad=0.4)
    return figure


# ---- few-shot curves ----
def curves(cells, title):
    """Accuracy by shots, a line a method, with a band of one standard deviation over seeds; several datasets are
    averaged. Zero-shot methods are one dashed line. A figure, None for a single number of shots."""
    shots, names = sorted(cells.values("shots")), cells.values("dataset")
    if len(shots) < 2:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 0.8 * WIDTH))
    methods = cells.methods()
    look = looks([method for method, _ in methods])
    for method, chosen in methods:
        row = [(number, average(chosen.where(dataset=name, shots=number).by_seed() for name in names))
               for number in shots]
        row = [(x, number) for x, number in row if number.mean is not None]
        x, mean = [x for x, _ in row], np.array([number.mean for _, number in row])
        std = np.array([number.std or 0 for _, number in row])
        flat = len(set(mean.round(6))) == 1 and len(mean) > 1  # nothing is learned from the shots
        axes.plot(x, mean, linestyle="--" if flat else "-", color=look[method]["color"], label=method,
                  marker="" if flat else look[method]["marker"])
        axes.fill_between(x, mean - std, mean + std, color=look[method]["color"], alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(shots, map(str, shots))
    axes.minorticks_off()
    axes.set(xlabel="shots a class", ylabel="accuracy (%)", title=title)
    _legend(axes, len(methods))
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


def training(cells, where, title):
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
    look = looks([method for method, _ in cells.methods()])
    for method, runs in lines.items():
        for axis, tag in zip(axes, wanted):
            series = [run[tag] for run in runs if tag in run]
            if series:
                length = min(len(steps) for steps, _ in series)
                mean = np.mean([values[:length] for _, values in series], axis=0)
                window = 1 if tag == "train/lr" else max(1, length // 20)
                axis.plot(series[0][0][:length], _smooth(mean, window), color=look[method]["color"], label=method)
    for axis, label in zip(axes, wanted.values()):
        axis.set_ylabel(label)
    axes[0].set_title(title)
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    axes[-1].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes[-1].yaxis.get_offset_text().set_fontsize(6)
    figure.align_ylabels(axes)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)),
                  columnspacing=1.0)
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
    files = []

    def add(make, name, *args):
        files.extend(draw(make, os.path.join(folder, name), *args))

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
                add(training, f"training_{protocol}_{name}", _longest(own), where, f"{name}, {protocol}")
    return files


def _longest(cells):
    """The trained runs that one figure can show together: one part, and of few-shot curves the most shots."""
    if len(cells.values("shots")) > 1:
        cells = cells.where(shots=max(cells.values("shots")))
    return cells.where(part=cells.values("part")[0])


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
    files = figures(cells, where, args.to or os.path.join(args.output[0], "figures"), args.only)
    if not files:
        raise InputError(f"nothing to draw of {', '.join(args.only)} in {', '.join(args.output)}")
    print("\n".join(files))
    return files


if __name__ == "__main__":
    sys.exit(train.command_line(main))
