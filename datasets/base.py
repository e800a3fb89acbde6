"""What datasets share: published split files, CoOp's few-shot draw, base and new classes, domains."""
import contextlib
import math
import os
import random
from collections import defaultdict
from dataclasses import replace

from dassl.data.datasets import DatasetBase, Datum
from dassl.utils import InputError, check_availability, read_json, write_json

MAX_VAL_SHOTS = 4


def dataset_folder(cfg, name, hint):
    """`DATASET.ROOT/name`. Raises InputError that names the folder and says how to get the data."""
    root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
    folder = os.path.join(root, name)
    if not os.path.isdir(folder):
        raise InputError(f"no dataset folder at {folder}; {hint}, or point --root (DATA for the scripts) at the folder "
                         f"that holds {name}/")
    return folder


def require_file(path, hint):
    if not os.path.isfile(path):
        raise InputError(f"no file at {path}; {hint}")
    return path


def check_images(items, source):
    """Raise InputError if a listed image is not there. Folders are listed once instead of asking for every file."""
    folders = defaultdict(list)
    for item in items:
        folders[os.path.dirname(item.impath)].append(os.path.basename(item.impath))
    missing = []
    for folder, names in sorted(folders.items()):
        present = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        missing.extend(os.path.join(folder, name) for name in names if name not in present)
    if missing:
        raise InputError(f"{source} names {len(missing)} of {len(items)} images that are not there, first "
                         f"{missing[0]}; fetch the images again or check DATASET.ROOT")


def read_split(path, image_dir):
    """A `split_zhou_*.json` file -> (train, val, test) lists of Datum.

    Its entries are [path below image_dir, label, class name]. Raises InputError for another form or missing images.
    """
    split = read_json(path)
    try:
        parts = [[Datum(os.path.join(image_dir, impath), int(str(label)), 0, str(name))  # str: 1.5 is no label
                  for impath, label, name in split[key]] for key in ("train", "val", "test")]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InputError(f"{path} is not a split file: it must hold train, val and test, lists of "
                         "[path, label, class name]") from None
    for part in parts:
        check_images(part, path)
    return parts


def subsample_classes(parts, which):
    """Keep the base classes (the first ceil(n / 2) labels), the new ones (the others, numbered from 0), or all.

    Args:
        parts: lists of Datum; the labels of the first decide.
        which: all, base or new.
    """
    check_availability(which, ("all", "base", "new"), "DATASET.SUBSAMPLE_CLASSES")
    if which == "all":
        return parts
    labels = sorted({item.label for item in parts[0]})
    half = math.ceil(len(labels) / 2)
    kept = labels[:half] if which == "base" else labels[half:]
    if not kept:
        raise InputError(f"DATASET.SUBSAMPLE_CLASSES is {which}, but of {len(labels)} classes none is {which}")
    renumbered = {label: number for number, label in enumerate(kept)}
    return [[replace(item, label=renumbered[item.label]) for item in part if item.label in renumbered]
            for part in parts]


class FewShotDataset(DatasetBase):
    """A dataset whose training part is drawn few-shot when DATASET.NUM_SHOTS is set.

    The draw is CoOp's: a generator seeded with SEED; train, then validation with at most 4 shots; for each part
    `random.sample` class by class in the order the classes first appear, over all classes, before base and new are
    told apart. With domains, a class of a domain at a time, domains in the order of SOURCE_DOMAINS. It is kept as JSON
    in `split_fewshot/` of the dataset's folder where that can be written, and read from there.

    Args:
        cfg: the config.
        folder: the dataset's folder, to which the kept paths are relative.
        train, val, test: whole parts.
    """

    def __init__(self, cfg, folder, train, val, test):
        shots = cfg.DATASET.NUM_SHOTS
        if shots >= 1:
            train, val = self.few_shot(cfg, folder, train, val, shots)
        train, val, test = subsample_classes([train, val, test], cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=train, val=val, test=test)

    def few_shot(self, cfg, folder, train, val, shots):
        domains = "-".join(["", *cfg.DATASET.SOURCE_DOMAINS])
        path = os.path.join(folder, "split_fewshot", f"shot_{shots}-seed_{cfg.SEED}{domains}.json")
        if os.path.isfile(path):
            return self._read_draw(path, folder, train, val)
        rng = random.Random(cfg.SEED)
        drawn = [self._draw(part, number, rng) for part, number in ((train, shots), (val, min(shots, MAX_VAL_SHOTS)))]
        kept = {key: [[os.path.relpath(item.impath, folder), item.label, item.classname] for item in part]
                for key, part in zip(("train", "val"), drawn)}
        with contextlib.suppress(OSError):  # a folder that is read-only: the same draw is made next time
            write_json(kept, path)
        return drawn

    def _draw(self, part, number, rng):
        drawn = []
        for items in self.split_dataset_by_domain(part).values():
            drawn.extend(self.generate_fewshot_dataset(items, num_shots=number, rng=rng))
        return drawn

    @staticmethod
    def _read_draw(path, folder, *parts):
        stored, drawn = read_json(path), []
        for key, part in zip(("train", "val"), parts):
            known = {os.path.relpath(item.impath, folder): item for item in part}
            try:
                chosen = [known[entry[0]] for entry in stored[key]]
                right = all(item.label == entry[1] for item, entry in zip(chosen, stored[key]))
            except (KeyError, TypeError, IndexError):
                right = False
            if not right:
                raise InputError(f"{path} does not fit the dataset's {key} part; delete it to draw anew")
            drawn.append(chosen)
        return drawn


class DomainDataset(FewShotDataset):
    """A dataset of several domains: training and validation images from DATASET.SOURCE_DOMAINS, test images from
    DATASET.TARGET_DOMAINS. A subclass says `domains` and `read(domain, part)`."""

    parts = ("train", "val")  # what `read` is asked for on the source domains

    def build(self, cfg, folder):
        sources, targets = list(cfg.DATASET.SOURCE_DOMAINS), list(cfg.DATASET.TARGET_DOMAINS)
        self.check_input_domains(sources, targets)
        train, val = ([replace(item, domain=number) for number, name in enumerate(sources)
                       for item in self.read(name, part)] for part in self.parts)
        test = [replace(item, domain=number) for number, name in enumerate(targets) for item in self.read(name, "all")]
        for part in (train, val, test):
            check_images(part, f"the lists of {type(self).__name__}")
        FewShotDataset.__init__(self, cfg, folder, train, val, test)

    def read(self, domain, part):
        """The images of a domain: a list of Datum for train, val or all."""
        raise NotImplementedError
