"""PromptTrainer: what every prompt method shares. A method file then reads like its paper."""
import random
import warnings

import torch
from torch.nn import functional as F
from yacs.config import CfgNode as CN

from dassl.engine.identity import note_other_origin
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    InputError,
    NonFiniteError,
    all_gather,
    count_num_param,
    derive_seed,
    isolated_rng,
    load_pretrained_weights,
    local_world_size,
    main_process_first,
)
from dassl.utils.distributed import Ranks
from prompting.backbone import Towers, describe_backbone, load_clip, unpublished_note, weights_digest
from prompting.memory import activation_budget
from prompting.precision import GradientOverflow, Precision, all_finite
from training.checkpoints import PromptCheckpoints
from training.without_data import DataManagerWithoutData

OF_EVERY_STEP = ("OPTIM.LABEL_SMOOTHING", "OPTIM.CLIP_GRAD_NORM")
TRAINING_OPTIONS = (*OF_EVERY_STEP, "TRAIN.PATIENCE")  # off by default; what no other kind of trainer has


def options_set(cfg):
    """Those of TRAINING_OPTIONS that a config sets."""
    return [key for key in TRAINING_OPTIONS if cfg[key.split(".")[0]][key.split(".")[1]]]


class PromptTrainer(PromptCheckpoints):
    """A method that learns a little around a frozen CLIP.

    A subclass defines `build_model`, and `compute_loss` (or `training_step`, when one loss and one step are not the
    method); `extend_cfg` declares its config node, TRAINER.<its name in capitals>, whose PREC says how the frozen
    towers run.

    Args:
        cfg: the config.
        clip_model: the CLIP to use; by default MODEL.BACKBONE.NAME is loaded.
        clips: {backbone name: loaded CLIP}, filled and shared between runs.
        classnames: build the model for these classes without reading a dataset, to predict with (`load_model`, then
            `model_inference`); nothing can be trained then.
    """

    trains = True  # False: training-free, only evaluated
    # False, said by a training-free class itself: its numbers follow from class names, backbone and test images alone,
    # so that a protocol makes one run for all seeds and shots
    learns_from_images = True
    class_bound = False  # True: what is learned belongs to the training classes and cannot score new ones
    class_tensors = ()  # beginnings of names of trained tensors that a checkpoint gives to its own classes only
    min_batch = 1  # images a training batch needs at least
    sampler = None  # the registered sampler the method's batches need, when not any will do

    def __init__(self, cfg, clip_model=None, clips=None, classnames=None):
        self.clip_model, self.clips = clip_model, {} if clips is None else clips
        self.predicts_only, self.given_classnames = classnames is not None, classnames
        self.honoured = set()  # those of OF_EVERY_STEP that a training step has taken note of
        self.overruled = {}  # {key of the method's node that another one keeps from acting: why}
        self.complete_cfg(cfg)
        if self.trains and cfg.DATALOADER.TRAIN_X.BATCH_SIZE < self.min_batch:
            raise InputError(f"{type(self).__name__} needs batches of at least {self.min_batch} images; "
                             "raise DATALOADER.TRAIN_X.BATCH_SIZE")
        super().__init__(cfg)

    # ---- what a method defines ----
    @staticmethod
    def extend_cfg(cfg):
        """Add `cfg.TRAINER.<NAME>` with the method's defaults."""

    def build_model(self, towers, classnames):
        """The method's module.

        Args:
            towers: prompting.Towers, the frozen CLIP.
            classnames: names of the classes, in label order.
        Returns:
            nn.Module: images (B, 3, H, W) -> logits (B, n_cls); its parameters are what is trained
            (`prompting.model.PromptedCLIP` is the usual base).
        """
        raise NotImplementedError

    def compute_loss(self, batch):
        """(loss, logits (B, n_cls)) of a batch on the device; default: cross-entropy."""
        logits = self.model(batch["img"])
        return self.cross_entropy(logits, batch["label"]), logits

    def training_step(self, batch):
        """One batch's update(s); returns the numbers to print. Default: one step down `compute_loss`."""
        loss, logits = self.compute_loss(batch)
        self.apply_gradients(self.gradients(loss, self.trainables))
        return {"loss": loss.item(), "acc": compute_accuracy(logits.detach(), batch["label"])[0].item()}

    def build_optimizers(self):
        """[(optimizer, schedule), ...]; default: one over all that is trained."""
        optim = build_optimizer(self.trainables, self.cfg.OPTIM)
        return [(optim, build_lr_scheduler(optim, self.cfg.OPTIM))]

    def finish(self):
        """What is made of the trained tensors at the end of a training. A method that has such an end calls it after
        its last epoch; it is called, too, where TRAIN.PATIENCE makes an epoch the last."""

    def extra_state(self):
        """What is not a trained tensor and must survive in a checkpoint: plain data and tensors."""
        return {}

    def load_extra_state(self, state):
        """Take back what `extra_state` gave, in place of all that was taken back before: while a run looks for a whole
        checkpoint it may be called with that of one that is not taken then."""

    # ---- what all methods share ----
    def cross_entropy(self, logits, labels, reduction="mean"):
        """The cross-entropy of logits (B, n_cls) with labels (B,), smoothed by OPTIM.LABEL_SMOOTHING."""
        self.honoured.add("OPTIM.LABEL_SMOOTHING")
        return F.cross_entropy(logits, labels, reduction=reduction, label_smoothing=self.cfg.OPTIM.LABEL_SMOOTHING)

    @classmethod
    def complete_cfg(cls, cfg):
        """Set what follows from the method: its sampler."""
        named = cfg.DATALOADER.TRAIN_X.SAMPLER
        if cls.sampler and named != cls.sampler:
            if named != "RandomSampler":
                print(f"Note: {cls.__name__} trains with {cls.sampler}, not with {named}")
            cfg.DATALOADER.TRAIN_X.SAMPLER = cls.sampler

    def note(self, line):
        """Print a line for the run's log; nothing where no run is made (`classnames` are given, to predict with)."""
        if not self.predicts_only:
            print(line)

    @property
    def node(self):
        """The method's own config."""
        return self.cfg.TRAINER.get(type(self).__name__.upper(), CN())

    def initial_context(self, towers):
        """The start of a context of text prompts, (n_ctx, W): the vectors of the words CTX_INIT of the method's config,
        else N_CTX vectors from N(0, 0.02^2)."""
        node = self.node
        if node.get("CTX_INIT", ""):
            words = towers.text.embed_words(node.CTX_INIT)
            if node.N_CTX != len(words):
                self.overruled[f"TRAINER.{type(self).__name__.upper()}.N_CTX"] = \
                    f"the {len(words)} tokens of CTX_INIT are the context"
            return words
        if node.N_CTX < 1:
            raise InputError(f"TRAINER.{type(self).__name__.upper()}.N_CTX must be at least 1, not {node.N_CTX}")
        return torch.randn(node.N_CTX, towers.text.width) * 0.02

    templates_taken = False  # whether the method has asked for DATASET.TEMPLATES

    def own_templates(self):
        """DATASET.TEMPLATES, a list that may be empty; a method that asks for them is one that they act on."""
        self.templates_taken = True
        return list(self.cfg.DATASET.TEMPLATES)

    def frozen_templates(self, *published):
        """The templates of a method's frozen prompts: DATASET.TEMPLATES where they are given, else the `published`."""
        return self.own_templates() or list(published)

    def build_data_loader(self):
        if not self.predicts_only:
            super().build_data_loader()
            return
        self.dm = DataManagerWithoutData(self.given_classnames, type(self).__name__)
        self.lab2cname, self.num_classes = self.dm.dataset.lab2cname, len(self.given_classnames)
        self.train_loader_x = self.train_loader_u = self.val_loader = self.test_loader = None

    def prepare_model(self):
        cfg = self.cfg
        self.ranks = Ranks.of_this_run()
        self.precision = Precision(self.node.get("PREC", "auto"), self.device, self.ranks)
        if cfg.VERBOSE:
            backbone = cfg.MODEL.BACKBONE.NAME or "as given"
            print(f"Backbone: {backbone}, precision {self.precision.name}, on {self.device}")
        clip_model, name = self.clip_model, cfg.MODEL.BACKBONE.NAME
        if clip_model is None:
            known = getattr(self.clips.get(name), "weights_digest", None)
            if name not in self.clips or known and known != weights_digest(name):  # the file may be another by now
                with isolated_rng(0):  # loading draws numbers, and a run that is handed a loaded CLIP does not load
                    self.clips[name] = main_process_first(lambda: load_clip(name))
            clip_model = self.clips[name]
        self.backbone_facts = describe_backbone(clip_model, name)
        if note := unpublished_note(self.backbone_facts):
            self.note(note)
        self.towers = Towers(clip_model, self.device, half=self.precision.half, ranks=self.ranks)
        self._budget.passes = self.towers.passes
        self.towers.text.activation_bytes = cfg.TRAIN.TEXT_MEMORY_MB * 2**20 or activation_budget(
            self.device, local_world_size())
        size = self.towers.resolution
        if tuple(cfg.INPUT.SIZE) != (size, size):
            raise InputError(f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)}, but the backbone {cfg.MODEL.BACKBONE.NAME} takes "
                             f"images of {size} x {size}; set INPUT.SIZE \"({size},{size})\"")
        if self.train_loader_x is not None:
            self.train_loader_x.batch_sampler.divide(self.ranks.rank, self.ranks.world_size)
        with isolated_rng(derive_seed("init", cfg.SEED)):
            self.model = self.build_model(self.towers, self.dm.dataset.classnames).to(self.device)
        if cfg.DATASET.TEMPLATES and not self.templates_taken:
            self.note(f"Note: DATASET.TEMPLATES changes nothing here: {type(self).__name__} has no frozen prompts that "
                      "are made of the dataset's template")
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
            note_other_origin(self, cfg.MODEL.INIT_WEIGHTS)
        self.trainables = [p for p in self.model.parameters() if p.requires_grad]
        trained = self.trains and not self.predicts_only
        if trained:
            print(f"Trained: {count_num_param(params=self.trainables):,} parameters in {len(self.trainables)} tensors")
        self.optimizers = self.build_optimizers() if trained else [(None, None)]
        self.optim, self.sched = self.optimizers[0]
        self.register_model("prompt_learner", self.model, self.optim, self.sched)

    def train(self):
        if not self.trains:
            self.max_epoch = self.start_epoch
        super().train()

    def require_honoured(self):
        """Raise InputError after a training step that takes no note of an option that is set."""
        for key in OF_EVERY_STEP:
            if key in options_set(self.cfg) and key not in self.honoured:
                how = ("computes its loss without self.cross_entropy" if key == "OPTIM.LABEL_SMOOTHING" else
                       "makes its steps without apply_gradients")
                raise InputError(f"{key} has no effect: {type(self).__name__} {how}; leave the option out")

    def forward_backward(self, batch):
        batch = self.batch = self.whole({key: self.to_device(value) for key, value in batch.items()})
        try:
            with self.precision.autocast():
                summary = self.training_step(batch)
            self.require_honoured()
        except GradientOverflow:
            summary = {"overflow": 1}
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return summary

    def to_device(self, value):
        """Tensors, and lists of tensors (several views of the images), to the device; other things as they are."""
        if isinstance(value, list) and value and torch.is_tensor(value[0]):
            return [self.to_device(entry) for entry in value]
        return value.to(self.device, non_blocking=True) if torch.is_tensor(value) else value

    def whole(self, batch):
        """The batch of one process from those that the ranks have read."""
        if self.ranks.world_size == 1:
            return batch
        size = self.train_loader_x.batch_sampler.size_of(self.batch_idx)
        share = self.ranks.share(size)
        own = share.stop - share.start  # a rank without a share has read an image that does not count

        def gathered(value):
            if torch.is_tensor(value):
                return self.ranks.all_gather(value[:own], size)
            if value and torch.is_tensor(value[0]):
                return [gathered(view) for view in value]
            return [entry for part in all_gather(value[:own]) for entry in part]

        return {key: gathered(value) for key, value in batch.items()}

    @torch.no_grad()
    def test(self, split=None):
        with self.ranks.no_sync():  # each rank has test images of its own
            return super().test(split)

    def model_inference(self, images):
        with self.precision.autocast():
            return self.model(images).float()

    def gradients(self, loss, tensors, create_graph=False, retain_graph=None):
        """d loss / d tensors in float32. Raises NonFiniteError for a loss that is not finite; GradientOverflow, which
        ends the batch, for a scaled gradient that is not."""
        self.detect_anomaly(loss)
        return self.precision.gradients(loss, tensors, create_graph, retain_graph)

    def apply_gradients(self, gradients, tensors=None, optimizer=None):
        """The one place where gradients become an update.

        Args:
            gradients: unscaled gradients, one a tensor.
            tensors: what they belong to; default everything that is trained.
            optimizer: whose `step()` is made; default the method's.
        Raises:
            NonFiniteError: a gradient is not finite.
        """
        tensors = self.trainables if tensors is None else tensors
        if not all_finite(gradients):
            raise NonFiniteError(f"a gradient is not finite in epoch {self.epoch + 1}, batch {self.batch_idx + 1}, at "
                                 f"learning rate {self.get_current_lr():.3g}{self._batch_files()}; lower OPTIM.LR or "
                                 "use PREC fp32")
        for tensor, gradient in zip(tensors, self.clipped(gradients)):
            tensor.grad = gradient
        (optimizer or self.optim).step()
        torch.clear_autocast_cache()  # which holds half-precision copies of what has just changed
        self.precision.good_step()
        for tensor in tensors:
            tensor.grad = None

    def clipped(self, gradients):
        """Gradients of tensors that are updated together, scaled to a common length of OPTIM.CLIP_GRAD_NORM at most."""
        self.honoured.add("OPTIM.CLIP_GRAD_NORM")
        most = self.cfg.OPTIM.CLIP_GRAD_NORM
        if not most:
            return gradients
        length = torch.stack([gradient.norm() for gradient in gradients]).norm()
        scale = (most / length).clamp(max=1.0)
        return [gradient * scale for gradient in gradients]

    def model_update(self, names=None):
        """For methods that are written with `loss.backward()`."""
        tensors = [tensor for tensor in self.trainables if tensor.grad is not None]
        for tensor, gradient in zip(tensors, self.clipped([tensor.grad for tensor in tensors])):
            tensor.grad = gradient
        super().model_update(names)

    def model_backward(self, loss):
        """For methods that are written with `loss.backward()`: what it leaves is the mean over the ranks."""
        super().model_backward(loss)
        tensors = [tensor for tensor in self.trainables if tensor.grad is not None]
        for tensor, gradient in zip(tensors, self.ranks.all_reduce_mean([tensor.grad for tensor in tensors])):
            tensor.grad = gradient

    def update_lr(self, names=None):
        with warnings.catch_warnings():
            # torch warns when no step was made before; every one may have been left out for overflow.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            for _, schedule in self.optimizers:
                schedule.step()

    def step_rng(self, purpose):
        """A `random.Random` that is a function of (SEED, epoch, batch, purpose)."""
        return random.Random(derive_seed(purpose, self.cfg.SEED, self.epoch, self.batch_idx))
