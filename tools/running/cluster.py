"""A protocol's runs as one array job on a Slurm cluster, through submitit.

A task of the array makes one run, and after it those that evaluate its prompts or have its numbers: a chain, so that no
job has to wait for another. docs/SCALING.md says how it is used.
"""
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import train
from dassl.utils import (
    LOCK_NAME,
    FolderLock,
    InputError,
    Terminated,
    last_line,
    lock_holder,
    require_own_folder,
    sigterm_raises,
    slurm_job,
    write_json,
)
from dassl.utils.optional import module_of_extra
from protocols import Run
from runs.command_line import mendable
from tools.running.execution import execute
from tools.running.making_order import in_making_order
from tools.running.slurm_settings import require_one_line, slurm_parameters
from tools.running.status import (
    State,
    jobs_folder,
    read_record,
    reason_file,
    record_file,
    states,
    sweep_folder,
)

MOST_AT_ONCE = 256  # tasks, by submitit's default
RESTARTS = 20  # times that a task may reach its time limit and go on
# `-m`, as submitit starts its tasks, looks for modules in the working folder first; PYTHONSAFEPATH is Python 3.11's.
AS_MODULE = ("import sys; sys.path = [path for path in sys.path if path]; del sys.argv[0:3]; import runpy; "
             "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)")  # -c -u -m MODULE WORDS


# ---- a task ----
@dataclass(frozen=True)
class Task:
    """What a task of the array does: a run, then those that need it. submitit stores it and calls it on the node.

    SIGTERM (preemption, scontrol requeue, scancel) and submitit's signal (shortly before the time limit) stop the
    training at the batch, with a checkpoint. The task then goes back into the queue, by Slurm's own hand or through
    submitit, unless it was cancelled.
    """

    runs: tuple[Run, ...]

    def __call__(self) -> None:
        import submitit

        ending = getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}")
        # submitit's: count the time limits, store the task, scontrol requeue, exit
        requeue: Any = signal.getsignal(ending)
        came: list[int] = []

        def stop(number: int, frame: Any) -> None:
            raise Terminated

        def end(number: int, frame: Any) -> None:
            came.append(number)
            signal.raise_signal(signal.SIGTERM)  # whoever handles that now: `stop`, or the training at its next batch

        signal.signal(signal.SIGTERM, stop)  # submitit's passes over it
        signal.signal(ending, end)
        try:
            train.discover(self.runs[0].spec.plugins)
            execute(self.runs, clips={}).require_all()
        except Terminated:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it often comes more than once
            if came or _still_wanted():
                requeue(ending, None)
            raise
        except Exception as error:
            _note_reason(mendable(error) or f"{type(error).__name__}: {error}")
            raise

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue: the same task. The runs' own checkpoints say where it goes on."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _note_reason(line: str) -> None:
    """Keep why this task ends beside submitit's files. What submitit itself keeps of it is a pickle, and --status opens
    none: the output folder may be anybody's."""
    import submitit

    with contextlib.suppress(RuntimeError, OSError, InputError):  # RuntimeError: this is no task of submitit's
        write_json({"error": line}, reason_file(submitit.JobEnvironment().paths))


def _still_wanted() -> bool:
    """Whether Slurm takes this job for a running one although it sends SIGTERM, as it does within the grace time of a
    preemption. scancel and scontrol requeue have marked it before they signal it."""
    job = slurm_job().get("job")  # SLURM_JOB_ID of an array's last task is that of the whole array
    command = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
    try:
        return bool(job) and subprocess.run(command, capture_output=True, text=True, errors="replace", check=True,
                                            timeout=20).stdout.strip() == "RUNNING"
    except (OSError, subprocess.SubprocessError) as error:
        print(f"Not requeued, squeue does not tell the state of this job: {error}", file=sys.stderr)
        return False


