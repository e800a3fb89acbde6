import os

from dassl.data.datasets import DATASET_REGISTRY, Datum, composed
from dassl.utils import InputError
from datasets.base import DomainDataset
from datasets.files import dataset_folder, how_to_get, read_lines


@DATASET_REGISTRY.register()
class DomainNet(DomainDataset):
    """DomainNet, cleaned (Peng et al., "Moment Matching for Multi-Source Domain Adaptation", ICCV 2019): 345 classes in
    6 domains, 586,575 images.

    Layout: `domainnet/<domain>/<class>/` and `domainnet/splits/<domain>_{train,test}.txt`, lines of "path label" with
    labels from 0. As in Dassl, the test lists of the source domains are validation, and a target domain is by default
    tested on its test list. The training list of painting has no t-shirt (327).
    """

    dataset_dir = "domainnet"
    domains = ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]
    parts = ("train", "test")
    target_part = "test"
    hint = how_to_get("domainnet", "https://ai.bu.edu/M3SDA/")

    def __init__(self, cfg):
        self.folder = dataset_folder(cfg, self.dataset_dir, self.hint)
        self.build(cfg, self.folder)

    def read(self, domain, part):
        return [item for name in (self.parts if part == "all" else (part,)) for item in self._list(domain, name)]

    def _list(self, domain, name):
        path = os.path.join(self.folder, "splits", f"{domain}_{name}.txt")
        items = []
        for number, line in read_lines(path, self.hint):
            try:
                impath, label = line.rsplit(maxsplit=1)
                items.append(Datum(os.path.join(self.folder, impath), int(label), 0,
                                   composed(impath.split("/")[1])))
            except (ValueError, IndexError):
                raise InputError(f"{path}, line {number}: expected 'domain/class/image label', "
                                 f"found '{line[:60]}'") from None
        return items
