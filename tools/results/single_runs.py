"""Runs of train.py that no protocol would make: a table that says of each what it is, and averages nothing."""
from protocols import Number, Table
from protocols.parts.cells import accuracy
from protocols.parts.marks import said_of


def single_runs_table(runs):
    """A Table with a row per run. runs: [(run folder, StoredRun, results)]."""
    rows = []
    for folder, run, results in sorted(runs, key=lambda found: (found[1].trainer, found[1].dataset, found[0])):
        what = "; ".join([run.told(), *said_of(results).values()])
        shots = str(run.shots) if run.shots > 0 else "all"
        number = Number(accuracy(results))
        rows.append([run.trainer, run.config, run.dataset, what, shots, str(run.seed), number, folder])
    return Table("single runs", ["method", "config", "dataset", "what", "shots", "seed", "accuracy", "folder"], rows)
