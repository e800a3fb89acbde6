"""How large the images are that a CLIP takes, found without loading it."""
from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import torch
from safetensors import safe_open

from prompting.published import PUBLISHED
from prompting.weights import SHIPPED, published_urls, sha256

Shapes = Mapping[str, Sequence[int]]

_SIZES: dict[tuple[int, ...], int | None] = {}  # (disk, file, size, times of the last change): pixels per side


def image_size(name: str) -> int | None:
    """Pixels per side of the images that a backbone takes.

    Args:
        name: what `load_clip` takes.
    Returns:
        the number; None for what is no CLIP, or none that can be read: loading it says why.
    """
    path = SHIPPED.get(name, name)
    if not os.path.isfile(path):
        return PUBLISHED[name].resolution if name in PUBLISHED else None
    status = os.stat(path)
    key = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    if key not in _SIZES:
        _SIZES[key] = _size_of_file(path)
    return _SIZES[key]


def size_of_shapes(shapes: Shapes) -> int | None:
    """Pixels per side, from the shapes of the tensors of a state dict in OpenAI's naming; None where it is no CLIP's.
    """
    try:
        if "visual.proj" in shapes:
            (rows, _), patch = shapes["visual.positional_embedding"], shapes["visual.conv1.weight"][-1]
        else:
            (rows, _), patch = shapes["visual.attnpool.positional_embedding"], 32
    except (KeyError, IndexError, ValueError):
        return None
    side = round((rows - 1) ** 0.5)
    return side * patch or None


def _size_of_file(path: str) -> int | None:
    """As `image_size`, for a file."""
    read: Callable[[str], Shapes] = _shapes_of_safetensors if path.endswith(".safetensors") else _shapes_of_pickle
    try:
        return size_of_shapes(read(path))
    except Exception:  # a damaged file can fail anywhere in the unpickler
        names = {url.split("/")[-2]: name for name, url in published_urls().items()}
        name = names.get(sha256(path))
        return PUBLISHED[name].resolution if name in PUBLISHED else None


def _shapes_of_safetensors(path: str) -> Shapes:
    """A file that is none raises SafetensorError."""
    with safe_open(path, "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def _shapes_of_pickle(path: str) -> Shapes:
    """The tensors stay on the disk where the file's format allows it."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # an old format, which cannot be mapped
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    state = loaded.get("state_dict", loaded)
    return {name: tuple(tensor.shape) for name, tensor in state.items() if torch.is_tensor(tensor)}
