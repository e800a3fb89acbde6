"""Whether the difference between two methods on the same test images is more than chance.

Both tests are over images. What chance does to training (the seeds) they do not see beyond the seeds that were run.
"""
import csv
import gzip
import os
from dataclasses import dataclass

import numpy as np
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from dassl.engine.run_record import COLUMNS, PREDICTIONS
from dassl.utils import InputError

RESAMPLES = 10_000
LEVEL = 0.05
EXACT_BELOW = 25  # pairs that differ; with fewer McNemar's chi-squared approximation is poor


def read_predictions(folder):
    """(paths, right) of a run: list of N paths, and (N,) bool, whether each image was classified correctly.

    Raises InputError when the file is not there or damaged."""
    path = os.path.join(folder, PREDICTIONS)
    try:
        with gzip.open(path, "rt", encoding="utf-8", errors="surrogateescape", newline="") as file:
            header, *rows = csv.reader(file)
            if tuple(header) != COLUMNS:
                raise ValueError(f"its columns are {header}")
            return [row[0] for row in rows], np.array([row[1] == row[2] for row in rows], bool)
    except FileNotFoundError:
        raise InputError(f"no {PREDICTIONS} in {folder}; delete its results.json and run again to get it") from None
    except (OSError, EOFError, ValueError, IndexError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); delete the folder and run again") from None


def paired_differences(first, second):
    """(N,) for each image of a test set: in how large a share of the seeds the first method is right and the second
    wrong, minus the reverse; between -1 and 1.

    Args:
        first, second: a folder a seed, in the same order of seeds; all evaluated on the same images.
    Raises:
        InputError: the images differ.
    """
    total, known = 0, None
    for one, other in zip(first, second, strict=True):
        paths, right = read_predictions(one)
        other_paths, other_right = read_predictions(other)
        known = known or paths
        if paths != known or other_paths != known:
            raise InputError(f"{one} and {other} are not predictions for the same images in the same order")
        total = total + right.astype(int) - other_right.astype(int)
    return total / len(first)


def mcnemar_p(differences):
    """McNemar's p-value over images. An image counts for the method that is right in more seeds; those on which the two
    are equal say nothing. Exact (binomial) for few images that differ, else chi-squared with continuity correction."""
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    if better + worse == 0:
        return 1.0
    return float(mcnemar([[0, better], [worse, 0]], exact=better + worse < EXACT_BELOW).pvalue)


def bootstrap_interval(groups, level=LEVEL, resamples=RESAMPLES, seed=0):
    """Percentile bootstrap interval of a mean of means, (low, high): images are drawn anew within each group.

    The differences of a group take few values (2 seeds + 1), so instead of N images the counts of the values are drawn,
    from the multinomial distribution that drawing N images with replacement gives them.

    Args:
        groups: a list of (N_g,) arrays, such as a test set each.
        level: 0.05 gives a 95 % interval.
    """
    rng = np.random.default_rng(seed)
    means = np.zeros(resamples)
    for group in groups:
        values, counts = np.unique(np.round(group, 9), return_counts=True)
        drawn = rng.multinomial(len(group), counts / len(group), size=resamples)
        means += drawn @ values / len(group) / len(groups)
    return tuple(float(end) for end in np.quantile(means, [level / 2, 1 - level / 2]))


@dataclass
class Comparison:
    """Two methods on the same images. difference: of their accuracies, in percent points, first minus second, averaged
    over test sets; low, high: its 95 % bootstrap interval; p: McNemar's, over all images; images: how many."""

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    images: int
    seeds: int
    adjusted: float = 1.0

    @property
    def holds(self):
        """Both say so: the interval excludes 0, and p, adjusted for the number of pairs, is below 0.05."""
        return self.adjusted < LEVEL and (self.low > 0 or self.high < 0)


def compare(first, second, groups, seeds):
    """A Comparison of two methods from the paired differences of each test set (a list of arrays)."""
    low, high = bootstrap_interval(groups)
    return Comparison(first, second, 100 * float(np.mean([group.mean() for group in groups])), 100 * low, 100 * high,
                      mcnemar_p(np.concatenate(groups)), sum(map(len, groups)), seeds)


def adjust(comparisons):
    """Fill in `adjusted`: p-values for as many pairs as were looked at (Holm's method)."""
    if comparisons:
        adjusted = multipletests([comparison.p for comparison in comparisons], method="holm")[1]
        for comparison, p in zip(comparisons, adjusted):
            comparison.adjusted = float(p)
    return comparisons
