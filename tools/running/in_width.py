"""A table in the width of a terminal: headers in several lines, names shortened, and columns that still find no room in
a table of their own below."""
from __future__ import annotations

import textwrap
from collections.abc import Sequence

from tabulate import tabulate

from dassl.utils import printable
from protocols.parts.numbers import Number
from protocols.parts.tables import Table

NAME = 3  # where columns find no room, names take at most one of so many parts of the width


def in_width(table: Table, width: int | None) -> str:
    """A table as text in lines of at most `width` characters, as far as its numbers allow. For None, and where there is
    room, as `Table.render` has it."""
    cells = [[word.text() if isinstance(word, Number) else printable(word) for word in row] for row in table.rows]
    headers = [printable(header) for header in table.headers]
    if width is None or _widest(_text(headers, cells, range(len(headers)))) <= width:
        return table.render()
    headers = [_wrapped(header, [row[column] for row in cells]) for column, header in enumerate(headers)]
    parts, rest = [], list(range(1, len(headers)))
    if _widest(_text(headers, cells, [0, *rest])) > width:
        cells = [[shortened(row[0], max(12, width // NAME)), *row[1:]] for row in cells]
    while rest:
        count = next((count for count in range(len(rest), 1, -1)
                      if _widest(_text(headers, cells, [0, *rest[:count]])) <= width), 1)
        parts.append(_text(headers, cells, [0, *rest[:count]]))
        rest = rest[count:]
    notes = [f"{sign} {printable(line)}" for sign, line in table.notes()]
    return "\n".join(["\n\n".join(parts), *([""] if notes else []), *notes])


def _text(headers: list[str], cells: list[list[str]], columns: Sequence[int]) -> str:
    """These columns as a table."""
    return tabulate([[row[column] for column in columns] for row in cells], headers=[headers[each] for each in columns],
                    disable_numparse=True, colalign=("left", *["right"] * (len(columns) - 1)))


def _widest(text: str) -> int:
    return max(map(len, text.splitlines()), default=0)


def _wrapped(header: str, cells: list[str]) -> str:
    """A header in lines that are hardly wider than the column's cells; words stay whole."""
    return "\n".join(textwrap.wrap(header, max([8, *map(len, cells)]), break_long_words=False))


def shortened(name: str, width: int) -> str:
    """A name of at most so many characters; what is left out in its middle is "..."."""
    if len(name) <= width:
        return name
    end = (width - 3) // 2
    return f"{name[:width - 3 - end]}...{name[len(name) - end:]}"
