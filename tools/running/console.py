"""What a protocol's command shows while its runs are made: a line for each run that is over. In a terminal lines for
those that are being made stand below (tools/running/live.py)."""
from __future__ import annotations

import contextlib
import glob
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from dassl.engine.progress import Point
from dassl.utils import printable
from protocols import Cells, Run, protocol_named
from protocols.parts.cells import accuracy
from runs.listener import Listener, Noticing
from tools.running.time_left import Estimate, Left, duration, waiting


class Console:
    """Is told what becomes of the runs of a plan. This one shows what the runs print, and little else: the log of a
    task of a cluster.

    Used as a context, within which the runs are made. A run that is made `begins` and is then `made` or `failed`;
    others are `taken_over`, `failed` or `left_out`.
    """

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def listener(self, run: Run) -> Listener:
        """Who listens to a run that this process makes."""
        return Noticing(lambda point: None, None)

    def begins(self, run: Run) -> None:
        pass

    def reached(self, run: Run, point: Point) -> None:
        """A run that is being made is at a Point."""

    def noticed(self, run: Run, line: str) -> None:
        """A run has printed a line that the user must see, and that is not shown yet."""

    def made(self, run: Run, results: dict[str, Any]) -> None:
        pass

    def taken_over(self, run: Run, results: dict[str, Any], same: str) -> None:
        """A run need not be made: it is finished, or its numbers are those of the run in the folder `same`."""
        print(f"Same as {same}: {run.folder}" if same else f"Finished before: {run.folder}")

    def failed(self, run: Run, reason: str) -> None:
        print(f"failed: {run.folder}: {reason}", file=sys.stderr)

    def left_out(self, run: Run, name: str) -> None:
        """A run is not made: it would be tested among the one class of this name."""


@dataclass
class Running:
    """A run that is being made: when it began, on time.monotonic's clock, where it is, and whether it goes on from a
    checkpoint."""

    run: Run
    since: float = field(default_factory=lambda: time.monotonic())
    point: Point | None = None
    partly: bool = False

    def seconds(self) -> float:
        return time.monotonic() - self.since


class Labels:
    """What tells the runs of a plan apart, in columns: method, dataset, shots where there are several, seed, part."""

    def __init__(self, runs: Sequence[Run]) -> None:
        methods = {place: name for name, cells in Cells({run.place: {} for run in runs}).methods()
                   for place in cells}
        several = len({run.place.shots for run in runs}) > 1
        words = {}
        for run in runs:
            place = run.place
            shots = [f"{place.shots} shot{'s' if place.shots != 1 else ''}"] if several else []
            words[run.folder] = [methods[place], place.dataset, *shots, f"seed {place.seed}",
                                 protocol_named(place.protocol).part_words(place.part)]
        shown = {folder: [printable(word) for word in found] for folder, found in words.items()}
        widths = [max(map(len, column)) for column in zip(*shown.values())]
        self._columns = {folder: "  ".join(word.ljust(width) for word, width in zip(found, widths) if width)
                         for folder, found in shown.items()}

    def columns(self, run: Run) -> str:
        return self._columns[run.folder]

    def words(self, run: Run) -> str:
        return " ".join(self.columns(run).split())


