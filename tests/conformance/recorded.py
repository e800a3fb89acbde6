"""One run of a trainer, and what is seen of it while it runs."""
import sys
from collections import defaultdict

import torch

from training import PromptTrainer

from .pictures import rows
from .states import differing, module_tensors, registered, state_of, trained_tensors


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
        start: ({name: tensor} of the registered models as they were built, names of those that want gradients).
        epochs: [{name: tensor}], what was trained after each epoch made.
        files: {"train", "val", "test": set of image paths read while training, selecting, testing}.
        texts: what was tokenized before the test began; classnames: lists that `build_model` was given.
        evaluations: (gradients on, names of registered modules in training mode, the logits want gradients).
        before_test: the `state_of` the trainer when its last evaluation on the test part began.
        moved: names of what an evaluation did not leave as it was.
        answers: {image path: logits} of the evaluation on the test part, of a PromptTrainer.
        changed, rebuilt: names of tensors and of modules of the frozen CLIP that are not what they were when the run
            began.
    """

    def __init__(self, folder):
        self.folder = folder
        self.trainer = self.results = self.clip = None
        self.summaries, self.epochs, self.evaluations, self.changed, self.rebuilt = [], [], [], [], []
        self.start, self.before_test, self.moved, self.answers = ({}, set()), {}, [], {}
        self.texts, self.classnames, self.files = [], [], defaultdict(set)
        self.phase = "train"

    @property
    def trained(self):
        return trained_tensors(self.trainer)

    def watch(self, stop_epoch=None, stop_step=None, cut=None, tests=True):
        """Wrap the hooks of the trainer, which has just been built.

        Args:
            stop_epoch, stop_step: end the run after so many epochs, or steps.
            cut: images that are left of each training batch.
            tests: False: end the run when its test would begin.
        """
        trainer, native = self.trainer, isinstance(self.trainer, PromptTrainer)
        self.start = module_tensors(trainer)
        answering = "logits_of" if native else "model_inference"
        plain = {name: getattr(trainer, name)
                 for name in ("before_epoch", "after_epoch", "forward_backward", "test", answering)}

        def note(output=None):
            if self.phase == "test":
                training = [f"{key}.{name}".rstrip(".") for key, model in registered(trainer)
                            for name, module in model.named_modules() if module.training]
                tracked = output is not None and output.requires_grad
                self.evaluations.append((torch.is_grad_enabled(), training, tracked))

        def before_epoch():
            if trainer.epoch == stop_epoch:
                raise Stop
            plain["before_epoch"]()

        def after_epoch():
            plain["after_epoch"]()
            self.epochs.append(self.trained)

        def forward_backward(batch):
            if len(self.summaries) == stop_step:
                raise Stop
            summary = plain["forward_backward"](batch if cut is None else rows(batch, slice(cut)))
            self.summaries.append(summary)
            return summary

        def test(*arguments, **keywords):
            split = keywords.get("split", arguments[0] if arguments else None) or trainer.cfg.TEST.SPLIT
            if split == "test" and not tests:
                raise Stop
            self.phase, phase = split, self.phase
            before = state_of(trainer)
            if split == "test":
                self.before_test = before
            try:
                return plain["test"](*arguments, **keywords)
            finally:
                self.phase = phase
                self.moved += differing(before, state_of(trainer))

        def logits_of(batch):
            output = plain["logits_of"](batch)
            note(output)
            if self.phase == "test":
                self.answers |= zip(batch["impath"], output.detach().clone())
            return output

        def model_inference(images):
            output = plain["model_inference"](images)
            note(output)
            return output

        for function in (before_epoch, after_epoch, forward_backward, test, logits_of, model_inference):
            if function.__name__ in plain:
                setattr(trainer, function.__name__, function)
        for _, model in registered(trainer):
            model.register_forward_pre_hook(lambda *_: note())
