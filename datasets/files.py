"""How datasets find their files: folders, lists, images that are there, folders of one's own."""
import multiprocessing
import os
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor

from dassl.data.datasets import Datum, composed
from dassl.utils import InputError, listdir_nohidden, open_regular, printable
from dassl.utils.images import is_picture

FEWSHOT_FOLDER = "split_fewshot"
MOST_LIST_BYTES = 2**30  # of a list
BYTE_ORDER_MARK = "\ufeff"


def how_to_get(name, source):
    """The hint of a dataset that is not there. name: its config in configs/datasets; source: its page."""
    return f"metaprompt data {name} gets it or says how (source: {source}; docs/DATASETS.md)"


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
    """[(number, line)] of a text file without its empty lines and byte-order marks. Raises InputError where there is
    none."""
    try:
        with open_regular(require_file(path, hint), "r", MOST_LIST_BYTES, encoding="utf-8") as file:
            # a mark stands at the start of each file that was joined into this one
            lines = [line.replace(BYTE_ORDER_MARK, "").strip() for line in file]
        return [(number, line) for number, line in enumerate(lines, start=1) if line]
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); {hint}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8 ({error}); {hint}") from None


def labels_of(names, path):
    """{name: label} of the class names of a list, in its order, composed. Raises InputError for a name that comes
    twice: which label it stands for would be anyone's guess."""
    labels: dict[str, int] = {}
    for label, name in enumerate(map(composed, names)):
        if labels.setdefault(name, label) != label:
            raise InputError(f"{path} names the class '{name}' twice; take one of the lines out")
    return labels


def require_images(labels, parts, path):
    """Raise InputError where a class of the list at `path`, {name: label}, has no image in any of the parts, lists of
    Datum: it would disappear from the numbers."""
    found = {item.label for part in parts for item in part}
    gone = [name for name, label in labels.items() if label not in found]
    if gone:
        raise InputError(f"{path} names the class '{gone[0]}', of which no image is listed ({len(gone)} of "
                         f"{len(labels)} classes); fetch the lists again, or take it out of {os.path.basename(path)}")


def read_mat(path, key, hint):
    """The array `key` of a MATLAB file. Raises InputError where there is none."""
    require_file(path, hint)
    # In a process of its own where that is cheap: on some damaged files scipy ends the process that it is called in.
    fork = multiprocessing.get_context("fork") if "fork" in multiprocessing.get_all_start_methods() else None
    try:
        with ProcessPoolExecutor(1, mp_context=fork) as pool:
            return pool.submit(_mat_array, path, key).result()
    except Exception as error:  # a damaged file can fail anywhere
        reason = str(error) or type(error).__name__
        raise InputError(f"{path} is no MATLAB file with '{key}' ({reason}); {hint}") from None


def _mat_array(path, key):
    from scipy.io import loadmat  # slow to import, and only datasets without their split file need it

    return loadmat(path)[key]


def check_images(items, source):
    """Raise InputError if a listed image is not there. Folders are listed once instead of asking for every file."""
    folders = defaultdict(list)
    for item in items:
        folders[os.path.dirname(item.impath)].append(os.path.basename(item.impath))
    missing: list[str] = []
    for folder, names in sorted(folders.items()):
        present = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        missing.extend(os.path.join(folder, name) for name in names if name not in present)
    if missing:
        raise InputError(f"{source} names {len(missing)} of {len(items)} images that are not there, first "
                         f"{missing[0]}; fetch the images again or check DATASET.ROOT")


def class_folders(folder):
    """Names of the visible folders in `folder`, as the disk has them, without the one that keeps few-shot draws.

    Sorted by their composed form, so that a copy on a disk that decomposes accents is the same dataset. Raises
    InputError for two folders of one name in two byte forms."""
    names = [name for name in listdir_nohidden(folder)
             if name != FEWSHOT_FOLDER and os.path.isdir(os.path.join(folder, name))]
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(composed(name), name)
        if other != name:
            raise InputError(f"{folder} holds two folders of the one name '{composed(name)}', {ascii(other)} and "
                             f"{ascii(name)} (accents decomposed and composed); put their files into one of them")
    return sorted(names, key=composed)


