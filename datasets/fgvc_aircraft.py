import os

from dassl.data.datasets import DATASET_REGISTRY, Datum, composed
from dassl.utils import InputError
from datasets.base import FewShotDataset
from datasets.files import check_images, dataset_folder, how_to_get, labels_of, read_lines, require_images


@DATASET_REGISTRY.register()
class FGVCAircraft(FewShotDataset):
    """FGVC-Aircraft (Maji et al., 2013, arXiv 1306.5151): 100 variants; its own split has 3,334 training, 3,333
    validation and 3,333 test images.

    Layout: `fgvc_aircraft/images/`, `fgvc_aircraft/variants.txt` (one class per line, in label order) and
    `fgvc_aircraft/images_variant_{train,val,test}.txt`, lines of "image class".
    """

    dataset_dir = "fgvc_aircraft"
    hint = how_to_get("fgvc_aircraft", "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/")

    def __init__(self, cfg):
        self.folder = dataset_folder(cfg, self.dataset_dir, self.hint)
        path = os.path.join(self.folder, "variants.txt")
        self.labels = labels_of([line for _, line in read_lines(path, self.hint)], path)
        parts = [self.read_list(part) for part in ("train", "val", "test")]
        require_images(self.labels, parts, path)
        super().__init__(cfg, self.folder, *parts)

    def read_list(self, part):
        path = os.path.join(self.folder, f"images_variant_{part}.txt")
        items = []
        for number, line in read_lines(path, self.hint):
            image, _, name = composed(line).partition(" ")
            if name not in self.labels:
                raise InputError(f"{path}, line {number}: '{name}' is no class of variants.txt")
            items.append(Datum(os.path.join(self.folder, "images", f"{image}.jpg"), self.labels[name], 0, name))
        check_images(items, path)
        return items
