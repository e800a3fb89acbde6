"""Progress: what a training tells while it runs: lines of the log, scalars for TensorBoard, and how far it is."""
import datetime
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from dassl.utils import AverageMeter, InputError, MetricMeter, rank, require_own_folder

SECONDS_BETWEEN = 0.25  # that a listener is told how far the run is
FEATURES = "features"  # part of a Point while frozen features are computed, before a pass over their pictures


class Point(NamedTuple):
    """How far a run is.

    Attributes:
        part: of the data that is evaluated on (val, test, train); "" in the training, FEATURES before a pass.
        epoch: from 1, of `epochs`; both 0 in an evaluation.
        done: batches of the epoch or of the evaluation, of `batches`; both 0 where a trainer's loop does not say; of
            FEATURES pictures.
        loss: its mean over the epoch's batches so far; None where no step has given one.
        seconds_left: until the training ends, without the evaluation after it; None where nothing is known yet.
    """

    part: str = ""
    epoch: int = 0
    epochs: int = 0
    done: int = 0
    batches: int = 0
    loss: float | None = None
    seconds_left: float | None = None


class Progress:
    """The line of a step with its numbers, times and the time left, and the writer of scalars.

    An epoch begins with `enter_epoch`, which comes for every method, then `begin_epoch`; of each step `batch_loaded`,
    `step_made`, `show` and, at its very end, `step_over` are called, in this order. A method with a loop of its own may
    leave out all but the first.

    Attributes:
        writer: the TensorBoard writer; None where nothing is written.
        listener: is told the Point that the run is at, a few times per second; None where nobody listens.
    """

    def __init__(self) -> None:
        self.writer: Any = None
        self.listener: Callable[[Point], None] | None = None
        self._told = -SECONDS_BETWEEN  # when the listener was told
        self._entered: tuple[int, float] | None = None  # the first epoch (from 0), and when it began
        self._place = Point()  # at the beginning of this epoch; in an evaluation that of no epoch
        self._epoch = self._max_epoch = self._batches = 0
        self._losses, self._step_time, self._load_time = MetricMeter(), AverageMeter(), AverageMeter()
        self._since = self._before = 0.0  # when the last step was over; seconds until the epoch's first batch

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

    # ---- how far it is ----
    def _tell(self, point: Callable[[], Point], always: bool = False) -> None:
        """Tell the listener, unless it was told just now. The Point is made only then."""
        now = time.monotonic()
        if self.listener is not None and (always or now - self._told >= SECONDS_BETWEEN):
            self._told = now
            self.listener(point())

    def enter_epoch(self, epoch: int, max_epoch: int) -> None:
        """The loop of a training is at the beginning of an epoch (from 0), of `max_epoch`."""
        if self.listener is None:
            return
        now = time.monotonic()
        first, since = self._entered = self._entered or (epoch, now)
        left = (now - since) / (epoch - first) * (max_epoch - epoch) if epoch > first else None
        self._place = Point("", epoch + 1, max_epoch, 0, 0, self._loss(), left)
        self._tell(lambda: self._place, always=epoch == first)

    def computing(self, done: int, pictures: int) -> None:
        """The frozen features of so many pictures have been computed."""
        self._tell(lambda: self._place._replace(part=FEATURES, done=done, batches=pictures), always=done == 0)

    def evaluated(self, part: str, done: int, batches: int) -> None:
        """An evaluation has done so many batches."""
        self._place = Point()
        self._tell(lambda: Point(part, done=done, batches=batches), always=done == 0)

    def _loss(self) -> float | None:
        """The mean of the epoch's loss: of the number of that name, else of the first with that word in its name."""
        meters = self._losses.meters
        named = next((name for name in ("loss", *meters) if "loss" in name and name in meters), None)
        return None if named is None else meters[named].avg

    # ---- an epoch ----
    def begin_epoch(self, epoch: int, max_epoch: int, batches: int) -> None:
        """epoch: from 0, of `max_epoch`; batches: of the epoch."""
        self._epoch, self._max_epoch, self._batches = epoch, max_epoch, batches
        self._losses, self._step_time, self._load_time = MetricMeter(), AverageMeter(), AverageMeter()
        self._since, self._before = time.time(), 0.0

    def batch_loaded(self) -> None:
        self._load_time.update(time.time() - self._since)
        if self._load_time.count == 1:
            self._before = self._load_time.val

    def step_made(self, summary: dict[str, Any] | None) -> None:
        """summary: the numbers of the step, {name: number}."""
        self._step_time.update(time.time() - self._since)
        self._losses.update(summary)

    def step_over(self) -> None:
        self._since = time.time()

    def show(self, batch: int, lr: float, every: int) -> None:
        """Print the line of a batch (from 0): of the epoch's last, and of each `every`-th unless that is 0. Tell the
        listener how far the run is."""
        done = batch + 1
        if self.listener is not None:
            self._tell(lambda: Point("", self._epoch + 1, self._max_epoch, done, self._batches, self._loss(),
                                     self._seconds_left(done)))
        if not (done == self._batches or every > 0 and done % every == 0):
            return
        eta = datetime.timedelta(seconds=int(self._seconds_left(done)))
        print(f"epoch [{self._epoch + 1}/{self._max_epoch}] batch [{done}/{self._batches}] "
              f"time {self._step_time.val:.3f} ({self._step_time.avg:.3f}) data {self._load_time.val:.3f} "
              f"({self._load_time.avg:.3f}) {self._losses} lr {lr:.4e} eta {eta}")

    def _seconds_left(self, done: int) -> float:
        """Until the training ends when `done` batches of this epoch are done. What comes before an epoch's first batch
        (workers start, features are computed for the store) comes once in each epoch, and not with each step."""
        step = (self._step_time.sum - self._before) / max(1, self._step_time.count)
        epochs = self._max_epoch - self._epoch - 1
        return step * (self._batches - done + epochs * self._batches) + self._before * epochs

    def numbers(self) -> Iterator[tuple[str, float]]:
        """(name, number) of the step, of those that steps of this epoch have given."""
        for name, meter in self._losses.meters.items():
            yield name, meter.val
