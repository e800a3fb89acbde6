"""How long the rest of a plan takes: from the runs of the same kind that this command has made."""
import heapq
import math
import statistics
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import NamedTuple

from protocols import Run

Kind = tuple[object, ...]


class Left(NamedTuple):
    """seconds: that the rest takes. least: some of it is of a kind that was never made, and is not in them. rough: some
    of it was made on other data only, and is taken to last as long."""

    seconds: float
    least: bool = False
    rough: bool = False

    def __str__(self) -> str:
        word = "at least " if self.least else "about " if self.rough else ""
        return f"{word}{duration(self.seconds)} left"


def duration(seconds: float) -> str:
    """A time in words: 8 s, 3 min, 2 h 05 min, 3 d 4 h."""
    seconds = math.ceil(seconds)
    if seconds < 120:
        return f"{seconds} s"
    if (minutes := round(seconds / 60)) < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"


def kinds(run: Run) -> list[Kind]:
    """What runs have in common that take the same time: all but the seed; all but the part, too. Then what those have
    that take roughly the same time: the method; of evaluations, which are short, that they are one."""
    method = run.place.trainer, run.place.config, run.spec.eval_only
    data = run.place.dataset, run.spec.dataset_config_file, run.place.shots
    short = [("evaluation",)] if run.spec.eval_only else []
    return [(*method, *data, run.place.part), (*method, *data), method, *short]


class Estimate:
    """The time that runs of a plan take.

    jobs: how many are made at a time.
    """

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = jobs
        self._seconds: dict[Kind, list[float]] = {}

    def made(self, run: Run, seconds: float) -> None:
        """A run was made in so many seconds."""
        for kind in kinds(run):
            self._seconds.setdefault(kind, []).append(seconds)

    def of(self, run: Run, running: Mapping[Kind, float]) -> tuple[float | None, bool]:
        """(seconds of a whole run, or None; whether it is known from other data only).

        running: {kind: seconds} as runs that are being made foresee them."""
        if run.same:  # filled in from another run
            return 0.0, False
        for rough, kind in enumerate(kinds(run)):
            known = self._seconds.get(kind)
            if known or kind in running:
                return statistics.median(known) if known else running[kind], rough >= 2
        return None, False

    def left(self, waiting: Iterable[Run], running: Mapping[Run, tuple[float, float | None]],
             partly: Container[Run] = ()) -> Left | None:
        """The time that is left for a plan; None where nothing is known.

        Args:
            waiting: runs that are still to be made, in their order.
            running: {run: (seconds since it began, seconds left as it says itself, or None)}.
            partly: those of them that go on from a checkpoint, which say nothing of a whole run.
        """
        foreseen = {kind: since + left for run, (since, left) in running.items() if left is not None
                    and run not in partly for kind in kinds(run)}
        free, least, rough, known = [0.0] * max(0, self.jobs - len(running)), False, False, False
        for run, (since, left) in running.items():
            if left is None:
                whole, other = self.of(run, foreseen)
                left, rough = None if whole is None else max(0.0, whole - since), rough or other
            least, known = least or left is None, known or left is not None
            free.append(left or 0.0)
        heapq.heapify(free)  # when each process is free again
        end, rest = max(free, default=0.0), list(waiting)
        for run in rest:
            seconds, other = self.of(run, foreseen)
            rough, least, known = rough or other, least or seconds is None, known or bool(seconds)
            begins = heapq.heappop(free)
            end = max(end, begins + (seconds or 0.0))
            heapq.heappush(free, begins + (seconds or 0.0))
        if not known or end < 1 and not rest:
            return None
        return Left(max(end, 1.0), least, rough)  # the least that is told


def waiting(runs: Iterable[Run], over: set[str], never: set[str]) -> Iterator[Run]:
    """Those of a plan's runs that are still to be made. over: folders of runs that are not; never: of those that give
    no prompts."""
    never = set(never)
    for run in runs:
        if run.needs in never:
            never.add(run.folder)
        elif run.folder not in over:
            yield run
