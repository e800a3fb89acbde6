"""Whether the difference of two methods would stay with other seeds and other test images.

d[seed, image] is how much more often the first method is right: -1, 0 or 1. Seeds and images are crossed random effects
(Clark, "The language-as-fixed-effect fallacy", 1973): a training draws a seed, a test set draws images, and both could
have been drawn otherwise. With the mean squares of a two-way table without replication the variance of the mean of S
seeds and N images is

    (MS_seed + MS_image - MS_residual) / (S N)

MS_seed has S - 1 degrees of freedom, two for three seeds, and what it does not know about the spread over seeds must
widen the interval. A t distribution with Satterthwaite's degrees of freedom does that roughly at 5 % and not in the
tails, where a correction for many pairs looks. Here the seeds' part keeps its own t distribution (Behrens and Fisher's
solution for a sum of two variances), and the variance is at least that over images alone, MS_image / (S N).
"""
import csv
import functools
import gzip
import io
import os
import re
import zlib
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaincinv, ndtri, stdtr  # as scipy.stats computes them; that takes a second to import

from dassl.engine.run_record import COLUMNS, PREDICTIONS
from dassl.utils import InputError, open_regular

MOST_BYTES = 2**27  # of unpacked predictions: those of a million images
LABEL = re.compile(r"0|[1-9][0-9]{0,8}")
LEVEL = 0.05
POWER = 0.8  # with which the seeds that are said to be needed would show a difference
LEAST_SEEDS = 3  # of two, or one, no spread is known to speak of
MOST_SEEDS = 100  # more are not counted
ROUNDING = 1e-18  # variances below are 0: one image of a million makes more
# nodes in (0, 1) and weights of means over a chi-squared variable by its quantiles; close near 0, which makes the tails
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)
_QUANTILES = ((_NODES + 1) / 2) ** 4
_WEIGHTS = _WEIGHTS / 2 * 4 * ((_NODES + 1) / 2) ** 3


# ---- what is compared ----
def read_predictions(folder):
    """(paths, right) of a run: tuple of N paths, and (N,) bool, whether each image was classified correctly.

    Raises InputError when the file is not there or damaged."""
    path = os.path.join(folder, PREDICTIONS)
    try:
        with open_regular(path) as packed, gzip.open(packed) as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:  # a few bytes can be unpacked to more than memory holds
            raise ValueError(f"it is larger than {MOST_BYTES // 2**20} MiB")
        paths, labels, predictions, _ = _columns(content.decode("utf-8", "surrogateescape"))
        return paths, np.array([label == prediction for label, prediction in zip(labels, predictions)], bool)
    except FileNotFoundError:
        raise InputError(f"no {PREDICTIONS} in {folder}; delete its results.json and run again to get it") from None
    except (OSError, EOFError, zlib.error, csv.Error, ValueError) as error:  # UnicodeDecodeError among them
        raise InputError(f"{path} is damaged ({str(error)[:300]}); delete the folder and run again") from None


def _columns(text):
    """The columns of a CSV file of predictions, a tuple of words each. Raises ValueError, naming the column, for what
    no run has written."""
    header, _, body = text.partition("\n")
    if header == ",".join(COLUMNS) and body.endswith("\n") and not any(mark in body for mark in '"\r\0'):
        rows = [line.split(",") for line in body[:-1].split("\n")]  # nothing is quoted: a third of csv's time
    else:
        header, *rows = csv.reader(io.StringIO(text, newline=""))
        if tuple(header) != COLUMNS:
            raise ValueError(f"its columns are {', '.join(header)[:200]}")
    if not rows:
        raise ValueError("it holds no predictions")
    if lengths := set(map(len, rows)) - {len(COLUMNS)}:
        raise ValueError(f"a row has {min(lengths)} fields, not {len(COLUMNS)}")
    columns = tuple(zip(*rows))
    for number in (1, 2):
        if odd := [word for word in set(columns[number]) if not LABEL.fullmatch(word)]:
            raise ValueError(f"a {COLUMNS[number]} is '{odd[0][:40]}', not a number from 0 on")
    confidences = np.fromiter(map(float, columns[3]), float, len(rows))
    if not ((confidences >= 0) & (confidences <= 1.000001)).all():  # NaN is neither
        raise ValueError("a confidence is not a number of 0 to 1")
    return columns


