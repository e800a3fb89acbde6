"""What the trainings of finished runs spent (dassl/engine/budget.py): a table for metaprompt report."""
from dassl.engine.budget import COUNTS
from protocols import Number, Table, average

HEADERS = tuple(name.replace("_", " ") for name in COUNTS)


class Count(Number):
    """A mean of whole numbers; its deviation is told only where the seeds' counts differ."""

    def text(self, digits=0, sign="+-", marks=None):
        if self.mean is None:
            return "-"
        return f"{self.mean:,.{digits}f}" + (f" {sign} {self.std:,.{digits}f}" if self.std else "")

    def plain(self):
        return "" if self.mean is None else f"{self.mean:.10g}"


def budget_tables(cells):
    """What a training run of each method of one protocol spent, on average: a Table for each number of shots.

    Evaluations of another run's prompts spend nothing and are left out. A count is "-" that one of a method's runs has
    not, or of a method that was not trained on all that another one was."""
    trained = type(cells)({place: results for place, results in cells.items()
                           if not (results.get("evaluation") or {}).get("eval_only")})
    tables = []
    for shots in trained.values("shots"):
        of_these = trained.where(shots=shots)
        trainings = {(place.dataset, place.part) for place in of_these}
        rows = [[method, *(spent(chosen, name, trainings) for name in COUNTS)] for method, chosen in of_these.methods()]
        of_shots = f", {shots} shots" if len(trained.values("shots")) > 1 else ""
        tables.append(Table(f"what a training run spends, on average{of_shots}", ["method", *HEADERS], rows))
    return tables


def spent(cells, name, trainings):
    """The Count of one name over a method's runs of `trainings`, a set of (dataset, part)."""
    columns: dict[tuple, dict] = {training: {} for training in trainings}
    for place, results in cells.items():
        columns[place.dataset, place.part][place.seed] = (results.get("budget") or {}).get(name)
    found = average(columns.values())
    return Count(found.mean, found.std or None)
