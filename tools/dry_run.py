"""What a dry run says of each run: done, to do, or refused and why. The datasets' lists are built, no picture is looked
at and nothing is written."""
import contextlib
import os
import sys

from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from dassl.engine.run_folder import Listings
from dassl.utils import InputError
from dassl.utils.registry import nearest
from prompting import PromptingError
from prompting.backbone import known_names
from tools.execution import finished, only_class


def list_runs(runs):
    """(lines, number of runs that are refused): one line for each run of a plan, then how many are done."""
    lines, refused, known, seen = [], 0, {}, Listings()
    for run in runs:
        try:
            state = "to do" if finished(run, seen) is None else "done"
            if state == "to do":
                require_possible(run, known)
        except (InputError, PromptingError) as error:
            state = f"refused ({' '.join(str(error).split())})"
            if name := only_class(run):
                state = f"no number (an accuracy among one class, '{name}', says nothing)"
            refused += not name
        lines.append(f"{state:<6} {run.folder}")
    done = sum(line.startswith("done") for line in lines)
    told = f", {refused} refused" if refused else ""
    return "\n".join([*lines, f"{len(runs)} runs, {done} done{told}"]), refused


def require_possible(run, known):
    """Raise InputError where a run's config, backbone or data would end it before it starts.

    known: {what was looked at: its error or None}, filled; the runs of a plan share backbone and data."""
    cfg = run.check()
    checks = {("backbone", cfg.MODEL.BACKBONE.NAME): lambda: require_backbone(cfg.MODEL.BACKBONE.NAME),
              ("data", cfg.SEED, repr(cfg.DATASET)): lambda: require_data(cfg)}
    for key, check in checks.items():
        if key not in known:
            known[key] = None
            try:
                check()
            except InputError as error:
                known[key] = error
        if known[key]:
            raise known[key]


def require_backbone(name):
    """Raise InputError for a backbone that is neither a known name nor a file."""
    if name not in known_names() and not os.path.isfile(name):
        raise InputError(f"backbone '{name}' is neither a file nor one of {', '.join(known_names())}"
                         f"{nearest(name, known_names())}")


def require_data(cfg):
    """Raise InputError where a run's dataset cannot be built. What is drawn at first use need not be there."""
    registered = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    folder = os.path.join(os.path.expanduser(cfg.DATASET.ROOT), getattr(registered, "dataset_dir", ""))
    if getattr(registered, "drawn_at_first_use", False) and not os.path.isdir(folder):
        return
    with contextlib.redirect_stdout(sys.stderr):  # what a dataset tells of its split
        build_dataset(cfg)
