"""Other names for a dataset's classes, from a file (DATASET.CLASSNAMES)."""
import json
import os
from collections import defaultdict

from dassl.data.datasets.labels import as_prompted, composed, require_text
from dassl.utils import InputError, open_regular
from dassl.utils.registry import nearest
from dassl.utils.stored import shortened

MOST_NAMES_BYTES = 2**24  # of a file of names


def read_names(path):
    """{class or folder: new name} of a file: lines "class or folder = new name", or one JSON object of such pairs.

    Raises InputError for a file that cannot be read, a line of another form, an empty name, or one given twice."""
    try:
        with open_regular(path, "r", MOST_NAMES_BYTES, encoding="utf-8-sig") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"DATASET.CLASSNAMES: cannot read {path} as a text in UTF-8 "
                         f"({getattr(error, 'strerror', None) or error})") from None
    names: dict[str, str] = {}
    for where, old, new in _pairs(text, path):
        if not isinstance(new, str):
            raise InputError(f"{where}: the new name of '{old}' is {shortened(new)}, not a text")
        require_text(new, f"{where}: the new name of '{old}'")
        old, new = composed(old.strip()), composed(new.strip())
        if not old or not as_prompted(new):
            raise InputError(f"{where}: '{old or new}' has an empty {'new name' if old else 'class or folder'} beside "
                             "it; a line is \"class or folder = new name\"")
        if old in names:
            raise InputError(f"{where}: '{old}' is given a name twice, '{names[old]}' and '{new}'")
        names[old] = new
    if not names:
        raise InputError(f"DATASET.CLASSNAMES: {path} gives no names; a line is \"class or folder = new name\"")
    return names


def _pairs(text, path):
    """Yields (where, class or folder, new name)."""
    if text.lstrip().startswith("{"):
        try:
            pairs = json.loads(text, object_pairs_hook=list)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not valid JSON: {error}") from None
        yield from ((path, old, new) for old, new in pairs)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            old, equals, new = line.partition("=")
            if not equals:
                raise InputError(f"{path}, line {number}: '{line.strip()}' is no \"class or folder = new name\"")
            yield f"{path}, line {number}", old, new


def rename_classes(dataset, names, path):
    """Give the classes of a dataset the new names of {class or folder: new name}, in place.

    A folder is known where it holds all of a class's training images, and no other's. Classes that `names` lacks keep
    theirs. Base and new classes of one dataset may be in one file: `dataset.of_all_classes`, the training part before
    they were told apart, says which there are.

    Args:
        path: where the names are from, for messages.
    Raises:
        InputError: a name that no class or that several classes have; two classes that would have one name.
    """
    everything = getattr(dataset, "of_all_classes", None) or dataset.train_x
    classes = {item.label: composed(item.classname) for item in everything}
    folders, homes = defaultdict(set), defaultdict(set)
    for item in everything:
        folder = composed(os.path.basename(os.path.dirname(item.impath)))
        folders[item.label].add(folder)
        homes[folder].add(item.label)
    known = defaultdict(set)  # class name or folder -> labels of the classes that it may mean
    for label, name in classes.items():
        own = {folder for folder in folders[label] if len(folders[label]) == len(homes[folder]) == 1}
        for word in {name} | own:
            known[word].add(label)

    renamed: dict[int, str] = {}
    for old, new in names.items():
        if len(known[old]) > 1:
            raise InputError(f"DATASET.CLASSNAMES: {path}: '{old}' stands for {len(known[old])} classes of "
                             f"{type(dataset).__name__}; name them by their folders")
        if not known[old]:
            raise InputError(f"DATASET.CLASSNAMES: {path}: {type(dataset).__name__} has no class or folder '{old}'"
                             f"{nearest(old, [name for name, labels in known.items() if labels])}")
        [label] = known[old]
        if label in renamed:
            raise InputError(f"DATASET.CLASSNAMES: {path} names the class '{classes[label]}' twice, '{renamed[label]}' "
                             f"and '{new}'")
        renamed[label] = new
    after: dict[str, int] = {}  # name as it is prompted -> label
    for label, name in classes.items():
        other = after.setdefault(as_prompted(renamed.get(label, name)), label)
        if other != label and (label in renamed or other in renamed):
            raise InputError(f"DATASET.CLASSNAMES: {path} gives the classes '{classes[other]}' and '{name}' one name, "
                             f"'{renamed.get(label, name)}'")

    # By a training image: labels are counted anew where base and new classes are told apart.
    wanted = {item.impath: renamed.get(item.label, item.classname) for item in everything}
    now = {item.label: wanted[item.impath] for item in dataset.train_x}
    for part in (dataset.train_x, getattr(dataset, "train_u", None), dataset.val, dataset.test):
        for item in part or ():
            item.classname = now.get(item.label, item.classname)
    dataset.lab2cname = {label: now[label] for label in dataset.lab2cname}
    dataset.classnames = list(dataset.lab2cname.values())
    kept = len(classes) - len(renamed)
    print(f"Class names: {len(renamed)} of {len(classes)} from {path}" + (f", {kept} keep theirs" if kept else ""))
