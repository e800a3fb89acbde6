"""What is told of a plan before its first run: by --dry-run and --preflight all of it, at the start of a protocol what
stands in the way."""
from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import Any

from dassl.utils import InputError, broadcast
from protocols import Run
from tools.running.cluster import array_lines
from tools.running.estimates import missing_weights, require_room, weights_line
from tools.running.preflight import NOTHING_LACKS, Looked, Preflight, look_at
from tools.running.prepare import prepare
from tools.running.timing import time_of
from tools.running.trials import Trials


def look(runs: Sequence[Run], args: Namespace, clips: dict[str, Any], silent: bool = True) -> tuple[Preflight, str]:
    """What is found of a plan, and a line on the room that it needs.

    Args:
        args: of the command line. clips: {backbone: loaded CLIP}, filled where the runs are made by this process.
        silent: whether notes on finished runs are left out; the runs themselves tell them.
    """
    here = args.launcher == "local" and args.jobs == 1
    lacking = broadcast(lambda: prepare(runs)) if args.prepare else NOTHING_LACKS
    found = look_at(runs, Trials(clips if here else dict(clips), own_device=here), silent, lacking)
    room = broadcast(lambda: _room(found, args.output))
    found.looked = room[1]
    return found, room[0]


def _room(found: Preflight, output: str) -> tuple[str, dict[str, Looked]]:
    return require_room(found, output), found.looked


def require_ready(runs: Sequence[Run], args: Namespace, clips: dict[str, Any]) -> dict[str, str]:
    """Look at a plan before its first run. Returns {folder: why} of the runs that cannot be made, with --keep-going.

    Raises:
        InputError: a run cannot be made, without --keep-going. The causes are printed.
    """
    found, room = look(runs, args, clips)
    to_do = found.having("to do")
    if not args.keep_going:
        found.require(args.prepare)
    facts = [found.counts(), room, weights_line(missing_weights(to_do))]
    if to_do:
        broadcast(lambda: print("; ".join(filter(None, facts)), flush=True))
    if found.refused:
        lines = [f"{len(found.refused)} of {len(runs)} runs cannot be made:", *found.listed()]
        broadcast(lambda: print("\n".join(lines), flush=True))
    return found.refused


def described(runs: Sequence[Run], args: Namespace, clips: dict[str, Any]) -> tuple[str, Preflight]:
    """(what --dry-run or --preflight prints, what was found)"""
    found, room = look(runs, args, clips, silent=False)
    lines = [*_each(found)] if args.dry_run else []
    lines.append(found.counts())
    to_do = found.having("to do")
    facts = {"disk": room, "weights": weights_line(missing_weights(to_do)),
             "time": time_of(found, clips, args.jobs) if args.preflight else ""}
    lines += [f"{name + ':':<9}{fact}" for name, fact in facts.items() if fact]
    if args.launcher == "slurm":
        lines += array_lines(runs, args, found.refused)
    if args.preflight and found.refused:
        lines += [f"{len(found.refused)} of {len(runs)} runs cannot be made:", *found.listed()]
    return "\n".join(lines), found


def _each(found: Preflight) -> Iterator[str]:
    """A line for each run."""
    for run in found.runs:
        looked = found.looked[run.folder]
        yield f"{_word(looked):<6} {run.folder}"


def _word(looked: Looked) -> str:
    reasons = "; ".join(looked.reasons)
    if looked.word == "no number":
        return f"no number (an accuracy among one class, '{reasons}', says nothing)"
    return f"refused ({reasons})" if looked.word == "refused" else looked.word


def require_none_refused(found: Preflight) -> None:
    """Raise InputError where a run of a dry run would be refused."""
    if found.refused:
        raise InputError(f"{len(found.refused)} of {len(found.runs)} runs would be refused, see above")
