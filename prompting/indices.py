"""Index tensors that many passes take: each is copied to its device once, so that later passes wait for no copy."""
import functools

import torch
from torch import Tensor


@functools.lru_cache(maxsize=64)
def index_on(places: tuple[int, ...], device: torch.device) -> Tensor:
    """Places, (n,), as an index on a device."""
    with torch.inference_mode(False):  # a later pass may want gradients
        return torch.tensor(places, device=device)
