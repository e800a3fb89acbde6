from dassl.data.datasets import DATASET_REGISTRY
from datasets.files import how_to_get
from datasets.imagenet import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetSketch(ImageNetVariant):
    """ImageNet-Sketch (Wang et al., "Learning Robust Global Representations by Penalizing Local Predictive Power",
    NeurIPS 2019): 50,889 sketches of the 1,000 classes.

    Layout: `imagenet-sketch/images/<class folder>/`.
    """

    dataset_dir = "imagenet-sketch"
    image_dir = "images"
    hint = how_to_get("imagenet_sketch", "https://github.com/HaohanWang/ImageNet-Sketch")
