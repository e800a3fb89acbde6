"""The lines that stand below in a terminal while runs are made: one for each of these, one for the whole."""
from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

from rich.console import Console as Terminal
from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dassl.engine.progress import FEATURES
from dassl.utils.text import escaped, unescaped
from protocols import Run
from tools.running.console import Console, Lines, Running, Verbose
from tools.running.time_left import duration

REFRESHED = 4  # times per second
BAR = 24  # columns
MARGIN = 4  # columns: a terminal writes "^C" behind the last line, which must not begin another


def console_for(runs: Sequence[Run], jobs: int, verbose: bool = False) -> Console:
    """The Console of a command: live lines in a terminal that can move its cursor, else a line per run that is over.

    verbose: everything that the runs print, instead of live lines."""
    if verbose:
        return Verbose(runs, jobs)
    terminal = terminal_of(sys.stdout)
    return Lines(runs, jobs) if terminal is None else LiveLines(runs, jobs, terminal)


def terminal_of(stream: TextIO | None) -> Terminal | None:
    """The terminal that a stream leads to, None where that is none, or a dumb one. What is written to it is not escaped
    by the stream."""
    if stream is None or not stream.isatty():
        return None
    file: Any = Encoded(unescaped(stream))
    terminal = Terminal(file=file, markup=False, emoji=False, highlight=False)
    return terminal if terminal.is_terminal and not terminal.is_dumb_terminal else None


def width_of(stream: TextIO | None) -> int | None:
    """The width of the terminal that a stream leads to; None where that is none."""
    terminal = terminal_of(stream)
    return None if terminal is None else terminal.width


class LiveLines(Lines):
    """The lines of runs that are over, and below them live ones."""

    def __init__(self, runs: Sequence[Run], jobs: int, terminal: Terminal) -> None:
        super().__init__(runs, jobs)
        self._terminal = terminal
        self._known: tuple[float, Any] = -1.0, None  # the time that is left, and when that was found out
        self._live = Live(get_renderable=self._render, console=terminal, refresh_per_second=REFRESHED, transient=True,
                          redirect_stdout=False, redirect_stderr=False)

    def __enter__(self) -> Console:
        # What this process prints otherwise must stand above, too.
        above_it = Above(self._terminal, sys.stdout)
        self._context.callback(above_it.end)
        self._context.enter_context(contextlib.redirect_stdout(above_it))  # type: ignore[type-var]
        if sys.stderr is not None and sys.stderr.isatty():
            self._context.enter_context(contextlib.redirect_stderr(above_it))  # type: ignore[type-var]
        self._context.enter_context(self._live)
        return self

    def show(self, line: str, failure: bool = False) -> None:
        above(self._terminal, line, "red" if failure else "")
        if failure and sys.stderr is not None and not sys.stderr.isatty() and not isinstance(sys.stderr, Above):
            print(line, file=sys.stderr, flush=True)

    # ---- what stands below ----
    def _render(self) -> RenderableType:
        under_way = list(self.running.values())
        room = max(1, self._terminal.height - 3)
        shown = [_one_line(f"{self._labels.columns(each.run)}  {state(each)}") for each in under_way[:room]]
        if len(under_way) > room:
            shown.append(_one_line(f"and {len(under_way) - room} more"))
        return Constrain(Group(*shown, self._whole(under_way)), max(1, self._terminal.width - MARGIN))

    def _whole(self, under_way: list[Running]) -> RenderableType:
        if time.monotonic() - self._known[0] >= 1:  # of thousands of runs it takes a while
            self._known = time.monotonic(), self.left()
        left = self._known[1]
        words = f"{self.over} of {len(self.runs)} runs  {duration(time.monotonic() - self.started)}"
        row = Table.grid(padding=(0, 2))
        row.add_row(_one_line(words + (f"; {left}" if left else ""), "bold"),
                    ProgressBar(len(self.runs), self.over + sum(map(part_done, under_way)), width=BAR))
        return row


def state(each: Running) -> str:
    """What a run is doing, in words."""
    point = each.point
    if point is None:
        return f"starts  {duration(each.seconds())}"
    if point.part == FEATURES:
        return f"computes features  {100 * point.done // max(1, point.batches)} %"
    if point.part:
        return f"tests on {point.part}  {100 * point.done // max(1, point.batches)} %"
    loss = "" if point.loss is None else f"  loss {point.loss:.3f}"
    left = "" if point.seconds_left is None else f"  {duration(point.seconds_left)} left"
    return f"epoch {point.epoch:>{len(str(point.epochs))}}/{point.epochs}{loss}{left}"


def part_done(each: Running) -> float:
    """The share of a run that is done, from 0 to 1, as far as its epochs tell."""
    point = each.point
    if point is None or not point.epochs:
        return 0.0
    return (point.epoch - 1 + (point.done / point.batches if point.batches and not point.part else 0)) / point.epochs


def _one_line(words: str, style: str = "") -> Text:
    return Text(words, style, no_wrap=True, overflow="ellipsis")


def above(terminal: Terminal, line: str, style: str = "") -> None:
    """Print a line above the live ones; what a terminal would obey in it is written out."""
    line = escaped(line)
    with contextlib.suppress(LookupError):  # an encoding that Python does not know
        line = line.encode(terminal.encoding, "backslashreplace").decode(terminal.encoding)
    terminal.print(Text(line, style), soft_wrap=True)


class Encoded:
    """A stream that takes any character; what its encoding lacks, such as the "..." of one character where a line is
    cut, is a question mark, as wide as that was."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stream"], name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
        return len(text)


class Above(io.TextIOBase):
    """A stream whose lines are printed above the live ones. To who asks it is no terminal: what moves the cursor, such
    as a bar of progress, would tear the lines apart.

    stream: what a forked process, a loader's worker, writes to; the terminal's lock may be held in it for ever.
    """

    def __init__(self, terminal: Terminal, stream: Any) -> None:
        self._terminal, self._stream, self._process, self._begun = terminal, stream, os.getpid(), ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._terminal.encoding

    def fileno(self) -> int:
        number: int = self._stream.fileno()
        return number

    def write(self, text: str) -> int:
        if os.getpid() != self._process:
            self._stream.write(text)
            return len(text)
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            above(self._terminal, line)
        return len(text)

    def end(self) -> None:
        """Print what is left of a line."""
        if self._begun:
            self.write("\n")

    def flush(self) -> None:
        """A line that is not at its end waits for that: live lines begin in the first column."""
