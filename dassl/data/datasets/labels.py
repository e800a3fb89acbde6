"""Whether the lists of a dataset agree on what its labels mean."""
import os
import unicodedata
from numbers import Integral

from dassl.utils import InputError, is_text


def composed(name):
    """A name in the one form it is compared in: accents composed (Unicode NFC), however a disk or a list writes it."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def check_parts(owner, parts):
    """The classes of a dataset, {label: name}, sorted; names are composed.

    Every part is looked at, whole: what labels are, that each has one name, that no image has two labels, and that
    there is something to learn each class from. Two classes may share a name, as two do in ImageNet.

    Args:
        owner: the dataset's name, for messages.
        parts: {"train": [Datum], "val": ..., "test": ...}, and more lists that must agree; None is an empty one.
            In "train_u", which is for images without labels, -1 stands for no label.
    Raises:
        InputError: the lists contradict themselves or each other; the line names the files.
    """
    parts = {part: items or [] for part, items in parts.items()}
    for part, word in (("train", "training"), ("test", "test")):
        if not parts[part]:
            raise InputError(f"{owner}: the {word} part is empty; check DATASET.ROOT, the split file and "
                             "SUBSAMPLE_CLASSES")
    first: dict[int, tuple[str, str, str]] = {}  # label -> (name, part, file)
    paths: dict[str, int] = {}  # path -> label
    for part, items in parts.items():
        for item in items:
            label, name = item.label, item.classname
            if label.__class__ is not int:
                label = _whole(owner, item, part)
            if label < 0:
                if part == "train_u" and label == -1:
                    continue
                raise InputError(f"{owner}: an image of {part} has the label {label} ({item.impath}); labels start at "
                                 "0 (at 1 in lists that count from 1)")
            known = first.get(label)
            if known is None or known[0] != name:
                if not isinstance(name, str):
                    raise InputError(f"{owner}: the class name of {item.impath} in {part} is {name!r}, which is no "
                                     "text")
                require_text(name, f"{owner}: the class name of {item.impath} in {part}")
                name = composed(name)
                known = first.setdefault(label, (name, part, item.impath))
                if known[0] != name:
                    where = "and" if known[1] == part else f"in {known[1]} and"
                    raise InputError(f"{owner}: label {label} is '{known[0]}' {where} '{name}' in {part} ({known[2]}, "
                                     f"{item.impath}); a label is one class, with one name, in every part")
            path = item.impath
            if "./" in path or "//" in path:
                path = os.path.normpath(path)
            before = paths.setdefault(path, label)
            if before != label:
                raise InputError(f"{owner}: {path} has the label {before} ('{first[before][0]}') and the label {label} "
                                 f"('{first[label][0]}', in {part}); an image is of one class")
    names = {label: first[label][0] for label in sorted({item.label for item in parts["train"]})}
    for part in ("val", "test"):
        for item in parts.get(part, ()):
            if item.label not in names:
                raise InputError(f"{owner}: the {part} part has the class '{composed(item.classname)}' (label "
                                 f"{item.label}, {item.impath}), of which there is no training image")
    for number, label in enumerate(names):
        if number != label:
            name, part, path = first.get(number, ("", "", ""))
            seen = f", '{name}' in {part} ({path})" if part else ""
            raise InputError(f"{owner}: no training image has label {number}{seen} (labels run to {max(names)}); "
                             "every class needs training images")
    return names


def require_text(name, what):
    """Raise InputError for a class name that no prompt can be made of: bytes that are no UTF-8, half a character."""
    if not is_text(name):
        raise InputError(f"{what} is {ascii(name)}, which is not text in UTF-8 and cannot be put into a prompt; rename "
                         "the class")


def _whole(owner, item, part):
    if not isinstance(item.label, Integral):
        raise InputError(f"{owner}: the label of {item.impath} in {part} is {item.label!r}, which is no whole number")
    return int(item.label)


def as_prompted(name):
    """A name as CLIP reads it in a prompt: in lower case, "_" is a space."""
    return " ".join(composed(name).replace("_", " ").lower().split())


def same_prompts(names):
    """Groups of labels whose names read the same in a prompt.

    Args:
        names: {label: name}.
    Returns:
        a list of lists of labels, two or more each."""
    groups: dict[str, list[int]] = {}
    for label, name in names.items():
        groups.setdefault(as_prompted(name), []).append(label)
    return [labels for labels in groups.values() if len(labels) > 1]
