from dassl.data.datasets import DATASET_REGISTRY
from datasets.files import how_to_get
from datasets.imagenet import ImageNetSubset


@DATASET_REGISTRY.register()
class ImageNetA(ImageNetSubset):
    """ImageNet-A (Hendrycks et al., "Natural Adversarial Examples", CVPR 2021): 7,500 images of 200 classes that a
    ResNet-50 gets wrong. Labels number these 200 classes.

    Layout: `imagenet-adversarial/imagenet-a/<class folder>/`.
    """

    dataset_dir = "imagenet-adversarial"
    image_dir = "imagenet-a"
    hint = how_to_get("imagenet_a", "https://github.com/hendrycks/natural-adv-examples")
