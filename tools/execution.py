"""Making the runs of a plan: what is done already, one after another in this process, or several at a time."""
import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from multiprocessing import connection

import torch

import train
from dassl.data.datasets import build_dataset
from dassl.engine.run_folder import Sources, require_goes_on
from dassl.utils import (
    InputError,
    broadcast,
    lives_here,
    lock_holder,
    orphaned,
    rank,
    sigterm_raises,
    world_size,
)
from prompting.backbone import weights_digest
from protocols import protocol_named
from tools.same_numbers import filled

WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")
PATIENCE = 10  # seconds that a run folder is waited for whose holder is about to end


def finished(run, seen=None):
    """The results of a run that is finished, else None.

    Args:
        seen: {}, filled and shared between the runs of a plan: what their datasets list.
    Raises:
        InputError: its folder holds another run, finished or interrupted, or one of other data or weights.
    """
    cfg = train.build_config(run.spec)
    results = train.finished(cfg, train.what_is_evaluated(run.spec), seen)
    if results is None and not run.spec.eval_only:
        require_goes_on(cfg, Sources(cfg, weights_digest, seen))
    return results


def taken_over(run, outcome, seen=None):
    """The results of a run that need not be made: it is finished, or has the numbers of one that is; else None.

    Raises InputError where its folder holds another run."""
    if not run.same or run.same not in outcome.results:
        return None
    results = finished(run, seen)
    if results is not None:
        print(f"Finished before: {run.folder}")
        return results
    return filled(run, outcome.results[run.same])


def wait_for_ending(folder):
    """Wait while a process holds the lock of a run folder whose parent is gone: what is left of a protocol that was
    killed ends as soon as it notices. Whoever lives on is told of by the lock itself."""
    until, told = time.monotonic() + PATIENCE, False
    while lives_here(holder := lock_holder(folder)) and orphaned(holder["pid"]) and time.monotonic() < until:
        if holder["pid"] == os.getpid():  # of a former process with our number, as in a container that starts again
            return
        if not told:
            print(f"{folder} is in use by process {holder['pid']}, whose parent is gone; waiting up to {PATIENCE} s "
                  "for its end", flush=True)
        told = True
        time.sleep(0.1)


def only_class(run):
    """The name of the class of a run that is tested on that one only, else ""."""
    protocol = protocol_named(run.place.protocol)
    if not protocol.picks_classes:
        return ""
    with contextlib.suppress(InputError), contextlib.redirect_stdout(sys.stderr):
        cfg = run.check().clone()
        cfg.defrost()
        cfg.DATASET.SUBSAMPLE_CLASSES = "all"
        chosen = protocol.tested_classes(run.place.part, build_dataset(cfg).classnames)
        return chosen[0] if len(chosen) == 1 else ""
    return ""


@dataclass
class Outcome:
    """What has become of a plan's runs: results {folder: results}, failed {folder: reason}, one_class {folder: name}:
    runs that were not made because an accuracy among their one class says nothing."""

    runs: list
    results: dict = field(default_factory=dict)
    failed: dict = field(default_factory=dict)
    one_class: dict = field(default_factory=dict)

    @property
    def cells(self):
        """{Place: results}, what tables are made of."""
        return {run.place: self.results[run.folder] for run in self.runs if run.folder in self.results}

    @property
    def remaining(self):
        over = {*self.results, *self.failed, *self.one_class}
        return [run for run in self.runs if run.folder not in over]

    def ready(self, run):
        """Whether the run whose prompts this one needs is finished, and the one whose numbers it has, if that is to be
        made here, is no longer to be made."""
        if run.needs and run.needs not in self.results:
            return False
        if not run.same:
            return True
        never = {*self.failed, *self.one_class}
        return all(left.folder != run.same or left.needs in never for left in self.remaining)

    def fail(self, run, reason):
        if name := only_class(run):
            self.one_class[run.folder] = name
            return
        self.failed[run.folder] = reason
        print(f"failed: {run.folder}: {reason}", file=sys.stderr)

    def describe(self):
        """Lines: how many runs are done, which failed and why, which remain."""
        lines = [f"{len(self.results)} of {len(self.runs)} runs are done"]
        lines += [f"  failed: {folder}: {reason}" for folder, reason in self.failed.items()]
        lines += [f"  to do:  {run.folder}" for run in self.remaining]
        return "\n".join(lines)

    def require_all(self):
        """Raise InputError unless every run was made that can give a number."""
        if self.one_class and not self.results:
            raise InputError("no run was made: each half of the classes has one class "
                             f"({', '.join(dict.fromkeys(self.one_class.values()))}), and an accuracy among one class "
                             "says nothing; base2new needs at least four classes for both halves")
        if self.failed:
            reasons = {}
            for folder, reason in self.failed.items():
                reasons.setdefault(reason, []).append(folder)
            told = "; ".join(f"{reason} (in {folders[0]}" + (f" and {len(folders) - 1} more)" if folders[1:] else ")")
                             for reason, folders in reasons.items())
            raise InputError(f"{len(self.failed)} of {len(self.runs)} runs failed"
                             f"{f', {len(self.remaining)} depend on them' if self.remaining else ''}: {told}")


