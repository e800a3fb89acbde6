"""The protocols of the papers, one implementation: many runs in one process with one loaded CLIP, then a table.

    metaprompt protocol base2new --trainer MetaPrompt --dataset caltech101
    metaprompt protocol dg --trainer MetaPrompt --dataset pacs
    metaprompt protocol xd --trainer CoCoOp --dataset imagenet
    metaprompt protocol compare --dataset caltech101

The scripts in scripts/ call this; docs/PROTOCOLS.md describes each protocol. Runs that are finished are taken over,
interrupted ones go on. `--launcher slurm` gives them to a cluster; `--status` and `--table` tell how far they are.
"""
import functools
import os
import sys
import time

import train
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.run_folder import Listings
from dassl.utils import InputError, broadcast, printable, require_own_folder, world_size
from dassl.utils.registry import nearest
from dassl.utils.streams import go_on
from protocols import PROTOCOL_REGISTRY, Cells
from protocols.parts.cells import COMPARED
from tools import report
from tools.results.run_folders import for_tables, places_below, require_comparable, uncollected
from tools.running import cluster, slurm_settings, status
from tools.running.before_run import finished, only_class
from tools.running.dry_run import list_runs
from tools.running.execution import Outcome, execute
from tools.running.method_configs import take_variants
from tools.running.plans import Planner

COMPARE = "compare", "a protocol (base2new) for several methods side by side"
DEFAULT = "base2new"  # what `compare` compares
PUBLISHED = ("ZeroshotCLIP", "MetaPrompt")  # compared with published averages by default


def shared_arguments(protocol, methods):
    """The flags that every protocol takes, a parser. protocol: whose defaults --help tells; methods: that of --trainer.
    """
    shared = train.ArgumentParser(add_help=False)
    several = f", or several (default {' '.join(methods)})" if methods else ""
    shared.add_argument("--trainer", nargs="*", help=f"the method{several}")
    shared.add_argument("--seeds", nargs="+", help=f"default {' '.join(map(str, protocol.seeds))}")
    shared.add_argument("--dataset", nargs="+", required=True,
                        help="names of configs in configs/datasets, or YAML files"
                             + ("" if protocol.several_datasets else "; one, to train on"))
    shared.add_argument("--cfg", nargs="+", metavar="CONFIG",
                        help="name of a config in configs/trainers/<trainer>, or the YAML file of the method it is "
                             "for; METHOD=CONFIG for each of several; default vit_b16; tiny for that CLIP, clip64 for "
                             "a CLIP file of 64-pixel images"
                             + (f"; <name>_{protocol.name} where the method has it" if protocol.own_config else ""))
    shared.add_argument("--variant", metavar="NAME KEY VALUE ...",  # for --help: take_variants has read them
                        help="the methods once more with these options, in rows of their own (repeatable); "
                             "METHOD:NAME for one method; options of every run go behind another flag")
    shared.add_argument("--root", default="data", help="folder that holds the datasets (default data)")
    shared.add_argument("--output", default="output", help="folder of all run folders (default output)")
    shared.add_argument("--shots", nargs="+",
                        help=f"images {protocol.per}; default {' '.join(map(str, protocol.shots)) or 'none'}")
    shared.add_argument("--backbone", default="", help="a CLIP by name or a weights file, instead of the config's")
    add_plugin(shared)
    shared.add_argument("--jobs", type=int, default=1,
                        help="processes, each with a GPU of its own (default 1); on a CPU they share its threads")
    shared.add_argument("--launcher", choices=("local", "slurm"), default="local",
                        help="local (default): make the runs here; slurm: submit them as one array job and return")
    instead = shared.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="list the runs and whether each is done; run nothing")
    instead.add_argument("--status", action="store_true",
                         help="say which runs are done, running, queued or failed, with the last log line; run nothing")
    instead.add_argument("--table", action="store_true", help="print the table of what is done; run nothing")
    slurm_settings.add_arguments(shared)
    train.add_options(shared, "config options for every run: KEY VALUE or KEY=VALUE ...")
    return shared


