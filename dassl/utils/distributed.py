"""One run in several processes, as torchrun starts them: everything that knows of more than one process.

Every rank makes the same steps; rank 0 alone writes and prints. Functions exchange Python objects: `broadcast`,
`all_gather`, `all_reduce_max`. The class `Ranks` exchanges tensors: the towers' work is divided between the ranks, and
gradients pass through the exchange. The names are torch.distributed's. Without torchrun, all of it does the plain thing
at no cost.
"""
from __future__ import annotations

import contextlib
import datetime
import importlib
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.autograd import Function

from dassl.utils.errors import InputError, last_line
from dassl.utils.processes import end_with_parent

T = TypeVar("T")

# How long a rank may wait for another, which may have a dataset to unpack. A rank that has died is noticed before: by
# gloo at once, with NCCL by torchrun.
TIMEOUT = datetime.timedelta(hours=2)
AGENT_TIMEOUT = datetime.timedelta(seconds=30)  # torchrun serves its store before it starts processes


# ---- who is who ----
def rank() -> int:
    """The number of this process in its run, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes make this run."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_rank() -> int:
    """The number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0)) if distributed.is_initialized() else 0


def local_world_size() -> int:
    """How many processes of this run are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if distributed.is_initialized() else 1


def share_of(n: int, rank: int, world_size: int) -> slice:
    """The part of n rows that belongs to a rank: the parts are in the order of the ranks, and their sizes differ by one
    row at most. Some are empty when there are fewer rows than ranks."""
    return slice(rank * n // world_size, (rank + 1) * n // world_size)


# ---- start and end of a run ----
def launched_by_torchrun() -> bool:
    """Whether torchrun has started this process and others for one run."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ and "MASTER_ADDR" in os.environ


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Context in which the processes that torchrun has started are one process group, and only rank 0 prints.

    Raises:
        InputError: the processes do not reach each other.
    """
    if distributed.is_initialized() or not launched_by_torchrun():
        yield
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun may be killed, and its processes could go on without it
        end_with_parent(os.getppid())
    _require_torchrun()
    on_gpu = torch.cuda.is_available()
    # Its functions have the process group as a default argument. Imported later (torch._dynamo does), they would keep
    # the group, whose threads then run on while the interpreter ends; a thread of C++ may abort the process there.
    importlib.import_module("torch.distributed.nn.functional")
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    except RuntimeError as error:
        raise InputError(f"the processes that torchrun has started do not reach each other ({last_line(str(error))}); "
                         "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network to use") from None
    if on_gpu and local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    with open(os.devnull, "w", encoding="utf-8") as nowhere, \
            contextlib.redirect_stdout(sys.stdout if rank() == 0 else nowhere):
        yield
    distributed.destroy_process_group()  # not after an error: other ranks may be gone, or may wait for this one


def _require_torchrun() -> None:
    """Raise InputError where torchrun is gone: killed while this process was starting, so that no parent is left to
    look for. torch would wait for it as long as for another rank."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # then rank 0 serves the store, not torchrun
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        distributed.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=AGENT_TIMEOUT)
    except RuntimeError as error:
        raise InputError(f"torchrun, which has started this process, does not answer at {address}:{port} "
                         f"({last_line(str(error))}); start the command again") from None


def require_own_gpu() -> None:
    """Raise InputError where this machine has more processes of the run than GPUs."""
    if world_size() > 1 and local_rank() >= torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        of = "" if visible is None else f" of CUDA_VISIBLE_DEVICES={visible}"
        raise InputError(f"torchrun has started more processes on this machine than torch sees GPUs "
                         f"({torch.cuda.device_count()}{of}); lower --nproc-per-node, or add USE_CUDA False")


