"""Training curves: loss, accuracy on the batches and learning rate by step, from the runs' TensorBoard files."""
import os

import matplotlib.pyplot as plt
import numpy as np

from protocols.parts.style import WIDTH, explained, legend_below, looks, shown


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
    """Loss, accuracy on the batches and learning rate by step, a line per method, the seeds' mean, smoothed over a
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
                axis.plot(series[0][0][:length], _smooth(mean, window), linestyle=look[method]["line"],
                          color=look[method]["color"], label=shown(method))
    for axis, label in zip(axes, wanted.values()):
        axis.set_ylabel(label)
    explained(axes[0], title, [])
    axes[-1].set_xlabel("training step")
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
