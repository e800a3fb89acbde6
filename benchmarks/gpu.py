"""Is a GPU's path correct, and how fast is it? Prints one Markdown block and writes JSON.

    python -m benchmarks.gpu --json gpu.json --markdown gpu.md    # all parts, some eight minutes on one H100
    python -m benchmarks.gpu --part equality resume               # some of them
    python -m benchmarks.gpu --device cpu                         # a small form of every part, to try the program

    equality   every trainer on the GPU against the CPU: float32, amp and fp16; loss scaling when a gradient overflows
    graphs     training steps in graphs against the same without
    parity     the golden records, on the GPU
    speed      the rows of docs/SPEED.md, plain against ours, in float32 and amp
    input      images that the loader gives per second, against those that a training step takes
    resume     a run that is interrupted and goes on, against the run left alone, bit by bit

Each part is a process of its own: what goes wrong in one of them does not touch the others. A row that fails is printed
with its error. A part begins no row after --seconds.
"""
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import date
from importlib import import_module

import torch
from tabulate import tabulate

from benchmarks.page import machine
from dassl.config.words import ArgumentParser
from dassl.utils import InputError, read_json, write_json
from train import command_line

PARTS = {  # name: the module that has its rows, `<name>_rows(device)`, and their `HEADERS[name]`
    "equality": "benchmarks.gpu_equality",
    "graphs": "benchmarks.gpu_graphs",
    "parity": "benchmarks.gpu_equality",
    "speed": "benchmarks.gpu_speed",
    "input": "benchmarks.gpu_speed",
    "resume": "benchmarks.gpu_equality",
}
GRACE = 90  # seconds beyond --seconds after which a part is ended


def card(device):
    """Card, driver, versions and date: what a measurement depends on."""
    found = {"machine": machine(), "torch": torch.__version__, "cuda": torch.version.cuda, "date": str(date.today())}
    if device == "cpu":
        return {**found, "card": "none (CPU)", "driver": "-"}
    properties = torch.cuda.get_device_properties(device)
    return {**found, "card": properties.name, "memory": properties.total_memory, "driver": driver(),
            "multiprocessors": properties.multi_processor_count, "cudnn": torch.backends.cudnn.version()}


def driver():
    """The version of the GPU's driver, "?" where nothing tells it."""
    try:
        done = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], timeout=20,
                              capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return "?"
    return (done.stdout.strip().splitlines() or ["?"])[0]


def measure_part(name, device, seconds, path):
    """Make a part's rows in this process; store {"part", "headers", "rows", "seconds"} at `path` after each of them."""
    module = import_module(PARTS[name])
    started = time.perf_counter()
    found = {"part": name, "headers": module.HEADERS[name], "rows": []}
    for title, function in getattr(module, f"{name}_rows")(device):
        row = measured_row(title, function) if time.perf_counter() - started < seconds else {
            "title": title, "ok": None, "cells": ["left out: the part's time is up"]}
        found["rows"].append(row)
        found["seconds"] = round(time.perf_counter() - started, 1)
        write_json(found, path)
        mark = {True: "ok", False: "FAILS", None: ""}[row["ok"]]
        print(f"[{name} {found['seconds']:.0f} s] {title} | {' | '.join(row['cells'])} {mark}", flush=True)
    return found


def measured_row(title, function):
    """{"title", "cells", "ok", ...}; an error becomes a row that says so. What it prints is not shown."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return {"title": title, **function()}
    except Exception as error:
        text = traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        lines = str(error).strip().splitlines() or [""]
        return {"title": title, "ok": False, "cells": [f"{type(error).__name__}: {lines[0][:160]}"], "traceback": text}


def part_in_process(name, args, folder):
    """A part in a process of its own -> what it has stored, also when it was ended."""
    path = os.path.join(folder, f"{name}.json")
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--device", args.device, "--seconds",
               str(args.seconds), "--here", path]
    error = None
    try:
        code = subprocess.run(command, timeout=args.seconds + GRACE, check=False).returncode
        error = f"the process ended with status {code}" if code else None
    except subprocess.TimeoutExpired:
        error = f"ended after {args.seconds + GRACE:.0f} s"
    found = read_json(path) if os.path.isfile(path) else {
        "part": name, "headers": [name, "result"], "rows": [], "seconds": 0}
    if error:
        found["rows"].append({"title": "the part itself", "ok": False, "cells": [error]})
    return found


def markdown(about, parts):
    """The block for a page."""
    lines = [f"Card: {about['card']}, driver {about['driver']}, torch {about['torch']}, CUDA {about['cuda']}; "
             f"{about['date']}. Machine: {about['machine']}."]
    for part in parts:
        failed = sum(row["ok"] is False for row in part["rows"])
        checked = sum(row["ok"] is not None for row in part["rows"])
        width, passed = len(part["headers"]), f"{checked - failed} of {checked} checked rows pass"
        rows = [[row["title"], *row["cells"], *[""] * (width - 2 - len(row["cells"])),
                 {True: "yes", False: "**no**", None: "-"}[row["ok"]]] for row in part["rows"]]
        lines += ["", f"**{part['part']}** ({part['seconds']:.0f} s; {passed})",
                  "", tabulate(rows, part["headers"], tablefmt="github", disable_numparse=True)]
    return "\n".join(lines) + "\n"


def main(argv=None):
    parser = ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
                        help=f"{', '.join(PARTS)} (default all)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="where the parts run")
    parser.add_argument("--seconds", type=float, default=110, help="a part begins no row after this")
    parser.add_argument("--json", metavar="FILE", help="store all numbers and tracebacks there")
    parser.add_argument("--markdown", metavar="FILE", help="store the block there, too")
    parser.add_argument("--here", metavar="FILE", help="one part, in this process; its rows are stored there")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("torch sees no GPU; --device cpu tries a small form of every part")
    if args.here:
        measure_part(args.part[0], args.device, args.seconds, args.here)
        return None
    about = card(args.device)
    print(json.dumps(about), flush=True)
    found = {"about": about, "parts": []}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.part:
            found["parts"].append(part_in_process(name, args, folder))
            block = markdown(about, found["parts"])
            if args.json:
                write_json(found, args.json)
            if args.markdown:
                with open(args.markdown, "w", encoding="utf-8") as file:
                    file.write(block)
    print(f"\n{block}", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(command_line(main))
