"""Which loaders of a trainer give frozen features, and the features of batches that come without."""
from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Any

import PIL
import torch
from torch import Tensor, nn

from dassl.data.data_manager import DatasetWrapper, SeededDataset
from dassl.data.loader import EpochLoader
from dassl.data.samplers import EpochBatchSampler, EpochSampler
from dassl.engine.part import OfTrainer
from dassl.engine.trainer_base import TrainerBase
from dassl.utils import InputError, last_line, rank
from prompting.backbone import image_digest
from prompting.blocks import has_hooks
from prompting.errors import PromptingError
from prompting.towers import Towers
from training.batches import Batch
from training.method import Method
from training.store.entries import Space, digest_of
from training.store.folder import store_folder
from training.store.pictures import Pictures
from training.store.source import Request, Source, Supply
from training.store.store import Store
from training.store.transforms import described, draws

if TYPE_CHECKING:
    from training.prompt_trainer import PromptTrainer

# What errors of tensors with other dimensions than expected say, and those of memory or of other processes do not.
OF_SHAPES = re.compile(r"dimension|shape|unpack|dims|indices|[34]-?D\b|channels|size of tensor", re.IGNORECASE)


class Feed(OfTrainer["PromptTrainer"]):
    """The frozen features of a trainer's batches."""

    _attached = False  # whether any loader gives them
    _versions: list[Hashable]  # of the tower when the first loader was attached

    # ---- batches that come without ----
    def with_frozen(self, batch: Batch) -> Batch:
        """A training batch, or one of an evaluation, with "frozen" (B, E) where the method has `frozen_features`."""
        trainer = self.trainer
        if not trainer.frozen_features:
            return batch
        if "frozen" in batch:
            trainer.towers.passes.add(images=len(batch["frozen"]))
            return batch
        images = batch["img"][-1] if isinstance(batch["img"], list) else batch["img"]
        with torch.no_grad(), trainer.precision.autocast():
            return {**batch, "frozen": trainer.frozen_towers.encode_image(images)}

    @contextlib.contextmanager
    def explained(self, batch: Batch) -> Iterator[None]:
        """Context of what a method computes of a batch: an error that may come from what the batch holds is told so.

        Raises InputError where "frozen" is missing, and where features stand in the place of pictures."""
        name = type(self.trainer).__name__
        try:
            yield
        except KeyError as error:
            if error.args != ("frozen",) or "frozen" in batch:
                raise
            raise InputError(f"{name} looks for batch[\"frozen\"], the frozen image features; with "
                             "frozen_features = True it is given them") from error
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            images = batch["img"][0] if isinstance(batch["img"], list) else batch["img"]
            told = isinstance(error, (InputError, PromptingError))
            if told or not OF_SHAPES.search(str(error)) or not torch.is_tensor(images) or images.dim() != 2:
                raise
            raise InputError(f"{name} says frozen_images, so that batch[\"img\"] holds frozen features "
                             f"{tuple(images.shape)} and no pictures, and then fails ({last_line(str(error))}); hand "
                             "them to towers.encode_image and to nothing else, or leave the statement out") from error

    # ---- what it has cost ----
    @property
    def taken(self) -> int | None:
        """How many pictures' features came from the store; None where no loader gives any."""
        return self.supply.taken if self._attached else None

    @property
    def computed(self) -> int | None:
        """How many pictures were encoded for it, by this process."""
        return self.supply.computed if self._attached else None

    # ---- loaders ----
    def attach_all(self) -> None:
        """`attach` the loaders that the trainer has. Raises InputError for statements that are neither True nor False.
        """
        for statement in ("frozen_images", "frozen_features"):
            if type(said := getattr(self.trainer, statement)) is not bool:
                raise InputError(f"{type(self.trainer).__name__}: {statement} must be True or False, not {said!r}")
        self.attach(self.trainer.train_loader_x, training=True)
        for loader in (self.trainer.val_loader, self.trainer.test_loader):
            self.attach(loader, training=False)

    def attach(self, loader: Any, training: bool) -> Any:
        """Let a loader give frozen features where its trainer asks for them and they can be known. Returns the loader.

        training: whether it gives images to learn from; else those of an evaluation."""
        trainer: PromptTrainer = self.trainer
        cfg = trainer.cfg
        in_place = bool(vars(type(trainer)).get("frozen_images"))
        beside = not in_place and (trainer.frozen_features if training else self._predicts_with_frozen)
        if not cfg.STORE.USE or not (in_place or beside) or not is_plain(loader):
            return loader
        if not training and type(trainer).predict is not Method.predict:  # its draws follow from what it is shown
            return loader
        pictures = loader.dataset.dataset
        steps = None if pictures.transform is None else described(pictures.transform)
        if steps is not None and self._weights and not (in_place and pictures.return_img0):
            drawn, views = draws(steps), list(range(pictures.k_tfm))
            views = views[-1:] if beside else views
            space = Space(self._facts(steps, [pictures.k_tfm, views] if drawn and pictures.k_tfm > 1 else []),
                          self.trainer.backbone_facts["name"])
            request = Request(pictures.k_tfm, views, beside, drawn, space, cfg.DATASET.NAME)
            loader.source, self._attached = Source(loader, request, self.supply), True
        return loader

    @property
    def _predicts_with_frozen(self) -> bool:
        """Whether the model takes frozen features beside images."""
        trainer = self.trainer
        return trainer.frozen_features and "frozen" in inspect.signature(trainer.model.forward).parameters

    @functools.cached_property
    def _weights(self) -> str | None:
        """What tells the image tower from others; None where nothing does."""
        return image_digest(self.trainer.clip_model)

    def _facts(self, steps: list[str], views: list[Any]) -> dict[str, Any]:
        """What determines the features of a picture that goes through some steps: plain data.

        views: [how many are made, which are encoded], where each is another one and there are several."""
        import torchvision  # slow to import

        trainer = self.trainer
        known = trainer.backbone_facts
        return {"weights": self._weights, "modules": digest_of(repr(trainer.clip_model.visual)),
                "activation": known["activation"], "heads": known["heads"],
                "size": trainer.towers.resolution, "precision": trainer.precision.name, "device": trainer.device.type,
                "float32": torch.get_float32_matmul_precision(), "tf32": torch.backends.cudnn.allow_tf32,
                "transform": steps, "views": views, "exif": bool(trainer.cfg.INPUT.EXIF),
                "versions": [torch.__version__, torchvision.__version__, PIL.__version__]}

    @functools.cached_property
    def supply(self) -> Supply:
        """What all loaders of the trainer share."""
        trainer = self.trainer
        folder = store_folder(trainer.cfg)
        store = Store(folder, trainer.cfg.STORE.MB) if folder else None
        self._versions = versions_of(self._towers.model.visual)
        return Supply(self._encode, trainer.precision.dtype, store, Pictures(folder, notes=rank() == 0),
                      self._stop_if_asked, TrainerBase.progress.of(trainer).computing, self._require_unchanged,
                      trainer.clip_model.text_projection.shape[1])

    def _stop_if_asked(self) -> None:
        self.trainer.stop_if_asked()

    def _require_unchanged(self) -> None:
        """Raise InputError where the tower is no longer the one that the store knows."""
        if self._versions != versions_of(self._towers.model.visual):
            raise InputError(f"{type(self.trainer).__name__} changes the frozen CLIP in a training, whose features "
                             "would then be other ones for all runs; with trains_towers = True it has a copy to change")

    @functools.cached_property
    def _towers(self) -> Towers:
        """The frozen towers, of which a process computes each piece by itself, and counts none."""
        trainer = self.trainer
        return Towers(trainer.frozen_towers.model, trainer.device, half=trainer.precision.half)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> frozen features (B, E)."""
        self._require_unchanged()
        with self.trainer.precision.autocast():
            return self._towers.encode_image(images.to(self.trainer.device, non_blocking=True))


def versions_of(module: nn.Module) -> list[Hashable]:
    """What tells whether a tensor of a module was replaced or has changed in place, or a module in it was replaced or
    has got a hook."""
    return [*((id(part), type(part), has_hooks(part)) for part in module.modules()),
            *((id(tensor), tensor._version) for tensor in (*module.parameters(), *module.buffers()))]


def is_plain(loader: Any) -> bool:
    """Whether a loader, its order and its items are this project's own."""
    return (type(loader) is EpochLoader and type(loader.dataset) is SeededDataset
            and type(loader.dataset.dataset) is DatasetWrapper and loader.dataset.dataset.test_views is None
            and type(loader.batch_sampler) is EpochBatchSampler
            and isinstance(loader.batch_sampler.sampler, EpochSampler)
            and all(getattr(type(loader.batch_sampler.sampler), name) is getattr(EpochSampler, name)
                    for name in ("__iter__", "set_epoch", "canonical", "_rng")))
