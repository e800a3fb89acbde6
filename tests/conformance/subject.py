"""The trainer that is checked, its runs on a small Shapes, and what was seen while they ran.

Every run goes through `train.main([...])`. A run is made when a check first asks for it and is kept for the others. All
of them are seeded, on the CPU, in float32 unless the check is about precision. Those that compare with the plain run go
on from its first epoch, so that one fault does not show in every check.
"""
import copy
import functools
import re
import shutil
import sys
from collections import defaultdict
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import pytest
import torch
from clip.simple_tokenizer import SimpleTokenizer
from torch import nn
from torch.nn import functional as F

import train
from dassl.data.data_manager import build_data_loader
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import is_class_bound, isolated_rng
from datasets import shapes
from prompting import load_clip
from runs import run as one_run
from runs.build_config import declares_config
from training import PromptTrainer

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ROOT / "configs" / "datasets" / "shapes.yaml"
GENERIC = Path(__file__).with_name("tiny.yaml")
# Pictures per class of the training, validation and test part: enough to draw two shots from.
PART_SIZES = {"photo": (4, 2, 2)} | dict.fromkeys(shapes.DOMAINS[1:], (1, 1, 1))
SHOTS, EPOCHS, BATCH = 2, 4, 12
IN_SO_FEW_STEPS = {"VPT": ("OPTIM.LR", 0.2)}  # what a method needs for its loss to fall by then


class Stop(Exception):
    """Ends a run where a check has seen enough."""


class FilesOpened:
    """Which files below `folder` this process opens, by whatever library that goes through Python.

    An audit hook cannot be taken away again, so there is one for the whole session."""

    def __init__(self, folder):
        self.folder, self.seen = str(folder), None
        sys.addaudithook(self._hook)

    def _hook(self, event, arguments):
        if event == "open" and self.seen is not None and str(arguments[0]).startswith(self.folder):
            self.seen(str(arguments[0]))


class Run:
    """One run of a trainer and what was seen of it.

    Attributes:
        trainer: as the run left it; clip: the copy it was given.
        results: what `train.main` gave, None for a run that was stopped.
        folder: the run folder.
        summaries: what each training step returned.
        epochs: [{name: tensor}], what was trained after each epoch made.
        files: {"train", "val", "test": set of image paths read while training, selecting, testing}.
        texts: what was tokenized before the test began; classnames: lists that `build_model` was given.
        evaluations: (gradients on, names of registered modules in training mode, the output wants gradients).
        changed: names of frozen tensors that are not what they were when the run began.
    """

    def __init__(self, folder):
        self.folder = folder
        self.trainer = self.results = self.clip = None
        self.summaries, self.epochs, self.evaluations, self.changed = [], [], [], []
        self.texts, self.classnames, self.files = [], [], defaultdict(set)
        self.phase = "train"

    @property
    def trained(self):
        return trained_tensors(self.trainer)


def trained_tensors(trainer):
    """{name: tensor} of everything that requires grad in the registered models, and of tensors in `extra_state`."""
    found = {f"{model}.{name}": p.detach().clone() for model, module in trainer._models.items() if module is not None
             for name, p in module.named_parameters() if p.requires_grad}
    if isinstance(trainer, PromptTrainer):
        found |= {f"extra.{name}": t.clone() for name, t in tensors_in(trainer.extra_state())}
    return found


def tensors_in(tree, name=""):
    """(path, tensor) of all tensors in nested dicts and lists."""
    if torch.is_tensor(tree):
        yield name, tree.detach().cpu()
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from tensors_in(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, (list, tuple)):
        for number, value in enumerate(tree):
            yield from tensors_in(value, f"{name}[{number}]")


def frozen_tensors(trainer, clip):
    """{name: tensor} of the frozen CLIP: the one handed in, or (a foreign trainer loads its own) every parameter that
    is one of the CLIP's and needs no gradient. What else a method keeps without a gradient, it may change."""
    if clip is not None:
        return {f"CLIP's {name}": tensor for name, tensor in clip.state_dict().items()}
    known = defaultdict(list)
    for tensor in pristine_clip("tiny").state_dict().values():
        known[tensor.shape].append(tensor)
    modules = {**{k: v for k, v in vars(trainer).items() if isinstance(v, nn.Module)}, **trainer._models}
    return {f"{key}.{name}": parameter.detach() for key, module in modules.items() if module is not None
            for name, parameter in module.named_parameters()
            if not parameter.requires_grad and any(torch.equal(parameter, t) for t in known[parameter.shape])}


