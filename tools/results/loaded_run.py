"""A finished run, loaded to classify images, also among classes that it was never trained on (metaprompt predict)."""
import functools
import os
import sys
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch
from PIL import Image

import train
from dassl.data.transforms import build_transform
from dassl.data.views import build_views, bytes_of_views
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.run_folder import read_results
from dassl.metrics import require_finite
from dassl.utils import InputError, is_class_bound, is_text, load_checkpoint, newest_checkpoint
from dassl.utils.images import bombs_are_errors, decoded, to_rgb
from prompting.backbone import unpublished_note
from runs.run_spec import RunSpec
from training import PromptTrainer
from training.without_data import NeedsImages

BATCH = 32  # images that are classified together
MOST_VIEWS = 2**28  # bytes of the views of a batch of images
READERS = 4  # threads that read them


@dataclass(frozen=True)
class Prediction:
    """path: the image; top: [(class name, probability)], the most probable first. A name that several classes of the
    run have (ImageNet has two "missile") comes with its label: "missile (label 657)"."""

    path: str | os.PathLike
    top: list[tuple[str, float]]


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
    return train.build_config(RunSpec(config_file=file, backbone=backbone, options=("VERBOSE", "False")))


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
            a list of Prediction, one per image, in order.
        Raises:
            InputError: an image cannot be read, or its logits are not finite; the method cannot score these classes.
        """
        return list(self.predict_stream(images, classes, top, batch_size, files))

    def predict_stream(self, images, classes=None, top=5, batch_size=BATCH, files=(), on_fault=None):
        """Classify any number of images: a generator of what `predict` returns, in memory for two batches.

        A method with `test_views` takes smaller batches where its views need the memory, unless it is `transductive`:
        then the batch is part of the question. What a `stateful` method learns lasts for the stream.

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
        views = build_views(trainer, self.cfg)
        if views is not None and not trainer.transductive:
            batch_size = max(1, min(batch_size, MOST_VIEWS // bytes_of_views(views, self.cfg.INPUT.SIZE)))
        read_one = functools.partial(self._read, views=views)
        with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool, trainer.predicting():
            while part := list(islice(images, batch_size)):
                called = list(islice(files, len(part))) or [named(image) for image in part]
                with bombs_are_errors():
                    in_memory = any(isinstance(image, Image.Image) for image in part)  # one may be given twice
                    read = list((map if in_memory else pool.map)(read_one, part))
                for image, (_, error) in zip(part, read):
                    if error is not None and on_fault is None:
                        raise error
                    if error is not None:
                        on_fault(image, error)
                kept = [(image, name, item) for image, name, (item, _) in zip(part, called, read, strict=True)
                        if item is not None]
                logits = self._logits(trainer, kept) if kept else None
                if before is not None:
                    yield from self._ranked(*before, names, top)
                before = (logits, kept) if kept else None
            if before is not None:
                yield from self._ranked(*before, names, top)

    def _read(self, image, views):
        """(its tensors by name, None), or (None, the InputError)."""
        try:
            picture = self._picture(image)
            return {"img": self.transform(picture), **({} if views is None else {"views": views(picture)})}, None
        except InputError as error:
            return None, error

    @staticmethod
    def _logits(trainer, kept):
        items = [item for *_, item in kept]
        batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
        return trainer.logits_of({**batch, "impath": [os.fspath(name) for _, name, _ in kept]})

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
        """The run's PromptTrainer for these classes, with what was trained. The last one made is kept, unless a stream
        goes on in it, which would mix with another one.

        The run's own classes may have a name twice; names that are given may not."""
        own = self._own_classes is not None and classes == self._own_classes
        if own and len(classes) < 2:
            raise InputError(f"{self.folder} has one class, '{classes[0]}': every image would be that with 100 %; "
                             "give at least two --classes")
        if not own:
            require_choice(classes)
        if self.built is None or self.built_for != classes or self.built.in_stream:
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


def add_run_flags(parser):
    """The flags that say how a run is to be loaded."""
    parser.add_argument("--load-epoch", type=int, help="epoch of the run; default the best kept, else the last")
    parser.add_argument("--backbone", default="", help="where the CLIP now is, if the run's weights file has moved")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE",
                        help="what brings the run's method, if it is not of this project")
