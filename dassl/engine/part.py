"""Part: a part of a trainer under a public name that a method file may take for something of its own."""
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


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