def add_plugin(parser):
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE",
                        help="more methods, datasets or protocols (repeatable)")


def parse_arguments(argv):
    """The arguments of a command line, with `of`, the protocol object. The plugins that it names are loaded, which may
    bring the protocol."""
    argv, variants = take_variants(sys.argv[1:] if argv is None else argv)
    early = train.ArgumentParser(add_help=False, allow_abbrev=False)  # what the flags of a protocol depend on
    add_plugin(early)
    if argv[:1] == [COMPARE[0]]:
        early.add_argument("--protocol", default=DEFAULT)
    known, _ = early.parse_known_args(argv)
    train.discover(known.plugin)
    parser = train.ArgumentParser(description="Run a protocol over seeds and print its table.")
    commands = parser.add_subparsers(dest="protocol", required=True, metavar="PROTOCOL")
    kinds = {name: (protocol, protocol.words, protocol.methods) for name, protocol in PROTOCOL_REGISTRY.items()}
    compared = [name for name, protocol in PROTOCOL_REGISTRY.items() if not protocol.several_methods]
    asked = getattr(known, "protocol", DEFAULT)
    kinds[COMPARE[0]] = kinds[asked if asked in compared else DEFAULT][0], COMPARE[1], COMPARED
    require_known(argv[:1], kinds, known.plugin)
    if asked not in PROTOCOL_REGISTRY:
        require_known([asked], compared, known.plugin)
    parsers, own = {}, {}
    for name, (protocol, words, methods) in kinds.items():
        flags = train.ArgumentParser(add_help=False)
        protocol.add_arguments(flags)
        own[name] = [action.dest for action in flags._actions]
        parsers[name] = commands.add_parser(name, parents=[shared_arguments(protocol, methods), flags], help=words,
                                            description=words)
    parsers[COMPARE[0]].add_argument("--protocol", choices=compared, default=DEFAULT,
                                     help=f"which protocol (default {DEFAULT})")
    parsers[COMPARE[0]].add_argument("--published", action="store_true",
                                     help="afterwards print the tables with published averages beside the measured "
                                          f"ones (default methods: {' '.join(PUBLISHED)})")
    if not argv or argv[0] not in parsers:
        parser.parse_args(argv)  # prints help, or says what the protocols are
    args = train.parse_words(parsers[argv[0]], argv[1:])
    if args.plugin != known.plugin:  # --plugin was written shorter
        train.discover(args.plugin)
    args.command, args.variant = argv[0], variants
    args.published = getattr(args, "published", False)
    args.own = {name: getattr(args, name) for name in own[argv[0]]}
    args.protocol = args.protocol if args.command == COMPARE[0] else args.command
    args.of = PROTOCOL_REGISTRY.get(args.protocol)(**args.own)
    return args


def require_known(words, protocols, plugins):
    """Raise InputError for a word, if there is one, that stands where a protocol is named and is none."""
    for word in words:
        if word not in protocols and not word.startswith("-"):
            more = "" if plugins else "; --plugin FILE makes the protocol in a file of yours known"
            raise InputError(f"unknown protocol '{word}'{nearest(word, protocols)}; there are: {', '.join(protocols)}"
                             f"{more}")


def check_arguments(args):
    """Fill in what follows from the protocol. Raises InputError for what does not go together."""
    args.side_by_side = args.command == COMPARE[0] or args.of.several_methods
    named = [name for word in args.trainer or () for name in word.split()]
    default = (PUBLISHED if args.published else COMPARED) if args.command == COMPARE[0] else args.of.methods
    args.trainer = named or list(default)
    if not args.trainer or (not args.side_by_side and len(args.trainer) > 1):
        others = "" if args.side_by_side else f"; compare --protocol {args.command} takes several"
        raise InputError(f"{args.command} needs one --trainer{others}")
    args.seeds = numbers("--seeds", args.seeds or args.of.seeds, least=0)
    args.shots = numbers("--shots", args.shots or [], least=1)
    for what in ("trainer", "dataset", "seeds", "shots"):
        setattr(args, what, list(dict.fromkeys(getattr(args, what) or [])))
    if len(args.shots) > 1 and not args.of.several_shots:
        raise InputError(f"{args.protocol} takes one number of --shots, not {' '.join(map(str, args.shots))}")
    if args.jobs < 1:
        raise InputError(f"--jobs must be at least 1, not {args.jobs}")
    if args.launcher == "slurm" and world_size() > 1:
        raise InputError("--launcher slurm submits runs of one process each; leave RANKS and torchrun out")
    if args.launcher == "slurm" and args.jobs > 1:
        raise InputError("--jobs is for --launcher local; with slurm each task makes one run, --array-parallelism says "
                         "how many at once")
    flags = slurm_settings.given_flags(args)
    if flags and args.launcher != "slurm":
        raise InputError(f"{', '.join(flags)} {'needs' if len(flags) == 1 else 'need'} --launcher slurm")
    for trainer in args.trainer:
        TRAINER_REGISTRY.get(trainer)


