"""A protocol's runs as one array job on a Slurm cluster, through submitit.

A task of the array makes one run, and after it those that evaluate its prompts or have its numbers: a chain, so that no
job has to wait for another. docs/SCALING.md says how it is used.
"""
import contextlib
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass

import yaml

import train
from dassl.config.reading import MOST_BYTES
from dassl.utils import (
    LOCK_NAME,
    FolderLock,
    InputError,
    Terminated,
    last_line,
    lock_holder,
    open_regular,
    printable,
    require_own_folder,
    sigterm_raises,
    slurm_job,
    write_json,
)
from dassl.utils.registry import nearest
from tools.execution import execute
from tools.plans import ROOT
from tools.status import jobs_folder, read_record, reason_file, record_file, states, sweep_folder

OPTION = r"[a-z][a-z_-]*"  # a long option of sbatch
RESTARTS = 20  # times that a task may reach its time limit and go on
# `-m`, as submitit starts its tasks, looks for modules in the working folder first; PYTHONSAFEPATH is Python 3.11's.
AS_MODULE = ("import sys; sys.path = [path for path in sys.path if path]; del sys.argv[0:3]; import runpy; "
             "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)")  # -c -u -m MODULE WORDS


# ---- what is asked of Slurm ----
def minutes(text):
    """Minutes, H:MM, H:MM:SS or D-H:MM, as minutes; seconds count as a started minute. None for other words."""
    found = re.fullmatch(r"(?:([0-9]{1,9})-)?([0-9]{1,9}):([0-9]{2})(?::([0-9]{2}))?", text)
    if found:
        days, hours, mins, seconds = (int(part or 0) for part in found.groups())
        return ((24 * days + hours) * 60 + mins + math.ceil(seconds / 60)) or None
    return positive(text)


def positive(text):
    return int(text) or None if re.fullmatch(r"[0-9]{1,9}", text) else None


def memory(text):
    return text if re.fullmatch(r"\d+(\.\d+)?[KMGT]B?", text, re.IGNORECASE) else None


def gpu_count(text):
    return text if re.fullmatch(r"([\w.-]+:)?\d+", text) else None


# name: (reads a word or gives None, what the word must be, submitit's name, help)
SETTINGS = {
    "partition": (str, "a name", "partition", "partition, or several with commas"),
    "time": (minutes, "minutes or H:MM", "time", "time limit a task, minutes or H:MM (default 4:00); a task that "
                                                 "reaches it stores a checkpoint, is requeued and goes on"),
    "gpus": (gpu_count, "a number or TYPE:NUMBER", "gpus_per_node", "GPUs a task (default 1; 0 for none)"),
    "cpus": (positive, "a number from 1 on", "cpus_per_task", "CPUs a task (default 4)"),
    "mem": (memory, "a number with a unit, such as 16G", "mem", "memory a task, such as 16G"),
    "account": (str, "a name", "account", "account that pays"),
    "qos": (str, "a name", "qos", "quality of service"),
    "array_parallelism": (positive, "a number from 1 on", "array_parallelism", "most tasks at once (default 256)"),
}
DEFAULTS = {"time": "4:00", "gpus": "1", "cpus": "4"}


def add_arguments(parser):
    """The flags of --launcher slurm."""
    group = parser.add_argument_group("with --launcher slurm")
    group.add_argument("--cluster", metavar="FILE",
                       help="YAML file with these settings (configs/cluster/example.yaml); flags win over it")
    for name, (_, _, _, told) in SETTINGS.items():
        group.add_argument(f"--{name.replace('_', '-')}", help=told, metavar="X")
    group.add_argument("--slurm", action="append", default=[], metavar="KEY=VALUE",
                       help="any other option of sbatch (repeatable): --slurm constraint=a100 --slurm exclusive")


def given_flags(args):
    """The flags of --launcher slurm that a command line has."""
    names = [name for name in ("cluster", "slurm", *SETTINGS) if getattr(args, name)]
    return [f"--{name.replace('_', '-')}" for name in names]


