"""Which trained tensors no gradient reaches: a method that says it trains them would train less than it says."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from dassl.utils import InputError

NAMED = 8  # tensors that the message names


class GradientWatch:
    """Watches the trained tensors for the first step, or the first whole epoch.

    A tensor counts as reached when autograd computes a gradient for it, by whatever call; or when an update has one for
    it (`given`) that the trainer was not asked for (`asked`), which gives zeros for what a loss does not depend on.

    Args:
        method: the name of the trainer class.
    """

    def __init__(self, method: str) -> None:
        self.method = method
        self.over = False
        self._epochs = 0  # that were watched as a whole
        self._whole = False  # whether the epoch was watched from its first batch on
        self._names: dict[int, str] = {}  # {id of a tensor: its name}
        self._reached: set[str] = set()
        self._asked: set[str] = set()
        self._hooks: list[RemovableHandle] = []

    def require_graph(self, loss: Tensor, hint: str = "") -> None:
        """Raises InputError for a loss that depends on nothing that wants a gradient.

        hint: what to do about it; by default what helps in a training."""
        if not loss.requires_grad:
            hint = hint or "compute it with self.model, outside of torch.no_grad() and without .detach() or .item()"
            raise InputError(f"{self.method} asks for gradients of a loss that depends on nothing that is trained; "
                             f"{hint}")

    @property
    def used(self) -> bool:
        """Whether any gradient was computed or asked for since the watch began."""
        return bool(self._reached or self._asked)

    def begin(self, named: Mapping[str, Tensor]) -> None:
        """Watch {name: trained tensor}; nothing where the watch has begun or is over."""
        if self._names or self.over:
            return
        self._names = {id(tensor): name for name, tensor in named.items()}
        self._hooks = [tensor.register_hook(self._note(name)) for name, tensor in named.items()]

    def _note(self, name: str) -> Any:
        return lambda gradient: self._reached.add(name)

    def asked(self, tensors: Iterable[Tensor]) -> None:
        """Note tensors whose gradients the trainer was asked for."""
        self._asked |= self._known(tensors)

    def given(self, tensors: Iterable[Tensor]) -> None:
        """Note tensors that are updated with a gradient, wherever it comes from."""
        self._reached |= self._known(tensors) - self._asked

    def _known(self, tensors: Iterable[Tensor]) -> set[str]:
        return {self._names[id(tensor)] for tensor in tensors if id(tensor) in self._names} if self._names else set()

    def step_made(self, batch: int, batches: int, in_turns: int) -> None:
        """Note the end of step `batch` (from 0) of the `batches` of an epoch. Raises as `require_all`, after the first
        step or, where tensors are trained in turns of `in_turns` epochs, at the end of so many epochs that were watched
        as a whole: of the epoch in which a run goes on only some steps are left."""
        if not in_turns:
            self.require_all("in the first step")
            return
        self._whole = self._whole or batch == 0
        if self._whole and batch + 1 == batches:
            self._epochs += 1
        if self._epochs >= in_turns:
            self.require_all("in the first epoch" if in_turns == 1 else f"in the first {in_turns} epochs")

    def require_all(self, when: str) -> None:
        """End the watch. Raises InputError, which names them, where tensors were not reached.

        when: the time that has passed, in words."""
        if self.over or not self._names:
            return
        missing = [name for name in self._names.values() if name not in self._reached]
        self.end()
        if missing:
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            raise InputError(f"{self.method}: no gradient reaches {', '.join(missing[:NAMED])}{more} {when}; let the "
                             "loss depend on it, or take it out by requires_grad_(False); where a step reaches only "
                             "some of what is trained, say trains_in_turns = True")

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._names, self.over = [], {}, True
