import os

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import InputError
from datasets.base import DomainDataset
from datasets.files import dataset_folder, how_to_get, list_classes


@DATASET_REGISTRY.register()
class VLCS(DomainDataset):
    """VLCS (Torralba and Efros, "Unbiased Look at Dataset Bias", CVPR 2011; the pictures of Fang et al., ICCV 2013):
    5 classes in 4 domains.

    Layout: `VLCS/{CALTECH,LABELME,PASCAL,SUN}/{train,crossval,test}/<class>/`, class folders 0 to 4 or named; `full/`
    holds all images of a domain. A target domain is by default tested on its test part, as the published comparisons
    do.
    """

    dataset_dir = "VLCS"
    domains = ["caltech", "labelme", "pascal", "sun"]
    parts = ("train", "crossval")
    target_part = "test"
    hint = how_to_get("vlcs", "https://github.com/KaiyangZhou/Dassl.pytorch")
    names = ("bird", "car", "chair", "dog", "person")

    def __init__(self, cfg):
        self.folder = dataset_folder(cfg, self.dataset_dir, self.hint)
        self.build(cfg, self.folder)

    def read(self, domain, part):
        if part == "all":
            if os.path.isdir(os.path.join(self.folder, domain.upper(), "full")):
                return self.read(domain, "full")
            return [item for part in (*self.parts, "test") for item in self.read(domain, part)]
        folder = os.path.join(self.folder, domain.upper(), part)
        if not os.path.isdir(folder):
            raise InputError(f"no folder {folder}; {self.hint}")
        folders = {name: label for label, name in enumerate(self.names)}
        folders |= {str(label): label for label in range(len(self.names))}
        try:
            return list_classes(folder, {key: self.names[label] for key, label in folders.items()}, folders)
        except KeyError as error:
            raise InputError(f"{folder} has a folder {error}; the classes are 0 to {len(self.names) - 1} or "
                             f"{', '.join(self.names)}") from None
