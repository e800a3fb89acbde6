"""Tables of runs: the same ones after a protocol, for the runs it made, and from tools/report.py, for run folders.

A number that does not exist, because a method cannot score new classes or because a run is missing, is "-"; so is an
average that would need it.
"""
import operator
import re
import statistics
from dataclasses import dataclass, field, replace

from tabulate import tabulate

from dassl.utils import csv_text, printable
from tools.marks import IN_LATEX, IN_MARKDOWN, among_one_class, lines, marks_of, signs
from tools.method_configs import MARK
from tools.plans import IMAGENET_VARIANTS

FORMATS = ("text", "markdown", "csv", "latex")
LATEX_TEXT = str.maketrans({
    **{character: f"\\{character}" for character in "&%$#_{}"}, "\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"})
# What Markdown takes for something else; "_" within a word, as in oxford_pets, it does not.
MARKDOWN_TEXT = re.compile(r"[\\`*\[\]<|~$&]|(?<!\w)_|_(?!\w)")
NUMBER = re.compile(r"[+-]?\d*\.?\d*(e[+-]?\d+)?", re.ASCII)  # or a dash
FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"  # with which a spreadsheet's formula begins, also in full width
COMPARED = ("ZeroshotCLIP", "CoOp", "CoCoOp", "MetaPrompt")  # what `compare` takes by default


# ---- numbers ----
def accuracy(results):
    """Test accuracy in percent, None for a run without a test, or whose test images have one class."""
    return None if among_one_class(results) else results["metrics"].get("test", {}).get("accuracy")


def harmonic(base, new):
    """H = 2 / (1 / base + 1 / new), 0 when either is; None when either does not exist."""
    if base is None or new is None:
        return None
    return 2 * base * new / (base + new) if base + new else 0.0


@dataclass(frozen=True)
class Number:
    """A mean and the standard deviation over seeds (n - 1; None for one seed). mean None: there is no such number.
    marks: what is to be said of the runs it is made of (tools/marks.py)."""

    mean: float | None = None
    std: float | None = None
    marks: frozenset = frozenset()

    @classmethod
    def over(cls, values):
        values = list(values)
        if not values or any(value is None for value in values):
            return cls()
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)

    def text(self, digits=2, sign="+-", marks=None):
        """marks: {sign: how it is written}, where that is not as it is."""
        if self.mean is None:
            return "-"
        spread = f" {sign} {self.std:.{digits}f}" if self.std is not None else ""
        beside = "".join((marks or {}).get(sign, sign) for sign in signs(self.marks))
        return f"{self.mean:.{digits}f}{spread}{beside}"

    def plain(self):
        """The mean as a program reads it."""
        return "" if self.mean is None else f"{self.mean:.4f}"


class Column(dict):
    """{seed: accuracy} of one method on one test set; None: there is no such number. marks: {seed: its run's}."""

    def __init__(self, values=(), marks=None):
        super().__init__(values)
        self.marks = marks or {}

    def at(self, seed):
        """The column of one seed; empty where it is not there."""
        return Column({seed: self[seed]} if seed in self else (), {seed: self.marks.get(seed, frozenset())})


class Cells(dict):
    """{Place: results}, to choose from by the fields of a Place."""

    def where(self, **fields):
        if not fields:
            return Cells(self)
        asked = operator.attrgetter(*fields)  # a value, of several fields a tuple
        wanted = tuple(fields.values()) if len(fields) > 1 else next(iter(fields.values()))
        return Cells({place: results for place, results in self.items() if asked(place) == wanted})

    def values(self, field=None):
        """The values of a field of the places, each once, in order; without a field, the results."""
        return super().values() if field is None else list(dict.fromkeys(getattr(place, field) for place in self))

    def by_seed(self):
        """The Column of the cells, which must differ in their seed only."""
        return Column({place.seed: accuracy(results) for place, results in self.items()},
                      {place.seed: marks_of(place, results) for place, results in self.items()})

    def methods(self):
        """[(name, its cells)]; a trainer that was run with several configs is named with each, a variant with its name.
        """
        trainers = {}
        for place in self:
            trainers.setdefault(place.trainer, {})[place.config] = place.variant
        named = []
        for trainer, configs in trainers.items():
            alone = len({config.removesuffix(f"{MARK}{variant}") for config, variant in configs.items()}) == 1
            for config, variant in configs.items():
                name = variant if alone else config
                named.append((f"{trainer} ({name})" if name else trainer, self.where(trainer=trainer, config=config)))
        return named


