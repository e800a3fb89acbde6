"""Making the runs of a plan: what is done already, one after another in this process, or several at a time."""
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import train
from dassl.utils import InputError, broadcast, rank, sigterm_raises, world_size
from protocols import Run, protocol_named
from runs.command_line import mendable
from tools.running.before_run import only_class, taken_over, wait_for_ending
from tools.running.console import Console
from tools.running.making_order import in_making_order
from tools.running.side_by_side import make_side_by_side


@dataclass
class Outcome:
    """What has become of a plan's runs.

    Attributes:
        runs: the plan.
        results: {run folder: results} of those that are finished.
        failed: {run folder: reason}.
        one_class: {run folder: name} of those that were not made, because an accuracy among one class says nothing.
        console: is told of each.
    """

    runs: list[Run]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    one_class: dict[str, str] = field(default_factory=dict)
    console: Console = field(default_factory=Console)

    @property
    def cells(self) -> dict[Any, dict[str, Any]]:
        """{Place: results}, what tables are made of."""
        return {run.place: self.results[run.folder] for run in self.runs if run.folder in self.results}

    @property
    def remaining(self) -> list[Run]:
        """The runs that are still to be made."""
        over = {*self.results, *self.failed, *self.one_class}
        return [run for run in self.runs if run.folder not in over]

    def ready(self, run: Run) -> bool:
        """Whether this run has not failed, the run whose prompts it needs is finished, and the one whose numbers it
        has, if that is to be made here, is no longer to be made."""
        if run.folder in self.failed or run.needs and run.needs not in self.results:
            return False
        if not run.same:
            return True
        never = {*self.failed, *self.one_class}
        return all(left.folder != run.same or left.needs in never for left in self.remaining)

    def known(self, run: Run, seen: dict[str, Any] | None = None) -> tuple[dict[str, Any], str] | None:
        """What `taken_over` says of a run. What is printed of its data meanwhile goes where the run's own lines go."""
        with self.console.listener(run).heard():
            return taken_over(run, self.results, seen)

    def made(self, run: Run, results: dict[str, Any]) -> None:
        """Note the results of a run that was made now."""
        self.results[run.folder] = results
        self.console.made(run, results)

    def take_over(self, run: Run, results: dict[str, Any], same: str = "") -> None:
        """Note the results of a run that need not be made: it is finished, or has the numbers of the run in `same`."""
        self.results[run.folder] = results
        self.console.taken_over(run, results, same)

    def fail(self, run: Run, reason: str) -> None:
        """Note why a run was not made, and say so."""
        if name := only_class(run):
            self.one_class[run.folder] = name
            self.console.left_out(run, name)
            return
        self.failed[run.folder] = reason
        self.console.failed(run, reason)

    def describe(self) -> str:
        """Lines: how many runs are done, which failed and why, which remain."""
        lines = [f"{len(self.results)} of {len(self.runs)} runs are done"]
        lines += [f"  failed: {folder}: {reason}" for folder, reason in self.failed.items()]
        lines += [f"  to do:  {run.folder}" for run in self.remaining]
        return "\n".join(lines)

    def require_all(self) -> None:
        """Raise InputError unless every run was made that can give a number."""
        if self.one_class and not self.results:
            names = ", ".join(dict.fromkeys(self.one_class.values()))
            raise InputError(f"no run was made: {protocol_named(self.runs[0].place.protocol).one_class(names)}")
        if self.failed:
            reasons: dict[str, list[str]] = {}
            for folder, reason in self.failed.items():
                reasons.setdefault(reason, []).append(folder)
            told = "; ".join(f"{reason} (in {folders[0]}" + (f" and {len(folders) - 1} more)" if folders[1:] else ")")
                             for reason, folders in reasons.items())
            raise InputError(f"{len(self.failed)} of {len(self.runs)} runs failed"
                             f"{f', {len(self.remaining)} depend on them' if self.remaining else ''}: {told}")


def execute(runs: Sequence[Run], clips: dict[str, Any], jobs: int = 1, console: Console | None = None,
            refused: Mapping[str, str] | None = None) -> Outcome:
    """Make the runs; those that are finished are taken over.

    A run that fails for something the user can mend ends alone: the others are made. What is done and what remains is
    printed where the whole is interrupted.

    Args:
        runs: a plan, a list of Run.
        clips: {backbone: loaded CLIP} that the runs of this process share.
        jobs: how many processes; with GPUs each has one of its own (they take turns), else the CPU threads are shared.
        console: what is shown meanwhile; default: what the runs print.
        refused: {run folder: why} of runs that are known to fail; they are not begun.
    Raises:
        InputError: `jobs` does not fit torchrun or this system, or a run's config is wrong; nothing is run.
    """
    if jobs > 1 and world_size() > 1:
        raise InputError(f"--jobs {jobs} makes several runs at a time, torchrun one run in several processes; choose "
                         "one of them")
    if jobs > 1 and os.name != "posix":
        raise InputError(f"--jobs {jobs}: several runs at a time are made on Linux and macOS only; leave it out")
    for run in runs:
        run.check()
    outcome = Outcome(list(runs), failed=dict(refused or {}), console=console or Console())
    try:
        with sigterm_raises(), outcome.console:
            if jobs > 1:
                make_side_by_side(outcome, jobs)
            else:
                _one_by_one(outcome, clips)
    except BaseException:
        if rank() == 0:
            print(f"\n{outcome.describe()}\nThe same command goes on from here.", file=sys.stderr)
        raise
    return outcome


def _one_by_one(outcome: Outcome, clips: dict[str, Any]) -> None:
    """Make the runs in this process."""
    seen: dict[str, Any] = {}
    for run in in_making_order(outcome.runs):
        if not outcome.ready(run):
            continue
        try:
            known = broadcast(functools.partial(_known, run, outcome, seen))
            if known:
                outcome.take_over(run, *known)
            else:
                _make(run, outcome, clips, seen)
        except Exception as error:
            reason = mendable(error)
            if reason is None or world_size() > 1:  # then the other processes may not know of it
                raise
            outcome.fail(run, reason)


def _make(run: Run, outcome: Outcome, clips: dict[str, Any], seen: dict[str, Any]) -> None:
    """Make a run, unless it is finished."""
    listener = outcome.console.listener(run)
    outcome.console.begins(run)
    results = train.main(run.spec, clips, seen, run.configs, listener)
    (outcome.made if listener.made else outcome.take_over)(run, results)


def _known(run: Run, outcome: Outcome, seen: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
    """What `taken_over` says of a run; its folder is no longer in use then."""
    wait_for_ending(run.folder)
    return outcome.known(run, seen)
