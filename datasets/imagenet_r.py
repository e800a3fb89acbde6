from dassl.data.datasets import DATASET_REGISTRY
from datasets.files import how_to_get
from datasets.imagenet import ImageNetSubset


@DATASET_REGISTRY.register()
class ImageNetR(ImageNetSubset):
    """ImageNet-R (Hendrycks et al., "The Many Faces of Robustness", ICCV 2021): 30,000 renditions of 200 classes.
    Labels number these 200 classes.

    Layout: `imagenet-rendition/imagenet-r/<class folder>/`.
    """

    dataset_dir = "imagenet-rendition"
    image_dir = "imagenet-r"
    hint = how_to_get("imagenet_r", "https://github.com/hendrycks/imagenet-r")
