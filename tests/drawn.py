"""Miniature copies of the datasets' published folder layouts, with drawn pictures of 32 to 40 pixels."""
import json
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.office_home import OfficeHome
from datasets.pacs import PACS
from datasets.terra_incognita import TerraIncognita
from datasets.vlcs import VLCS

CLASSES = ["horse", "dog", "alarm_clock", "house", "guitar", "water_lilly"]  # label order, not the order of names
PACS_CLASSES = ["dog", "elephant", "guitar", "house"]
PARTS = {"train": 4, "val": 5, "test": 3}  # images per class
DOMAIN_PARTS = {"train": 3, "crossval": 2}
CONFIG = """
DATALOADER:
  TRAIN_X: {BATCH_SIZE: 4}
  NUM_WORKERS: 0
INPUT:
  SIZE: [32, 32]
  INTERPOLATION: bicubic
  TRANSFORMS: [random_resized_crop, random_flip, normalize]
OPTIM: {NAME: sgd, LR: 0.05, MAX_EPOCH: 2, LR_SCHEDULER: cosine, WARMUP_EPOCH: 1, WARMUP_TYPE: constant}
TRAIN: {PRINT_FREQ: 1}
DATASET: {NUM_SHOTS: 2}
VERBOSE: False
TRAINER:
  COOP: {N_CTX: 3}
  COCOOP: {N_CTX: 2}
  METAPROMPT: {LAYERS: 4}
"""  # of methods with the tiny CLIP


