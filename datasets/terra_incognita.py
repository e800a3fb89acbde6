from dassl.data.datasets import DATASET_REGISTRY
from datasets.base import DrawnDomains
from datasets.files import dataset_folder, how_to_get


@DATASET_REGISTRY.register()
class TerraIncognita(DrawnDomains):
    """Terra Incognita (Beery et al., "Recognition in Terra Incognita", ECCV 2018), as DomainBed takes it from the
    Caltech Camera Traps: 10 classes at 4 places, 24,788 images.

    Layout: `terra_incognita/location_{100,38,43,46}/<class>/`, DomainBed's. There is no published split: one is drawn.
    A target domain is by default tested on all of its images, as in DomainBed.
    """

    dataset_dir = "terra_incognita"
    domains = ["location_100", "location_38", "location_43", "location_46"]
    hint = how_to_get("terra_incognita", "https://lila.science/datasets/caltech-camera-traps")

    def __init__(self, cfg):
        self.folder = dataset_folder(cfg, self.dataset_dir, self.hint)
        self.split(self.folder)
        self.build(cfg, self.folder)
