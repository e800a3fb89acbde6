"""Which loaders of a trainer give frozen features, and the features of batches that come without."""
from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

import PIL
import torch
import torchvision
from torch import Tensor, nn

from dassl.data.data_manager import DatasetWrapper, SeededDataset
from dassl.data.loader import EpochLoader
from dassl.data.samplers import EpochBatchSampler, EpochSampler
from dassl.engine.part import OfTrainer
from dassl.engine.trainer_base import TrainerBase
from dassl.utils import InputError, rank
from prompting.towers import Towers
from training.batches import Batch
from training.method import Method
from training.store.entries import Space
from training.store.folder import store_folder
from training.store.pictures import Pictures
from training.store.source import Request, Source, Supply
from training.store.store import Store
from training.store.transforms import described, draws

if TYPE_CHECKING:
    from training.prompt_trainer import PromptTrainer


class Feed(OfTrainer["PromptTrainer"]):
    """The frozen features of a trainer's batches."""

    _attached = False  # whether any loader gives them
    _versions: list[tuple[int, int]]  # of the tower's tensors when the first loader was attached

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
        """`attach` the loaders that the trainer has."""
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
        if steps is not None and not (in_place and pictures.return_img0):
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

    def _facts(self, steps: list[str], views: list[Any]) -> dict[str, Any]:
        """What determines the features of a picture that goes through some steps: plain data.

        views: [how many are made, which are encoded], where each is another one and there are several."""
        trainer = self.trainer
        known = trainer.backbone_facts
        return {"weights": known["digest"], "activation": known["activation"], "heads": known["heads"],
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
                      self._stop_if_asked, TrainerBase.progress.of(trainer).computing)

    def _stop_if_asked(self) -> None:
        self.trainer.stop_if_asked()

    @functools.cached_property
    def _towers(self) -> Towers:
        """The frozen towers, of which a process computes each piece by itself, and counts none."""
        trainer = self.trainer
        return Towers(trainer.frozen_towers.model, trainer.device, half=trainer.precision.half)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> frozen features (B, E).

        Raises InputError where the tower's tensors are no longer those that the store knows it by."""
        if self._versions != versions_of(self._towers.model.visual):
            raise InputError(f"{type(self.trainer).__name__} changes the frozen CLIP in a training, whose features "
                             "would then be other ones for all runs; with trains_towers = True it has a copy to change")
        with self.trainer.precision.autocast():
            return self._towers.encode_image(images.to(self.trainer.device, non_blocking=True))


def versions_of(module: nn.Module) -> list[tuple[int, int]]:
    """What tells whether a tensor of a module was replaced or has changed in place."""
    return [(id(tensor), tensor._version) for tensor in (*module.parameters(), *module.buffers())]


def is_plain(loader: Any) -> bool:
    """Whether a loader, its order and its items are this project's own."""
    return (type(loader) is EpochLoader and type(loader.dataset) is SeededDataset
            and type(loader.dataset.dataset) is DatasetWrapper and loader.dataset.dataset.test_views is None
            and type(loader.batch_sampler) is EpochBatchSampler
            and isinstance(loader.batch_sampler.sampler, EpochSampler))
