from dassl.data.datasets.base_dataset import DatasetBase, Datum
from dassl.data.datasets.build import DATASET_REGISTRY, build_dataset
from dassl.data.datasets.digest import dataset_digest, relative_path

__all__ = ["DATASET_REGISTRY", "DatasetBase", "Datum", "build_dataset", "dataset_digest", "relative_path"]
