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
        if not self.trainer.frozen_features:
            return batch
        views: Any = batch.get("frozen", batch["img"])  # features that are given count as passes, too
        frozen = ([self._encoded(view) if self._needed(number) else None for number, view in enumerate(views)]
                  if isinstance(views, list) else self._encoded(views))
        return {**batch, "frozen": frozen}

    def _needed(self, view: int) -> bool:
        """Whether the method needs the frozen features of the view of this number."""
        wanted = self.trainer.frozen_features
        return wanted is True or isinstance(wanted, tuple) and view in wanted

    @torch.no_grad()
    def _encoded(self, images: Tensor) -> Tensor:
        trainer = self.trainer
        with trainer.precision.autocast():
            return trainer.frozen_towers.encode_image(images)
