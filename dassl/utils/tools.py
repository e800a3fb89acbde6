"""Small helpers under Dassl's names."""
import contextlib
import json
import os
import platform
import sys

import numpy as np
import PIL
import torch
from pydantic_core import from_json

from dassl.utils.checkpoint import write_atomically
from dassl.utils.errors import InputError
from dassl.utils.files import open_regular
from dassl.utils.registry import nearest

MOST_JSON = 2**30  # bytes of a file: the split of ImageNet-21k has less


def mkdir_if_missing(dirname):
    os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath):
    """Whether `fpath` is a file, with a warning when it is not."""
    isfile = os.path.isfile(fpath)
    if not isfile:
        print(f"Warning: no file at {fpath}", file=sys.stderr)
    return isfile


def check_availability(requested, available, key=""):
    """Raise InputError, naming the config key, unless `requested` is one of `available`."""
    if requested not in available:
        raise InputError(f"{key}{': ' if key else ''}'{requested}' is not known{nearest(str(requested), available)}; "
                         f"known: {', '.join(sorted(available))}")


def listdir_nohidden(path, sort=True):
    """Names in a folder without the hidden ones, sorted, because a disk's own order differs between machines."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def read_json(fpath, most=MOST_JSON):
    """Parse a JSON file of at most `most` bytes, with or without a byte-order mark. Raises InputError when it is not
    there or not JSON."""
    try:
        with open_regular(fpath, "rb", most) as file:
            text = file.read()
        with contextlib.suppress(ValueError):
            return from_json(text)  # in half of json's time; what it refuses, json takes, or says what is wrong
        return json.loads(text.decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read {fpath}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{fpath} is not valid JSON: {error}") from None


def write_json(obj, fpath):
    """Write JSON under a temporary name, then rename: the file is whole or not there."""
    text = json.dumps(obj, indent=2)
    write_atomically(fpath, lambda file: file.write(text.encode()))


def count_num_param(model=None, params=None):
    """Number of parameters of a module, or of an iterable of tensors or parameter groups."""
    if model is not None:
        return sum(p.numel() for p in model.parameters())
    if params is None:
        raise ValueError("give a model or params")
    groups = [p["params"] if isinstance(p, dict) else [p] for p in params]
    return sum(p.numel() for group in groups for p in group)


def tolist_if_not(x):
    return x if isinstance(x, list) else [x]


def collect_env_info():
    """Versions and hardware that a result depends on, a line each."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return "\n".join([
        f"python {platform.python_version()} on {platform.platform()}",
        f"torch {torch.__version__}, numpy {np.__version__}, Pillow {PIL.__version__}",
        f"CPU threads: {torch.get_num_threads()}, GPUs: {', '.join(gpus) or 'none'}",
    ])
