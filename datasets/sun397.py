import os

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import InputError
from datasets.base import SplitDataset
from datasets.files import how_to_get, labels_of, read_lines, require_images
from datasets.splits import split_trainval


@DATASET_REGISTRY.register()
class SUN397(SplitDataset):
    """SUN397 (Xiao et al., "SUN Database", CVPR 2010): 397 scenes; CoOp's split has 15,880 training, 3,970 validation
    and 19,850 test images.

    Layout: `sun397/SUN397/<letter>/<class>/`, `sun397/{ClassName,Training_01,Testing_01}.txt` and
    `sun397/split_zhou_SUN397.json`. A split that is drawn here keeps the test list of the first published partition.
    """

    dataset_dir = "sun397"
    image_dir = "SUN397"
    split_file = "split_zhou_SUN397.json"
    fixed_test = True
    hint = how_to_get("sun397", "https://vision.princeton.edu/projects/2010/SUN/")

    def draw(self):
        path = os.path.join(self.folder, "ClassName.txt")
        self.labels = labels_of([line.strip("/") for _, line in read_lines(path, self.hint)], path)
        parts = [*split_trainval(self.read_list("Training_01.txt")), self.read_list("Testing_01.txt")]
        require_images(self.labels, parts, path)
        return parts

    def read_list(self, name):
        """A partition, one line per image. The class of "/a/apartment_building/outdoor/sun_x.jpg" is
        "outdoor apartment_building"."""
        path = os.path.join(self.folder, name)
        items = []
        for number, line in read_lines(path, self.hint):
            image = line.strip("/")
            scene = os.path.dirname(image)
            if scene not in self.labels:
                raise InputError(f"{path}, line {number}: '{scene}' is no class of ClassName.txt")
            classname = " ".join(reversed(scene.split("/")[1:]))
            items.append(Datum(os.path.join(self.images, image), self.labels[scene], 0, classname))
        return items
