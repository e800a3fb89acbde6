"""Get the datasets, lay them out, verify them.

    metaprompt data caltech101 pacs --root data
    metaprompt data base2new --root data
    metaprompt data all --root data --check        # only verify what is there

Run it again at any time: what is there is left alone, an interrupted download goes on where it stopped. For what needs
a login or has lost its server, the steps to do by hand are printed. docs/DATASETS.md shows the layouts;
tools/downloads/sources.py holds the addresses and the published numbers.
"""
import os
import sys

from tabulate import tabulate

import train
from dassl.utils import InputError
from dassl.utils.registry import nearest
from tools.downloads.counting import count, is_there
from tools.downloads.fetching import alone, prepare
from tools.downloads.sources import GROUPS, SOURCES


def check(names, root):
    """Print the table of what is expected and found. Returns whether all of it agrees."""
    rows = []
    for name in names:
        expected = SOURCES[name].expected
        try:
            found = count(name, root)
            rows.append([name, words(expected), words(found), "ok" if found == expected else "differs"])
        except (InputError, OSError) as error:
            rows.append([name, words(expected), str(error)[:160], "missing"])
    print(tabulate(rows, headers=["dataset", "expected", "found", ""], maxcolwidths=[None, 44, 44, None]))
    return all(row[-1] == "ok" for row in rows)


def words(numbers):
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items())


def parse_arguments(argv):
    parser = train.ArgumentParser(description="Get datasets, lay them out, verify them.",
                                  epilog=f"datasets: {', '.join(SOURCES)}")
    parser.add_argument("datasets", nargs="+", metavar="DATASET", help=f"names, or a group: {', '.join(GROUPS)}")
    parser.add_argument("--root", default="data", help="folder that holds the datasets (default data)")
    parser.add_argument("--check", action="store_true", help="only verify what is there")
    args = parser.parse_args(argv)
    names = [name for word in args.datasets for name in GROUPS.get(word, (word,))]
    for name in names:
        if name not in SOURCES:
            known = [*GROUPS, *SOURCES]
            raise InputError(f"unknown dataset '{name}'{nearest(name, known)}; known: {', '.join(known)}")
    args.datasets = list(dict.fromkeys(names))
    args.root = os.path.abspath(os.path.expanduser(args.root))
    return args


def main(argv=None):
    """Do as the command line says. Returns whether every dataset named is there with its published numbers."""
    args = parse_arguments(argv)
    train.discover()
    if not args.check:
        with alone(args.root):
            for name in args.datasets:
                try:
                    prepare(name, args.root)
                except (InputError, OSError) as error:
                    print(f"{name}: {error}", file=sys.stderr)
    whole = check(args.datasets, args.root)
    if not args.check:
        for name in args.datasets:
            if SOURCES[name].by_hand and not is_there(name, args.root):
                print(f"\n{SOURCES[name].by_hand.format(root=args.root)}")
    return whole


def command_line():
    """The program; returns its exit status."""
    whole = []
    status = train.command_line(lambda: whole.append(main()))
    return status or int(not whole[0])


if __name__ == "__main__":
    sys.exit(command_line())
