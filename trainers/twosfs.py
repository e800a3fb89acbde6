"""2SFS: Farina et al., "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages", arXiv 2503.11609.

Learned: first the weights and biases of the LayerNorms in every block of both towers (not ln_pre, ln_post and ln_final,
which the authors list for their optimizer and never train), then a classifier.

Stage 1, the first FRAC of all updates, tunes the LayerNorms by the cross-entropy of CLIP's logits; all classes go
through the text tower in each step. Stage 2, the other updates, freezes both towers. The classifier starts as the text
features of the tuned tower, one row a class, and its rows are trained in their places: logits = exp(logit_scale)
cos(v, row). Each stage has an AdamW of its own, whose rate falls from OPTIM.LR to 1e-6 along a cosine over the updates
of the stage.

The trained classes are told by their rows, all others by their texts through the tuned text tower, and where both kinds
stand in one list of classes they stand side by side. Every dataset has the template "a photo of a {}.".
"""
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.optim import StepSchedule, build_optimizer
from dassl.utils import InputError
from prompting.model import FrozenCLIP
from prompting.templates import DEFAULT
from prompting.towers import Towers
from training import Batch, PromptTrainer
from training.class_rows import rows_state, take_rows

MINIMUM = 1e-6  # what the rate of a stage falls to


class TwoStageCLIP(FrozenCLIP):
    """CLIP whose LayerNorms are trained, and a classifier with a row for each class.

    Attributes:
        classifier: (n_cls, E).
        by_row: for each class whether it is told by its row; the others are told by their text.
    """

    def __init__(self, towers: Towers, classnames: Sequence[str], templates: Sequence[str]) -> None:
        super().__init__(towers, classnames, templates)
        for tower in (towers.model, towers.model.visual):
            for block in tower.transformer.resblocks:
                block.ln_1.requires_grad_(True)
                block.ln_2.requires_grad_(True)
        self.classifier = nn.Parameter(self.frozen_text_features.clone())
        self.by_row = [False] * len(classnames)

    def encode_classes(self) -> Tensor:
        texts = [name for name, row in zip(self.classnames, self.by_row) if not row]
        if not texts:
            return self.classifier
        features = self.towers.encode_classnames(texts, self.templates)
        if not any(self.by_row):
            return features
        places = torch.tensor([not row for row in self.by_row], device=features.device)
        return self.classifier.masked_scatter(places[:, None], features)

    @torch.no_grad()
    def begin_rows(self) -> None:
        """Let the rows be the features of the classes' texts, and all classes be told by them."""
        self.by_row = [False] * len(self.by_row)
        self.classifier.copy_(self.encode_classes())
        self.by_row = [True] * len(self.by_row)


@TRAINER_REGISTRY.register()
class TwoSFS(PromptTrainer):
    model: TwoStageCLIP
    trains_towers = True
    trains_in_turns: bool | int = True
    class_tensors = ("classifier",)

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.TWOSFS = CN()
        cfg.TRAINER.TWOSFS.FRAC = 0.6  # share of the updates that the first stage has
        cfg.TRAINER.TWOSFS.PREC = "auto"  # precision: fp32, amp, bf16 or auto; what is trained is always float32

    def check_cfg(self, cfg):
        if not 0 < (share := self.node_of(cfg).FRAC) < 1:
            raise InputError(f"TRAINER.TWOSFS.FRAC {share}: each of the two stages needs its share of the updates; "
                             "give a number between 0 and 1")

    def build_model(self, towers: Towers, classnames: list[str]) -> TwoStageCLIP:
        towers.promptable_image(type(self).__name__, "tunes the LayerNorms in the blocks of both towers")
        return TwoStageCLIP(towers, classnames, self.frozen_templates(DEFAULT))

    @property
    def first_steps(self) -> int:
        """How many updates stage 1 has."""
        return int(self.planned_steps * self.node.FRAC)

    def stage_tensors(self, stage: int) -> list[nn.Parameter]:
        """What is trained in a stage, 0 or 1."""
        return [p for p in self.trainables if (p is self.model.classifier) == bool(stage)]

    def build_optimizers(self) -> list[tuple[Optimizer, LRScheduler]]:
        pairs: list[tuple[Optimizer, LRScheduler]] = []
        for stage, steps in enumerate((self.first_steps, self.planned_steps - self.first_steps)):
            optim = build_optimizer(self.stage_tensors(stage), self.cfg.OPTIM)
            schedule = StepSchedule(optim, max(1, steps), minimum=min(MINIMUM, self.cfg.OPTIM.LR))
            pairs.append((optim, schedule))
        return pairs

    begun_after: int | None = None  # the updates of stage 1 in the training that begun the rows; None: none has

    def before_train(self):
        first, others = self.first_steps, self.planned_steps - self.first_steps
        if not (first and others):
            raise InputError(f"TRAINER.TWOSFS.FRAC {self.node.FRAC} of the {self.planned_steps} updates that are "
                             f"planned leaves one of the two stages without any ({first} and {others}); train longer "
                             "(OPTIM.MAX_EPOCH, OPTIM.STEPS), or change FRAC")
        super().before_train()
        resumed = bool(self.start_epoch or self.first_batch)
        if resumed and any(self.model.by_row) and self.begun_after != first:
            raise InputError(f"the run to go on from had {self.begun_after} updates in its first stage and is in its "
                             f"second; of the {self.planned_steps} updates that are planned now the first stage has "
                             f"{first}. Go on with the stored run's length and FRAC, or start a new run without "
                             "--resume")
        if resumed:
            self.watch.end()  # what stage 1 trains may have had its turn before
        elif self.train_loader_x is not None:
            self.trains_in_turns = first // max(1, len(self.train_loader_x)) + 1

    @property
    def stage(self) -> int:
        """The stage of the current batch, 0 or 1."""
        return int(self.epoch * self.num_batches + self.batch_idx >= self.first_steps)

    def training_step(self, batch: Batch) -> Mapping[str, float | Tensor]:
        model, stage = self.model, self.stage
        if stage and not all(model.by_row):
            model.begin_rows()
            self.begun_after = self.first_steps
        elif not stage:
            model.by_row = [False] * len(model.by_row)
        with torch.set_grad_enabled(not stage):
            images = model.encode_images(batch["img"])
        logits = model.logits(images, model.class_features())
        tensors, (optimizer, _) = self.stage_tensors(stage), self.optimizers[stage]
        loss = self.cross_entropy(logits, batch["label"])
        gradients = self.gradients(loss, tensors)
        summary = {"loss": loss.detach(), "acc": self.batch_accuracy(logits, batch["label"])}
        self.apply_gradients(gradients, tensors, optimizer)
        return summary

    def get_current_lr(self, names=None):
        return self.optimizers[self.stage][0].param_groups[0]["lr"]

    def extra_state(self) -> dict[str, Any]:
        return {"by_row": all(self.model.by_row), "begun_after": self.begun_after,
                **rows_state(self.dm.dataset.classnames, {"classifier": self.model.classifier})}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        if type(begun := state.get("by_row")) is not bool:
            raise InputError(f"it does not say whether its rows were begun ({begun!r})")
        begun_after = state.get("begun_after")
        if begun and not (type(begun_after) is int and begun_after > 0):
            raise InputError(f"it does not say after how many updates its rows were begun ({begun_after!r})")
        self.begun_after = begun_after if begun else None
        known = take_rows(state, list(self.dm.dataset.classnames), {"classifier": self.model.classifier})
        self.model.by_row = [begun and row for row in known]