def draw(path, kind):
    """A picture that is a function of its path: a colour of its kind under noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.RandomState(zlib.crc32(path.name.encode() + kind.encode()) & 0x7FFFFFFF)
    colour = np.random.RandomState(zlib.crc32(kind.encode()) & 0x7FFFFFFF).randint(0, 256, 3)
    pixels = 0.6 * colour + 0.4 * rng.randint(0, 256, (rng.randint(32, 41), rng.randint(32, 41), 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def caltech_entries(classes=CLASSES, parts=PARTS):
    """{part: [[path, label, class name]]}; the classes of a part come in the order 1, 0, 3, 2, ..., interleaved."""
    order = sorted(range(len(classes)), key=lambda label: label ^ 1)
    split, start = {}, 0
    for part, count in parts.items():
        split[part] = [[f"{classes[label]}/image_{start + i:04d}.png", label, classes[label]]
                       for i in range(count) for label in order]
        start += count
    return split


def write_caltech(root, classes=CLASSES, parts=PARTS):
    """Caltech101's layout below `root`. Returns the dataset's folder."""
    folder = Path(root) / "caltech-101"
    split = caltech_entries(classes, parts)
    for part in split.values():
        for impath, _, name in part:
            draw(folder / "101_ObjectCategories" / impath, name[:40])
    (folder / "split_zhou_Caltech101.json").write_text(json.dumps(split))
    return folder


def write_pacs(root, classes=PACS_CLASSES, parts=DOMAIN_PARTS):
    """PACS's layout below `root`. Returns the dataset's folder."""
    folder = Path(root) / "pacs"
    (folder / "splits").mkdir(parents=True)
    for domain in PACS.domains:
        start = 0
        for part, count in parts.items():
            lines = []
            for label, name in enumerate(classes, start=1):
                for i in range(count):
                    impath = f"{domain}/{name}/pic_{start + i:03d}.png"
                    draw(folder / "images" / impath, name + domain)
                    lines.append(f"{impath} {label}\n")
            start += count
            (folder / "splits" / f"{domain}_{part}_kfold.txt").write_text("".join(lines))
    return folder


# ---- the other layouts -------------------------------------------------------------------------------------------

SPLIT_LAYOUTS = {  # config: (images, split file, {class name: image of number})
    "oxford_pets": ("oxford_pets/images", "oxford_pets/split_zhou_OxfordPets.json",
                    {name: f"{name.title()}_{{}}.jpg" for name in
                     ("abyssinian", "american_bulldog", "beagle", "birman")}),
    "stanford_cars": ("stanford_cars", "stanford_cars/split_zhou_StanfordCars.json",
                      {"2000 AM General Hummer SUV": "cars_train/000{}.jpg",
                       "2012 Acura RL Sedan": "cars_train/001{}.jpg", "2008 Acura TL Type-S": "cars_test/002{}.jpg",
                       "1991 Audi 100 Wagon": "cars_test/003{}.jpg"}),
    "oxford_flowers": ("oxford_flowers/jpg", "oxford_flowers/split_zhou_OxfordFlowers.json",
                       {name: f"image_{i}{{}}.jpg" for i, name in
                        enumerate(("pink primrose", "hard-leaved pocket orchid", "canterbury bells", "sweet pea"), 1)}),
    "food101": ("food-101/images", "food-101/split_zhou_Food101.json",
                {name: f"{name}/{{}}.jpg" for name in ("apple_pie", "baby_back_ribs", "baklava", "beef_carpaccio")}),
    "sun397": ("sun397/SUN397", "sun397/split_zhou_SUN397.json",
               {"abbey": "a/abbey/sun_{}.jpg", "airplane_cabin": "a/airplane_cabin/sun_{}.jpg",
                "outdoor apartment_building": "a/apartment_building/outdoor/sun_{}.jpg",
                "shop bakery": "b/bakery/shop/sun_{}.jpg"}),
    "dtd": ("dtd/images", "dtd/split_zhou_DescribableTextures.json",
            {name: f"{name}/{name}_{{}}.jpg" for name in ("banded", "blotchy", "braided", "bubbly")}),
    "eurosat": ("eurosat/2750", "eurosat/split_zhou_EuroSAT.json",
                {name: f"{name}/{name}_{{}}.jpg" for name in ("AnnualCrop", "Forest", "Highway", "SeaLake")}),
    "ucf101": ("ucf101/UCF-101-midframes", "ucf101/split_zhou_UCF101.json",
               {name: f"{name}/v_{name.replace('_', '')}_g01_c{{}}.jpg" for name in
                ("Apply_Eye_Makeup", "Apply_Lipstick", "Archery", "Baby_Crawling")}),
}
WNIDS = {"n01440764": "tench", "n01443537": "goldfish", "n03773504": "missile", "n04008634": "missile"}


def write_split_dataset(root, config, parts=PARTS):
    """A dataset of one folder of images and one split file, in its published layout below `root`."""
    images, split_file, classes = SPLIT_LAYOUTS[config]
    split, start = {}, 10
    for part, count in parts.items():
        split[part] = [[impath.format(start + i), label, name]
                       for label, (name, impath) in enumerate(classes.items()) for i in range(count)]
        start += count
        for impath, _, name in split[part]:
            draw(Path(root) / images / impath, name)
    (Path(root) / split_file).write_text(json.dumps(split))


def write_aircraft(root):
    folder = Path(root) / "fgvc_aircraft"
    folder.mkdir()
    variants, number = ["707-320", "A300B4", "Boeing 717", "F/A-18"], 0
    (folder / "variants.txt").write_text("\n".join(variants) + "\n")
    for part, count in PARTS.items():
        lines = []
        for name in variants:
            for _ in range(count):
                number += 1
                draw(folder / "images" / f"{number:07d}.jpg", name)
                lines.append(f"{number:07d} {name}\n")
        (folder / f"images_variant_{part}.txt").write_text("".join(lines))


def write_imagenet(root, names=WNIDS):
    folder = Path(root) / "imagenet"
    for part, count in (("train", 7), ("val", 3)):
        for wnid in names:
            for i in range(count):
                draw(folder / "images" / part / wnid / f"{wnid}_{i}.JPEG", wnid)
    # not in sorted order: a label is the place in the sorted list all the same
    (folder / "classnames.txt").write_text("".join(f"{wnid} {name}\n" for wnid, name in reversed(names.items())))


def write_imagenet_variant(root, config):
    folder, classes = {
        "imagenetv2": ("imagenetv2/imagenetv2-matched-frequency-format-val", map(str, range(len(WNIDS)))),
        "imagenet_sketch": ("imagenet-sketch/images", WNIDS),
        "imagenet_a": ("imagenet-adversarial/imagenet-a", list(WNIDS)[1:]),
        "imagenet_r": ("imagenet-rendition/imagenet-r", list(WNIDS)[:3]),
    }[config]
    for name in classes:
        for i in range(3):
            draw(Path(root) / folder / name / f"{name}_{i}.jpg", name)
    (Path(root) / folder / "README.txt").write_text("about")
    if not (Path(root) / "imagenet").is_dir():
        text = "".join(f"{wnid} {name}\n" for wnid, name in WNIDS.items())
        (Path(root) / folder.split("/")[0] / "classnames.txt").write_text(text)


def write_vlcs(root):
    for domain in VLCS.domains:
        for part, numbers in (("train", range(3)), ("crossval", range(3, 5)), ("test", range(5, 9)),
                              ("full", range(9))):
            for label in range(len(VLCS.names)):
                for i in numbers:
                    path = Path(root) / "VLCS" / domain.upper() / part / str(label) / f"imgs_{i}.jpg"
                    draw(path, domain + str(label))


def write_office_home(root):
    for domain in OfficeHome.domains:
        for part, numbers in (("train", range(3)), ("val", range(3, 5))):
            for name in ("Alarm_Clock", "Bike", "TV", "ToothBrush"):
                for i in numbers:
                    draw(Path(root) / "office_home_dg" / domain / part / name / f"{i:05d}.jpg", domain + name)


def write_domainnet(root, domains=("clipart", "infograph", "painting", "quickdraw", "real", "sketch")):
    folder = Path(root) / "domainnet"
    (folder / "splits").mkdir(parents=True)
    for domain in domains:
        for part, numbers in (("train", range(3)), ("test", range(3, 5))):
            lines = []
            for label, name in enumerate(("aircraft_carrier", "airplane", "t-shirt", "zigzag")):
                if (domain, part, name) == ("painting", "train", "t-shirt"):
                    continue
                for i in numbers:
                    impath = f"{domain}/{name}/{domain}_{label:03d}_{i:06d}.jpg"
                    draw(folder / impath, domain + name)
                    lines.append(f"{impath} {label}\n")
            (folder / "splits" / f"{domain}_{part}.txt").write_text("".join(lines))


def write_terra(root, count=10):
    """One place has never seen a dog."""
    for domain in TerraIncognita.domains:
        for name in ("bird", "bobcat", "dog", "empty"):
            for i in range(0 if (domain, name) == ("location_38", "dog") else count):
                draw(Path(root) / "terra_incognita" / domain / name / f"{domain}{i}.jpg", domain + name)


LAYOUTS = {
    "caltech101": write_caltech, "pacs": write_pacs, "fgvc_aircraft": write_aircraft, "imagenet": write_imagenet,
    "vlcs": write_vlcs, "office_home": write_office_home, "domainnet": write_domainnet, "terra_incognita": write_terra,
    **{name: partial(write_split_dataset, config=name) for name in SPLIT_LAYOUTS},
    **{name: partial(write_imagenet_variant, config=name)
       for name in ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")},
}
