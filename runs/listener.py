"""Who listens to a run while it is made: where it prints beside its log.txt, and who is told how far it is."""
import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator
from typing import TextIO

from dassl.engine.progress import Point

# What a user must see although the details are in the log: warnings, notes, and why numbers do not compare or are off.
NOTICED = re.compile(r"\W*(?:(?i:warning)|Note|NOTE|Left out|Stopped by)\b|"
                     r".*(?:do not compare|cannot be compared|give wrong numbers)")


class Listener:
    """Who is told of a run. This one is the user at a terminal: what the run prints says all.

    Attributes:
        prints: the stream that what the run prints goes to beside its log.txt; None for stdout.
        made: whether the run was made, and not taken over because it was finished before.
    """

    prints: TextIO | io.TextIOBase | None = None
    made = True

    def reached(self, point: Point) -> None:
        """The run is at a Point; called a few times per second while it trains and evaluates."""

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Within it what is printed while there is no log.txt goes where the run's own lines go beside it."""
        with contextlib.ExitStack() as stack:
            if self.prints is not None:
                stack.enter_context(contextlib.redirect_stdout(self.prints))  # type: ignore[type-var]
            yield

    def finished_before(self, folder: str) -> None:
        """The run was finished before; nothing is made."""
        self.made = False
        print(f"Finished before: {folder}")


class Noticing(Listener):
    """One who tells others.

    Args:
        reached: is given the Points.
        noticed: is given those lines that a user must see; the others are in log.txt only. None: all are printed.
    """

    def __init__(self, reached: Callable[[Point], None], noticed: Callable[[str], None] | None) -> None:
        self._reached = reached
        self.prints = None if noticed is None else NoticedLines(noticed)

    def reached(self, point: Point) -> None:
        self._reached(point)

    def finished_before(self, folder: str) -> None:
        self.made = False


class NoticedLines(io.TextIOBase):
    """A stream that hands on the lines that a user must see, and drops the others; so with all that a forked process, a
    loader's worker, prints."""

    encoding = "utf-8"  # code of others asks its stdout for it

    def __init__(self, noticed: Callable[[str], None]) -> None:
        self._noticed, self._begun, self._process = noticed, "", os.getpid()

    def write(self, text: str) -> int:
        if os.getpid() != self._process:
            return len(text)
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if NOTICED.match(line):
                self._noticed(line)
        return len(text)
