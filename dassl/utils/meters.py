"""Running values of the training lines."""
from collections import defaultdict

import torch


class AverageMeter:
    """Last value and mean of a number. `ema=True` averages exponentially (0.9 old, 0.1 new)."""

    def __init__(self, ema=False):
        self.ema = ema
        self.reset()

    def reset(self):
        self.val = self.avg = self.sum = 0.0
        self.count = 0

    def update(self, val, n=1):
        if isinstance(val, torch.Tensor):
            val = val.item()
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = (self.avg * 0.9 + val * 0.1) if self.ema and self.count > n else self.sum / self.count


class MetricMeter:
    """One AverageMeter per name, printed as `loss 1.23 (1.45) acc 50.0 (48.2)`."""

    def __init__(self, delimiter=" "):
        self.meters = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict):
        if input_dict is None:
            return
        if not isinstance(input_dict, dict):
            raise TypeError("MetricMeter.update expects a dictionary of numbers")
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def __str__(self):
        return self.delimiter.join(f"{name} {m.val:.4f} ({m.avg:.4f})" for name, m in self.meters.items())
