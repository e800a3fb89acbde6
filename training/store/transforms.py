"""What becomes of a picture, in words that tell two transforms apart."""
from __future__ import annotations

import enum
from typing import Any

MODULES = ("torchvision.transforms.transforms", "torchvision.transforms.autoaugment")
# Those of torchvision's that draw nothing. Every other one may draw.
STILL = {"Resize", "CenterCrop", "ToTensor", "Normalize", "Pad", "Grayscale", "PILToTensor", "ConvertImageDtype"}
NORM = "instance_norm"


def described(transform: Any) -> list[str] | None:
    """The steps of a transform with all their parameters; None for one that cannot be told from others, such as a
    function of a plugin's."""
    from torchvision.transforms import Compose  # slow to import

    from dassl.data.transforms import FusedCompose

    composed = type(transform) in (Compose, FusedCompose)
    steps = [_step(step) for step in (transform.transforms if composed else [transform])]
    return None if None in steps else [step for step in steps if step is not None]


def draws(steps: list[str]) -> bool:
    """Whether a transform, as `described`, may give another picture each time."""
    return any(step.partition("(")[0] not in {*STILL, NORM} for step in steps)


def _step(step: Any) -> str | None:
    """A step by its class and its attributes: the `repr` of some of torchvision's rounds numbers. None for a class that
    is neither torchvision's nor this project's."""
    from torchvision.transforms import Compose, Lambda

    from dassl.data.transforms.fused import FusedCompose
    from dassl.data.transforms.transforms import GaussianNoise, instance_norm

    kind: type = Compose if type(step) is FusedCompose else type(step)  # of the same bits
    if kind is Lambda:
        return NORM if step.lambd is instance_norm else None
    if kind is not GaussianNoise and kind.__module__ not in MODULES:
        return None
    # A torch module has its parts, such as a ModuleList of transforms, in dicts of its own.
    inner = getattr(step, "_modules", {})
    known = [(name, _value(value)) for name, value in sorted([*vars(step).items(), *inner.items()])
             if not name.startswith("_") and name != "training"]
    if any(value is None for _, value in known):
        return None
    return f"{kind.__name__}({', '.join(f'{name}={value}' for name, value in known)})"


def _value(value: Any) -> str | None:
    """A parameter in words; None for one that has none."""
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, enum.Enum):
        return repr(value)
    if isinstance(value, (list, tuple)):
        parts = [_value(part) for part in value]
        return None if None in parts else f"[{', '.join(part for part in parts if part is not None)}]"
    return _step(value)
