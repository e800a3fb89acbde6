"""The section of docs/SPEED.md on frozen features at hand, from stored measurements."""
from benchmarks import page
from benchmarks.frozen_rows import COMPARISON_AT_LEAST, FILLING_AT_LEAST, STEP_ROWS, WARM_AT_LEAST
from benchmarks.measure import TOLERANCE, median

ABOUT = """\
Made by `python -m benchmarks.compare --docs docs`; `benchmarks.all` leaves this section as it is. The same work without
the [feature store](FEATURE_STORE.md), with an empty one and with a full one, in turns in one process: {backbone},
float32, one torch thread, JPEG pictures of 500 x 375 that are made on the spot, `DATALOADER.NUM_WORKERS 0`. Measured is
processor time; the clock's ratio stands beside it. All that a user's step or test pays is in it: without the store
opening, decoding, transforming and encoding the pictures; with it the digests of their files, and reading and verifying
what is stored. A step's time is that of {steps} steps of an epoch over so many, and what an epoch reads is in it.
Ratios are without / with. Equality: the norm of the difference over the norm, below {tolerance}; a full store gives the
numbers of an empty one bit for bit.

Machine: {machine}."""


def section(stored: dict, note: str = "") -> str:
    """The section's text from {name of a measurement: its numbers}; what is not measured is left out."""
    if not stored:
        return ""
    first = next(iter(stored.values()))
    backbone = "the tiny CLIP" if first["backbone"] == "tiny" else f"{first['backbone']} with random weights"
    about = ABOUT.format(machine=first["machine"], tolerance=f"{TOLERANCE:.0e}", backbone=backbone,
                         steps=" or ".join(sorted({str(row.steps) for row in STEP_ROWS.values()})))
    rows = [line for name in (*STEP_ROWS, "evaluation") if name in stored for line in lines_of(stored[name])]
    comparison = stored.get("comparison")
    rows += lines_of_comparison(comparison) if comparison else []
    table = page.table(rows, ["work", "goal, at least", "ratio", "on the clock", "without, s", "with, s",
                              "losses (logits)", "gradients"])
    return f"{about}{note and ' '}{note}\n\n{table}\n" + (f"\n{comparison_text(comparison)}\n" if comparison else "")


def ratios(found: dict, side: str, kind: str = "processor") -> list[float]:
    """none / side of each pair; what was measured once counts for all."""
    none, other = found["none"][kind], found[side][kind]
    if len(none) < len(other):
        none = none * len(other)
    return [a / b for a, b in zip(none, other)]


def lines_of(found: dict) -> list[list[str]]:
    """The table's lines of steps, or of an evaluation."""
    row, number = found["row"], found["row"].get("steps", 1)
    goals = {"warm": row.get("at_least", WARM_AT_LEAST), "filling": FILLING_AT_LEAST}
    names = {"warm": "stored features", "filling": "filling the store"}
    lines = []
    for side in ("warm", "filling"):
        if side in found:
            different = [f"{value:.0e}" for value in found["differences"]] if side == "warm" else []
            values = ratios(found, side)
            lines.append([f"{row['what']}: {names[side]}", f"{goals[side]:g}",
                          page.spread(values) if len(values) > 1 else f"{values[0]:.2f}",
                          f"{median(ratios(found, side, 'clock')):.2f}",
                          f"{median(found['none']['processor']) / number:.2f}",
                          f"{median(found[side]['processor']) / number:.3f}", *(different + ["-", "-"])[:2]])
    return lines


def lines_of_comparison(found: dict) -> list[list[str]]:
    methods = found["methods"]
    number = {8: "eight"}.get(len(methods), len(methods))
    parts = [(f"{number} methods, one seed, training and evaluation", COMPARISON_AT_LEAST, methods),
             ("the first of them, which fills the store", FILLING_AT_LEAST, methods[:1]),
             ("the second", None, methods[1:2]), ("the second to the last", None, methods[1:])]
    lines = []
    for what, goal, part in parts:
        if not part:
            continue
        total = {(side, kind): sum(line[side][kind] for line in part) for side in ("none", "store")
                 for kind in ("processor", "clock")}
        lines.append([what, "-" if goal is None else f"{goal:g}",
                      f"{total['none', 'processor'] / total['store', 'processor']:.2f}",
                      f"{total['none', 'clock'] / total['store', 'clock']:.2f}",
                      f"{total['none', 'processor']:.1f}", f"{total['store', 'processor']:.1f}",
                      f"{max(line['difference'] for line in part):.0e}", "-"])
    return lines


def comparison_text(found: dict) -> str:
    row = found["row"]
    rows = [[line["method"], f"{line['none']['processor']:.1f}", f"{line['store']['processor']:.1f}",
             f"{line['none']['processor'] / line['store']['processor']:.1f}", line["computed"], line["stored"]]
            for line in found["methods"]]
    table = page.table(rows, ["method", "without, s", "with, s", "ratio", "pictures computed", "taken from the store"])
    pictures = row["classes"] * row["pictures"]
    return (f"The methods one after the other, each without and then with the store, by `train.main`, which reads the "
            f"data and writes the run folder, too: {row['classes']} classes, {row['shots']} shots, batch "
            f"{row['batch']}, one epoch ({row['classes'] * row['shots'] // row['batch']} steps), {pictures} test "
            f"pictures. The CLIP is loaded once beforehand. In the end the store holds "
            f"{found['bytes'] / 2**10:,.0f} KiB.\n\n{table}")
