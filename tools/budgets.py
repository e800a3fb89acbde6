"""What the trainings of finished runs spent (dassl/engine/budget.py): a table for tools/report.py."""
from dassl.engine.budget import COUNTS
from tools.tables import Number, Table, average

HEADERS = tuple(name.replace("_", " ") for name in COUNTS)


class Count(Number):
    """A mean of whole numbers; its deviation is told only where the seeds' counts differ."""

    def text(self, digits=0, sign="+-", marks=None):
        if self.mean is None:
            return "-"
        return f"{self.mean:,.{digits}f}" + (f" {sign} {self.std:,.{digits}f}" if self.std else "")


def budget_tables(cells):
    """What a training run of each method of one protocol spent, on average: a Table for each number of shots.

    Evaluations of another run's prompts spend nothing and are left out. A count that one of a method's runs has not, or
    was made before it was kept, is "-"."""
    trained = type(cells)({place: results for place, results in cells.items()
                           if not (results.get("evaluation") or {}).get("eval_only")})
    tables = []
    for shots in trained.values("shots"):
        rows = [[method, *(spent(chosen, name) for name in COUNTS)]
                for method, chosen in trained.where(shots=shots).methods()]
        of_shots = f", {shots} shots" if len(trained.values("shots")) > 1 else ""
        tables.append(Table(f"what a training run spends, on average{of_shots}", ["method", *HEADERS], rows))
    return tables


def spent(cells, name):
    """The Count of one name over the training runs of a method."""
    columns = {}
    for place, results in cells.items():
        columns.setdefault((place.dataset, place.part), {})[place.seed] = (results.get("budget") or {}).get(name)
    found = average(columns.values())
    return Count(found.mean, found.std or None)
