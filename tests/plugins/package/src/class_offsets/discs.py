"""Discs: coloured discs, drawn into DATASET.ROOT. The names of the classes say nothing: they must be learned."""
from pathlib import Path

from PIL import Image, ImageDraw

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum

COLOURS = {"red": "alpha", "green": "beta", "blue": "gamma", "yellow": "delta"}  # colour: name of the class
IMAGES = {"train": 8, "test": 8}  # per class


@DATASET_REGISTRY.register()
class Discs(DatasetBase):
    dataset_dir = "discs"

    def __init__(self, cfg):
        folder = Path(cfg.DATASET.ROOT) / self.dataset_dir
        train, test = ([Datum(str(draw(folder / part / colour, number)), label, 0, name)
                        for label, (colour, name) in enumerate(COLOURS.items()) for number in range(count)]
                       for part, count in IMAGES.items())
        super().__init__(train, test=test)


def draw(folder, number):
    """Draw one disc, each number at another place; returns its file."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (64, 64), "gray" if folder.parent.name == "train" else "lightgray")
    corner = 4 + 3 * number
    ImageDraw.Draw(picture).ellipse((corner, 8, corner + 30, 38), fill=folder.name)
    picture.save(folder / f"{number}.png")
    return folder / f"{number}.png"
