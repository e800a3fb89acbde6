"""What is known of a run of a plan before it is made: it is finished, another run has its numbers, its folder is in
use, or it has one class only."""
import contextlib
import os
import time
from typing import Any

from dassl.data.datasets import build_dataset
from dassl.engine.run_folder import Sources, require_goes_on
from dassl.utils import InputError, lives_here, lock_holder, orphaned, quiet
from prompting.backbone import weights_digest
from protocols import Run, protocol_named
from runs import run as one_run
from tools.running.same_numbers import filled

SECONDS_FOR_ORPHANS = 10  # that a run folder is waited for whose process was left without a parent and is about to end


def finished(run: Run, seen: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The results of a run that is finished, else None.

    Args:
        seen: {}, filled and shared between the runs of a plan: what their datasets list.
    Raises:
        InputError: its folder holds another run, finished or interrupted, or one of other data or weights.
    """
    cfg = run.configs.of(run.spec)
    results = one_run.finished(cfg, one_run.what_is_evaluated(run.spec), seen)
    if results is None and not run.spec.eval_only:
        require_goes_on(cfg, Sources(cfg, weights_digest, seen))
    return results


def taken_over(run: Run, made: dict[str, dict[str, Any]],
               seen: dict[str, Any] | None = None) -> tuple[dict[str, Any], str] | None:
    """(results, folder) of a run that need not be made, because another run has its numbers: its own results and ""
    where it is finished, else those of that run, filled in, and that run's folder. None for any other run.

    Args:
        made: {run folder: results} of the runs of the plan that are finished.
    Raises:
        InputError: its folder holds another run.
    """
    if not run.same or run.same not in made:
        return None
    results = finished(run, seen)
    if results is not None:
        return results, ""
    results = filled(run, made[run.same])
    return None if results is None else (results, run.same)


def wait_for_ending(folder: str) -> None:
    """Wait while a process holds the lock of a run folder whose parent is gone: what is left of a protocol that was
    killed ends as soon as it notices. Whoever lives on is told of by the lock itself."""
    until, told = time.monotonic() + SECONDS_FOR_ORPHANS, False
    while lives_here(holder := lock_holder(folder)) and orphaned(holder["pid"]) and time.monotonic() < until:
        if holder["pid"] == os.getpid():  # of a former process with our number, as in a container that starts again
            return
        if not told:
            print(f"{folder} is in use by process {holder['pid']}, whose parent is gone; waiting up to "
                  f"{SECONDS_FOR_ORPHANS} s for its end", flush=True)
        told = True
        time.sleep(0.1)


def only_class(run: Run) -> str:
    """The name of the class of a run that is tested on that one only, else ""."""
    protocol = protocol_named(run.place.protocol)
    if not protocol.picks_classes:
        return ""
    with contextlib.suppress(InputError), quiet():
        cfg = run.check()
        cfg.defrost()
        cfg.DATASET.SUBSAMPLE_CLASSES = "all"
        chosen = protocol.tested_classes(run.place.part, build_dataset(cfg).classnames)
        return str(chosen[0]) if len(chosen) == 1 else ""
    return ""
