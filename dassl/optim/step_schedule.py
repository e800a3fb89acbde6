"""A learning rate that follows the updates, not the epochs: methods that are published in iterations have one."""
import math

from dassl.optim.lr_scheduler import FormulaSchedule
from dassl.utils import InputError


class StepSchedule(FormulaSchedule):
    """Linear warm-up, then a cosine down to `minimum`. The update number t (from 0) of T has the rate

        t < warmup:  lr (t + 1) / warmup
        else:        minimum + (lr - minimum) (1 + cos(pi (t - warmup) / (T - warmup))) / 2

    so the first update after the warm-up has the whole rate and none has `minimum`. A PromptTrainer calls `step()`
    after each update of its optimizer, and not once per epoch.

    Args:
        steps: T, the updates that are planned; later ones have the rate `minimum`.
        warmup: updates of the warm-up, fewer than T.
        minimum: what the rate falls to.
    """

    per_step = True

    def __init__(self, optimizer, steps, warmup=0, minimum=0.0):
        if steps < 1:
            raise InputError(f"a training makes at least 1 update, not {steps}")
        if not 0 <= warmup < steps:
            raise InputError(f"a warm-up of {warmup} updates does not end within a training of {steps}; make it "
                             "shorter, or the training longer")
        self.steps, self.warmup, self.minimum = steps, warmup, minimum
        super().__init__(optimizer)

    def rate(self, base_lr, step):
        """The rate of update `step` (from 0) for a group whose own rate is `base_lr`."""
        if step < self.warmup:
            return base_lr * (step + 1) / self.warmup
        share = min(1.0, (step - self.warmup) / (self.steps - self.warmup))
        return self.minimum + (base_lr - self.minimum) * (1 + math.cos(math.pi * share)) / 2
