"""When the learning rates of a method's optimizers move on."""
import warnings
from collections.abc import Iterable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Optimizers = Iterable[tuple[Optimizer, LRScheduler]]


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
