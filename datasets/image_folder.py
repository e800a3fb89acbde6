import os

from dassl.data.datasets import DATASET_REGISTRY, composed
from dassl.utils import InputError
from datasets.base import FewShotDataset
from datasets.files import class_folders, leave_out_non_images, list_own, own_folder, report_left_out
from datasets.splits import OWN_SPLIT, PART_NAMES, own_split


@DATASET_REGISTRY.register()
class ImageFolder(FewShotDataset):
    """Pictures of one's own: DATASET.ROOT is a folder with one folder per class.

    Layout: `<class>/<image>`, for which a split is drawn, or `train/<class>/<image>` with `val/` or `test/` or
    both, which is taken as it is: without `test/`, `val/` is the test part; without a validation part of its own, one
    is drawn from unused training images. A folder's name is the class's name. Any image of the formats in
    dassl/utils/images.py is taken; other files are named and left out, and a class folder with nothing else is an
    error.
    """

    def __init__(self, cfg):
        folder = own_folder(cfg, "<class>/<image>")
        found = class_folders(folder)
        split = {name for name in found if name in PART_NAMES}
        if "train" not in split:
            parts, record = own_split(folder, list_own(folder))
            self.record(OWN_SPLIT, record)
            super().__init__(cfg, folder, *parts)
            return
        if split != set(found) or len(split) == 1:
            others = ", ".join(name for name in found if name != "train") or "nothing else"
            raise InputError(f"{folder} holds train/ and {others}; beside train/ there must be test/ or val/ or both, "
                             "and nothing else")
        labels = {composed(name): label for label, name in enumerate(class_folders(os.path.join(folder, "train")))}
        parts = {name: self.read_part(folder, name, labels) for name in PART_NAMES if name in split}
        if "test" not in parts:
            parts["test"] = parts.pop("val")
        super().__init__(cfg, folder, parts["train"], parts.get("val"), parts["test"])

    @staticmethod
    def read_part(folder, part, labels):
        path = os.path.join(folder, part)
        unknown = sorted(set(map(composed, class_folders(path))) - set(labels))
        if unknown:
            raise InputError(f"{path} has the class '{unknown[0]}', which train/ does not have")
        images, left_out = leave_out_non_images(list_own(path, labels), folder)
        report_left_out(left_out, folder)
        return images
