"""Checkpointer: the one way in which a training is stored and gone on with, whatever its checkpoints hold."""
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from dassl.engine.part import OfTrainer
from dassl.utils import (
    BEST,
    INTERRUPTED,
    InputError,
    broadcast,
    checkpoint_name,
    checkpoints_newest_first,
    epochs_in,
    note_checkpoint,
    open_regular,
    point_of,
    rank,
    require_own_folder,
    save_checkpoint,
    write_atomically,
)
from dassl.utils.checkpoint_folder import Found

State = dict[str, Any]
Trainer = TypeVar("Trainer")
CHECKPOINTS_KEPT = 2  # of epochs that CHECKPOINT_FREQ does not name


class Contents(OfTrainer[Trainer], ABC):
    """What the checkpoints of a trainer hold of its models: `dassl.engine.model_states.ModelStates` all of each
    registered model, `training.trained_tensors.TrainedTensors` what a prompt method trains."""

    module_prefix = False  # whether names of tensors may begin with the "module." of DataParallel, which is not stored

    @abstractmethod
    def folders(self) -> list[str]:
        """Names of the subfolders that hold a checkpoint each; [] where nothing is stored."""

    @abstractmethod
    def state(self, folder: str) -> State:
        """What one of these checkpoints holds, "state_dict" among it. The trainer's position is added to it."""

    @abstractmethod
    def require_fits(self, folder: str, path: str, state: State) -> None:
        """Raise InputError for a checkpoint of this training that the run cannot go on from; it is passed over, and an
        older one is tried. A checkpoint of another training is let through here: `restore` refuses it."""

    @abstractmethod
    def restore(self, directory: str, found: list[Found]) -> None:
        """Take back what the checkpoints of a run folder hold, one for each of `folders`.

        Raises InputError where they are of another training (`dassl.engine.identity.check_resumed`)."""

    @abstractmethod
    def load(self, directory: str, epoch: int | None = None) -> dict[str, list]:
        """Take what is evaluated from the checkpoints of a run folder.

        Args:
            epoch: take those of this epoch (from 1); None: those that an evaluation takes by default.
        Returns:
            {setting: [trained with, evaluated with]} of the settings that differ.
        """


class Checkpointer:
    """Writes the checkpoints of a training, finds the one to go on from, and removes those that are not needed.

    Of the processes of a run rank 0 alone writes and removes.

    Args:
        contents: what a checkpoint holds.
    """

    def __init__(self, contents: Contents) -> None:
        self.contents = contents

    # ---- writing ----
    def save(self, directory: str, position: Callable[[], State], is_best: bool = False, model_name: str = "") -> None:
        """Write a checkpoint to each folder in `directory`. All ranks call it, and go on when it is written.

        Args:
            position: gives the trainer's position in its training, "epoch" (from 1) among it; rank 0 calls
                it.
            is_best: write the best model, too.
            model_name: file name; default that of the epoch.
        """
        if self.contents.folders():
            broadcast(lambda: self._write(directory, position, is_best, model_name))

    def _write(self, directory: str, position: Callable[[], State], is_best: bool, model_name: str) -> None:
        for folder in self.contents.folders():
            save_checkpoint({**self.contents.state(folder), **position()}, os.path.join(directory, folder),
                            is_best=is_best, remove_module_from_keys=self.contents.module_prefix, model_name=model_name)

    def note(self, directory: str, epoch: int) -> None:
        """Note the checkpoint of `epoch` (from 1), if there is one, as the newest: a kill may have come between it and
        its note."""
        for folder in self._own_folders(directory):
            note_checkpoint(folder, checkpoint_name(epoch))

    def take_best(self, directory: str, source: str) -> None:
        """Copy the best model so far from another run folder, where it has one."""
        for folder in self._own_folders(directory):
            best = os.path.join(source, os.path.basename(folder), BEST)
            if os.path.isfile(best):
                with open_regular(best) as stored:
                    write_atomically(os.path.join(folder, BEST), lambda file: shutil.copyfileobj(stored, file))

    # ---- going on ----
    def newest(self, directory: str) -> list[Found] | None:
        """The checkpoints to go on from, one for each folder, all of the same point in the training: the latest point
        for which every folder has a readable checkpoint. A run may be killed after it has written one model's
        checkpoint and before the next one's. None where there is no such point.

        Raises InputError where there are checkpoints, and none can be read."""
        folders = self.contents.folders()
        if not folders:
            return None

        def newest_first(folder):
            return checkpoints_newest_first(os.path.join(directory, folder),
                                            lambda path, state: self.contents.require_fits(folder, path, state))

        for first in newest_first(folders[0]):
            others = [next((other for other in newest_first(folder) if _same_point(other, first)), None)
                      for folder in folders[1:]]
            found = [first, *(other for other in others if other is not None)]
            if len(found) == len(folders):
                return found
        return None

    def resume(self, directory: str) -> Found | None:
        """Restore the furthest point in a run folder. Returns a checkpoint of it, from which the trainer takes its
        position; None where there is none."""
        found = self.newest(directory)
        if found is None:
            return None
        self.contents.restore(directory, found)
        return found[-1]

    # ---- evaluating ----
    def load(self, directory: str, epoch: int | None = None) -> dict[str, list]:
        """As `Contents.load`."""
        return self.contents.load(directory, epoch)

    # ---- removing ----
    def forget_interruption(self, directory: str) -> None:
        """Remove the checkpoint of a point within an epoch, once an epoch's own is further on."""
        for folder in self._own_folders(directory):
            path = os.path.join(folder, INTERRUPTED)
            if os.path.lexists(path):
                os.remove(path)

    def prune(self, directory: str, done: int, every: int) -> None:
        """Keep the checkpoints of the last two of `done` epochs, and of each `every`-th unless that is 0."""
        for folder in self._own_folders(directory):
            for epoch in epochs_in(folder):
                if epoch <= done - CHECKPOINTS_KEPT and not (every > 0 and epoch % every == 0):
                    os.remove(os.path.join(folder, checkpoint_name(epoch)))

    def _own_folders(self, directory: str) -> list[str]:
        """Paths of the folders, for rank 0. Raises InputError for one that is a link."""
        paths = [os.path.join(directory, folder) for folder in self.contents.folders()] if rank() == 0 else []
        for path in paths:
            require_own_folder(path)
        return paths


def require_found(path: str | None, folder: str) -> str:
    """The path of a checkpoint to evaluate (`checkpoint_to_evaluate`). Raises InputError where there is no file."""
    if path is None:
        raise InputError(f"no trained prompts in {folder}; check --model-dir")
    if not os.path.isfile(path):
        raise InputError(f"no checkpoint at {path}; check --model-dir and --load-epoch")
    return path


def _same_point(one: Found, other: Found) -> bool:
    return os.path.basename(one[0]) == os.path.basename(other[0]) and point_of(one[1]) == point_of(other[1])
