"""A DataLoader that starts only as many workers as the machine can serve, and never waits for one without a limit."""
import contextlib
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import queues
from typing import Any

from torch.utils.data import DataLoader

from dassl.utils import InputError, leave_signals_to_the_parent
from dassl.utils.optional import optional_module

resource = optional_module("resource")
BATCH_TIMEOUT = 900  # seconds that a batch may take; a disk that answers so late answers no more
# Seconds between two looks whether the workers live; torch is told of most deaths, but not of the earliest.
WORKER_POLL = 5.0
FILES = 64  # files per worker that this process keeps open while batches are handed over, in all loaders together
SPARE = 80  # files that a run opens besides
SOCKET = os.path.join("pymp-12345678", "listener-12345678")  # below the temporary folder: where tensors are handed over
LONGEST = 103  # bytes of a socket's path; Linux takes 107


def possible_workers(asked):
    """(how many of the `asked` loader workers can hand their batches over, why not all of them).

    A worker that cannot open a file or a socket loses its batch silently, and the process that waits for it is not
    told. The limit of open files is raised as far as this user may."""
    if not asked:
        return 0, ""
    try:
        folder = tempfile.gettempdir()
    except OSError:
        return 0, "there is no temporary folder that can be written (TMPDIR)"
    if len(os.fsencode(os.path.join(folder, SOCKET))) > LONGEST:
        return 0, f"the path of the temporary folder is too long for a socket ({folder}; TMPDIR names another one)"
    limit, opened = _file_limit(_open_files() + SPARE + FILES * asked), _open_files()
    fit = max(0, (limit - opened - SPARE) // FILES)
    return min(asked, fit), f"this process may open {limit} files only (ulimit -n)"


def _file_limit(wanted):
    """How many files this process may open, after an attempt to make it `wanted`."""
    if resource is None:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):  # a system may have a lower limit than it says
        return soft
    return most


def _open_files():
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return 32


class EpochLoader(DataLoader):
    """A DataLoader that has its dataset reserve what workers share before they are started, and ends the run where a
    worker does not answer.

    Attributes:
        source: what gives the batches in place of the loader's own pass over the pictures (`read`), or None. Its
            `batches(loader)` is called for each pass.
        on_batch: called as `on_batch(batch, size)` with each batch that is given; size: its images, those of all ranks
            together.
    Raises (from its iterator):
        InputError: a batch has not come within BATCH_TIMEOUT seconds.
        RuntimeError: a worker has died (`dassl.utils.surroundings` says it in one line).
    """

    source: Any = None
    on_batch: Callable[[Any, int], None] | None = None

    def __init__(self, dataset, num_workers=0, **settings):
        super().__init__(dataset, num_workers=num_workers, worker_init_fn=begin_worker, **settings)

    def __iter__(self):
        batches = self.read() if self.source is None else self.source.batches(self)
        return batches if self.on_batch is None else self._watched(batches, self.on_batch)

    def read(self):
        """A pass over the pictures."""
        reserve = getattr(self.dataset, "reserve", None)
        if reserve is not None:
            reserve()
        if self._iterator is not None:  # of workers that are kept; torch cannot begin again on a time limit
            self._iterator._timeout = 0
        with _safe_path():
            batches = super().__iter__()
        return _in_time(batches) if self.num_workers else batches

    def _watched(self, batches, on_batch):
        sampler: Any = self.batch_sampler  # of samplers.py
        for number, batch in enumerate(batches, start=sampler.first_batch):
            on_batch(batch, sampler.size_of(number))
            yield batch


@contextlib.contextmanager
def _safe_path():
    """A context in which workers do not import modules from the working folder. This concerns workers that are started
    as `python -c ...` instead of forked."""
    if multiprocessing.get_start_method() == "fork" or "PYTHONSAFEPATH" in os.environ:
        yield
        return
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTHONSAFEPATH"]


def _in_time(batches):
    """The batches of torch's iterator, each within BATCH_TIMEOUT seconds. With a timeout, torch looks for dead workers
    only when it ends. So torch is given the short WORKER_POLL, again and again."""
    batches._timeout, looks = WORKER_POLL, 0  # looks and no clock: a run that is suspended meanwhile goes on
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader timed out" not in str(error):
                raise
            looks += 1
            if looks * WORKER_POLL < BATCH_TIMEOUT:
                continue
            raise InputError(f"no batch has come from the loader's workers for {BATCH_TIMEOUT} s; see whether the disk "
                             "of the images answers, or take DATALOADER.NUM_WORKERS 0; the same command then goes on "
                             "from the last checkpoint") from None
        yield batch
        looks = 0


def begin_worker(worker_id=0):
    """What a loader's worker does first. A worker that cannot hand over a batch (no file, socket or memory left, or an
    object that cannot be sent) would lose it in a thread, while the parent waits. So it ends, which the parent
    notices."""
    leave_signals_to_the_parent()
    hook = staticmethod(lambda error, item: _give_up(error))
    queues.Queue._on_queue_feeder_error = hook  # type: ignore[attr-defined]  # typeshed leaves it out
    sys.excepthook = lambda kind, error, trace: _give_up(error)  # called by the thread that serves tensors alone


def _give_up(error):
    print(f"A loader worker cannot hand a batch over: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    os._exit(1)
