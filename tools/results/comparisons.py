"""Which differences between methods hold: a table for each test set of a protocol."""
import contextlib
import hashlib
import itertools

from dassl.utils import InputError
from protocols import Number, Table, TestSet, average, protocol_named
from protocols.parts.cells import accuracy
from tools.results import significance

PAIRS = 6  # every pair of four methods; of more methods, the best is shown with each other one
RULE = """\
A difference holds when its p, adjusted for the number of pairs, is below 0.05; the interval is that of the one pair.
Seeds and test images are both taken for draws that could have been others; with fewer than three seeds nothing holds.
Where only the pairs of the best method are shown, it was found by looking, and p allows for every pair.
"seeds needed": about how many would show a true difference of this size in 80 of 100 cases."""


def comparisons(cells, where, names=None, against=None):
    """(tables, notes): a Table for each test set of a protocol, with pairs of methods, their difference and whether it
    holds; and lines on what was asked for and is not there.

    Args:
        cells, where: what `find_runs` gave, of one protocol.
        names: the methods to compare, each with each; None takes all (see PAIRS for what is shown).
        against: the one method to compare each other one with, chosen before the numbers were seen.
    Raises:
        InputError: predictions that are missing, damaged or of other images.
    """
    methods = {method: chosen for method, chosen in cells.methods() if not names or method in (*names, against)}
    [protocol] = map(protocol_named, cells.values("protocol"))
    asked, read = [*dict.fromkeys([*([against] if against else ()), *(names or ())])], Remembered()
    tables: list[Table] = []
    notes: list[str] = []
    for tested, shared in apart(protocol, cells, methods, where, read, notes):
        numbers = {method: average(chosen.where(**fields).by_seed() for fields in tested.members)
                   for method, chosen in methods.items()}
        present = sorted((method for method, number in numbers.items() if number.mean is not None),
                         key=lambda method: -numbers[method].value)
        folders = {method: [{place.seed: where[place] for place in methods[method].where(**fields)}
                            for fields in tested.members] for method in present}
        pairs = pairs_of(present, against)
        found = [comparison for pair in pairs if (comparison := compared(pair, folders, tested, protocol.draws, read))]
        significance.adjust(found)
        missing = [method for method in methods if method not in present and (
            method in asked or shared or any(chosen_of(methods[method], fields) for fields in tested.members))]
        if missing := [*dict.fromkeys([*(method for method in asked if method not in present), *missing])]:
            notes.append(f"{tested.title}: no comparison with {', '.join(missing)}: a number is missing there")
        if left_out := len(pairs) - len(found):
            notes.append(f"{tested.title}: {left_out} pairs of methods have no seed in common and are left out")
        if not against and names is None and len(pairs) > PAIRS:
            found = [comparison for comparison in found if comparison.first == present[0]]
        if found:
            tables.append(comparison_table(tested.title, found, {method: numbers[method].marks for method in present}))
    return tables, notes


def pairs_of(methods, against=None):
    """Every two methods, or each other one with `against`, and none where that is not among them."""
    if against is None:
        return list(itertools.combinations(methods, 2))
    return [(against, other) for other in methods if other != against] if against in methods else []


class Remembered:
    """Reads the predictions of runs, each once. Of many runs with the same images the paths are kept once."""

    def __init__(self):
        self.known, self.paths = {}, {}

    def __call__(self, folder):
        """(digest of the images' paths, right) of a run."""
        if folder not in self.known:
            paths, right = significance.read_predictions(folder)
            digest = hashlib.sha256("\n".join(paths).encode("utf-8", "surrogateescape")).digest()
            self.paths.setdefault(digest, paths)
            self.known[folder] = digest, right
        return self.known[folder]

    def images(self, folders):
        """The paths of the images of the first of some run folders that can be read, a set; empty where none can."""
        for folder in folders:
            with contextlib.suppress(InputError):
                return set(self.paths[self(folder)[0]])
        return set()


