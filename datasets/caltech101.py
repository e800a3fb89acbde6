from dassl.data.datasets import DATASET_REGISTRY
from datasets.base import SplitDataset
from datasets.files import how_to_get


@DATASET_REGISTRY.register()
class Caltech101(SplitDataset):
    """Caltech101 (Fei-Fei et al., 2004): 100 classes of CoOp's split; 4,128 training, 1,649 validation, 2,465 test
    images.

    Layout: `caltech-101/101_ObjectCategories/<class>/image_0001.jpg` and `caltech-101/split_zhou_Caltech101.json`.
    Class names of a split that is drawn here, and the two folders it leaves out, are CoOp's (datasets/caltech101.py).
    """

    dataset_dir = "caltech-101"
    image_dir = "101_ObjectCategories"
    split_file = "split_zhou_Caltech101.json"
    hint = how_to_get("caltech101", "https://data.caltech.edu/records/mzrjq-6wc02")
    new_names = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
    ignored = ("BACKGROUND_Google", "Faces_easy")
