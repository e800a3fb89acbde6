"""PromptTrainer: what every prompt method shares. A method file then reads like its paper."""
import os
import random
import warnings

import torch
from torch.nn import functional as F
from yacs.config import CfgNode as CN

from dassl.engine import TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    InputError,
    NonFiniteError,
    count_num_param,
    derive_seed,
    get_rng_state,
    isolated_rng,
    load_checkpoint,
    load_pretrained_weights,
    save_checkpoint,
    set_rng_state,
)
from prompting.backbone import Towers, load_clip
from prompting.memory import activation_budget
from prompting.precision import GradientOverflow, Precision, all_finite

CHECKPOINTS_KEPT = 2


class PromptTrainer(TrainerX):
    """A method that learns a little around a frozen CLIP.

    A subclass defines `build_model`, and `compute_loss` (or `training_step`, when one loss and one step are not the
    method); `extend_cfg` declares its config node, TRAINER.<its name in capitals>, whose PREC says how the frozen
    towers run.

    Args:
        cfg: the config.
        clip_model: the CLIP to use; by default MODEL.BACKBONE.NAME is loaded.
        clips: {backbone name: loaded CLIP}, filled and shared between runs.
    """

    trains = True  # False: training-free, only evaluated
    class_bound = False  # True: what is learned belongs to the training classes and cannot score new ones
    min_batch = 1  # images a training batch needs at least
    sampler = None  # the registered sampler the method's batches need, when not any will do

    def __init__(self, cfg, clip_model=None, clips=None):
        self.clip_model, self.clips = clip_model, {} if clips is None else clips
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
        return F.cross_entropy(logits, batch["label"]), logits

    def training_step(self, batch):
        """One batch's update(s); returns the numbers to print. Default: one step down `compute_loss`."""
        loss, logits = self.compute_loss(batch)
        self.apply_gradients(self.gradients(loss, self.trainables))
        return {"loss": loss.item(), "acc": compute_accuracy(logits.detach(), batch["label"])[0].item()}

    def build_optimizers(self):
        """[(optimizer, schedule), ...]; default: one over all that is trained."""
        optim = build_optimizer(self.trainables, self.cfg.OPTIM)
        return [(optim, build_lr_scheduler(optim, self.cfg.OPTIM))]

    def extra_state(self):
        """What is not a trained tensor and must survive in a checkpoint: plain data and tensors."""
        return {}

    def load_extra_state(self, state):
        """Take back what `extra_state` gave."""

    # ---- what all methods share ----
    @classmethod
    def complete_cfg(cls, cfg):
        """Set what follows from the method: its sampler."""
        named = cfg.DATALOADER.TRAIN_X.SAMPLER
        if cls.sampler and named != cls.sampler:
            if named != "RandomSampler":
                print(f"Note: {cls.__name__} trains with {cls.sampler}, not with {named}")
            cfg.DATALOADER.TRAIN_X.SAMPLER = cls.sampler

    @property
    def node(self):
        """The method's own config."""
        return self.cfg.TRAINER.get(type(self).__name__.upper(), CN())

    def prepare_model(self):
        cfg = self.cfg
        self.precision = Precision(self.node.get("PREC", "auto"), self.device)
        if cfg.VERBOSE:
            backbone = cfg.MODEL.BACKBONE.NAME or "as given"
            print(f"Backbone: {backbone}, precision {self.precision.name}, on {self.device}")
        clip_model, name = self.clip_model, cfg.MODEL.BACKBONE.NAME
        if clip_model is None:
            if name not in self.clips:
                self.clips[name] = load_clip(name)
            clip_model = self.clips[name]
        self.towers = Towers(clip_model, self.device, half=self.precision.half)
        self.towers.text.activation_bytes = cfg.TRAIN.TEXT_MEMORY_MB * 2**20 or activation_budget(self.device)
        size = self.towers.resolution
        if tuple(cfg.INPUT.SIZE) != (size, size):
            raise InputError(f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)}, but the backbone {cfg.MODEL.BACKBONE.NAME} takes "
                             f"images of {size} x {size}; set INPUT.SIZE \"({size},{size})\"")
        with isolated_rng(derive_seed("init", cfg.SEED)):
            self.model = self.build_model(self.towers, self.dm.dataset.classnames).to(self.device)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
        self.trainables = [p for p in self.model.parameters() if p.requires_grad]
        if self.trains:
            print(f"Trained: {count_num_param(params=self.trainables):,} parameters in {len(self.trainables)} tensors")
        self.optimizers = self.build_optimizers() if self.trains else [(None, None)]
        self.optim, self.sched = self.optimizers[0]
        self.register_model("prompt_learner", self.model, self.optim, self.sched)

    def train(self):
        if not self.trains:
            self.max_epoch = self.start_epoch
        super().train()

    def forward_backward(self, batch):
        batch = {key: self.to_device(value) for key, value in batch.items()}
        try:
            with self.precision.autocast():
                summary = self.training_step(batch)
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
        for tensor, gradient in zip(tensors, gradients):
            tensor.grad = gradient
        (optimizer or self.optim).step()
        torch.clear_autocast_cache()  # which holds half-precision copies of what has just changed
        self.precision.good_step()
        for tensor in tensors:
            tensor.grad = None

    def update_lr(self, names=None):
        with warnings.catch_warnings():
            # torch warns when no step was made before; every one may have been left out for overflow.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            for _, schedule in self.optimizers:
                schedule.step()

    def step_rng(self, purpose):
        """A `random.Random` that is a function of (SEED, epoch, batch, purpose)."""
        return random.Random(derive_seed(purpose, self.cfg.SEED, self.epoch, self.batch_idx))

    # ---- checkpoints: what is trained, and what a resumed run needs to give the same numbers ----
    def after_epoch(self):
        super().after_epoch()
        done, freq = self.epoch + 1, self.cfg.TRAIN.CHECKPOINT_FREQ
        if done != self.max_epoch and not (freq > 0 and done % freq == 0):
            self.save_model(self.epoch, self.output_dir)
        old = done - CHECKPOINTS_KEPT
        if old > 0 and not (freq > 0 and old % freq == 0):
            for name in self.get_model_names():
                path = os.path.join(self.output_dir, name, f"model.pth.tar-{old}")
                if os.path.exists(path):
                    os.remove(path)

    def trained_state(self):
        """{name: tensor} of what is trained, on the CPU."""
        return {n: p.detach().cpu().clone() for n, p in self.model.named_parameters() if p.requires_grad}

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        if not self.trains:
            return
        state = {
            "trainer": type(self).__name__,
            "classnames": list(self.dm.dataset.classnames),
            "state_dict": self.trained_state(),
            "epoch": epoch + 1,
            "step": 0,
            "optimizers": [optim.state_dict() for optim, _ in self.optimizers],
            "schedules": [sched.state_dict() for _, sched in self.optimizers],
            "precision": self.precision.state_dict(),
            "threads": torch.get_num_threads(),
            "activation_bytes": self.towers.text.activation_bytes,
            "rng": get_rng_state(),
            "extra": self.extra_state(),
            "best_result": float(self.best_result),
            "val_result": val_result,
        }
        save_checkpoint(state, os.path.join(directory, "prompt_learner"), is_best=is_best, model_name=model_name,
                        remove_module_from_keys=False)

    def resume_model_if_exist(self, directory):
        folder = os.path.join(directory, "prompt_learner")
        if not self.trains or not os.path.isfile(os.path.join(folder, "checkpoint")):
            return 0
        state = self._load_state(self._newest(folder))
        for (optim, sched), optim_state, sched_state in zip(self.optimizers, state["optimizers"], state["schedules"]):
            optim.load_state_dict(optim_state)
            sched.load_state_dict(sched_state)
        self.precision.load_state_dict(state["precision"])
        torch.set_num_threads(state["threads"])  # another number rounds differently; so do other chunks
        self.towers.text.activation_bytes = state["activation_bytes"]
        self.best_result = state["best_result"]
        self.first_batch = state["step"]
        set_rng_state(state["rng"])
        print(f"Resuming from {folder} after epoch {state['epoch']}")
        return state["epoch"]

    def load_model(self, directory, epoch=None):
        """Take the prompts of a trained run: of `epoch` (from 1), else the best on validation if kept, else the last.

        Raises:
            InputError: there is no such checkpoint, or it is another method's or of another shape.
        """
        if not directory or not self.trains:
            return
        folder = os.path.join(directory, "prompt_learner")
        best = os.path.join(folder, "model-best.pth.tar")
        if epoch is not None:
            path = os.path.join(folder, f"model.pth.tar-{epoch}")
        elif os.path.isfile(best) or self.cfg.TEST.FINAL_MODEL == "best_val":
            path = best
        else:
            path = self._newest(folder)
        if not os.path.isfile(path):
            raise InputError(f"no checkpoint at {path}; check --model-dir and --load-epoch")
        state = self._load_state(path)
        print(f"Loaded {path} (epoch {state['epoch']})")

    @staticmethod
    def _newest(folder):
        try:
            with open(os.path.join(folder, "checkpoint"), encoding="utf-8") as file:
                return os.path.join(folder, os.path.basename(file.readline().strip()))
        except OSError:
            raise InputError(f"no trained prompts in {folder}; check --model-dir") from None

    def _load_state(self, path):
        """Put a checkpoint's trained tensors in their places and return its other contents."""
        state = load_checkpoint(path)
        tensors, own = state.get("state_dict", {}), dict(self.model.named_parameters())
        own = {n: p for n, p in own.items() if p.requires_grad}
        if state.get("trainer") != type(self).__name__ or set(tensors) != set(own):
            raise InputError(f"{path} holds {state.get('trainer', 'another kind of trainer')} with "
                             f"{', '.join(sorted(tensors))}; {type(self).__name__} needs {', '.join(sorted(own))}")
        for name, tensor in tensors.items():
            if tensor.shape != own[name].shape:
                hint = ("it belongs to the classes it was trained on" if self.class_bound else
                        "use the config it was trained with")
                raise InputError(f"{path}: {name} has shape {tuple(tensor.shape)}, this run needs "
                                 f"{tuple(own[name].shape)}; {hint}")
            own[name].data.copy_(tensor)
        if self.class_bound and state["classnames"] != list(self.dm.dataset.classnames):
            raise InputError(f"{path} was trained on other classes ({', '.join(state['classnames'][:3])}, ...), and "
                             f"what {type(self).__name__} learns with this config belongs to its classes")
        self.load_extra_state(state["extra"])
        return state
