"""What a trainer class says of itself."""
import inspect
from typing import Any

from dassl.utils.errors import InputError


def is_class_bound(trainer: Any, cfg: Any) -> bool:
    """Whether what a trainer learns with a config belongs to the training classes and cannot score new ones.

    Args:
        trainer: a trainer class, or a trainer. Its `class_bound` is a class method that is given the config, a plain
            attribute, or, as in older files, a property that reads nothing but `self.cfg` and `self.node`; without one
            it is False.
        cfg: the config.
    Raises:
        InputError: it is a property that cannot be asked, or gives no answer.
    """
    said = inspect.getattr_static(trainer, "class_bound", False)
    if isinstance(said, property):
        return _said_by_property(said, trainer, cfg)
    said = getattr(trainer, "class_bound", False)
    return bool(said(cfg)) if callable(said) else bool(said)


def _said_by_property(said: property, trainer: Any, cfg: Any) -> bool:
    """What an older file's property says; that of a class is given its config and its node in place of a trainer."""
    cls, asked = (trainer, _InPlaceOf(trainer, cfg)) if isinstance(trainer, type) else (type(trainer), trainer)
    try:
        answer = said.__get__(asked)
    except (AttributeError, TypeError) as error:  # it reads more, or calls super()
        raise InputError(_AS_CLASS_METHOD.format(cls=cls.__name__, why=f" ({error})")) from None
    if callable(answer):  # super().class_bound is the method, which is always true
        raise InputError(_AS_CLASS_METHOD.format(cls=cls.__name__, why=""))
    return bool(answer)


class _InPlaceOf:
    """What a property may read of a trainer that is not built."""

    def __init__(self, cls: Any, cfg: Any) -> None:
        self._cls, self.cfg = cls, cfg

    @property
    def node(self) -> Any:
        return self._cls.node_of(self.cfg)


_AS_CLASS_METHOD = ("{cls}.class_bound is a property that gives no answer{why}; class_bound is a class method now: "
                    "def class_bound(cls, cfg)")
