"""What frozen features at hand are worth: the same work with and without the feature store, in turns.

    python -m benchmarks.compare --docs docs              # everything, some 35 minutes on one core; writes the section
    python -m benchmarks.compare --only coop_50           # one measurement; what is stored is not made again
    python -m benchmarks.compare --backbone tiny          # in a minute, to try the program

Pictures and weights are made on the spot. Each measurement is stored as JSON in the output folder, so that the command
can be stopped and run again.
"""
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import page
from benchmarks.frozen_page import section
from benchmarks.frozen_rows import TESTED, measurements
from benchmarks.frozen_work import Place
from dassl.config.words import ArgumentParser
from dassl.utils import InputError, mkdir_if_missing, read_json, write_json
from dassl.utils.registry import nearest
from train import command_line


def main(argv=None):
    parser = ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="output/benchmarks/frozen", help="folder of the measurements")
    parser.add_argument("--only", nargs="+", metavar="NAME",
                        help=f"{', '.join(measurements(Place(Path()), 1))} (default all)")
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each side")
    parser.add_argument("--tested", type=int, default=TESTED,
                        help=f"test pictures per class of the evaluation (default {TESTED})")
    parser.add_argument("--backbone", default="ViT-B/16", choices=("ViT-B/16", "tiny"),
                        help="random weights of that shape, or the tiny CLIP")
    parser.add_argument("--folder", help="where data, weights and runs lie, and are found the next time; default a "
                                         "temporary one")
    parser.add_argument("--docs", help="folder of SPEED.md, whose section is written anew")
    parser.add_argument("--markdown", metavar="FILE", help="store the section there, too")
    parser.add_argument("--note", default="", help="a sentence for the section on how the machine was")
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    names = measurements(Place(Path()), 1)
    unknown = set(args.only or ()) - set(names)
    if unknown:
        raise InputError(f"no measurement is called {', '.join(sorted(unknown))}{nearest(min(unknown), names)}; "
                         f"known: {', '.join(names)}")
    mkdir_if_missing(args.output)
    with tempfile.TemporaryDirectory() as temporary:
        place = Place(Path(args.folder or temporary).absolute(), args.backbone)
        mkdir_if_missing(str(place.folder))
        for name, measure in measurements(place, args.pairs, args.tested).items():
            path = Path(args.output, f"{name}.json")
            if args.page_only or (args.only and name not in args.only) or path.is_file():
                continue
            print(f"[{name}]", flush=True)
            write_json({"backbone": args.backbone, **measure(), "machine": page.machine()}, str(path))
    stored = {name: read_json(str(path)) for name in names if (path := Path(args.output, f"{name}.json")).is_file()}
    text = section(stored, args.note)
    print(text)
    if args.markdown:
        Path(args.markdown).write_text(text, encoding="utf-8")
    if args.docs:
        page.write_section(args.docs, page.FROZEN, text)
    return stored


if __name__ == "__main__":
    sys.exit(command_line(main))
