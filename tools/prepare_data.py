"""Get the datasets, lay them out, verify them.

    python tools/prepare_data.py caltech101 pacs --root data
    python tools/prepare_data.py base2new --root data
    python tools/prepare_data.py all --root data --check        # only verify what is there

Run it again at any time: what is there is left alone, an interrupted download goes on where it stopped. For what needs
a login or has lost its server, the steps to do by hand are printed. docs/DATASETS.md shows the layouts.

`SOURCES` below holds every address, checksum and published number. Addresses of images and their MD5 are torchvision's
where it has the dataset; split files and class names are those of CoOp's DATASETS.md
(https://github.com/KaiyangZhou/CoOp), Dassl's and DomainBed's for domains.
"""
import contextlib
import errno
import json
import os
import shutil
import ssl
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from tabulate import tabulate  # noqa: E402
from torchvision.datasets.utils import calculate_md5  # noqa: E402
from tqdm import tqdm  # noqa: E402

import train  # noqa: E402
from dassl.config import get_cfg_default, merge_file  # noqa: E402
from dassl.data.datasets import DATASET_REGISTRY, build_dataset  # noqa: E402
from dassl.utils import InputError  # noqa: E402
from dassl.utils.registry import nearest  # noqa: E402
from datasets.base import DomainDataset, DrawnDomains, SplitDataset, class_folders  # noqa: E402

ATTEMPTS = 4  # that bring no byte, before a download is given up
PAUSE = 2  # seconds between two of them
TIMEOUT = 60  # seconds without a byte
BUSY = (408, 429)  # answers of a server that wants to be asked again, as it does with 500 and above
CHUNK = 1 << 20
DRIVE = "drive:"  # an address of this kind is the id of a file on Google Drive


# ---- what there is -----------------------------------------------------------------------------------------------


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
    places: dict
    md5: str = ""
    size: int = 0
    name: str = ""
    inner: str = ""

    @property
    def filename(self):
        return self.name or self.address.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Source:
    """A dataset: its files, what they must hold, and what to do by hand.

    Attributes:
        expected: published numbers: classes, then images of each part, or of each domain.
        by_hand: the steps, where not everything can be fetched.
        arrange: called with the data folder when the files are in place, for a layout that archives do not have.
        complete: paths below the data folder that stand for all files, where those do not stay (`arrange`).
    """

    expected: dict
    files: tuple = ()
    by_hand: str = ""
    arrange: Callable = None
    complete: tuple = ()


def split_file(drive, path):
    return File(DRIVE + drive, {"": path}, name=os.path.basename(path))


def parts(classes, train_size, val, test):
    return {"classes": classes, "train": train_size, "val": val, "test": test}


def arrange_imagenet(root):
    """Let torchvision unpack ImageNet's own archives, where they were put into `imagenet/images/`."""
    from torchvision.datasets import ImageNet

    images = os.path.join(root, "imagenet", "images")
    for part, archive in (("train", "ILSVRC2012_img_train.tar"), ("val", "ILSVRC2012_img_val.tar")):
        if os.path.isfile(os.path.join(images, archive)) and not os.path.isdir(os.path.join(images, part)):
            print(f"unpacking {archive}, which takes long", flush=True)
            try:
                ImageNet(images, split=part)
            except (RuntimeError, OSError) as error:
                raise InputError(f"{os.path.join(images, archive)}: {error}") from None


def arrange_terra_incognita(root):
    """DomainBed's choice from the Caltech Camera Traps: four places, ten animals, an image once for each of its
    animals."""
    folder = os.path.join(root, "terra_incognita")
    listing, images = os.path.join(folder, "caltech_images_20210113.json"), os.path.join(folder, TERRA_IMAGES)
    with open(listing, encoding="utf-8") as file:
        table = json.load(file)
    names = {category["id"]: category["name"] for category in table["categories"]}
    animals = defaultdict(set)
    for note in table["annotations"]:
        animals[note["image_id"]].add(names[note["category_id"]])
    with unfinished_folder(folder) as unfinished:
        for image in table["images"]:
            place = f"location_{image['location']}"
            for name in sorted(animals[image["id"]] & TERRA_CLASSES) if place in TERRA_PLACES else ():
                target = os.path.join(unfinished, place, name, image["file_name"])
                source = os.path.join(images, image["file_name"])
                if os.path.isfile(source):  # the reduced images are a part of the whole listing
                    os.makedirs(os.path.dirname(target), exist_ok=True)
                    try:
                        os.link(source, target)
                    except OSError:  # a disk without links
                        shutil.copyfile(source, target)
        for place in TERRA_PLACES:
            if not os.path.isdir(os.path.join(unfinished, place)):
                raise InputError(f"{listing} names no image of {place} that lies in {images}")
            os.rename(os.path.join(unfinished, place), os.path.join(folder, place))
    shutil.rmtree(images)
    os.remove(listing)


