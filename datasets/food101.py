from dassl.data.datasets import DATASET_REGISTRY
from datasets.base import SplitDataset
from datasets.files import how_to_get


@DATASET_REGISTRY.register()
class Food101(SplitDataset):
    """Food-101 (Bossard et al., "Food-101 - Mining Discriminative Components with Random Forests", ECCV 2014): 101
    dishes; CoOp's split of all images has 50,500 training, 20,200 validation and 30,300 test images.

    Layout: `food-101/images/<class>/` and `food-101/split_zhou_Food101.json`.
    """

    dataset_dir = "food-101"
    image_dir = "images"
    split_file = "split_zhou_Food101.json"
    hint = how_to_get("food101", "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/")
