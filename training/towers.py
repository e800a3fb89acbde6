"""The frozen CLIP of a run, loaded once and set up for its device and memory."""
from typing import Any

import torch

from dassl.utils import InputError, isolated_rng, local_world_size, main_process_first
from dassl.utils.distributed import Ranks
from prompting.backbone import load_clip, weights_digest
from prompting.memory import activation_budget
from prompting.precision import Precision
from prompting.towers import Towers


def loaded_clip(name: str, clips: dict[str, Any]) -> Any:
    """The CLIP of a name or file, from `clips`, {name: loaded CLIP}, or loaded into it."""
    known = getattr(clips.get(name), "weights_digest", None)
    if name not in clips or known and known != weights_digest(name):  # the file may be another by now
        with isolated_rng(0):  # loading draws numbers, and a run that is handed a loaded CLIP does not load
            clips[name] = main_process_first(lambda: load_clip(name))
    return clips[name]


def build_towers(clip_model: Any, cfg: Any, device: torch.device, precision: Precision, ranks: Ranks) -> Towers:
    """The promptable towers of a CLIP. Raises InputError where they take images of another size than INPUT.SIZE."""
    towers = Towers(clip_model, device, half=precision.half, ranks=ranks)
    towers.text.activation_bytes = cfg.TRAIN.TEXT_MEMORY_MB * 2**20 or activation_budget(device, local_world_size())
    size = towers.resolution
    if tuple(cfg.INPUT.SIZE) != (size, size):
        raise InputError(f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)}, but the backbone {cfg.MODEL.BACKBONE.NAME} takes "
                         f"images of {size} x {size}; set INPUT.SIZE \"({size},{size})\", or leave it out")
    return towers
