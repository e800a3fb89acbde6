"""What a trainer holds instead of a dataset when it only predicts."""
from typing import Any

from dassl.utils import InputError


class NeedsImages(InputError):
    """A model cannot be built from class names alone."""


class DataManagerWithoutData:
    """Class names instead of a DataManager and its dataset. Raises NeedsImages when asked for anything else.

    method: the name of the trainer class, for that message."""

    def __init__(self, classnames: list[str], method: str) -> None:
        self.classnames, self.method, self.dataset = list(classnames), method, self
        self.lab2cname, self.num_classes = dict(enumerate(self.classnames)), len(self.classnames)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NeedsImages(f"{self.__dict__.get('method')} builds its model from the images it was trained on ({name})")
