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
from dassl.engine.run_folder import Listings
from dassl.utils import InputError, broadcast, printable, rank, require_own_folder
from dassl.utils.streams import go_on
from protocols import Cells
from tools import report
from tools.results.run_folders import for_tables, places_below, require_comparable, uncollected
from tools.running import cluster, dry_run, slurm_settings, status
from tools.running.before_run import finished, only_class
from tools.running.execution import Outcome, execute
from tools.running.in_width import in_width
from tools.running.live import console_for, width_of
from tools.running.making_order import in_making_order
from tools.running.plans import Planner
from tools.running.time_left import waiting
from tools.running.words import COMPARE, check_arguments, parse_arguments


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
    if args.dry_run or args.preflight:
        with uncollected():
            listed, found = dry_run.described(runs, args, planner.clips)
        broadcast(lambda: print(listed))
        dry_run.require_none_refused(found)
        return listed
    if args.status:
        return told(sweep_status(runs, args.output))
    if args.table:
        outcome = made(runs)
        return broadcast(lambda: show(args, runs, outcome, f", {len(outcome.results)} of {len(runs)} runs done"))
    with uncollected():
        refused = dry_run.require_ready(runs, args, planner.clips)
    if args.launcher == "slurm":
        return told(submitted(runs, args, refused))
    started = time.time()
    left = list(waiting(in_making_order(runs), set(refused), set(refused)))
    console = None if rank() else console_for(left, args.jobs, args.verbose)
    outcome = execute(runs, planner.clips, args.jobs, console, refused)
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


def submitted(runs, args, refused):
    """Submit what is not made yet and say so. Raises InputError for runs that cannot be made.

    refused: {run folder: why} of what is known of them."""
    jobs, before = cluster.submit(runs, args.output, slurm_settings.slurm_parameters(args), refused)
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
        print(f"\n{printable(table.title)}\n\n{in_width(table, width_of(sys.stdout))}")
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
