"""Which images a run was made on, in a form that two runs can be compared by."""
import hashlib
import os

from dassl.data.datasets.labels import composed


def relative_path(impath, root):
    """`impath` below the folder `root`, with "/" between folders; as it is where it lies elsewhere."""
    return _below(impath, _prefix(root))


def _prefix(root):
    return os.path.join(os.path.abspath(os.path.expanduser(root)), "")


def _below(impath, prefix):
    return impath.removeprefix(prefix).replace(os.sep, "/")


def _line(text):
    return f"{composed(text)}\n".encode("utf-8", "surrogateescape")  # a file's name may be no Unicode


def source_digest(lists, folder):
    """SHA-256 of the lists that something is drawn from: paths below `folder`, labels, domains and class names, in
    order. The same wherever the data lie, and however the disk composes accents; the pixels are not read.

    Args:
        lists: lists of Datum.
    """
    digest, prefix = hashlib.sha256(), _prefix(folder)
    for items in lists:
        digest.update(f"{len(items)}\n".encode())
        for item in items:
            digest.update(_line(f"{_below(item.impath, prefix)}\t{item.label}\t{item.domain}\t{item.classname}"))
    return digest.hexdigest()


def dataset_digest(dataset, root):
    """SHA-256 of each part's list, {"train": ..., "val": ..., "test": ...}; None for a part that is empty.

    A list is its images' paths below `root`, their labels and class names, in order: the same wherever the data lie.
    The pixels are not read.

    Args:
        dataset: a DatasetBase.
        root: DATASET.ROOT.
    """
    digests, prefix = {}, _prefix(root)
    for name, part in (("train", dataset.train_x), ("val", dataset.val), ("test", dataset.test)):
        digest = hashlib.sha256()
        for item in part or ():
            digest.update(_line(f"{_below(item.impath, prefix)}\t{item.label}\t{item.classname}"))
        digests[name] = digest.hexdigest() if part else None
    return digests
