"""What is asked of Slurm for each task of an array job: flags, a YAML file, and what submitit makes of them."""
import argparse
import math
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from dassl.config.reading import MOST_CONFIG_BYTES
from dassl.utils import InputError, open_regular, printable
from dassl.utils.registry import nearest
from tools.running.plans import ROOT

OPTION = r"[a-z][a-z_-]*"  # a long option of sbatch


def minutes(text: str) -> int | None:
    """Minutes, H:MM, H:MM:SS or D-H:MM, as minutes; seconds count as a started minute. None for other words."""
    found = re.fullmatch(r"(?:([0-9]{1,9})-)?([0-9]{1,9}):([0-9]{2})(?::([0-9]{2}))?", text)
    if found:
        days, hours, mins, seconds = (int(part or 0) for part in found.groups())
        return ((24 * days + hours) * 60 + mins + math.ceil(seconds / 60)) or None
    return positive(text)


def positive(text: str) -> int | None:
    """A number from 1 on, None for other words."""
    return int(text) or None if re.fullmatch(r"[0-9]{1,9}", text) else None


def memory(text: str) -> str | None:
    """A number with a unit as it is, None for other words."""
    return text if re.fullmatch(r"\d+(\.\d+)?[KMGT]B?", text, re.IGNORECASE) else None


def gpu_count(text: str) -> str | None:
    """NUMBER or TYPE:NUMBER as it is, None for other words."""
    return text if re.fullmatch(r"([\w.-]+:)?\d+", text) else None


# name: (reads a word or gives None, what the word must be, submitit's name, help)
SETTINGS: dict[str, tuple[Callable[[str], Any], str, str, str]] = {
    "partition": (str, "a name", "partition", "partition, or several with commas (default the cluster's)"),
    "time": (minutes, "minutes or H:MM", "time", "time limit per task, minutes or H:MM (default 4:00); a task that "
                                                 "reaches it stores a checkpoint, is requeued and goes on"),
    "gpus": (gpu_count, "a number or TYPE:NUMBER", "gpus_per_node", "GPUs per task (default 1; 0 for none)"),
    "cpus": (positive, "a number from 1 on", "cpus_per_task", "CPUs per task (default 4)"),
    "mem": (memory, "a number with a unit, such as 16G", "mem", "memory per task, such as 16G (default the cluster's)"),
    "account": (str, "a name", "account", "account that pays (default the cluster's)"),
    "qos": (str, "a name", "qos", "quality of service (default the cluster's)"),
    "array_parallelism": (positive, "a number from 1 on", "array_parallelism", "most tasks at once (default 256)"),
}
DEFAULTS = {"time": "4:00", "gpus": "1", "cpus": "4"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of --launcher slurm."""
    group = parser.add_argument_group("with --launcher slurm")
    group.add_argument("--cluster", metavar="FILE",
                       help="YAML file with these settings (configs/cluster/example.yaml); flags win over it")
    for name, (_, _, _, told) in SETTINGS.items():
        group.add_argument(f"--{name.replace('_', '-')}", help=told, metavar="X")
    group.add_argument("--slurm", action="append", default=[], metavar="KEY=VALUE",
                       help="any other option of sbatch (repeatable): --slurm constraint=a100 --slurm exclusive")


def given_flags(args: argparse.Namespace) -> list[str]:
    """The flags of --launcher slurm that a command line has."""
    names = [name for name in ("cluster", "slurm", *SETTINGS) if getattr(args, name)]
    return [f"--{name.replace('_', '-')}" for name in names]


def slurm_parameters(args: argparse.Namespace) -> dict[str, Any]:
    """What submitit's SlurmExecutor takes, from the defaults, the file of --cluster and the flags, in this order.

    Raises:
        InputError: an unknown key, or a value that does not fit.
    """
    given = {name: (value, f"default {name}") for name, value in DEFAULTS.items()}
    setup: list[str] = []
    extra: dict[str, Any] = {}
    if args.cluster:
        file = read_cluster_file(args.cluster)
        setup, extra = file.pop("setup", []), file.pop("slurm", {})
        given |= {name: (value, f"{args.cluster}: {name}") for name, value in file.items()}
    for name in SETTINGS:
        if getattr(args, name):
            given[name] = getattr(args, name), f"--{name.replace('_', '-')}"
    parameters = {SETTINGS[name][2]: _read(name, text, where) for name, (text, where) in given.items()}
    if parameters["gpus_per_node"].split(":")[-1].strip("0") == "":
        del parameters["gpus_per_node"]
    extra |= _given_options(args.slurm)
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


def _read(name: str, text: str, where: str) -> Any:
    """A setting as submitit takes it. Raises InputError, naming `where` it was given, for a word that does not fit."""
    require_one_line(text, where)
    read, wanted, _, _ = SETTINGS[name]
    value = read(text)
    if value is None or not text.strip():
        raise InputError(f"{where} must be {wanted}, not '{text}'")
    return value


def _given_options(words: Sequence[str]) -> dict[str, Any]:
    """{option of sbatch: word, or True} of the words of --slurm. Raises InputError for what is no long option."""
    found: dict[str, Any] = {}
    for word in words:
        key, given_value, value = word.partition("=")
        if not re.fullmatch(OPTION, key):
            raise InputError(f"--slurm takes KEY=VALUE with a long option of sbatch, not '{word}'")
        found[key] = value if given_value else True
    return found


def require_one_line(text: str, where: str) -> None:
    """Raise InputError for a word that would be more than one line of the batch script, which is run, or no text."""
    if printable(text) != text:
        raise InputError(f"{where} is {ascii(text)}; control characters, marks of direction and bytes that are not "
                         "UTF-8 have no place in a batch script")


def read_cluster_file(path: str) -> dict[str, Any]:
    """The settings of a YAML file: words, with `slurm` a dict of words and `setup` a list of shell lines."""
    try:
        with open_regular(path, "r", MOST_CONFIG_BYTES, encoding="utf-8-sig") as file:
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


def _is_words(value: Any) -> bool:
    """Whether a value of the file is a dict of long options of sbatch and words."""
    return isinstance(value, dict) and all(isinstance(word, str) for word in value.values()) and all(
        isinstance(key, str) and re.fullmatch(OPTION, key) for key in value)


def _is_lines(value: Any) -> bool:
    """Whether a value of the file is a list of lines."""
    return isinstance(value, list) and all(isinstance(line, str) for line in value)
