"""What datasets are made of: CoOp's few-shot draw, base and new classes, domains.

`FewShotDataset` is what every dataset is; `SplitDataset` has one folder of images with one split file, `DomainDataset`
and `DrawnDomains` several domains. files.py finds the files; splits.py reads, draws and keeps splits.
"""
import contextlib
import copy
import functools
import inspect
import math
import os
import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

from dassl.data.datasets import DatasetBase, Datum, check_parts, composed, lists_are_kept, source_digest
from dassl.utils import InputError, check_availability, derive_seed, printable, read_json
from datasets.files import FEWSHOT_FOLDER, check_images, class_folders, dataset_folder, list_class, list_classes
from datasets.splits import PART_NAMES, draw_split, drawn_split, read_split

MAX_VAL_SHOTS = 4


# ---- few-shot ----------------------------------------------------------------------------------------------------


def subsample_classes(parts, which):
    """Keep the base classes (the first ceil(n / 2) labels), the new ones (the others, numbered from 0), or all.

    Args:
        parts: lists of Datum; the labels of the first decide.
        which: all, base or new.
    Raises:
        InputError: the half has no class, or one: an accuracy among one class says nothing.
    """
    check_availability(which, ("all", "base", "new"), "DATASET.SUBSAMPLE_CLASSES")
    if which == "all":
        return parts
    labels = sorted({item.label for item in parts[0]})
    half = math.ceil(len(labels) / 2)
    kept = labels[:half] if which == "base" else labels[half:]
    if not kept:
        raise InputError(f"DATASET.SUBSAMPLE_CLASSES is {which}, but of {len(labels)} classes none is {which}; "
                         "base-to-new needs at least four classes")
    if len(kept) == 1:
        name = next(item.classname for item in parts[0] if item.label == kept[0])
        raise InputError(f"DATASET.SUBSAMPLE_CLASSES is {which}, and of {len(labels)} classes one is {which}, "
                         f"'{composed(name)}': an accuracy among one class is always 100 %; base-to-new needs at least "
                         "four classes")
    renumbered = {label: number for number, label in enumerate(kept)}
    return [[replace(item, label=renumbered[item.label]) for item in part if item.label in renumbered]
            for part in parts]


@dataclass
class Lists:
    """What a dataset draws from, the same for every seed and number of shots; the fields are those arguments of
    FewShotDataset."""

    owner: str
    folder: str
    train: list
    val: list | None
    test: list
    others: dict

    checked: bool = False

    def check(self):
        """Raise InputError where the parts contradict each other; once."""
        if not self.checked:
            check_parts(self.owner, {"train": self.train, "val": self.val, "test": self.test, **self.others})
            self.checked = True

    @functools.cached_property
    def source(self):
        return source_digest([self.train] if self.val is None else [self.train, self.val], self.folder)


@functools.cache
def _reads_draws(classes):
    """Whether one of a dataset's `classes`, its own and its bases, that is not from here may read SEED or NUM_SHOTS."""
    others = [base for base in classes if base.__module__ not in (__name__, DatasetBase.__module__, "builtins")]
    try:
        return any(re.search(r"\b(SEED|NUM_SHOTS)\b", inspect.getsource(base)) for base in others)
    except (OSError, TypeError):  # its source is not there
        return True


