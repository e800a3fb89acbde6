"""How a program ends: exit statuses, and one line for what the user can mend."""
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from dassl.utils import (
    InputError,
    Terminated,
    escaped_streams,
    first_to_tell,
    joined,
    lost_another,
    surroundings,
)
from dassl.utils.streams import ReaderGone, end_quietly, watched_streams
from prompting import PromptingError


def mendable(error: BaseException | None) -> str | None:
    """One line for an error that the user can mend, None for a bug."""
    if isinstance(error, (InputError, PromptingError)):
        return " ".join(str(error).split())
    return surroundings(error)


def command_line(function: Callable[[], Any], unread: Callable[[OSError], None] = end_quietly) -> int:
    """Call `function()`; what the user can mend becomes one line and exit status 2. What is printed is escaped
    (dassl/utils/text.py).

    Where torchrun has started several processes, they make what `function` does together, and whichever is the first
    to end early tells why.

    Args:
        unread: what becomes of a program whose output nobody reads any more, `end_quietly` or `go_on`.
    Returns:
        the exit status: 0, 2 for what the user can mend, 130 or 143 for an interruption, 141 where nobody reads on, 1
        where another process of the run was lost.
    """
    try:
        with watched_streams(unread), escaped_streams(), threads_told():
            return _status_of(function)
    except ReaderGone as gone:
        return _status(gone)


def _status_of(function: Callable[[], Any]) -> int:
    """The exit status of a call of `function()`; what ends it is told."""
    try:
        with joined():
            function()
            sys.stdout.flush()  # a full disk is told as one below
    except (KeyboardInterrupt, Terminated) as stop:
        if lost := lost_another(stop.__context__):  # torchrun's signal, while this process was ending for that reason
            return tell_lost(lost)
        tell("interrupted; the same command goes on from the last checkpoint")
        return 130 if isinstance(stop, KeyboardInterrupt) else _status(stop)
    except Exception as error:
        if lost := lost_another(error):
            return tell_lost(lost)
        line = mendable(error)
        if line is None:
            if not first_to_tell():
                return 1
            raise
        tell(f"error: {line}")
        return 2
    return 0


def _status(stop: SystemExit) -> int:
    return stop.code if isinstance(stop.code, int) else 1


@contextlib.contextmanager
def threads_told() -> Iterator[None]:
    """Within it what a library's thread dies of (TensorBoard's, of a full disk) is told as `command_line` tells it."""
    former = threading.excepthook

    def told(death: threading.ExceptHookArgs) -> None:
        line = mendable(death.exc_value)
        if line is None:
            former(death)
        else:
            print(f"Warning: {line}", file=sys.stderr)

    threading.excepthook = told
    try:
        yield
    finally:
        threading.excepthook = former


def tell_lost(reason: str) -> int:
    """Say that another process of this run is gone. Returns the exit status."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it now, and this process is at its end
    tell("error: another process of this run has ended, or cannot be reached; the same command goes on from the last "
         f"checkpoint ({reason})")
    return 1


def tell(line: str) -> None:
    """Print a line that ends this run, once for all its processes."""
    if first_to_tell():
        print(line, file=sys.stderr, flush=True)
