from dataclasses import replace

from dassl.data.datasets import DATASET_REGISTRY
from datasets.base import SplitDataset
from datasets.files import how_to_get


@DATASET_REGISTRY.register()
class EuroSAT(SplitDataset):
    """EuroSAT (Helber et al., 2019, IEEE JSTARS), the RGB pictures of 64 pixels: 10 kinds of land; CoOp's split has
    13,500 training, 5,400 validation and 8,100 test images.

    Layout: `eurosat/2750/<class>/` and `eurosat/split_zhou_EuroSAT.json`. Class names are CoOp's new ones
    (datasets/eurosat.py), also where a split file has the names of the folders.
    """

    dataset_dir = "eurosat"
    image_dir = "2750"
    split_file = "split_zhou_EuroSAT.json"
    hint = how_to_get("eurosat", "https://github.com/phelber/EuroSAT")
    new_names = {
        "AnnualCrop": "Annual Crop Land",
        "Forest": "Forest",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "River": "River",
        "SeaLake": "Sea or Lake",
    }

    def read_parts(self):
        return [[replace(item, classname=self.new_names.get(item.classname, item.classname)) for item in part]
                for part in super().read_parts()]
