"""What the towers need to know of the other processes of a run."""
from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

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
