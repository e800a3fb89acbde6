import os

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import InputError
from datasets.base import DrawnDomains
from datasets.files import class_folders, dataset_folder, how_to_get, list_classes


@DATASET_REGISTRY.register()
class OfficeHome(DrawnDomains):
    """Office-Home (Venkateswara et al., "Deep Hashing Network for Unsupervised Domain Adaptation", CVPR 2017): 65
    classes in 4 domains, 15,588 images.

    Layout: `office_home_dg/<domain>/{train,val}/<class>/`, Dassl's split for domain generalisation, or
    `office_home/<domain>/<class>/`, for which a split is drawn. A target domain is by default tested on all of its
    images, as the published comparisons do. Class names are the folders' in lower case, as Dassl's.
    """

    dataset_dir = "office_home_dg"
    unsplit_dir = "office_home"
    domains = ["art", "clipart", "product", "real_world"]
    hint = how_to_get("office_home", "https://www.hemanthdv.org/officeHomeDataset.html")

    def __init__(self, cfg):
        unsplit = os.path.join(os.path.expanduser(cfg.DATASET.ROOT), self.unsplit_dir)
        published = os.path.join(os.path.expanduser(cfg.DATASET.ROOT), self.dataset_dir)
        self.published = os.path.isdir(published) or not os.path.isdir(unsplit)
        self.folder = dataset_folder(cfg, self.dataset_dir if self.published else self.unsplit_dir, self.hint)
        if not self.published:
            self.split(self.folder, f"{self.dataset_dir}/")
        self.build(cfg, self.folder)

    def read(self, domain, part):
        if not self.published:
            return super().read(domain, part)
        if part == "test":
            raise InputError("OfficeHome's published split has no test part; leave DATASET.TARGET_PART at all")
        return [item for name in (self.parts if part == "all" else (part,)) for item in self._folder(domain, name)]

    def _folder(self, domain, part):
        folder = os.path.join(self.folder, domain, part)
        if not os.path.isdir(folder):
            raise InputError(f"no folder {folder}; {self.hint}")
        return list_classes(folder, {name: self.class_name(name) for name in class_folders(folder)})

    @staticmethod
    def class_name(folder):
        return folder.lower()
