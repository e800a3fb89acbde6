"""How often "the difference holds" is wrong: on simulated methods, and of a method with itself.

    python -m benchmarks.holds                                        # size and coverage by spread and number of seeds
    python -m benchmarks.holds --runs output --trainer CoOp CoCoOp    # each against itself, on seeds that were run

For the second make runs of many seeds first: SEEDS="$(seq 1 40)" bash scripts/coop/base2new.sh shapes
"""
import sys

import numpy as np
import scipy.stats

from dassl.config.words import ArgumentParser
from dassl.utils import InputError
from protocols import Table
from runs.command_line import command_line
from tools.results.run_folders import find_runs
from tools.results.significance import LEVEL, compare, paired_differences, read_predictions, variance_of

SPREADS = (0, 1.4, 2.1, 3.6, 7.3)  # standard deviations of the accuracy over seeds, in points
SEEDS = (3, 5, 10)
EFFECT = 5.0  # points by which one of the simulated methods is better, where they are not equal


def simulated(rng, runs, seeds, spread, effect=0.0, images=300):
    """(runs, seeds, images) int8: differences of two methods, of which the first is better by `effect` points.

    spread: standard deviation over seeds, in points, of the accuracy of each. Every image has a difficulty, partly its
    own for each method."""
    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    shared, right = normal(runs, 1, images), []
    for gain in (effect, 0.0):
        chance = 0.7 + gain / 100 + spread / 100 * normal(runs, seeds, 1)
        difficulty = np.sqrt(0.5) * shared + np.sqrt(0.2) * normal(runs, 1, images)
        # a standard normal variable below the quantile of `chance` is right with that probability
        limit = scipy.stats.norm.ppf(np.clip(chance, 0.001, 0.999)).astype(np.float32)
        right.append(difficulty + np.float32(np.sqrt(0.3)) * normal(runs, seeds, images) < limit)
    return right[0].astype(np.int8) - right[1].astype(np.int8)


def p_values(differences, truth=0.0):
    """(runs,) p of each run against the true difference, in points."""
    return np.array([variance_of([[run]]).p_value(run.mean() - truth / 100) for run in differences])


def simulation(runs, seed=0):
    """{(spread, seeds): (p where the methods are equal, p of the true difference where they are not)}, (runs,) each."""
    rng = np.random.default_rng(seed)
    return {(spread, seeds): (p_values(simulated(rng, runs, seeds, spread)),
                              p_values(simulated(rng, runs, seeds, spread, EFFECT), EFFECT))
            for spread in SPREADS for seeds in SEEDS}


def simulation_table(runs):
    """A row for each spread, for each number of seeds how many % hold where nothing differs, and are covered."""
    found = simulation(runs)
    rows = [[f"{spread:.1f}", *(f"{100 * value:.1f}" for seeds in SEEDS
                                for value in ((found[spread, seeds][0] < LEVEL).mean(),
                                              (found[spread, seeds][1] >= LEVEL).mean()))] for spread in SPREADS]
    return Table(f"{runs} simulations of each, 300 images: of equal methods % that hold, of unequal ones % covered",
                 ["spread over seeds", *(f"{seeds} seeds: {what}" for seeds in SEEDS for what in ("hold", "covered"))],
                 rows)


def self_comparison(folders, splits, size, seed=0):
    """Share of `splits` random divisions into two groups of `size` seeds in which the one is said to differ.

    Args:
        folders: those of one method's runs on one test set, a folder per seed.
    """
    rng, known = np.random.default_rng(seed), {folder: read_predictions(folder) for folder in folders}
    if len(folders) < 2 * size:
        raise InputError(f"{len(folders)} seeds cannot be divided into two groups of {size}; run more seeds")
    held = 0
    for _ in range(splits):
        drawn = rng.permutation(len(folders))[:2 * size]
        first, second = ([folders[index] for index in half] for half in (drawn[:size], drawn[size:]))
        found = compare("first", "second", [[paired_differences(first, second, known.get)]])
        held += found.p is not None and found.p < LEVEL
    return held / splits


def self_table(cells, where, splits):
    """A row for each method, part and number of seeds."""
    rows = []
    for method, own in cells.methods():
        for dataset in own.values("dataset"):
            for part in own.where(dataset=dataset).values("part"):
                folders = [where[place] for place in own.where(dataset=dataset, part=part)]
                rows += [[method, dataset, part, str(len(folders)), str(size),
                          f"{100 * self_comparison(folders, splits, size):.1f}"]
                         for size in SEEDS if 2 * size <= len(folders)]
    return Table(f"a method against itself on other seeds: % of {splits} splits that hold",
                 ["method", "dataset", "part", "seeds run", "seeds compared", "hold"], rows)


def main(argv=None):
    parser = ArgumentParser(description="How often a difference is wrongly said to hold.")
    parser.add_argument("--simulations", type=int, default=2000, help="of each setting (default 2000)")
    parser.add_argument("--runs", nargs="+", metavar="FOLDER", help="compare methods with themselves on these runs")
    parser.add_argument("--trainer", nargs="+", help="only these methods (default all)")
    parser.add_argument("--splits", type=int, default=600, help="of each method's seeds (default 600)")
    args = parser.parse_args(argv)
    if not args.runs:
        table = simulation_table(args.simulations)
    else:
        cells, where = find_runs(args.runs)
        table = self_table(type(cells)({place: results for place, results in cells.items()
                                        if not args.trainer or place.trainer in args.trainer}), where, args.splits)
    print(f"{table.title}\n\n{table.render()}")
    return table


if __name__ == "__main__":
    sys.exit(command_line(main))
