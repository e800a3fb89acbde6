"""What every dataset is: lists of `Datum`."""
import contextlib
import contextvars
import random
from collections import defaultdict
from dataclasses import dataclass

from dassl.data.datasets.labels import check_parts, composed, same_prompts
from dassl.utils import InputError, printable
from dassl.utils.registry import nearest

_KEEP = contextvars.ContextVar("keep_lists", default=False)
lists_are_kept = _KEEP.get


@contextlib.contextmanager
def keep_lists():
    """A dataset that is built within keeps the lists that it draws from, where it can: other seeds and numbers of shots
    are then drawn from them (`drawn_anew`)."""
    token = _KEEP.set(True)
    try:
        yield
    finally:
        _KEEP.reset(token)


@dataclass(slots=True, eq=False)
class Datum:
    """One image: its path, its label (a number from 0), the index of its domain, the name of its class."""

    impath: str = ""
    label: int = 0
    domain: int = 0
    classname: str = ""


class DatasetBase:
    """Training, validation and test parts; the classes and their names come from the training part.

    Args:
        train_x: labelled training images, a list of Datum.
        train_u: unlabelled training images, or None.
        val: validation images, or None.
        test: test images.
    Attributes:
        lab2cname, classnames: {label: name} and the names in label order, accents composed.
    Raises:
        InputError: the parts contradict themselves or each other (`check_parts`), or there is only one class.
    """

    dataset_dir = ""  # the folder below DATASET.ROOT
    domains: list[str] = []  # names of all domains the dataset has
    draw_records: dict[str, object] = {}  # {file below the run folder: JSON that says what was drawn}, see draws.py

    def __init__(self, train_x=None, train_u=None, val=None, test=None):
        self.train_x, self.train_u, self.val, self.test = train_x, train_u, val, test
        owner = type(self).__name__
        self.lab2cname = check_parts(owner, {"train": train_x, "train_u": train_u, "val": val, "test": test})
        self.classnames = list(self.lab2cname.values())
        self.num_classes = len(self.classnames)
        if self.num_classes == 1:
            raise InputError(f"{owner} has one class, '{self.classnames[0]}': an accuracy among one class is always "
                             "100 %; give it at least two")

    @property
    def untested_classes(self):
        """Names of the classes that have no test image."""
        tested = {item.label for item in self.test}
        return [name for label, name in self.lab2cname.items() if label not in tested]

    def tell_of_classes(self):
        """Print a line each of what is right and worth knowing before numbers are read."""
        if names := self.untested_classes:
            print(f"Note: {len(names)} of {self.num_classes} classes have no test image, first "
                  f"'{printable(names[0])}'; the accuracies say nothing of them")
        for part, items in (("training", self.train_x), ("test", self.test)):
            if again := len(items) - len({item.impath for item in items}):
                print(f"Warning: {again} of {len(items)} entries of the {part} part name an image that it has already; "
                      "each counts again")
        if groups := same_prompts(self.lab2cname):
            shown = ["/".join(f"'{printable(self.lab2cname[label])}' ({label})" for label in labels)
                     for labels in groups[:3]]
            more = f" and {len(groups) - 3} more" if len(groups) > 3 else ""
            print(f"Note: classes (labels) whose prompts are the same: {', '.join(shown)}{more}; by name they cannot "
                  "be told apart")

    @staticmethod
    def get_num_classes(data_source):
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source):
        """({label: name}, [names in label order]) of a list of Datum."""
        mapping = dict(sorted({item.label: item.classname for item in data_source}.items()))
        return mapping, list(mapping.values())

    def check_input_domains(self, source_domains, target_domains):
        """Raise InputError for a domain this dataset does not have."""
        for key, names in (("source", source_domains), ("target", target_domains)):
            if not names:
                raise InputError(f"{type(self).__name__} has domains: give --{key}-domains "
                                 f"(known: {', '.join(self.domains)})")
            if len({composed(name) for name in names}) < len(names):
                raise InputError(f"--{key}-domains names a domain twice: {', '.join(names)}")
            for name in names:
                if composed(name) not in map(composed, self.domains):
                    raise InputError(f"--{key}-domains: {type(self).__name__} has no domain '{name}'"
                                     f"{nearest(name, self.domains)}; known: {', '.join(self.domains)}")

    @staticmethod
    def split_dataset_by_label(data_source):
        """{label: [Datum]}, labels in order of first appearance."""
        output = defaultdict(list)
        for item in data_source:
            output[item.label].append(item)
        return output

    @staticmethod
    def split_dataset_by_domain(data_source):
        """{domain: [Datum]}, domains in order of first appearance."""
        output = defaultdict(list)
        for item in data_source:
            output[item.domain].append(item)
        return output

    def generate_fewshot_dataset(self, *data_sources, num_shots=-1, repeat=False, rng=random):
        """Draw `num_shots` images per class from each source with `rng`; all of them where a class has fewer
        (with `repeat`, drawn with repetition). Below 1: the sources as they are."""
        output = []
        for data_source in data_sources:
            if num_shots < 1:
                output.append(data_source)
                continue
            drawn = []
            for items in self.split_dataset_by_label(data_source).values():
                if len(items) >= num_shots:
                    drawn.extend(rng.sample(items, num_shots))
                else:
                    drawn.extend(rng.choices(items, k=num_shots) if repeat else items)
            output.append(drawn)
        return output[0] if len(output) == 1 else output
