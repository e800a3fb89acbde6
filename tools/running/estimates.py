"""What the runs of a plan will take that are still to be made: room on the disk, and a download."""
from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING

from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl.engine.checkpointer import CHECKPOINTS_KEPT
from dassl.optim import epochs_of
from prompting.published import PUBLISHED, at_hand
from prompting.weights import CACHE, SHIPPED
from protocols import Run
from training.store.folder import store_folder

if TYPE_CHECKING:
    from tools.running.preflight import Looked, Preflight

FIXED = 20_000  # bytes of a run's config, log and results
PER_CLASS, PER_TEST_IMAGE, PER_TRAINING_IMAGE = 100, 25, 130  # of results.json, predictions, and records of the draw
PER_STEP = 200  # of TensorBoard's file and the log
PER_CHECKPOINT = 20_000  # besides its numbers: random generators, names, digests


def batches_of(cfg: CfgNode, images: int) -> int:
    """Batches of an epoch of a training of that many images."""
    return max(1, images // cfg.DATALOADER.TRAIN_X.BATCH_SIZE)


def steps_of(cfg: CfgNode, images: int) -> int:
    """Batches of a training of that many images, all epochs."""
    batches = batches_of(cfg, images)
    return epochs_of(cfg, batches) * batches


def bytes_of(run: Run, looked: Looked) -> int:
    """Bytes that a run leaves in its folder, about; what cannot be known (its data are not there) counts as nothing."""
    cfg, parts = run.configs.of(run.spec), looked.parts
    total = FIXED
    if parts:
        total += PER_CLASS * parts.classes + PER_TEST_IMAGE * parts.test
        total += PER_TRAINING_IMAGE * (parts.train + parts.val)
        total += 4 * parts.test * parts.classes * cfg.TEST.SAVE_LOGITS + 6 * parts.classes**2 * cfg.TEST.COMPUTE_CMAT
    if looked.trial.numbers and not run.spec.eval_only:
        every = cfg.TRAIN.CHECKPOINT_FREQ
        epochs = epochs_of(cfg, batches_of(cfg, parts.train)) if parts else cfg.OPTIM.MAX_EPOCH
        kept = CHECKPOINTS_KEPT + (cfg.TEST.FINAL_MODEL == "best_val") + (epochs // every if every else 0)
        total += min(kept, epochs + 1) * (PER_CHECKPOINT + 4 * looked.trial.numbers)
        total += PER_STEP * steps_of(cfg, parts.train) if parts else 0
    return total


def missing_weights(runs: Iterable[Run]) -> list[str]:
    """The published CLIPs of some runs that are still to be downloaded."""
    names = dict.fromkeys(run.configs.of(run.spec).MODEL.BACKBONE.NAME for run in runs)
    return [name for name in names if name in PUBLISHED and name not in SHIPPED and not os.path.isfile(name)
            and not at_hand(name)]


def weights_line(missing: list[str]) -> str:
    """What is to be downloaded, in words; "" for nothing."""
    told = [f"{name} (about {size(PUBLISHED[name].megabytes * 10**6)})" for name in missing]
    return f"{', '.join(told)} will be downloaded to {CACHE}" if told else ""


def require_room(found: Preflight, output: str) -> str:
    """A line on the room that the runs to be made need and have, "" where none is. They are refused in `found` where
    nothing can be written, or where even half of what is estimated has no place."""
    runs = found.having("to do")
    if not runs:
        return ""
    place, cache = existing(output), existing(CACHE)
    needed = sum(bytes_of(run, found.looked[run.folder]) for run in runs)
    # The archive stays beside the tensors that are made of it.
    weights = sum(2 * PUBLISHED[name].megabytes * 10**6 for name in missing_weights(runs))
    together = os.stat(place).st_dev == os.stat(cache).st_dev
    problem, free = "", shutil.disk_usage(place).free
    if stands := in_the_way(output):
        problem = f"{stands} is no folder; choose another --output (OUTPUT) than {output}"
    elif not os.access(place, os.W_OK | os.X_OK):
        problem = f"cannot write to {place}, where {output} is to be; choose another --output (OUTPUT)"
    elif needed / 2 + together * weights > free:
        more = f" and {size(weights)} for the weights of the CLIP" if together and weights else ""
        problem = (f"no room in {place}: the runs need about {size(needed)}{more}, {size(free)} are free; free some, "
                   "or choose another --output (OUTPUT)")
    elif weights > shutil.disk_usage(cache).free:
        problem = (f"no room in {cache}: the weights of the CLIP need about {size(weights)}, "
                   f"{size(shutil.disk_usage(cache).free)} are free")
    for run in runs if problem else ():
        found.looked[run.folder].refuse(problem)
    return f"about {size(needed)} to write{_features_line(runs)}, {size(free)} free"


def uses_store(run: Run) -> bool:
    """Whether a run keeps frozen image features in a feature store."""
    trainer = TRAINER_REGISTRY.get(run.place.trainer)
    asks = getattr(trainer, "frozen_images", False) or getattr(trainer, "frozen_features", False)
    return bool(asks) and store_folder(run.configs.of(run.spec)) is not None


def _features_line(runs: Iterable[Run]) -> str:
    """The most that the feature stores of some runs keep, in words; "" where none is used. It counts for no room that
    must be there: on a full disk the runs go on without a store."""
    configs = [run.configs.of(run.spec) for run in runs if uses_store(run)]
    most = {store_folder(cfg): cfg.STORE.MB for cfg in configs}
    return f" and up to {size(sum(most.values()) * 10**6)} of features in {', '.join(map(str, most))}" if most else ""


def existing(folder: str) -> str:
    """The folder, or the nearest one above it that exists."""
    path = os.path.abspath(os.path.expanduser(folder))
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def in_the_way(folder: str) -> str:
    """What stands where the folder, or one above it, is to be, and is no folder; "" for nothing."""
    path = os.path.abspath(os.path.expanduser(folder))
    while not os.path.isdir(path):
        if os.path.lexists(path):
            return path
        path = os.path.dirname(path)
    return ""


def size(number: float) -> str:
    """Bytes in words."""
    for unit, bytes_each in (("GB", 10**9), ("MB", 10**6)):
        if number >= bytes_each:
            return f"{number / bytes_each:.3g} {unit}"
    return f"{number / 1000:.0f} kB"
