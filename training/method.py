"""Method: what a method says of itself and what it defines. `PromptTrainer` runs it.

The page to read before writing a method. Letters in shapes: B images, n_cls classes, V views, E the width of the
features that both towers share.
"""
from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode as CN

from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import InputError, derive_seed
from prompting.towers import Towers
from training.batches import Batch
from training.options import LABEL_SMOOTHING


class Method:
    """The statements of a method, as class attributes, and the functions that it may define.

    A method defines `build_model`, and one of `compute_loss` and `training_step`, or `predict` where it learns at test
    time; everything else has a default. What a statement permits is checked by tests/conformance.
    """

    # ---- what a method says: training ----
    trains = True  # False: nothing is trained before the test
    # False, said by a training-free class itself: its numbers follow from class names, backbone and test images alone.
    learns_from_images = True
    class_tensors: tuple[str, ...] = ()  # prefixes of parameters tied to the training classes
    min_batch = 1  # images a training batch needs at least
    sampler: str | None = None  # the registered sampler the method's batches need, when not any will do
    # True: it changes weights of the towers. `build_model` gets towers over a copy of the CLIP, in which the method
    # calls requires_grad_() on what it trains, or replaces or parametrises modules. The CLIP of the run stays as it is.
    trains_towers = False
    # True: a step reaches only some of what is trained. A tensor that no gradient reaches is then looked for after the
    # first epoch, and not after the first step. A number: after so many epochs.
    trains_in_turns: bool | int = False
    # True, said by a class itself: for all batches of one shape `training_step` makes the same operations on tensors of
    # the same shapes, and asks for the value of none. What changes from step to step is what is trained, the batch, and
    # what `step_inputs` adds to it. A GPU then gets a step's operations at once, as a graph (TRAIN.GRAPHS). A subclass
    # may do something else, so it repeats the statement. `self.static_step = False` takes it back.
    static_step = False
    # How many numbers `extra_state` may hold, as a share of the CLIP's towers. A running average of an image tower that
    # is trained needs 1.
    extra_state_share = 0.05

    # ---- what a method says: features and predictions ----
    # True, said by a class itself: of images it takes the frozen features, by `towers.encode_image`, and nothing else.
    # "img" of its batches may then be these features, (B, E), which `encode_image` gives back: they come from the
    # feature store, and no picture is opened. A subclass may look at pixels, so it repeats the statement.
    frozen_images = False
    # True: it needs frozen image features beside pictures. Its training batches then have "frozen" (B, E), not
    # normalised; where "img" is several views, those of the last. A model whose forward takes `frozen` is given them in
    # evaluations, too: model(images, frozen).
    frozen_features = False
    image_tokens = False  # True: it reads the features of the patches, too, which only a ViT has
    # What `predict` learns lies in tensors that are trained, buffers or `extra_state`, which the engine puts back;
    # what lies in other attributes leaks from one image, and one evaluation, to the next.
    # True: `predict` may take gradients and make updates; afterwards all is as it was before.
    adapts = False
    # True: what it learned of a test image stays for the images after it, until the evaluation ends. A cache of test
    # features needs this, `extra_state`, and no `adapts`.
    stateful = False
    transductive = False  # True: the answer for an image depends on the other images of its test batch
    test_views = 0  # augmented views of each test image that `predict` is shown beside the image itself

    # ---- what a method defines ----
    @staticmethod
    def extend_cfg(cfg: Any) -> None:
        """Add `cfg.TRAINER.<NAME>` with the method's defaults."""

    @classmethod
    def class_bound(cls, cfg: Any) -> bool:
        """Whether what is learned with this config belongs to the training classes and cannot score new ones."""
        return False

    def build_model(self, towers: Towers, classnames: list[str]) -> nn.Module:
        """The method's module. Gradients are off: what is computed here is a value. MODEL.INIT_WEIGHTS is loaded after
        it, so what starts as the trained tensors do, such as their average, is made in the first step. Random numbers
        are drawn on the CPU, which gives the same ones for every device, and then moved to `towers.device`.

        Args:
            towers: the frozen CLIP; with `trains_towers` a copy that may be changed.
            classnames: names of the classes, in label order.
        Returns:
            module: images (B, 3, H, W) -> logits (B, n_cls), with `frozen_images` also features (B, E) in their place;
            its parameters that want gradients are what is trained (`prompting.model.PromptedCLIP` is the usual base).
        """
        raise NotImplementedError

    def compute_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss (), logits (B, n_cls)) of a batch on the device; default: cross-entropy.

        batch: "img" (B, 3, H, W), "label" (B,), "domain" (B,), "impath": list of B files, ...; see `frozen_images` and
            `frozen_features`."""
        logits = self.model(batch["img"])
        return self.cross_entropy(logits, batch["label"]), logits

    def step_inputs(self, batch: Batch) -> dict[str, Tensor]:
        """What a training step takes beside its batch and what the host knows: numbers that are drawn for it
        (`step_rng`), the learning rate, what follows from the labels. Tensors on the CPU, by names that are none of the
        batch's, in every step of the same shapes; `training_step` finds them, on the device, in its batch.

        batch: of all images of the step; as the loader gives it, or on the device where several processes have read it.
        """
        return {}

    def training_step(self, batch: Batch) -> Mapping[str, float | Tensor]:
        """One batch's update(s); returns the numbers to print, or tensors () of them, which the host then waits for
        once. Default: one step down `compute_loss`."""
        loss, logits = self.compute_loss(batch)
        gradients = self.gradients(loss, self.trainables)
        summary = {"loss": loss.detach(), "acc": self.batch_accuracy(logits, batch["label"])}
        self.apply_gradients(gradients)
        return summary

    def build_optimizers(self) -> list[tuple[Optimizer, LRScheduler]]:
        """[(optimizer, schedule), ...]; default: one over all that is trained, whose rate follows the epochs. That of a
        `StepSchedule` follows the updates of its optimizer, of which the training plans `planned_steps`."""
        optim = build_optimizer(self.trainables, self.cfg.OPTIM)
        return [(optim, build_lr_scheduler(optim, self.cfg.OPTIM))]

    def finish(self) -> None:
        """Make of the trained tensors what a training ends with, such as the best of its epochs. A method that has such
        an end calls this after its last epoch; the engine calls it where TRAIN.PATIENCE ends the training."""

    def evaluated_weights(self) -> dict[str, Tensor] | None:
        """{name: tensor} of trained tensors that an evaluation takes in the place of the trained ones, such as a
        running average; None: the trained ones themselves. It follows from the trained tensors, the CLIP and
        `extra_state`. Names are those of `model.named_parameters()`; values that are to stay as they were are copied
        (`.detach().clone()`), as an update changes a parameter in place."""
        return None

    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint must keep besides the trained tensors, and what is put back after a test image or an
        evaluation: plain data and tensors by name."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` gave, in place of what was restored before: a run that looks for a whole
        checkpoint may call this with the state of one that it then passes over."""

    # ---- what a method that learns at test time defines ----
    def predict(self, batch: Batch) -> Tensor:
        """Logits (B, n_cls) of test images; default: those of `model`.

        Gradients are off unless the method `adapts`: then it may make updates (`gradients`, `apply_gradients`), which
        are undone after the call, or, if it is `stateful`, after the evaluation. A batch has one image if the method is
        `adapts` or `stateful` and not `transductive`; else it has all images of a test batch.

        batch: "img" (B, 3, H, W) on the device, "views" (B, V, 3, H, W) with `test_views`, "impath"; never the labels.
        """
        frozen = batch.get("frozen")  # a plugin's model_inference takes images alone
        return self.model_inference(batch["img"], *([] if frozen is None else [frozen]))

    @classmethod
    def view_transform(cls, cfg: Any) -> Callable[[Any], Tensor]:
        """The transform of `test_views`: PIL image -> (3, H, W). Default: that of training images. Its random draws are
        a function of the seed and the picture."""
        from dassl.data.transforms import build_transform  # slow to import

        return build_transform(cfg)

    def build_test_optimizer(self) -> Optimizer | None:
        """The optimizer of updates at test time, as new for each image (`stateful`: for each evaluation);
        `apply_gradients` takes it by itself. An optimizer that the method keeps elsewhere is not made anew. Default:
        OPTIM, at its full rate; None where the module has nothing that wants a gradient (`predict` may still take
        gradients of tensors that it makes)."""
        return build_optimizer(self.trainables, self.cfg.OPTIM) if self.trainables else None

    # ---- what a method is given ----
    @property
    def steps_are_static(self) -> bool:
        """Whether the class itself says `static_step`, and nothing has taken it back."""
        return vars(type(self)).get("static_step", False) and self.static_step

    cfg: Any
    epoch: int  # from 0
    batch_idx: int
    model: Any  # what `build_model` gave
    trainables: list[nn.Parameter]  # its tensors that are trained
    planned_steps = 1  # the updates of the whole training, as planned: epochs x batches; 1 where no data are known
    predicts_only: bool
    honoured: set[str]
    overruled: dict[str, str]
    templates_taken = False  # whether the method has asked for DATASET.TEMPLATES
    gradients: Callable[..., list[Tensor]]
    apply_gradients: Callable[..., None]
    batch_accuracy: Callable[[Tensor, Tensor], Tensor]
    model_inference: Callable[..., Tensor]

    @classmethod
    def node_of(cls, cfg: Any) -> CN:
        """The method's own config, TRAINER.<name of the class in capitals>, in a config; empty where there is none."""
        return cfg.TRAINER.get(cls.__name__.upper(), CN())

    @property
    def node(self) -> CN:
        return self.node_of(self.cfg)

    def cross_entropy(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """The cross-entropy of logits (B, n_cls) with labels (B,), smoothed by OPTIM.LABEL_SMOOTHING."""
        self.honoured.add(LABEL_SMOOTHING)
        return F.cross_entropy(logits, labels, reduction=reduction, label_smoothing=self.cfg.OPTIM.LABEL_SMOOTHING)

    def note(self, line: str) -> None:
        """Print a line for the log of the run; nothing where the trainer only predicts."""
        if not self.predicts_only:
            print(line)

    def initial_context(self, towers: Towers) -> Tensor:
        """The start of a context of text prompts, (n_ctx, W): the vectors of the words CTX_INIT of the method's config,
        else N_CTX vectors from N(0, 0.02^2). W is the width of the text tower."""
        node, key = self.node, f"TRAINER.{type(self).__name__.upper()}.N_CTX"
        if node.get("CTX_INIT", ""):
            words = towers.text.embed_words(node.CTX_INIT)
            if node.N_CTX != len(words):
                self.overruled[key] = f"the {len(words)} tokens of CTX_INIT are the context"
            return words
        if node.N_CTX < 1:
            raise InputError(f"{key} must be at least 1, not {node.N_CTX}")
        return torch.randn(node.N_CTX, towers.text.width) * 0.02

    def own_templates(self) -> list[str]:
        """DATASET.TEMPLATES, a list that may be empty. For a method that never asks, the run notes that they do
        nothing."""
        self.templates_taken = True
        return list(self.cfg.DATASET.TEMPLATES)

    def frozen_templates(self, *published: str) -> list[str]:
        """The templates of a method's frozen prompts: DATASET.TEMPLATES if given, else the `published` ones."""
        return self.own_templates() or list(published)

    def step_rng(self, purpose: str) -> random.Random:
        """A generator that is a function of (SEED, epoch, batch, purpose)."""
        return random.Random(derive_seed(purpose, self.cfg.SEED, self.epoch, self.batch_idx))