class FewShotDataset(DatasetBase):
    """A dataset whose training part is drawn few-shot when DATASET.NUM_SHOTS is set.

    The draw is CoOp's: a generator seeded with SEED; train, then validation with at most 4 shots; for each part
    `random.sample` class by class in the order the classes first appear, over all classes, before base and new are
    told apart. With domains, each class of each domain in turn, domains in the order of SOURCE_DOMAINS. It is a
    function of the lists, the shots, the seed and the domains, made anew by each run and recorded in the run's folder
    (`draw_records`). A draw in `split_fewshot/` of the dataset's folder counts while it fits the lists.

    A dataset without a validation part of its own (ImageNet, whose published validation part is its test part) gives
    `val=None`: its validation images are then drawn, by a generator of their own, from the training images that the
    few-shot draw left; without NUM_SHOTS none are left and there is no validation. `dataset.val` never holds test
    images.

    Args:
        cfg: the config.
        folder: the dataset's folder, to which the recorded paths are relative.
        train, test: whole parts.
        val: whole part, or None.
        others: {name: list of Datum} of lists that this run does not read and that must agree with those that it does.
    """

    def __init__(self, cfg, folder, train, val, test, others=None):
        lists = Lists(type(self).__name__, folder, train, val, test, others or {})
        if lists_are_kept():
            self.lists = lists
        self._draw_from(lists, cfg)

    def drawn_anew(self, cfg):
        """The dataset of a config that differs from this one's in SEED and NUM_SHOTS only, drawn from the same lists.

        None where they were not kept (`keep_lists`), or where a class that is not ours may read more of the config."""
        if not hasattr(self, "lists") or _reads_draws(type(self).__mro__):
            return None
        dataset = copy.copy(self)
        dataset.draw_records = {}
        dataset._draw_from(self.lists, cfg)
        return dataset

    def _draw_from(self, lists, cfg):
        shots, which = cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES
        train, val, test = lists.train, lists.val, lists.test
        if shots >= 1 or which != "all" or lists.others:
            lists.check()  # a draw, or half of the classes, may miss what contradicts itself
        if shots >= 1:
            train, val = self.few_shot(cfg, lists, shots)
        self.of_all_classes = train  # DATASET.CLASSNAMES may name base and new classes in one file
        train, val, test = subsample_classes([train, val or [], test], which)
        super().__init__(train_x=train, val=val, test=test)

    def record(self, name, content):
        """Have the run's folder keep what was drawn, as JSON in its file `name`."""
        self.draw_records = {**self.draw_records, name: content}

    def few_shot(self, cfg, lists, shots):
        """[train, val], drawn from the whole parts."""
        folder, train, val, source = lists.folder, lists.train, lists.val, lists.source
        domains = "-".join(["", *cfg.DATASET.SOURCE_DOMAINS])
        name = os.path.join(FEWSHOT_FOLDER, f"shot_{shots}-seed_{cfg.SEED}{domains}.json")
        path = os.path.join(folder, name)
        drawn = self._read_draw(path, folder, train, val, shots, source) if os.path.isfile(path) else None
        if drawn is None:
            rng = random.Random(cfg.SEED)
            drawn = [self._draw(train, shots, rng)]
            rest = self._unused(train, drawn[0]) if val is None else val
            rng = random.Random(derive_seed("validation", cfg.SEED)) if val is None else rng
            drawn.append(self._draw(rest, min(shots, MAX_VAL_SHOTS), rng))
        self.record(name, {**{key: [[os.path.relpath(item.impath, folder), item.label, item.classname]
                                    for item in part] for key, part in zip(PART_NAMES, drawn)}, "source": source})
        return drawn

    @staticmethod
    def _unused(part, drawn):
        used = {item.impath for item in drawn}
        return [item for item in part if item.impath not in used]

    def _draw(self, part, number, rng):
        drawn = []
        for items in self.split_dataset_by_domain(part).values():
            drawn.extend(self.generate_fewshot_dataset(items, num_shots=number, rng=rng))
        return drawn

    def _read_draw(self, path, folder, train, val, shots, source):
        """The draw kept at `path`: [train, val]; None, which is said in one line, where it does not fit the lists.

        Raises InputError where the file is no draw."""
        stored = read_json(path)
        try:
            entries = [[(composed(os.path.normpath(os.path.join(folder, entry[0]))), entry[1],
                         composed(entry[2]) if len(entry) > 2 else None)
                        for entry in stored[key]] for key in ("train", "val")]
        except (KeyError, TypeError, IndexError, ValueError, AttributeError):
            raise InputError(f"{path} is no few-shot draw: it must hold train and val, lists of [path, label, class "
                             "name]; delete it to draw anew") from None
        drawn: list[list[Datum]] = []
        misfit = "" if stored.get("source", source) == source else "it was drawn from other lists"
        for key, chosen, number in zip(("train", "val"), entries, (shots, min(shots, MAX_VAL_SHOTS))):
            whole = train if key == "train" else val if val is not None else self._unused(train, drawn[0])
            known = {composed(os.path.normpath(item.impath)): item for item in whole}
            part = [known.get(impath) for impath, *_ in chosen]
            wrong = [impath for (impath, label, _), item in zip(chosen, part) if item is None or item.label != label]
            named = [(name, item) for (_, _, name), item in zip(chosen, part)
                     if item is not None and name not in (None, composed(item.classname))]
            misfit = misfit or self._misfit(key, whole, part, wrong, named, number)
            if misfit:
                print(f"Note: {path} does not fit: {printable(misfit)}; drawn anew, the file is not used")
                return None
            drawn.append([item for item in part if item is not None])
        return drawn

    @staticmethod
    def _misfit(key, whole, part, wrong, named, number):
        """What is wrong with a part of a kept draw, "" where nothing is.

        Args:
            wrong: paths that the dataset does not have, or with another label; named: [(name in the draw, item)] of
                images whose class has another name."""
        if wrong:
            return f"{wrong[0]} is not in the dataset's {key} part, or has another label there"
        if named:
            name, item = named[0]
            return f"its class '{name}' of {item.impath} is '{composed(item.classname)}' in the dataset"
        if len({item.impath for item in part}) < len(part):
            return f"an image is twice in its {key} part"
        found = Counter((item.domain, item.label) for item in part)
        for group, there in Counter((item.domain, item.label) for item in whole).items():
            if found[group] != min(number, there):
                name = next(item.classname for item in whole if (item.domain, item.label) == group)
                return (f"its {key} part has {found[group]} of the images of class '{composed(name)}', not "
                        f"{min(number, there)}")
        return ""


# ---- kinds of datasets -------------------------------------------------------------------------------------------


