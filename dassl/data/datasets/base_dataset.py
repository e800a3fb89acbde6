"""What every dataset is: lists of `Datum`."""
import random
from collections import defaultdict
from dataclasses import dataclass

from dassl.utils import InputError


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
    """

    dataset_dir = ""  # the folder below DATASET.ROOT
    domains = []  # names of all domains the dataset has

    def __init__(self, train_x=None, train_u=None, val=None, test=None):
        self.train_x, self.train_u, self.val, self.test = train_x, train_u, val, test
        if not train_x or not test:
            raise InputError(f"{type(self).__name__}: the {'training' if not train_x else 'test'} part is empty; "
                             "check DATASET.ROOT, the split file and SUBSAMPLE_CLASSES")
        lowest = min(item.label for item in train_x)
        if lowest < 0:
            raise InputError(f"{type(self).__name__}: an image has the label {lowest}; labels start at 0 "
                             "(at 1 in lists that count from 1)")
        names = {}
        for item in train_x:
            if names.setdefault(item.label, item.classname) != item.classname:
                raise InputError(f"{type(self).__name__}: label {item.label} is called '{names[item.label]}' and "
                                 f"'{item.classname}' ({item.impath}); a class has one name")
        self.lab2cname = dict(sorted(names.items()))
        self.num_classes = max(self.lab2cname) + 1
        if len(self.lab2cname) != self.num_classes:
            missing = next(number for number, label in enumerate(self.lab2cname) if number != label)
            raise InputError(f"{type(self).__name__}: no training image has label {missing} "
                             f"(labels run to {self.num_classes - 1}); every class needs training images")
        self.classnames = list(self.lab2cname.values())

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
            if len(set(names)) < len(names):
                raise InputError(f"--{key}-domains names a domain twice: {', '.join(names)}")
            for name in names:
                if name not in self.domains:
                    raise InputError(f"--{key}-domains: {type(self).__name__} has no domain '{name}'; "
                                     f"known: {', '.join(self.domains)}")

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
        """Draw `num_shots` images a class from each source with `rng`; all of them where a class has fewer
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
