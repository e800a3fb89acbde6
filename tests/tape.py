"""A recorder of training steps (training/recorders.py) on the CPU, which forbids and does what a CUDA graph does.

Within a capture no number can be asked for, and nothing comes from the host. What was captured is done by `replay`: the
same operations with the same numbers on the same memory. Until then what it computes is NaN.
"""
import contextlib
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.launches import WAITS
from benchmarks.other_device import INDEXED
from prompting.text import TextTower
from training import graphs
from training.recorders import Recorder

FROM_THE_HOST = {"aten::lift_fresh"}  # of torch.tensor(numbers)


class Recording(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls, self.made = [], {}  # made: {address of the memory: its tensor} of what was computed

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function._schema.name
        if name in WAITS | FROM_THE_HOST or name in INDEXED and any(i.dtype == torch.bool for i in tensors_of(args[1])):
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
        given = {address(leaf) for leaf in tensors_of((args, kwargs))}
        if function._schema.is_mutable and not given <= set(self.made):
            written = [given for given, said in zip(args, function._schema.arguments)
                       if said.alias_info and said.alias_info.is_write]
            assert all(address(leaf) in self.made for leaf in tensors_of(written)), f"{name} changes what is outside"
        out = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, out))
        self.made |= {address(leaf): leaf for leaf in tensors_of(out) if address(leaf) not in given}
        return out


class Tape(Recorder):
    """Attributes: pieces: how many operations each piece has."""

    def __init__(self):
        self.recording, self.pieces = None, []

    def begin(self):
        self.recording, self.rng = Recording(), torch.get_rng_state()
        self.recording.__enter__()

    def end(self):
        self.abandon_mode()
        torch.set_rng_state(self.rng)  # nothing was drawn until now
        calls, made, self.recording = self.recording.calls, self.recording.made, None
        self.pieces.append(len(calls))
        with torch.no_grad():
            for tensor in made.values():
                if tensor.is_floating_point():
                    numbers = tensor.untyped_storage().nbytes() // tensor.element_size()
                    tensor.as_strided((numbers,), (1,), 0).fill_(torch.nan)

        def replay():
            with torch.no_grad(), torch.autocast("cpu", enabled=False):  # what was cast is among the calls
                for function, args, kwargs, out in calls:
                    for kept, new in zip(tensors_of(out), tensors_of(function(*args, **kwargs)), strict=True):
                        if address(kept) != address(new):
                            kept.copy_(new)

        return replay

    def abandon_mode(self):
        self.recording.__exit__(None, None, None)

    def abandon(self):
        if self.recording is not None:
            self.abandon_mode()
            self.recording = None


def tensors_of(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def address(tensor):
    return tensor.untyped_storage().data_ptr()


@contextlib.contextmanager
def as_on_a_gpu():
    """Within it trainers go the way that they take on a GPU, on tapes: the list of these."""
    tapes, init = [], TextTower.__init__

    def on_a_gpu(tower, *args, **kwargs):
        init(tower, *args, **kwargs)
        tower.run_as_on_gpu()

    def recorder_for(device):
        tapes.append(Tape())
        return tapes[-1]

    with (mock.patch.object(TextTower, "__init__", on_a_gpu),
          mock.patch.object(graphs, "recorder_for", recorder_for)):
        yield tapes
