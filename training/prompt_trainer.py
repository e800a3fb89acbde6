"""PromptTrainer: what every prompt method shares. A method file then reads like its paper."""
import contextlib
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dassl.data import DataManager
from dassl.data.data_manager import require_views
from dassl.data.views import build_views
from dassl.engine import TrainerX
from dassl.engine.checkpointer import Contents, State
from dassl.engine.identity import note_other_origin
from dassl.utils import InputError, NonFiniteError, count_num_param, load_pretrained_weights
from dassl.utils.distributed import Ranks
from prompting.backbone import BackboneFacts, describe_backbone, unpublished_note
from prompting.model import PromptedCLIP
from prompting.precision import GradientOverflow, Precision, all_finite
from prompting.towers import READS_TOKENS, Towers
from training.batches import Batch, all_gather_batch, to_device
from training.gradient_watch import GradientWatch
from training.method import Method
from training.once_again import OnceAgain
from training.options import CLIP_GRAD_NORM, require_honoured
from training.schedules import after_epoch, after_update, plan_training
from training.store.feed import Feed
from training.test_time import TestTime, require_predict
from training.towers import build_towers, built_model, loaded_clip, require_trained
from training.trained_tensors import FOLDER, TrainedTensors
from training.without_data import DataManagerWithoutData


class PromptTrainer(Method, TrainerX):
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
        towers: the Towers that `build_model` was given; precision: how they run; ranks: the processes of the run.
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
        self._test_time, self._feed, self._once_again = TestTime(self), Feed(self), OnceAgain(self)
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
        """As in Dassl. BatchNorm of towers that are trained keeps CLIP's statistics: no checkpoint holds others."""
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

    def after_epoch(self):
        super().after_epoch()
        self._checkpointer.prune(self.output_dir, self.epoch + 1, self.cfg.TRAIN.CHECKPOINT_FREQ)

    # ---- training and evaluation ----
    def train(self):  # type: ignore[override]  # as in SimpleTrainer
        if not self.trains:
            self.max_epoch = self.start_epoch
        super().train()

    def forward_backward(self, batch: Batch) -> dict[str, float]:
        batch = self.batch = self._feed.with_frozen(self.all_gather_batch(to_device(batch, self.device)))
        if not self.watch.over:
            self.watch.begin(self.trained_tensors())
        try:
            with self.precision.autocast(), self._feed.explained(batch):
                summary = self._once_again.step(batch)
            require_honoured(self.cfg, self.honoured, type(self).__name__)
            self.watch.step_made(self.batch_idx, self.num_batches, self.trains_in_turns)
        except GradientOverflow:
            summary = {"overflow": 1}
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return summary

    def all_gather_batch(self, batch: Batch) -> Batch:
        """The batch of one process from the parts that the ranks have read."""
        if self.ranks.world_size == 1:
            return batch
        return all_gather_batch(batch, self.ranks, self.train_loader_x.batch_sampler.size_of(self.batch_idx))

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        with self.ranks.no_sync(), self.predicting():  # each rank has test images of its own
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

    # ---- gradients ----
    def gradients(self, loss: Tensor, tensors: Sequence[Tensor], create_graph: bool = False,
                  retain_graph: bool | None = None) -> list[Tensor]:
        """d loss / d tensors in float32. Raises NonFiniteError for a loss that is not finite; GradientOverflow, which
        ends the batch, for a scaled gradient that is not; InputError for a loss that depends on nothing trained."""
        self.detect_anomaly(loss)
        untold = self._test_time.files is not None and not self.adapts
        self.watch.require_graph(loss, "to learn from test images, say adapts = True" if untold else "")
        self.watch.asked(tensors)
        return self.precision.gradients(loss, tensors, create_graph, retain_graph)

    def apply_gradients(self, gradients: Sequence[Tensor], tensors: Iterable[Tensor] | None = None,
                        optimizer: Optimizer | None = None) -> None:
        """The one place where gradients become an update.

        Args:
            gradients: unscaled gradients, one for each tensor, of its shape.
            tensors: what they belong to; default everything that is trained.
            optimizer: whose `step()` is made; default the method's.
        Raises:
            InputError: it is one of the training, and this is an update at test time.
            NonFiniteError: a gradient is not finite.
        """
        tensors = self.trainables if tensors is None else list(tensors)
        self._test_time.require_own(optimizer)
        self.watch.given(tensors)
        if not all_finite(gradients):
            raise NonFiniteError(f"a gradient is not finite {self.step_in_words()}; lower OPTIM.LR, or use PREC bf16 "
                                 "or fp32")
        for tensor, gradient in zip(tensors, self.clipped(gradients)):
            tensor.grad = gradient
        updated = optimizer or self.optim
        updated.step()
        after_update(self.optimizers, updated)
        self._weights_changed()
        self.precision.good_step()
        for tensor in tensors:
            tensor.grad = None

    def _weights_changed(self) -> None:
        """Drop what was computed from the tensors that an update has just changed."""
        torch.clear_autocast_cache()  # which holds half-precision copies of them
        self.forget_class_features()

    def clipped(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Gradients of tensors that are updated together, scaled to a common length of OPTIM.CLIP_GRAD_NORM at most."""
        self.honoured.add(CLIP_GRAD_NORM)
        most = self.cfg.OPTIM.CLIP_GRAD_NORM
        if not most:
            return gradients
        length = torch.stack([gradient.norm() for gradient in gradients]).norm()
        scale = (most / length).clamp(max=1.0)
        return [gradient * scale for gradient in gradients]

    def model_update(self, names=None):
        """For methods that are written with `loss.backward()`."""
        tensors = [tensor for tensor in self.trainables if tensor.grad is not None]
        for tensor, gradient in zip(tensors, self.clipped([t.grad for t in tensors if t.grad is not None])):
            tensor.grad = gradient
        super().model_update(names)
        after_update(self.optimizers, self.optim)
        self._weights_changed()

    def model_backward(self, loss):
        """For methods that are written with `loss.backward()`: what it leaves is the mean over the ranks."""
        super().model_backward(loss)
        tensors = [tensor for tensor in self.trainables if tensor.grad is not None]
        own = [tensor.grad for tensor in tensors if tensor.grad is not None]
        for tensor, gradient in zip(tensors, self.ranks.all_reduce_mean(own)):
            tensor.grad = gradient

    def update_lr(self, names=None):
        after_epoch(self.optimizers)
