"""Tables, and the ones that protocols share: a row per seed, a row per method.

The same tables are printed after a protocol, for the runs it made, and by metaprompt report, for run folders. A number
that does not exist, because a method cannot score new classes or because a run is missing, is "-"; so is an average
that would need it.
"""
from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate

from dassl.utils import csv_text
from protocols.parts import formats
from protocols.parts.cells import Cells
from protocols.parts.marks import Mark, lines, signs
from protocols.parts.numbers import Column, Number, average

Groups = dict[str, list[Any]]  # {name: values of a field that are averaged}


@dataclass
class Table:
    """Rows of words and Numbers.

    Attributes:
        title: one line.
        headers: a word per column.
        rows: a list of words and Numbers each.
        best: the columns (by header) whose highest number is bold in the formats that can, but for numbers of runs that
            were trained on test images.
        marks: the Marks of rows that are words.
        sources: (key, where it was read) of numbers that were not measured here.
    """

    title: str
    headers: list[str]
    rows: list[list[Any]]
    best: Sequence[str] = ()
    marks: frozenset[Mark] = field(default=frozenset())
    sources: Sequence[tuple[str, str]] = ()

    def notes(self) -> list[tuple[str, str]]:
        """[(sign, line)] that stand under the table: what its marks mean, and its sources."""
        return [*lines(self.marks | {mark for row in self.rows for word in row if isinstance(word, Number)
                                     for mark in word.marks}), *self.sources]

    def render(self, form: str = "text") -> str:
        """As text, markdown, csv (means and deviations in columns of their own) or latex; under it a line for each
        kind of mark that its numbers have, and for each source."""
        styles = {"markdown": "\n" + r"{} {}", "csv": "# {} {}", "latex": r"\par {{\footnotesize {} {}\par}}"}
        style = styles.get(form, "{} {}")
        under = [style.format(formats.sign_in(sign, form), formats.WORDS[form](line)) for sign, line in self.notes()]
        return "\n".join([self._table(form), *([""] if under and form == "text" else []), *under])

    def _table(self, form: str) -> str:
        if form == "csv":
            return self._csv()
        bold = {"markdown": "**{}**", "latex": r"\textbf{{{}}}"}.get(form, "{}")
        words = formats.WORDS[form]
        sign = {"markdown": "±", "latex": r"$\pm$"}.get(form, "+-")
        marks = {sign: formats.sign_in(sign, form) for sign in ("*", "!")}
        rows = [[word.text(sign=sign, marks=marks) if isinstance(word, Number) else words(word) for word in row]
                for row in self.rows]
        for column, header in enumerate(self.headers):
            if header in self.best:
                for row in self._highest(column):
                    rows[row][column] = bold.format(rows[row][column])
        return tabulate(rows, headers=[words(header) for header in self.headers], disable_numparse=True,
                        tablefmt={"text": "simple", "markdown": "github", "latex": "latex_raw"}[form],
                        colalign=("left", *["right"] * (len(self.headers) - 1)))

    def _highest(self, column: int) -> list[int]:
        """Rows that show the highest number of a column, as printed; none where there is nothing to compare."""
        shown = {i: round(row[column].mean, 2) for i, row in enumerate(self.rows)
                 if isinstance(row[column], Number) and row[column].mean is not None
                 and "*" not in signs(row[column].marks)}
        return [i for i, value in shown.items() if value == max(shown.values())] if len(shown) > 1 else []

    def _csv(self) -> str:
        spread = {column for row in self.rows for column, word in enumerate(row)
                  if isinstance(word, Number) and word.std is not None}
        marked = {column for row in self.rows for column, word in enumerate(row)
                  if isinstance(word, Number) and word.mean is not None and signs(word.marks)}
        lines = [[formats.csv_cell(word) for column, header in enumerate(self.headers)
                  for word in (header, *([f"{header} std"] if column in spread else []),
                               *([f"{header} marks"] if column in marked else []))]]
        for row in self.rows:
            line = []
            for column, word in enumerate(row):
                if isinstance(word, Number):
                    line.append(word.plain())
                    if column in spread:
                        line.append("" if word.std is None else f"{word.std:.4f}")
                    if column in marked:
                        line.append("" if word.mean is None else signs(word.marks))
                else:
                    line.append(formats.csv_cell(word))
            lines.append(line)
        return str(csv_text(lines)).rstrip("\n")


