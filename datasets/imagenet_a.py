from dassl.data.datasets import DATASET_REGISTRY
from datasets.base import how_to_get
from datasets.imagenet import ImageNetVariant, classes_present


@DATASET_REGISTRY.register()
class ImageNetA(ImageNetVariant):
    """ImageNet-A (Hendrycks et al., "Natural Adversarial Examples", CVPR 2021): 7,500 images of 200 classes that a
    ResNet-50 gets wrong. Labels number these 200 classes.

    Layout: `imagenet-adversarial/imagenet-a/<class folder>/`.
    """

    dataset_dir = "imagenet-adversarial"
    image_dir = "imagenet-a"
    hint = how_to_get("imagenet_a", "https://github.com/hendrycks/natural-adv-examples")
    published_classes = 200

    def folders(self, images, names):
        return classes_present(images, names)