def slurm_parameters(args):
    """What submitit's SlurmExecutor takes, from the defaults, the file of --cluster and the flags, in this order.

    Raises:
        InputError: an unknown key, or a value that does not fit.
    """
    given = {name: (value, f"default {name}") for name, value in DEFAULTS.items()}
    setup, extra = [], {}
    if args.cluster:
        file = read_cluster_file(args.cluster)
        setup, extra = file.pop("setup", []), file.pop("slurm", {})
        given |= {name: (value, f"{args.cluster}: {name}") for name, value in file.items()}
    for name in SETTINGS:
        if getattr(args, name):
            given[name] = getattr(args, name), f"--{name.replace('_', '-')}"
    parameters = {}
    for name, (text, where) in given.items():
        require_one_line(text, where)
        read, wanted, key, _ = SETTINGS[name]
        value = read(text)
        if value is None or not text.strip():
            raise InputError(f"{where} must be {wanted}, not '{text}'")
        parameters[key] = value
    if parameters["gpus_per_node"].split(":")[-1].strip("0") == "":
        del parameters["gpus_per_node"]
    for word in args.slurm:
        key, given_value, value = word.partition("=")
        if not re.fullmatch(OPTION, key):
            raise InputError(f"--slurm takes KEY=VALUE with a long option of sbatch, not '{word}'")
        extra[key] = value if given_value else True
    for key, value in extra.items():
        require_one_line(str(value), f"--slurm {key}")
    # A job that is preempted, or loses its node, goes back into the queue.
    parameters["additional_parameters"] = {"requeue": True} | extra
    parameters["setup"] = [
        *setup,
        # An empty entry stands for the working folder, whose files are not to be taken for modules.
        f"export PYTHONPATH={shlex.quote(ROOT)}:$(printf %s \"${{PYTHONPATH:-}}\" | tr -s : | sed 's/^://')",
        "export PYTHONPATH=${PYTHONPATH%:} PYTHONSAFEPATH=1",
        # Since 22.05 srun does not take --cpus-per-task over from sbatch.
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK",
    ]
    return parameters


def require_one_line(text, where):
    """Raise InputError for a word that would be more than one line of the batch script, which is run, or no text."""
    if printable(text) != text:
        raise InputError(f"{where} is {ascii(text)}; control characters, marks of direction and bytes that are not "
                         "UTF-8 have no place in a batch script")


def require_plain_folder(folder):
    """Raise InputError for a folder of the jobs' files that sbatch would take for another: it reads % as a pattern and
    a backslash as a sign to read none."""
    path = os.path.abspath(folder)
    require_one_line(path, "--launcher slurm: the output folder")
    if found := re.search(r"[%\\]", path):
        raise InputError(f"--launcher slurm: the output folder {path} has a {found[0]} in its path, which sbatch takes "
                         "for a pattern; choose another --output (for the scripts OUTPUT)")


def read_cluster_file(path):
    """The settings of a YAML file: words, with `slurm` a dict of words and `setup` a list of shell lines."""
    try:
        with open_regular(path, "r", MOST_BYTES, encoding="utf-8-sig") as file:
            # Words as they stand: YAML would make 480 of 8:00 and 5400 of 1:30:00.
            found = yaml.load(file.read(), yaml.BaseLoader) or {}
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # UnicodeDecodeError among them
        raise InputError(f"{path} is not a YAML file: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} must hold KEY: VALUE lines; see configs/cluster/example.yaml")
    known = [*SETTINGS, "slurm", "setup"]
    for key, value in found.items():
        key = str(key)
        if key not in known:
            raise InputError(f"{path}: unknown key '{key}'{nearest(key, known)}; known: {', '.join(known)}; any other "
                             "option of sbatch goes below slurm")
        fits = {"slurm": _is_words, "setup": _is_lines}.get(key, lambda value: isinstance(value, str))
        if not fits(value):
            raise InputError(f"{path}: {key} must be " + {"slurm": "KEY: VALUE lines, long options of sbatch", "setup":
                             "a list of shell lines"}.get(key, "one word"))
    if "slurm" in found:
        found["slurm"] = {key: True if value == "true" else value for key, value in found["slurm"].items()}
    return found


