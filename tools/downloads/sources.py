"""Where the datasets come from, what they must hold, and what has to be done by hand (metaprompt data).

`SOURCES` holds every address, checksum and published number. Addresses of images and their MD5 are torchvision's where
it has the dataset; split files and class names are those of CoOp's DATASETS.md (https://github.com/KaiyangZhou/CoOp),
Dassl's and DomainBed's for domains.
"""
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tools.downloads.archives import Bounds
from tools.downloads.layouts import TERRA_IMAGES, TERRA_PLACES, arrange_imagenet, arrange_terra_incognita

DRIVE = "drive:"  # an address of this kind is the id of a file on Google Drive


@dataclass(frozen=True)
class File:
    """One file to fetch.

    Attributes:
        address: its URL, or "drive:" and an id.
        places: {path inside the archive: path below the data folder}; the one key "" is a file that is no archive.
        md5, size: checksum and bytes, where they are published.
        name: what to call it while it is downloaded; default: the last part of the address.
        inner: an archive inside the archive, from which `places` are taken.
    """

    address: str
    places: dict[str, str]
    md5: str = ""
    size: int = 0
    name: str = ""
    inner: str = ""

    @property
    def filename(self) -> str:
        return self.name or self.address.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Source:
    """A dataset: its files, what they must hold, and what to do by hand.

    Attributes:
        expected: published numbers: classes, then images of each part, or of each domain.
        by_hand: the steps, where not everything can be fetched.
        arrange: called with the data folder and `bounds` when the files are in place, for a layout that archives do
            not have (tools/downloads/layouts.py).
        complete: paths below the data folder that stand for all files, where those do not stay (`arrange`).
    """

    expected: dict[str, int]
    files: tuple[File, ...] = ()
    by_hand: str = ""
    arrange: Callable[[str, Callable[[int], Bounds]], None] | None = None
    complete: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        return sum(number for name, number in self.expected.items() if name != "classes")

    @property
    def most_bytes(self) -> int:
        """The most that one file of it, or all that is in it, can have. The archive with the most for each image that
        is used is SUN397's, with 1 MB."""
        return 2_000_000 * self.images + 100_000_000

    def bounds(self, size: int) -> Bounds:
        """What an archive of `size` bytes may unpack to, with the archives in it. Images hardly shrink when they are
        packed; lists may come to 1 GB. The archive with the most files for each image that is used is SUN397's, with
        2.7; Pets' annotations have 2.5."""
        return Bounds(8 * self.images + 10_000, min(self.most_bytes, 10 * size + 1_000_000_000))


def split_file(drive: str, path: str) -> File:
    return File(DRIVE + drive, {"": path}, name=os.path.basename(path))


def parts(classes: int, train_size: int, val: int, test: int) -> dict[str, int]:
    return {"classes": classes, "train": train_size, "val": val, "test": test}


OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
VISDA = "http://csr.bu.edu/ftp/visda/2019/multi-source"
LILA = "https://storage.googleapis.com/public-datasets-lila/caltechcameratraps"
CLASSNAMES = split_file("1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF", "imagenet/classnames.txt")
DOMAINNET_MD5 = {  # images, training list, test list
    "clipart": ("cd0d8f2d77a4e181449b78ed62bccf1e", "b4349693a7f9c05c53955725c47ed6cb",
                "f5ddbcfd657a3acf9d0f7da10db22565"),
    "infograph": ("720380b86f9e6ab4805bb38b6bd135f8", "379b50054f4ac2018dca4f89421b92d9",
                  "779626b50869edffe8ea6941c3755c71"),
    "painting": ("1ae32cdb4f98fe7ab5eb0a351768abfd", "7db0e7ca73ad9982f6e1f7f3ef372c0a",
                 "232b35dc53f26d414686ae579e38d9b5"),
    "quickdraw": ("bdc1b6f09f277da1a263389efe0c7a66", "b732ced3939ac8efdd8c0a889dca56cc",
                  "c1a828fdfe216fb109f1c0083a252c6f"),
    "real": ("dcc47055e8935767784b7162e7c7cca6", "8ebf02c2075fadd564705f0dc7cd6291",
             "6098816791c3ebed543c71ffa11b9054"),
    "sketch": ("658d8009644040ff7ce30bb2e820850f", "1233bd18aa9a8a200bf4cecf1c34ef3e",
               "d8a222e4672cfd585298aa14d02ea441"),
}