def numbers(flag, words, least):
    """The whole numbers that a flag was given. Raises InputError for other words and for numbers below `least`."""
    try:
        found = [int(word) for word in words]
    except ValueError:
        raise InputError(f"{flag} are whole numbers, not {' '.join(words)}") from None
    if found and min(found) < least:
        raise InputError(f"{flag} are numbers from {least} on, not {min(found)}")
    return found


def main(argv=None):
    """Make a protocol's runs and print its table. Returns the (last) table as text; for --dry-run the list of runs."""
    args = parse_arguments(argv)
    check_arguments(args)
    planner = Planner(args.root, args.output, args.seeds, args.cfg, args.backbone, args.plugin, args.opts, args.variant)
    with uncollected():
        runs = planner.plan(args.protocol, args.trainer, args.dataset, args.shots, **args.own)
    for note in planner.notes:
        print(note)
    for trainer, chosen in Cells(dict.fromkeys(run.place for run in runs)).methods():
        for note in args.of.notes(trainer, chosen):
            print(note)
    if args.dry_run:
        with uncollected():
            listed, refused = list_runs(runs)
        print(listed)
        if refused:
            raise InputError(f"{refused} of {len(runs)} runs would be refused, see above")
        return listed
    if args.status:
        return told(sweep_status(runs, args.output))
    if args.table:
        outcome = made(runs)
        return broadcast(lambda: show(args, runs, outcome, f", {len(outcome.results)} of {len(runs)} runs done"))
    if args.launcher == "slurm":
        return told(submitted(runs, args))
    started = time.time()
    outcome = execute(runs, planner.clips, args.jobs)
    text = broadcast(lambda: show(args, runs, outcome, f", {time.time() - started:.0f} s"))
    outcome.require_all()
    return text


def told(text):
    print(text)
    return text


@uncollected()
def sweep_status(runs, output):
    """The lines of --status. Raises InputError where no run of the plan was ever started or submitted."""
    found = status.states(runs, output)
    if all(state.word == "to do" for state in found):
        raise InputError(f"none of these {len(runs)} runs was started or submitted in {output}; --output names another "
                         "folder, and without --status the command makes them")
    return status.describe(found)


def submitted(runs, args):
    """Submit what is not made yet and say so. Raises InputError for runs that cannot be made."""
    jobs, before = cluster.submit(runs, args.output, slurm_settings.slurm_parameters(args))
    words = [state.word for state in before]
    kept = f"{words.count('done')} done, {sum(state.in_hand for state in before)} queued or running already"
    lines = [f"Submitted {tasks} task{'s' if tasks > 1 else ''} as Slurm job {job}; of {len(runs)} runs: {kept}"
             for job, tasks in jobs.items()] or [f"Nothing to submit; of {len(runs)} runs: {kept}"]
    lines += [str(state) for state in before if state.word == "refused"]
    lines.append("The same command with --status says how far they are, with --table prints the table of what is done.")
    if jobs:
        lines.append(f"Files of the jobs: {status.jobs_folder(args.output)}; scancel {' '.join(jobs)} ends them.")
    if "refused" in words:
        print("\n".join(lines))
        raise InputError(f"{words.count('refused')} of {len(runs)} runs were refused and not submitted, see above")
    return "\n".join(lines)


