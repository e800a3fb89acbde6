"""Figures of finished runs: PNG and SVG, sized for a column of a two-column paper.

    metaprompt plot output                 # every figure that the runs there allow, into output/figures
    metaprompt plot output --only dg fewshot

base2new: base against new with lines of equal H, and a radar of H over datasets; dg, xd and sdg: bars; fewshot: curves
with bands of one standard deviation over seeds; training: loss, accuracy and learning rate by step. A method has the
same colour in all figures, and methods stand in the order of their names, as in the tables of `metaprompt report`.
"""
import functools
import os
import sys

import train
from dassl.utils import InputError, printable, require_own_folder
from dassl.utils.registry import nearest
from protocols import PROTOCOL_REGISTRY, protocol_named
from protocols.base import by_dataset
from protocols.parts.style import draw, looks, method_names
from tools.results.run_folders import find_runs, require_comparable
from tools.results.training_curves import training

TRAINING = "training"  # the kind of figure that every protocol has


def kinds():
    """The words for --only: the figures of every registered protocol, and those of trainings."""
    return [*dict.fromkeys(kind for _, protocol in PROTOCOL_REGISTRY.items()
                           for kind in protocol.kinds or (protocol.name,)), TRAINING]


def figures(cells, where, folder, only=None):
    """Draw what the runs allow into `folder`; returns the names of the files. only: kinds of figures, default all."""
    files, look = [], looks(method_names(cells))
    for name in cells.values("protocol"):
        protocol, chosen = protocol_named(name), cells.where(protocol=name)
        for drawing in protocol.drawings(chosen):
            if only is None or drawing.kind in only:
                files += draw(functools.partial(drawing.draw, look), os.path.join(folder, drawing.name))
        for dataset, own in by_dataset(chosen).items() if only is None or TRAINING in only else ():
            for more, title, group in protocol.trainings(own):
                files += draw(functools.partial(training, group, where, printable(f"{dataset}, {title}"), look),
                              os.path.join(folder, f"{TRAINING}_{name}_{dataset}{more}"))
    return files


def parse_arguments(argv):
    parser = train.ArgumentParser(description="Draw figures of finished runs.")
    parser.add_argument("output", nargs="+", help="output folders of protocols, or folders in them")
    parser.add_argument("--only", nargs="+", metavar="KIND",
                        help=f"only these figures: {', '.join(kinds())}, or the name of a plugin's protocol "
                             "(default all)")
    parser.add_argument("--to", help="folder of the figures; default figures in the first output folder")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE",
                        help="a file or module with more protocols (repeatable)")
    return parser.parse_args(argv)


def main(argv=None):
    """Draw the figures and print their names; returns the names."""
    args = parse_arguments(argv)
    train.discover(args.plugin)
    if unknown := [kind for kind in args.only or () if kind not in kinds()]:
        raise InputError(f"--only: no figures are called {', '.join(unknown)}{nearest(unknown[0], kinds())}; "
                         f"there are: {', '.join(kinds())}")
    cells, where = find_runs(args.output)
    require_comparable(cells, where)
    folder = args.to or os.path.join(args.output[0], "figures")
    if not args.to:
        require_own_folder(folder)
    files = figures(cells, where, folder, args.only)
    if not files:
        raise InputError(f"nothing to draw of {', '.join(args.only or kinds())} in {', '.join(args.output)}")
    print("\n".join(files))
    return files


def command_line():
    """The program; returns its exit status."""
    return train.command_line(main)


if __name__ == "__main__":
    sys.exit(command_line())
