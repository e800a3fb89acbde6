"""What the towers need to know of the other processes of a run."""
from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Collectives(Protocol):
    """The exchange of tensors between the ranks of a run (processes, each with a share of the work).

    All ranks call the same methods in the same order. Gradients pass through every method, twice.
    """

    @property
    def world_size(self) -> int:
        """The number of ranks."""

    def divide(self, n: int, compute: Callable[[slice], Tensor], dim: int = 0) -> Tensor:
        """n rows, of which each rank computes its share: `compute` takes a slice of rows and returns a tensor that has
        these rows along `dim`. Returns all n rows along `dim`, the same on every rank."""

    def all_reduce_mean(self, tensors: list[Tensor]) -> list[Tensor]:
        """The mean over the ranks of each of a list of float32 tensors."""


class SingleProcess:
    """The collectives of a run in one process: nothing is communicated."""

    world_size = 1

    def divide(self, n: int, compute: Callable[[slice], Tensor], dim: int = 0) -> Tensor:
        return compute(slice(0, n))

    def all_reduce_mean(self, tensors: list[Tensor]) -> list[Tensor]:
        return tensors


def divide(ranks: Collectives, n: int, compute: Callable[[slice], Tensor], dim: int = 0,
           draws: torch.device | None = None) -> Tensor:
    """`ranks.divide`.

    draws: the device on which `compute` may draw random numbers, as dropout in towers that are trained does. Each
    rank's draws are then its own. Afterwards the generators of all ranks are alike again, as a method needs that draws
    numbers by itself: where nothing was drawn they are as before, else one draw further."""
    if draws is None or ranks.world_size == 1:
        return ranks.divide(n, compute, dim)
    device = draws

    def share(rows: slice) -> Tensor:
        before = _generator_state(device)
        seed = hashlib.blake2b(before.numpy().tobytes() + str(rows.start).encode(), digest_size=7).digest()
        _seed(device, int.from_bytes(seed, "big"))
        start = _generator_state(device)
        computed = compute(rows)
        drawn = not torch.equal(_generator_state(device), start)
        if device.type == "cuda":
            torch.cuda.set_rng_state(before, device)
        else:
            torch.set_rng_state(before)
        if drawn:
            torch.rand(1, device=device)
        return computed

    return ranks.divide(n, share, dim)


def _generator_state(device: torch.device) -> Tensor:
    """The state of the generator that a device draws from, a tensor on the CPU."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _seed(device: torch.device, seed: int) -> None:
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    else:
        torch.random.default_generator.manual_seed(seed)
