"""How long a method's training is, and when the learning rates of its optimizers move on."""
import warnings
from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dassl.optim import epochs_of, steps_asked

Optimizers = Iterable[tuple[Optimizer, LRScheduler]]


def plan_training(trainer: Any) -> None:
    """Set how many updates the training of a trainer plans, whose loader is built. Where its config says how many there
    are to be, MAX_EPOCH of its own copy of the config is the number of epochs that have so many."""
    batches = len(trainer.train_loader_x) if trainer.train_loader_x is not None else 0
    if steps_asked(trainer.cfg):
        trainer.cfg = trainer.cfg.clone()
        trainer.cfg.defrost()
        trainer.cfg.OPTIM.MAX_EPOCH = trainer.max_epoch = epochs_of(trainer.cfg, batches)
        trainer.cfg.freeze()
        key = "OPTIM.STEPS" if trainer.cfg.OPTIM.STEPS else "OPTIM.STEPS_PER_SHOT"
        trainer.overruled["OPTIM.MAX_EPOCH"] = f"{key} says how long the training is: {trainer.max_epoch} epochs"
    trainer.planned_steps = trainer.max_epoch * max(1, batches)


def after_update(optimizers: Optimizers, updated: Optimizer) -> None:
    """Let the schedule of the optimizer that has made an update move on, if it follows the updates (`StepSchedule`)."""
    for optimizer, schedule in optimizers:
        if optimizer is updated and _follows_updates(schedule):
            schedule.step()


def after_epoch(optimizers: Optimizers) -> None:
    """Let the schedules move on that follow the epochs."""
    with warnings.catch_warnings():
        # torch warns when no step was made before; every one may have been left out for overflow.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        for _, schedule in optimizers:
            if not _follows_updates(schedule):
                schedule.step()


def _follows_updates(schedule: LRScheduler) -> bool:
    return getattr(schedule, "per_step", False)
