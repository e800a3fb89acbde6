"""Progress: what a training tells while it runs, on the console and for TensorBoard."""
import datetime
import secrets
import time
from collections.abc import Iterator
from typing import Any

from dassl.utils import AverageMeter, InputError, MetricMeter, rank, require_own_folder


class Progress:
    """The line of a step with its numbers, times and the time left, and the writer of scalars.

    An epoch begins with `begin_epoch`; of each step `batch_loaded`, `step_made` and, at its very end, `step_over` are
    called, in this order.

    Attributes:
        writer: the TensorBoard writer; None where nothing is written.
    """

    def __init__(self) -> None:
        self.writer: Any = None
        self._epoch = self._max_epoch = self._batches = 0
        self._losses, self._step_time, self._load_time = MetricMeter(), AverageMeter(), AverageMeter()
        self._since = 0.0  # when the last step was over

    # ---- scalars ----
    def open(self, folder: str) -> None:
        """Write scalars to files in a folder; of a run's processes rank 0 does.

        Raises InputError where the folder is a link."""
        if self.writer is None and rank() == 0:
            from torch.utils.tensorboard import SummaryWriter  # slow to import; tools that only read need none

            require_own_folder(folder)
            # A name that nobody foresees: TensorBoard would write through a link that lies there.
            self.writer = SummaryWriter(log_dir=folder, filename_suffix=f".{secrets.token_hex(4)}")

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def scalar(self, tag: str, value: Any, step: int | None = None) -> None:
        """Write a number. Raises InputError where somebody has removed the folder meanwhile."""
        if self.writer is None:
            return
        try:
            self.writer.add_scalar(tag, value, step)
        except FileNotFoundError:
            raise InputError(f"{self.writer.log_dir} was removed while the run was writing to it; let nobody "
                             "touch it, and start the same command again: it goes on from the last checkpoint that "
                             "is left") from None

    # ---- an epoch ----
    def begin_epoch(self, epoch: int, max_epoch: int, batches: int) -> None:
        """epoch: from 0, of `max_epoch`; batches: of the epoch."""
        self._epoch, self._max_epoch, self._batches = epoch, max_epoch, batches
        self._losses, self._step_time, self._load_time = MetricMeter(), AverageMeter(), AverageMeter()
        self._since = time.time()

    def batch_loaded(self) -> None:
        self._load_time.update(time.time() - self._since)

    def step_made(self, summary: dict[str, Any] | None) -> None:
        """summary: the numbers of the step, {name: number}."""
        self._step_time.update(time.time() - self._since)
        self._losses.update(summary)

    def step_over(self) -> None:
        self._since = time.time()

    def show(self, batch: int, lr: float, every: int) -> None:
        """Print the line of a batch (from 0): of the epoch's last, and of each `every`-th unless that is 0."""
        done = batch + 1
        if not (done == self._batches or every > 0 and done % every == 0):
            return
        left = self._batches - done + (self._max_epoch - self._epoch - 1) * self._batches
        eta = datetime.timedelta(seconds=int(self._step_time.avg * left))
        print(f"epoch [{self._epoch + 1}/{self._max_epoch}] batch [{done}/{self._batches}] "
              f"time {self._step_time.val:.3f} ({self._step_time.avg:.3f}) data {self._load_time.val:.3f} "
              f"({self._load_time.avg:.3f}) {self._losses} lr {lr:.4e} eta {eta}")

    def numbers(self) -> Iterator[tuple[str, float]]:
        """(name, number) of the step, of those that steps of this epoch have given."""
        for name, meter in self._losses.meters.items():
            yield name, meter.val