def paired_differences(first, second, read=read_predictions):
    """(S, N) int8, -1, 0 or 1: the first method is right and the second wrong, minus the reverse.

    Args:
        first, second: a folder per seed, in the same order of seeds; all evaluated on the same images.
        read: what reads a folder; one that remembers saves time where methods are compared with many others.
    Raises:
        InputError: the images differ.
    """
    rows, known = [], None
    for one, other in zip(first, second, strict=True):
        paths, right = read(one)
        other_paths, other_right = read(other)
        known = known or paths
        if paths != known or other_paths != known:
            raise InputError(f"{one} and {other} are not predictions for the same images")
        rows.append(right.astype(np.int8) - other_right.astype(np.int8))
    return np.stack(rows)


# ---- its variance ----
@dataclass(frozen=True)
class Variance:
    """The parts of the variance of a mean difference, in squared shares of 1.

    seeds: MS_seed / (S N); images: MS_image / (S N); residual: MS_residual / (S N); seeds_df, images_df: degrees of
    freedom of the first two."""

    seeds: float
    seeds_df: float
    images: float
    images_df: float
    residual: float

    @property
    def total(self):
        """The estimate; never less than what the images alone give."""
        return max(self.seeds + self.images - self.residual, self.images)

    def p_value(self, difference):
        """Two-sided p of a difference (share of 1) if the true one were 0; not for variances that are all 0."""
        if not difference:
            return 1.0
        with np.errstate(divide="ignore"):
            tails = 2 * stdtr(self.images_df, -abs(difference) / np.sqrt(self._possible()))
        return float(_WEIGHTS @ tails)

    def half_width(self, level=LEVEL):
        """The difference whose p is `level`: half the width of the interval of confidence 1 - level."""
        high = np.sqrt(self.seeds + self.images)
        while self.p_value(high) > level:
            high *= 2
        return brentq(lambda width: self.p_value(width) - level, 0, high, rtol=1e-9)

    def _possible(self):
        """Variances that the estimates leave possible: one for each node of the mean over a chi-squared variable."""
        if not self.seeds:
            return np.full_like(_QUANTILES, self.images)
        drawn = self.seeds * self.seeds_df / _chi_squared(self.seeds_df)
        return np.maximum(drawn + self.images - self.residual, self.images)

    def with_seeds(self, now, then):
        """What is to be expected of `then` seeds instead of the `now` that it is estimated from; the images stay."""
        of_seeds, of_images = max(self.seeds - self.residual, 0), max(self.images - self.residual, 0)
        residual = self.residual * now / then
        return Variance(of_seeds * now / then + residual, self.seeds_df / (now - 1) * (then - 1),
                        of_images + residual, self.images_df, residual)


@functools.lru_cache(maxsize=256)
def _chi_squared(df):
    return 2 * gammaincinv(df / 2, _QUANTILES)


def variance_of(blocks):
    """The Variance of the mean over all test sets, each with the same weight.

    Args:
        blocks: a list of lists of (S, N) differences. The test sets of one block were scored by the same trainings, or
            by trainings on the same images, so that a seed can be a good one for all of them: their seeds' spread is
            that of the block's mean. Blocks are taken as independent of each other.
    """
    sets = sum(map(len, blocks))
    seeds, images, residual = [], [], 0.0
    for block in blocks:
        means = sum(differences.mean(axis=1) for differences in block) / sets  # (S,)
        if len(means) > 1:
            seeds.append((means.var(ddof=1) / len(means), len(means) - 1))
        for differences in block:
            by_image, rest = _mean_squares(differences)
            images.append((by_image / differences.size / sets**2, differences.shape[1] - 1))
            residual += rest / differences.size / sets**2
    of_seeds, of_images = _sum(seeds), _sum(images)
    return Variance(of_seeds[0], of_seeds[1], of_images[0], of_images[1], residual)


def _sum(parts):
    """(sum, its degrees of freedom by Satterthwaite) of independent [(variance, degrees of freedom)]."""
    total = float(sum(value for value, _ in parts))
    if total < ROUNDING:
        return 0.0, np.inf
    return total, total**2 / sum(value**2 / df for value, df in parts)


