"""Making several runs of a plan at a time, each in a process of its own (--jobs)."""
from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

import torch

from dassl.utils import InputError
from protocols import Run
from tools.running.before_run import wait_for_ending
from tools.running.making_order import in_making_order

if TYPE_CHECKING:
    from tools.running.execution import Outcome

WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")
SECONDS_TO_END = 30  # that a worker is given before it is killed


class Worker:
    """A process that makes runs, one at a time (tools/running/worker.py). It ends with this one, however this one ends.

    It is started as a file: `python -c`, as multiprocessing starts processes, and `python -m` look for modules in the
    working folder first, where anything may lie.

    Args:
        device: number of its GPU, or None.
        threads: CPU threads it may use.
    """

    def __init__(self, device: str | None, threads: int) -> None:
        self.device, self.threads = device, threads
        self.run: Run | None = None
        self.pipe, theirs = multiprocessing.Pipe()
        with _environment({"CUDA_VISIBLE_DEVICES": device, "OMP_NUM_THREADS": str(threads)}):
            self.process = subprocess.Popen([sys.executable, WORKER, str(os.getpid()), str(theirs.fileno())],
                                            stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        theirs.close()
        self._send({"path": sys.path, "threads": threads, "start_method": multiprocessing.get_start_method()})

    def give(self, run: Run) -> None:
        """Have it make a run."""
        self.run = run
        self._send(run.spec)

    def _send(self, what: Any) -> None:
        with contextlib.suppress(OSError):  # it has ended, which `take` tells
            self.pipe.send(what)

    def take(self) -> tuple[str, Any]:
        """(kind, content) of what the process says: of its run `reached` (a Point) and `noticed` (a line), then one
        answer: `made` or `before` (results), `failed` or `broken` (why)."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            code = self._wait()
            return "failed", (f"its process was ended by signal {-code}" if code < 0 else
                              f"its process ended with status {code}") + "; see its log.txt"

    def ended(self) -> bool:
        return self.process.poll() is not None

    def ask_to_end(self) -> None:
        """An idle process ends with its pipe, and cleans up; one that makes a run stores where it is."""
        if self.run is None:
            self.pipe.close()
        else:
            self.process.terminate()

    def end(self) -> None:
        """Wait for its end."""
        self.pipe.close()
        self._wait()

    def _wait(self) -> int:
        """Its exit status; a negative one is the signal that ended it."""
        try:
            return self.process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextlib.contextmanager
def _environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Environment variables for a process that starts within; None leaves one as it is."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update({name: value for name, value in variables.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def make_side_by_side(outcome: Outcome, jobs: int) -> None:
    """Make the runs that remain of a plan, `jobs` at a time.

    Raises:
        RuntimeError: a bug in a worker, with its traceback.
    """
    devices, threads = _devices(), max(1, torch.get_num_threads() // jobs)
    left = in_making_order(outcome.runs)
    workers = [Worker(devices[i % len(devices)] if devices else None, threads) for i in range(min(jobs, len(left)))]
    try:
        while left or any(worker.run for worker in workers):
            _hand_out(left, workers, outcome)
            busy = [worker for worker in workers if worker.run]
            if not busy:  # all that is left needs a run that failed
                break
            answered = connection.wait([worker.pipe for worker in busy])
            for worker in (worker for worker in busy if worker.pipe in answered):
                _hear(worker, outcome)
                if worker.run is None and worker.ended():
                    workers[workers.index(worker)] = Worker(worker.device, threads)
    finally:
        for worker in workers:  # all at once: each may take a while to store where it is
            worker.ask_to_end()
        for worker in workers:
            worker.end()


def _hand_out(left: list[Run], workers: list[Worker], outcome: Outcome) -> None:
    """Give a run to each worker that has none, as far as there are runs that can be made now."""
    for worker in workers:
        if worker.run is None:
            run = _next_to_make(left, outcome)
            if run is not None:
                left.remove(run)
                wait_for_ending(run.folder)
                outcome.console.begins(run)
                worker.give(run)


def _hear(worker: Worker, outcome: Outcome) -> None:
    """Note what a worker says of its run, or answers. Raises RuntimeError for a bug in it."""
    run, (kind, content) = worker.run, worker.take()
    assert run is not None
    if kind == "reached":
        outcome.console.reached(run, content)
        return
    if kind == "noticed":
        outcome.console.noticed(run, content)
        return
    worker.run = None
    if kind == "broken":
        raise RuntimeError(f"{run.folder}:\n{content}")
    if kind == "failed":
        outcome.fail(run, content)
    elif kind == "before":
        outcome.take_over(run, content)
    else:
        outcome.made(run, content)


def _next_to_make(left: list[Run], outcome: Outcome) -> Run | None:
    """The next run of `left` that is to be made in a process, None if there is none now; those that are taken over on
    the way leave `left`."""
    while (run := next((run for run in left if outcome.ready(run)), None)) is not None:
        try:
            known = outcome.known(run)
        except InputError as error:
            known = None
            outcome.fail(run, str(error))
        if known is None and run.folder not in outcome.failed:
            return run
        left.remove(run)
        if known is not None:
            outcome.take_over(run, *known)
    return None


def _devices() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may be for one GPU each: the visible GPUs; none on a CPU."""
    if not torch.cuda.is_available():
        return []
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible or [str(number) for number in range(torch.cuda.device_count())]
