"""What captures the operations of a device, to have them done at once."""
from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorder:
    """Captures what a device does between `begin` and `end`, several times in turn."""

    def begin(self) -> None:
        raise NotImplementedError

    def end(self) -> Callable[[], None]:
        """The end of a piece. Returns what does all of it; until that is called nothing of it was done."""
        raise NotImplementedError

    def abandon(self) -> None:
        """The end of a piece that failed; nothing outside of one."""
        raise NotImplementedError


class Reads(TorchDispatchMode):
    """Within it, `memory` has the memory of all tensors that operations read and none of them has made."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[int, Any] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            memory = tensor.untyped_storage()
            if memory.data_ptr() not in self._made:
                self.memory[memory.data_ptr()] = memory
        out = func(*args, **(kwargs or {}))
        self._made.update({tensor.untyped_storage().data_ptr() for tensor in _tensors(out)} - self.memory.keys())
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class CudaRecorder(Recorder):
    """CUDA graphs. The pieces share their memory, so they are to be done in the order in which they were captured. What
    a piece reads, such as an index that a cache of this process holds, is kept as long as the piece."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool = device, torch.cuda.graph_pool_handle()
        self.stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.graph: Any = None
        self.reads = Reads()
        self.within = contextlib.ExitStack()

    def begin(self) -> None:
        torch.cuda.synchronize(self.device)
        gc.collect()
        torch.cuda.empty_cache()
        self.graph, self.reads = torch.cuda.CUDAGraph(), Reads()
        self.within.enter_context(torch.cuda.stream(self.stream))
        # Other threads, such as that of a loader, may do meanwhile what a capture forbids.
        self.graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
        self.within.enter_context(self.reads)

    def end(self) -> Callable[[], None]:
        graph, reads, self.graph = self.graph, self.reads, None
        with self.within, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The CUDA Graph is empty")
            graph.capture_end()

        def replay(kept: Reads = reads) -> None:
            graph.replay()

        return replay

    def abandon(self) -> None:
        if self.graph is None:
            return
        with contextlib.suppress(RuntimeError):  # the capture is not valid
            self.end()
        # Before torch 2.13 what fails there leaves the allocator, and the random generators, in the capture.
        with contextlib.suppress(AttributeError, RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self.pool)
        graph = torch.cuda.CUDAGraph()
        with contextlib.suppress(RuntimeError), torch.cuda.stream(self.stream):
            graph.capture_begin()
            torch.zeros(1, device=self.device)
            graph.capture_end()  # a capture that is valid brings the generators out of it


def recorder_for(device: torch.device) -> Recorder | None:
    """None for a device that has no graphs."""
    return CudaRecorder(device) if device.type == "cuda" else None
