from dassl.data.datasets import DATASET_REGISTRY
from datasets.base import SplitDataset
from datasets.files import how_to_get


@DATASET_REGISTRY.register()
class DescribableTextures(SplitDataset):
    """Describable Textures (Cimpoi et al., "Describing Textures in the Wild", CVPR 2014): 47 textures; CoOp's split has
    2,820 training, 1,128 validation and 1,692 test images.

    Layout: `dtd/images/<class>/` and `dtd/split_zhou_DescribableTextures.json`.
    """

    dataset_dir = "dtd"
    image_dir = "images"
    split_file = "split_zhou_DescribableTextures.json"
    hint = how_to_get("dtd", "https://www.robots.ox.ac.uk/~vgg/data/dtd/")
