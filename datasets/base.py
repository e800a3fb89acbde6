"""What datasets are made of: CoOp's few-shot draw, base and new classes, domains.

`FewShotDataset` is what every dataset is; `SplitDataset` has one folder of images with one split file, `DomainDataset`
and `DrawnDomains` several domains. files.py finds the files; splits.py reads, draws and keeps splits.
"""
import contextlib
import math
import os
import random
from collections import defaultdict
from dataclasses import replace

from dassl.data.datasets import DatasetBase
from dassl.utils import InputError, check_availability, derive_seed, read_json, write_json
from datasets.files import (
    FEWSHOT_FOLDER,
    check_images,
    class_folders,
    dataset_folder,
    list_class,
    list_classes,
    name_of,
)
from datasets.splits import PART_NAMES, draw_split, kept_split, read_split

MAX_VAL_SHOTS = 4


# ---- few-shot ----------------------------------------------------------------------------------------------------


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

    A dataset without a validation part of its own (ImageNet, whose published validation part is its test part) gives
    `val=None`: its validation images are then drawn, by a generator of their own, from the training images that the
    few-shot draw left; without NUM_SHOTS none are left and there is no validation. `dataset.val` never holds test
    images.

    Args:
        cfg: the config.
        folder: the dataset's folder, to which the kept paths are relative.
        train, test: whole parts.
        val: whole part, or None.
    """

    def __init__(self, cfg, folder, train, val, test):
        shots = cfg.DATASET.NUM_SHOTS
        if shots >= 1:
            train, val = self.few_shot(cfg, folder, train, val, shots)
        self.of_all_classes = train  # DATASET.CLASSNAMES may name base and new classes in one file
        train, val, test = subsample_classes([train, val or [], test], cfg.DATASET.SUBSAMPLE_CLASSES)
        trained = {item.label for item in train}
        for item in test:
            if item.label not in trained:
                raise InputError(f"{type(self).__name__}: the test part has the class '{item.classname}', of which "
                                 "there is no training image")
        super().__init__(train_x=train, val=val, test=test)

    def few_shot(self, cfg, folder, train, val, shots):
        domains = "-".join(["", *cfg.DATASET.SOURCE_DOMAINS])
        path = os.path.join(folder, FEWSHOT_FOLDER, f"shot_{shots}-seed_{cfg.SEED}{domains}.json")
        if os.path.isfile(path):
            return self._read_draw(path, folder, train, val)
        rng = random.Random(cfg.SEED)
        drawn = [self._draw(train, shots, rng)]
        if val is None:
            used = {item.impath for item in drawn[0]}
            val = [item for item in train if item.impath not in used]
            rng = random.Random(derive_seed("validation", cfg.SEED))
        drawn.append(self._draw(val, min(shots, MAX_VAL_SHOTS), rng))
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
    def _read_draw(path, folder, train, val):
        stored, drawn = read_json(path), []
        for key, part in (("train", train), ("val", train if val is None else val)):
            known = {os.path.normpath(item.impath): item for item in part}
            try:
                chosen = [known[os.path.normpath(os.path.join(folder, entry[0]))] for entry in stored[key]]
                right = all(item.label == entry[1] for item, entry in zip(chosen, stored[key]))
            except (KeyError, TypeError, IndexError):
                right = False
            if not right:
                raise InputError(f"{path} does not fit the dataset's {key} part; delete it to draw anew")
            drawn.append(chosen)
        if {item.impath for item in drawn[0]} & {item.impath for item in drawn[1]}:
            raise InputError(f"{path} does not fit: it has images in both train and val; delete it to draw anew")
        return drawn


# ---- kinds of datasets -------------------------------------------------------------------------------------------


class SplitDataset(FewShotDataset):
    """A dataset of one folder of images and one published split file.

    Without that file a split is drawn by `draw` and kept beside it as `split_drawn_<name>.json`.
    """

    dataset_dir = ""  # below DATASET.ROOT
    image_dir = ""  # below dataset_dir
    split_file = ""  # in dataset_dir
    hint = ""  # where to get the data
    new_names = {}  # {class folder: class name} where CoOp renames
    ignored = ()  # class folders that are not classes

    def __init__(self, cfg):
        self.folder = dataset_folder(cfg, self.dataset_dir, self.hint)
        self.images = os.path.join(self.folder, self.image_dir)
        super().__init__(cfg, self.folder, *self.read_parts())

    def read_parts(self):
        """[train, val, test], lists of Datum."""
        published = os.path.join(self.folder, self.split_file)
        if os.path.lexists(published):  # a link that leads nowhere is a fault to be told, not a split to be drawn
            return read_split(published, self.images)
        drawn = os.path.join(self.folder, f"split_drawn_{type(self).__name__}.json")
        return kept_split(drawn, self.images, self.draw, self.split_file)

    def draw(self):
        """[train, val, test] drawn from the class folders; a dataset with lists of its own reads those instead."""
        if not os.path.isdir(self.images):
            raise InputError(f"no folder {self.images}; {self.hint}")
        folders = [name for name in class_folders(self.images) if name not in self.ignored]
        return draw_split([item for label, name in enumerate(folders)
                           for item in list_class(os.path.join(self.images, name), label,
                                                  self.new_names.get(name, name))])


class DomainDataset(FewShotDataset):
    """A dataset of several domains: training and validation images from DATASET.SOURCE_DOMAINS, test images from
    DATASET.TARGET_DOMAINS. A subclass says `domains` and `read(domain, part)`.

    A target domain is tested on its test part or on all of its images, as DATASET.TARGET_PART says; where that is
    empty, on `target_part`, what the published comparisons on that dataset do.
    """

    parts = ("train", "val")  # what `read` is asked for on the source domains
    target_part = "all"

    @classmethod
    def domain_names(cls, root):
        """The domains of the dataset below DATASET.ROOT `root`."""
        return list(cls.domains)

    def build(self, cfg, folder):
        sources, targets = list(cfg.DATASET.SOURCE_DOMAINS), list(cfg.DATASET.TARGET_DOMAINS)
        self.check_input_domains(sources, targets)
        target_part = cfg.DATASET.TARGET_PART or self.target_part
        check_availability(target_part, ("test", "all"), "DATASET.TARGET_PART")
        train, val = ([replace(item, domain=number) for number, name in enumerate(sources)
                       for item in self.read(name, part)] for part in self.parts)
        test = [replace(item, domain=number) for number, name in enumerate(targets)
                for item in self.read(name, target_part)]
        for part in (train, val, test):
            check_images(part, f"the lists of {type(self).__name__}")
        FewShotDataset.__init__(self, cfg, folder, train, val, test)

    def read(self, domain, part):
        """The images of a domain: a list of Datum for train, val (what `parts` calls them), test or all."""
        raise NotImplementedError


class DrawnDomains(DomainDataset):
    """Domains in folders `<domain>/<class>/` without a published split: the parts are drawn by `draw_split`."""

    def split(self, folder, published=""):
        """Draw or read the split of all domains below `folder`. published: what it stands in for, if anything."""
        path = os.path.join(folder, f"split_drawn_{type(self).__name__}.json")
        self.sort_parts(folder, kept_split(path, folder, lambda: draw_split(self.list_domains(folder, self.domains)),
                                           published))

    @classmethod
    def list_domains(cls, folder, domains):
        """All files of the domains: a list of Datum. The label of a class is its place among all domains' classes."""
        for domain in domains:
            if not os.path.isdir(os.path.join(folder, domain)):
                raise InputError(f"no folder {os.path.join(folder, domain)} of the domain {domain}")
        found = sorted({name for domain in domains for name in class_folders(os.path.join(folder, domain))})
        labels = {name: label for label, name in enumerate(found)}
        names = {name: cls.class_name(name) for name in found}
        return [replace(item, domain=number) for number, domain in enumerate(domains)
                for item in list_classes(os.path.join(folder, domain), names, labels)]

    @staticmethod
    def class_name(folder):
        """A class's name from its folder's."""
        return name_of(folder)

    def sort_parts(self, folder, parts):
        self.by_domain = {name: defaultdict(list) for name in PART_NAMES}
        for name, part in zip(PART_NAMES, parts):
            for item in part:
                domain = os.path.relpath(item.impath, folder).split(os.sep)[0]
                self.by_domain[name][domain].append(item)

    def read(self, domain, part):
        return [item for name in (PART_NAMES if part == "all" else (part,)) for item in self.by_domain[name][domain]]