class SplitDataset(FewShotDataset):
    """A dataset of one folder of images and one published split file.

    Without that file a split is drawn by `draw`, and recorded as `split_drawn_<name>.json` in the run's folder.
    """

    dataset_dir = ""  # below DATASET.ROOT
    image_dir = ""  # below dataset_dir
    split_file = ""  # in dataset_dir
    hint = ""  # where to get the data
    new_names: dict[str, str] = {}  # {class folder: class name} where CoOp renames
    ignored: tuple[str, ...] = ()  # class folders that are not classes
    fixed_test = False  # whether `draw` keeps a test list that the dataset publishes

    def __init__(self, cfg):
        self.folder = dataset_folder(cfg, self.dataset_dir, self.hint)
        self.images = os.path.join(self.folder, self.image_dir)
        super().__init__(cfg, self.folder, *self.read_parts())

    def read_parts(self):
        """[train, val, test], lists of Datum."""
        published = os.path.join(self.folder, self.split_file)
        if os.path.lexists(published):  # a link that leads nowhere is a fault to be told, not a split to be drawn
            return read_split(published, self.images)
        name = f"split_drawn_{type(self).__name__}.json"
        parts, record = drawn_split(os.path.join(self.folder, name), self.images, self.draw, self.split_file,
                                    self.fixed_test)
        self.record(name, record)
        return parts

    def draw(self):
        """[train, val, test] drawn from the class folders; a dataset with lists of its own reads those instead."""
        if not os.path.isdir(self.images):
            raise InputError(f"no folder {self.images}; {self.hint}")
        folders = [name for name in class_folders(self.images) if name not in self.ignored]
        return draw_split([item for label, name in enumerate(folders)
                           for item in list_class(os.path.join(self.images, name), label,
                                                  self.new_names.get(name, composed(name)))])


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
        self.check_input_domains(cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS)
        known = {composed(name): name for name in self.domains}
        sources, targets = ([known[composed(name)] for name in names]
                            for names in (cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS))
        target_part = cfg.DATASET.TARGET_PART or self.target_part
        check_availability(target_part, ("test", "all"), "DATASET.TARGET_PART")
        train, val = ([replace(item, domain=number) for number, name in enumerate(sources)
                       for item in self.read(name, part)] for part in self.parts)
        test = [replace(item, domain=number) for number, name in enumerate(targets)
                for item in self.read(name, target_part)]
        for part in (train, val, test):
            check_images(part, f"the lists of {type(self).__name__}")
        FewShotDataset.__init__(self, cfg, folder, train, val, test, self.unread(sources + targets))

    def unread(self, domains):
        """{what: list of Datum} of the other domains than these: runs are compared across domains, so the lists of all
        must mean the same by a label. A domain that is not there, or cannot be read, is not asked for."""
        lists = {}
        for name in self.domains:
            if name not in domains:
                with contextlib.suppress(InputError, OSError):
                    lists[f"the domain {name}"] = self.read(name, "all")
        return lists

    def read(self, domain, part):
        """The images of a domain: a list of Datum for train, val (what `parts` calls them), test or all."""
        raise NotImplementedError


class DrawnDomains(DomainDataset):
    """Domains in folders `<domain>/<class>/` without a published split: the parts are drawn by `draw_split`."""

    def split(self, folder, published=""):
        """Draw the split of all domains below `folder`. published: what it stands in for, if anything."""
        name = f"split_drawn_{type(self).__name__}.json"
        parts, record = drawn_split(os.path.join(folder, name), folder,
                                    lambda: draw_split(self.list_domains(folder, self.domains)), published)
        self.record(name, record)
        self.sort_parts(folder, parts)

    @classmethod
    def list_domains(cls, folder, domains):
        """All files of the domains: a list of Datum. The label of a class is its place among all domains' classes,
        which are known by their composed names."""
        for domain in domains:
            if not os.path.isdir(os.path.join(folder, domain)):
                raise InputError(f"no folder {os.path.join(folder, domain)} of the domain {domain}")
        found = sorted({composed(name) for domain in domains for name in class_folders(os.path.join(folder, domain))})
        labels = {name: label for label, name in enumerate(found)}
        names = {name: cls.class_name(name) for name in found}
        return [replace(item, domain=number) for number, domain in enumerate(domains)
                for item in list_classes(os.path.join(folder, domain), names, labels)]

    @staticmethod
    def class_name(folder):
        """A class's name from its folder's."""
        return composed(folder)

    def sort_parts(self, folder, parts):
        self.by_domain: dict[str, dict[str, list[Datum]]] = {name: defaultdict(list) for name in PART_NAMES}
        for name, part in zip(PART_NAMES, parts):
            for item in part:
                domain = os.path.relpath(item.impath, folder).split(os.sep)[0]
                self.by_domain[name][domain].append(item)

    def read(self, domain, part):
        return [item for name in (PART_NAMES if part == "all" else (part,)) for item in self.by_domain[name][domain]]
