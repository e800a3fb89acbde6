from dassl.data.datasets import DATASET_REGISTRY
from datasets.files import how_to_get
from datasets.imagenet import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetV2(ImageNetVariant):
    """ImageNetV2, matched frequency (Recht et al., "Do ImageNet Classifiers Generalize to ImageNet?", ICML 2019):
    10,000 new test images of the 1,000 classes.

    Layout: `imagenetv2/imagenetv2-matched-frequency-format-val/<label>/`.
    """

    dataset_dir = "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"
    hint = how_to_get("imagenetv2", "https://github.com/modestyachts/ImageNetV2")

    def folders(self, images, names):
        return {str(label): name for label, name in enumerate(names.values())}
