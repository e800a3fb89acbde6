"""Tables of finished runs, methods x datasets, and whether the differences between methods hold.

    metaprompt report output
    metaprompt report output/base2new --format latex
    metaprompt report output --compare CoOp MetaPrompt

Numbers are mean +- standard deviation over seeds. Runs of different data, shots or backbones are refused, not averaged.
"""
import sys

import train
from dassl.engine.identity import same_backbone
from dassl.utils import InputError
from dassl.utils.registry import nearest
from prompting.backbone import weights_digest
from protocols import Cells, protocol_named
from protocols.parts.formats import FORMATS, WORDS, comment
from protocols.parts.tables import titled
from tools.results.budgets import budget_tables
from tools.results.published import published_table
from tools.results.run_folders import (
    backbone_of,
    collect,
    known_backbone,
    require_comparable,
    uncollected,
    without_folder,
)
from tools.results.single_runs import single_runs_table


def parse_arguments(argv):
    parser = train.ArgumentParser(description="Collect finished runs into tables.")
    parser.add_argument("output", nargs="+", help="output folders of protocols, or folders in them")
    parser.add_argument("--format", choices=FORMATS, default="text", help="default text")
    parser.add_argument("--protocol", nargs="+", help="only these protocols (default all)")
    parser.add_argument("--dataset", nargs="+", help="only these datasets, of xd: sources (default all)")
    parser.add_argument("--trainer", nargs="+", help="only these methods (default all)")
    parser.add_argument("--shots", type=int, nargs="+", help="only runs with these numbers of shots (default all)")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these seeds (default all)")
    parser.add_argument("--backbone", help="only runs with this backbone (default all)")
    parser.add_argument("--compare", nargs="*", metavar="METHOD", default=None,
                        help="compare every pair of these methods; none: no comparison at all; by default every pair, "
                             "of more than four methods the best with each other one is shown")
    parser.add_argument("--against", metavar="METHOD",
                        help="compare each other method (or those of --compare) with this one, chosen beforehand: far "
                             "fewer pairs to allow for than the best method has, which is found by looking")
    parser.add_argument("--budget", action="store_true", help="what the trainings spent: updates, images, passes")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE",
                        help="a file or module with more protocols (repeatable)")
    parser.add_argument("--published", action="store_true", help="published averages beside the measured ones")
    return parser.parse_args(argv)


def chosen_runs(args):
    """Found: the runs that the flags ask for. Raises InputError where there is none, or where they do not go together.
    """
    found = collect(args.output)
    for field, wanted in (("protocol", args.protocol), ("dataset", args.dataset), ("trainer", args.trainer),
                          ("shots", args.shots), ("seed", args.seeds)):
        if wanted:
            known = [*found.cells.values(field), *(getattr(run, field, None) for _, run, _ in found.single)]
            _keep(found, lambda run, results, field=field, wanted=wanted: getattr(run, field, None) in wanted)
            if not found.cells and not found.single:
                there = [str(value) for value in dict.fromkeys(known) if value is not None]
                meant = "".join(nearest(word, there) for word in wanted) if isinstance(wanted[0], str) else ""
                raise InputError(f"no run has {field} {' or '.join(map(str, wanted))}{meant}; there are: "
                                 f"{', '.join(there)}")
    if args.backbone:
        asked = {"name": without_folder(args.backbone), "digest": weights_digest(args.backbone)}
        _keep(found, lambda run, results: same_backbone(known_backbone(results), asked))
        if not found.cells and not found.single:
            raise InputError(f"no run has the backbone {args.backbone}")
    require_comparable(found.cells, found.where)
    return found


def _keep(found, wanted):
    """Keep the runs for which `wanted(Place or StoredRun, results)`. A StoredRun has no protocol."""
    found.cells = Cells({place: results for place, results in found.cells.items() if wanted(place, results)})
    found.single = [(folder, run, results) for folder, run, results in found.single if wanted(run, results)]


def require_methods(args, cells):
    """Raise InputError unless the methods that --compare and --against name are there, in whichever protocol, and are
    two at least."""
    methods = [name for protocol in cells.values("protocol") for name, _ in cells.where(protocol=protocol).methods()]
    for flag, asked in (("--compare", args.compare or ()), ("--against", [args.against] if args.against else ())):
        if unknown := [name for name in asked if name not in methods]:
            raise InputError(f"{flag}: no runs of {', '.join(unknown)} here{nearest(unknown[0], methods)}; there are: "
                             f"{', '.join(dict.fromkeys(methods))}")
    if args.against and args.compare == []:
        raise InputError("--compare without a method leaves comparisons out, --against asks for them; leave one out")
    if args.compare and len({*args.compare, args.against or args.compare[0]}) < 2:
        raise InputError(f"--compare {' '.join(args.compare)}: a comparison needs two methods")


def coverage(cells):
    """Words on what stands in a protocol's tables, and a note where methods have different seeds."""
    seeds = {method: tuple(sorted(chosen.values("seed"))) for method, chosen in cells.methods()}
    backbone = backbone_of(next(iter(cells.values())))
    shots = [number for number in cells.values("shots") if number is not None]
    told = f"backbone {backbone}" + (f", shots {', '.join(map(str, sorted(shots)))}" if shots else "")
    if len(set(seeds.values())) == 1:
        return f"{told}, seeds {', '.join(map(str, next(iter(seeds.values()))))}"
    return f"{told}, seeds " + "; ".join(f"{method}: {', '.join(map(str, own))}" for method, own in seeds.items())


@uncollected()
def main(argv=None):
    """Print the tables. Returns them as a list of Table."""
    args = parse_arguments(argv)
    train.discover(args.plugin)
    found = chosen_runs(args)
    cells, where = found.cells, found.where
    require_methods(args, cells)
    made = []
    for protocol in cells.values("protocol"):
        chosen = cells.where(protocol=protocol)
        tables = protocol_named(protocol).method_tables(chosen)
        if args.budget:
            tables += budget_tables(chosen)
        if args.published:
            tables += [table for table in [published_table(protocol, chosen)] if table]
        notes = []
        if args.compare != [] and len(chosen.methods()) > 1:
            from tools.results.comparisons import comparisons  # scipy only where it is wanted

            try:
                compared, notes = comparisons(chosen, where, args.compare, args.against)
                tables += compared
            except InputError as error:
                if args.compare or args.against:
                    raise
                notes = [f"Methods are not compared: {error}"]
        print(comment(f"{protocol}: accuracy (%); {coverage(chosen)}", args.format) + "\n")
        for table in tables:
            print(titled(table, args.format) + "\n")
        for note in notes:
            told = comment(note, args.format) if args.format in ("csv", "latex") else WORDS[args.format](note)
            print(told + "\n")
        made += tables
    if found.single:
        made.append(single_runs_table(found.single))
        print(titled(made[-1], args.format) + "\n")
    if args.format == "text" and any("does the difference hold" in table.title for table in made):
        from tools.results.comparisons import RULE

        print(RULE)
    return made


def command_line():
    """The program; returns its exit status."""
    return train.command_line(main)


if __name__ == "__main__":
    sys.exit(command_line())
