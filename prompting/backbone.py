"""A name or a file -> an OpenAI CLIP, and what is known of it.

`prompting.weights` reads the files, `prompting.towers` is the view of a CLIP that methods use.
"""
from __future__ import annotations

import contextlib
import hashlib
import os
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prompting.blocks import ACTIVATION, is_plain
from prompting.errors import PromptingError
from prompting.openai import openai_clip
from prompting.towers import Towers, normalize
from prompting.weights import (
    CACHE,
    SHIPPED,
    VOCABULARY,
    first_line,
    known_names,
    published_digests,
    read_file,
    read_weights,
    weights_digest,
    whole_file,
)

if TYPE_CHECKING:
    from clip.model import CLIP

# Method files import these from here.
__all__ = ["CACHE", "SHIPPED", "BackboneFacts", "Towers", "describe_backbone", "describe_weights", "image_digest",
           "known_names", "load_clip", "normalize", "serve_foreign_code", "tower_widths", "unpublished_note",
           "weights_digest"]

HEAD = 64  # channels of an attention head in every CLIP of OpenAI's; a state dict does not say how many heads there are
COLUMNS = 1021  # of `sums_of_bits`; a prime number, so that rows of a matrix do not begin in one column


class BackboneFacts(TypedDict):
    """What is known of a backbone.

    name: what it is called; digest: SHA-256 of its weights; published: whether the weights are OpenAI's; activation and
    heads ({"text", "image"}): how it is computed. None where it is not known.
    """

    name: str
    digest: str | None
    published: bool
    activation: str | None
    heads: dict[str, int] | None


def load_clip(name: str, cache: str = CACHE) -> CLIP:
    """An OpenAI `clip` model in float32, frozen, in eval mode, on the CPU.

    Args:
        name: "tiny", the small CLIP of drawings that comes with this project; one of `clip.available_models()`
            ("ViT-B/16", "RN50", ...), downloaded once into `cache` and checked against its published SHA-256; or a
            .pt or .safetensors file in OpenAI's state-dict naming, of any ViT or ResNet size.
        cache: folder of the downloaded files.
    Returns:
        `clip.model.CLIP`; its attribute `weights_digest` is what `weights_digest(name)` gives.
    Raises:
        PromptingError: unknown name, no such file, not a CLIP state dict, a tower whose heads cannot be 64 wide, or a
            download that failed.
    """
    if not name:
        raise PromptingError("no backbone is named; give --backbone or MODEL.BACKBONE.NAME, "
                             f"one of {', '.join(known_names())} or a weights file")
    model = _build(read_weights(name, os.path.expanduser(cache)), name)
    model.weights_digest, model.image_sums = weights_digest(name), sums_of_bits(model.visual)
    return model


class _Undrawn(TorchFunctionMode):
    """Within it modules are made without the random numbers that they begin with: a state dict takes the place of all
    of them, and for a ViT-B/16 they are 150 million."""

    DRAWS = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, nn.init.xavier_uniform_, Tensor.normal_,
             Tensor.uniform_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.DRAWS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _build(state_dict: object, name: str) -> CLIP:
    """`clip.model.CLIP` with exactly these tensors, in float32."""
    needed = ("text_projection", "positional_embedding", "token_embedding.weight", "ln_final.weight", "logit_scale")
    if not isinstance(state_dict, dict) or not all(isinstance(k, str) and torch.is_tensor(v)
                                                   for k, v in state_dict.items()):
        raise PromptingError(f"backbone {name} does not hold a state dict of tensors")
    missing = [key for key in needed if key not in state_dict]
    if missing:
        raise PromptingError(f"backbone {name} is not a CLIP state dict in OpenAI's naming (it lacks {missing[0]})")
    _require_whole_heads(tower_widths(state_dict), name)
    tokens = tuple(state_dict["token_embedding.weight"].shape)
    if tokens[:1] != (VOCABULARY,):
        raise PromptingError(f"backbone {name} has token vectors of shape {tokens}; CLIP's vocabulary has {VOCABULARY} "
                             "tokens, and with another one every text would be read wrongly")
    try:
        with _Undrawn():
            model = openai_clip().build_model(dict(state_dict)).float()
        # build_model rounds to half precision on the way in; take the tensors as they are instead.
        model.load_state_dict({k: v for k, v in state_dict.items()
                               if k not in ("input_resolution", "context_length", "vocab_size")})
    except (LookupError, AssertionError, RuntimeError, ArithmeticError, ValueError, TypeError) as error:
        raise PromptingError(f"backbone {name} is not a CLIP state dict of a size this program knows "
                             f"({first_line(error)})") from None
    return model.eval().requires_grad_(False)


def tower_widths(state_dict: object) -> dict[str, int]:
    """{"text", "image"}: the channels that attention divides into heads; {} for what is no state dict of a CLIP."""
    def size(key: str) -> int:
        tensor = state_dict.get(key) if isinstance(state_dict, dict) else None
        return tensor.shape[0] if isinstance(tensor, torch.Tensor) and tensor.dim() else 0

    text = size("ln_final.weight")
    image = size("visual.conv1.weight") if size("visual.proj") else 32 * size("visual.layer1.0.conv1.weight")
    return {"text": text, "image": image} if text and image else {}


def _require_whole_heads(widths: dict[str, int], name: str) -> None:
    for tower, width in widths.items():
        if width % HEAD:
            raise PromptingError(f"backbone {name}: its {tower} tower is {width} wide, which cannot be divided into "
                                 f"heads of {HEAD}, and a state dict does not say how many heads it was trained with; "
                                 f"use weights whose width is a multiple of {HEAD}")


