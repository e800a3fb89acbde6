"""SIGINT and SIGTERM. In training they ask for a stop between two batches; elsewhere they end the run at once."""
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from typing import Any

from dassl.utils.distributed import all_reduce_max
from dassl.utils.processes import PARENT_POLL

TWICE = 1.0  # seconds within which a signal that comes again is the same one: scancel and srun both deliver it


class Terminated(SystemExit):
    """SIGTERM came; the exit status is 143."""

    def __init__(self):
        super().__init__(128 + signal.SIGTERM)


def end_by(number):
    """Raise what stands for the signal: KeyboardInterrupt (exit status 130) or Terminated (143)."""
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _handled(number):
    """Whether the signal's handler may be replaced: not where it is ignored (nohup), foreign, or not this thread's."""
    in_main = threading.current_thread() is threading.main_thread()
    return in_main and signal.getsignal(number) not in (signal.SIG_IGN, None)


@contextlib.contextmanager
def sigterm_raises():
    """Within it SIGTERM raises Terminated, so that what is open is closed. SIGINT raises KeyboardInterrupt anyway."""
    if not _handled(signal.SIGTERM) or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    former = signal.signal(signal.SIGTERM, lambda number, frame: end_by(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


class StopRequest:
    """Within it SIGINT and SIGTERM are noted; whoever loops asks `asked()` and then calls `end()`. A second signal ends
    the process at once, unless it is the first one delivered twice. Outside the main thread, where no handler can be
    set, nothing is noted. It may be entered again, and then begins anew.

    Attributes:
        number: of the signal that was noted; None before.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._since = 0.0
        self._former: dict[int, Any] = {}
        self._entered = False

    def __enter__(self) -> "StopRequest":
        self.number, self._entered = None, True
        for number in (signal.SIGINT, signal.SIGTERM):
            if _handled(number):
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._entered = False
        for number, former in self._former.items():
            signal.signal(number, former)
        self._former = {}

    def _note(self, number: int, frame: Any) -> None:
        if self.number is None:
            self.take(number)
        elif number != self.number or time.monotonic() - self._since > TWICE:
            end_by(number)

    def take(self, number: int) -> None:
        """Note a signal, this process's own or one that another process of the run has told of."""
        self.number, self._since = number, time.monotonic()

    def asked(self) -> bool:
        """Whether a signal has come to any process of the run; all of them ask together, and then all have noted it.
        False outside the `with` block, where signals are not noted."""
        number = int(all_reduce_max(self.number or 0)) if self._entered else 0
        if number and self.number is None:
            self.take(number)
        return bool(number)  # what has come just now, to this process only, is seen by all the next time

    @property
    def name(self) -> str:
        return signal.Signals(self.number or 0).name

    def end(self) -> None:
        """Raise KeyboardInterrupt (SIGINT) or Terminated (SIGTERM)."""
        end_by(self.number)


def leave_signals_to_the_parent(worker_id=0):
    """For a loader's worker: Ctrl-C and a batch system's SIGTERM reach the whole process group, and a worker that dies
    of them breaks the step the parent is in. The parent's own SIGTERM ends it (whoever still has workers when it exits
    sends them one and waits for them), and so does its death. torch, too, has a worker look for its parent, but not
    while it waits for somebody to take a batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # tells who has sent it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_at_the_parents_word, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_at_the_parents_word(parent):
    # A worker that a fork server has forked has that for its parent in the system's eyes.
    lives = (lambda: os.getppid() == parent.pid) if os.getppid() == parent.pid else parent.is_alive
    while lives():
        if not hasattr(signal, "sigtimedwait"):
            time.sleep(PARENT_POLL)
        elif (word := signal.sigtimedwait({signal.SIGTERM}, PARENT_POLL)) and word.si_pid == parent.pid:
            break
    os._exit(0)
