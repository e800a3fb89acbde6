"""Which loaders of a trainer give frozen features, and the features of batches that come without."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dassl.engine.part import OfTrainer
from training.batches import Batch

if TYPE_CHECKING:
    from training.prompt_trainer import PromptTrainer


class Feed(OfTrainer["PromptTrainer"]):
    """The frozen features of a trainer's batches."""

    def attach(self, loader: Any) -> Any:
        """Let a loader give frozen features where its trainer asks for them and they can be known. Returns the loader.
        """
        return loader

    def with_frozen(self, batch: Batch) -> Batch:
        """A batch of a method with `frozen_features`, with them: "frozen" (B, E), or a list where "img" is one."""
        trainer = self.trainer
        if not trainer.frozen_features:
            return batch
        if "frozen" in batch:
            views = batch["frozen"] if isinstance(batch["frozen"], list) else [batch["frozen"]]
            trainer.towers.passes.add(images=sum(map(len, views)))
            return batch
        return {**batch, "frozen": self._encoded(batch["img"])}

    @torch.no_grad()
    def _encoded(self, images: Any) -> Tensor | list[Any]:
        if isinstance(images, list):
            return [self._encoded(view) for view in images]
        trainer = self.trainer
        with trainer.precision.autocast():
            return trainer.frozen_towers.encode_image(images)
