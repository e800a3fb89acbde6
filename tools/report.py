"""Tables of finished runs, methods x datasets, and whether the differences between methods hold.

    python tools/report.py output
    python tools/report.py output/base2new --format latex
    python tools/report.py output --compare CoOp MetaPrompt

Numbers are mean +- standard deviation over seeds. Runs of different data, shots or backbones are refused, not averaged.
"""
import itertools
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import train  # noqa: E402
from dassl.engine.identity import same_backbone  # noqa: E402
from dassl.utils import InputError  # noqa: E402
from prompting.backbone import weights_digest  # noqa: E402
from tools.budgets import budget_tables  # noqa: E402
from tools.marks import signs  # noqa: E402
from tools.published import published_table  # noqa: E402
from tools.run_folders import (  # noqa: E402
    backbone_of,
    find_runs,
    known_backbone,
    require_comparable,
    without_folder,
)
from tools.tables import FORMATS, Table, average, method_tables, titled, xd_groups  # noqa: E402

PAIRS = 6  # every pair of four methods; of more methods, the best is compared with each other one


def parse_arguments(argv):
    parser = train.ArgumentParser(description="Collect finished runs into tables.")
    parser.add_argument("output", nargs="+", help="output folders of protocols, or folders in them")
    parser.add_argument("--format", choices=FORMATS, default="text", help="default text")
    parser.add_argument("--protocol", nargs="+", help="only these protocols")
    parser.add_argument("--dataset", nargs="+", help="only these datasets (of xd: sources)")
    parser.add_argument("--trainer", nargs="+", help="only these methods")
    parser.add_argument("--shots", type=int, nargs="+", help="only runs with these numbers of shots")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these seeds")
    parser.add_argument("--backbone", help="only runs with this backbone")
    parser.add_argument("--compare", nargs="*", metavar="METHOD", default=None,
                        help="compare every pair of these methods; none: no comparison at all; by default every pair "
                             "of up to four methods, of more the best with each other one")
    parser.add_argument("--budget", action="store_true", help="what the trainings spent: updates, images, passes")
    parser.add_argument("--published", action="store_true", help="published averages beside the measured ones")
    return parser.parse_args(argv)


def chosen_runs(args):
    """(cells, folders) of the runs that the flags ask for."""
    cells, where = find_runs(args.output)
    for field, wanted in (("protocol", args.protocol), ("dataset", args.dataset), ("trainer", args.trainer),
                          ("shots", args.shots), ("seed", args.seeds)):
        if wanted:
            known = cells.values(field)
            cells = type(cells)({place: results for place, results in cells.items() if getattr(place, field) in wanted})
            if not cells:
                raise InputError(f"no run has {field} {' or '.join(map(str, wanted))}; there are: "
                                 f"{', '.join(map(str, known))}")
    if args.backbone:
        asked = {"name": without_folder(args.backbone), "digest": weights_digest(args.backbone)}
        cells = type(cells)({place: results for place, results in cells.items()
                             if same_backbone(known_backbone(results), asked)})
        if not cells:
            raise InputError(f"no run has the backbone {args.backbone}")
    require_comparable(cells, where)
    return cells, where


def comparisons(cells, where, names=None):
    """A Table a test part of a protocol: pairs of methods, their difference, interval and p-values.

    names: the methods to compare; None chooses (see PAIRS)."""
    from tools import significance  # scipy and statsmodels only where they are wanted

    methods = dict(cells.methods())
    unknown = [name for name in names or () if name not in methods]
    if unknown:
        raise InputError(f"--compare: no runs of {', '.join(unknown)} here; there are: {', '.join(methods)}")
    tables = []
    for title, members in test_sets(cells):
        numbers = {method: average(chosen.where(**fields).by_seed() for fields in members)
                   for method, chosen in methods.items() if not names or method in names}
        scored = {method: number.mean for method, number in numbers.items()}
        present = sorted((method for method, score in scored.items() if score is not None), key=lambda m: -scored[m])
        pairs = list(itertools.combinations(present, 2))
        if names is None and len(pairs) > PAIRS:
            pairs = [(present[0], other) for other in present[1:]]
        found = []
        for first, second in pairs:
            groups, seeds = paired(methods[first], methods[second], where, members)
            if groups:
                found.append(significance.compare(first, second, groups, seeds))
        if found:
            tables.append(comparison_table(title, significance.adjust(found),
                                           {method: numbers[method].marks for method in present}))
    return tables


