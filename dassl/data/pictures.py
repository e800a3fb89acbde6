"""Unreadable images are found before the training starts, not in its last epoch."""
import os
from concurrent.futures import ThreadPoolExecutor

from dassl.utils import InputError
from dassl.utils.images import bombs_are_errors, fault_of

THREADS = 8  # decoding leaves Python's lock


def unreadable(items):
    """{path: what is wrong} of the images among `items` (a list of Datum) that cannot be read."""
    paths = list(dict.fromkeys(item.impath for item in items))
    with bombs_are_errors(), ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        faults = list(pool.map(fault_of, paths))
    return {path: fault for path, fault in zip(paths, faults) if fault}


def require_readable(items):
    """Raise InputError, naming the first unreadable image and how many there are."""
    faults = unreadable(items)
    if faults:
        path, fault = next(iter(faults.items()))
        raise InputError(f"cannot decode {len(faults)} of the images to train or validate on, first {path} ({fault}); "
                         "replace them, or leave them out with --skip-bad-images")


def leave_out_unreadable(dataset):
    """Take unreadable images out of every part of a dataset, in place.

    Returns {path: what is wrong}.
    Raises InputError where that leaves a class without training images, or no test images."""
    parts = {name: part for name in ("train_x", "train_u", "val", "test") if (part := getattr(dataset, name, None))}
    faults = unreadable([item for part in parts.values() for item in part])
    if not faults:
        return faults
    for name, part in parts.items():
        setattr(dataset, name, [item for item in part if item.impath not in faults])
    left = {item.label for item in dataset.train_x}
    for label, name in dataset.lab2cname.items():
        if label not in left:
            raise InputError(f"no readable training image of class {label} ({name}) is left; its first bad one: "
                             f"{next(item.impath for item in parts['train_x'] if item.label == label)}")
    if not dataset.test:
        raise InputError(f"no readable test image is left; the first bad one: {parts['test'][0].impath}")
    print(f"Left out {len(faults)} unreadable images, first {next(iter(faults))}")
    return faults
