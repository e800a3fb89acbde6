from dassl.data.datasets.base_dataset import DatasetBase, Datum, keep_lists, lists_are_kept
from dassl.data.datasets.build import DATASET_REGISTRY, build_dataset
from dassl.data.datasets.digest import dataset_digest, relative_path, source_digest
from dassl.data.datasets.draws import keep_draws
from dassl.data.datasets.labels import check_parts, composed

__all__ = [
    "DATASET_REGISTRY", "DatasetBase", "Datum", "build_dataset", "check_parts", "composed", "dataset_digest",
    "keep_draws", "keep_lists", "lists_are_kept", "relative_path", "source_digest",
]
