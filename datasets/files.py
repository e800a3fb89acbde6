"""How datasets find their files: folders, lists, images that are there, folders of one's own."""
import os
import unicodedata
from collections import defaultdict

from dassl.data.datasets import Datum
from dassl.utils import InputError, listdir_nohidden
from dassl.utils.images import is_picture

FEWSHOT_FOLDER = "split_fewshot"


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
        if is_picture(item.impath):
            images.append(item)
        else:
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