@uncollected()
def made(runs):
    """The Outcome of what is done, without making anything. Raises InputError if that is nothing."""
    outcome, seen = Outcome(list(runs)), Listings()
    shared: dict = {}
    for run in runs:
        try:
            results = finished(run, seen)
        except InputError as error:
            outcome.fail(run, str(error))
        else:
            if results is not None:
                outcome.results[run.folder] = for_tables(results, shared)
    if not outcome.results:
        others = [*outcome.failed.values()]
        raise InputError(f"none of these {len(runs)} runs is done yet" + (
            f" with these options; {len(others)} of their folders hold other runs: {others[0]}" if others else ""))
    for run in outcome.remaining:
        base = outcome.results.get(run.needs, {}).get("classes") or {}
        if len(base.get("name", "...")) < 3 and (name := only_class(run)):  # the other half may be one class
            outcome.one_class[run.folder] = name
    return outcome


def show(args, runs, outcome, more):
    """Print the tables of what is done, the last one is returned; draw the figures that belong to a comparison.

    more: ends the line of conditions."""
    print(f"\n{', '.join(args.trainer)}: {args.of.words}; accuracy (%)\n{conditions(args, runs)}, "
          f"results in {args.output}{more}")
    require_comparable(Cells(outcome.cells), {run.place: run.folder for run in runs})
    text = ""
    for table in make_tables(args, runs, outcome):
        text = table.render()
        print(f"\n{printable(table.title)}\n\n{text}")
    files = figures(args, runs, outcome) if args.command == COMPARE[0] else []
    if files:
        print(f"\nFigure: {', '.join(files)}")
    if args.published and outcome.results:
        plugins = [word for plugin in args.plugin for word in ("--plugin", plugin)]
        report.main([args.output, "--protocol", args.protocol, "--trainer", *args.trainer, "--dataset",
                     *dict.fromkeys(run.place.dataset for run in runs), "--published", *plugins])
    return text


def conditions(args, runs):
    """Shots, seeds and backbone of all runs, in words."""
    shots = sorted({run.place.shots for run in runs if run.place.shots is not None})
    told = f"{', '.join(map(str, shots))} shot{'s' if shots != [1] else ''} {args.of.per}, " if shots else ""
    return f"{told}seeds {', '.join(map(str, args.seeds))}, backbone {runs[0].spec.backbone or 'of the config'}"


def make_tables(args, runs, outcome):
    """The tables of a protocol; what a failed run leaves out is "-"."""
    if not outcome.results:
        return []
    cells = every_cell(runs, outcome)
    if args.side_by_side or args.variant:
        return args.of.method_tables(cells, seconds=len(args.dataset) == 1)
    return args.of.seed_tables(cells)


def every_cell(runs, outcome):
    """The Cells of a plan, also of the runs that were not made: a mean over fewer seeds is none."""
    return Cells({run.place: outcome.results.get(run.folder) or not_made(run, outcome) for run in runs})


def not_made(run, outcome):
    """What stands in a table for a run that was not made; one that is not to be made takes no time."""
    name = outcome.one_class.get(run.folder)
    return {"metrics": {}, "seconds": 0.0, "classes": {"name": [name]}} if name else {"metrics": {}}


def figures(args, runs, outcome):
    """Draw what the protocol shows beside a comparison; the names of the files."""
    cells = every_cell(runs, outcome) if outcome.results else Cells()
    drawings = list(args.of.comparison_drawings(cells))
    if not drawings:
        return []
    from protocols.parts.style import draw, looks, method_names  # matplotlib only for a figure

    files, folder = [], os.path.join(args.output, args.protocol)
    look = looks(method_names([*places_below(args.output), *cells]))
    for drawing in drawings:
        require_own_folder(folder)
        files += draw(functools.partial(drawing.draw, look), os.path.join(folder, drawing.name))
    return files


def command_line():
    """The program; returns its exit status."""
    return train.command_line(main, unread=go_on)


if __name__ == "__main__":
    sys.exit(command_line())
