"""What a trainer has in the place of a dataset when it only predicts."""
from dassl.utils import InputError


class NeedsImages(InputError):
    """A model cannot be built from class names alone."""


class DataManagerWithoutData:
    """Class names in the place of a DataManager and of its dataset. Raises NeedsImages for anything else."""

    def __init__(self, classnames, method):
        self.classnames, self.method, self.dataset = list(classnames), method, self
        self.lab2cname, self.num_classes = dict(enumerate(self.classnames)), len(self.classnames)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise NeedsImages(f"{self.__dict__.get('method')} builds its model from the images it was trained on ({name})")
