"""What there is of a dataset, to be compared with its published numbers."""
import contextlib
import os
import sys
from collections import Counter

from dassl.config import get_cfg_default, merge_file
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from dassl.utils import InputError
from datasets.base import DomainDataset, DrawnDomains, SplitDataset
from datasets.files import class_folders
from protocols.parts.plan import config_path
from tools.downloads.sources import SOURCES, parts


def dataset_class(name):
    cfg = get_cfg_default()
    merge_file(cfg, config_path("datasets", name))
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)


def count(name, root):
    """What lies below `root` of a dataset, in the form of its `expected`. Nothing is written.

    Raises:
        InputError: it is not there or not whole.
    """
    cls, source = dataset_class(name), SOURCES[name]
    folder = os.path.join(root, cls.dataset_dir)
    others = getattr(cls, "unsplit_dir", cls.dataset_dir)  # another layout that the dataset reads
    if not any(os.path.isdir(os.path.join(root, name)) for name in (cls.dataset_dir, others)):
        raise InputError(f"no folder {cls.dataset_dir}")
    if issubclass(cls, SplitDataset) and not os.path.isfile(os.path.join(folder, cls.split_file)):
        raise InputError(f"no {cls.dataset_dir}/{cls.split_file}")
    cfg = get_cfg_default()
    cfg.VERBOSE, cfg.DATASET.NAME, cfg.DATASET.ROOT = False, cls.__name__, root
    if issubclass(cls, DrawnDomains) and "images" in source.expected:
        return count_drawn(cls, folder)
    if issubclass(cls, DomainDataset):
        cfg.DATASET.SOURCE_DOMAINS = cfg.DATASET.TARGET_DOMAINS = tuple(cls.domains)
        cfg.DATASET.TARGET_PART = "all"
        with contextlib.redirect_stdout(sys.stderr):
            dataset = build_dataset(cfg)
        images = Counter(cls.domains[item.domain] for item in dataset.test)
        return {"classes": dataset.num_classes, **{domain: images[domain] for domain in cls.domains}}
    with contextlib.redirect_stdout(sys.stderr):
        dataset = build_dataset(cfg)
    found = parts(dataset.num_classes, len(dataset.train_x), len(dataset.val or []), len(dataset.test))
    return {key: found[key] for key in source.expected}


def count_drawn(cls, folder):
    """Domains without a published split, for which none is drawn only to count."""
    missing = [domain for domain in cls.domains if domain not in class_folders(folder)]
    if missing:
        raise InputError(f"no folder {cls.dataset_dir}/{missing[0]}")
    items = cls.list_domains(folder, cls.domains)
    return {"classes": len({item.label for item in items}), "images": len(items)}


def is_there(name, root):
    """Whether there is anything whole of a dataset below `root`."""
    try:
        return bool(count(name, root))
    except (InputError, OSError):
        return False