def domainnet_files() -> Iterator[File]:
    for domain, (images, *lists) in DOMAINNET_MD5.items():
        cleaned = "groundtruth/" if domain in ("clipart", "painting") else ""
        yield File(f"{VISDA}/{cleaned}{domain}.zip", {domain: f"domainnet/{domain}"}, images)
        for part, md5 in zip(("train", "test"), lists):
            name = f"{domain}_{part}.txt"
            yield File(f"{VISDA}/domainnet/txt/{name}", {"": f"domainnet/splits/{name}"}, md5)


SOURCES = {
    "imagenet": Source(
        {"classes": 1000, "train": 1281167, "test": 50000}, (CLASSNAMES,), arrange=arrange_imagenet, by_hand="""\
ImageNet needs an account at https://image-net.org:
  1. log in and download ILSVRC2012_img_train.tar (138 GB), ILSVRC2012_img_val.tar (6.3 GB) and
     ILSVRC2012_devkit_t12.tar.gz into {root}/imagenet/images/
  2. run this command again: it unpacks them to imagenet/images/{{train,val}}/<class folder>/
  or, where you have ImageNet already: make {root}/imagenet/images a link to the folder of its train/ and val/."""),
    "caltech101": Source(
        parts(100, 4128, 1649, 2465), (
            File("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                 {"101_ObjectCategories": "caltech-101/101_ObjectCategories"}, "3138e1922a9193bfa496528edbbc45d0",
                 inner="caltech-101/101_ObjectCategories.tar.gz"),
            split_file("1hyarUivQE36mY6jSomru6Fjd-JzwcCzN", "caltech-101/split_zhou_Caltech101.json"))),
    "oxford_pets": Source(
        parts(37, 2944, 736, 3669), (
            File(f"{OXFORD}/pets/data/images.tar.gz", {"images": "oxford_pets/images"},
                 "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
            File(f"{OXFORD}/pets/data/annotations.tar.gz", {"annotations": "oxford_pets/annotations"},
                 "95a8c909bbe2e81eed6a22bccdf3f68f"),
            split_file("1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs", "oxford_pets/split_zhou_OxfordPets.json"))),
    "stanford_cars": Source(
        parts(196, 6509, 1635, 8041),
        (split_file("1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT", "stanford_cars/split_zhou_StanfordCars.json"),), by_hand="""\
Stanford Cars: the server of its images is gone. torchvision keeps the steps for a copy at
  https://github.com/pytorch/vision/issues/7545#issuecomment-1631441616
Put cars_train/ and cars_test/ (images 00001.jpg ...) into {root}/stanford_cars/ and run this command again."""),
    "oxford_flowers": Source(
        parts(102, 4093, 1633, 2463), (
            File(f"{OXFORD}/flowers/102/102flowers.tgz", {"jpg": "oxford_flowers/jpg"},
                 "52808999861908f626f3c1f4e79d11fa"),
            File(f"{OXFORD}/flowers/102/imagelabels.mat", {"": "oxford_flowers/imagelabels.mat"},
                 "e0620be6f572b9609742df49c70aed4d"),
            split_file("1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0", "oxford_flowers/cat_to_name.json"),
            split_file("1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT", "oxford_flowers/split_zhou_OxfordFlowers.json"))),
    "food101": Source(
        parts(101, 50500, 20200, 30300), (
            File("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                 {f"food-101/{name}": f"food-101/{name}" for name in ("images", "meta")},
                 "85eeb15f3717b99a5da872d97d918f87"),
            split_file("1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl", "food-101/split_zhou_Food101.json"))),
    "fgvc_aircraft": Source(
        parts(100, 3334, 3333, 3333), (
            File(f"{OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                 {f"fgvc-aircraft-2013b/data/{name}": f"fgvc_aircraft/{name}" for name in
                  ("images", "variants.txt", *(f"images_variant_{part}.txt" for part in ("train", "val", "test")))}),)),
    "sun397": Source(
        parts(397, 15880, 3970, 19850), (
            File("http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz", {"SUN397": "sun397/SUN397"},
                 "8ca2778205c41d23104230ba66911c7a"),
            split_file("1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq", "sun397/split_zhou_SUN397.json"))),
    "dtd": Source(
        parts(47, 2820, 1128, 1692), (
            File(f"{OXFORD}/dtd/download/dtd-r1.0.1.tar.gz",
                 {f"dtd/{name}": f"dtd/{name}" for name in ("images", "imdb", "labels")},
                 "fff73e5086ae6bdbea199a49dfb8a4c1"),
            split_file("1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x", "dtd/split_zhou_DescribableTextures.json"))),
    "eurosat": Source(
        parts(10, 13500, 5400, 8100), (
            File("https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
                 "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip", {"2750": "eurosat/2750"},
                 "c8fa014336c82ac7804f0398fcb19387"),
            split_file("1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o", "eurosat/split_zhou_EuroSAT.json"))),
    "ucf101": Source(
        parts(101, 7639, 1898, 3783), (
            File(f"{DRIVE}10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O", {"UCF-101-midframes": "ucf101/UCF-101-midframes"},
                 name="UCF-101-midframes.zip"),
            split_file("1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y", "ucf101/split_zhou_UCF101.json"))),
    "imagenetv2": Source(
        {"classes": 1000, "test": 10000}, (
            CLASSNAMES,
            File("https://s3-us-west-2.amazonaws.com/imagenetv2public/imagenetv2-matched-frequency.tar.gz",
                 {"imagenetv2-matched-frequency-format-val": "imagenetv2/imagenetv2-matched-frequency-format-val"}))),
    "imagenet_sketch": Source(
        {"classes": 1000, "test": 50889}, (
            CLASSNAMES,
            File(f"{DRIVE}1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA", {"sketch": "imagenet-sketch/images"},
                 name="ImageNet-Sketch.zip"))),
    "imagenet_a": Source(
        {"classes": 200, "test": 7500}, (
            CLASSNAMES,
            File("https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
                 {"imagenet-a": "imagenet-adversarial/imagenet-a"}, "c3e55429088dc681f30d81f4726b6595"))),
    "imagenet_r": Source(
        {"classes": 200, "test": 30000}, (
            CLASSNAMES,
            File("https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
                 {"imagenet-r": "imagenet-rendition/imagenet-r"}))),
    "pacs": Source(
        # The lists name 3,929 sketches; one of them is no image of the archive (datasets/pacs.py).
        {"classes": 7, "art_painting": 2048, "cartoon": 2344, "photo": 1670, "sketch": 3928}, (
            File(f"{DRIVE}1m4X4fROCCXMO0lRLrr6Zz9Vb3974NWhE",
                 {f"pacs/{name}": f"pacs/{name}" for name in ("images", "splits")}, name="pacs.zip"),)),
    "vlcs": Source(
        {"classes": 5, "caltech": 1415, "labelme": 2656, "pascal": 3376, "sun": 3282}, (
            File(f"{DRIVE}1r0WL5DDqKfSPp9E3tRENwHaXNs1olLZd",
                 {f"VLCS/{name}": f"VLCS/{name}" for name in ("CALTECH", "LABELME", "PASCAL", "SUN")},
                 name="vlcs.zip"),)),
    "office_home": Source(
        {"classes": 65, "art": 2427, "clipart": 4365, "product": 4439, "real_world": 4357}, (
            File(f"{DRIVE}1gkbf_KaxoBws-GWT3XIPZ7BnkqbAxIFa",
                 {f"office_home_dg/{name}": f"office_home_dg/{name}" for name in
                  ("art", "clipart", "product", "real_world")}, name="office_home_dg.zip"),)),
    "domainnet": Source(
        {"classes": 345, "clipart": 48129, "infograph": 51605, "painting": 72266, "quickdraw": 172500, "real": 172947,
         "sketch": 69128}, tuple(domainnet_files())),
    "terra_incognita": Source(
        {"classes": 10, "images": 24788}, (
            File(f"{LILA}/eccv_18_all_images_sm.tar.gz", {TERRA_IMAGES: f"terra_incognita/{TERRA_IMAGES}"},
                 size=6492615601),
            File(f"{LILA}/labels/caltech_camera_traps.json.zip",
                 {"caltech_images_20210113.json": "terra_incognita/caltech_images_20210113.json"})),
        arrange=arrange_terra_incognita, complete=tuple(f"terra_incognita/{place}" for place in TERRA_PLACES)),
}
GROUPS = {
    "all": tuple(SOURCES),
    "base2new": ("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101",
                 "fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"),
    "dg": ("pacs", "vlcs", "office_home", "domainnet", "terra_incognita"),
}
