"""Where the time of a picture goes, and what torchvision's decoder would change: processor time of one thread.

    python -m benchmarks.pictures FOLDER [FOLDER ...]                # folders of real pictures
    python -m benchmarks.pictures FOLDER [FOLDER ...] --docs docs    # also writes the section of docs/SPEED.md

Every picture is decoded both ways and compared. Of each folder some are timed, the ways in turn, picture by picture.
"""
import functools
import os
import random
import sys
from collections import Counter, defaultdict

import numpy as np
import torch
from PIL import Image

from benchmarks import page
from benchmarks.measure import median, timed
from dassl.config import get_cfg_default
from dassl.config.words import ArgumentParser
from dassl.data.data_manager import DatasetWrapper, SeededDataset
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform
from dassl.utils import InputError, derive_seed, read_image, seed_cpu_generators
from dassl.utils.images import SUFFIXES, size_of, to_rgb
from train import command_line

TIMED, BATCH, PASSES = 192, 32, 7
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
ABOUT = """\
Made by `python -m benchmarks.pictures FOLDER ... --docs docs`; `benchmarks.all` leaves this section as it is. {number}
real pictures in {folders} folders; of each folder {timed} are timed, {passes} times, all ways in turn in one process
with one thread. Given is processor time, the median over the passes. A picture is cropped at random (bicubic, to
224 x 224), flipped and normalised.

Machine: {machine}.{note}"""


def files_in(folder):
    """The pictures below a folder, by their suffix, in order."""
    found = sorted(os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names
                   if os.path.splitext(name)[1].lower() in SUFFIXES)
    if not found:
        raise InputError(f"there are no pictures in {folder}")
    return found


def config():
    cfg = get_cfg_default()
    cfg.VERBOSE, cfg.SEED, cfg.INPUT.INTERPOLATION, cfg.INPUT.TRANSFORMS = False, 1, "bicubic", TRANSFORMS
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = MEAN, STD
    return cfg


# ---- where the time goes ----
def parts_of(path, transform, key):
    """{step: seconds of processor time} of one picture, made as `SeededDataset` makes it."""
    cost = {}

    def step(name, function):
        result, _, cost[name] = timed(function, "cpu")
        return result

    step("seed the generators", lambda: seed_cpu_generators(key))
    step("open, read the header, bounds", lambda: size_of(path))
    with Image.open(path) as image:
        step("decode", image.load)
        picture = step("convert to RGB", lambda: to_rgb(image))
    for name, part in zip(("crop and resize", "flip"), transform.transforms):
        picture = step(name, functools.partial(part, picture))
    step("to numbers, normalise", lambda: type(transform)(transform.transforms[2:])(picture))
    return cost


# ---- the ways ----
def ways_of(paths):
    """{name: function of a list of numbers of pictures -> their tensors} of what is compared."""
    from torchvision.io import ImageReadMode, decode_image, read_file
    from torchvision.transforms import Compose, Normalize
    from torchvision.transforms.v2 import functional

    items, cfg = [Datum(path, 0, 0, "thing") for path in paths], config()
    transform = build_transform(cfg)
    plain = Compose(transform.transforms)
    crop, normal = transform.transforms[0], Normalize(MEAN, STD, inplace=True)

    def dataset_of(transform, cache):
        own = cfg.clone()
        own.DATALOADER.CACHE_MB = cache
        return SeededDataset(DatasetWrapper(own, items, transform, is_train=True), 1)

    def together(dataset, numbers):
        return [item["img"] for item in dataset.__getitems__([(number, 0, number) for number in numbers])]

    def one_by_one(dataset, numbers):
        return [dataset[number, 0, number]["img"] for number in numbers]

    def torchvision_decoded(number):
        size_of(paths[number])
        return decode_image(read_file(paths[number]), ImageReadMode.RGB)

    def as_tensors(read, number):
        seed_cpu_generators(derive_seed("augment", 1, 0, number))
        image = read(number)
        top, left, height, width = crop.get_params(image, crop.scale, crop.ratio)
        image = functional.resize(image[:, top:top + height, left:left + width], list(crop.size), crop.interpolation)
        image = image.flip(-1) if torch.rand(1) < 0.5 else image
        return normal(image.to(torch.float32, memory_format=torch.contiguous_format).div_(255))

    def each(function, *args):
        return lambda numbers: [function(*args, number) for number in numbers]

    pixels = [decode_image(read_file(path), ImageReadMode.RGB) for path in paths]
    return {
        "ours": functools.partial(together, dataset_of(transform, 0)),
        "plain": functools.partial(one_by_one, dataset_of(plain, 0)),
        "tensors": each(as_tensors, torchvision_decoded),
        "ours, kept": functools.partial(together, dataset_of(transform, 2048)),
        "plain, kept": functools.partial(one_by_one, dataset_of(plain, 2048)),
        "tensors, kept": each(as_tensors, pixels.__getitem__),
        "our decoder": each(lambda number: read_image(paths[number])),
        "torchvision's decoder": each(lambda number: decode_image(read_file(paths[number]), ImageReadMode.RGB)),
        "torchvision's decoder, bounds": each(torchvision_decoded),
    }


def equal_pixels(paths):
    """How many pictures torchvision decodes to the same pixels."""
    from torchvision.io import ImageReadMode, decode_image, read_file

    return sum(np.array_equal(decode_image(read_file(path), ImageReadMode.RGB).permute(1, 2, 0).numpy(),
                              np.asarray(read_image(path))) for path in paths)


