"""The trainer that is checked, and its runs on a small Shapes.

Every run goes through `train.main([...])`. A run is made when a check first asks for it and is kept for the others. All
of them are seeded, on the CPU, in float32 unless the check is about precision. Those that compare with the plain run go
on from its first epoch, so that one fault does not show in every check.
"""
import copy
import functools
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import pytest
import torch
from clip.simple_tokenizer import SimpleTokenizer
from torch.nn import functional as F

import train
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import InputError, is_class_bound, isolated_rng
from datasets import shapes
from prompting import PromptingError, load_clip
from runs import run as one_run
from runs.build_config import declares_config
from training import PromptTrainer

from .pictures import drawn, logits
from .recorded import Run, Stop
from .states import FrozenClip

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ROOT / "configs" / "datasets" / "shapes.yaml"
GENERIC = Path(__file__).with_name("tiny.yaml")
# Pictures per class of the training, validation and test part: enough to draw two shots from, and not more to test.
PART_SIZES = {"photo": (4, 2, 1)} | dict.fromkeys(shapes.DOMAINS[1:], (1, 1, 1))
SHOTS, EPOCHS, BATCH = 2, 4, 12
# What a method needs for its loss to fall by then, or for all it trains to move: ProMetaR's published rate of its gates
# is so small that a float32 keeps none of some updates.
IN_SO_FEW_STEPS = {"VPT": ("OPTIM.LR", 0.2), "ProMetaR": ("TRAINER.PROMETAR.VNET_LR", 0.01)}


def end_workers(trainer):
    """End loader workers that persist; the garbage collector waits for them in vain, five seconds each."""
    iterator = getattr(getattr(trainer, "train_loader_x", None), "_iterator", None)
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()


