"""What a training spends: optimizer steps, images, passes through the towers."""
import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

COUNTS = ("updates", "images", "views", "image_passes", "text_passes")


class Budget:
    """The counts of a training, from the start of its loop to its end. They are counted, not computed from settings.

    updates: optimizer steps, summed over all optimizers. A batch whose gradient overflows makes none. One batch of
        MetaPrompt makes two, one batch of ProMetaR three (two of the prompts, one of the gates). Inner steps on
        virtual prompts are not counted, as no optimizer makes them; their cost is in the passes. (With MetaPrompt's
        `VARIANT: released` its optimizer makes the inner steps, and they are counted.)
    images: training images that the loaders gave; an image that comes twice counts twice.
    views: augmented pictures of these images that the loaders made: two per image where a method compares two.
    image_passes, text_passes: images and prompts that went forward through the image and the text tower, learned or
        frozen, as `prompting.passes.Passes` counts them: a prompt that is encoded anew for each of 4 images is 4 text
        passes. Frozen sentences are encoded once and kept, and are not counted.

    Evaluation and validation are not counted. The counts are those of the whole training, also where it was stopped
    and went on, and those of one process, however many processes make the run. A count is None where it cannot be
    known: the passes of a trainer with towers of its own, the images of a loader of another kind, the updates of a
    foreign trainer that learns without an optimizer.

    Attributes:
        passes: the counter of the towers, set by whoever builds them; None before.
        counting: whether what happens now is counted.
    """

    def __init__(self) -> None:
        self.updates = 0
        self.images: int | None = 0
        self.views: int | None = 0
        self.passes: Any = None
        self.counting = self.begun = self.went_on = False
        self.lost = False  # a part of the training was made by a run that kept no counts

    # ---- counting ----
    @contextlib.contextmanager
    def of_training(self, loaders_now: Callable[[], list[Any]]) -> Iterator[None]:
        """Within it everything is counted.

        loaders_now: gives the loaders of training images. Where they are others at the end, images were drawn that
            nobody counted."""
        if self.begun:  # another training of the same trainer
            self.updates = self.images = self.views = 0
            self.went_on = self.lost = False
            if self.passes is not None:
                self.passes.images = self.passes.texts = 0
        self.begun, loaders = True, loaders_now()
        began_with = list(loaders)
        if not all(hasattr(loader, "on_batch") for loader in loaders):
            self.images, self.views, loaders = None, None, []
        for loader in loaders:
            self.watch(loader)
        handle = register_optimizer_step_post_hook(self._updated)
        self._count(True)
        try:
            yield
        finally:
            self._count(False)
            handle.remove()
            if [id(loader) for loader in loaders_now()] != [id(loader) for loader in began_with]:
                self.images = self.views = None
            for loader in loaders:
                loader.on_batch = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within it nothing is counted, as in an evaluation."""
        before = self.counting
        self._count(False)
        try:
            yield
        finally:
            self._count(before)

    def watch(self, loader: Any) -> None:
        """Count the images that a loader (`dassl.data.data_manager.EpochLoader`) gives."""
        loader.on_batch = self._drawn

    def _count(self, counting: bool) -> None:
        self.counting = counting
        if self.passes is not None:
            self.passes.counting = counting

    def _updated(self, optimizer, args, kwargs):
        if self.counting:
            self.updates += 1

    def _drawn(self, batch, size):
        if not self.counting or self.images is None:
            return
        views = views_of(batch)
        self.images += size
        self.views = None if None in (views, self.views) else self.views + views * size

    # ---- keeping ----
    def counts(self) -> dict[str, int | None] | None:
        """{name: number or None} so far, for a checkpoint; None where a part of the training is not known."""
        if self.lost:
            return None
        passes = self.passes
        return {"updates": self.updates, "images": self.images, "views": self.views,
                "image_passes": passes.images if passes else None, "text_passes": passes.texts if passes else None}

    def go_on(self, counts: Any) -> None:
        """Go on from the counts of a checkpoint. Where it has none, no count of this training is known."""
        self.went_on = True
        self.lost = not isinstance(counts, dict) or set(counts) != set(COUNTS) or counts["updates"] is None
        if self.lost:
            return
        self.updates, self.images, self.views = counts["updates"], counts["images"], counts["views"]
        if self.passes is not None:
            self.passes.images, self.passes.texts = counts["image_passes"], counts["text_passes"]

    def require_all(self, resumed: bool) -> None:
        """Called before the first step. A training that was `resumed` by a trainer's own code has lost its counts."""
        self.lost = self.lost or resumed and not self.went_on

    def facts(self) -> dict[str, int | None] | None:
        """The counts of a training that is over; None where no training was made, or not all of it was counted."""
        found = self.counts() if self.begun else None
        if found and self.passes is None and not self.updates and self.images != 0:
            found["updates"] = None
        if found and self.updates and self.images == 0:
            found["images"] = found["views"] = None
        return found


def views_of(batch: Any) -> int | None:
    """Augmented pictures per image of a batch that `DatasetWrapper` made; None for another kind of batch."""
    if not isinstance(batch, dict):
        return None
    pictures = [value for key, value in batch.items() if re.fullmatch(r"img(|[1-9]\d*)", str(key))]
    return sum(len(value) if isinstance(value, (list, tuple)) else 1 for value in pictures) or None
