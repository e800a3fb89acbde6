"""What captures the operations of a device, to have them done at once."""
from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable
from typing import Any

import torch


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


class CudaRecorder(Recorder):
    """The pieces share their memory, so they are to be done in the order in which they were captured."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool = device, torch.cuda.graph_pool_handle()
        self.stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.graph: Any = None
        self.within = contextlib.ExitStack()

    def begin(self) -> None:
        torch.cuda.synchronize(self.device)
        gc.collect()
        torch.cuda.empty_cache()
        self.graph = torch.cuda.CUDAGraph()
        self.within.enter_context(torch.cuda.stream(self.stream))
        # Other threads, such as that of a loader, may do meanwhile what a capture forbids.
        self.graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")

    def end(self) -> Callable[[], None]:
        graph, self.graph = self.graph, None
        with self.within, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The CUDA Graph is empty")
            graph.capture_end()
        replay: Callable[[], None] = graph.replay
        return replay

    def abandon(self) -> None:
        if self.graph is None:
            return
        with contextlib.suppress(RuntimeError):  # the capture is not valid
            self.end()
        with contextlib.suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
            torch.zeros(1, device=self.device)  # one that is brings the random generators out of the other


def recorder_for(device: torch.device) -> Recorder | None:
    """None for a device that has no graphs."""
    return CudaRecorder(device) if device.type == "cuda" else None
