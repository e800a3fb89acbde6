import os

from dassl.data.datasets import DATASET_REGISTRY, Datum, composed
from dassl.utils import InputError
from datasets.base import DomainDataset
from datasets.files import dataset_folder, how_to_get, read_lines


@DATASET_REGISTRY.register()
class PACS(DomainDataset):
    """PACS (Li et al., "Deeper, Broader and Artier Domain Generalization", ICCV 2017): 7 classes in 4 domains.

    Layout: `pacs/images/<domain>/<class>/` and `pacs/splits/<domain>_{train,crossval,test}_kfold.txt`, lines of
    "path label" with labels from 1. A target domain is by default tested on all of its train and crossval lists, as the
    published comparisons do.
    """

    dataset_dir = "pacs"
    domains = ["art_painting", "cartoon", "photo", "sketch"]
    parts = ("train", "crossval")
    hint = how_to_get("pacs", "https://github.com/KaiyangZhou/Dassl.pytorch/blob/master/DATASETS.md#pacs")
    # Listed, but no image in the published archive.
    missing = {"sketch/dog/n02103406_4068-1.png"}

    def __init__(self, cfg):
        self.folder = dataset_folder(cfg, self.dataset_dir, self.hint)
        self.build(cfg, self.folder)

    def read(self, domain, part):
        lists = ("train", "crossval") if part == "all" else (part,)
        return [item for name in lists for item in self._list(domain, name)]

    def _list(self, domain, name):
        path = os.path.join(self.folder, "splits", f"{domain}_{name}_kfold.txt")
        items = []
        for number, line in read_lines(path, self.hint):
            try:
                impath, label = line.rsplit(maxsplit=1)
                classname = composed(impath.split("/")[-2])
                label = int(label) - 1
            except (ValueError, IndexError):
                raise InputError(f"{path}, line {number}: expected 'domain/class/image label', "
                                 f"found '{line[:60]}'") from None
            if impath not in self.missing:
                items.append(Datum(os.path.join(self.folder, "images", impath), label, 0, classname))
        return items
