"""The order in which the runs of a plan are made. Tables and lists keep the plan's own order."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from protocols import Run


def in_making_order(runs: Sequence[Run]) -> list[Run]:
    """The runs so that those which share features of the feature store are made together, while these are at hand: by
    dataset, shots and seed; within these as in the plan, by method and variant. A run comes after those whose prompts
    or numbers it takes."""
    first: dict[tuple[str, Any], int] = {}  # (field of a Place, value): where the plan has it first

    def rank(run: Run) -> list[int]:
        return [first[field, getattr(run.place, field)] for field in ("dataset", "shots", "seed")]

    for number, run in enumerate(runs):
        for field in ("dataset", "shots", "seed"):
            first.setdefault((field, getattr(run.place, field)), number)
    known = {run.folder: run for run in runs}
    ordered: dict[str, Run] = {}

    def put(run: Run) -> None:
        waits = [run]  # a chain of runs, each needing the next
        while waits:
            needed = next((known[folder] for folder in (waits[-1].needs, waits[-1].same) if folder in known
                           and folder not in ordered and known[folder] not in waits), None)
            if needed:
                waits.append(needed)
            else:
                ordered.setdefault(waits[-1].folder, waits[-1])
                waits.pop()

    for run in sorted(runs, key=rank):
        put(run)
    return list(ordered.values())
