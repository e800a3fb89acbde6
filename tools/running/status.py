"""How far the runs of a plan are: what their folders, their locks and the Slurm queue say. Nothing waits or is run."""
import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dassl.engine.run_folder import Listings
from dassl.utils import InputError, last_line, lives_here, lock_holder, open_regular, printable, read_json
from dassl.utils.optional import module_of_extra
from dassl.utils.stored import require
from protocols import Run
from tools.running.before_run import finished

SWEEP = "sweep"  # below the output folder: the record of what was submitted, and submitit's files
WORDS = ("done", "running", "queued", "failed", "stopped", "refused", "to do")
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
ACTIVE = {"RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}


@dataclass(frozen=True)
class State:
    """How far a run is.

    Attributes:
        word: one of WORDS. job: the Slurm job that has the run, or "". detail: for people.
    """

    run: Run
    word: str
    job: str = ""
    detail: str = ""

    @property
    def in_hand(self) -> bool:
        """Whether some job or process has the run, so that nobody else may start it."""
        return self.word in ("running", "queued")

    def __str__(self) -> str:
        told = f": {self.detail}" if self.detail else ""
        return f"{self.word:<8} {self.run.folder}{f' (job {self.job})' if self.job else ''}{told}"


# ---- what was submitted ----
def sweep_folder(output: str) -> str:
    """Where the record of what was submitted is kept."""
    return os.path.join(output, SWEEP)


def record_file(output: str) -> str:
    return os.path.join(sweep_folder(output), "jobs.json")


def jobs_folder(output: str) -> str:
    """Where submitit keeps what it submits and what comes back, and Slurm what the tasks print."""
    return os.path.join(sweep_folder(output), "jobs")


def read_record(output: str) -> dict[str, str]:
    """{run folder below the output folder: Slurm job that it was last given to}; {} where nothing was submitted.

    Raises:
        InputError: the record is damaged.
    """
    path = record_file(output)
    if not os.path.exists(path):
        return {}
    record = read_json(path)
    require("jobs", record, path, "it is not a record of submitted jobs; move it away (squeue then tells what is "
                                  "queued)")
    return record


# ---- the queue ----
class Queue:
    """The states of this user's Slurm jobs as of now.

    Raises:
        InputError: squeue fails; what is queued is then not known.
    """

    def __init__(self) -> None:
        command = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%r"]
        try:
            listed = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True,
                                    timeout=60).stdout
        except FileNotFoundError:
            raise InputError("no squeue on PATH; ask on a machine that can reach the Slurm cluster") from None
        except subprocess.TimeoutExpired:
            raise InputError("squeue does not answer within 60 s; try again later") from None
        except subprocess.CalledProcessError as error:
            raise InputError(f"squeue fails: {last_line(error.stderr)}") from None
        self._jobs: dict[str, tuple[str, str]] = {}
        for line in listed.splitlines():
            job, state, reason = (*line.split("|", 2), "", "")[:3]
            self._jobs[job.strip()] = state.strip(), reason.strip()

    def state(self, job: str) -> tuple[str, str]:
        """(state, reason) in Slurm's words; ("", "") for a job that is no longer in the queue."""
        return self._jobs.get(job, ("", ""))


def ended_as(job: str) -> str:
    """The state in which a job has left the queue, from Slurm's accounting; "" where there is none."""
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=State", f"--jobs={job}"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True,
                              timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return last_line(told).partition(" ")[0]  # "CANCELLED by 1000"


def last_line_of(path: Any) -> str:
    """The last line of a log, "" without one. Folders may be anybody's: what a terminal would obey is escaped."""
    with contextlib.suppress(OSError), open_regular(path) as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 10000))
        return printable(last_line(_without_srun(file.read().decode("utf-8", "replace"))))
    return ""


def _without_srun(text: str) -> str:
    """A task's output without the lines below it in which srun says that the task has failed."""
    return re.sub(r"^(srun|slurmstepd): .*$", "", text, flags=re.MULTILINE)


