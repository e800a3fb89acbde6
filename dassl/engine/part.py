"""Part: a part of a trainer under a public name that a method file may take for something of its own. OfTrainer: a part
that knows its trainer."""
import weakref
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class OfTrainer(Generic[T]):
    """A part that reads the trainer which holds it."""

    def __init__(self, trainer: T) -> None:
        self._trainer = weakref.ref(trainer)  # it holds this: a circle would keep the memory of a run that is over

    @property
    def trainer(self) -> T:
        trainer = self._trainer()
        if trainer is None:
            raise ReferenceError(f"the trainer of this {type(self).__name__} is gone")
        return trainer


class Part(Generic[T]):
    """`evaluation = Part[Evaluation]()` in a trainer class: `trainer.evaluation` reads `trainer._evaluation`.

    A method file in Dassl's style may have a method or an attribute of that name. It then takes the place of the public
    name only: the trainer classes read the private one, other modules ask `TrainerBase.evaluation.of(trainer)`.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._private = f"_{name}"

    @overload
    def __get__(self, trainer: None, owner: type) -> "Part[T]": ...

    @overload
    def __get__(self, trainer: object, owner: type) -> T: ...

    def __get__(self, trainer: Any, owner: type) -> Any:
        return self if trainer is None else self.of(trainer)

    def of(self, trainer: Any) -> T:
        """The part of a trainer, whatever its class calls by the public name."""
        return getattr(trainer, self._private)
