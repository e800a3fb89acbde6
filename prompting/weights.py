"""Files of CLIP weights: their names, their digests, and how their tensors are read.

Nothing that is read here runs code: safetensors, pickles of tensors only, and TorchScript only for files of a published
SHA-256.
"""
from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prompting.errors import PromptingError, meant
from prompting.openai import openai_clip

CACHE = "~/.cache/clip"
VOCABULARY = 49408
SHIPPED = {"tiny": os.path.join(os.path.dirname(os.path.abspath(__file__)), "assets", "tiny_clip.safetensors")}
MOST_DIGESTS = 1000
_DIGESTS: dict[tuple[int, int, int, int, int], str] = {}  # (disk, file, size, times of the last change): SHA-256


# ---- names ----
def known_names() -> list[str]:
    """Names of backbones that are no files: the shipped and the published ones."""
    return [*SHIPPED, *published_urls()]


def published_urls() -> dict[str, str]:
    """{name: address} of OpenAI's models; the last folder of an address is the SHA-256 of the file."""
    return {name: url for name, url in openai_clip()._MODELS.items() if "://" in url}


def published_digests() -> set[str]:
    """The SHA-256 of OpenAI's files."""
    return {url.split("/")[-2] for url in published_urls().values()}


# ---- digests ----
def weights_digest(name: str) -> str | None:
    """SHA-256 of the weights of a backbone.

    It depends on the content only: the same file at another path has the same digest, and so has one of OpenAI's files
    and its published name, whose digest is known without a download.

    Args:
        name: what `load_clip` takes.
    Returns:
        64 hexadecimal digits; None where nothing is known of that name.
    """
    if os.path.isfile(SHIPPED.get(name, name)):
        return sha256(SHIPPED.get(name, name))
    url = published_urls().get(name)
    return url.split("/")[-2] if url else None


def sha256(path: str) -> str:
    """SHA-256 of a file, remembered until the file changes."""
    status = os.stat(path)
    key = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    found = _DIGESTS.get(key)
    if found is None:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        if len(_DIGESTS) >= MOST_DIGESTS:
            _DIGESTS.clear()
        found = _DIGESTS[key] = digest.hexdigest()
    return found


# ---- tensors ----
def read_weights(name: str, cache: str) -> object:
    """What the weights of a backbone hold, for other code to check: a state dict where all is well.

    Args:
        name: what `load_clip` takes; cache: folder of the downloaded files.
    Raises:
        PromptingError: there is no such file, it cannot be read, or it cannot be downloaded.
    """
    if name in SHIPPED:
        return whole_vocabulary(read_safetensors(SHIPPED[name]))
    if name in published_urls() and not os.path.isfile(name):
        return _download(name, cache)
    return read_file(name, cache)


def read_file(path: str, cache: str) -> object:
    """What a weights file holds; nothing pickled is executed."""
    if not os.path.isfile(path):
        raise PromptingError(f"backbone '{path}' is neither a file nor one of {', '.join(known_names())}"
                             f"{meant(path, known_names())}")
    if path.endswith(".safetensors"):
        return read_safetensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a TorchScript archive, which is handled below
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in the unpickler
        digest = sha256(path)
        if digest in published_digests():
            return _read_published(path, digest, cache)
        raise PromptingError(f"backbone {path} is not a CLIP state dict that can be loaded without running code "
                             f"({first_line(error)}); give a .safetensors file, a saved state dict, or one of "
                             "OpenAI's own files") from None
    return loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded


def read_safetensors(path: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise PromptingError(f"backbone {path} is not a whole safetensors file ({error}); fetch it again") from None


def whole_vocabulary(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a CLIP that is stored with its trained token vectors only.

    `token_embedding.rows` (n,) says which tokens `token_embedding.values` (n, W) are. Every other token gets a small
    vector of its own, drawn with a fixed seed, so that any sentence has features."""
    state_dict = {k: v.float() if v.is_floating_point() else v for k, v in state_dict.items()}
    rows, values = state_dict.pop("token_embedding.rows"), state_dict.pop("token_embedding.values")
    draws = np.random.RandomState(0).randint(-32768, 32768, (VOCABULARY, values.shape[1]))
    weight = torch.from_numpy(draws.astype(np.float32)) * (0.035 / 32768)
    weight[rows] = values
    return {**state_dict, "token_embedding.weight": weight}


def whole_file(shipped: str, cache: str) -> str:
    """The path of a file in `cache` that any code can load, with the tensors of a shipped CLIP, which is stored without
    its untrained tokens. The file is written if it is not there."""
    path = os.path.join(cache, f"{sha256(shipped)}.pt")
    if not os.path.isfile(path):
        with _written_whole(path) as unfinished:
            torch.save(whole_vocabulary(read_safetensors(shipped)), unfinished)
    return path


def first_line(error: Exception) -> str:
    """The start of a message, or the type of an error without one."""
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


# ---- OpenAI's files, which are TorchScript archives ----
def _download(name: str, cache: str) -> dict[str, Tensor]:
    """The tensors of one of OpenAI's models."""
    url = published_urls()[name]
    digest = url.split("/")[-2]
    if os.path.isfile(converted(digest, cache)):
        return read_safetensors(converted(digest, cache))
    try:
        archive = openai_clip()._download(url, cache)
    except (OSError, RuntimeError) as error:
        raise PromptingError(f"cannot download the CLIP weights {name} from {url} ({error}); put the file into {cache} "
                             "yourself, or name a weights file as the backbone") from None
    return _read_archive(archive, digest, cache)


def _read_published(path: str, digest: str, cache: str) -> dict[str, Tensor]:
    """The tensors of a file whose SHA-256 is published."""
    if os.path.isfile(converted(digest, cache)):
        return read_safetensors(converted(digest, cache))
    return _read_archive(path, digest, cache)


def _read_archive(path: str, digest: str, cache: str) -> dict[str, Tensor]:
    """Tensors of a TorchScript archive, kept as safetensors for the next time.

    Loading one can run code: call it for files of published SHA-256 only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is on its way out, OpenAI's files stay what they are
        archive = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]  # torch leaves it untyped
        state_dict: dict[str, Tensor] = archive.state_dict()
    # a folder that cannot be written makes the next start slower, no more
    with contextlib.suppress(OSError), _written_whole(converted(digest, cache)) as unfinished:
        save_file({k: v.contiguous().clone() for k, v in state_dict.items()}, unfinished)
    return state_dict


def converted(digest: str, cache: str) -> str:
    """Where the tensors of a published archive are kept as safetensors."""
    return os.path.join(cache, f"{digest}.safetensors")


@contextlib.contextmanager
def _written_whole(path: str) -> Iterator[str]:
    """Yields a name to write a file under, which becomes `path` at the end.

    The name lies in a folder of this process's own: the cache may be shared, and a link that somebody has planted in it
    would lead what is written to another place."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=os.path.dirname(path)) as folder:
        yield os.path.join(folder, os.path.basename(path))
        os.replace(os.path.join(folder, os.path.basename(path)), path)
