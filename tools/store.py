"""What a feature store keeps: list, verify, trim, delete. Safe while runs use it.

    metaprompt store list output                  # or output/features, or the folder that STORE.DIR names
    metaprompt store verify output                # read all of it
    metaprompt store trim output --mb 1000        # delete what was not used for longest
    metaprompt store delete output --backbone ViT-B/16 --unused-for 30

Deleted features are computed again by the next run that needs them.
"""
import argparse
import datetime
import math
import re
import sys

from tabulate import tabulate

import train
from dassl.utils import InputError, printable
from dassl.utils.registry import nearest
from prompting.weights import known_names, weights_digest
from training.store.budget import MEGABYTE, kept, trim
from training.store.upkeep import delete, faults, inventory, store_in

DAY = 24 * 3600
HEADERS = ("backbone", "precision", "device", "transform", "space", "files", "pictures", "views", "MB", "last used")
IS_DIGITS = re.compile("[0-9a-f]{6,64}")  # of a digest
FEW = 8  # digits of a digest that are shown
MOST_TOLD = 20  # damaged files that are named


def number(word):
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"a number of 0 or more is needed, not '{word}'")
    return value


def parse_arguments(argv):
    parser = train.ArgumentParser(description="What a feature store keeps.")
    programs = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    words = {"list": "what there is: by backbone, precision, device and transform",
             "verify": "read everything; exit status 1 where something is damaged",
             "trim": "delete what was not used for longest", "delete": "delete all, or what the flags say"}
    for action, told in words.items():
        program = programs.add_parser(action, help=told, description=f"Feature store: {told}.")
        program.add_argument("folder", help="an output folder, or the store itself")
        if action == "trim":
            program.add_argument("--mb", type=number, required=True, help="megabytes that stay")
        if action == "delete":
            program.add_argument("--backbone", help="only its features: a name, a weights file, or first digits of its "
                                                    "digest (default all)")
            program.add_argument("--unused-for", type=number, metavar="DAYS", help="only what was not used for so many "
                                                                                   "days (default all)")
    return parser.parse_args(argv)


# ---- in words ----
def backbone_of(part):
    """A space's backbone as `list` shows it: its name, and the first digits of its weights' digest."""
    name, digest = part.told.get("name"), part.facts.get("weights")
    known = [printable(word)[:most] for word, most in ((name, 40), (digest, FEW)) if word and isinstance(word, str)]
    return " ".join(known) or "?"


def steps_of(part):
    """The steps of a space's transform without their parameters, which stand in its space.json."""
    steps = part.facts.get("transform")
    return ", ".join(printable(step).partition("(")[0] for step in steps) if isinstance(steps, list) else "?"


def day(seconds):
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M") if seconds else "?"


def megabytes(number):
    return f"{number / MEGABYTE:,.1f}"


def files(number):
    return f"{number:,} {'file' if number == 1 else 'files'}"


# ---- actions ----
def show(folder, args):
    found = inventory(folder)
    rows = [[backbone_of(part), *(printable(part.facts.get(name, "?")) for name in ("precision", "device")),
             steps_of(part), part.name[:FEW],
             f"{part.entries:,}", f"{part.pictures:,}", f"{part.views:,}", megabytes(part.bytes), day(part.used)]
            for part in found.parts]
    if rows:
        print(tabulate(rows, headers=HEADERS, maxcolwidths=[24, None, None, 32, *[None] * 6], disable_numparse=True,
                       colalign=("left",) * 5 + ("right",) * 4 + ("left",)) + "\n")
    if notes := found.bytes - sum(part.bytes for part in found.parts):
        print(f"digests of pictures, and files of the store itself: {megabytes(notes)} MB")
    budget = f" of {found.megabytes:,} MB (STORE.MB of the last run)" if found.megabytes is not None else ""
    print(f"{folder}: {megabytes(found.bytes)} MB{budget}")
    if damaged := sum(part.damaged for part in found.parts):
        print(f"{files(damaged)} cannot be used, and their features are computed again; `metaprompt store verify` says "
              "why")
    if found.unfinished:
        print(f"{files(found.unfinished)} being written, or left by a run that was killed")
    return True


def verify(folder, args):
    count = sum(not file.unfinished for file in kept(folder))
    found = list(faults(folder))
    for path, fault in found[:MOST_TOLD]:
        print(f"{path}: {fault}")
    if len(found) > MOST_TOLD:
        print(f"... and {len(found) - MOST_TOLD:,} more")
    print(f"{folder}: {files(count)} read, {len(found):,} cannot be used; a run that needs them "
          "computes them again" if found else
          f"{folder}: {files(count)} read, all are as they were written")
    return not found


def shrink(folder, args):
    before = sum(file.bytes for file in kept(folder))
    left = trim(folder, int(args.mb * MEGABYTE), int(args.mb * MEGABYTE))
    print(f"{folder}: {megabytes(left)} MB of {megabytes(before)} MB are left")
    return True


def clear(folder, args):
    spaces = None if args.backbone is None else spaces_of(folder, args.backbone)
    gone = delete(folder, None if args.unused_for is None else args.unused_for * DAY, spaces)
    print(f"{folder}: {files(gone.files)} deleted, {megabytes(gone.bytes)} MB")
    if gone.left:
        raise InputError(f"{files(len(gone.left))} cannot be deleted, first {gone.left[0]}; check owner and "
                         "permissions")
    return True


def spaces_of(folder, backbone):
    """Names of the spaces of a backbone's features. Raises InputError where there is none."""
    parts, digits = inventory(folder).parts, weights_digest(backbone)
    if digits is None and IS_DIGITS.fullmatch(backbone):
        digits = backbone
    found = [part.name for part in parts if backbone and backbone == part.told.get("name")
             or digits and str(part.facts.get("weights", "")).startswith(digits)]
    if not found:
        there = sorted({backbone_of(part) for part in parts})
        hint = "" if backbone in known_names() else nearest(backbone, known_names())
        raise InputError(f"no features of the backbone {backbone} in {folder}{hint}; there are those of: "
                         f"{', '.join(there) or 'none'}")
    return found


ACTIONS = {"list": show, "verify": verify, "trim": shrink, "delete": clear}


def main(argv=None):
    """Do as the command line says. Returns whether all is well."""
    args = parse_arguments(argv)
    return ACTIONS[args.action](store_in(args.folder), args)


def command_line():
    """The program; returns its exit status: 1 where `verify` has found something damaged."""
    well = []
    status = train.command_line(lambda: well.append(main()))
    return status or int(not well[0])


if __name__ == "__main__":
    sys.exit(command_line())