def first_images(batch, number):
    """A batch cut to its first images."""
    return {key: [view[:number] for view in value] if isinstance(value, list) and torch.is_tensor(value[0])
            else value[:number] for key, value in batch.items()}


def end_workers(trainer):
    """End loader workers that persist; the garbage collector waits for them in vain, five seconds each."""
    iterator = getattr(getattr(trainer, "train_loader_x", None), "_iterator", None)
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()


def logits(trainer, images, seed=0):
    """Logits (B, n_cls) as an evaluation of its own gives them. The generators start from `seed`, so that noise in
    evaluation shows where two seeds are compared, and only there."""
    trainer.set_model_mode("train")
    trainer.set_model_mode("eval")  # what was remembered from an evaluation before is dropped
    with isolated_rng(seed), torch.no_grad():
        return trainer.model_inference(images).float().clone()


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
        self.failed = set()

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
    def run(self, label, *words, options=(), seed=1, stop_epoch=None, stop_step=None, cut=None):
        """Make a run.

        Args:
            label: of its folder.
            words: flags of train.py; options: config words.
            stop_epoch, stop_step: end it after so many epochs, or steps.
            cut: images that are left of each training batch.
        """
        run = Run(self.folder / label)
        argv = ["--root", self.data, "--seed", seed, "--trainer", self.name, "--dataset-config-file", SHAPES,
                "--config-file", self.config, "--output-dir", run.folder, *words]
        for plugin in self.plugins:
            argv += ["--plugin", plugin]
        argv += ["DATASET.NUM_SHOTS", SHOTS, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", EPOCHS,
                 "DATALOADER.TRAIN_X.BATCH_SIZE", self.batch, "DATALOADER.NUM_WORKERS", 0, "USE_CUDA", False,
                 "VERBOSE", False, "TRAIN.PRINT_FREQ", 0, "TRAIN.CHECKPOINT_FREQ", 1,
                 *(self.precision("fp32") or ()), *self.options, *options]
        with self.watched(run, stop_epoch, stop_step, cut), suppress(Stop):
            run.results = train.main([str(word) for word in argv])
        end_workers(run.trainer)
        return run

    @contextmanager
    def watched(self, run, stop_epoch, stop_step, cut):
        """While it lasts, `run` is filled with what happens, and Shapes is small."""
        encode, begin_folder = SimpleTokenizer.encode, one_run.begin_folder
        frozen, before = {}, {}

        def recording_encode(tokenizer, text):
            if run.phase != "test":
                run.texts.append(text)
            return encode(tokenizer, text)

        def building(cfg, **context):
            clip = None
            if self.native:
                name = cfg.MODEL.BACKBONE.NAME
                with isolated_rng(0):  # loading draws numbers, and only the first run of a process loads
                    clip = context["clips"][name] = copy.deepcopy(pristine_clip(name))
            build_model = self.cls.build_model

            def recording_build(trainer, *arguments):
                if len(arguments) == 2:
                    run.classnames.append(list(arguments[1]))
                return build_model(trainer, *arguments)

            run.clip = clip
            if clip is not None:
                frozen.update(frozen_tensors(None, clip))
                before.update(copy.deepcopy(frozen))
            with mock.patch.object(self.cls, "build_model", recording_build):
                run.trainer = build_trainer(cfg, **context)
            if clip is None:
                frozen.update(frozen_tensors(run.trainer, None))
                before.update(copy.deepcopy(frozen))
            self.watch(run, stop_epoch, stop_step, cut)
            return run.trainer

        def opening(path):
            if path.endswith((".png", ".jpg")):
                run.files[run.phase].add(path)

        def beginning(*arguments):  # it compares the bytes of training and test images, which nobody learns from
            with mock.patch.object(self.opened, "seen", None):
                return begin_folder(*arguments)

        with (mock.patch.object(one_run, "begin_folder", beginning),
              mock.patch.object(shapes, "PART_SIZES", PART_SIZES),
              mock.patch.object(one_run, "build_trainer", building),
              mock.patch.object(SimpleTokenizer, "encode", recording_encode),
              mock.patch.object(self.opened, "seen", opening)):
            yield
        run.changed = [name for name, tensor in before.items() if not torch.equal(tensor, frozen[name])]

    @staticmethod
    def watch(run, stop_epoch, stop_step, cut):
        """Wrap the hooks of a built trainer."""
        trainer = run.trainer
        plain = {name: getattr(trainer, name) for name in ("before_epoch", "after_epoch", "forward_backward", "test",
                                                          "model_inference")}

        def note(output=None):
            if run.phase == "test":
                training = [f"{key}.{name}".rstrip(".") for key, model in trainer._models.items() if model is not None
                            for name, module in model.named_modules() if module.training]
                run.evaluations.append((torch.is_grad_enabled(), training, output is not None and output.requires_grad))

        def before_epoch():
            if trainer.epoch == stop_epoch:
                raise Stop
            plain["before_epoch"]()

        def after_epoch():
            plain["after_epoch"]()
            run.epochs.append(run.trained)

        def forward_backward(batch):
            if len(run.summaries) == stop_step:
                raise Stop
            summary = plain["forward_backward"](batch if cut is None else first_images(batch, cut))
            run.summaries.append(summary)
            return summary

        def test(*arguments, **keywords):
            split = keywords.get("split", arguments[0] if arguments else None) or trainer.cfg.TEST.SPLIT
            run.phase, phase = split, run.phase
            try:
                return plain["test"](*arguments, **keywords)
            finally:
                run.phase = phase

        def model_inference(images):
            output = plain["model_inference"](images)
            note(output)
            return output

        for function in (before_epoch, after_epoch, forward_backward, test, model_inference):
            setattr(trainer, function.__name__, function)
        for model in trainer._models.values():
            if model is not None:
                model.register_forward_pre_hook(lambda *_: note())

    def once(self, label, make):
        """`make()`; where it failed before, the check fails with one line instead of the same traceback again."""
        if label in self.failed:
            pytest.fail(f"the run '{label}' of {self.name} failed, see the first failure above", pytrace=False)
        try:
            return make()
        except Exception:
            self.failed.add(label)
            raise

    @functools.cached_property
    def plain(self):
        """Trained on the base classes and tested: what the other runs are compared with."""
        return self.once("plain", lambda: self.run("plain"))

    @functools.cached_property
    def untrained(self):
        return self.once("untrained", lambda: self.run("untrained", "--no-train"))

    @functools.cached_property
    def reloaded(self):
        """The plain run's checkpoint in a trainer of its own."""
        return self.once("reloaded", lambda: self.run("reloaded", "--eval-only", "--model-dir", self.plain.folder))

    @functools.cached_property
    def resumed(self):
        return self.once("resumed", lambda: self.go_on("resumed"))

    def go_on(self, label, *options, epoch=1):
        """The plain run from the end of one of its epochs (from 1)."""
        for checkpoint in sorted(self.plain.folder.glob(f"*/model.pth.tar-{epoch}")):
            folder = self.folder / label / checkpoint.parent.name
            folder.mkdir(parents=True)
            shutil.copy(checkpoint, folder)
            (folder / "checkpoint").write_text(f"model.pth.tar-{epoch}\n")
        return self.run(label, options=options)

    # ---- pictures ----
    def pictures(self, items):
        """Images (B, 3, H, W) and labels (B,) of a list of Datum, not augmented."""
        cfg = self.plain.trainer.cfg
        transform = build_transform(cfg, is_train=False)
        batch = next(iter(build_data_loader(cfg, data_source=items, batch_size=len(items), tfm=transform,
                                            is_train=False)))
        return batch["img"], batch["label"]

    @functools.cached_property
    def test_images(self):
        """A test image of each base class."""
        items = self.plain.trainer.dm.dataset.test
        return self.pictures([item for item in items if re.search(r"[02468]\.png$", item.impath)])[0]

    @functools.cached_property
    def training_images(self):
        return self.pictures(self.plain.trainer.dm.dataset.train_x)

    def training_loss(self, trainer):
        """Cross-entropy on the training images, not augmented."""
        images, labels = self.training_images
        return F.cross_entropy(logits(trainer, images), labels).item()


@functools.cache
def pristine_clip(name):
    """The CLIP as it is loaded; every run gets a copy."""
    return load_clip(name)