def average(columns):
    """The Number of an average over columns, each a {seed: value}: over the columns a seed, then over the seeds.

    It does not exist where a column is empty or lacks a value; where the columns have different seeds, the means are
    averaged and no deviation is given."""
    columns = list(columns)
    marks = frozenset(mark for column in columns for found in getattr(column, "marks", {}).values() for mark in found)
    if not columns or any(not column or None in column.values() for column in columns):
        return Number(marks=marks)
    if len({frozenset(column) for column in columns}) > 1:
        return Number(statistics.mean(statistics.mean(column.values()) for column in columns), marks=marks)
    over_seeds = Number.over(statistics.mean(column[seed] for column in columns) for seed in columns[0])
    return replace(over_seeds, marks=marks)


# ---- a table ----
@dataclass
class Table:
    """Rows of words and Numbers. best: the columns (by header) whose highest number is bold in the formats that can,
    but for numbers of runs that were trained on test images. marks: those of rows that are words. sources: [(key, where
    it was read)] of numbers that were not measured here."""

    title: str
    headers: list
    rows: list
    best: tuple = ()
    marks: frozenset = field(default=frozenset())
    sources: tuple = ()

    def notes(self):
        """[(sign, line)] that stand under the table: what its marks mean, and its sources."""
        return [*lines(self.marks | {mark for row in self.rows for word in row if isinstance(word, Number)
                                   for mark in word.marks}), *self.sources]

    def render(self, form="text"):
        """As text, markdown, csv (means and deviations in columns of their own) or latex; under it a line for each
        kind of mark that its numbers have, and for each source."""
        styles = {"markdown": "\n" + r"{} {}", "csv": "# {} {}", "latex": r"\par {{\footnotesize {} {}\par}}"}
        style = styles.get(form, "{} {}")
        under = [style.format(_sign(sign, form), WORDS[form](line)) for sign, line in self.notes()]
        return "\n".join([self._table(form), *([""] if under and form == "text" else []), *under])

    def _table(self, form):
        if form == "csv":
            return self._csv()
        bold = {"markdown": "**{}**", "latex": r"\textbf{{{}}}"}.get(form, "{}")
        words = WORDS[form]
        sign = {"markdown": "±", "latex": r"$\pm$"}.get(form, "+-")
        marks = {sign: _sign(sign, form) for sign in ("*", "!")}
        rows = [[word.text(sign=sign, marks=marks) if isinstance(word, Number) else words(word) for word in row]
                for row in self.rows]
        for column, header in enumerate(self.headers):
            if header in self.best:
                for row in self._highest(column):
                    rows[row][column] = bold.format(rows[row][column])
        return tabulate(rows, headers=[words(header) for header in self.headers], disable_numparse=True,
                        tablefmt={"text": "simple", "markdown": "github", "latex": "latex_raw"}[form],
                        colalign=("left", *["right"] * (len(self.headers) - 1)))

    def _highest(self, column):
        """Rows that show the highest number of a column, as printed; none where there is nothing to compare."""
        shown = {i: round(row[column].mean, 2) for i, row in enumerate(self.rows)
                 if isinstance(row[column], Number) and row[column].mean is not None
                 and "*" not in signs(row[column].marks)}
        return [i for i, value in shown.items() if value == max(shown.values())] if len(shown) > 1 else []

    def _csv(self):
        spread = {column for row in self.rows for column, word in enumerate(row)
                  if isinstance(word, Number) and word.std is not None}
        marked = {column for row in self.rows for column, word in enumerate(row)
                  if isinstance(word, Number) and word.mean is not None and signs(word.marks)}
        lines = [[_csv(word) for column, header in enumerate(self.headers)
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
                    line.append(_csv(word))
            lines.append(line)
        return csv_text(lines).rstrip("\n")


def _sign(sign, form):
    return {"latex": IN_LATEX, "markdown": IN_MARKDOWN}.get(form, {}).get(sign) or WORDS[form](sign)


# ---- words of others in each format ----
def _latex(word):
    """A word as LaTeX text: every character that LaTeX takes for something else is written out, also a first [ or *,
    which would belong to the \\\\ that ends the row before."""
    return re.sub(r"^[\[*]", r"{\g<0>}", printable(word).translate(LATEX_TEXT))


def _markdown(word):
    return MARKDOWN_TEXT.sub(r"\\\g<0>", printable(word))


def _csv(word):
    """A word as a cell that a spreadsheet takes for text, which a ' in front of it says; numbers stay numbers."""
    word = printable(word)
    return f"'{word}" if word[:1] in FORMULA and not NUMBER.fullmatch(word) else word


def _csv_comment(line):
    """A line that no spreadsheet calculates: it parts lines at commas, whatever they begin with."""
    return re.sub(f"([,;]\\s*)(?=[{re.escape(FORMULA)}])", r"\1'", printable(line))


WORDS = {"text": printable, "markdown": _markdown, "csv": _csv_comment, "latex": _latex}
COMMENTS = {"text": "{}", "markdown": "## {}", "csv": "# {}", "latex": "% {}"}


def comment(line, form):
    """A line above tables, as a comment in the formats that programs read."""
    words = printable if form == "latex" else WORDS[form]
    return COMMENTS[form].format(words(" ".join(line.split())))


def titled(table, form="text"):
    """A table under its title."""
    title = f"**{_markdown(table.title)}**" if form == "markdown" else comment(table.title, form)
    gap = "\n" if form in ("csv", "latex") else "\n\n"
    return f"{title}{gap}{table.render(form)}"


# ---- one method: a row a seed ----
def seed_tables(protocol, cells):
    """The tables of one method's runs of a protocol: a list of Table, the last one sums up."""
    return {"base2new": _base2new_seeds, "dg": _dg_seeds, "xd": _xd_seeds, "fewshot": _fewshot_seeds,
            "zeroshot": zeroshot}[protocol](cells)


def _base2new_seeds(cells):
    tables = []
    for dataset in cells.values("dataset"):
        chosen = cells.where(dataset=dataset)
        base, new = (chosen.where(part=part).by_seed() for part in ("train_base", "test_new"))
        rows = [[f"seed {seed}", *base_new_h([base.at(seed)], [new.at(seed)])]
                for seed in chosen.values("seed")]
        tables.append(Table(_title(dataset, "base to new"), ["", "base", "new", "H"],
                            [*rows, ["mean", *base_new_h([base], [new])]]))
    if len(tables) > 1:
        names = cells.values("dataset")
        parts = {name: [cells.where(dataset=name, part=part).by_seed() for part in ("train_base", "test_new")]
                 for name in names}
        rows = [[name, *base_new_h([base], [new])] for name, (base, new) in parts.items()]
        rows.append(["average", *base_new_h(*zip(*parts.values()))])
        tables.append(Table(f"base to new on {len(names)} datasets", ["dataset", "base", "new", "H"], rows))
    return tables


def base_new_h(bases, news):
    """(base, new, H) averaged over datasets; H is the H of the averaged base and new, as the papers have it.

    bases, news: a {seed: accuracy} a dataset."""
    base, new = average(bases), average(news)
    return base, new, Number(harmonic(base.mean, new.mean), marks=base.marks | new.marks)


def _dg_seeds(cells):
    tables = []
    for dataset in cells.values("dataset"):
        chosen = cells.where(dataset=dataset)
        columns = {target: chosen.where(part=target).by_seed() for target in chosen.values("part")}
        rows = [[f"seed {seed}", *(average([column.at(seed)]) for column in columns.values()),
                 average(column.at(seed) for column in columns.values())]
                for seed in chosen.values("seed")]
        rows.append(["mean", *(average([column]) for column in columns.values()), average(columns.values())])
        tables.append(Table(_title(dataset, "each domain left out in turn"), ["", *columns, "average"], rows))
    if len(tables) > 1:
        rows = [[name, average(cells.where(dataset=name, part=part).by_seed()
                               for part in cells.where(dataset=name).values("part"))]
                for name in cells.values("dataset")]
        tables.append(Table(f"leave one domain out on {len(rows)} datasets", ["dataset", "average"], rows))
    return tables


def _xd_seeds(cells):
    seeds, [source] = cells.values("seed"), cells.values("dataset")
    columns = {name: cells.where(part=name).by_seed() for name in cells.values("part")}
    rows = [[name, *(average([column.at(seed)]) for seed in seeds), average([column])]
            for name, column in columns.items()]
    for name, group in xd_groups(source, columns).items():
        chosen = [columns[member] for member in group]
        rows.append([name, *(average(column.at(seed) for column in chosen) for seed in seeds),
                     average(chosen)])
    return [Table(f"trained on {source}, tested on", ["", *(f"seed {seed}" for seed in seeds), "mean"], rows)]


def xd_groups(source, tested):
    """{name: datasets} whose averages stand under a cross-dataset table: the other datasets, and ImageNet's variants,
    which have its classes, apart."""
    targets = [name for name in tested if name != source]
    variants = [name for name in targets if name in IMAGENET_VARIANTS]
    others = [name for name in targets if name not in variants]
    groups = {"average": others} if others else {}
    return groups | ({"average of variants": variants} if variants else {})


def _fewshot_seeds(cells):
    seeds, tables = cells.values("seed"), []
    for dataset in cells.values("dataset"):
        columns = {shots: cells.where(dataset=dataset, shots=shots).by_seed() for shots in cells.values("shots")}
        rows = [[str(shots), *(average([column.at(seed)]) for seed in seeds), average([column])]
                for shots, column in columns.items()]
        tables.append(Table(_title(dataset, "all classes"), ["shots", *(f"seed {seed}" for seed in seeds), "mean"],
                            rows))
    return tables


def _title(dataset, what):
    return f"{dataset}, {what}"


# ---- several methods: a row a method ----
def method_tables(protocol, cells, seconds=False):
    """The tables of several methods' runs of a protocol: a list of Table.

    seconds: add the time a seed took, training and tests together (one dataset's base2new only)."""
    if protocol == "base2new":
        return _base2new_methods(cells, seconds)
    return {"dg": _dg_methods, "xd": _xd_methods, "fewshot": _fewshot_methods, "zeroshot": zeroshot}[protocol](cells)


def _base2new_methods(cells, seconds):
    names, tables = cells.values("dataset"), []
    parts = {method: {name: [chosen.where(dataset=name, part=part).by_seed() for part in ("train_base", "test_new")]
                      for name in names} for method, chosen in cells.methods()}
    if len(names) > 1:
        for column, what in enumerate(("base", "new", "H")):
            rows = [[method, *(base_new_h([base], [new])[column] for base, new in found.values()),
                     base_new_h(*zip(*found.values()))[column]] for method, found in parts.items()]
            tables.append(Table(f"base to new, {what}", ["method", *names, "average"], rows, (*names, "average")))
    rows = [[method, *base_new_h(*zip(*found.values()))] for method, found in parts.items()]
    headers = ["method", "base", "new", "H"]
    if seconds:
        headers.append("seconds a seed")
        rows = [[*row, _seconds(chosen)] for row, (_, chosen) in zip(rows, cells.methods())]
    title = f"{names[0]}, base to new" if len(names) == 1 else f"base to new, average of {len(names)} datasets"
    return [*tables, Table(title, headers, rows, ("base", "new", "H"))]


def _seconds(cells):
    """The seconds a seed took, over the seeds whose runs were all made; "-" where there is none."""
    times = [[results.get("seconds") for results in cells.where(seed=seed).values()] for seed in cells.values("seed")]
    whole = [sum(seed) for seed in times if None not in seed]
    return f"{statistics.mean(whole):.0f}" if whole else "-"


def _columns(cells, field, title, first="method", averaged=True):
    """A row a method, a column a value of a field of the places."""
    names = cells.values(field)
    rows = []
    for method, chosen in cells.methods():
        columns = [chosen.where(**{field: name}).by_seed() for name in names]
        rows.append([method, *(average([column]) for column in columns), *([average(columns)] if averaged else [])])
    headers = [str(name) for name in names]
    return Table(title, [first, *headers, *(["average"] if averaged else [])], rows,
                 (*headers, *(["average"] if averaged else [])))


def _dg_methods(cells):
    names = cells.values("dataset")
    tables = [_columns(cells.where(dataset=name), "part", f"{name}, each domain left out in turn") for name in names]
    if len(names) > 1:
        rows = []
        for method, chosen in cells.methods():
            columns = [average(chosen.where(dataset=name, part=part).by_seed()
                               for part in cells.where(dataset=name).values("part")) for name in names]
            known, marks = [column.mean for column in columns], frozenset().union(*(c.marks for c in columns))
            rows.append([method, *columns, Number(None if None in known else statistics.mean(known), marks=marks)])
        tables.append(Table("leave one domain out, average over the domains", ["method", *names, "average"], rows,
                            (*names, "average")))
    return tables


def _xd_methods(cells):
    tables = []
    for source in cells.values("dataset"):
        chosen = cells.where(dataset=source)
        tested = sorted(chosen.values("part"), key=lambda name: name != source)
        groups = xd_groups(source, tested)
        rows = []
        for method, found in chosen.methods():
            columns = {name: found.where(part=name).by_seed() for name in tested}
            rows.append([method, *(average([column]) for column in columns.values()),
                         *(average([columns[name] for name in group]) for group in groups.values())])
        tables.append(Table(f"trained on {source}", ["method", *tested, *groups], rows, (*tested, *groups)))
    return tables


def _fewshot_methods(cells):
    names = cells.values("dataset")
    tables = [_columns(cells.where(dataset=name), "shots", f"{name}, all classes, by shots", averaged=False)
              for name in names]
    if len(names) > 1:
        shots = cells.values("shots")
        rows = [[method, *(average(chosen.where(dataset=name, shots=number).by_seed() for name in names)
                           for number in shots)] for method, chosen in cells.methods()]
        headers = [str(number) for number in shots]
        tables.append(Table(f"average of {len(names)} datasets, by shots", ["method", *headers], rows, tuple(headers)))
    return tables


def zeroshot(cells):
    """A row a method, a column a dataset."""
    return [_columns(cells, "dataset", "without training")]