def _is_words(value):
    return isinstance(value, dict) and all(isinstance(word, str) for word in value.values()) and all(
        isinstance(key, str) and re.fullmatch(OPTION, key) for key in value)


def _is_lines(value):
    return isinstance(value, list) and all(isinstance(line, str) for line in value)


# ---- a task ----
@dataclass(frozen=True)
class Task:
    """What a task of the array does: a run, then those that need it. submitit stores it and calls it on the node.

    SIGTERM (preemption, scontrol requeue, scancel) and submitit's signal (shortly before the time limit) stop the
    training at the batch, with a checkpoint. The task then goes back into the queue, by Slurm's own hand or through
    submitit, unless it was cancelled.
    """

    runs: tuple

    def __call__(self):
        import submitit

        ending = getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}")
        requeue = signal.getsignal(ending)  # submitit's: count the time limits, store the task, scontrol requeue, exit
        came = []

        def stop(number, frame):
            raise Terminated

        def end(number, frame):
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
            _note_reason(train.mendable(error) or f"{type(error).__name__}: {error}")
            raise

    def checkpoint(self):
        """What submitit puts back into the queue: the same task. The runs' own checkpoints say where it goes on."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _note_reason(line):
    """Keep why this task ends beside submitit's files. What submitit itself keeps of it is a pickle, and --status opens
    none: the output folder may be anybody's."""
    import submitit

    with contextlib.suppress(RuntimeError, OSError, InputError):  # RuntimeError: this is no task of submitit's
        write_json({"error": line}, reason_file(submitit.JobEnvironment().paths))


def _still_wanted():
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


def chains(runs):
    """The runs in groups, one for each task: [[run, those that need it or have its numbers ...], ...]."""
    groups, first = {}, {}
    for run in runs:
        first[run.folder] = first.get(run.needs) or first.get(run.same) or run.folder
        groups.setdefault(first[run.folder], []).append(run)
    return list(groups.values())


# ---- submission ----
def require_slurm():
    if not shutil.which("sbatch"):
        raise InputError("--launcher slurm: no sbatch on PATH; run it on a login node of the cluster, or take "
                         "--launcher local --jobs N")


def submit(runs, output, parameters):
    """Submit those runs of a plan that are neither done nor in the hands of a job or a process.

    Args:
        runs: a list of Run. output: the folder of all run folders. parameters: from `slurm_parameters`.
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
        found = {state.run.folder: state for state in states(runs, output)}
        tasks = [Task(tuple(chain)) for chain in _open_chains(runs, found)]
        if not tasks:
            return {}, list(found.values())
        require_own_folder(jobs_folder(output))
        record = read_record(output)
        for task in tasks:
            for run in task.runs:
                _remove_lock_of_ended(run, record.get(run.place.folder), found[run.folder])
        name = "-".join(dict.fromkeys(word for run in runs for word in (run.place.protocol, run.place.trainer)))
        jobs = _submit_array(tasks, jobs_folder(output), {"job_name": name} | parameters)
        for task, job in zip(tasks, jobs):
            record |= {run.place.folder: job for run in task.runs if found[run.folder].word != "done"}
        write_json(record, record_file(output))
    ids = [job.split("_")[0] for job in jobs]
    return {job: ids.count(job) for job in dict.fromkeys(ids)}, list(found.values())


def _open_chains(runs, found):
    """The chains of which something is to be made and nothing is in hand, without the runs that are refused."""
    for chain in chains(runs):
        words = {found[run.folder].word for run in chain}
        if any(found[run.folder].in_hand for run in chain) or words <= {"done", "refused"}:
            continue
        refused = {run.folder for run in chain if found[run.folder].word == "refused"}
        left = [run for run in chain if run.folder not in refused and run.needs not in refused]
        if left:
            yield left


def _remove_lock_of_ended(run, job, state):
    """A task that was killed leaves its lock; Slurm says that it is gone, which the next node could not see."""
    if job and state.word == "failed" and lock_holder(run.folder).get("job") == job:
        os.remove(os.path.join(run.folder, LOCK_NAME))


def _submit_array(tasks, folder, parameters):
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