def _mean_squares(differences):
    """(MS_image, MS_residual) of (S, N) differences."""
    seeds, images = differences.shape
    total = differences.sum(dtype=np.int64)
    middle = total**2 / differences.size
    of_seeds = np.square(differences.sum(axis=1, dtype=np.int64)).sum() / images - middle
    of_images = np.square(differences.sum(axis=0, dtype=np.int64)).sum() / seeds - middle
    rest = np.count_nonzero(differences) - middle - of_seeds - of_images  # each difference is -1, 0 or 1
    residual = max(rest, 0.0) / ((seeds - 1) * (images - 1)) if seeds > 1 else 0.0
    return max(of_images, 0.0) / (images - 1), residual


# ---- the comparison of two methods ----
@dataclass
class Comparison:
    """Two methods on the same images and seeds.

    difference: of their accuracies, in percent points, first minus second, averaged over test sets; spread: its
    standard deviation over seeds, None for one seed or where test sets have different seeds; low, high: its 95 %
    interval; p: two-sided; adjusted: p for the number of pairs; pairs: that number; images, seeds: how many (the fewest
    of a test set). p is None where nothing can be said: of fewer than three seeds, or of one image. low and high are
    None there, too, and where no two differences differ, so that there is no variance to speak of.
    left_out: whether one of the methods has seeds that the other has not, which the difference is not over."""

    first: str
    second: str
    difference: float
    spread: float | None
    images: int
    seeds: int
    variance: Variance | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    adjusted: float | None = None
    pairs: int = 1
    left_out: bool = False

    @property
    def holds(self):
        """Whether p, adjusted for the number of pairs, is below 0.05."""
        return self.adjusted is not None and self.adjusted < LEVEL

    def seeds_needed(self):
        """With how many seeds a true difference of this size would hold with a probability of 80 %, at a level of
        0.05 / pairs: a number, infinity where no number of seeds makes up for too few images, more than MOST_SEEDS
        where it is larger, None where it holds already or nothing is known. It is an estimate from as few seeds as were
        run."""
        variance = self.variance
        if self.holds or not self.difference or not variance or not variance.total:
            return None
        if not variance.seeds:
            return np.inf  # every seed says the same
        size, level = abs(self.difference) / 100, LEVEL / self.pairs

        def enough(seeds):
            expected = variance.with_seeds(self.seeds, seeds)
            return size > expected.half_width(level) + ndtri(POWER) * np.sqrt(expected.total)

        if not enough(MOST_SEEDS):
            return np.inf if not enough(10**6) else MOST_SEEDS + 1
        low, high = LEAST_SEEDS, MOST_SEEDS
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle + 1, high)
        return low


def compare(first, second, blocks, trained=True, aligned=True):
    """A Comparison of two methods.

    Args:
        blocks: as `variance_of` takes them.
        trained: False for methods that draw nothing, so that one seed is all seeds.
        aligned: whether the same row of all test sets is the same seed.
    """
    groups = [differences for block in blocks for differences in block]
    seeds, images = min(len(group) for group in groups), [group.shape[1] for group in groups]
    difference = float(np.mean([group.mean() for group in groups]))
    found = Comparison(first, second, 100 * difference, None, sum(images), seeds)
    if aligned and seeds > 1:
        found.spread = 100 * float(np.std(np.mean([group.mean(axis=1) for group in groups], axis=0), ddof=1))
    if min(images) > 1 and (seeds >= LEAST_SEEDS or not trained):
        found.variance = variance_of(blocks)
        if found.variance.total or found.variance.seeds:
            half, found.p = found.variance.half_width(), found.variance.p_value(difference)
            found.low, found.high = 100 * (difference - half), 100 * (difference + half)
        else:  # all images of a set say the same with every seed: a sign test over those on which the methods differ
            differ = sum(np.count_nonzero(group.any(axis=0)) for group in groups)
            found.p = min(1.0, 2.0 ** (1 - differ)) if difference else 1.0
    return found


def holm(p_values):
    """p-values adjusted by Holm's method, as statsmodels' `multipletests` gives them, whose import (pandas) takes
    longer than a report of a thousand runs."""
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(np.array(p_values)[order] * np.arange(len(order), 0, -1))
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def adjust(comparisons):
    """Fill in `adjusted` and `pairs`: p-values for as many pairs as were looked at (Holm's method)."""
    known = [comparison for comparison in comparisons if comparison.p is not None]
    if known:
        adjusted = holm([comparison.p for comparison in known])
        for comparison, p in zip(known, adjusted):
            comparison.adjusted, comparison.pairs = float(p), len(known)
    return comparisons