def execute(runs, clips, jobs=1):
    """Make the runs; those that are finished are taken over.

    A run that fails for something the user can mend ends alone: the others are made. What is done and what remains is
    printed where the whole is interrupted.

    Args:
        runs: a plan, a list of Run.
        clips: {backbone: loaded CLIP} that the runs of this process share.
        jobs: how many processes; with GPUs each has one of its own (they take turns), else the CPU threads are shared.
    Returns:
        Outcome.
    """
    if jobs > 1 and world_size() > 1:
        raise InputError(f"--jobs {jobs} makes several runs at a time, torchrun one run in several processes; choose "
                         "one of them")
    if jobs > 1 and os.name != "posix":
        raise InputError(f"--jobs {jobs}: several runs at a time are made on Linux and macOS only; leave it out")
    for run in runs:
        run.check()
    outcome = Outcome(list(runs))
    try:
        with sigterm_raises():
            if jobs > 1:
                _side_by_side(outcome, jobs)
            else:
                _one_by_one(outcome, clips)
    except BaseException:
        if rank() == 0:
            print(f"\n{outcome.describe()}\nThe same command goes on from here.", file=sys.stderr)
        raise
    return outcome


def _one_by_one(outcome, clips):
    seen = {}
    for run in outcome.runs:
        if outcome.ready(run):
            try:
                results = broadcast(lambda run=run: wait_for_ending(run.folder) or taken_over(run, outcome, seen))
                outcome.results[run.folder] = results or train.main(run.spec, clips=clips, seen=seen)
            except Exception as error:
                reason = train.mendable(error)
                if reason is None or world_size() > 1:  # then the other processes may not know of it
                    raise
                outcome.fail(run, reason)


# ---- several processes ----
class Worker:
    """A process that makes runs, one at a time (tools/worker.py). It ends with this one, however this one ends.

    It is started as a file: `python -c`, as multiprocessing starts processes, and `python -m` look for modules in the
    working folder first, where anything may lie.

    Args:
        device: number of its GPU, or None.
        threads: CPU threads it may use.
    """

    def __init__(self, device, threads):
        self.device, self.threads, self.run = device, threads, None
        self.pipe, theirs = multiprocessing.Pipe()
        with _environment({"CUDA_VISIBLE_DEVICES": device, "OMP_NUM_THREADS": str(threads)}):
            self.process = subprocess.Popen([sys.executable, WORKER, str(os.getpid()), str(theirs.fileno())],
                                            stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        theirs.close()
        self._send({"path": sys.path, "threads": threads, "start_method": multiprocessing.get_start_method()})

    def give(self, run):
        self.run = run
        self._send(run.spec)

    def _send(self, what):
        with contextlib.suppress(OSError):  # it has ended, which `take` tells
            self.pipe.send(what)

    def take(self):
        """(kind, content) of what the process answers: results, failed or broken."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            code = self._wait()
            return "failed", (f"its process was ended by signal {-code}" if code < 0 else
                              f"its process ended with status {code}") + "; see its log.txt"

    def ended(self):
        return self.process.poll() is not None

    def ask_to_end(self):
        """An idle process ends with its pipe, and cleans up; one that makes a run stores where it is."""
        if self.run is None:
            self.pipe.close()
        else:
            self.process.terminate()

    def end(self):
        self.pipe.close()
        self._wait()

    def _wait(self):
        """Its exit status; it is given 30 seconds to end."""
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextlib.contextmanager
def _environment(variables):
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


def _side_by_side(outcome, jobs):
    devices = _devices()
    threads = max(1, torch.get_num_threads() // jobs)
    left = list(outcome.runs)
    workers = [Worker(devices[i % len(devices)] if devices else None, threads)
               for i in range(min(jobs, len(left)))]
    try:
        while left or any(worker.run for worker in workers):
            for worker in workers:
                if worker.run is None:
                    run = _next_to_make(left, outcome)
                    if run is not None:
                        left.remove(run)
                        wait_for_ending(run.folder)
                        worker.give(run)
            busy = {worker.pipe: worker for worker in workers if worker.run}
            if not busy:  # all that is left needs a run that failed
                break
            for pipe in connection.wait(list(busy)):
                worker = busy[pipe]
                run, (kind, content) = worker.run, worker.take()
                worker.run = None
                if kind == "broken":
                    raise RuntimeError(f"{run.folder}:\n{content}")
                if kind == "failed":
                    outcome.fail(run, content)
                else:
                    outcome.results[run.folder] = content
                    print(f"[{len(outcome.results)}/{len(outcome.runs)}] {run.folder}", flush=True)
                if worker.ended():
                    workers[workers.index(worker)] = Worker(worker.device, threads)
    finally:
        for worker in workers:  # all at once: each may take a while to store where it is
            worker.ask_to_end()
        for worker in workers:
            worker.end()


def _next_to_make(left, outcome):
    """The next run of `left` that is to be made in a process, None if there is none now; those that are taken over on
    the way leave `left`."""
    while (run := next((run for run in left if outcome.ready(run)), None)) is not None:
        try:
            results = taken_over(run, outcome)
        except InputError as error:
            results = None
            outcome.fail(run, str(error))
        if results is None and run.folder not in outcome.failed:
            return run
        left.remove(run)
        if results is not None:
            outcome.results[run.folder] = results
    return None


def _devices():
    """What CUDA_VISIBLE_DEVICES may be for one GPU each: the visible GPUs; none on a CPU."""
    if not torch.cuda.is_available():
        return []
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible or [str(number) for number in range(torch.cuda.device_count())]