# ---- what is known of a backbone ----
def describe_backbone(model: CLIP, name: str = "") -> BackboneFacts:
    """What is known of a CLIP that is computed with.

    Args:
        model: `clip.model.CLIP`; one that `load_clip` did not load is known by its tensors.
        name: what it is called.
    """
    digest = getattr(model, "weights_digest", None) or _tensors_digest(model)
    first = model.transformer.resblocks[0]
    visual = getattr(model.visual, "transformer", None)
    image = visual.resblocks[0].attn.num_heads if visual is not None else model.visual.attnpool.num_heads
    return _facts(name, digest, ACTIVATION, {"text": first.attn.num_heads, "image": image})


def image_digest(model: CLIP) -> str | None:
    """What tells the image tower of a CLIP from others: a digest of its weights as they are. That of the file that
    `load_clip` read where nothing has changed since.

    Returns None where a module in it computes something that its weights do not tell: one that is not CLIP's or torch's
    own, or has hooks."""
    of_modules: Any = nn.modules.module
    if of_modules._has_any_global_hook() or not all(map(_is_own, model.visual.modules())):
        return None
    known: str | None = getattr(model, "weights_digest", None)
    if known and getattr(model, "image_sums", None) == sums_of_bits(model.visual):
        return known
    return _tensors_digest(model.visual)


def _is_own(module: nn.Module) -> bool:
    """Whether a module is one of torch's or of CLIP's, and not only derived from one, without hooks."""
    kind = type(module)
    return ((kind.__module__.startswith("torch.nn.modules") or kind.__module__ == "clip.model")
            and is_plain(module, kind) and "attention" not in vars(module))


def describe_weights(name: str, cache: str = CACHE) -> BackboneFacts:
    """What is known of weights that other code loads with OpenAI's `clip`. Published weights are not opened, and a file
    may hold another kind of model: what is not known then is None.

    Args:
        name, cache: as for `load_clip`.
    Raises:
        PromptingError: a tower whose heads cannot be 64 wide.
    """
    digest, widths = weights_digest(name), None
    if os.path.isfile(SHIPPED.get(name, name)):
        with contextlib.suppress(PromptingError):
            widths = tower_widths(read_file(SHIPPED.get(name, name), os.path.expanduser(cache)))
    if not widths:
        return _facts(name, digest, None, None)
    _require_whole_heads(widths, name)
    return _facts(name, digest, ACTIVATION, {tower: width // HEAD for tower, width in widths.items()})


def _facts(name: str, digest: str | None, activation: str | None, heads: dict[str, int] | None) -> BackboneFacts:
    return {"name": name, "digest": digest, "published": digest in published_digests(), "activation": activation,
            "heads": heads}


def unpublished_note(facts: BackboneFacts) -> str:
    """One line on how weights that are not OpenAI's are computed; "" where there is nothing to say.

    Args:
        facts: what `describe_backbone` or `describe_weights` gave.
    """
    heads = facts["heads"]
    if facts["published"] or not heads or facts["name"] in SHIPPED or not os.path.isfile(facts["name"]):
        return ""
    return (f"Backbone {facts['name']} is not one of OpenAI's: computed with {facts['activation']}, {heads['text']} "
            f"text and {heads['image']} image heads ({HEAD} wide); weights that were trained with another activation "
            "or other heads give wrong numbers")


def _tensors_digest(model: nn.Module) -> str:
    """SHA-256 of a module's tensors, as float32, and of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def sums_of_bits(module: nn.Module) -> list[tuple[str, tuple[int, ...], int]]:
    """What tells at once, for a tenth of a second of a ViT-B/16, whether a module's tensors were changed, also through
    .data: (name, shape, sum) of each. Bits are summed by their place, so that rows which are swapped change it, too."""
    return [(name, tuple(tensor.shape), _sum_of_bits(tensor)) for name, tensor in module.state_dict().items()]


def _sum_of_bits(tensor: Tensor) -> int:
    bits = tensor.detach().double() if tensor.numel() % 2 else tensor.detach().float()
    flat = bits.contiguous().reshape(-1).view(torch.int64)  # numbers of 64 bits add up faster
    rows = flat[:len(flat) // COLUMNS * COLUMNS].view(-1, COLUMNS)
    rest = flat[rows.numel():]
    places = torch.arange(1, COLUMNS + 1, device=flat.device)
    return int((rows.sum(0) * places).sum() + (rest * places[:len(rest)]).sum())


# ---- code written for OpenAI's repository ----
def serve_foreign_code(name: str = "", cache: str = CACHE) -> None:
    """Let code written for OpenAI's own repository load its CLIP.

    `clip._download(url)` without a folder then uses `cache`; and `clip._MODELS` has `name` where that is a weights file
    or a CLIP that comes along."""
    clip = openai_clip()
    original = getattr(clip._download, "original", clip._download)
    files: dict[str, str] = getattr(clip._download, "files", {})

    def download(url: str, root: str | None = None) -> str:
        path: str = files.get(url) or original(url, root or os.path.expanduser(cache))
        return path

    # A later call finds here what this one has put in the place of OpenAI's function.
    download.original, download.files = original, files  # type: ignore[attr-defined]  # a function's own attributes
    clip._download = download  # type: ignore[attr-defined]  # a ModuleType has no typed attributes
    if name in SHIPPED:
        files[name] = whole_file(SHIPPED[name], os.path.expanduser(cache))
    elif os.path.isfile(name):
        files[name] = name
    if name in files:
        clip._MODELS[name] = name
