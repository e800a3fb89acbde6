"""What a dry run says of each run: done, to do, or refused and why. The datasets' lists are built, no picture is looked
at and nothing is written."""
import contextlib
import os
import sys
from collections.abc import Callable, Sequence

from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from dassl.engine.run_folder import Listings
from dassl.utils import InputError
from dassl.utils.registry import nearest
from prompting import PromptingError
from prompting.backbone import known_names
from protocols import Run
from tools.running.before_run import finished, only_class

Checked = dict[tuple, InputError | None]  # what was looked at: what is wrong with it


def list_runs(runs: Sequence[Run]) -> tuple[str, int]:
    """(lines, number of runs that are refused): one line for each run of a plan, then how many are done."""
    checked: Checked = {}
    seen = Listings()
    told = [_look(run, checked, seen) for run in runs]
    words = [word for word, _ in told]
    lines = [f"{line:<6} {run.folder}" for (_, line), run in zip(told, runs)]
    refused = words.count("refused")
    more = f", {refused} refused" if refused else ""
    return "\n".join([*lines, f"{len(runs)} runs, {words.count('done')} done{more}"]), refused


def _look(run: Run, checked: Checked, seen: Listings) -> tuple[str, str]:
    """("done", "to do", "refused" or "no number", the same with the reason) of a run."""
    try:
        if finished(run, seen) is not None:
            return "done", "done"
        require_possible(run, checked)
    except (InputError, PromptingError) as error:
        if name := only_class(run):
            return "no number", f"no number (an accuracy among one class, '{name}', says nothing)"
        return "refused", f"refused ({' '.join(str(error).split())})"
    return "to do", "to do"


def require_possible(run: Run, checked: Checked) -> None:
    """Raise InputError where a run's config, backbone or data would end it before it starts.

    checked: filled; the runs of a plan share backbone and data."""
    cfg = run.check()
    backbone, data = cfg.MODEL.BACKBONE.NAME, (cfg.SEED, repr(cfg.DATASET))
    _check_once(checked, ("backbone", backbone), lambda: require_backbone(backbone))
    _check_once(checked, ("data", *data), lambda: require_data(cfg))


def _check_once(checked: Checked, what: tuple, check: Callable[[], None]) -> None:
    """Call `check()` unless `what` was checked before. Raises the InputError that it raises now, or raised then."""
    if what not in checked:
        checked[what] = None
        try:
            check()
        except InputError as error:
            checked[what] = error
    wrong = checked[what]
    if wrong is not None:
        raise wrong


def require_backbone(name: str) -> None:
    """Raise InputError for a backbone that is neither a known name nor a file."""
    if name not in known_names() and not os.path.isfile(name):
        raise InputError(f"backbone '{name}' is neither a file nor one of {', '.join(known_names())}"
                         f"{nearest(name, known_names())}")


def require_data(cfg: CfgNode) -> None:
    """Raise InputError where a run's dataset cannot be built. What is drawn at first use need not be there."""
    registered = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    folder = os.path.join(os.path.expanduser(cfg.DATASET.ROOT), getattr(registered, "dataset_dir", ""))
    if getattr(registered, "drawn_at_first_use", False) and not os.path.isdir(folder):
        return
    with contextlib.redirect_stdout(sys.stderr):  # what a dataset tells of its split
        build_dataset(cfg)