def test_sets(cells):
    """[(title, [fields of the Places of one test set])]: what is averaged before methods are compared."""
    [protocol] = cells.values("protocol")
    datasets = cells.values("dataset")
    if protocol == "base2new":
        return [(f"base to new, {part.split('_')[1]} classes", [{"dataset": name, "part": part} for name in datasets])
                for part in ("train_base", "test_new")]
    if protocol == "dg":
        return [(f"{name}, average over the domains",
                 [{"dataset": name, "part": part} for part in cells.where(dataset=name).values("part")])
                for name in datasets]
    if protocol == "xd":
        return [(f"trained on {name}, {group}", [{"dataset": name, "part": part} for part in parts])
                for name in datasets
                for group, parts in xd_groups(name, cells.where(dataset=name).values("part")).items()]
    if protocol == "fewshot":
        return [(f"{shots} shots, all classes", [{"dataset": name, "shots": shots} for name in datasets])
                for shots in cells.values("shots")]
    return [("without training", [{"dataset": name} for name in datasets])]


def paired(first, second, where, members):
    """([paired differences of each test set], number of seeds) over the seeds that both methods have."""
    from tools.significance import paired_differences

    groups, most = [], 0
    for fields in members:
        folders = [{place.seed: where[place] for place in method.where(**fields)} for method in (first, second)]
        seeds = sorted(set(folders[0]) & set(folders[1]))
        if seeds:
            groups.append(paired_differences(*([by_seed[seed] for seed in seeds] for by_seed in folders)))
            most = max(most, len(seeds))
    return groups, most


def comparison_table(title, found, marks):
    """marks: {method: those of its numbers}; a difference has those of both methods."""
    rows = [[f"{c.first} - {c.second}", f"{c.difference:+.2f}{signs(marks[c.first] | marks[c.second])}",
             f"{c.low:+.2f} to {c.high:+.2f}", _p(c.p), _p(c.adjusted), str(c.images), str(c.seeds),
             "yes" if c.holds else "no"] for c in found]
    compared = {method for c in found for method in (c.first, c.second)}
    return Table(f"{title}: does the difference hold?",
                 ["pair", "difference", "95 % interval", "McNemar p", "p (Holm)", "images", "seeds", "holds"], rows,
                 marks=frozenset(mark for method in compared for mark in marks[method]))


def _p(value):
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def coverage(cells):
    """Words on what stands in a protocol's tables, and a note where methods have different seeds."""
    seeds = {method: tuple(sorted(chosen.values("seed"))) for method, chosen in cells.methods()}
    backbone = backbone_of(next(iter(cells.values())))
    shots = [number for number in cells.values("shots") if number is not None]
    told = f"backbone {backbone}" + (f", shots {', '.join(map(str, sorted(shots)))}" if shots else "")
    if len(set(seeds.values())) == 1:
        return f"{told}, seeds {', '.join(map(str, next(iter(seeds.values()))))}"
    return f"{told}, seeds " + "; ".join(f"{method}: {', '.join(map(str, own))}" for method, own in seeds.items())


def main(argv=None):
    """Print the tables. Returns them as a list of Table."""
    args = parse_arguments(argv)
    cells, where = chosen_runs(args)
    comment = {"text": "{}", "markdown": "## {}", "csv": "# {}", "latex": "% {}"}[args.format]
    made = []
    for protocol in cells.values("protocol"):
        chosen = cells.where(protocol=protocol)
        tables = method_tables(protocol, chosen)
        if args.budget:
            tables += budget_tables(chosen)
        if args.published:
            tables += [table for table in [published_table(protocol, chosen)] if table]
        note = ""
        if args.compare != [] and len(chosen.methods()) > 1:
            try:
                tables += comparisons(chosen, where, args.compare)
            except InputError as error:
                if args.compare:
                    raise
                note = f"Methods are not compared: {error}"
        print(comment.format(f"{protocol}: accuracy (%); {coverage(chosen)}") + "\n")
        for table in tables:
            print(titled(table, args.format) + "\n")
        if note:
            print(comment.format(note) if args.format in ("csv", "latex") else note)
        made += tables
    if args.format == "text" and any("does the difference hold" in table.title for table in made):
        print("A difference holds when its bootstrap interval over images excludes 0 and McNemar's p, adjusted for the "
              "number of pairs,\nis below 0.05. Both are over the test images of the seeds that were run.")
    return made


if __name__ == "__main__":
    sys.exit(train.command_line(main))