def list_class(folder, label, classname):
    """The files of a class folder, sorted as class folders are: a list of Datum. Hidden files and folders are no
    images. Raises InputError where there is none: the class would disappear from the numbers."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file()]
    if not names:
        if inside := class_folders(folder):
            raise InputError(f"{folder} holds no images, but folders such as {inside[0]}; a class folder holds its "
                             "images itself (domains of classes are the dataset domain_folder)")
        raise InputError(f"{folder} holds no images; bring them back, or delete the folder to leave the class out")
    names.sort(key=composed)
    return [Datum(os.path.join(folder, name), label, 0, classname) for name in names]


def list_classes(folder, names=None, labels=None):
    """The files of `folder/<class>/`, class by class: a list of Datum. A class folder is known by its composed name.

    Args:
        names: {folder: class name} where the two differ.
        labels: {folder: label}; default: the place in the sorted list of folders.
    """
    folders = {composed(name): name for name in class_folders(folder)}
    labels = labels or {key: label for label, key in enumerate(folders)}
    return [item for key, name in folders.items()
            for item in list_class(os.path.join(folder, name), labels[key], (names or {}).get(key, key))]


def own_folder(cfg, layout):
    """DATASET.ROOT where it is itself a dataset of one's own. Raises InputError that shows the layout."""
    folder = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
    if not cfg.DATASET.ROOT or not os.path.isdir(folder) or not class_folders(folder):
        raise InputError(f"no folders in {folder}; --root (DATA for the scripts) must name the folder of your "
                         f"pictures, {layout} below it (docs/CUSTOM_DATA.md)")
    return folder


def list_own(folder, labels=None):
    """The files of one's own class folders: a list of Datum. Raises InputError where there is no such folder."""
    if not class_folders(folder):
        raise InputError(f"{folder} holds no class folders; images lie in a folder for each class "
                         "(docs/CUSTOM_DATA.md)")
    return list_classes(folder, labels=labels)


def leave_out_non_images(items, folder):
    """(images, [paths relative to `folder` of files that are none]), told apart by their headers alone.

    A picture whose header is whole and whose pixels are damaged is found when it is read.

    Args:
        items: the files of class folders, a list of Datum.
    Raises:
        InputError: no file of a class folder is an image: the class would disappear from the numbers.
    """
    images, left_out, files = [], [], defaultdict(list)
    for item in items:
        files[os.path.dirname(item.impath)].append(item)
        if is_image(item.impath):
            images.append(item)
        else:
            left_out.append(os.path.relpath(item.impath, folder))
    filled = {os.path.dirname(item.impath) for item in images}
    empty = [group for path, group in files.items() if path not in filled]
    if empty:
        first, others = empty[0], [f"'{os.path.relpath(os.path.dirname(group[0].impath), folder)}'"
                                   for group in empty[1:]]
        also = f" (nor in {', '.join(others[:5])}{', ...' if others[5:] else ''})" if others else ""
        path = os.path.dirname(first[0].impath)
        raise InputError(f"the class '{first[0].classname}' has {len(first)} file{'s' if len(first) > 1 else ''} in "
                         f"{printable(path)} and none is an image that can be read{also}, first "
                         f"{printable(first[0].impath)}; convert them to JPEG or PNG or replace them, or delete the "
                         "folder to leave the class out")
    return images, left_out


_seen: dict[tuple[str, int, int], bool] = {}  # (path, size, time of change): whether its header is an image's


def is_image(path):
    """Whether a file's header is that of an image that can be read. Remembered while the file stays as it is: a
    protocol asks for the same folder in each of its runs."""
    try:
        found = os.stat(path)
    except OSError:  # a link that leads nowhere
        return False
    key = path, found.st_size, found.st_mtime_ns
    if key not in _seen:
        _seen[key] = is_picture(path)
    return _seen[key]


def report_left_out(left_out, folder):
    """Name each file that was left out in one line, then their number."""
    for path in left_out:
        print(f"Left out, not an image that can be read: {printable(os.path.join(folder, path))}")
    if left_out:
        print(f"{len(left_out)} file{'s' if len(left_out) > 1 else ''} of {printable(folder)} left out")
