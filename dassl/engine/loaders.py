"""Loaders of a trainer: those it trains on, their workers, and a pass that several processes share."""
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from dassl.data.samplers import EpochBatchSampler
from dassl.utils import all_gather, rank, share_of, world_size

SizeOf = Callable[[int], int | None]  # number of a step -> images of all ranks in it; None: each rank has them all


def train_loaders(trainer: Any) -> list[Any]:
    """A trainer's loaders of training images, labelled and unlabelled, that there are."""
    loaders = getattr(trainer, "train_loader_x", None), getattr(trainer, "train_loader_u", None)
    return [loader for loader in loaders if loader is not None]


def end_workers(loader: Any) -> None:
    """End the workers that a loader keeps between epochs; its next pass starts new ones. Left to the garbage collector
    they are waited for in vain, five seconds each."""
    if getattr(loader, "source", None) is not None:
        loader.source.end_workers()
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None and hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
        loader._iterator = None


@contextlib.contextmanager
def divided(loader: Any, divide: bool = True) -> Iterator[SizeOf]:
    """Within it a rank's pass over a loader for evaluation gives it batches of its own, of the loader's size; yields
    number of such a step -> how many images all ranks have in it. A loader with batches of another kind, or with
    `divide` False, gives all of them to every rank."""
    batches = loader.batch_sampler
    if world_size() == 1 or not divide or not isinstance(batches, EpochBatchSampler):
        yield lambda number: None
        return
    size = batches.batch_size
    batches.batch_size = size * world_size()
    batches.divide(rank(), world_size())
    try:
        yield batches.size_of
    finally:
        batches.batch_size = size
        batches.divide(0, 1)


def gathered_outputs(output: Any, label: Any, more: dict[str, Any], size: int | None) -> list[tuple[Any, Any, dict]]:
    """A step's (logits, labels, more about the images) of each rank in turn, which is the order of the images.

    size: how many images all ranks have in the step; None: what is given already is all."""
    if size is None:
        return [(output, label, more)]
    share = share_of(size, rank(), world_size())
    own = share.stop - share.start  # a rank without images has computed one, which does not count
    return [part for part in all_gather((output[:own].cpu(), label[:own].cpu(), {k: v[:own] for k, v in more.items()}))
            if len(part[1])]
