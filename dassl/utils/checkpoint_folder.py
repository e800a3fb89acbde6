"""Which checkpoints a folder holds: the newest, those to go on from, the one to evaluate.

A model's folder holds `model.pth.tar-<epoch>` of finished epochs, `model-best.pth.tar`, the best on validation,
`model-interrupted.pth.tar`, of a point within an epoch, and the text file `checkpoint`, which names the newest of the
first kind. A run folder holds one such folder for each model.
"""
import os
from collections.abc import Callable, Iterator
from typing import Any

from dassl.utils.checkpoint import (
    BEST,
    INTERRUPTED,
    MISFITS,
    checkpoint_name,
    does_not_fit,
    epoch_of,
    load_checkpoint,
    load_tensors,
    noted_checkpoint,
)
from dassl.utils.errors import InputError

Found = tuple[str, dict[str, Any]]  # the path of a checkpoint and what it holds


# ---- a model's folder ----
def epochs_in(folder: str) -> list[int]:
    """The epochs (from 1) whose checkpoints lie in a model's folder, latest first; [] where there is no folder."""
    names = os.listdir(folder) if os.path.isdir(folder) else ()
    return sorted((epoch for name in names if (epoch := epoch_of(name)) is not None), reverse=True)


def newest_checkpoint(folder: str) -> str | None:
    """The path of the checkpoint that is noted as a model's newest; None where none is noted."""
    noted = noted_checkpoint(folder)
    return os.path.join(folder, noted) if noted else None


def checkpoint_to_evaluate(folder: str, epoch: int | None = None, best: bool = False) -> str | None:
    """The path of the checkpoint in a model's folder that an evaluation loads, which need not exist.

    Args:
        epoch: take that of this epoch (from 1).
        best: take the best on validation, also where none was kept.
    Returns:
        without `epoch` and `best` the best that was kept, else the newest; None where none is noted.
    """
    if epoch is not None:
        return os.path.join(folder, checkpoint_name(epoch))
    if best or os.path.isfile(os.path.join(folder, BEST)):
        return os.path.join(folder, BEST)
    return newest_checkpoint(folder)


def names_newest_first(folder: str) -> list[str]:
    """File names of the checkpoints that a run can go on from: the interrupted one; then the one that the
    file `checkpoint` names, where its name is not that of an epoch; then those of the epochs, latest first. Only the
    contents of the interrupted one say whether it is the furthest."""
    names = [checkpoint_name(epoch) for epoch in epochs_in(folder)]
    noted = noted_checkpoint(folder)
    if noted and noted not in names:
        names.insert(0, noted)
    if os.path.lexists(os.path.join(folder, INTERRUPTED)):
        names.insert(0, INTERRUPTED)
    return names


def checkpoints_newest_first(folder: str, check: Callable[[str, dict[str, Any]], None] | None = None
                             ) -> Iterator[Found]:
    """Yields (path, contents) of the checkpoints that a run in `folder` can go on from, furthest first.

    A damaged or missing one is passed over with a warning.

    Args:
        check: called with path and contents of each; raises InputError for one that this run cannot go on from.

    Raises:
        InputError: there are checkpoints, and none can be read.
    """
    if not os.path.isdir(folder):
        return
    whole, first_complaint = 0, None
    waiting: Found | None = None  # the interrupted one, until it is clear that no epoch's checkpoint is further on
    for name in names_newest_first(folder):
        path = os.path.join(folder, name)
        try:
            state = _resumable(path)
            if check is not None:
                check(path, state)
        except (InputError, OSError) as error:
            first_complaint = first_complaint or error
            print(f"Warning: passed over a checkpoint: {error}")
            continue
        whole += 1
        if name == INTERRUPTED:
            waiting = path, state
            continue
        if waiting and point_of(waiting[1]) > point_of(state):
            yield waiting
            waiting = None
        yield path, state
    if waiting:
        yield waiting
    if first_complaint and not whole:
        raise InputError(f"no checkpoint in {folder} can be read, first: {first_complaint}")


def point_of(state: dict[str, Any]) -> tuple[int, int]:
    """How far a checkpoint is: (finished epochs, batches of the next one)."""
    return state["epoch"], state.get("step", 0)


def _resumable(path: str) -> dict[str, Any]:
    state = load_checkpoint(path)
    point = (state.get("epoch"), state.get("step", 0))
    if not all(isinstance(number, int) and number >= 0 for number in point) or \
            not isinstance(state.get("state_dict"), dict):
        raise InputError(f"{path} is not a checkpoint to go on from: it lacks the epoch or the trained tensors")
    return state


def resume_from_checkpoint(fdir, model, optimizer=None, scheduler=None):
    """Load the newest checkpoint of `fdir` into model, optimizer and scheduler; returns the epoch to go on with."""
    fpath = newest_checkpoint(fdir)
    if fpath is None:
        raise FileNotFoundError(f'No checkpoint is noted in "{fdir}"')
    print(f'Loading checkpoint from "{fpath}"')
    checkpoint = _resumable(fpath)
    load_tensors(model, checkpoint["state_dict"], fpath)
    try:
        if optimizer is not None and checkpoint.get("optimizer") is not None:
            optimizer.load_state_dict(checkpoint["optimizer"])
        if scheduler is not None and checkpoint.get("scheduler") is not None:
            scheduler.load_state_dict(checkpoint["scheduler"])
    except MISFITS as error:
        raise does_not_fit(fpath, error) from None
    print(f"Previous epoch: {checkpoint['epoch']}")
    return checkpoint["epoch"]


# ---- a run folder ----
def model_folders(folder: str) -> list[str]:
    """The subfolders of a run folder that hold checkpoints, in the order of their names."""
    if not os.path.isdir(folder):
        return []
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    return [path for path in paths
            if any(os.path.isfile(os.path.join(path, name)) for name in ("checkpoint", BEST, INTERRUPTED))]


def newest_epoch(folder: str) -> int | None:
    """The epoch (from 1) of a run's newest checkpoint; None where only the best or none is there."""
    for path in model_folders(folder):
        if os.path.isfile(os.path.join(path, BEST)):
            return None
        if (epoch := epoch_of(noted_checkpoint(path) or "")) is not None:
            return epoch
    return None


def checkpoint_files(folder: str, epoch: int | None = None) -> list[str]:
    """The checkpoints that an evaluation of the run in `folder` loads, one for each model that has it: those of `epoch`
    (from 1), else the best that were kept, else the newest."""
    found = (checkpoint_to_evaluate(path, epoch) for path in model_folders(folder))
    return [path for path in found if path is not None and os.path.isfile(path)]
