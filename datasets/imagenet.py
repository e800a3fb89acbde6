import os

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, composed
from dassl.utils import InputError
from datasets.base import FewShotDataset, subsample_classes
from datasets.files import class_folders, dataset_folder, how_to_get, labels_of, list_classes, read_lines


def read_classnames(folder):
    """{class folder (n01440764, ...): class name} of `folder/classnames.txt`, lines of "n01440764 tench", sorted by
    folder; where it is not there, of `imagenet/classnames.txt` beside `folder`.

    A class is known by its folder, because two classes may have one name ("missile", "sunglasses").
    """
    own = os.path.join(folder, "classnames.txt")
    shared = os.path.join(os.path.dirname(folder), "imagenet", "classnames.txt")
    path = shared if os.path.isfile(shared) and not os.path.isfile(own) else own
    pairs = [line.partition(" ") for _, line in read_lines(path, how_to_get(
        "imagenet", "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md#imagenet"))]
    if not pairs or not all(name for _, _, name in pairs):
        raise InputError(f"{path} must hold a line 'folder class name' for each class")
    labels_of([wnid for wnid, _, _ in pairs], path)  # a folder that is named twice is refused
    return {wnid: composed(name.strip()) for wnid, _, name in sorted(pairs)}


def read_images(folder, names):
    """The images of the classes `names`, {folder: class name}, in label order: a list of Datum.

    Raises:
        InputError: a class has no folder, or a folder no class: labels would not mean the same classes everywhere.
    """
    if not os.path.isdir(folder):
        raise InputError(f"no folder {folder}; docs/DATASETS.md shows the layout")
    found, labels = set(class_folders(folder)), {name: label for label, name in enumerate(names)}
    missing, unknown = sorted(set(names) - found), sorted(found - set(names))
    if missing or unknown:
        what = f"has no folder {missing[0]} ({len(missing)} of {len(names)} classes are missing)" if missing else (
            f"has a folder {unknown[0]} that is no class of classnames.txt")
        raise InputError(f"{folder} {what}; extract the archive again or check classnames.txt")
    return list_classes(folder, names, labels)


@DATASET_REGISTRY.register()
class ImageNet(FewShotDataset):
    """ImageNet, ILSVRC 2012 (Deng et al., CVPR 2009): 1,000 classes, 1,281,167 training images. Tested on its 50,000
    validation images, as the published comparisons are; what selects a model is given unused training images.

    Layout: `imagenet/images/{train,val}/<class folder>/` and `imagenet/classnames.txt`. The published few-shot draws
    were made from a listing in the order of a disk and cannot be repeated: listings here are sorted.
    """

    dataset_dir = "imagenet"
    hint = how_to_get("imagenet", "https://image-net.org/download.php")

    def __init__(self, cfg):
        folder = dataset_folder(cfg, self.dataset_dir, self.hint)
        names = read_classnames(folder)
        train, test = (read_images(os.path.join(folder, "images", part), names) for part in ("train", "val"))
        super().__init__(cfg, folder, train, None, test)


class ImageNetVariant(DatasetBase):
    """Other test images of ImageNet's classes. There is nothing to train on: as in CoOp, the test images also stand in
    for the training part, whole whatever NUM_SHOTS is, so that the classes and their names are known.

    Class names are those of ImageNet's classnames.txt, which may also lie in the variant's own folder.
    """

    image_dir = ""
    hint = ""  # where to get the data
    published_classes = 1000

    def __init__(self, cfg):
        folder = dataset_folder(cfg, self.dataset_dir, self.hint)
        images = os.path.join(folder, self.image_dir)
        if not os.path.isdir(images):
            raise InputError(f"no folder {images}; {self.hint}")
        names = self.folders(images, read_classnames(folder))
        if len(names) != self.published_classes:
            print(f"Note: {type(self).__name__} has {self.published_classes} classes, {images} holds {len(names)}")
        self.of_all_classes = read_images(images, names)
        (items,) = subsample_classes([self.of_all_classes], cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=items, test=items)

    def folders(self, images, names):
        """{folder in `images`: class name} in label order."""
        return names


class ImageNetSubset(ImageNetVariant):
    """Test images of 200 of the classes, those that have a folder; labels number these."""

    published_classes = 200

    def folders(self, images, names):
        return {folder: name for folder, name in names.items() if os.path.isdir(os.path.join(images, folder))}
