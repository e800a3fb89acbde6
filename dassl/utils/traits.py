"""What a trainer class says of itself."""
from typing import Any


def is_class_bound(trainer: Any, cfg: Any) -> bool:
    """Whether what a trainer learns with a config belongs to the training classes and cannot score new ones.

    Args:
        trainer: a trainer class, or a trainer. Its `class_bound` is a class method that is given the config, a plain
            attribute, or, as in older files, a property that asks the trainer's `cfg` only; without one it is False.
        cfg: the config.
    """
    said = getattr(trainer, "class_bound", False)
    if isinstance(said, property):  # of a class, which has no config to ask
        bare = trainer.__new__(trainer)
        bare.cfg = cfg
        said = bare.class_bound
    return bool(said(cfg)) if callable(said) else bool(said)