TERRA_IMAGES = "eccv_18_all_images_sm"
TERRA_PLACES = ("location_100", "location_38", "location_43", "location_46")
TERRA_CLASSES = {"bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel"}
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


def domainnet_files():
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
        {"classes": 7, "art_painting": 2048, "cartoon": 2344, "photo": 1670, "sketch": 3929}, (
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


# ---- download ----------------------------------------------------------------------------------------------------


def download(url, path, md5="", size=0):
    """Fetch `url` to `path`. What arrived of an earlier try lies in `path.part` and is gone on from.

    Raises:
        InputError: the server does not answer or stops answering, the file has another checksum or size than was
            published (it is removed), or the disk is full (the part is kept).
    """
    part = f"{path}.part"
    most, failures = size_of(part), 0
    while True:
        try:
            if fetch_rest(url, part):
                break
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            reason = f"{error.code} {error.reason}"
            if error.code == 416:  # there is nothing behind the part: it is whole, or too long to be of this file
                if error.headers.get("Content-Range") == f"bytes */{size_of(part)}":
                    break
                os.remove(part)
            elif error.code < 500 and error.code not in BUSY:
                raise InputError(f"{url} answers {reason}; its place may have changed, see docs/DATASETS.md") from None
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            reason = getattr(error, "reason", None) or error
        failures = 0 if size_of(part) > most else failures + 1
        most = max(most, size_of(part))
        if failures == ATTEMPTS:
            raise InputError(f"the download of {url} stopped after {size_of(part):,} bytes ({reason}); run the same "
                             "command again to go on from there")
        time.sleep(PAUSE * failures)
    check_file(part, md5, size, url)
    os.replace(part, path)
    with contextlib.suppress(FileNotFoundError):
        os.remove(f"{part}.version")


def fetch_rest(url, part):
    """Append to `part` what it lacks. Returns whether it is complete now, as far as the server tells a length."""
    have, version_file = size_of(part), f"{part}.version"
    headers = {"User-Agent": "Mozilla/5.0 (prepare_data)"}
    if have:
        headers["Range"] = f"bytes={have}-"
        with contextlib.suppress(OSError), open(version_file, encoding="utf-8") as file:
            headers["If-Range"] = file.read()  # a file that changed since is sent from its start
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        goes_on = response.status == 206
        have = have if goes_on else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        need_space(os.path.dirname(part), (total or 0) - have)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if version and not version.startswith("W/"):
            with open(version_file, "w", encoding="utf-8") as file:
                file.write(version)
        with full_disk(part), open(part, "ab" if goes_on else "wb") as file, tqdm(
                total=total, initial=have, unit="B", unit_scale=True, desc=os.path.basename(part)[:-5], disable=None,
        ) as bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return total is None or size_of(part) == total


def download_from_drive(file_id, path, md5="", size=0):
    """Fetch a file from Google Drive, whose pages of warnings gdown knows. Raises InputError as `download` does."""
    import gdown

    try:
        with full_disk(path):
            gdown.download(id=file_id, output=path, resume=True, quiet=not sys.stderr.isatty())
    except (gdown.exceptions.DownloadError, OSError) as error:  # requests' errors are OSErrors
        raise InputError(f"Google Drive does not give the file {file_id}: {str(error).strip()[:200]}; open "
                         f"https://drive.google.com/file/d/{file_id}/view in a browser and save it as {path}") from None
    check_file(path, md5, size, f"https://drive.google.com/file/d/{file_id}")


class FullDisk(InputError):
    """There is no room; what was fetched is kept."""


class OtherLayout(InputError):
    """A whole archive that holds other folders than the published one; it is kept, to be laid out by hand."""

    def __init__(self, archive, inside):
        super().__init__(f"{archive} does not hold {inside}; the archive is kept: lay its content out by hand as "
                         "docs/DATASETS.md shows, or delete it to fetch it again")


def check_file(path, md5, size, source):
    """Remove a file of another checksum or size than was published and raise InputError."""
    found = [f"{size_of(path):,} bytes, {size:,} are"] if size and size_of(path) != size else []
    if md5 and not found:
        digest = calculate_md5(path)
        found = [f"the MD5 {digest}, {md5} is"] if digest != md5 else []
    if found:
        os.remove(path)
        raise InputError(f"{source} has {found[0]} published; it was removed: run the same command again, and if it "
                         "stays so the file at its source changed")


def size_of(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


def need_space(folder, size):
    free = shutil.disk_usage(folder).free
    if size > free:
        raise FullDisk(f"no space left in {folder}: {size / 1e9:.1f} GB are to come, {free / 1e9:.1f} GB are free")


@contextlib.contextmanager
def full_disk(path):
    """Turn the disk's being full into FullDisk."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise FullDisk(f"no space left on the disk of {path} ({error.strerror}); free some and run the same command "
                       "again, it goes on where it stopped") from None


# ---- archives ----------------------------------------------------------------------------------------------------


def unpack(archive, folder):
    """Unpack a .zip or a .tar.* into `folder`.

    Raises:
        InputError: the archive is damaged or cut off, or it holds something that would lie, or a link that would
            lead, outside `folder`; then nothing it held is to be used.
    """
    name = os.path.basename(archive)
    try:
        with full_disk(folder):
            if name.endswith(".zip"):
                unpack_zip(archive, folder)
            else:
                with tarfile.open(archive) as tar:
                    bar = tqdm(tar, desc=f"unpacking {name}", unit=" files", disable=None)
                    tar.extractall(folder, members=bar, filter=inside_only)
    except tarfile.FilterError as error:
        raise InputError(f"{archive} is refused: {error}") from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise damaged(archive, error) from None
    except OSError as error:
        if error.errno is None:  # what gzip, bz2 and lzma raise
            raise damaged(archive, error) from None
        raise


def damaged(archive, error):
    return InputError(f"{archive} is cut off or damaged ({error})")


def inside_only(member, folder):
    """Tar's own check, which takes an absolute path for a relative one, made stricter."""
    if member.name.startswith(("/", os.sep)):
        raise tarfile.AbsolutePathError(member)
    return tarfile.data_filter(member, folder)


def unpack_zip(archive, folder):
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            path = member.filename.replace("\\", "/")
            link = (member.external_attr >> 16) & 0o170000 == 0o120000
            if link or path.startswith("/") or ".." in path.split("/") or ":" in path.split("/")[0]:
                raise InputError(f"{archive} is refused: '{member.filename}' "
                                 f"{'is a link' if link else 'would lie outside the folder'}")
        for member in tqdm(file.infolist(), desc=f"unpacking {os.path.basename(archive)}", unit=" files", disable=None):
            file.extract(member, folder)


@contextlib.contextmanager
def unfinished_folder(folder):
    """A folder in `folder` that is removed at the end, whatever happens."""
    os.makedirs(folder, exist_ok=True)
    path = tempfile.mkdtemp(prefix=".unfinished-", dir=folder)
    os.chmod(path, 0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


# ---- one dataset -------------------------------------------------------------------------------------------------


def fetch(file, root):
    """Download one file and put what it holds into its places; leave alone what is there. A place is filled at once,
    by a rename, so that a place that exists is whole."""
    targets = {inside: os.path.join(root, path) for inside, path in file.places.items()}
    if all(os.path.exists(path) for path in targets.values()):
        return
    path = os.path.join(root, ".downloads", file.filename)
    if not os.path.isfile(path):
        print(f"fetching {file.filename}", flush=True)
        if file.address.startswith(DRIVE):
            download_from_drive(file.address[len(DRIVE):], path, file.md5, file.size)
        else:
            download(file.address, path, file.md5, file.size)
    if "" in targets:
        move(path, targets[""])
        return
    try:
        with unfinished_folder(root) as folder:
            unpack(path, folder)
            if file.inner:
                inner = os.path.join(folder, file.inner)
                if not os.path.isfile(inner):
                    raise OtherLayout(path, file.inner)
                unpack(inner, folder)
            for inside in targets:
                if not os.path.exists(os.path.join(folder, inside)):
                    raise OtherLayout(path, inside)
            for inside, target in targets.items():
                if not os.path.exists(target):
                    move(os.path.join(folder, inside), target)
    except (FullDisk, OtherLayout):
        raise
    except InputError as error:
        os.remove(path)
        raise InputError(f"{error}; the archive was removed: run the same command to fetch it again") from None
    os.remove(path)


@contextlib.contextmanager
def alone(root):
    """Keep a second run out of `root`, and clear away what a killed one left unfinished."""
    import fcntl

    downloads = os.path.join(root, ".downloads")
    os.makedirs(downloads, exist_ok=True)
    path = os.path.join(downloads, "lock")
    with open(path, "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another prepare_data.py is at work in {root}; wait for its end") from None
        for unfinished in (*Path(root).glob(".unfinished-*"), *Path(root).glob("*/.unfinished-*")):
            shutil.rmtree(unfinished, ignore_errors=True)
        try:
            yield
        finally:
            os.remove(path)
            with contextlib.suppress(OSError):  # it stays where a download is unfinished
                os.rmdir(downloads)


def move(source, target):
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.move(source, target)  # a rename on one disk; a dataset's folder may be a link to another


def prepare(name, root):
    """Fetch and arrange a dataset as far as it is not there yet."""
    source = SOURCES[name]
    if source.complete and all(os.path.exists(os.path.join(root, path)) for path in source.complete):
        return
    for file in source.files:
        fetch(file, root)
    if source.arrange:
        source.arrange(root)


# ---- verify ------------------------------------------------------------------------------------------------------


def dataset_class(name):
    cfg = get_cfg_default()
    merge_file(cfg, os.path.join(ROOT, "configs", "datasets", f"{name}.yaml"))
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)


def count(name, root):
    """What lies below `root` of a dataset, in the form of its `expected`. Nothing is written.

    Raises:
        InputError: it is not there or not whole.
    """
    cls, source = dataset_class(name), SOURCES[name]
    folder = os.path.join(root, cls.dataset_dir)
    if not os.path.isdir(folder):
        raise InputError(f"no folder {cls.dataset_dir}")
    if issubclass(cls, SplitDataset) and not os.path.isfile(os.path.join(folder, cls.split_file)):
        raise InputError(f"no {cls.dataset_dir}/{cls.split_file}")
    cfg = get_cfg_default()
    cfg.VERBOSE, cfg.DATASET.NAME, cfg.DATASET.ROOT = False, cls.__name__, root
    if issubclass(cls, DrawnDomains) and "images" in source.expected:
        return count_drawn(cls, folder)
    if issubclass(cls, DomainDataset):
        cfg.DATASET.SOURCE_DOMAINS = cfg.DATASET.TARGET_DOMAINS = tuple(cls.domains)
        cfg.DATASET.TARGET_PART = "all"
        dataset = build_dataset(cfg)
        images = Counter(cls.domains[item.domain] for item in dataset.test)
        return {"classes": dataset.num_classes, **{domain: images[domain] for domain in cls.domains}}
    with contextlib.redirect_stdout(sys.stderr):
        dataset = build_dataset(cfg)
    found = parts(dataset.num_classes, len(dataset.train_x), len(dataset.val or []), len(dataset.test))
    return {key: found[key] for key in source.expected}


def count_drawn(cls, folder):
    """Domains without a published split, for which none is drawn only to count."""
    missing = [domain for domain in cls.domains if domain not in class_folders(folder)]
    if missing:
        raise InputError(f"no folder {cls.dataset_dir}/{missing[0]}")
    items = cls.list_domains(folder, cls.domains)
    return {"classes": len({item.label for item in items}), "images": len(items)}


def check(names, root):
    """Print the table of what is expected and found. Returns whether all of it agrees."""
    rows = []
    for name in names:
        expected = SOURCES[name].expected
        try:
            found = count(name, root)
            rows.append([name, words(expected), words(found), "ok" if found == expected else "differs"])
        except InputError as error:
            rows.append([name, words(expected), str(error)[:160], "missing"])
    print(tabulate(rows, headers=["dataset", "expected", "found", ""], maxcolwidths=[None, 44, 44, None]))
    return all(row[-1] == "ok" for row in rows)


def words(numbers):
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items())


# ---- command line ------------------------------------------------------------------------------------------------


def parse_arguments(argv):
    parser = train.ArgumentParser(description="Get datasets, lay them out, verify them.",
                                  epilog=f"datasets: {', '.join(SOURCES)}")
    parser.add_argument("datasets", nargs="+", metavar="DATASET", help=f"names, or a group: {', '.join(GROUPS)}")
    parser.add_argument("--root", default="data", help="folder that holds the datasets (default data)")
    parser.add_argument("--check", action="store_true", help="only verify what is there")
    args = parser.parse_args(argv)
    names = [name for word in args.datasets for name in GROUPS.get(word, (word,))]
    for name in names:
        if name not in SOURCES:
            known = [*GROUPS, *SOURCES]
            raise InputError(f"unknown dataset '{name}'{nearest(name, known)}; known: {', '.join(known)}")
    args.datasets = list(dict.fromkeys(names))
    args.root = os.path.abspath(os.path.expanduser(args.root))
    return args


def main(argv=None):
    """Do as the command line says. Returns whether every dataset named is there with its published numbers."""
    args = parse_arguments(argv)
    train.discover()
    if not args.check:
        with alone(args.root):
            for name in args.datasets:
                try:
                    prepare(name, args.root)
                except (InputError, OSError) as error:
                    print(f"{name}: {error}", file=sys.stderr)
    whole = check(args.datasets, args.root)
    if not args.check:
        for name in args.datasets:
            if SOURCES[name].by_hand and not is_there(name, args.root):
                print(f"\n{SOURCES[name].by_hand.format(root=args.root)}")
    return whole


def is_there(name, root):
    try:
        return bool(count(name, root))
    except InputError:
        return False


def command_line():
    whole = []
    status = train.command_line(lambda: whole.append(main()))
    return status or int(not whole[0])


if __name__ == "__main__":
    sys.exit(command_line())
