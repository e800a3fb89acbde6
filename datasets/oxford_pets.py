import os

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import InputError
from datasets.base import SplitDataset
from datasets.files import how_to_get, read_lines
from datasets.splits import split_trainval


@DATASET_REGISTRY.register()
class OxfordPets(SplitDataset):
    """Oxford-IIIT Pets (Parkhi et al., "Cats and Dogs", CVPR 2012): 37 breeds; CoOp's split has 2,944 training, 736
    validation and 3,669 test images.

    Layout: `oxford_pets/images/`, `oxford_pets/annotations/{trainval,test}.txt` and
    `oxford_pets/split_zhou_OxfordPets.json`. A split that is drawn here keeps the published test list.
    """

    dataset_dir = "oxford_pets"
    image_dir = "images"
    split_file = "split_zhou_OxfordPets.json"
    fixed_test = True
    hint = how_to_get("oxford_pets", "https://www.robots.ox.ac.uk/~vgg/data/pets/")

    def draw(self):
        return [*split_trainval(self.read_list("trainval.txt")), self.read_list("test.txt")]

    def read_list(self, name):
        """An annotation list, lines of "image label species breed", labels from 1; a breed's name is the image's
        without its number."""
        path = os.path.join(self.folder, "annotations", name)
        items = []
        for number, line in read_lines(path, self.hint):
            try:
                image, label = line.split()[:2]
                breed = image.rsplit("_", 1)[0].lower()
                items.append(Datum(os.path.join(self.images, f"{image}.jpg"), int(label) - 1, 0, breed))
            except ValueError:
                raise InputError(f"{path}, line {number}: expected 'image label species breed'") from None
        return items
