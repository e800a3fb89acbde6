"""Classify images with a trained run, also among classes that it was never trained on.

    python tools/predict.py --model-dir output/.../seed1 photo.jpg folder --classes "cat,dog,alarm clock"
    python tools/predict.py --model-dir output/.../seed1 photo.jpg --classes-file names.txt      # a name on each line

From Python:

    from tools.predict import load_run

    run = load_run("output/base2new/train_base/caltech101/shots_16/MetaPrompt/vit_b16/seed1")
    for prediction in run.predict(["photo.jpg"], classes=["cat", "dog", "alarm clock"]):
        print(prediction.path, prediction.top)  # [("cat", 0.91), ("dog", 0.07), ("alarm clock", 0.02)]

The dataset need not be there: the model is made from the run's config.yaml and checkpoint.
"""
import contextlib
import csv
import json
import os
import sys
import unicodedata
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import torch  # noqa: E402
from PIL import Image  # noqa: E402

import train  # noqa: E402
from dassl.data.transforms import build_transform  # noqa: E402
from dassl.engine import TRAINER_REGISTRY  # noqa: E402
from dassl.engine.run_folder import read_results  # noqa: E402
from dassl.metrics import require_finite  # noqa: E402
from dassl.utils import (  # noqa: E402
    InputError,
    is_class_bound,
    is_text,
    load_checkpoint,
    newest_checkpoint,
    open_regular,
    printable,
)
from dassl.utils.images import SUFFIXES, bombs_are_errors, decoded, size_of, to_rgb  # noqa: E402
from dassl.utils.text import escaped  # noqa: E402
from dassl.utils.tools import MOST_JSON  # noqa: E402
from prompting.backbone import unpublished_note  # noqa: E402
from training import PromptTrainer  # noqa: E402
from training.without_data import NeedsImages  # noqa: E402

BATCH = 32  # images that are classified together
READERS = 4  # threads that read them
NAMED = 20  # files that one line names


@dataclass(frozen=True)
class Prediction:
    """path: the image; top: [(class name, probability)], the most probable first. A name that several classes of the
    run have (ImageNet has two "missile") comes with its label: "missile (label 657)"."""

    path: str
    top: list


def load_run(folder, epoch=None, backbone="", plugins=(), clips=None, exif=True):
    """A run to predict with.

    Args:
        folder: a run folder; for a method that trains, one that holds its checkpoints.
        epoch: which checkpoint, from 1; default the best kept, else the last.
        backbone: where the CLIP now is, if the run's weights file has moved.
        plugins: files or modules that bring the run's method.
        clips: {backbone: loaded CLIP}, filled and shared between runs.
        exif: turn pictures upright as their EXIF says, also those of a run that was trained without.
    Returns:
        LoadedRun.
    Raises:
        InputError: the folder holds no run, or a run of a trainer that is not a PromptTrainer.
    """
    train.discover(plugins)
    cfg = run_config(folder, backbone)
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    if not issubclass(trainer, PromptTrainer):
        raise InputError(f"{cfg.TRAINER.NAME} is not a PromptTrainer: only those can be built without their dataset")
    return LoadedRun(cfg, folder, trainer, epoch, {} if clips is None else clips, exif)


def run_config(folder, backbone=""):
    """The config of the run in a folder, one that prints nothing. Raises InputError when there is none."""
    file = os.path.join(folder, "config.yaml")
    if not os.path.isfile(file):
        raise InputError(f"no run in {folder}: there is no config.yaml; give a run folder, such as output/.../seed1")
    return train.build_config(train.parse_arguments(
        ["--config-file", file, *(["--backbone", backbone] if backbone else []), "VERBOSE", "False"]))


def trained_classes(folder):
    """Names of the classes of the run in a folder, in label order, from its results or its newest checkpoint."""
    finished = os.path.isfile(os.path.join(folder, "results.json"))
    if classes := finished and read_results(folder).get("classes"):
        return classes["name"]
    path = newest_checkpoint(os.path.join(folder, "prompt_learner"))
    if path is None:
        raise InputError(f"{folder} does not say its classes: it is not finished and has no checkpoint; "
                         "finish the run or give --classes")
    if not (names := load_checkpoint(path).get("classnames")):
        raise InputError(f"{path} does not say its classes; give --classes")
    return names


