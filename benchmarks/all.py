"""Measure everything and write docs/SPEED.md.

    python -m benchmarks.all                       # about an hour on one core
    python -m benchmarks.all --only b2n_50 coop    # these rows; what is stored is not measured again
    python -m benchmarks.all --pairs 5             # adds to what is stored until there are five
    python -m benchmarks.all --page-only           # the page of what is stored

Each measurement is stored as JSON in the output folder, so that the command can be stopped and run again.
"""
import functools
import os
import sys
from collections.abc import Callable

import torch

from benchmarks import page
from benchmarks.loader import measure_loader
from benchmarks.rest import measure_rest
from benchmarks.step import alone, check_equal, measure, report
from benchmarks.suite import CURVES, ROWS
from dassl.config.words import ArgumentParser
from dassl.utils import InputError, mkdir_if_missing, read_json, write_json
from dassl.utils.registry import nearest
from train import command_line


def items() -> dict[str, Callable]:
    """{name: function (stored, pairs) -> the measurement}, in the order they are made."""
    found: dict[str, Callable] = {row.name: functools.partial(measured_row, row) for row in ROWS}
    for curve in CURVES:
        for value, work in curve.works.items():
            found[f"{curve.name}_{value}"] = once(functools.partial(alone, work, curve.side, repeats=1))
    return found | {"loader": once(measure_loader), "rest": once(functools.partial(measure_rest, 2))}


def once(function: Callable) -> Callable:
    """What a second measurement would not add to: measured where nothing is stored."""
    return lambda stored, pairs: stored or function()


def measured_row(row, stored, pairs):
    """A row's measurement with `pairs` pairs; those that are stored count."""
    missing = pairs - (stored["pairs"] if stored else 0)
    if missing < 1:
        return stored
    found = measure(row.work, missing, memory=row.memory and not stored)
    check_equal(row.work, found)
    found = merged(stored, found) if stored else found
    print(report(row.work, found), end="\n\n", flush=True)
    return found


def merged(stored, found):
    """Two measurements of one work as one."""
    both = {**stored, "pairs": stored["pairs"] + found["pairs"], "peak": max(stored["peak"], found["peak"]),
            "differences": [max(pair) for pair in zip(stored["differences"], found["differences"])]}
    for name in ("plain", "ours"):
        both[name] = {**stored[name], **{kind: stored[name][kind] + found[name][kind]
                                         for kind in ("clock", "processor")}}
    return both


def main(argv=None):
    parser = ArgumentParser(prog="python -m benchmarks.all", description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="output/benchmarks", help="folder of the measurements")
    parser.add_argument("--docs", default="docs", help="folder of the page and its figure")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"{', '.join(items())} (default all)")
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each side")
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    unknown = set(args.only or ()) - set(items())
    if unknown:
        raise InputError(f"no measurement is called {', '.join(sorted(unknown))}{nearest(min(unknown), items())}; "
                         f"known: {', '.join(items())}")
    mkdir_if_missing(args.output)
    for name, function in items().items():
        if args.page_only or (args.only and name not in args.only):
            continue
        path = os.path.join(args.output, f"{name}.json")
        stored = read_json(path) if os.path.isfile(path) else None
        found = function(stored, args.pairs)
        if found is not stored:
            write_json({**found, "machine": page.machine()}, path)
    stored = {name: read_json(path) for name in items()
              if os.path.isfile(path := os.path.join(args.output, f"{name}.json"))}
    mkdir_if_missing(args.docs)
    page.write(stored, args.docs)


if __name__ == "__main__":
    sys.exit(command_line(main))
