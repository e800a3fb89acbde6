"""Batches on their way from the loader to a training step. A batch is {name: tensor (B, ...), list of B things, or list
of such tensors, which are several views of the images}."""
from collections.abc import Mapping
from typing import Any

import torch

from dassl.utils import all_gather
from dassl.utils.distributed import Ranks

Batch = dict[str, Any]


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors, lists of tensors, and dicts with them, on the device; other things as they are."""
    if isinstance(value, dict):
        return {key: to_device(entry, device) for key, entry in value.items()}
    if isinstance(value, list) and value and torch.is_tensor(value[0]):
        return [to_device(entry, device) for entry in value]
    return value.to(device, non_blocking=True) if torch.is_tensor(value) else value


def numbers_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """{name: number} of numbers and of tensors with one number, which are fetched from their device together."""
    tensors = [value for value in summary.values() if torch.is_tensor(value)]
    if len({tensor.dtype for tensor in tensors}) == 1:
        fetched = iter(torch.stack([tensor.detach().squeeze() for tensor in tensors]).tolist())
    else:
        fetched = iter([tensor.item() for tensor in tensors])
    return {name: next(fetched) if torch.is_tensor(value) else value for name, value in summary.items()}


def all_gather_batch(batch: Batch, ranks: Ranks, size: int) -> Batch:
    """The batch of `size` images that one process would have read, from the parts that the ranks have read."""
    share = ranks.share(size)
    own = share.stop - share.start  # a rank without a share has read an image that does not count

    def gathered(value):
        if torch.is_tensor(value):
            return ranks.all_gather(value[:own], size)
        if value and torch.is_tensor(value[0]):
            return [gathered(view) for view in value]
        return [entry for part in all_gather(value[:own]) for entry in part]

    return {key: gathered(value) for key, value in batch.items()}
