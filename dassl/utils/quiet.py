"""Work whose words nobody wants to read."""
import contextlib
import sys
import threading


class _Muted:
    """A stdout that leaves out what one thread writes."""

    def __init__(self, stream):
        self.stream, self.thread = stream, threading.get_ident()

    def __getattr__(self, name):
        return getattr(self.__dict__["stream"], name)

    def write(self, text):
        return len(text) if threading.get_ident() == self.thread else self.stream.write(text)


@contextlib.contextmanager
def quiet():
    """Within it what this thread prints is left out; other threads print as ever."""
    with contextlib.redirect_stdout(_Muted(sys.stdout) if sys.stdout is not None else None):
        yield
