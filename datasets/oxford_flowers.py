import os

from dassl.data.datasets import DATASET_REGISTRY, Datum, composed
from dassl.utils import InputError, read_json
from datasets.base import SplitDataset
from datasets.files import how_to_get, read_mat, require_file
from datasets.splits import draw_split


@DATASET_REGISTRY.register()
class OxfordFlowers(SplitDataset):
    """Oxford Flowers 102 (Nilsback and Zisserman, 2008): 102 flowers; CoOp's split has 4,093 training, 1,633
    validation and 2,463 test images.

    Layout: `oxford_flowers/jpg/image_00001.jpg`, `oxford_flowers/imagelabels.mat`, `oxford_flowers/cat_to_name.json`
    and `oxford_flowers/split_zhou_OxfordFlowers.json`.
    """

    dataset_dir = "oxford_flowers"
    image_dir = "jpg"
    split_file = "split_zhou_OxfordFlowers.json"
    hint = how_to_get("oxford_flowers", "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/")

    def draw(self):
        labels = read_mat(os.path.join(self.folder, "imagelabels.mat"), "labels", self.hint)[0]
        path = os.path.join(self.folder, "cat_to_name.json")
        names = read_json(require_file(path, self.hint))
        for label in labels:
            if not isinstance(names, dict) or not isinstance(names.get(str(label)), str):
                raise InputError(f"{path} has no name for the class {label} of imagelabels.mat; {self.hint}")
        return draw_split([Datum(os.path.join(self.images, f"image_{number:05d}.jpg"), int(label) - 1, 0,
                                 composed(names[str(label)]))
                           for number, label in enumerate(labels, start=1)])