def first_to_tell() -> bool:
    """Whether this process asks before all others of its run: that one tells the user what has ended the run.

    The answer comes from torchrun's own store, which outlives the processes."""
    if not launched_by_torchrun():
        return True
    with contextlib.suppress(Exception):
        store = distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
                                     wait_for_workers=False, timeout=datetime.timedelta(seconds=5))
        return store.add(f"told/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    return True


def lost_another(error: BaseException | None) -> str | None:
    """The message of an error in the exchange between ranks, which mostly says that another rank has gone; None for
    any other error. On the CPU torch has no type of its own for such errors."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    if launched_by_torchrun() and isinstance(error, RuntimeError) and any(word in str(error) for word in words):
        return last_line(str(error))
    return None


# ---- Python objects ----
def broadcast(function: Callable[[], T]) -> T:
    """Call `function` on rank 0 only. Every rank gets what it returns, or raises what it raises."""
    if world_size() == 1:
        return function()
    answer = [None]
    if rank() == 0:
        answer = [_outcome(function)]
    distributed.broadcast_object_list(answer, src=0, device=torch.device("cpu"))
    return _value(answer[0])


@contextlib.contextmanager
def rank_zero_within(context: Callable[[], contextlib.AbstractContextManager[Any]]) -> Iterator[None]:
    """Context in which rank 0 is within `context()`."""
    with contextlib.ExitStack() as stack:
        broadcast(lambda: stack.enter_context(context()) and None)
        yield


def main_process_first(function: Callable[[], T]) -> T:
    """Call `function` on rank 0, then on the main process of each other machine, then on all other ranks: each finds
    the files that the ones before it have written."""
    if world_size() == 1:
        return function()
    turn = 0 if rank() == 0 else 1 if local_rank() == 0 else 2  # machines may share a disk
    value: Any = None
    errors: list[Exception] = []
    for now in range(3):
        error = None
        if now == turn:
            value, error = _outcome(function)
        errors += [error for error in all_gather(error) if error is not None]
        if errors:
            raise errors[0]
    return value


def all_gather(value: T) -> list[T]:
    """[every rank's `value`], on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def all_reduce_max(number: float) -> float:
    """The highest of the ranks' numbers, on every rank."""
    if world_size() == 1:
        return number
    highest = torch.tensor(number)
    distributed.all_reduce(highest, op=distributed.ReduceOp.MAX)
    return highest.item()


def _outcome(function: Callable[[], Any]) -> Any:
    """(what `function` returns, None), or (None, the exception) in a form that can be sent."""
    try:
        return function(), None
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error


def _value(outcome: Any) -> Any:
    value, error = outcome
    if error is not None:
        raise error
    return value


# ---- tensors ----
class Ranks:
    """The ranks of a run, which divide the towers' work; by default one rank, which communicates with nobody.

    The towers are what costs. Each rank holds the prompts and runs its share of the towers; the loss, the optimizer and
    everything else of a method are computed on every rank alike, from the features of all ranks. So a method is written
    once, for one process. All ranks call the same methods in the same order, and build the same graph.

    Every rank computes the same loss L. As in any data-parallel training, the mean of the ranks' L is minimised, and a
    gradient is the mean of the ranks' own gradients. For this to be the gradient of one process, `all_gather` must give
    the rows of a rank the gradients of all ranks' losses: its backward pass is a reduce-scatter, whose backward pass is
    `all_gather` again. Both, and the mean, can therefore be differentiated twice, as second-order meta-gradients need.

    Attributes: rank; world_size.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size

    @classmethod
    def of_this_run(cls) -> Ranks:
        """Those of torch.distributed's default process group, if there is one."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Context in which each rank computes everything itself and communicates with nobody."""
        in_the_run = self.rank, self.world_size
        self.rank, self.world_size = 0, 1
        try:
            yield
        finally:
            self.rank, self.world_size = in_the_run

    def share(self, n: int, rank: int | None = None) -> slice:
        """This rank's (or `rank`'s) part of n rows, see `share_of`."""
        return share_of(n, self.rank if rank is None else rank, self.world_size)

    def divide(self, n: int, compute: Callable[[slice], Tensor], dim: int = 0) -> Tensor:
        """n rows, of which each rank computes its share.

        Args:
            n: number of rows, at least 1.
            compute: slice of rows -> tensor that has these rows along `dim`.
        Returns:
            tensor with all n rows along `dim`, the same on every rank.
        """
        if self.world_size == 1:
            return compute(slice(0, n))
        own = self.share(n)
        if own.start < own.stop:
            return self.all_gather(compute(own), n, dim)
        # The backward pass communicates, too, so a rank without rows must be part of the graph.
        return self.all_gather(compute(slice(0, 1)).narrow(dim, 0, 0), n, dim)

    def all_gather(self, own: Tensor, n: int, dim: int = 0) -> Tensor:
        """The ranks' rows along `dim`, concatenated: each rank gives its share of n rows and gets all n."""
        if self.world_size == 1:
            return own
        return _AllGather.apply(own.movedim(dim, 0), n, self).movedim(0, dim)

    def all_reduce_mean(self, tensors: list[Tensor]) -> list[Tensor]:
        """The mean over the ranks of each of a list of float32 tensors, in one call."""
        if self.world_size == 1 or not tensors:
            return tensors
        flat = _AllReduceMean.apply(torch.cat([tensor.flatten() for tensor in tensors]), self)
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors)]


class _AllGather(Function):
    """Own rows (n_r, ...) -> all ranks' rows (n, ...)."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, n: int, ranks: Ranks) -> Tensor:
        ctx.n, ctx.ranks = n, ranks
        longest = -(-n // ranks.world_size)  # only pieces of one length can be exchanged
        padded = own.new_zeros(longest, *own.shape[1:])
        padded[:len(own)] = own
        pieces = [torch.empty_like(padded) for _ in range(ranks.world_size)]
        # As bytes: not every backend knows every type.
        distributed.all_gather([_bytes(piece) for piece in pieces], _bytes(padded))
        shares = (ranks.share(n, rank) for rank in range(ranks.world_size))
        return torch.cat([piece[:share.stop - share.start] for piece, share in zip(pieces, shares)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _ReduceScatter.apply(gradient, ctx.n, ctx.ranks), None, None


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)


class _ReduceScatter(Function):
    """Gradients of all rows (n, ...) -> the sum over the ranks, of which the own rows (n_r, ...)."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, n: int, ranks: Ranks) -> Tensor:
        ctx.n, ctx.ranks = n, ranks
        total = gradient.float().contiguous().clone()
        distributed.all_reduce(total)
        return total[ranks.share(n)].to(gradient.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _AllGather.apply(gradient, ctx.n, ctx.ranks), None, None


class _AllReduceMean(Function):
    """A flat tensor -> its mean over the ranks."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        total = flat.clone()
        distributed.all_reduce(total)
        return total / ranks.world_size

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _AllReduceMean.apply(gradient.contiguous(), ctx.ranks), None
