"""Learning rates as a closed formula of the epoch, so that a checkpoint holds an epoch and no pickled scheduler."""
import math

from torch.optim.lr_scheduler import LRScheduler

from dassl.utils import InputError, check_availability

AVAI_SCHEDS = ("single_step", "multi_step", "cosine")
AVAI_WARMUPS = ("constant", "linear")
NEVER = [-1]  # OPTIM.STEPSIZE: the rate of single_step never falls


class FormulaSchedule(LRScheduler):
    """A schedule whose rates are a formula of its settings and of how many steps it has made, so that a stored state
    only says that number: `load_state_dict` goes on with the settings it was built with."""

    def rate(self, base_lr, step):
        """The rate after `step` steps for a group whose own rate is `base_lr`."""
        raise NotImplementedError

    def get_lr(self):
        return [self.rate(base_lr, self.last_epoch) for base_lr in self.base_lrs]

    def load_state_dict(self, state_dict):
        """Go to the point of a stored state, and set its rates.

        Raises InputError for a state without one."""
        epoch = state_dict.get("last_epoch")
        if type(epoch) is not int or epoch < 0:
            raise InputError(f"a schedule's state says no epoch (last_epoch: {epoch!r})")
        steps = state_dict.get("_step_count", epoch + 1)
        if type(steps) is not int or steps < 0:
            raise InputError(f"a schedule's state counts no steps (_step_count: {steps!r})")
        self.last_epoch, self._step_count = epoch, steps
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr):
            group["lr"] = rate


