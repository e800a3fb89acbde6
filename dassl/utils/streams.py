"""Standard streams that are closed, or whose reader goes away (`train.py ... | head -1`)."""
import contextlib
import errno
import os
import sys

SIGPIPE = 13  # what ends a Unix program whose reader has gone


class ReaderGone(SystemExit):
    """Nobody reads the output any more. The exit status is 141, as a shell reports for such a program."""

    def __init__(self):
        super().__init__(128 + SIGPIPE)


class Watched:
    """A stream that calls `lost(error)` where it cannot be written; what it holds and what follows goes nowhere."""

    def __init__(self, stream, lost):
        self.stream, self.lost = stream, lost

    def __getattr__(self, name):
        return getattr(self.__dict__["stream"], name)

    def write(self, text):
        with self._watched():
            self.stream.write(text)
        return len(text)

    def flush(self):
        with self._watched():
            self.stream.flush()

    @contextlib.contextmanager
    def _watched(self):
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError, ValueError):  # of a stream without a file, or a closed one
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)
            self.lost(error)


def go_on(error):
    """For a program whose result is in files: it goes on without printing."""


def end_quietly(error):
    """For a program that prints its result. Raises ReaderGone, or the error where it is another (a full disk)."""
    if error.errno == errno.EPIPE:
        raise ReaderGone from None
    raise error


@contextlib.contextmanager
def watched_streams(lost):
    """Within it stdin, stdout and stderr are open, and a stdout that cannot be written calls `lost(error)`; what is
    told on stderr ends nothing. At the end all is written.

    lost: `go_on` or `end_quietly`."""
    _open_closed()
    stdout, stderr = sys.stdout, sys.stderr
    try:
        with contextlib.redirect_stdout(Watched(stdout, lost)), contextlib.redirect_stderr(Watched(stderr, go_on)):
            yield
    finally:  # else the interpreter tries at its own end, and complains
        for stream in (stdout, stderr):
            Watched(stream, go_on).flush()


def _open_closed():
    """Open /dev/null on each of the descriptors 0, 1 and 2 that is closed: the next file that is opened would get the
    number, and what a library prints would go into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))
