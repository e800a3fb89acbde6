"""One run in several processes: each rank holds the prompts and runs its share of the towers.

The towers are what costs; losses, optimizers and everything else a method does is made on every rank alike, from the
features of all ranks. So a method is written once, for one process.

Every rank computes the same loss L. As in any data-parallel training what is minimised is the mean of the ranks' L, and
a gradient is the mean of the ranks' own. For this to be the gradient of one process, `gather` must pass back to a
rank's rows what all ranks' losses say of them: its backward pass adds the ranks' gradients up and takes the own rows,
whose backward pass in turn is `gather`. Both, and the mean, can therefore be differentiated again, which second-order
meta-gradients need.
"""
import contextlib

import torch
from torch import distributed
from torch.autograd import Function


class Ranks:
    """The ranks that make a run together; by default one rank alone, for which nothing is communicated.

    All ranks call the same methods in the same order, and build the same graph.
    """

    def __init__(self, rank=0, size=1):
        self.rank, self.size = rank, size

    @classmethod
    def of_this_run(cls):
        """torch.distributed's default group, if there is one."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    @contextlib.contextmanager
    def apart(self):
        """Within it each rank works for itself."""
        together = self.rank, self.size
        self.rank, self.size = 0, 1
        try:
            yield
        finally:
            self.rank, self.size = together

    def share(self, n, rank=None):
        """This rank's (or `rank`'s) part of n rows: a slice, which is empty on some ranks when n is small."""
        rank = self.rank if rank is None else rank
        return slice(rank * n // self.size, (rank + 1) * n // self.size)

    def divide(self, n, compute, dim=0):
        """The n rows that `compute` makes, each rank making its share.

        Args:
            n: number of rows, at least 1.
            compute: slice of rows -> tensor that has these rows along `dim`.
        Returns:
            tensor with all n rows along `dim`, the same on every rank.
        """
        if self.size == 1:
            return compute(slice(0, n))
        own = self.share(n)
        if own.start < own.stop:
            return self.gather(compute(own), n, dim)
        # The gradient is passed back in common, so a rank without rows is part of the graph as well.
        return self.gather(compute(slice(0, 1)).narrow(dim, 0, 0), n, dim)

    def gather(self, own, n, dim=0):
        """The ranks' rows along `dim` one behind the other: each gives its share of n, all get the n."""
        if self.size == 1:
            return own
        return _Gather.apply(own.movedim(dim, 0), n, self).movedim(0, dim)

    def mean(self, tensors):
        """The mean over the ranks of each of a list of float32 tensors, in one call."""
        if self.size == 1 or not tensors:
            return tensors
        flat = _Mean.apply(torch.cat([tensor.flatten() for tensor in tensors]), self)
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors)]


class _Gather(Function):
    """Own rows (n_r, ...) -> all ranks' rows (n, ...)."""

    @staticmethod
    def forward(ctx, own, n, ranks):
        ctx.n, ctx.ranks = n, ranks
        longest = -(-n // ranks.size)  # pieces of one length is what can be exchanged
        padded = own.new_zeros(longest, *own.shape[1:])
        padded[:len(own)] = own
        pieces = [torch.empty_like(padded) for _ in range(ranks.size)]
        # As bytes: not every backend knows every type.
        distributed.all_gather([_bytes(piece) for piece in pieces], _bytes(padded))
        shares = (ranks.share(n, rank) for rank in range(ranks.size))
        return torch.cat([piece[:share.stop - share.start] for piece, share in zip(pieces, shares)])

    @staticmethod
    def backward(ctx, gradient):
        return _AddUp.apply(gradient, ctx.n, ctx.ranks), None, None


def _bytes(tensor):
    return tensor.view(-1).view(torch.uint8)


class _AddUp(Function):
    """Gradients of all rows (n, ...) -> the sum over the ranks of those of the own rows (n_r, ...)."""

    @staticmethod
    def forward(ctx, gradient, n, ranks):
        ctx.n, ctx.ranks = n, ranks
        total = gradient.float().contiguous().clone()
        distributed.all_reduce(total)
        return total[ranks.share(n)].to(gradient.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return _Gather.apply(gradient, ctx.n, ctx.ranks), None, None


class _Mean(Function):
    """A flat tensor -> its mean over the ranks."""

    @staticmethod
    def forward(ctx, flat, ranks):
        ctx.ranks = ranks
        total = flat.clone()
        distributed.all_reduce(total)
        return total / ranks.size

    @staticmethod
    def backward(ctx, gradient):
        return _Mean.apply(gradient.contiguous(), ctx.ranks), None
