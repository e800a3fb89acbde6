"""What is read back from a disk is checked before anything is made of it: by the schema of its kind (schemas.py), and,
where it may hold tensors, for being plain data that fits."""
import math
import reprlib

import torch

from dassl.utils.errors import InputError

DEEPEST = 32  # containers within each other
MOST_ENTRIES = 10**6
LONGEST_TEXT = 10**5
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16,
          torch.int8, torch.uint8, torch.bool)
LARGEST = 1e9  # of a learned tensor; what is larger gives no features any more


def require(kind, contents, path, advice="delete it and run again", what=""):
    """Raise InputError, naming the file and the field, unless `contents` are what a file of this kind holds.

    Args:
        kind: one of the KINDS of schemas.py.
        contents: as they were parsed; they are not changed.
        what: words on what part of the file they are.
    """
    from pydantic import ValidationError  # which takes a tenth of a second, and --help reads nothing

    from dassl.utils.schemas import ADAPTERS

    try:
        ADAPTERS[kind].validate_python(contents, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise InputError(f"{path} is damaged: {what}{_told(first)}; {advice}") from None


def _told(fault):
    """A fault that pydantic has found, in words."""
    where = ".".join(part if isinstance(part, str) else str(part)[:20] for part in fault["loc"])[:200]
    if fault["type"] == "missing":
        return f"it lacks {where}"
    problem = fault["msg"][:200].replace("Input should be ", "not ", 1)
    return f"{where or 'it'} is {shortened(fault['input'])}: {problem}"


def shortened(value):
    """A value as a message can show it."""
    if torch.is_tensor(value):
        return "a tensor"
    return " ".join(reprlib.repr(value).split())[:80]


# ---- what torch.load gives ----
def require_plain(contents, path, size):
    """Raise InputError unless what a checkpoint of `size` bytes holds is plain: names and numbers as keys, no structure
    that contains itself or is endless, and tensors that are dense, of usual types and not larger than their file."""
    left, seen = [("it", contents, 0)], 0
    while left:
        where, value, depth = left.pop()
        seen += 1
        problem = _problem_of(value, size)
        if depth > DEEPEST or seen + len(left) > MOST_ENTRIES:
            problem = "is nested without an end" if depth > DEEPEST else "has more entries than any checkpoint"
        if problem:
            raise InputError(f"{path} is damaged: {where[:200]} {problem}; delete it or train again")
        if isinstance(value, dict):
            left += [(f"{where}.{key}" if depth else str(key), entry, depth + 1) for key, entry in value.items()]
        elif isinstance(value, (list, tuple, set)):
            left += [(where, entry, depth + 1) for entry in value]


def _problem_of(value, size):
    """What is wrong with one value of a checkpoint; "" where nothing is."""
    if torch.is_tensor(value):
        return _problem_of_tensor(value, size)
    if isinstance(value, dict):
        odd = next((key for key in value if not isinstance(key, (str, int)) or len(str(key)) > 1000), None)
        return f"has a key that is no name ({shortened(odd)})" if odd is not None else ""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"is a number of {value.bit_length()} bits"
    if isinstance(value, (str, bytes)) and len(value) > LONGEST_TEXT:
        return f"is a text of {len(value):,} characters"
    return ""


def _problem_of_tensor(tensor, size):
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized:
        return "is a tensor of another kind (sparse, nested or quantised)"
    if tensor.device.type == "meta":
        return "is a tensor without numbers (on the device meta)"
    if tensor.dtype not in DTYPES:
        return f"is a tensor of {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.numel() * tensor.element_size() > size:
        return f"is a tensor of {tensor.numel():,} numbers, for which the file is too small"
    return ""


def problem_of_values(stored, own):
    """What is wrong with the values of a stored tensor that is to take the place of `own`, of its shape; "" where
    nothing is."""
    if stored.is_floating_point() != own.is_floating_point():
        return f"holds {stored.dtype} in the place of {own.dtype}".replace("torch.", "")
    if not stored.is_floating_point():
        return ""
    if not stored.isfinite().all() or not stored.to(own.dtype).isfinite().all():
        return "holds numbers that are not finite"
    if stored.numel() and (most := stored.abs().max().item()) > LARGEST:
        return f"holds numbers as large as {most:.3g}"
    return ""


def problem_of_state(module, stored):
    """What is wrong with a state dict that is to be loaded into a module; "" where nothing is.

    Names that only one of them has are left to `load_state_dict`; so are buffers' values, some of which are infinite by
    right."""
    own, learned = module.state_dict(), dict(module.named_parameters())
    for name, tensor in stored.items():
        if name not in own or not torch.is_tensor(own[name]):
            continue
        if not torch.is_tensor(tensor):
            return f"{name} is {shortened(tensor)}, not a tensor"
        if tensor.shape != own[name].shape:
            return f"{name} has shape {tuple(tensor.shape)}, this run needs {tuple(own[name].shape)}"
        if name in learned and (problem := problem_of_values(tensor, own[name])):
            return f"{name} {problem}"
    return ""


def require_like(stored, own, what):
    """Raise InputError unless {name: tensor} that a checkpoint holds beside its own can take the place of `own`."""
    if not isinstance(stored, dict) or set(stored) != set(own):
        raise InputError(f"{what} does not hold {', '.join(sorted(own))}")
    for name, tensor in stored.items():
        if not torch.is_tensor(tensor) or tensor.shape != own[name].shape:
            raise InputError(f"{what}: {name} is no tensor of shape {tuple(own[name].shape)}")
        if problem := problem_of_values(tensor, own[name]):
            raise InputError(f"{what}: {name} {problem}")


def alike(own, stored):
    """Whether a stored setting is of the kind of one's own: numbers are finite, lists are as long."""
    if torch.is_tensor(own) or torch.is_tensor(stored):
        return torch.is_tensor(own) == torch.is_tensor(stored) and own.shape == stored.shape and \
            bool(stored.isfinite().all())
    if own is None or isinstance(own, bool):
        return stored is None or isinstance(stored, bool)
    if isinstance(own, (list, tuple)):
        return isinstance(stored, (list, tuple)) and len(own) == len(stored) and all(map(alike, own, stored))
    if isinstance(own, (int, float)):
        return isinstance(stored, (int, float)) and not isinstance(stored, bool) and \
            (math.isfinite(stored) or not math.isfinite(own))
    return isinstance(stored, type(own))
