"""Whether a method can be built at all with a backbone and a config: tried without data, with a few class names.

What a run would say when its trainer is built is said by the same code: a ResNet for a method that prompts the image
tower, an image size that is not the backbone's, a template, a rate or a schedule that is none.
"""
from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import is_class_bound, isolated_rng, quiet
from prompting import PromptingError
from prompting.published import PUBLISHED
from prompting.stand_in import full_dimension, stand_in
from prompting.weights import SHIPPED
from runs.command_line import mendable
from training.method import Method
from training.prompt_trainer import PromptTrainer
from training.towers import loaded_clip

NAMES = ("first class", "second class", "third class")  # where a dataset's are not known
UPDATES = 10**6  # as planned, where no images are known
STATES = {"SGD": 1, "RMSprop": 1, "Adam": 2, "AdamW": 2, "RAdam": 2}  # tensors that an optimizer keeps for each


@dataclass(frozen=True)
class Trial:
    """What came of building a method.

    Attributes:
        problem: one line on why it cannot be, or "".
        numbers: floating-point numbers that a checkpoint of it holds, about; 0 where nothing is trained, None where it
            is not known.
    """

    problem: str = ""
    numbers: int | None = None


class Trials:
    """Builds methods.

    Args:
        clips: {backbone: loaded CLIP} that the runs of this process share; files are loaded into it.
        own_device: whether the runs are made by this process: on its device, in their own precision. Else it is tried
            on the CPU in fp32; another process, or another machine, may have what this one has not.
    """

    def __init__(self, clips: dict[str, Any], own_device: bool = True) -> None:
        self.clips, self.own_device = clips, own_device
        self._stand_ins: dict[str, Any] = {}
        self._broken: dict[str, str] = {}  # backbone: why it cannot be loaded

    def of(self, cfg: CfgNode, classnames: Sequence[str], n_cls: int) -> Trial:
        """Build the method of a config for these class names, or for three others where none are known.

        n_cls: how many classes there will be, which the size of a checkpoint may depend on."""
        trainer_class = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
        if not issubclass(trainer_class, PromptTrainer):  # it loads data and its CLIP when it is built
            return Trial()
        name, names = cfg.MODEL.BACKBONE.NAME, list(classnames or NAMES)
        try:
            with quiet(), isolated_rng(0):
                model = self._model(name)
                trainer = trainer_class(self._tried(cfg), clip_model=model, classnames=names)
                trainer.planned_steps = UPDATES
                optimizers = [pair[0] for pair in trainer.build_optimizers()] if trainer_class.trains else []
        except Exception as error:
            reason = mendable(error)
            # A bug, or what can be built from images only: the run itself tells.
            return Trial() if reason is None or type(error).__name__ == "NeedsImages" else Trial(reason)
        return Trial("", _numbers(trainer, optimizers, len(names), n_cls) if trainer_class.trains else 0)

    def _model(self, name: str) -> Any:
        """The CLIP to try with. Raises PromptingError for a file that is none."""
        if name in self._broken:
            raise PromptingError(self._broken[name])
        if name in self.clips or os.path.isfile(SHIPPED.get(name, name)):
            try:
                return loaded_clip(name, self.clips)
            except PromptingError as error:
                self._broken[name] = str(error)
                raise
        if name not in self._stand_ins:
            self._stand_ins[name] = stand_in(name)
        return self._stand_ins[name]

    def _tried(self, cfg: CfgNode) -> CfgNode:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.VERBOSE = False
        if not self.own_device:
            cfg.USE_CUDA = False
            node = cfg.TRAINER.get(cfg.TRAINER.NAME.upper())
            if node and "PREC" in node:
                node.PREC = "fp32"
        cfg.freeze()
        return cfg


def _numbers(trainer: Any, optimizers: Sequence[Optimizer], given: int, n_cls: int) -> int:
    """Floating-point numbers of a checkpoint: what is trained, what the optimizers keep for it, and where an evaluation
    takes other weights these, too. A running average of towers (`extra_state_share`) is counted as one of those.

    given: class names that the trainer was built with."""
    name = trainer.cfg.MODEL.BACKBONE.NAME
    small = trainer.towers.model.weights_digest == "stand-in" and name in PUBLISHED
    bound = is_class_bound(trainer, trainer.cfg)
    total = 0
    for key, tensor in trainer.model.named_parameters():
        if tensor.requires_grad:
            of_classes = bound or bool(trainer.class_tensors) and key.startswith(trainer.class_tensors)
            sizes = [n_cls if of_classes and size == given else full_dimension(size, name) if small else size
                     for size in tensor.shape]
            total += int(torch.Size(sizes).numel())
    kind = type(trainer)
    copies = 1 + (kind.evaluated_weights is not Method.evaluated_weights) + (kind.extra_state_share >= 1)
    return total * (copies + max((STATES.get(type(each).__name__, 2) for each in optimizers), default=0))
