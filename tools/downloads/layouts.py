"""Layouts of datasets that their archives do not have: images are unpacked and sorted once they are there
(metaprompt data)."""
import contextlib
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, FailFast, ValidationError
from torchvision.datasets.imagenet import ARCHIVE_META
from torchvision.datasets.utils import calculate_md5

from dassl.utils import InputError, open_regular
from tools.downloads.archives import Bounds, Refused, inside, unfinished_folder, unpack
from tools.downloads.transfer import shown

TERRA_IMAGES = "eccv_18_all_images_sm"
TERRA_PLACES = ("location_100", "location_38", "location_43", "location_46")
TERRA_CLASSES = {"bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel"}


def arrange_imagenet(root: str, bounds_of: Callable[[int], Bounds]) -> None:
    """Unpack ImageNet's own archives, where they were put into `imagenet/images/`, to train/ and val/ with class
    folders, as torchvision does. The archives are kept.

    bounds_of: the bytes of an archive -> what it may unpack to."""
    images = os.path.join(root, "imagenet", "images")
    for part, sort in (("train", unpack_classes), ("val", sort_validation)):
        archive = os.path.join(images, ARCHIVE_META[part][0])
        if os.path.lexists(archive) and not os.path.lexists(os.path.join(images, part)):
            print(f"unpacking {os.path.basename(archive)}, which takes long", flush=True)
            bounds = bounds_of(archive_size(archive))
            with unfinished_folder(images) as folder:
                unpack(whole_archive(images, part), folder, bounds)
                sort(folder, images, bounds)
                os.rename(folder, os.path.join(images, part))


def archive_size(path):
    """Bytes of an archive that the user has put there, or a link to it: it is only read. 0 where there is none."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path} is not a regular file")
    return os.path.getsize(path) if os.path.exists(path) else 0


def whole_archive(images, part):
    """The path of one of ImageNet's archives. Raises InputError where it is not the published one."""
    name, md5 = ARCHIVE_META[part]
    path = os.path.join(images, name)
    if not archive_size(path):
        raise InputError(f"no file {path}; download it from https://image-net.org")
    if (digest := calculate_md5(path)) != md5:
        raise InputError(f"{path} has the MD5 {digest}, {md5} is published; download it again")
    return path


def unpack_classes(folder, images, bounds):
    """Unpack the archive of each class into a folder of its name."""
    for name in sorted(os.listdir(folder)):
        archive = os.path.join(folder, name)
        target = os.path.join(folder, os.path.splitext(name)[0])
        if not name.endswith(".tar") or not os.path.isfile(archive):
            raise InputError(f"{ARCHIVE_META['train'][0]} holds '{shown(name)}', which is no archive of a class")
        os.mkdir(target)
        unpack(archive, target, bounds)
        os.remove(archive)


def sort_validation(folder, images, bounds):
    """Sort the validation images, which are numbered, into folders of their classes, which the devkit lists."""
    from scipy.io import loadmat

    with unfinished_folder(images) as devkit:
        unpack(whole_archive(images, "devkit"), devkit, Bounds(1000, 100_000_000))
        data = os.path.join(devkit, "ILSVRC2012_devkit_t12", "data")
        synsets = loadmat(os.path.join(data, "meta.mat"), squeeze_me=True)["synsets"]
        with open(os.path.join(data, "ILSVRC2012_validation_ground_truth.txt"), encoding="ascii") as file:
            numbers = [int(line) for line in file]
    # A row: number, name of the folder, words, explanation, number of children; 0 is a class, else a group of them.
    folders = {int(row[0]): str(row[1]) for row in synsets if row[4] == 0}
    names = sorted(os.listdir(folder))
    if len(names) != len(numbers) or not all(re.fullmatch("n[0-9]{8}", name) for name in folders.values()):
        raise InputError(f"{ARCHIVE_META['val'][0]} holds {len(names):,} images, and {ARCHIVE_META['devkit'][0]} lists "
                         f"{len(numbers):,}")
    for name, number in zip(names, numbers):
        os.makedirs(os.path.join(folder, folders[number]), exist_ok=True)
        os.rename(os.path.join(folder, name), os.path.join(folder, folders[number], name))


class Category(BaseModel):
    id: int
    name: str


class Note(BaseModel):
    image_id: str
    category_id: int


class Image(BaseModel):
    id: str
    location: int | str
    file_name: str


class Listing(BaseModel):
    """The Caltech Camera Traps' list (COCO's format), as far as it is read."""

    categories: Annotated[list[Category], FailFast()]
    annotations: Annotated[list[Note], FailFast()]
    images: Annotated[list[Image], FailFast()]


def read_listing(path):
    """The list at `path`, the names of whose images lie inside their folder. Raises InputError for any other."""
    most = 500_000_000  # bytes for some 243,000 images
    with open_regular(path) as file:
        text = file.read(most + 1)
    if len(text) > most:
        raise InputError(f"{path} is no list of images: it has more than {most:,} bytes")
    try:
        listing = Listing.model_validate_json(text.removeprefix(b"\xef\xbb\xbf"))
        for image in listing.images:
            image.file_name = inside(image.file_name)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is no list of images: {shown(place)}{': ' if place else ''}{shown(first['msg'])}"
                         ) from None
    except Refused as error:
        raise InputError(f"{path} is refused: {error}") from None
    return listing


def arrange_terra_incognita(root: str, bounds_of: Callable[[int], Bounds]) -> None:
    """Lay out DomainBed's choice from the Caltech Camera Traps: four places, ten animals, an image once for each of its
    animals. bounds_of: as for ImageNet; nothing is unpacked here."""
    folder = os.path.join(root, "terra_incognita")
    path, images = os.path.join(folder, "caltech_images_20210113.json"), os.path.join(folder, TERRA_IMAGES)
    listing = read_listing(path)
    names = {category.id: category.name for category in listing.categories}
    animals = defaultdict(set)
    for note in listing.annotations:
        if note.category_id in names:
            animals[note.image_id].add(names[note.category_id])
    with unfinished_folder(folder) as unfinished:
        for image in listing.images:
            place = f"location_{image.location}"
            for name in sorted(animals[image.id] & TERRA_CLASSES) if place in TERRA_PLACES else ():
                source = os.path.join(images, image.file_name)
                if os.path.isfile(source):  # the reduced images are a part of the whole listing
                    take_image(source, os.path.join(unfinished, place, name, image.file_name))
        for place in TERRA_PLACES:
            if not os.path.isdir(os.path.join(unfinished, place)):
                raise InputError(f"{path} names no image of {place} that lies in {images}")
        for place in TERRA_PLACES:
            if not os.path.isdir(os.path.join(folder, place)):  # else a run was stopped here
                os.rename(os.path.join(unfinished, place), os.path.join(folder, place))
    if os.path.islink(images):
        os.remove(images)
    else:
        shutil.rmtree(images)
    os.remove(path)


def take_image(source, target):
    """Give an image a second name, or copy it where the disk has none, or where it is a link itself."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.lexists(target):  # listed twice
        return
    if not os.path.islink(source):
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