def chains(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups, one for each task: [[run, those that need it or have its numbers ...], ...]."""
    groups: dict[str, list[Run]] = {}
    first: dict[str, str] = {}
    for run in runs:
        first[run.folder] = first.get(run.needs) or first.get(run.same) or run.folder
        groups.setdefault(first[run.folder], []).append(run)
    return list(groups.values())


# ---- submission ----
def require_plain_folder(folder: str) -> None:
    """Raise InputError for a folder of the jobs' files that sbatch would take for another: it reads % as a pattern and
    a backslash as a sign to read none."""
    path = os.path.abspath(folder)
    require_one_line(path, "--launcher slurm: the output folder")
    if found := re.search(r"[%\\]", path):
        raise InputError(f"--launcher slurm: the output folder {path} has a {found[0]} in its path, which sbatch takes "
                         "for a pattern; choose another --output (for the scripts OUTPUT)")


def require_slurm() -> None:
    """Raise InputError where there is no sbatch, or no submitit."""
    module_of_extra("submitit", "slurm", "--launcher slurm")
    if not shutil.which("sbatch"):
        raise InputError("--launcher slurm: no sbatch on PATH; run it on a login node of the cluster, or take "
                         "--launcher local --jobs N")


def submit(runs: Sequence[Run], output: str, parameters: dict[str, Any],
           refused: Mapping[str, str] | None = None) -> tuple[dict[str, int], list[State]]:
    """Submit those runs of a plan that are neither done nor in the hands of a job or a process.

    Args:
        runs: a list of Run. output: the folder of all run folders. parameters: from `slurm_parameters`.
        refused: {run folder: why} of runs that are known to fail, which are not submitted.
    Returns:
        ({job: number of its tasks}, the States before).
    Raises:
        InputError: another process is submitting, squeue or sbatch fails; nothing is submitted then.
    """
    require_slurm()
    require_plain_folder(jobs_folder(output))
    for run in runs:
        run.check()
    require_own_folder(jobs_folder(output), below=output)
    with sigterm_raises(), FolderLock(sweep_folder(output)):
        found = _states_by_folder(runs, output, refused or {})
        tasks = [Task(tuple(chain)) for chain in _open_chains(in_making_order(runs), found)]
        if not tasks:
            return {}, list(found.values())
        require_own_folder(jobs_folder(output))
        record = read_record(output)
        for task in tasks:
            for run in task.runs:
                _remove_lock_of_ended(run, record.get(run.place.folder), found[run.folder])
        jobs = _submit_array(tasks, jobs_folder(output), {"job_name": _name(runs)} | parameters)
        for task, job in zip(tasks, jobs):
            record |= {run.place.folder: job for run in task.runs if found[run.folder].word != "done"}
        write_json(record, record_file(output))
    ids = [job.split("_")[0] for job in jobs]
    return {job: ids.count(job) for job in dict.fromkeys(ids)}, list(found.values())


def _name(runs: Sequence[Run]) -> str:
    """What the queue calls the job."""
    return "-".join(dict.fromkeys(word for run in runs for word in (run.place.protocol, run.place.trainer)))


def _states_by_folder(runs: Sequence[Run], output: str, refused: Mapping[str, str]) -> dict[str, State]:
    """{run folder: State}; what is known to fail, and is in nobody's hands, is "refused"."""
    found = {}
    for state in states(runs, output):
        why = refused.get(state.run.folder)
        found[state.run.folder] = State(state.run, "refused", detail=why) if why and not state.in_hand else state
    return found


def array_lines(runs: Sequence[Run], args: Namespace, refused: Mapping[str, str]) -> list[str]:
    """What `submit` would submit, in lines: how many tasks, and what each asks the cluster for. Nothing is submitted.

    Args:
        args: of the command line, as for `slurm_parameters`. refused: as for `submit`.
    """
    asked = slurm_parameters(args)
    open_chains = list(_open_chains(runs, _states_by_folder(runs, args.output, refused)))
    if not open_chains:
        return ["Slurm:   nothing to submit"]
    most = min(len(open_chains), asked.get("array_parallelism", MOST_AT_ONCE))
    lengths = sorted(map(len, open_chains))
    each = str(lengths[0]) if lengths[0] == lengths[-1] else f"{lengths[0]} to {lengths[-1]}"
    told = {"partition": asked.get("partition", "the cluster's default"),
            "time": f"{asked['time'] // 60}:{asked['time'] % 60:02}", "gpus": asked.get("gpus_per_node", "0"),
            "cpus": asked["cpus_per_task"], "mem": asked.get("mem", "the cluster's default"),
            **{name: asked[name] for name in ("account", "qos") if name in asked}, **asked["additional_parameters"]}
    request = ", ".join(f"{name} {value}".removesuffix(" True") for name, value in told.items())
    here = "" if shutil.which("sbatch") else "; there is no sbatch on PATH here"
    return [f"Slurm:   one array job {_name(runs)} of {len(open_chains)} tasks, {each} runs in each one after another, "
            f"at most {most} tasks at once", f"         each task: {request} (not submitted{here})"]


def _open_chains(runs: Sequence[Run], found: dict[str, State]) -> Iterator[list[Run]]:
    """The chains of which something is to be made and nothing is in hand, without the runs that are refused."""
    for chain in chains(runs):
        words = {found[run.folder].word for run in chain}
        if any(found[run.folder].in_hand for run in chain) or words <= {"done", "refused"}:
            continue
        refused = {run.folder for run in chain if found[run.folder].word == "refused"}
        left = [run for run in chain if run.folder not in refused and run.needs not in refused]
        if left:
            yield left


def _remove_lock_of_ended(run: Run, job: str | None, state: State) -> None:
    """A task that was killed leaves its lock; Slurm says that it is gone, which the next node could not see."""
    if job and state.word == "failed" and lock_holder(run.folder).get("job") == job:
        os.remove(os.path.join(run.folder, LOCK_NAME))


def _submit_array(tasks: Sequence[Task], folder: str, parameters: dict[str, Any]) -> list[str]:
    """Submit tasks as one array; the job of each, as squeue prints it."""
    import submitit

    before = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    python = f"{shlex.quote(sys.executable)} -u -c {shlex.quote(AS_MODULE)}"
    executor = submitit.SlurmExecutor(folder, max_num_timeout=RESTARTS, python=python)
    configuration = os.environ.get("SLURM_CONF")
    with submitit.helpers.clean_env():  # within a job, what that job was given would count for the new one
        if configuration:
            os.environ["SLURM_CONF"] = configuration
        try:
            executor.update_parameters(**parameters)
            return [job.job_id for job in executor.submit_array(tasks)]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            for name in set(os.listdir(folder)) - before:
                os.remove(os.path.join(folder, name))
            raise InputError(f"sbatch refuses the job: {last_line(str(error))}; see --partition, --time, --gpus, "
                             f"--cpus, --mem, --account and --qos ({len(tasks)} tasks)") from None
