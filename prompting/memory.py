"""How much memory a run may use for what it keeps for its backward passes."""
from __future__ import annotations

import psutil
import torch


def activation_budget(device: torch.device, processes: int = 1) -> int:
    """Half of the memory that is free now, in bytes; on a CPU `processes` share it.

    Rounded down to a power of two, so that runs on one machine mostly agree on it: what depends on it (chunks of
    classes) changes rounding."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = psutil.virtual_memory().available // processes
    return 1 << max(0, (free // 2).bit_length() - 1)