# ---- states ----
def states(runs: Sequence[Run], output: str) -> list[State]:
    """A State for each run of a plan.

    A submitted run is taken for queued where there is no squeue to ask.

    Raises:
        InputError: the record is damaged, or squeue is there and fails.
    """
    record = read_record(output)
    holders = {run.folder: lock_holder(run.folder) for run in runs}
    submitted = record or any("job" in holder for holder in holders.values())
    queue = Queue() if submitted and shutil.which("squeue") else None
    found: list[State] = []
    busy: set[str] = set()
    seen = Listings()
    for run in runs:
        state = _state(run, record.get(run.place.folder, ""), holders[run.folder], queue, output, seen)
        if state.word == "running" and state.job:
            if state.job in busy:  # a task makes its runs one after another
                state = State(run, "queued", state.job, "its task makes another run first")
            busy.add(state.job)
        found.append(state)
    return found


def _state(run: Run, job: str, holder: dict[str, Any], queue: Queue | None, output: str, seen: Listings) -> State:
    """The State of a run. job: that it was last given to, or ""; holder: what its lock says, {} without one."""
    try:
        if finished(run, seen) is not None:
            return State(run, "done")
    except InputError as error:
        return State(run, "refused", detail=str(error))
    log = last_line_of(os.path.join(run.folder, "log.txt"))
    if lives_here(holder) and (not job or holder.get("job") != job):
        return State(run, "running", holder.get("job", ""), log)
    if jobs := [each for each in (job, holder.get("job", "")) if each]:
        return _submitted(run, jobs, queue, log, output)
    if holder and not lives_here(holder):
        log = f"its lock names process {holder['pid']} on {holder.get('host')}; last log line: {log}"
    return State(run, "stopped", detail=log) if log else State(run, "to do")


def _submitted(run: Run, jobs: Sequence[str], queue: Queue | None, log: str, output: str) -> State:
    """The State of a run that is not done and was given to Slurm jobs, the last one first. log: its last log line."""
    if queue is None:
        return State(run, "queued", jobs[0], "there is no squeue here to ask whether it runs")
    for job in jobs:
        word, reason = queue.state(job)
        if word in WAITING:
            return State(run, "queued", job, reason)
        if word in ACTIVE:
            return State(run, "running", job, log)
    return _ended(run, jobs[0], queue.state(jobs[0])[0], log, output)


def _ended(run: Run, job: str, word: str, log: str, output: str) -> State:
    """The State of a run that is not done and whose job is over."""
    submitit: Any = module_of_extra("submitit", "slurm", "the state of a task of Slurm")
    paths = submitit.core.utils.JobPaths(jobs_folder(output), job)
    word = word or ended_as(job)
    error = _error_in(reason_file(paths))
    if error is None and word in ("", "COMPLETED") and not log:
        return State(run, "to do")  # its folder was removed since
    said = [word, error or (f"last log line: {log}" if log else _own_words(last_line_of(paths.stderr)))]
    return State(run, "failed", job, "; ".join(part for part in said if part))


def reason_file(paths: Any) -> str:
    """Where a task keeps why it has ended. paths: submitit's JobPaths."""
    return os.path.join(paths.folder, f"{paths.job_id}_reason.json")


def _error_in(path: str) -> str | None:
    """The line that a task has kept, None without one."""
    with contextlib.suppress(OSError, ValueError, RecursionError), open_regular(path) as file:
        found = json.loads(file.read(10000))
        if isinstance(found, dict) and isinstance(found.get("error"), str):
            return printable(last_line(found["error"], most=1000))
    return None


def _own_words(line: str) -> str:
    """The last line of a traceback without our own error's path."""
    return line.replace("dassl.utils.errors.InputError: ", "")


def describe(found: Sequence[State]) -> str:
    """One line per run, then how many are in which state."""
    counts = {word: sum(state.word == word for state in found) for word in WORDS}
    told = ", ".join(f"{number} {word}" for word, number in counts.items() if number)
    return "\n".join([*map(str, found), f"{len(found)} runs: {told}"])
