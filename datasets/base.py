"""What datasets share: class folders, published and drawn splits, CoOp's few-shot draw, base and new classes, domains.

From the top: how files are found; how a split is read, drawn and kept; `FewShotDataset`, which every dataset is;
`SplitDataset`, for one folder of images with one split file; `DomainDataset` and `DrawnDomains`, for several domains.
"""
import contextlib
import math
import os
import random
import unicodedata
import warnings
from collections import defaultdict
from dataclasses import replace

from PIL import Image

from dassl.data.datasets import DatasetBase, Datum
from dassl.utils import InputError, check_availability, derive_seed, listdir_nohidden, read_json, write_json

MAX_VAL_SHOTS = 4
SPLIT_SEED = 0  # of splits that are drawn here: one split for every run, whatever its SEED
PART_NAMES = ("train", "val", "test")
FEWSHOT_FOLDER = "split_fewshot"


# ---- files -------------------------------------------------------------------------------------------------------


def how_to_get(name, source):
    """The hint of a dataset that is not there. name: its config in configs/datasets; source: its page."""
    return f"tools/prepare_data.py {name} gets it or says how (source: {source}; docs/DATASETS.md)"


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


def read_lines(path, hint):
    """[(number, line)] of a text file without its empty lines. Raises InputError where there is none."""
    try:
        with open(require_file(path, hint), encoding="utf-8") as file:
            return [(number, line.strip()) for number, line in enumerate(file, start=1) if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8 ({error}); {hint}") from None


def read_mat(path, key, hint):
    """The array `key` of a MATLAB file. Raises InputError where there is none."""
    from scipy.io import loadmat, matlab  # slow to import, and only datasets without their split file need it

    require_file(path, hint)
    try:
        return loadmat(path)[key]
    except (matlab.MatReadError, ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(f"{path} is no MATLAB file with '{key}' ({error}); {hint}") from None


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


def class_folders(folder):
    """Sorted names of the visible folders in `folder`, without the one that keeps few-shot draws."""
    return [name for name in listdir_nohidden(folder)
            if name != FEWSHOT_FOLDER and os.path.isdir(os.path.join(folder, name))]


def list_class(folder, label, classname):
    """The files of a class folder in sorted order: a list of Datum. Hidden files and folders are no images."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())
    return [Datum(os.path.join(folder, name), label, 0, classname) for name in names]


def list_classes(folder, names=None, labels=None):
    """The files of `folder/<class>/`, class by class: a list of Datum.

    Args:
        names: {folder: class name} where the two differ.
        labels: {folder: label}; default: the place in the sorted list of folders.
    """
    folders = class_folders(folder)
    labels = labels or {name: label for label, name in enumerate(folders)}
    return [item for name in folders
            for item in list_class(os.path.join(folder, name), labels[name], (names or {}).get(name, name))]


def own_folder(cfg, layout):
    """DATASET.ROOT where it is itself a dataset of one's own. Raises InputError that shows the layout."""
    folder = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
    if not cfg.DATASET.ROOT or not os.path.isdir(folder) or not class_folders(folder):
        raise InputError(f"no folders in {folder}; --root (DATA for the scripts) must name the folder of your "
                         f"pictures, {layout} below it (docs/CUSTOM_DATA.md)")
    return folder


def list_own(folder, labels=None):
    """The files of one's own class folders: a list of Datum. Raises InputError where there is no such folder, or one
    without files."""
    if not class_folders(folder):
        raise InputError(f"{folder} holds no class folders; images lie in a folder for each class "
                         "(docs/CUSTOM_DATA.md)")
    items = list_classes(folder, {name: name_of(name) for name in class_folders(folder)}, labels)
    filled = {os.path.dirname(item.impath) for item in items}
    for name in class_folders(folder):
        path = os.path.join(folder, name)
        if path not in filled:
            inside = class_folders(path)
            raise InputError(f"{path} holds no images{f', but folders such as {inside[0]}' if inside else ''}; a class "
                             "folder holds its images itself (domains of classes are the dataset domain_folder)")
    return items


def name_of(folder):
    """A class name from the name of a folder of one's own, whichever way the disk composes accents."""
    return unicodedata.normalize("NFC", folder)


def leave_out_non_images(items, folder):
    """(images, [paths relative to `folder` of files that are none]), told apart by their headers alone.

    A picture whose header is whole and whose pixels are damaged is found when it is read.
    """
    images, left_out = [], []
    for item in items:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what Pillow has to say of a size or of metadata is no verdict
                Image.open(item.impath).close()
            images.append(item)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            left_out.append(os.path.relpath(item.impath, folder))
    return images, left_out


def report_left_out(left_out, folder):
    """Name each file that was left out in one line, then their number."""
    for path in left_out:
        print(f"Left out, not an image that can be read: {_printable(os.path.join(folder, path))}")
    if left_out:
        print(f"{len(left_out)} file{'s' if len(left_out) > 1 else ''} of {folder} left out")


def _printable(path):
    return path.encode("utf-8", "backslashreplace").decode()


# ---- splits ------------------------------------------------------------------------------------------------------


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


def draw_split(items, rng=None):
    """CoOp's split of a dataset that comes without one: of every class (of a domain) 50% train, 20% val, 30% test.

    The images of a class are shuffled, classes in the order they first appear. Where a class is so small that a part
    would be empty, test and then validation take an image of the training part; one image is training.

    Returns:
        [train, val, test], lists of Datum.
    """
    rng = rng or random.Random(SPLIT_SEED)
    parts = [[], [], []]
    for group in _by_class(items).values():
        rng.shuffle(group)
        count = len(group)
        n_val = max(round(0.2 * count), int(count >= 3))
        n_train = max(min(round(0.5 * count), count - n_val - int(count >= 2)), 1)
        for part, chosen in zip(parts, (group[:n_train], group[n_train:n_train + n_val], group[n_train + n_val:])):
            part.extend(chosen)
    return parts


def split_trainval(items, rng=None):
    """CoOp's split where only training and test images are told apart: of every class 20% validation, the others
    training. Returns (train, val), lists of Datum."""
    rng = rng or random.Random(SPLIT_SEED)
    train, val = [], []
    for group in _by_class(items).values():
        rng.shuffle(group)
        n_val = max(round(0.2 * len(group)), int(len(group) >= 2))
        val.extend(group[:n_val])
        train.extend(group[n_val:])
    return train, val


def _by_class(items):
    groups = defaultdict(list)
    for item in items:
        groups[item.domain, item.label].append(item)
    return groups


def kept_split(path, image_dir, draw, published=""):
    """The split kept at `path`, or the one that `draw()` makes, kept there where that can be written.

    Args:
        path: a file of the form `read_split` takes.
        image_dir: the folder its paths are relative to.
        draw: () -> [train, val, test].
        published: what it stands in for, the dataset's published split, where there is one.
    """
    warning = f"; numbers do not compare with those on {published}, which is not there" if published else ""
    if os.path.isfile(path):
        print(f"Split: {path}, drawn by this code{warning}")
        return read_split(path, image_dir)
    parts = draw()
    for part in parts:
        check_images(part, "the dataset's own list")
    kept = keep_split(path, image_dir, parts)
    print(f"Split: drawn by CoOp's rule ({', '.join(map(_count, parts, PART_NAMES))}), {kept}{warning}")
    return parts


def _count(part, name):
    return f"{len(part):,} {name}"


def keep_split(path, image_dir, parts, **more):
    """Write the parts of a split, and `more`, as JSON. Returns words that say whether that was possible."""
    entries = {name: [[os.path.relpath(item.impath, image_dir), item.label, item.classname] for item in part]
               for name, part in zip(PART_NAMES, parts)}
    try:
        write_json({**entries, **more}, path)
    except OSError as error:
        return f"not kept ({error.strerror}), the same is drawn next time"
    return f"kept in {path}"


def own_split(folder, listed):
    """The split of a folder of one's own pictures: drawn once by `draw_split`, then kept in `split_drawn.json`.

    Args:
        folder: the folder; paths are kept relative to it.
        listed: all its files, a list of Datum, images or not.
    Returns:
        [train, val, test], without the files that are no images, which are named.
    Raises:
        InputError: the folder's files are not those the kept split was drawn from.
    """
    path = os.path.join(folder, "split_drawn.json")
    if os.path.isfile(path):
        parts, left_out = read_split(path, folder), read_json(path).get("left_out", [])
        known = {os.path.relpath(item.impath, folder) for part in parts for item in part} | set(left_out)
        now = {os.path.relpath(item.impath, folder) for item in listed}
        if known != now:
            raise InputError(f"the files of {folder} changed since its split was drawn ({len(now - known)} new, "
                             f"{len(known - now)} gone); delete {path} to draw anew, or take the change back")
        print(f"Split: {path}")
    else:
        images, left_out = leave_out_non_images(listed, folder)
        if not images:
            raise InputError(f"none of the {len(listed)} files below {folder} is an image that can be read")
        parts = draw_split(images)
        kept = keep_split(path, folder, parts, left_out=left_out)
        print(f"Split: drawn by CoOp's rule ({', '.join(map(_count, parts, PART_NAMES))}), {kept}")
    report_left_out(left_out, folder)
    return parts


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
