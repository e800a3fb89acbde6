"""PromptTrainer: what every prompt method shares. A method file then reads like its paper."""
import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dassl.data import DataManager
from dassl.data.data_manager import require_views
from dassl.data.views import build_views
from dassl.engine.checkpointer import Contents, State
from dassl.engine.identity import note_other_origin
from dassl.utils import InputError, count_num_param, load_pretrained_weights
from dassl.utils.distributed import Ranks
from prompting.backbone import BackboneFacts, describe_backbone, unpublished_note
from prompting.model import PromptedCLIP
from prompting.precision import Precision
from prompting.towers import READS_TOKENS, Towers
from training.batches import Batch
from training.gradient_watch import GradientWatch
from training.graphs import StepGraphs
from training.once_again import OnceAgain
from training.schedules import plan_training
from training.steps import Steps
from training.store.feed import Feed
from training.test_time import TestTime, require_predict
from training.towers import build_towers, built_model, loaded_clip, require_trained
from training.trained_tensors import FOLDER, TrainedTensors
from training.without_data import DataManagerWithoutData


class PromptTrainer(Steps):
    """A method that learns a little around a frozen CLIP.

    A subclass defines what `Method` lists: `build_model`, and `compute_loss` (or `training_step`, when one loss and one
    step are not the method); `extend_cfg` declares its config node, TRAINER.<its name in capitals>, whose PREC says how
    the towers run. Letters in shapes: B images, n_cls classes.

    Args:
        cfg: the config.
        clip_model: the CLIP to use; by default MODEL.BACKBONE.NAME is loaded.
        clips: {backbone name: loaded CLIP}, filled and shared between runs.
        classnames: build the model for these classes without reading a dataset, to predict with (`load_model`, then
            `logits_of`); nothing can be trained then.
    Attributes, beside those of TrainerX:
        towers: prompting.Towers that `build_model` was given: the frozen CLIP or, with `trains_towers`, the copy of it
            that is trained; precision: how they run; ranks: the processes of the run.
        model: what `build_model` gave; trainables: its tensors that are trained.
        optimizers: what `build_optimizers` gave, [] where nothing is trained; optim, sched: the first of them.
    """

    backbone_facts: BackboneFacts
    towers: Towers
    precision: Precision
    ranks: Ranks
    trainables: list[nn.Parameter]
    optimizers: list[tuple[Optimizer, LRScheduler]]
    optim: Any
    sched: Any

    def __init__(self, cfg: Any, clip_model: Any = None, clips: dict[str, Any] | None = None,
                 classnames: Sequence[str] | None = None) -> None:
        self.clip_model, self.clips = clip_model, {} if clips is None else clips
        self.predicts_only, self.given_classnames = classnames is not None, list(classnames or ())
        self.honoured: set[str] = set()  # the options that a training step has taken note of
        self.overruled: dict[str, str] = {}  # {key of the method's node that another one keeps from acting: why}
        self.watch = GradientWatch(type(self).__name__)
        self._test_time, self._feed = TestTime(self), Feed(self)
        self._once_again, self._graphs = OnceAgain(self), StepGraphs(self)
        self.complete_cfg(cfg)
        require_predict(type(self))
        if self.trains and cfg.DATALOADER.TRAIN_X.BATCH_SIZE < self.min_batch:
            raise InputError(f"{type(self).__name__} needs batches of at least {self.min_batch} images; "
                             "raise DATALOADER.TRAIN_X.BATCH_SIZE")
        super().__init__(cfg)

    # ---- setting up ----
    @classmethod
    def complete_cfg(cls, cfg: Any) -> None:
        """Set what follows from the method: its sampler."""
        named = cfg.DATALOADER.TRAIN_X.SAMPLER
        if cls.sampler and named != cls.sampler:
            if named != "RandomSampler":
                print(f"Note: {cls.__name__} trains with {cls.sampler}, not with {named}")
            cfg.DATALOADER.TRAIN_X.SAMPLER = cls.sampler

    def build_data_loader(self):
        if self.predicts_only:
            self.dm = DataManagerWithoutData(self.given_classnames, type(self).__name__)
            self.lab2cname, self.num_classes = self.dm.dataset.lab2cname, len(self.given_classnames)
        else:
            super().build_data_loader()
            plan_training(self)

    def build_data_manager(self, **settings: Any) -> DataManager:
        return super().build_data_manager(**{"test_views": build_views(self, self.cfg), **settings})

    def prepare_model(self) -> None:
        require_views(self)
        cfg, name = self.cfg, self.cfg.MODEL.BACKBONE.NAME
        self.ranks = Ranks.of_this_run()
        self.precision = Precision(self.node.get("PREC", "auto"), self.device, self.ranks,
                                   keeps_casts=not (self.trains_towers or self.adapts or self.stateful))
        if self.precision.half and self.trains_towers:
            raise InputError(f"TRAINER.{type(self).__name__.upper()}.PREC fp16 keeps the towers in half precision, and "
                             f"{type(self).__name__} trains them; use amp or bf16")
        if cfg.VERBOSE:
            print(f"Backbone: {name or 'as given'}, precision {self.precision.name}, on {self.device}")
        if self.clip_model is None:
            self.clip_model = loaded_clip(name, self.clips)
        self.backbone_facts = describe_backbone(self.clip_model, name)
        if note := unpublished_note(self.backbone_facts):
            self.note(note)
        self.towers = build_towers(self.clip_model, cfg, self.device, self.precision, self.ranks, self.trains_towers)
        if self.image_tokens:
            self.towers.promptable_image(type(self).__name__, READS_TOKENS)
        self._budget.passes = self.towers.passes
        if self.train_loader_x is not None:
            self.train_loader_x.batch_sampler.divide(self.ranks.rank, self.ranks.world_size)
        self.model = built_model(self)
        if cfg.DATASET.TEMPLATES and not self.templates_taken:
            self.note(f"Note: DATASET.TEMPLATES changes nothing here: {type(self).__name__} has no frozen prompts that "
                      "are made of the dataset's template")
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS, self.towers.frozen_names(self.model))
            note_other_origin(self, cfg.MODEL.INIT_WEIGHTS)
        self.trainables = [p for p in self.model.parameters() if p.requires_grad]
        trained = self.trains and not self.predicts_only
        if trained:
            require_trained(self)
            print(f"Trained: {count_num_param(params=self.trainables):,} parameters in {len(self.trainables)} tensors")
        self.optimizers = self.build_optimizers() if trained else []
        self.optim, self.sched = self.optimizers[0] if trained else (None, None)
        self.register_model(FOLDER, self.model, self.optim, self.sched)
        self._feed.attach_all()

    @functools.cached_property
    def frozen_towers(self) -> Towers:
        """The towers of the CLIP as it was loaded, also where a copy of it is trained."""
        if not self.trains_towers:
            return self.towers
        return build_towers(self.clip_model, self.cfg, self.device, self.precision, self.ranks,
                            passes=self.towers.passes)

    def forget_class_features(self) -> None:
        """Let the class features that an evaluation keeps be computed anew. Everything that changes what they depend on
        calls this: an update, a checkpoint that is loaded."""
        for module in self.model.modules():
            if isinstance(module, PromptedCLIP):
                module.forget_class_features()

    def set_model_mode(self, mode="train", names=None):
        """As in Dassl. BatchNorm of towers that are trained keeps CLIP's statistics: those of few images are no better,
        and no checkpoint holds them."""
        super().set_model_mode(mode, names)
        if self.trains_towers:
            for module in self.towers.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    # ---- checkpoints ----
    def checkpoint_contents(self) -> Contents:
        return TrainedTensors(self)

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        with self._test_time.suspended():  # a signal may come in an evaluation
            super().save_model(epoch, directory, is_best, val_result, model_name)

    def trained_state(self) -> dict[str, Tensor]:
        """{name: tensor} of what is trained, on the CPU."""
        return {name: p.detach().cpu().clone() for name, p in self.trained_tensors().items()}

    def trained_tensors(self) -> dict[str, nn.Parameter]:
        """{name: tensor} of what is trained, as it is."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def load_model(self, directory, epoch=None):
        """As `TrainedTensors.load`; nothing without a folder, or where nothing is trained."""
        if directory and self.trains:
            super().load_model(directory, epoch)

    def training_position(self, epoch: int, step: int, val_result: float | None) -> State:
        position = {**super().training_position(epoch, step, val_result),
                    "best_epoch": self.best_epoch, "finished": epoch == self.max_epoch}
        with self.ranks.no_sync():
            evaluated = {} if step else self._test_time.evaluated()
        if evaluated:  # for runs of any method that begin with them (INIT_WEIGHTS)
            position["evaluated"] = {name: tensor.detach().cpu() for name, tensor in evaluated.items()}
        return position

    def checkpoint_due(self, done: int) -> bool:
        return True  # of each epoch; `prune` removes it when it is old

    def before_train(self):
        super().before_train()
        if self.start_epoch:  # a kill may have come between a checkpoint and the removal of what it makes useless
            self._checkpointer.prune(self.output_dir, self.start_epoch, self.cfg.TRAIN.CHECKPOINT_FREQ)
            if not self.first_batch:
                self._checkpointer.forget_interruption(self.output_dir)

    def after_train(self):
        self._graphs.forget()
        super().after_train()

    def after_epoch(self):
        super().after_epoch()
        self._checkpointer.prune(self.output_dir, self.epoch + 1, self.cfg.TRAIN.CHECKPOINT_FREQ)

    # ---- training and evaluation ----
    def train(self):  # type: ignore[override]  # as in SimpleTrainer
        if not self.trains:
            self.max_epoch = self.start_epoch
        super().train()

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        with self.ranks.no_sync():  # each rank has test images of its own
            try:
                with self.predicting():
                    return super().test(split)
            except torch.OutOfMemoryError:
                if not self._graphs.held:
                    raise
            self._graphs.refuse("the GPU's memory does not suffice for an evaluation beside them")
            with self.predicting():
                return super().test(split)

    def loader_to_evaluate(self, split: str) -> Any:
        loader = super().loader_to_evaluate(split)
        return self._feed.attach(loader, training=False) if split == "train" else loader

    @property
    def divides_evaluation(self) -> bool:
        return self._test_time.divisible

    def _answer(self, batch: Batch) -> tuple[Any, Any]:
        self.stop_if_asked()
        images, labels = self.parse_batch_test(batch)
        return self.logits_of({**batch, "img": images}), labels

    def model_inference(self, images: Tensor, frozen: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) -> logits (B, n_cls) float32. frozen: their features (B, E), if the model takes them."""
        with self.precision.autocast():
            return (self.model(images) if frozen is None else self.model(images, frozen)).float()

    def predicting(self) -> contextlib.AbstractContextManager[None]:
        """Context of one evaluation, or of one stream of predictions: within it `evaluated_weights` are in place, and
        what a `stateful` method learns of test images lasts until it ends."""
        return self._test_time.predicting()

    @property
    def in_stream(self) -> bool:
        """Whether predictions go on in which the method keeps what it learns, so that no others may come between."""
        return self.stateful and self._test_time.open

    def logits_of(self, batch: Batch) -> Tensor:
        """Logits (B, n_cls) float32 of a batch of test images, as every evaluation gives them, by `predict`: see
        `training.test_time.TestTime.logits_of`."""
        return self._test_time.logits_of(batch)

    def step_in_words(self) -> str:
        if self._test_time.files is None:
            return super().step_in_words()
        return f"at test time, on {', '.join(self._test_time.files) or 'images in memory'}"