def apart(protocol, cells, methods, where, read, notes):
    """[(TestSet, whether it is a part of one)] of a protocol. Averaged over sets that have images in common, these
    would count several times, and a difference hold too easily: such sets are compared each by itself, and a line in
    `notes` says so. Only members of one dataset are looked at, whose paths are of one folder."""
    found = []
    for tested in protocol.test_sets(cells):
        seen: dict[tuple, list] = {}  # names of the dataset that is tested -> [(member, run folders)]
        twins = None
        for fields in tested.members if len(methods) > 1 and len(tested.members) > 1 else ():
            chosen = [cell for method in methods.values() for cell in method.where(**fields).items()]
            if chosen:
                place, results = chosen[0]
                names = (results.get("run") or {}).get("dataset", place.dataset), results.get("dataset")
                seen.setdefault(names, []).append((fields, [where[place] for place, _ in chosen]))
        for members in seen.values():
            images = [(fields, read.images(folders)) for fields, folders in members] if len(members) > 1 else ()
            twins = twins or next(((one, other) for (one, mine), (other, others) in itertools.combinations(images, 2)
                                   if mine & others), None)
        if twins:
            one, other = (named(protocol, fields, tested.members) for fields in twins)
            notes.append(f"{tested.title}: {one} and {other} have test images in common, which an average would count "
                         "several times; each is compared by itself")
            found += [(TestSet(f"{tested.title}, {named(protocol, fields, tested.members)}", [fields], tested.together),
                       True) for fields in tested.members]
        else:
            found.append((tested, False))
    return found


def named(protocol, fields, members):
    """A member of a TestSet in words: the values of its fields that tell it from the others."""
    differ = [key for key in fields if any(other.get(key) != fields[key] for other in members)]
    return ", ".join(protocol.part_words(fields[key]) or "all" if key == "part" else str(fields[key]) for key in differ)


def chosen_of(cells, fields):
    """The cells of a member that have a number."""
    return [place for place, results in cells.where(**fields).items() if accuracy(results) is not None]


def compared(pair, folders_of, tested, trained, read):
    """The Comparison of a pair of methods on a TestSet, over the seeds that both have; None where they have none.

    folders_of: {method: [{seed: run folder}, one for each member of the TestSet]}."""
    folders = list(zip(*(folders_of[method] for method in pair)))
    seeds = [sorted(set(one) & set(other)) for one, other in folders]
    if tested.together:
        seeds = [sorted(set.intersection(*map(set, seeds)))] * len(seeds)
    if not all(seeds):
        return None
    sets = [significance.paired_differences([one[seed] for seed in own], [other[seed] for seed in own], read)
            for (one, other), own in zip(folders, seeds)]
    blocks = [sets] if tested.together else [[differences] for differences in sets]
    first, second = pair
    found = significance.compare(first, second, blocks, trained, aligned=all(own == seeds[0] for own in seeds))
    found.left_out = any(set(by_seed) != set(own) for both, own in zip(folders, seeds) for by_seed in both)
    return found


class Difference(Number):
    """A Number with its sign."""

    def text(self, digits=2, sign="+-", marks=None):
        return ("+" if self.value >= 0 else "") + super().text(digits, sign, marks)


def comparison_table(title, found, marks):
    """marks: {method: those of its numbers}; a difference has those of both methods."""
    rows = [[f"{c.first} - {c.second}", Difference(c.difference, c.spread, marks[c.first] | marks[c.second]),
             _signed(c.low), _signed(c.high), _p(c.p), _p(c.adjusted), str(c.images),
             f"{c.seeds}{' of both' if c.left_out else ''}", _holds(c), _seeds(c.seeds_needed())] for c in found]
    pairs = max(c.pairs for c in found)
    headers = ["pair", "difference", "95 % low", "high", "p", f"p (Holm, {pairs} pairs)" if pairs > 1 else "p (Holm)",
               "images", "seeds", "holds", "seeds needed"]
    return Table(f"{title}: does the difference hold?", headers, rows)


def _holds(comparison):
    if comparison.p is None:
        return "too few seeds" if comparison.seeds < significance.LEAST_SEEDS else "too few images"
    return "yes" if comparison.holds else "no"


def _signed(value):
    return "-" if value is None else f"{value:+.2f}"


def _p(value):
    return "-" if value is None else f"{value:.4f}" if value >= 1e-4 else f"{value:.0e}"


def _seeds(number):
    if number is None:
        return "-"
    if number > significance.MOST_SEEDS:
        return "more images" if number == float("inf") else f"over {significance.MOST_SEEDS}"
    return str(number)