def titled(table: Table, form: str = "text") -> str:
    """A table under its title."""
    title = f"**{formats.markdown(table.title)}**" if form == "markdown" else formats.comment(table.title, form)
    gap = "\n" if form in ("csv", "latex") else "\n\n"
    return f"{title}{gap}{table.render(form)}"


# ---- tables that protocols share ----
def by_seed(cells: Cells, title: str, field: str = "part", groups: Groups | None = None,
            averages: Groups | None = None, metric: str = "accuracy") -> Table:
    """A row per seed and their mean; columns and arguments as of `by_method`."""
    chosen = _groups(cells, field, groups, averages)
    columns = _columns(cells, field, chosen, metric)
    rows: list[list[Any]] = [[f"seed {seed}", *(average(columns[value].at(seed) for value in group)
                                                for _, group in chosen)] for seed in cells.values("seed")]
    rows.append(["mean", *(average(columns[value] for value in group) for _, group in chosen)])
    return Table(title, ["", *(name for name, _ in chosen)], rows)


def seeds_across(cells: Cells, title: str, field: str = "part", first: str = "",
                 averages: Groups | None = None, metric: str = "accuracy") -> Table:
    """A row per value of a field, a column per seed, and the mean over the seeds.

    first: the header of the first column. averages: {name: values of the field}, rows that follow; default none.
    metric: as of `by_method`."""
    seeds, chosen = cells.values("seed"), _groups(cells, field, None, averages or {})
    columns = _columns(cells, field, chosen, metric)
    rows = [[name, *(average(columns[value].at(seed) for value in group) for seed in seeds),
             average(columns[value] for value in group)] for name, group in chosen]
    return Table(title, [first, *(f"seed {seed}" for seed in seeds), "mean"], rows)


def by_method(cells: Cells, title: str, field: str = "part", groups: Groups | None = None,
              averages: Groups | None = None, metric: str = "accuracy") -> Table:
    """A row per method.

    Args:
        field: of the places; the columns are its values.
        groups: {name: values of the field}, the columns if each is an average over several; default each value alone.
        averages: the same, columns that follow; default one over all values, {} for none.
        metric: which number of a run's metrics, such as "macro_f1" (`Cells.by_seed`).
    """
    chosen = _groups(cells, field, groups, averages)
    rows = []
    for method, own in cells.methods():
        columns = _columns(own, field, chosen, metric)
        rows.append([method, *(average(columns[value] for value in group) for _, group in chosen)])
    headers = [name for name, _ in chosen]
    return Table(title, ["method", *headers], rows, headers)


def _groups(cells: Cells, field: str, groups: Groups | None, averages: Groups | None) -> list[tuple[str, list[Any]]]:
    """[(name, values of a field that are averaged)]"""
    values = cells.values(field)
    first = [(str(value), [value]) for value in values] if groups is None else list(groups.items())
    return [*first, *({"average": values} if averages is None else averages).items()]


def _columns(cells: Cells, field: str, groups: list[tuple[str, list[Any]]], metric: str) -> dict[Any, Column]:
    """{value of a field: the Column of one method's cells}, of all that groups name; empty where there is no cell."""
    return {value: cells.where(**{field: value}).by_seed(metric)
            for value in dict.fromkeys(value for _, group in groups for value in group)}


def seconds_per_seed(cells: Cells) -> str:
    """The seconds that a seed took, over the seeds whose runs were all made; "-" where there is none."""
    times = [[results.get("seconds") for results in cells.where(seed=seed).values()] for seed in cells.values("seed")]
    whole = [sum(seed) for seed in times if None not in seed]
    return f"{statistics.mean(whole):.0f}" if whole else "-"