class EpochSchedule(FormulaSchedule):
    """Warm-up, then cosine or steps; `step()` once per epoch.

    During the first WARMUP_EPOCH epochs the rate is WARMUP_CONS_LR (constant), or climbs from WARMUP_MIN_LR at epoch 0
    by LR / WARMUP_EPOCH an epoch (linear). The main schedule then starts from its own epoch 0 when WARMUP_RECOUNT is
    set (the default); its length stays MAX_EPOCH, so that the last warm-up epochs of it are never reached.
    """

    def __init__(self, optimizer, optim_cfg, last_epoch=-1):
        check_schedule(optim_cfg)
        self.kind = optim_cfg.LR_SCHEDULER
        self.max_epoch = optim_cfg.MAX_EPOCH
        self.gamma = optim_cfg.GAMMA
        self.steps = steps_of(optim_cfg)
        if self.kind == "single_step" and self.steps == NEVER:
            self.steps = [self.max_epoch]
        self.warmup_epoch = max(0, optim_cfg.WARMUP_EPOCH)
        self.warmup_type = optim_cfg.WARMUP_TYPE
        self.warmup_cons_lr = optim_cfg.WARMUP_CONS_LR
        self.warmup_min_lr = optim_cfg.WARMUP_MIN_LR
        self.recount = optim_cfg.WARMUP_RECOUNT
        super().__init__(optimizer, last_epoch)

    def rate(self, base_lr, epoch):
        """The rate of `epoch` (from 0) for a group whose own rate is `base_lr`."""
        if epoch < self.warmup_epoch:
            if self.warmup_type == "constant":
                return self.warmup_cons_lr
            return self.warmup_min_lr if epoch == 0 else base_lr * epoch / self.warmup_epoch
        if self.recount:
            epoch = epoch - self.warmup_epoch
        if self.kind == "cosine":
            return 0.5 * base_lr * (1 + math.cos(math.pi * epoch / self.max_epoch))
        if self.kind == "single_step":
            return base_lr * self.gamma ** (epoch // self.steps[0])
        return base_lr * self.gamma ** sum(epoch >= step for step in self.steps)


def build_lr_scheduler(optimizer, optim_cfg):
    """The schedule that the OPTIM node describes. Raises InputError for unknown names, and for settings that only
    another schedule understands."""
    return EpochSchedule(optimizer, optim_cfg)


def steps_of(optim_cfg):
    """OPTIM.STEPSIZE as a list."""
    steps = optim_cfg.STEPSIZE
    return [steps] if isinstance(steps, int) else list(steps)


def check_schedule(optim_cfg):
    """Raise InputError for an OPTIM node whose schedule has no meaning."""
    kind, steps = optim_cfg.LR_SCHEDULER, steps_of(optim_cfg)
    check_availability(kind, AVAI_SCHEDS, "OPTIM.LR_SCHEDULER")
    if optim_cfg.MAX_EPOCH < 1:
        raise InputError(f"OPTIM.MAX_EPOCH must be at least 1, not {optim_cfg.MAX_EPOCH}")
    if not steps:
        raise InputError("OPTIM.STEPSIZE is empty; give the epochs after which the rate falls, or (-1,)")
    given = f"OPTIM.STEPSIZE {tuple(steps)}"
    if kind != "cosine" and not all(isinstance(step, int) for step in steps):
        raise InputError(f"{given}: epochs are whole numbers")
    if kind == "single_step" and len(steps) > 1:
        raise InputError(f"{given}: single_step takes one number, the epochs between two steps; several epochs are "
                         "for OPTIM.LR_SCHEDULER multi_step")
    if kind == "single_step" and steps != NEVER and steps[0] < 1:
        raise InputError(f"{given}: single_step needs a number of epochs from 1 on, or (-1,) for no step")
    if kind == "multi_step" and not (steps[0] > 0 and all(a < b for a, b in zip(steps, steps[1:]))):
        raise InputError(f"{given}: multi_step needs the epochs at which the rate falls, from 1 on and ascending, such "
                         "as \"(3,7)\"; (-1,) means something to single_step only")
    if kind != "cosine" and optim_cfg.GAMMA <= 0 and _first_step(optim_cfg) < optim_cfg.MAX_EPOCH:
        raise InputError(f"OPTIM.GAMMA {optim_cfg.GAMMA}: the rate is multiplied by it at each step and would be no "
                         "rate any more; give a number above 0, such as 0.1")
    if optim_cfg.WARMUP_EPOCH > 0:
        check_availability(optim_cfg.WARMUP_TYPE, AVAI_WARMUPS, "OPTIM.WARMUP_TYPE")


def _first_step(optim_cfg):
    """The epoch (from 0) of the first step; MAX_EPOCH where there is none."""
    steps = steps_of(optim_cfg)
    late = max(0, optim_cfg.WARMUP_EPOCH) if optim_cfg.WARMUP_RECOUNT else 0
    return optim_cfg.MAX_EPOCH if steps == NEVER else steps[0] + late


def notes_on(optim_cfg):
    """Sentences on settings of a schedule that can be meant and mostly are not: a list."""
    notes, last, warm = [], optim_cfg.MAX_EPOCH, max(0, optim_cfg.WARMUP_EPOCH)
    steps = [] if optim_cfg.LR_SCHEDULER == "cosine" or steps_of(optim_cfg) == NEVER else steps_of(optim_cfg)
    late = warm if optim_cfg.WARMUP_RECOUNT else 0
    beyond = [step for step in steps if step + late >= last]
    if beyond:
        counted = f", counted from the end of the {warm} epochs of warm-up" if late else ""
        notes.append(f"OPTIM.STEPSIZE {', '.join(map(str, beyond))} is not reached in OPTIM.MAX_EPOCH {last}{counted}")
    if steps and optim_cfg.GAMMA > 1 and len(beyond) < len(steps):
        notes.append(f"OPTIM.GAMMA {optim_cfg.GAMMA} is above 1: the rate grows at each step")
    if warm >= last:
        notes.append(f"all of OPTIM.MAX_EPOCH {last} is warm-up (OPTIM.WARMUP_EPOCH {warm}): OPTIM.LR is never reached")
    if warm:
        key = "WARMUP_CONS_LR" if optim_cfg.WARMUP_TYPE == "constant" else "WARMUP_MIN_LR"
        if optim_cfg[key] > optim_cfg.LR:
            notes.append(f"OPTIM.{key} {optim_cfg[key]:g} is above OPTIM.LR {optim_cfg.LR:g}: the warm-up is the "
                         "faster part")
        if optim_cfg[key] == 0:
            notes.append(f"OPTIM.{key} is 0: nothing is learned in "
                         + ("the warm-up" if key == "WARMUP_CONS_LR" else "the first epoch"))
    return notes