class Subject:
    """A registered trainer and its runs.

    Args:
        name: of the trainer.
        plugins: files that `train.py --plugin` is given.
        config: YAML file; None: configs/trainers/<name>/tiny.yaml if there is one, else tiny.yaml of this folder.
        options: config words (KEY, VALUE, ...) that have the last say.
        data: DATASET.ROOT; folder: of the runs; opened: the session's FilesOpened.
    """

    def __init__(self, name, plugins, config, options, data, folder, opened):
        self.name, self.plugins = name, plugins
        self.options = (*IN_SO_FEW_STEPS.get(name, ()), *options)
        self.data, self.folder, self.opened = data, folder, opened
        self.cls = TRAINER_REGISTRY.get(name)
        own = ROOT / "configs" / "trainers" / name / "tiny.yaml"
        self.config = config or (own if own.is_file() else GENERIC)
        self.native = issubclass(self.cls, PromptTrainer)
        self.failed = {}  # {label of a run: the line that a check of it says from then on}

    # ---- what the trainer says of itself ----
    @property
    def trains(self):
        return self.plain.trainer.trains if self.native else bool(self.plain.summaries)

    @property
    def class_bound(self):
        return is_class_bound(self.cls, self.plain.trainer.cfg)

    @property
    def min_batch(self):
        declared = getattr(self.cls, "min_batch", 1)
        return declared if isinstance(declared, int) else 1

    def says(self, statement):
        """What a statement of `Method` is for this trainer; nothing is said by one in Dassl's style."""
        return getattr(self.plain.trainer, statement) if self.native else False

    def says_itself(self, statement):
        """The same of one that a class must repeat: what it inherits is not said."""
        return self.native and vars(self.cls).get(statement, False)

    @property
    def batch(self):
        return max(BATCH, self.min_batch)

    def precision(self, name):
        """Config words that set PREC, None where the trainer has no such key."""
        node = train.default_config().TRAINER.get(self.name.upper())
        known = "PREC" in node if node is not None else not declares_config(self.cls)
        return [f"TRAINER.{self.name.upper()}.PREC", name] if self.native and known else None

    def need(self, condition, reason):
        """Skip the check, with the reason, unless it applies."""
        if not condition:
            pytest.skip(f"{self.name}: {reason}")

    # ---- runs ----
    def run(self, label, *words, options=(), seed=1, stop_epoch=None, stop_step=None, cut=None, tests=True):
        """Make a run. Where the plain run fails, no other is made.

        Args:
            label: of its folder.
            words: flags of train.py; options: config words.
            stop_epoch, stop_step: end it after so many epochs, or steps.
            cut: images that are left of each training batch.
            tests: False: end it when its test would begin.
        """
        if label != "plain":
            _ = self.plain
        run = Run(self.folder / label)
        argv = ["--root", self.data, "--seed", seed, "--trainer", self.name, "--dataset-config-file", SHAPES,
                "--config-file", self.config, "--output-dir", run.folder, *words]
        for plugin in self.plugins:
            argv += ["--plugin", plugin]
        argv += ["DATASET.NUM_SHOTS", SHOTS, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", EPOCHS,
                 "DATALOADER.TRAIN_X.BATCH_SIZE", self.batch, "DATALOADER.NUM_WORKERS", 0, "USE_CUDA", False,
                 "VERBOSE", False, "TRAIN.PRINT_FREQ", 0, "TRAIN.CHECKPOINT_FREQ", 1,
                 *(self.precision("fp32") or ()), *self.options, *options]
        with self.watched(run, stop_epoch, stop_step, cut, tests), suppress(Stop):
            run.results = train.main([str(word) for word in argv])
        end_workers(run.trainer)
        return run

    @contextmanager
    def watched(self, run, *limits):
        """While it lasts, `run` is filled with what happens, and Shapes is small. limits: as of `Run.watch`."""
        encode, begin_folder, told = SimpleTokenizer.encode, one_run.begin_folder, one_run.settings_without_effect
        frozen = None

        def recording_encode(tokenizer, text):
            if run.phase != "test":
                run.texts.append(text)
            return encode(tokenizer, text)

        def building(cfg, **context):
            nonlocal frozen
            if self.native:
                name = cfg.MODEL.BACKBONE.NAME
                with isolated_rng(0):  # loading draws numbers, and only the first run of a process loads
                    run.clip = context["clips"][name] = copy.deepcopy(pristine_clip(name))
                frozen = FrozenClip(run.clip)
            build_model = self.cls.build_model

            def recording_build(trainer, *arguments):
                if len(arguments) == 2:
                    run.classnames.append(list(arguments[1]))
                return build_model(trainer, *arguments)

            with mock.patch.object(self.cls, "build_model", recording_build):
                run.trainer = build_trainer(cfg, **context)
            frozen = frozen or FrozenClip(None, run.trainer, pristine_clip("tiny"))
            run.watch(*limits)
            return run.trainer

        def opening(path):
            if path.endswith((".png", ".jpg")):
                run.files[run.phase].add(path)

        def beginning(*arguments):  # it compares the bytes of training and test images, which nobody learns from
            with mock.patch.object(self.opened, "seen", None):
                return begin_folder(*arguments)

        def telling(*arguments):  # reads the trainer's source, which takes a while
            return told(*arguments) if run.folder.name == "plain" else {}

        with (mock.patch.object(one_run, "begin_folder", beginning),
              mock.patch.object(one_run, "settings_without_effect", telling),
              mock.patch.object(shapes, "PART_SIZES", PART_SIZES),
              mock.patch.object(one_run, "build_trainer", building),
              mock.patch.object(SimpleTokenizer, "encode", recording_encode),
              mock.patch.object(self.opened, "seen", opening)):
            yield
        run.changed, run.rebuilt = frozen.changed()

    def once(self, label, make):
        """`make()`. Where it failed before, the check fails with one line instead of the same traceback again. What
        stops a run in one line is that line."""
        if label in self.failed:
            pytest.fail(self.failed[label], pytrace=False)
        try:
            return make()
        except (InputError, PromptingError) as error:
            self.failed[label] = f"{self.name} does not run: {error}"
        except Exception:
            self.failed[label] = f"the run '{label}' of {self.name} failed, see the first failure above"
            raise
        pytest.fail(self.failed[label], pytrace=False)

    @functools.cached_property
    def plain(self):
        """Trained on the base classes and tested: what the other runs are compared with."""
        return self.once("plain", lambda: self.run("plain"))

    @functools.cached_property
    def untrained(self):
        """As it is when its first epoch begins."""
        return self.once("untrained", lambda: self.run("untrained", stop_epoch=0))

    def fresh(self, label):
        """A trainer as it is when its first epoch begins, whose loaders give pictures and no features."""
        return self.once(label, lambda: self.run(label, options=["STORE.USE", False], stop_epoch=0)).trainer

    @functools.cached_property
    def reloaded(self):
        """The plain run's checkpoint in a trainer of its own."""
        return self.once("reloaded", lambda: self.run("reloaded", "--eval-only", "--model-dir", self.plain.folder,
                                                      tests=False))

    @functools.cached_property
    def resumed(self):
        return self.once("resumed", lambda: self.go_on("resumed"))

    def go_on(self, label, *options, epoch=1, tests=True):
        """The plain run from the end of one of its epochs (from 1)."""
        for checkpoint in sorted(self.plain.folder.glob(f"*/model.pth.tar-{epoch}")):
            folder = self.folder / label / checkpoint.parent.name
            folder.mkdir(parents=True)
            shutil.copy(checkpoint, folder)
            (folder / "checkpoint").write_text(f"model.pth.tar-{epoch}\n")
        return self.run(label, options=options, tests=tests)

    # ---- pictures ----
    @functools.cached_property
    def test_numbers(self):
        """The numbers of the test images, one of each base class."""
        return list(range(len(self.plain.trainer.test_loader.dataset)))

    @functools.cached_property
    def test_batch(self):
        """These images, as the plain run's test takes them."""
        return drawn(self.plain.trainer.test_loader, self.test_numbers)

    @functools.cached_property
    def training_batch(self):
        """The training images, not augmented."""
        loader = self.plain.trainer.dm.plain_train_loader()
        return drawn(loader, range(len(loader.dataset)))

    def training_loss(self, trainer):
        """Cross-entropy on the training images, not augmented."""
        return F.cross_entropy(logits(trainer, self.training_batch), self.training_batch["label"]).item()

    # ---- weights that are put in place by hand ----
    def answers_by_hand(self):
        """{image path: logits} of the test part, as the plain run's test must give them if what is evaluated is what
        the method says.

        The tensors that were trained when the test began are put in their places, then those of `evaluated_weights`;
        the trainer itself knows of none. Afterwards all is as it was."""
        run, (key, model) = self.plain, next(iter(self.plain.trainer._models.items()))
        trainer, own = run.trainer, {name: p for name, p in model.named_parameters() if p.requires_grad}
        kept = {name: parameter.detach().clone() for name, parameter in own.items()}
        with torch.no_grad():
            try:
                put(own, {name: run.before_test[f"{key}.{name}"] for name in own})
                put(own, {name: tensor.clone() for name, tensor in (trainer.evaluated_weights() or {}).items()})
                with mock.patch.object(trainer, "evaluated_weights", return_value=None), isolated_rng(0):
                    batches = list(trainer.test_loader)
                    found = logits(trainer, *batches)
                return dict(zip([path for batch in batches for path in batch["impath"]], found, strict=True))
            finally:
                put(own, kept)


def put(parameters, values):
    for name, value in values.items():
        parameters[name].copy_(value)


@functools.cache
def pristine_clip(name):
    """The CLIP as it is loaded; every run gets a copy."""
    return load_clip(name)
