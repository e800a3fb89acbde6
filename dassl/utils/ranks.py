"""A run in several processes, as torchrun starts them. All make the same steps; rank 0 alone writes and prints.

Without torchrun every function here does the plain thing at no cost.
"""
import contextlib
import datetime
import os
import pickle
import sys

import torch
from torch import distributed

from dassl.utils.errors import InputError, last_line
from dassl.utils.processes import end_with_parent

# How long a rank may wait for another, which may have a dataset to unpack. That one has died is noticed before: by
# gloo at once, with NCCL by torchrun.
PATIENCE = datetime.timedelta(hours=2)


def rank():
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size():
    """How many processes make this run."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_rank():
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) if distributed.is_initialized() else 0


def processes_here():
    """How many processes of this run are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if distributed.is_initialized() else 1


def share_of(n, rank, ranks):
    """A rank's part of n rows, a slice: parts are neighbours and differ by one row at most."""
    return slice(rank * n // ranks, (rank + 1) * n // ranks)


def started_together():
    """Whether torchrun has started this process and others for one run."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ and "MASTER_ADDR" in os.environ


@contextlib.contextmanager
def joined():
    """Within it the processes that torchrun has started know each other, and only rank 0 prints."""
    if distributed.is_initialized() or not started_together():
        yield
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun may be killed, and its processes need it no more to go on
        end_with_parent(os.getppid())
    on_gpu = torch.cuda.is_available()
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    except RuntimeError as error:
        raise InputError(f"the processes that torchrun has started do not reach each other ({last_line(str(error))}); "
                         "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network to use") from None
    if on_gpu and local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    with open(os.devnull, "w", encoding="utf-8") as nowhere, \
            contextlib.redirect_stdout(sys.stdout if rank() == 0 else nowhere):
        yield
    distributed.destroy_process_group()  # not after an error: the others may be gone, or wait for this one


def require_own_gpu():
    """Raise InputError where there are more processes than GPUs."""
    if world_size() > 1 and local_rank() >= torch.cuda.device_count():
        raise InputError(f"torchrun has started more processes on this machine than it has GPUs "
                         f"({torch.cuda.device_count()}); lower --nproc-per-node, or add USE_CUDA False")


def broadcast(function):
    """What `function()` gives on rank 0, which alone calls it, on every rank; or what it raises."""
    if world_size() == 1:
        return function()
    answer = [None]
    if rank() == 0:
        answer = [_outcome(function)]
    distributed.broadcast_object_list(answer, src=0, device=torch.device("cpu"))
    return _value(answer[0])


@contextlib.contextmanager
def rank_zero_within(context):
    """Within it rank 0 is within `context()`."""
    with contextlib.ExitStack() as stack:
        broadcast(lambda: stack.enter_context(context()) and None)
        yield


def main_process_first(function):
    """`function()` on rank 0, then on the first process of each other machine, then on the others: each finds the files
    that those before it have written."""
    if world_size() == 1:
        return function()
    turn = 0 if rank() == 0 else 1 if local_rank() == 0 else 2  # machines may share a disk
    value, errors = None, []
    for now in range(3):
        error = None
        if now == turn:
            value, error = _outcome(function)
        errors += [error for error in all_gather(error) if error is not None]
        if errors:
            raise errors[0]
    return value


def all_gather(value):
    """[every rank's `value`], on every rank."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def all_reduce_max(number):
    """The highest of the ranks' numbers (torch.distributed's all_reduce with MAX)."""
    if world_size() == 1:
        return number
    number = torch.tensor(number)
    distributed.all_reduce(number, op=distributed.ReduceOp.MAX)
    return number.item()


def first_to_tell():
    """Whether this process is the first of its run that asks: one of them tells the user what has ended it.

    The answer comes from torchrun itself, which outlives its processes."""
    if not started_together():
        return True
    with contextlib.suppress(Exception):
        store = distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
                                     wait_for_workers=False, timeout=datetime.timedelta(seconds=5))
        return store.add(f"told/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    return True


def lost_another(error):
    """What an error of the exchange between ranks says, mostly that one has gone; None for another error. On the CPU
    torch has no type for these."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    if started_together() and isinstance(error, RuntimeError) and any(word in str(error) for word in words):
        return last_line(str(error))
    return None


def _outcome(function):
    """(what it gives, None), or (None, the exception) in a form that can be sent."""
    try:
        return function(), None
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error


def _value(outcome):
    value, error = outcome
    if error is not None:
        raise error
    return value
