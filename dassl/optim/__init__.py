from dassl.optim.length import epochs_of, require_length, steps_asked
from dassl.optim.lr_scheduler import EpochSchedule, FormulaSchedule, build_lr_scheduler, notes_on
from dassl.optim.optimizer import build_optimizer
from dassl.optim.resume import go_on, require_fits
from dassl.optim.step_schedule import StepSchedule

__all__ = ["EpochSchedule", "FormulaSchedule", "StepSchedule", "build_lr_scheduler", "build_optimizer", "epochs_of",
           "go_on", "notes_on", "require_fits", "require_length", "steps_asked"]
