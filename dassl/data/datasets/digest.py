"""Which images a run was made on, in a form that two runs can be compared by."""
import hashlib
import os


def relative_path(impath, root):
    """`impath` below the folder `root`, with "/" between folders; as it is where it lies elsewhere."""
    root = os.path.join(os.path.abspath(os.path.expanduser(root)), "")
    return impath.removeprefix(root).replace(os.sep, "/")


def dataset_digest(dataset, root):
    """SHA-256 of each part's list, {"train": ..., "val": ..., "test": ...}; None for a part that is empty.

    A list is its images' paths below `root`, their labels and class names, in order: the same wherever the data lie.
    The pixels are not read.

    Args:
        dataset: a DatasetBase.
        root: DATASET.ROOT.
    """
    digests = {}
    for name, part in (("train", dataset.train_x), ("val", dataset.val), ("test", dataset.test)):
        digest = hashlib.sha256()
        for item in part or ():
            digest.update(f"{relative_path(item.impath, root)}\t{item.label}\t{item.classname}\n".encode())
        digests[name] = digest.hexdigest() if part else None
    return digests