class Lines(Console):
    """A line for each run that is over, with its accuracy and the time left for all; one for several in a row that need
    not be made; of what the runs print those lines that the user must see, each kind once. All is in their log.txt.

    Args:
        runs: the plan.
        jobs: how many runs are made at a time.
    Attributes:
        running: {run folder: Running}
    """

    def __init__(self, runs: Sequence[Run], jobs: int = 1) -> None:
        self.runs, self.started = list(runs), time.monotonic()
        self.running: dict[str, Running] = {}
        self._labels, self._estimate = Labels(runs), Estimate(jobs)
        self._over: set[str] = set()
        self._never: set[str] = set()  # failed, or left out
        # Which of them are finished is found out one by one; until then the time that is left does not count them.
        self._before = {run.folder for run in runs if os.path.exists(os.path.join(run.folder, "results.json"))}
        self._taken: list[tuple[Run, dict[str, Any], str]] = []  # in a row, not told yet
        self._reasons: dict[str, int] = {}  # of failures -> the number of the run that was the first
        self._noticed: dict[tuple[str, ...], set[str]] = {}  # method, dataset and kind of line -> these lines
        self._context = contextlib.ExitStack()
        self._stdout = sys.stdout

    def __enter__(self) -> Console:
        self._stdout = sys.stdout  # within a run it is the log
        if sys.stderr is not None and sys.stderr.isatty():  # bars of progress would be torn apart by the lines
            self._context.enter_context(contextlib.redirect_stderr(NoTerminal(sys.stderr)))
        return self

    def __exit__(self, *raised: object) -> None:
        self._tell_taken()
        if more := sum(map(len, self._noticed.values())) - len(self._noticed):
            self.show(f"Notes and warnings of these kinds that are not shown: {more}, see the runs' log.txt")
        self._context.close()

    def show(self, line: str, failure: bool = False) -> None:
        """Print a line; one of a failure to stderr."""
        print(line, file=sys.stderr if failure else self._stdout, flush=True)

    # ---- a run ----
    def listener(self, run: Run) -> Listener:
        return Noticing(lambda point: self.reached(run, point), lambda line: self.noticed(run, line))

    def begins(self, run: Run) -> None:
        self.running[run.folder] = Running(run, partly=goes_on(run))

    def reached(self, run: Run, point: Point) -> None:
        if run.folder in self.running:
            self.running[run.folder].point = point

    def noticed(self, run: Run, line: str) -> None:
        place, kind = run.place, re.sub(r"\S*/\S*|[\d.,]+", "#", line)  # of whatever numbers and files
        of_all = line.startswith("Backbone ")  # it is the same in the whole plan
        whose = () if of_all else (place.trainer, place.config, place.dataset)
        lines = self._noticed.setdefault((*whose, kind), set())
        if not lines:
            self._tell_taken()
            self.show(f"{printable(line)} ({self._labels.words(run)})")
        lines.add(line)

    def made(self, run: Run, results: dict[str, Any]) -> None:
        partly = run.folder in self.running and self.running[run.folder].partly
        seconds = self._end(run)
        if not partly:
            self._estimate.made(run, seconds)
        left = self.left() or ("time left not known" if self.over < len(self.runs) else "")
        self.show(f"{self._number()}  {self._labels.columns(run)}  {percent(results)}  {duration(seconds):>6}"
                  f"{f'; {left}' if left else ''}")

    def taken_over(self, run: Run, results: dict[str, Any], same: str) -> None:
        self.running.pop(run.folder, None)
        if self._taken and bool(self._taken[-1][2]) != bool(same):
            self._tell_taken()
        self._over.add(run.folder)
        self._taken.append((run, results, same))

    def failed(self, run: Run, reason: str) -> None:
        self._end(run)
        lost = self._lose(run)
        first = self._reasons.setdefault(reason, len(self._over) - lost)
        told = printable(reason) if first == len(self._over) - lost else f"as run {first} did"
        needed = f"; {needing(lost)} not made" if lost else ""
        self.show(f"{self._number(lost)}  {self._labels.columns(run)}  failed: {told} ({run.folder}){needed}", True)

    def left_out(self, run: Run, name: str) -> None:
        self._end(run)
        lost = self._lose(run)
        needed = f"; {needing(lost)} not made either" if lost else ""
        self.show(f"{self._number(lost)}  {self._labels.columns(run)}  not made: its test images have one class, "
                  f"'{printable(name)}'{needed}")

    # ---- the whole ----
    @property
    def over(self) -> int:
        """How many runs are over."""
        return len(self._over)

    def left(self) -> Left | None:
        """The time that is left; None where nothing is known or nothing remains."""
        under_way = list(self.running.values())
        not_waiting = self._over | self._before | {each.run.folder for each in under_way}
        rest = list(waiting(self.runs, not_waiting, self._never))
        if not rest and not under_way:
            return None
        return self._estimate.left(rest, {each.run: (each.seconds(), each.point.seconds_left if each.point else None)
                                          for each in under_way}, {each.run for each in under_way if each.partly})

    def _end(self, run: Run) -> float:
        """A run is over; the seconds that it took."""
        self._tell_taken()
        self._over.add(run.folder)
        self._before.discard(run.folder)
        known = self.running.pop(run.folder, None)
        return known.seconds() if known else 0.0

    def _lose(self, run: Run) -> int:
        """A run gives no prompts; how many are over by that."""
        self._never.add(run.folder)
        rest = {each.folder for each in waiting(self.runs, self._over, self._never)}
        lost = {each.folder for each in self.runs} - self._over - rest
        self._over |= lost
        self._never |= lost
        return len(lost)

    def _number(self, more: int = 0) -> str:
        """"run 7 of 24" of the run that was the last to be over, `more` by that."""
        total = len(self.runs)
        return f"run {self.over - more:>{len(str(total))}} of {total}"

    def _tell_taken(self) -> None:
        """The line of runs in a row that were taken over."""
        taken, self._taken = self._taken, []
        if not taken:
            return
        [run, results, same], last, total = taken[-1], self.over, len(self.runs)
        why = "has the numbers of another run" if same else "done before"
        if len(taken) == 1:
            self.show(f"{self._number()}  {self._labels.columns(run)}  {percent(results)}  {why}")
            return
        why = "have the numbers of another run" if same else "done before"
        self.show(f"runs {last - len(taken) + 1} to {last} of {total}  {why}")


class Verbose(Lines):
    """The lines, and everything that the runs of this process print."""

    def __enter__(self) -> Console:
        return self

    def listener(self, run: Run) -> Listener:
        return Noticing(lambda point: self.reached(run, point), None)


def goes_on(run: Run) -> bool:
    """Whether a run was trained for a while before; it takes less time than others then."""
    return not run.spec.eval_only and bool(glob.glob(os.path.join(glob.escape(run.folder), "*", "model*.pth.tar*")))


class NoTerminal:
    """A stream that says it is no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stream"], name)

    def isatty(self) -> bool:
        return False


def needing(lost: int) -> str:
    """The beginning of a sentence on so many runs that need another one."""
    return "1 run that needs it is" if lost == 1 else f"{lost} runs that need it are"


def percent(results: dict[str, Any]) -> str:
    """The accuracy of a run."""
    found = accuracy(results)
    return f"{'-' if found is None else f'{found:.1f} %':>7}"