class LoadedRun:
    """A trained method, ready to classify images. Made by `load_run`.

    Attributes: classes, the names of the run's own classes; cfg, its config.
    """

    def __init__(self, cfg, folder, trainer, epoch, clips, exif=True):
        self.cfg, self.folder, self.epoch, self.clips, self.exif = cfg, folder, epoch, clips, exif
        self.kind, self.built, self.built_for = trainer, None, None
        self.transform = build_transform(cfg, is_train=False)
        self._own_classes = None

    @property
    def classes(self):
        if self._own_classes is None:
            self._own_classes = list(trained_classes(self.folder))
        return self._own_classes

    def predict(self, images, classes=None, top=5, batch_size=BATCH, files=()):
        """Classify images.

        Args:
            images: paths, or PIL images.
            classes: names to choose from, each once; default the run's own.
            top: how many of the most probable classes to give.
            files: the images' names in a message, where they are given as PIL images.
        Returns:
            a list of Prediction, one an image, in order.
        Raises:
            InputError: an image cannot be read, or its logits are not finite; the method cannot score these classes.
        """
        return list(self.predict_stream(images, classes, top, batch_size, files))

    def predict_stream(self, images, classes=None, top=5, batch_size=BATCH, files=(), on_fault=None):
        """Classify any number of images: a generator of what `predict` returns, in memory for two batches.

        Args, beyond those of `predict`:
            images: any iterable of paths or PIL images. A batch is read by a few threads while the device computes the
                one before.
            on_fault: called as on_fault(image, error) for an image that cannot be read, which is then left out;
                default: the InputError is raised.
        Raises: as `predict`.
        """
        trainer = self.trainer_for(self.classes if classes is None else list(classes))
        names, before = told_apart(trainer.dm.dataset.classnames), None
        images, files = iter(images), iter(files)
        with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
            while part := list(islice(images, batch_size)):
                called = list(islice(files, len(part))) or [named(image) for image in part]
                with bombs_are_errors():
                    in_memory = any(isinstance(image, Image.Image) for image in part)  # one may be given twice
                    read = list((map if in_memory else pool.map)(self._read, part))
                for image, (_, error) in zip(part, read):
                    if error is not None and on_fault is None:
                        raise error
                    if error is not None:
                        on_fault(image, error)
                kept = [(image, name, tensor) for image, name, (tensor, _) in zip(part, called, read, strict=True)
                        if tensor is not None]
                logits = self._logits(trainer, kept) if kept else None
                if before is not None:
                    yield from self._ranked(*before, names, top)
                before = (logits, kept) if kept else None
            if before is not None:
                yield from self._ranked(*before, names, top)

    def _read(self, image):
        """(its tensor, None), or (None, the InputError)."""
        try:
            return self.transform(self._picture(image)), None
        except InputError as error:
            return None, error

    @staticmethod
    def _logits(trainer, kept):
        with torch.no_grad():
            return trainer.model_inference(torch.stack([tensor for *_, tensor in kept]).to(trainer.device))

    @staticmethod
    def _ranked(logits, kept, names, top):
        require_finite(logits, [name for _, name, _ in kept])
        best, index = logits.softmax(dim=1).cpu().topk(min(top, len(names)), dim=1)
        for (image, *_), row, values in zip(kept, index.tolist(), best.tolist()):
            yield Prediction(image if isinstance(image, (str, os.PathLike)) else "",
                             [(names[i], p) for i, p in zip(row, values)])

    def _picture(self, image):
        if not isinstance(image, Image.Image):
            return decoded(image, self.exif)
        try:
            return to_rgb(image, self.exif)
        except ValueError as error:
            raise InputError(f"a picture cannot be classified: {error}") from None

    def trainer_for(self, classes):
        """The run's PromptTrainer for these classes, with what was trained. The last one made is kept.

        The run's own classes may have a name twice; names that are given may not."""
        own = self._own_classes is not None and classes == self._own_classes
        if own and len(classes) < 2:
            raise InputError(f"{self.folder} has one class, '{classes[0]}': every image would be that with 100 %; "
                             "give at least two --classes")
        if not own:
            require_choice(classes)
        if self.built_for != classes:
            trainer = self._build(classes)
            trainer.load_model(self.folder, epoch=self.epoch)
            trainer.set_model_mode("eval")
            self.built, self.built_for = trainer, classes
        return self.built

    def _build(self, classes):
        try:
            trainer = self.kind(self.cfg, clips=self.clips, classnames=classes)
            if self.built is None and (note := unpublished_note(trainer.backbone_facts)):
                print(note, file=sys.stderr)
            if is_class_bound(trainer, trainer.cfg):
                self._require_own(classes)
            return trainer
        except NeedsImages as error:
            self._require_own(classes)
            print(f"Note: {error}: they are read again", file=sys.stderr)
            return self.kind(self.cfg, clips=self.clips)

    def _require_own(self, classes):
        if classes != self.classes:
            raise InputError(f"what {self.kind.__name__} learned belongs to its {len(self.classes)} training classes "
                             f"({', '.join(self.classes[:3])}, ...); leave out --classes")


