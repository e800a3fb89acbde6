"""docs/SPEED.md and its figure from stored measurements."""
import os
import platform
import re

import matplotlib
import numpy as np
import psutil
import torch
from clip.clip import _tokenizer as tokenizer
from tabulate import tabulate

from benchmarks.measure import TOLERANCE, median, ratios, seconds
from benchmarks.models import class_names
from benchmarks.step import TEST_SET
from benchmarks.suite import CURVES, MEMORY_AT_MOST, ROWS, SLOPE_AT_LEAST, SLOPE_CLASSES, SLOPE_ROWS

FIGURE = "speed_scaling.png"
# The page's last sections, in their order; other programs, and for the GPU another machine, measure them.
PICTURES, FROZEN, MANY_RUNS, GPU, LAUNCHES = OTHERS = (
    "## Pictures", "## With frozen features at hand", "## Many runs", "## On a GPU", "## What a GPU launches")


def machine():
    """What a time depends on, without names of places."""
    processor = platform.processor() or platform.machine()
    if os.path.isfile("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            processor = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")),
                             processor)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return (f"{processor}, {psutil.cpu_count(logical=False) or '?'} cores, "
            f"{psutil.virtual_memory().total / 2**30:.0f} GiB of memory, {', '.join(gpus) or 'no GPU'}; "
            f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}")


def write(stored, folder):
    """Write SPEED.md into `folder` from {name of a measurement: its numbers}; what is not measured is left out."""
    text = TEXT.format(
        machine=next((found["machine"] for found in stored.values() if "machine" in found), machine()),
        peak=max((found["peak"] for found in stored.values() if "peak" in found), default=0) / 1e9,
        tolerance=f"{TOLERANCE:.0e}", test_set=f"{TEST_SET:,}", rows=rows_table(stored), slope=slope_text(stored),
        work=work_table(stored), tokens=tokens_table(), scaling=scaling_text(stored, folder),
        loader=loader_text(stored), rest=rest_text(stored))
    path = os.path.join(folder, "SPEED.md")
    text += "".join(section_of(path, heading) for heading in OTHERS)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def section_of(path, heading):
    """A section of the page at `path` from the line above its heading on; "" where it has none."""
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8") as file:
        found = re.search(rf"\n{re.escape(heading)}\n.*?(?=\n## |\Z)", file.read(), re.DOTALL)
    return found[0] if found else ""


def write_section(folder, heading, body):
    """Write a section of OTHERS in `folder`/SPEED.md anew; the others stay as they are."""
    path = os.path.join(folder, "SPEED.md")
    sections = {other: section_of(path, other) for other in OTHERS}
    with open(path, encoding="utf-8") as file:
        text = file.read()
    for section in filter(None, sections.values()):
        text = text.replace(section, "")
    sections[heading] = f"\n{heading}\n\n{body}"
    with open(path, "w", encoding="utf-8") as file:
        file.write(text + "".join(sections.values()))


def table(rows, headers):
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def spread(values, digits=2):
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def rows_table(stored):
    lines = []
    for row in ROWS:
        if row.name not in stored:
            continue
        found, device = stored[row.name], row.work.device
        goal = "-" if row.at_least is None else f"{row.at_least:.1f}"
        different = [f"{value:.0e}" for value in found["differences"]]
        lines.append([row.what, goal, spread(ratios(found, device)), found["pairs"],
                      f"{median(ratios(found, device, 'clock')):.2f}",
                      f"{found['plain']['flop'] / found['ours']['flop']:.2f}", *(different + ["-"])[:2]])
    return table(lines, ["work", "goal, at least", "ratio", "pairs", "on the clock", "in operations", "losses (logits)",
                         "gradients"])


def work_table(stored):
    lines = []
    for row in ROWS:
        if row.name in stored:
            found, device, line = stored[row.name], row.work.device, [row.what]
            for name in ("plain", "ours"):
                time, flop = median(seconds(found[name], device)), found[name]["flop"]
                line += [f"{time:.2f}", f"{flop / 1e12:.3f}", f"{100 * flop / time / found['peak']:.0f} %"]
                line.append(f"{found[name]['memory'] / 2**20:.0f}" if "memory" in found[name] else "-")
            lines.append(line)
    return table(lines, ["work", *(f"{side}: {what}" for side in ("plain", "ours")
                                   for what in ("s", "TFLOP", "of the peak", "MiB above the weights"))])


