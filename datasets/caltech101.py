import os

from dassl.data.datasets import DATASET_REGISTRY
from datasets.base import FewShotDataset, dataset_folder, read_split, require_file


@DATASET_REGISTRY.register()
class Caltech101(FewShotDataset):
    """Caltech101 (Fei-Fei et al., 2004): 100 classes of CoOp's split; 4,128 training, 1,649 validation, 2,465 test
    images.

    Layout: `caltech-101/101_ObjectCategories/<class>/image_0001.jpg` and `caltech-101/split_zhou_Caltech101.json`.
    """

    dataset_dir = "caltech-101"
    hint = ("get the images from https://data.caltech.edu/records/mzrjq-6wc02 and split_zhou_Caltech101.json from "
            "CoOp's DATASETS.md (https://github.com/KaiyangZhou/CoOp)")

    def __init__(self, cfg):
        folder = dataset_folder(cfg, self.dataset_dir, self.hint)
        split = require_file(os.path.join(folder, "split_zhou_Caltech101.json"), self.hint)
        super().__init__(cfg, folder, *read_split(split, os.path.join(folder, "101_ObjectCategories")))
