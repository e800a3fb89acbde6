"""A second device on a machine that has only a CPU, to find tensors that were left on the wrong one.

Its tensors are CPU tensors that say they are on "meta". As on a GPU, they cannot be computed with together with CPU
tensors, except single numbers and indices, and NumPy cannot look at them; otherwise the numbers are the CPU's.
"""
import contextlib
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from dassl.engine.trainer import SimpleTrainer

DEVICE = torch.device("meta")
COPIES = ("aten::_to_copy", "aten::copy_", "aten::_local_scalar_dense")
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")  # by CPU indices, too


class OnDevice(torch.Tensor):
    """Wraps `there`, a CPU tensor."""

    @staticmethod
    def __new__(cls, there):
        return torch.Tensor._make_wrapper_subclass(
            cls, there.size(), strides=there.stride(), storage_offset=there.storage_offset(), dtype=there.dtype,
            device=DEVICE)

    def __init__(self, there):
        self.there = there

    def __repr__(self, *, tensor_contents=None):
        return f"OnDevice({self.there})"

    def tolist(self):
        return self.detach().cpu().tolist()

    def new_tensor(self, data, *, dtype=None, **more):  # type: ignore[override]
        return torch.tensor(data, dtype=dtype or self.dtype, **more).to(DEVICE)

    def numpy(self, *, force=False):
        raise TypeError("this tensor is not on the CPU; NumPy cannot read it")

    def __array__(self, dtype=None):
        return self.numpy()

    def __reduce_ex__(self, protocol):
        # A checkpoint is read on the CPU.
        return self.detach().there.__reduce_ex__(protocol)  # type: ignore[attr-defined]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        return compute(func, args, kwargs or {})


class Device(TorchDispatchMode):
    """Within it the device exists."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def compute(func, args, kwargs):
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    name, device = func._schema.name, kwargs.get("device")
    if there and name not in COPIES:
        compared = [args[0], *args[2:3]] if name in INDEXED else tensors
        if any(not isinstance(tensor, OnDevice) and tensor.dim() for tensor in compared):
            places = [f"{'device' if isinstance(t, OnDevice) else 'cpu'} {tuple(t.shape)}" for t in tensors]
            raise RuntimeError(f"{name} needs its tensors on one device and got {', '.join(places)}")
    if name == "aten::copy_":
        on_device = isinstance(args[0], OnDevice)
    elif name == "aten::_local_scalar_dense":
        on_device = False
    else:
        on_device = bool(there) if device is None else torch.device(device) == DEVICE
    if on_device and kwargs.get("generator") is not None:
        raise RuntimeError(f"{name} on a GPU needs a generator of that GPU")
    plain = tree_map_only(OnDevice, lambda tensor: tensor.there, (args, kwargs))
    if device is not None:
        plain[1]["device"] = torch.device("cpu")
    if name == "aten::_efficientzerotensor":  # has no memory, which only a part of the dispatcher knows
        func = torch.ops.aten.zeros.default
    out = func(*plain[0], **plain[1])
    if on_device:
        out = tree_map_only(torch.Tensor, OnDevice, out)
    if there and (on_device or name == "aten::copy_"):
        return return_and_correct_aliasing(func, args, kwargs, out)
    return out


class Autocast(torch.autocast):
    def __init__(self, device_type, *args, **kwargs):
        super().__init__("cpu" if device_type == DEVICE.type else device_type, *args, **kwargs)


@contextlib.contextmanager
def runs_on_it():
    """Within it trainers run on the device."""
    def there(make):  # both make their tensors where no mode sees them
        def made(data, *, device=None, **more):
            return make(data, **more) if device is None else make(data, **more).to(device)

        return mock.patch.object(torch, make.__name__, made)

    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter's class changes with its device
    try:
        with (mock.patch.object(SimpleTrainer, "device", property(lambda self: DEVICE, lambda self, value: None),
                                create=True),
              there(torch.tensor), there(torch.as_tensor), mock.patch.object(torch, "autocast", Autocast), Device()):
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swap)
