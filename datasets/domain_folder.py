import os

from dassl.data.datasets import DATASET_REGISTRY
from datasets.base import DrawnDomains
from datasets.files import class_folders, list_own, own_folder
from datasets.splits import OWN_SPLIT, own_split


@DATASET_REGISTRY.register()
class DomainFolder(DrawnDomains):
    """Pictures of one's own from several domains: DATASET.ROOT is a folder with one folder per domain.

    Layout: `<domain>/<class>/<image>`; the class folders of the domains have the same names. A split is drawn. A
    target domain is by default tested on all of its images. Other files than images are named and left out; a class
    folder with nothing else is an error.
    """

    def __init__(self, cfg):
        folder = own_folder(cfg, "<domain>/<class>/<image>")
        self.domains = class_folders(folder)
        for domain in self.domains:
            list_own(os.path.join(folder, domain))  # says what is wrong with a domain's folder
        parts, record = own_split(folder, self.list_domains(folder, self.domains))
        self.record(OWN_SPLIT, record)
        self.sort_parts(folder, parts)
        self.build(cfg, folder)

    @classmethod
    def domain_names(cls, root):
        return class_folders(os.path.expanduser(root))
