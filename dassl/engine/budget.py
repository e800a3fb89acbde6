"""What a training spends. Methods that see the same pictures do not see equally many."""
import contextlib
import re
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

COUNTS = ("updates", "images", "views", "image_passes", "text_passes")


class Budget:
    """The counts of a training, from the start of its loop to its end. They are counted, not computed from settings.

    updates: optimizer steps that were made, those of all optimizers. A batch whose gradient overflows makes none; a
        batch of MetaPrompt makes two, one of ProMetaR three (two of the prompts, one of the gates). Inner steps to
        virtual prompts, which no optimizer makes, are none; what they cost is in the passes. (The inner steps of
        MetaPrompt's `VARIANT: released` are steps of its optimizer, and are counted.)
    images: training images that the loaders gave, repeats counted.
    views: augmented pictures of these images that the loaders made: two for each image where a method compares two.
    image_passes, text_passes: images and prompts that went forward through the image and the text tower, learned or
        frozen, as `prompting.passes.Passes` counts them: a class whose prompt is encoded anew for each of 4 images is 4
        text passes. Frozen sentences, which are encoded once and kept, are not among them.

    Evaluation and validation count nothing, during the training either. The counts are those of the whole training,
    also where it was stopped and went on, and those of one process, however many make the run. None is what cannot be
    seen: the passes of a trainer with towers of its own, the images of a loader of another kind, the updates of a
    foreign trainer that learns without an optimizer.

    Attributes:
        passes: the towers' counter, by whoever builds them.
        counting: whether what happens now counts.
    """

    def __init__(self):
        self.updates = 0
        self.images: int | None = 0
        self.views: int | None = 0
        self.passes: Any = None
        self.counting = self.begun = self.went_on = False
        self.lost = False  # a part of the training was made by a run that kept no counts

    # ---- counting ----
    @contextlib.contextmanager
    def of_training(self, loaders_now):
        """Within it all is counted. loaders_now: gives the loaders of training images; a trainer that has others in the
        end has drawn images that were not seen."""
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
    def paused(self):
        """Within it, in an evaluation, nothing is counted."""
        before = self.counting
        self._count(False)
        try:
            yield
        finally:
            self._count(before)

    def watch(self, loader):
        """Count the images that a loader (`dassl.data.data_manager.EpochLoader`) gives."""
        loader.on_batch = self._drawn

    def _count(self, counting):
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
    def counts(self):
        """{name: number or None} so far, for a checkpoint; None where a part of the training is not known."""
        if self.lost:
            return None
        passes = self.passes
        return {"updates": self.updates, "images": self.images, "views": self.views,
                "image_passes": passes.images if passes else None, "text_passes": passes.texts if passes else None}

    def go_on(self, counts):
        """Go on from the counts of a checkpoint; from then on nothing is known where it has none."""
        self.went_on = True
        self.lost = not isinstance(counts, dict) or set(counts) != set(COUNTS) or counts["updates"] is None
        if self.lost:
            return
        self.updates, self.images, self.views = counts["updates"], counts["images"], counts["views"]
        if self.passes is not None:
            self.passes.images, self.passes.texts = counts["image_passes"], counts["text_passes"]

    def require_all(self, resumed):
        """Before the first step: a training that was `resumed` by a trainer's own code has lost its counts."""
        self.lost = self.lost or resumed and not self.went_on

    def facts(self):
        """The counts of a training that is over; None where no training was made, or not all of it was counted."""
        found = self.counts() if self.begun else None
        if found and self.passes is None and not self.updates and self.images != 0:
            found["updates"] = None
        if found and self.updates and self.images == 0:
            found["images"] = found["views"] = None
        return found


def views_of(batch):
    """Augmented pictures of each image of a batch as `DatasetWrapper` makes it; None for another kind of batch."""
    if not isinstance(batch, dict):
        return None
    pictures = [value for key, value in batch.items() if re.fullmatch(r"img(|[1-9]\d*)", str(key))]
    return sum(len(value) if isinstance(value, (list, tuple)) else 1 for value in pictures) or None