def named(image):
    """What a message calls an image: its path, or what it says of itself."""
    return image if isinstance(image, (str, os.PathLike)) else getattr(image, "filename", "") or "an image in memory"


def told_apart(names):
    """Class names, those that come more than once with their label."""
    often = Counter(names)
    return [f"{name} (label {label})" if often[name] > 1 else name for label, name in enumerate(names)]


def require_choice(names, where="classes"):
    """Raise InputError unless there are at least two names, each once, whatever byte form its accents have."""
    for name in names:
        if not name.strip():
            raise InputError(f"{where}: a name is empty")
        if not is_text(name):
            raise InputError(f"{where}: {ascii(name)} is not text in UTF-8 and cannot be put into a prompt")
    twice = [name for name, number in Counter(unicodedata.normalize("NFC", name.strip()) for name in names).items()
             if number > 1]
    if twice:
        raise InputError(f"{where}: '{twice[0]}' is given more than once; every class has a name of its own")
    if len(names) < 2:
        given = f"one class ('{names[0]}')" if names else "no class"
        raise InputError(f"{where}: among {given} there is nothing to choose; give at least two classes")


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


def image_files(paths):
    """(files, [names of other files]): files as they are given, folders with all images below them, sorted.

    Files in a folder whose ending is not an image's are not asked for and are named apart."""
    files, others = [], []
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


def add_run_flags(parser):
    """The flags that say how a run is to be loaded."""
    parser.add_argument("--load-epoch", type=int, help="epoch of the run; default the best kept, else the last")
    parser.add_argument("--backbone", default="", help="where the CLIP now is, if the run's weights file has moved")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE",
                        help="what brings the run's method, if it is not of this project")


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


def some_of(names):
    """Names for a message, not more than a screen of them."""
    return ", ".join(map(printable, names[:NAMED])) + (f", ... ({len(names)} in all)" if names[NAMED:] else "")


class JsonArray:
    """Prints one JSON array piece by piece; it is whole after `close`, whatever ended it. Names that a terminal or its
    encoding could not take as they are, are escaped as JSON."""

    def __init__(self):
        self.entries = False

    def begin(self):
        print("[", end="")

    def put(self, prediction):
        entry = {"path": prediction.path, "top": [{"class": name, "probability": round(probability, 6)}
                                                  for name, probability in prediction.top]}
        text = json.dumps(entry, indent=2, ensure_ascii=False)
        if escaped(text) != text or not (sys.stdout.encoding or "utf-8").lower().startswith("utf"):
            text = json.dumps(entry, indent=2)
        print(",\n  " if self.entries else "\n  ", text.replace("\n", "\n  "), sep="", end="")
        self.entries = True

    def close(self):
        print("\n]" if self.entries else "]")


def columns_of(word):
    """How many columns of a terminal a word takes: East Asian characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")
               for letter in word)


class Table:
    """Prints a table row by row, a block of rows per image. Its columns are as wide as any of the files and classes
    needs, so that no row has to wait for the others."""

    def __init__(self, files, names):
        self.widths = [max(columns_of(printable(word)) for word in words)
                       for words in (["image", *files], ["class", *names])]
        self.begun = False

    def _row(self, image, name, probability):
        words = [word + " " * (width - columns_of(word)) for word, width in zip((image, name), self.widths)]
        print(*words, f"{probability:>11}", sep="  ")

    def begin(self):
        self._row("image", "class", "probability")
        self._row(*("-" * width for width in (*self.widths, 11)))
        self.begun = True

    def put(self, prediction):
        for rank, (name, probability) in enumerate(prediction.top):
            self._row("" if rank else printable(prediction.path), printable(name), f"{100 * probability:.2f} %")

    def close(self):
        pass


if __name__ == "__main__":
    sys.exit(train.command_line(lambda: deque(predictions(), maxlen=0)))  # none of them is kept
