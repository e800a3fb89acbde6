"""Classify images with a trained run, also among classes that it was never trained on.

    metaprompt predict --model-dir output/.../seed1 photo.jpg folder --classes "cat,dog,alarm clock"
    metaprompt predict --model-dir output/.../seed1 photo.jpg --classes-file names.txt      # a name on each line

From Python, in the checkout or with it in PYTHONPATH:

    from tools.predict import load_run

    run = load_run("output/base2new/train_base/caltech101/shots_16/MetaPrompt/vit_b16/seed1")
    for prediction in run.predict(["photo.jpg"], classes=["cat", "dog", "alarm clock"]):
        print(prediction.path, prediction.top)  # [("cat", 0.91), ("dog", 0.07), ("alarm clock", 0.02)]

The dataset need not be there: the model is made from the run's config.yaml and checkpoint.
"""
import contextlib
import csv
import os
import sys
from collections import deque

import train
from dassl.utils import InputError, open_regular, printable
from dassl.utils.images import SUFFIXES, size_of
from dassl.utils.tools import MOST_JSON
from tools.results.loaded_run import BATCH, Prediction, add_run_flags, load_run, require_choice, told_apart
from tools.results.prediction_output import JsonArray, Table

NAMED = 20  # files that one line names

__all__ = ["Prediction", "load_run", "main"]


def given_classes(flags, file):
    """The names of --classes, each a line of CSV (a name with a comma in quotes), or of the lines of a file; None where
    neither is given. Raises InputError for both, a file that cannot be read, or names that are no choice."""
    if file is not None and flags:
        raise InputError("give --classes or --classes-file, not both")
    if file is not None:
        try:
            with open_regular(file, "r", MOST_JSON, encoding="utf-8-sig") as lines:
                names, where = [line.strip() for line in lines if line.strip()], f"--classes-file {file}"
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read --classes-file {file} ({getattr(error, 'strerror', None) or error}); it is "
                             "a text file in UTF-8 with a class name on each line") from None
    elif flags:
        try:
            rows = list(csv.reader(flags, skipinitialspace=True, strict=True))
        except csv.Error as error:
            raise InputError(f"--classes {' '.join(flags)}: {error}; a name with a comma is written in quotes: "
                             "--classes 'cat,\"bow, arrow\"'") from None
        names, where = [name.strip() for row in rows for name in row if name.strip()], "--classes"
    else:
        return None
    require_choice(names, where)
    return names


def some_of(names):
    """Names for a message, not more than a screen of them."""
    return ", ".join(map(printable, names[:NAMED])) + (f", ... ({len(names)} in all)" if names[NAMED:] else "")


def image_files(paths):
    """(files, [names of other files]): files as they are given, folders with all images below them, sorted.

    Files in a folder whose ending is not an image's are not asked for and are named apart."""
    files: list[str] = []
    others: list[str] = []
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
            continue
        for folder, names, contents in os.walk(path):
            names[:] = sorted(name for name in names if not name.startswith("."))
            for name in sorted(name for name in contents if not name.startswith(".")):
                known = os.path.splitext(name)[1].lower() in SUFFIXES
                (files if known else others).append(os.path.join(folder, name))
    return files, others


def parse_arguments(argv):
    parser = train.ArgumentParser(description="Classify images with a trained run.")
    parser.add_argument("images", nargs="+", help="image files, or folders whose images are classified")
    parser.add_argument("--model-dir", required=True, help="the run folder")
    parser.add_argument("--classes", action="append", default=[],
                        help="names to choose from, separated by commas, one that has a comma in quotes (repeatable); "
                             "default the run's")
    parser.add_argument("--classes-file", metavar="FILE", help="a text file with a name on each line, instead")
    parser.add_argument("--top", type=int, default=5, help="how many classes to print (default 5)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--no-exif", action="store_true",
                        help="take pictures as they are stored, not upright as their EXIF says")
    add_run_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Print predictions; returns them. Raises as `predictions` does."""
    return list(predictions(argv))


def predictions(argv=None):
    """Print predictions as they are made, and yield them. Files that are no images are named on stderr and end in an
    InputError, after the predictions of the others."""
    args = parse_arguments(argv)
    if args.top < 1:
        raise InputError(f"--top must be at least 1, not {args.top}")
    classes = given_classes(args.classes, args.classes_file)
    files, others = image_files(args.images)
    if others:
        print(f"Note: left out, no image by its ending: {some_of(others)}", file=sys.stderr)
    if not files:
        raise InputError(f"no image in {', '.join(args.images)}")
    with contextlib.redirect_stdout(sys.stderr):  # what a plugin or a dataset tells; stdout is for the predictions
        run = load_run(args.model_dir, args.load_epoch, args.backbone, args.plugin, exif=not args.no_exif)
        # what is wrong with the run or the classes, before any image
        trainer = run.trainer_for(run.classes if classes is None else classes)
    if trainer.transductive:
        print(f"Note: what {type(trainer).__name__} answers for a picture depends on the pictures that are given with "
              f"it, {BATCH} at a time in this order", file=sys.stderr)
    elif trainer.stateful:
        print(f"Note: what {type(trainer).__name__} answers for a picture depends on the pictures before it, in this "
              "order", file=sys.stderr)
    if turned := sum(found[1] for file in files if (found := size_of(file, run.exif))):
        print(f"Note: {turned} of {len(files)} pictures are turned upright as their EXIF says; --no-exif takes them as "
              "they are stored" + ("" if run.cfg.INPUT.EXIF else ", as this run took its own"), file=sys.stderr)
    bad = []

    def left_out(file, error):
        bad.append(file)
        fault = str(error).partition(";")[0]  # what follows is advice for datasets
        print(f"not predicted: {printable(fault)}", file=sys.stderr)

    out = JsonArray() if args.json else Table(files, told_apart(trainer.dm.dataset.classnames))
    counted, begun = sys.stderr.isatty() and not sys.stdout.isatty(), False

    def begin():
        nonlocal begun
        if not begun:
            out.begin()
        begun = True

    try:
        stream = run.predict_stream(files, classes, args.top, BATCH, on_fault=left_out)
        for done, prediction in enumerate(stream, start=1):
            begin()
            out.put(prediction)
            if done % BATCH == 0:
                sys.stdout.flush()
                if counted:
                    print(f"\r{done} of {len(files)} ", end="", file=sys.stderr, flush=True)
            yield prediction
        begin()
    finally:
        if begun:
            out.close()
        if counted:
            print(file=sys.stderr)
    if bad:
        raise InputError(f"{len(bad)} of {len(files)} files could not be read as images: {some_of(bad)}")


def command_line():
    """The program; returns its exit status."""
    return train.command_line(lambda: deque(predictions(), maxlen=0))  # none of them is kept


if __name__ == "__main__":
    sys.exit(command_line())
