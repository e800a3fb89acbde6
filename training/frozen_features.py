"""Frozen image features of a run's few-shot and validation images, for methods that use them all at once."""
from collections.abc import Iterable
from functools import cached_property

import torch

from dassl.data.data_manager import build_data_loader
from dassl.data.overlap import ImageSet
from dassl.metrics import require_finite
from training.batches import Batch
from training.prompt_trainer import PromptTrainer


class FrozenFeatures(PromptTrainer):
    """A method that keeps features of images, or chooses settings by them. Test images are never among them."""

    def few_shot_batches(self, number: int) -> Iterable[Batch]:
        """The training images in their order, with the augmentation that has this number."""
        from dassl.data.transforms import build_transform  # slow to import

        cfg = self.cfg
        loader = build_data_loader(cfg, data_source=self.dm.dataset.train_x, tfm=build_transform(cfg, is_train=True),
                                   batch_size=cfg.DATALOADER.TEST.BATCH_SIZE, is_train=False)
        loader.batch_sampler.set_epoch(number)
        self._budget.watch(loader)
        return self._feed.attach(loader, training=True)

    @torch.no_grad()
    def image_features(self, batches: Iterable[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
        """Frozen features (N, E), not normalised, and labels (N,) of the N images of some batches.

        Raises:
            NonFiniteError: a feature is NaN or infinite; the message names the image's file."""
        features, labels = [], []
        for batch in batches:
            images, label = self.parse_batch_test(batch)
            with self.precision.autocast():
                features.append(self.model.encode_images(images).float())
            require_finite(features[-1], batch.get("impath", ()), "features")
            labels.append(label)
        return torch.cat(features), torch.cat(labels)

    @cached_property
    def validation(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(features (N, E), labels (N,)) of the N validation images; None where some of them are test or training
        images, too."""
        dataset = self.dm.dataset
        others = ImageSet(item.impath for item in [*dataset.test, *dataset.train_x])
        shared = others.common([item.impath for item in dataset.val or ()])
        if shared.by_content:
            print(f"Warning: {shared.by_content} of {shared.of} validation images have the same content as test or "
                  f"training images, first {shared.first_copy[0]} (as {shared.first_copy[1]})")
        if self.val_loader is None or shared.by_path:
            print(f"Note: {self.cfg.DATASET.NAME} has no validation images apart from its test and training images: "
                  f"{type(self).__name__} keeps {'its last epoch and ' if self.trains else ''}its initial settings")
            return None
        with self._budget.paused():
            return self.image_features(self.val_loader)
