"""Batches of a trainer's own loaders, and the answers of a trainer to them."""
import torch

from dassl.utils import isolated_rng
from training import PromptTrainer


def drawn(loader, numbers):
    """A batch of a loader with the pictures of these numbers, read and drawn in this order."""
    return loader.collate_fn([loader.dataset[(number, 0, place)] for place, number in enumerate(numbers)])


def rows(batch, chosen):
    """The images of a batch that a slice chooses, with all that belongs to them."""
    return {key: [view[chosen] for view in value] if isinstance(value, list) and torch.is_tensor(value[0])
            else value[chosen] for key, value in batch.items()}


def split(batch, sizes):
    """A batch in pieces of these sizes."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [rows(batch, slice(end - size, end)) for end, size in zip(ends, sizes)]


def logits(trainer, *batches, seed=0):
    """Logits (B, n_cls) of some batches as one evaluation gives them. The generators start from `seed`, so that noise
    in evaluation shows where two seeds are compared, and only there."""
    trainer.set_model_mode("train")
    trainer.set_model_mode("eval")  # what was remembered from an evaluation before is dropped
    with isolated_rng(seed), torch.no_grad():
        if not isinstance(trainer, PromptTrainer):
            return torch.cat([trainer.model_inference(batch["img"]).float() for batch in batches])
        with trainer.predicting():
            return torch.cat([trainer.logits_of(batch).float() for batch in batches])