def measure(paths):
    """{"pictures", "equal", "parts": {step: seconds}, "ways": {name: [seconds, one a pass]}, "levels"} of the pictures
    `paths`. `levels`: the largest difference of a pixel, of 255, that tensors throughout make."""
    timed_ones = random.Random(0).sample(paths, min(TIMED, len(paths)))
    ways, transform = ways_of(timed_ones), build_transform(config())
    batches = [range(start, min(start + BATCH, len(timed_ones))) for start in range(0, len(timed_ones), BATCH)]
    levels = 0.0
    for numbers in batches:
        found = {name: way(numbers) for name, way in ways.items()}
        for name in ("plain", "ours, kept", "plain, kept"):
            if not all(map(torch.equal, found["ours"], found[name])):
                raise InputError(f"'{name}' gives other numbers than ours")
        std = torch.tensor(STD).view(3, 1, 1)
        levels = max(levels, *(float(((a - b).abs() * std).max()) * 255
                               for a, b in zip(found["ours"], found["tensors"])))
    parts, times = defaultdict(list), defaultdict(list)
    for _ in range(PASSES):
        cost: Counter[str] = Counter()
        for numbers in batches:
            for name, way in ways.items():
                cost[name] += timed(functools.partial(way, numbers), "cpu")[2]
        for name, seconds in cost.items():
            times[name].append(seconds / len(timed_ones))
        cost = Counter()
        for place, path in enumerate(timed_ones):
            cost.update(parts_of(path, transform, place))
        for name, seconds in cost.items():
            parts[name].append(seconds / len(timed_ones))
    return {"pictures": len(paths), "equal": equal_pixels(paths), "levels": levels, "ways": dict(times),
            "parts": {name: median(seconds) for name, seconds in parts.items()}}


# ---- the section ----
def section(found, note=""):
    """The section's body from {name of a folder: its measurement}; `note`: a sentence on the machine."""
    names = list(found)
    head = ABOUT.format(number=f"{sum(part['pictures'] for part in found.values()):,}", folders=len(found),
                        timed=TIMED, passes=PASSES, machine=page.machine(), note=note and f" {note}")
    parts = [[step, *(f"{1e6 * of[step]:.0f} us, {100 * of[step] / sum(of.values()):.0f} %"
                      for of in (part["parts"] for part in found.values()))]
             for step in next(iter(found.values()))["parts"]]
    rows = [["a training picture: torchvision's steps, one by one / ours", "plain", "ours"],
            ["the same, pixels kept (`DATALOADER.CACHE_MB`)", "plain, kept", "ours, kept"],
            ["decoding: ours / torchvision's", "our decoder", "torchvision's decoder"],
            ["decoding: ours / torchvision's, with our bounds", "our decoder", "torchvision's decoder, bounds"],
            ["a training picture: ours / torchvision's tensors throughout, with our bounds", "ours", "tensors"],
            ["the same, pixels kept", "ours, kept", "tensors, kept"]]
    ratios = [[what, *(page.spread([a / b for a, b in zip(found[name]["ways"][one], found[name]["ways"][other])])
                       for name in names)] for what, one, other in rows]
    equal, of = (sum(part[key] for part in found.values()) for key in ("equal", "pictures"))
    levels = max(part["levels"] for part in found.values())
    return (f"{head}\n\n{page.table(parts, ['step', *names])}\n\n{page.table(ratios, ['ratio', *names])}\n\n"
            + TEXT.format(equal=f"{equal:,}", of=f"{of:,}", levels=f"{levels:.0f}"))


TEXT = """\
The first two ratios are of equal bits. What is saved: ToTensor and Normalize are one pass over each colour, in place;
and the states of the random generators are kept once per batch, as to keep numpy's takes longer than to seed all three.
The seconds under Data, and the loader's rates under On a GPU, were measured before that.

The others say why pictures are decoded and resized by Pillow. torchvision's decoder gives the same pixels for
{equal} of {of} pictures, and is the faster one by itself; but Pillow would still read the header, for the bounds on
what a small file can cost, and then there is little to win. (torchvision 0.29 says that its decoders will be removed.)
With torchvision's tensors throughout, whose resize is vectorised, a pixel differs by up to {levels} of 255 levels. The
last row, in which the tensors lie ready in a list, is the most that there is to win by it; with workers hardly a step
waits for its pictures, so there is no such option. Pillow's `box` in the place of a crop is no help: its filter reads
beyond the border.

**Methods that open no picture**, neither in training nor in a test, once a run has filled the
[feature store](FEATURE_STORE.md) for their seed: those that say `frozen_images`, which
[trainers/README](../trainers/README.md#frozen-image-features) lists. The others show pictures to a tower with prompts,
adapters or weights of their own, and read them in every epoch.
"""


def main(argv=None):
    parser = ArgumentParser(prog="python -m benchmarks.pictures", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a folder of pictures")
    parser.add_argument("--docs", help="folder of SPEED.md, whose section is written anew")
    parser.add_argument("--note", default="", help="a sentence about the machine, for the page")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = {os.path.basename(os.path.normpath(folder)): measure(files_in(folder)) for folder in args.folders}
    text = section(found, args.note)
    print(text)
    if args.docs:
        page.write_section(args.docs, page.PICTURES, text)
    return text


if __name__ == "__main__":
    sys.exit(command_line(main))
