"""Which differences between methods hold: a table for each test set of a protocol."""
import functools
import itertools
from dataclasses import dataclass

from dassl.utils import InputError
from tools import significance
from tools.marks import signs
from tools.tables import Table, average, xd_groups

PAIRS = 6  # every pair of four methods; of more methods, the best is shown with each other one
RULE = f"""\
A difference holds when its p, adjusted for the number of pairs, is below {significance.LEVEL}.
Seeds and test images are both taken for draws that could have been others; with fewer than three seeds nothing holds.
Where only the pairs of the best method are shown, it was found by looking, and p allows for every pair.
"seeds needed": about how many would show a true difference of this size in {significance.POWER:.0%} of repetitions."""


@dataclass
class TestSet:
    """What is averaged before methods are compared. members: fields of Places, one dict per set of test images;
    together: whether the same trainings, or trainings on the same images, are tested on all of them."""

    title: str
    members: list
    together: bool = False


def test_sets(cells):
    """The TestSets of a protocol's runs."""
    [protocol] = cells.values("protocol")
    datasets = cells.values("dataset")
    if protocol == "base2new":
        return [TestSet(f"base to new, {part.split('_')[1]} classes",
                        [{"dataset": name, "part": part} for name in datasets])
                for part in ("train_base", "test_new")]
    if protocol == "dg":
        return [TestSet(f"{name}, average over the domains",
                        [{"dataset": name, "part": part} for part in cells.where(dataset=name).values("part")], True)
                for name in datasets]
    if protocol == "xd":
        return [TestSet(f"trained on {name}, {group}", [{"dataset": name, "part": part} for part in parts], True)
                for name in datasets
                for group, parts in xd_groups(name, cells.where(dataset=name).values("part")).items()]
    if protocol == "fewshot":
        return [TestSet(f"{shots} shots, all classes", [{"dataset": name, "shots": shots} for name in datasets])
                for shots in cells.values("shots")]
    return [TestSet("without training", [{"dataset": name} for name in datasets])]


def comparisons(cells, where, names=None, against=None):
    """A Table for each test set of a protocol: pairs of methods, their difference and whether it holds.

    Args:
        cells, where: what `find_runs` gave, of one protocol.
        names: the methods to compare, each with each; None takes all (see PAIRS for what is shown).
        against: the one method to compare each other one with, chosen before the numbers were seen.
    Raises:
        InputError: an unknown method, or predictions that are missing, damaged or of other images.
    """
    methods = dict(cells.methods())
    for flag, asked in (("--compare", names or ()), ("--against", [against] if against else ())):
        if unknown := [name for name in asked if name not in methods]:
            raise InputError(f"{flag}: no runs of {', '.join(unknown)} here; there are: {', '.join(methods)}")
    trained = cells.values("protocol") != ["zeroshot"]
    read = functools.cache(significance.read_predictions)
    tables = []
    for tested in test_sets(cells):
        numbers = {method: average(chosen.where(**fields).by_seed() for fields in tested.members)
                   for method, chosen in methods.items() if not names or method in (*names, against)}
        present = sorted((method for method, number in numbers.items() if number.mean is not None),
                         key=lambda method: -numbers[method].mean)
        if against:
            pairs = [(against, other) for other in present if other != against] if against in present else []
        else:
            pairs = list(itertools.combinations(present, 2))
        found = [significance.compare(first, second, blocks, trained) for first, second in pairs
                 if (blocks := paired(methods[first], methods[second], where, tested, read))]
        significance.adjust(found)
        if not against and names is None and len(pairs) > PAIRS:
            found = [comparison for comparison in found if comparison.first == present[0]]
        seeds = {method: len(methods[method].values("seed")) for method in present}
        if found:
            marks = {method: numbers[method].marks for method in present}
            tables.append(comparison_table(tested.title, found, marks, seeds))
    return tables


def paired(first, second, where, tested, read):
    """Blocks of (S, N) differences, as `significance.variance_of` takes them, over the seeds that both methods have;
    [] where a test set has none. read: gives (paths, right) of a folder."""
    folders = [[{place.seed: where[place] for place in method.where(**fields)} for method in (first, second)]
               for fields in tested.members]
    seeds = [sorted(set(one) & set(other)) for one, other in folders]
    if tested.together:
        seeds = [sorted(set.intersection(*map(set, seeds)))] * len(seeds)
    if not all(seeds):
        return []
    sets = [significance.paired_differences(*([by_seed[seed] for seed in own] for by_seed in both), read)
            for both, own in zip(folders, seeds)]
    return [sets] if tested.together else [[differences] for differences in sets]


def comparison_table(title, found, marks, seeds):
    """marks: {method: those of its numbers}; a difference has those of both methods. seeds: {method: how many it has};
    where a pair has fewer in common, its difference is not that of the tables above, and its row says so."""
    rows = [[f"{c.first} - {c.second}", f"{c.difference:+.2f}{signs(marks[c.first] | marks[c.second])}",
             _number(c.spread), f"{c.low:+.2f} to {c.high:+.2f}" if c.p is not None else "-", _p(c.p), _p(c.adjusted),
             str(c.images), f"{c.seeds}" + (" of both" if c.seeds < max(seeds[c.first], seeds[c.second]) else ""),
             _holds(c), _seeds(c.seeds_needed())] for c in found]
    compared = {method for c in found for method in (c.first, c.second)}
    pairs = max(c.pairs for c in found)
    return Table(f"{title}: does the difference hold?",
                 ["pair", "difference", "std over seeds", "95 % interval", "p", f"p (Holm, {pairs} pairs)" if pairs > 1
                  else "p (Holm)", "images", "seeds", "holds", "seeds needed"], rows,
                 marks=frozenset(mark for method in compared for mark in marks[method]))


def _holds(comparison):
    if comparison.p is None:
        return "too few seeds" if comparison.seeds < significance.LEAST_SEEDS else "too few images"
    return "yes" if comparison.holds else "no"


def _number(value):
    return "-" if value is None else f"{value:.2f}"


def _p(value):
    return "-" if value is None else "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _seeds(number):
    if number is None:
        return "-"
    if number > significance.MOST_SEEDS:
        return "more images" if number == float("inf") else f"> {significance.MOST_SEEDS}"
    return str(number)
