"""Learning rates as a closed formula of the epoch, so that a checkpoint holds an epoch and no pickled scheduler."""
import math

from torch.optim.lr_scheduler import LRScheduler

from dassl.utils import InputError, check_availability

AVAI_SCHEDS = ("single_step", "multi_step", "cosine")
AVAI_WARMUPS = ("constant", "linear")


class EpochSchedule(LRScheduler):
    """Warm-up, then cosine or steps; `step()` once an epoch.

    During the first WARMUP_EPOCH epochs the rate is WARMUP_CONS_LR (constant), or climbs from WARMUP_MIN_LR at epoch 0
    by LR / WARMUP_EPOCH an epoch (linear). The main schedule then starts from its own epoch 0 when WARMUP_RECOUNT is
    set (the default); its length stays MAX_EPOCH, so that the last warm-up epochs of it are never reached.
    """

    def __init__(self, optimizer, optim_cfg, last_epoch=-1):
        check_availability(optim_cfg.LR_SCHEDULER, AVAI_SCHEDS, "OPTIM.LR_SCHEDULER")
        if optim_cfg.MAX_EPOCH < 1:
            raise InputError(f"OPTIM.MAX_EPOCH must be at least 1, not {optim_cfg.MAX_EPOCH}")
        self.kind = optim_cfg.LR_SCHEDULER
        self.max_epoch = optim_cfg.MAX_EPOCH
        self.gamma = optim_cfg.GAMMA
        steps = optim_cfg.STEPSIZE
        steps = [steps] if isinstance(steps, int) else list(steps)
        if not steps:
            raise InputError("OPTIM.STEPSIZE is empty; give the epochs after which the rate falls, or (-1,)")
        if self.kind == "single_step":
            self.steps = [steps[-1] if steps[-1] > 0 else self.max_epoch]
        else:
            self.steps = steps
        self.warmup_epoch = max(0, optim_cfg.WARMUP_EPOCH)
        if self.warmup_epoch:
            check_availability(optim_cfg.WARMUP_TYPE, AVAI_WARMUPS, "OPTIM.WARMUP_TYPE")
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

    def get_lr(self):
        return [self.rate(base_lr, self.last_epoch) for base_lr in self.base_lrs]


def build_lr_scheduler(optimizer, optim_cfg):
    """The schedule that the OPTIM node describes. Raises InputError for unknown names."""
    return EpochSchedule(optimizer, optim_cfg)
