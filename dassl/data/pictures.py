"""Unreadable images are found before the training starts, not in its last epoch."""
import os
from concurrent.futures import ThreadPoolExecutor

from dassl.utils import InputError, printable
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


def leave_out_unreadable(dataset, source_domains=(), target_domains=()):
    """Take unreadable images out of every part of a dataset, in place.

    Args:
        dataset: a DatasetBase.
        source_domains, target_domains: names of its domains, for messages.
    Returns:
        {path: what is wrong}.
    Raises:
        InputError: a class (of a domain) loses all its training, validation or test images: it would disappear from
            the numbers."""
    parts = {name: part for name in ("train_x", "train_u", "val", "test") if (part := getattr(dataset, name, None))}
    faults = unreadable([item for part in parts.values() for item in part])
    if not faults:
        return faults
    for name, word, domains in (("train_x", "training", source_domains), ("val", "validation", source_domains),
                                ("test", "test", target_domains)):
        _require_every_class(parts.get(name, ()), faults, dataset.lab2cname, word, domains)
    for name, part in parts.items():
        setattr(dataset, name, [item for item in part if item.impath not in faults])
    print(f"Left out {len(faults)} unreadable images, first {printable(next(iter(faults)))}")
    return faults


def _require_every_class(part, faults, lab2cname, word, domains):
    left = {(item.domain, item.label) for item in part if item.impath not in faults}
    lost: dict[tuple[int, int], list[str]] = {}
    for item in part:
        if (item.domain, item.label) not in left:
            lost.setdefault((item.domain, item.label), []).append(item.impath)
    if lost:
        (domain, label), paths = next(iter(lost.items()))
        others = sorted({f"'{lab2cname[other]}'" for _, other in lost if other != label})
        of = f" of the domain {domains[domain]}" if len(domains) > 1 and domain < len(domains) else ""
        also = f" (the same of {', '.join(others[:5])}{', ...' if others[5:] else ''})" if others else ""
        count = f"none of its {len(paths)} {word} images" if len(paths) > 1 else f"its one {word} image"
        raise InputError(f"the class '{lab2cname[label]}' would disappear: {count}{of} can{'not' * (len(paths) == 1)} "
                         f"be read{also}, first {paths[0]} ({faults[paths[0]]}); replace them, or take the class out "
                         "of the dataset")