def slope_text(stored):
    if not all(name in stored for name in SLOPE_ROWS):
        return ""
    classes = [row.work.classes for row in ROWS if row.name in SLOPE_ROWS]
    fits = {}
    for side in ("plain", "ours"):
        times = [median(seconds(stored[name][side], "cpu")) for name in SLOPE_ROWS]
        fits[side] = np.polyfit(classes, times, 1)
    slope, fixed = zip(*(fits[side] for side in ("plain", "ours")))
    at = [f + s * SLOPE_CLASSES for s, f in zip(slope, fixed)]
    last = stored[SLOPE_ROWS[-1]]
    memory = last["ours"]["memory"] / last["plain"]["memory"]
    return (f"CoOp, batch 8, a line fitted over {', '.join(map(str, classes))} classes: a class costs the plain "
            f"formulation {1000 * slope[0]:.1f} ms and this one {1000 * slope[1]:.2f} ms, "
            f"**{slope[0] / slope[1]:.1f}** times less; at {SLOPE_CLASSES} classes the lines are at {at[0]:.0f} s and "
            f"{at[1]:.1f} s, a ratio of "
            f"**{at[0] / at[1]:.1f}** (goal: {SLOPE_AT_LEAST}). With {classes[-1]} classes a step needs "
            f"{last['ours']['memory'] / 2**20:.0f} MiB above the weights where the plain one needs "
            f"{last['plain']['memory'] / 2**20:.0f} MiB, **{memory:.3f}** of it (goal: at most {MEMORY_AT_MOST:.2f}).")


def tokens_table():
    """Tokens per class that the text tower runs, by what is left out."""
    lines, context = [], 4
    for number in (50, 100, 200, 1000):
        own = [len(tokenizer.encode(f"{name}.")) + 1 for name in class_names(number)]
        shared = 1 + context
        lines.append([number, 77, shared + max(own), f"{max(own) + shared / number:.1f}",
                      f"{(sum(own) + shared) / number:.1f}"])
    return table(lines, ["classes", "plain", "up to the longest end-of-text", "and the prefix once",
                         "and each class up to its own"])


def exponent(values, numbers):
    """Of the power law through the points, by least squares of the logarithms."""
    return np.polyfit(np.log(values), np.log(numbers), 1)[0]


def curve_points(curve, stored):
    """(values, seconds, bytes) of what is measured of a curve."""
    values = [value for value in curve.works if f"{curve.name}_{value}" in stored]
    found = [stored[f"{curve.name}_{value}"] for value in values]
    return values, [median(f["processor"]) for f in found], [f["memory"] for f in found]


def scaling_text(stored, folder):
    lines, curves = [], []
    for curve in CURVES:
        values, times, memory = curve_points(curve, stored)
        if len(values) > 1:
            curves.append(curve)
            lines.append([curve.axis, curve.label, ", ".join(map(str, values)),
                          ", ".join(f"{t:.2f}" for t in times), f"{exponent(values, times):.2f}",
                          ", ".join(f"{m / 2**20:.0f}" for m in memory), f"{exponent(values, memory):.2f}"])
    if not lines:
        return ""
    draw(curves, stored, os.path.join(folder, FIGURE))
    return (table(lines, ["grows", "step of", "values", "s", "exponent", "MiB above the weights", "exponent"])
            + f"\n\n![Time and memory of a training step]({FIGURE})")


def draw(curves, stored, path):
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    axes_of = list(dict.fromkeys(curve.axis for curve in curves))
    with plt.rc_context({"font.size": 8}):
        figure, panels = plt.subplots(2, len(axes_of), figsize=(2.6 * len(axes_of), 4.2), squeeze=False,
                                      sharex="col")
        for curve in curves:
            values, times, memory = curve_points(curve, stored)
            for panel, numbers in zip(panels[:, axes_of.index(curve.axis)], (times, [m / 2**20 for m in memory])):
                panel.loglog(values, numbers, "o-", label=curve.label, markersize=3, linewidth=1)
        for column, axis in enumerate(axes_of):
            ticks = sorted({value for curve in curves if curve.axis == axis for value in curve.works})
            for panel in panels[:, column]:
                panel.set_xticks(ticks, [str(value) for value in ticks])
                panel.set_xticks([], minor=True)
                panel.set_ylim(*limits([y for line in panel.lines for y in line.get_ydata()]))
            panels[0, column].legend(fontsize=6, loc="upper left")
            panels[1, column].set_xlabel(axis)
        panels[0, 0].set_ylabel("seconds per step")
        panels[1, 0].set_ylabel("MiB above the weights")
        figure.tight_layout()
        figure.savefig(path, dpi=100)
        plt.close(figure)


def limits(numbers):
    """Ends of a logarithmic axis: a decade at least, so that what hardly changes looks so, and room for a legend."""
    low, high = min(numbers), max(numbers)
    widen = max(1.25, (10 * low / high) ** 0.5)
    return low / widen, 2.5 * high * widen


def loader_text(stored):
    if "loader" not in stored:
        return ""
    found = stored["loader"]
    first, later = found["with"][0], median(found["with"][1:])
    text = (f"Decoding and augmenting a batch of {found['batch']} JPEG pictures of {found['size'][0]} x "
            f"{found['size'][1]} (random crop, flip, normalise) takes one core {median(found['without']):.3f} s. With "
            f"the cache the first epoch takes {first:.3f} s a batch, the later ones {later:.3f} s.")
    if "coop" in stored:
        step = median(seconds(stored["coop"]["ours"], "cpu"))
        text += (f" The step that waits for such a batch, CoOp with 100 classes, takes {step:.1f} s: the loader adds "
                 f"{100 * later / step:.1f} % to it without workers.")
    text += (f" With one worker, which prepares the next batch meanwhile, a step of {found['step']:.1f} s waits "
             f"{1000 * median(found['waits']):.0f} ms for it.")
    return text


