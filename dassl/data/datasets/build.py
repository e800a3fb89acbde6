from dassl.data.datasets.names import read_names, rename_classes
from dassl.utils import Registry

DATASET_REGISTRY = Registry("DATASET", "one of your own is named with --plugin FILE")


def build_dataset(cfg):
    """The dataset named by DATASET.NAME, its classes named as DATASET.CLASSNAMES says. Raises InputError that lists the
    known datasets, or says what is wrong with the names."""
    if cfg.VERBOSE:
        print(f"Loading dataset: {cfg.DATASET.NAME}")
    names = read_names(cfg.DATASET.CLASSNAMES) if cfg.DATASET.CLASSNAMES else {}
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
    if names:
        rename_classes(dataset, names, cfg.DATASET.CLASSNAMES)
    return dataset
