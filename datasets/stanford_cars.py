import os

from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.base import SplitDataset
from datasets.files import how_to_get, read_mat
from datasets.splits import split_trainval


@DATASET_REGISTRY.register()
class StanfordCars(SplitDataset):
    """Stanford Cars (Krause et al., "3D Object Representations for Fine-Grained Categorization", 2013): 196 models;
    CoOp's split has 6,509 training, 1,635 validation and 8,041 test images.

    Layout: `stanford_cars/{cars_train,cars_test}/`, `stanford_cars/devkit/`,
    `stanford_cars/cars_test_annos_withlabels.mat` and `stanford_cars/split_zhou_StanfordCars.json`. A split that is
    drawn here keeps the published test list; class names have the year first, as CoOp's.
    """

    dataset_dir = "stanford_cars"
    split_file = "split_zhou_StanfordCars.json"
    fixed_test = True
    hint = how_to_get("stanford_cars", "https://ai.stanford.edu/~jkrause/cars/car_dataset.html")

    def draw(self):
        names = [str(name[0]) for name in self.table("devkit/cars_meta.mat", "class_names")]
        trainval = self.read_list("cars_train", "devkit/cars_train_annos.mat", names)
        return [*split_trainval(trainval), self.read_list("cars_test", "cars_test_annos_withlabels.mat", names)]

    def table(self, name, key):
        return read_mat(os.path.join(self.folder, name), key, self.hint)[0]

    def read_list(self, folder, name, names):
        items = []
        for row in self.table(name, "annotations"):
            label = int(row["class"][0, 0]) - 1
            model, _, year = names[label].rpartition(" ")
            items.append(Datum(os.path.join(self.images, folder, str(row["fname"][0])), label, 0, f"{year} {model}"))
        return items