def rest_text(stored):
    if "rest" not in stored:
        return ""
    found = stored["rest"]
    share = {kind: f"{100 * part:.0f} %" for kind, part in found["shares"].items()}
    ratio = median(found["float32"]["processor"]) / median(found["bfloat16"]["processor"])
    return (f"What is left, in a training step of MetaPrompt (20 classes, batch 4): {share['matrix products']} matrix "
            f"products, {share['attention']} attention, {share['other']} everything else. That is why torch.compile is "
            "not used, which leaves matrix products as they are. bfloat16 (`PREC amp` on a CPU) makes this step "
            f"{ratio:.2f} times as fast; its losses differ from float32's by {found['differences'][0]:.0e}, its "
            f"gradients by {found['differences'][1]:.0e}, which is more than rounding, so it is not the default.")


TEXT = """# Speed

How much faster and smaller this project's training steps and evaluations are than the plain formulation of the same
methods, at equal numbers. Made by `python -m benchmarks.all`; one row by itself: `python -m benchmarks.step`.

**The plain side** (`benchmarks/plain.py`) is each method's published schedule, written as simply as possible on
OpenAI's `clip` model: all 77 tokens of every prompt; every forward pass runs the frozen images, the prompted images and
the prompted text; frozen text features are computed once; class halves encode their own classes only; static prompts
are encoded again for every test batch; CoCoOp runs the text tower once per image; MetaPrompt (paper variant, order 1)
makes one inner and one outer pass for each part held out.
**Our side** is the registered trainer as `train.py` builds it, its optimizer's steps included.

**How it is measured.** ViT-B/16 with random weights (times do not depend on their values), ImageNet's class names as
torchvision lists them, float32, one torch thread on both sides. After a warm-up on a small batch the two sides take
turns in one process: plain, ours, plain, ours. What is compared is the thread's processor time, of which other
programs on the machine take none away; the clock's ratio stands beside it. A ratio
is plain / ours of a pair; given are the median and, in brackets, the smallest and the largest. Operations are those of
matrix products and attention, by torch's own formulas. Memory is the process's resident high-water mark during one
step above what was resident before it, in a process of its own.
Evaluation: ours encodes static prompts once; that time is shared by the {test_set} images of ImageNet's test set.

Machine: {machine}. Its best rate of a float32 matrix product (2048 x 2048) with one thread: {peak:.0f} GFLOP/s.

## Ratios

Equality: the norm of the difference over the norm of the plain side's, the largest over all losses and over all
gradient tensors that were applied; the measurement stops when it is not below {tolerance}.

{rows}

{slope}

## Times, operations, memory

{work}

## Where it comes from

- **Fewer tokens of text.** The tower is causal and read at the end-of-text token: what follows it is not computed, for
  each class by itself; what precedes the class name is computed once. Classes are sorted by length and lie behind each
  other without padding, so that all matrix products run over one row of real tokens; attention takes one piece a
  length. Tokens per class, with "a photo of a" in front:

{tokens}

- **Few launches on a GPU**, which would wait for them. There several classes share a row of about 256 tokens, behind a
  prefix of its own, and a mask lets each class see the prefix and itself. So a layer is one attention for all classes,
  and launches as much for a thousand of them as for one. The steps of most methods are captured as graphs
  (`TRAIN.GRAPHS`): replaying one is one launch.
- **The last block for one token.** Of the last block only keys and values are computed for all tokens, in both towers.
- **What a loss does not use is not run.** A loss on prompted images runs no text, one on prompted text no images.
- **Frozen and shared parts once.** One embedding of a batch serves all its prompted passes; frozen features of a batch
  are computed once and serve all inner and outer losses; the inner gradients of all domains come from one pass in which
  each image has the prompts of its domain, and so do the outer ones; static text features are computed once per
  evaluation.
- **No work for replaced or unlearned tokens.** The outputs of deep prompts that the next layer replaces are not
  computed; in front of the first visual prompt nothing has a gradient, so that layer's projections have no backward
  pass.
- **One copy of the hidden layer.** QuickGELU is written as SiLU with its factors inside the matrix products: one
  elementwise pass instead of three, one kept tensor instead of two.
- **Fused attention** everywhere; second-order meta-gradients use the differentiable kernel.
- **Chunks with recomputation.** Where the text tower would keep more for its backward pass than `TRAIN.TEXT_MEMORY_MB`
  (by default half of the memory that is free when a run starts), classes are run in chunks and computed again on the
  way back. The budget is stored in the checkpoint, so that a resumed run makes the same chunks. None of the rows above
  needs it on this machine.

{rest}

## Scale

One training step of this project by itself, processor time of one thread, memory above the weights. A step has a part
that does not grow (the images, when classes grow), so exponents below 1 are expected.

{scaling}

## Data

{loader}
"""
