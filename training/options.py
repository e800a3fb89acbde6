"""Options of the training step that PromptTrainers alone have, all off by default."""
from typing import Any

from dassl.utils import InputError

LABEL_SMOOTHING, CLIP_GRAD_NORM = "OPTIM.LABEL_SMOOTHING", "OPTIM.CLIP_GRAD_NORM"
IGNORED_BY = {  # a training step that takes no note of the option
    LABEL_SMOOTHING: "computes its loss without self.cross_entropy",
    CLIP_GRAD_NORM: "makes its steps without apply_gradients",
}
TRAINING_OPTIONS = (*IGNORED_BY, "TRAIN.PATIENCE", "OPTIM.STEPS", "OPTIM.STEPS_PER_SHOT")


def options_set(cfg: Any) -> list[str]:
    """Those of TRAINING_OPTIONS that a config sets."""
    return [key for key in TRAINING_OPTIONS if cfg[key.split(".")[0]][key.split(".")[1]]]


def require_honoured(cfg: Any, honoured: set[str], method: str) -> None:
    """Raise InputError after a training step of a method that took no note of an option that is set.

    honoured: the options that it took note of."""
    for key, how in IGNORED_BY.items():
        if key not in honoured and key in options_set(cfg):
            raise InputError(f"{key} has no effect: {method} {how}; leave the option out")
