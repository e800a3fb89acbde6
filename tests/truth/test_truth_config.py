"""Pictures of deep or unusual files, options that act nowhere or say two things, configs that do not read back."""
import csv
import gzip
import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageOps

import train
from dassl.config import get_cfg_default, merge_file, merge_options
from dassl.config.effect import EFFECTS
from dassl.data.image_cache import ImageCache
from dassl.utils import InputError, read_image
from dassl.utils.images import FORMATS, SUFFIXES, is_picture, size_of, to_rgb
from tools import predict, protocol
from tools.interpret_prompt import interpret
from tools.running.plans import Planner

ROOT = Path(__file__).resolve().parents[2]


# ---- 3. deep grey pictures ---------------------------------------------------------------------------------------
GREY = np.random.RandomState(3).randint(0, 256, (40, 36)).astype(np.uint8)
DEEP = GREY.astype(np.uint16) * 257


def png(pixels, bits, colour):
    """The bytes of a PNG; pixels: (H, W, channels) of unsigned numbers."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(f">u{bits // 8}"))
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(pixels, bits, sample_format=1, photometric=1, order="<"):
    """The bytes of a grey TIFF without compression; pixels: bytes of all rows."""
    height, width = GREY.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height),
            (279, len(pixels)), (339, sample_format)]
    mark = b"II" if order == "<" else b"MM"
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) if tag in (273, 279) else
                       struct.pack(order + "HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    return (mark + struct.pack(order + "HI", 42, 8 + len(pixels)) + pixels + struct.pack(order + "H", len(tags))
            + entries + bytes(4))


def twelve_bits():
    """Two pixels in three bytes."""
    values = np.round(GREY * (4095 / 255)).astype(np.uint32).reshape(-1, 2)
    pairs = (values[:, 0] << 12) | values[:, 1]
    return np.stack([pairs >> 16, pairs >> 8, pairs], 1).astype(np.uint8).tobytes()


SAME = {  # files that hold the picture GREY
    "a PNG of 16 bits": ("a.png", png(DEEP[..., None], 16, 0)),
    "a colour PNG of 16 bits": ("a.png", png(np.repeat(DEEP[..., None], 3, 2), 16, 2)),
    "a grey PNG of 16 bits with alpha": ("a.png", png(np.stack([DEEP, 0 * DEEP + 65535], 2), 16, 4)),
    "a TIFF of 16 bits": ("a.tif", tiff(DEEP.astype("<u2").tobytes(), 16)),
    "a TIFF of 16 bits, high byte first": ("a.tif", tiff(DEEP.astype(">u2").tobytes(), 16, order=">")),
    "a TIFF of 16 bits in which 0 is white": ("a.tif", tiff((65535 - DEEP).astype("<u2").tobytes(), 16, photometric=0)),
    "a TIFF of 12 bits": ("a.tif", tiff(twelve_bits(), 12)),
    "a TIFF of 32 bits that holds 16": ("a.tif", tiff(DEEP.astype("<u4").tobytes(), 32)),
    "a PGM of 16 bits": ("a.pgm", b"P5 36 40 65535\n" + DEEP.astype(">u2").tobytes()),
    "a PGM of 12 bits": ("a.pgm", b"P5 36 40 4095\n" + np.round(GREY * (4095 / 255)).astype(">u2").tobytes()),
}


@pytest.mark.parametrize("kind", SAME)
def test_a_deep_picture_is_the_picture_of_8_bits(kind, tmp_path):
    name, content = SAME[kind]
    (tmp_path / name).write_bytes(content)
    pixels = np.asarray(read_image(str(tmp_path / name)))
    assert np.array_equal(pixels, np.repeat(GREY[..., None], 3, 2))


UNKNOWN = {  # files whose numbers say nothing of what is white: (content, what is told of them)
    "floats from 0 to 1": ("a.tif", tiff((GREY / 255).astype("<f4").tobytes(), 32, 3), "floating-point values from 0"),
    "floats from 0 to 255": ("a.tif", tiff(GREY.astype("<f4").tobytes(), 32, 3), "from 0 to 255, of which white"),
    "floats of a PFM": ("a.pfm", b"Pf\n36 40\n-1.0\n" + GREY.astype("<f4").tobytes(), "floating-point values"),
    "32 bits from 0 to 255": ("a.tif", tiff(GREY.astype("<u4").tobytes(), 32), "whole numbers from 0 to 255 in 32-bit"),
    "32 bits above 16": ("a.tif", tiff((DEEP.astype("<i4") * 9).tobytes(), 32, 2), "to 589815 in 32-bit pixels"),
    "32 bits below 0": ("a.tif", tiff((DEEP.astype("<i4") - 300).tobytes(), 32, 2), "from -300 to 65235"),
    "16 bits with a sign": ("a.tif", tiff((DEEP // 2).astype("<i2").tobytes(), 16, 2), "in signed pixels"),
}


@pytest.fixture
def folder(tmp_path):
    """Three classes of six pictures, each class of a brightness of its own."""
    for number, name in enumerate(("apple", "banana", "cherry")):
        for index in range(6):
            path = tmp_path / "own" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.RandomState(10 * number + index).randint(60 * number, 60 * number + 90, (40, 36))
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path / "own"


def rewritten(folder, name, change):
    """A copy of a picture folder with each picture put through `change(image, path)`."""
    copy = folder.parent / name
    shutil.copytree(folder, copy)
    for path in sorted(copy.glob("*/*.png")):
        with Image.open(path) as image:
            image.load()
        change(image, path)
    return copy


def predictions(out):
    with gzip.open(out / "predictions.csv.gz", "rt") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_picture_whose_white_is_not_known_is_refused_before_the_training(kind, folder, refused):
    name, content, told = UNKNOWN[kind]
    for place in folder.iterdir():  # one in each class, wherever the split puts it
        for picture in sorted(place.iterdir())[:3]:
            picture.with_suffix(Path(name).suffix).write_bytes(content)
            picture.unlink()
    line = refused("CoOp", dataset="image_folder", root=folder)
    assert "of the images to train or validate on" in line and told in line and "convert it to 8 or 16 bits" in line


@pytest.mark.parametrize("trainer", ["LinearProbe", "ZeroshotCLIP"])
def test_an_accuracy_does_not_depend_on_the_depth(trainer, folder, made, tmp_path):
    deep = rewritten(folder, "deep", lambda image, path: Image.fromarray(
        np.asarray(image).astype(np.uint16) * 257).save(path))
    words = ("OPTIM.MAX_EPOCH", 1) if trainer == "LinearProbe" else ()
    made(trainer, *words, dataset="image_folder", root=folder, out="a")
    made(trainer, *words, dataset="image_folder", root=deep, out="b")
    assert predictions(tmp_path / "a") == predictions(tmp_path / "b")


def test_floats_among_test_pictures_alone(folder, refused):
    for picture in folder.glob("*/*.png"):
        Image.fromarray(np.zeros((9, 9), np.float32)).save(picture.with_suffix(".tif"))
        picture.unlink()
    line = refused("ZeroshotCLIP", dataset="image_folder", root=folder)
    assert "cannot decode the image" in line and "floating-point values from 0 to 0" in line


def test_floats_are_left_out_on_request(folder, made):
    (folder / "apple" / "6.tif").write_bytes(UNKNOWN["floats from 0 to 1"][1])
    results, said = made("ZeroshotCLIP", "--skip-bad-images", dataset="image_folder", root=folder)
    [fault] = results["skipped_images"].values()
    assert "floating-point" in fault and "Left out 1 unreadable images" in said


@pytest.fixture
def run(made, folder, tmp_path):
    """A finished zero-shot run on the folder, loaded to predict."""
    made("ZeroshotCLIP", dataset="image_folder", root=folder, out="run")
    return predict.load_run(str(tmp_path / "run"))


def test_deep_pictures_from_python(run):
    pictures = [Image.fromarray(GREY), Image.fromarray(DEEP), Image.fromarray(DEEP.astype(np.int32))]
    first, *others = (dict(prediction.top) for prediction in run.predict(pictures))
    assert all(top == pytest.approx(first, abs=1e-6) for top in others)
    for pixels in ((GREY / 255).astype(np.float32), GREY.astype(np.int32)):
        with pytest.raises(InputError, match="a picture cannot be classified: .* of which white is not known"):
            run.predict([Image.fromarray(pixels)])


# ---- 16. formats -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", ["avif", "tga", "ico", "pcx", "sgi", "dds", "bmp", "gif", "jp2", "webp", "mpo"])
def test_what_enters_a_split_is_read(suffix, folder, made):
    if suffix == "avif" and "AVIF" not in FORMATS:
        pytest.skip("this build of Pillow does not read AVIF")
    for picture in folder.glob("*/*.png"):
        with Image.open(picture) as image:
            image.convert("RGB").save(picture.with_suffix("." + suffix))
        picture.unlink()
    results, said = made("ZeroshotCLIP", dataset="image_folder", root=folder)
    assert "Left out" not in said and results["metrics"]["test"]["accuracy"] >= 0
    assert predict.image_files([str(folder / "apple")])[1] == []


@pytest.mark.parametrize("suffix", ["eps", "psd", "heic", "ppm.zip", "fits"])
def test_what_is_not_read_does_not_enter_a_split(suffix, folder, made):
    path = folder / "apple" / f"x.{suffix}"
    if suffix == "eps":
        Image.fromarray(GREY).save(path)
    else:
        heads = {"psd": b"8BPS\0\1" + bytes(6) + b"\0\3" + struct.pack(">IIHH", 4, 4, 8, 3) + bytes(12)}
        path.write_bytes(heads.get(suffix, b"\0\0\0\x18ftypheic" + bytes(64)))
    _, said = made("ZeroshotCLIP", dataset="image_folder", root=folder)
    assert f"Left out, not an image that can be read: {path}\n" in said and not is_picture(path)
    assert predict.image_files([str(folder / "apple")])[1] == [str(path)]


def test_one_list_of_formats():
    assert "EPS" not in FORMATS and ".eps" not in SUFFIXES and {".avif", ".tga", ".jpg", ".mpo"} <= SUFFIXES


# ---- 22. orientation ---------------------------------------------------------------------------------------------
def lying(orientation, **how):
    """(image, path) -> stores the picture so that its EXIF has to turn it to what it was."""
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180,
            5: Image.Transpose.TRANSPOSE, 7: Image.Transpose.TRANSVERSE, 2: Image.Transpose.FLIP_LEFT_RIGHT,
            4: Image.Transpose.FLIP_TOP_BOTTOM}

    def store(image, path):
        exif = Image.Exif()
        exif[274] = orientation
        image.transpose(back[orientation]).save(path, exif=exif, **how)

    return store


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_lying_picture_is_set_upright_in_every_reader(orientation, tmp_path):
    picture = Image.fromarray(GREY)
    for name, how in (("a.png", {}), ("a.webp", {"lossless": True}), ("a.tif", {}), ("a.jpg", {})):
        path = tmp_path / name
        lying(orientation, **how)(picture, path)
        expected = picture.convert("RGB")
        if name == "a.jpg":  # whose blocks lie otherwise
            with Image.open(path) as image:
                expected = ImageOps.exif_transpose(image).convert("RGB")
        upright = read_image(str(path), exif=True)
        assert upright.size == expected.size == picture.size and upright.tobytes() == expected.tobytes()
        assert size_of(path, exif=True)[0] == picture.size
        assert to_rgb(upright, exif=True).tobytes() == expected.tobytes()  # it is not turned twice
        cache = ImageCache([path], 2**20, exif=True)
        assert all(cache.read(0).tobytes() == expected.tobytes() for _ in range(2)) and cache.memory[0] == 1


@pytest.mark.parametrize("trainer", ["CoOp", "ZeroshotCLIP"])
def test_own_pictures_count_upright(trainer, folder, made, tmp_path):
    """Half of the pictures lie; the run is that of the upright ones, and another without INPUT.EXIF."""
    turned = rewritten(folder, "turned", lambda image, path: lying(6)(image, path) if int(path.stem) % 2 else None)
    words = ("OPTIM.MAX_EPOCH", 1) if trainer == "CoOp" else ()
    _, said = made(trainer, *words, dataset="image_folder", root=folder, out="a")
    made(trainer, *words, dataset="image_folder", root=turned, out="b")
    made(trainer, *words, "INPUT.EXIF", False, dataset="image_folder", root=turned, out="c")
    assert said.count("turned upright as their EXIF says (INPUT.EXIF False") == 1
    assert predictions(tmp_path / "a") == predictions(tmp_path / "b") != predictions(tmp_path / "c")


def test_published_datasets_are_read_as_stored(made):
    results, said = made("ZeroshotCLIP")
    assert results["config"]["INPUT"]["EXIF"] is False and "EXIF" not in said


def test_damaged_exif_leaves_the_picture(tmp_path):
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 60
    Image.fromarray(GREY).convert("RGB").save(tmp_path / "a.jpg", exif=exif)
    plain = read_image(str(tmp_path / "a.jpg"))
    assert read_image(str(tmp_path / "a.jpg"), exif=True).tobytes() == plain.tobytes()


def test_predict_sets_pictures_upright_and_says_so_once(run, tmp_path, capsys):
    Image.fromarray(GREY).save(tmp_path / "up.png")
    lying(6)(Image.fromarray(GREY), tmp_path / "lying.png")
    words = [str(tmp_path / "up.png"), str(tmp_path / "lying.png"), "--model-dir", str(tmp_path / "run")]
    capsys.readouterr()
    up, turned = predict.main(words)
    assert capsys.readouterr().err.count("Note: 1 of 2 pictures are turned upright") == 1 and up.top == turned.top
    _, stored = predict.main([*words, "--no-exif"])
    assert "turned" not in capsys.readouterr().err and stored.top != up.top
    with Image.open(tmp_path / "lying.png") as image:
        assert dict(run.predict([image])[0].top) == pytest.approx(dict(up.top), abs=1e-6)


# ---- 9. lists ----------------------------------------------------------------------------------------------------
ENTRIES = [
    ("TRAINER.TIPADAPTER.TEMPLATES", "a photo of a {}, a type of pet.", ("a photo of a {}, a type of pet.",)),
    ("TRAINER.TIPADAPTER.TEMPLATES", "['a {}, seen', \"b {}.\"]", ("a {}, seen", "b {}.")),
    ("TRAINER.TIPADAPTER.TEMPLATES", "'a {}, a pet.'", ("a {}, a pet.",)),
    ("DATASET.SOURCE_DOMAINS", "art_painting, photo", ("art_painting", "photo")),
    ("DATASET.SOURCE_DOMAINS", "clip art", ("clip art",)),
    ("DATASET.SOURCE_DOMAINS", "[clip art, photo]", ("clip art", "photo")),
    ("DATASET.SOURCE_DOMAINS", "07,1e3", ("07", "1e3")),
    ("DATASET.SOURCE_DOMAINS", "photo,", ("photo",)),
    ("OPTIM.STEPSIZE", "10, 20", (10, 20)), ("OPTIM.STEPSIZE", "(10,20)", (10, 20)), ("OPTIM.STEPSIZE", "10", (10,)),
    ("INPUT.PIXEL_STD", "1,1,0.5", [1.0, 1.0, 0.5]), ("MODEL.HEAD.HIDDEN_LAYERS", "64,32", (64, 32)),
    ("INPUT.TRANSFORMS", "", ()),
]


def list_config(key, text, door, tmp_path):
    cfg = train.default_config()
    if door == "option":
        merge_options(cfg, [key, text])
    else:
        for part in reversed(key.split(".")):
            text = {part: text}
        (tmp_path / "list.yaml").write_text(yaml.safe_dump(text))
        merge_file(cfg, str(tmp_path / "list.yaml"))
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


@pytest.mark.parametrize("door", ["option", "file"])
@pytest.mark.parametrize(("key", "text", "entries"), ENTRIES)
def test_a_list_has_the_entries_that_were_meant(key, text, entries, door, tmp_path):
    assert list_config(key, text, door, tmp_path) == entries


@pytest.mark.parametrize(("key", "text", "told"), [
    ("DATASET.SOURCE_DOMAINS", "photo,,sketch", "SOURCE_DOMAINS has an empty entry: 'photo,,sketch'"),
    ("DATASET.SOURCE_DOMAINS", ["photo", " "], "SOURCE_DOMAINS has an empty entry"),
    ("DATASET.TARGET_DOMAINS", [["photo"]], "is a list of names, and ['photo'] is none"),
    ("DATASET.TARGET_DOMAINS", [True], "is a list of names, and True is none; put quotes"),
    ("INPUT.TRANSFORMS", [None], "is a list of names, and None is none"),
    ("OPTIM.STEPSIZE", "ten,20", "OPTIM.STEPSIZE must be of type int (as its default -1), not 'ten'"),
    ("OPTIM.STEPSIZE", "10 20", "OPTIM.STEPSIZE must be of type int (as its default -1), not '10 20'"),
    ("OPTIM.STEPSIZE", [1.5], "must be of type int"),
    ("INPUT.PIXEL_MEAN", "0.5,half,0.5", "must be of type float"),
    ("MODEL.HEAD.HIDDEN_LAYERS", "wide", "must be of type int"),
])
def test_an_entry_of_another_kind_is_refused(key, text, told, refused, tmp_path):
    for part in reversed(key.split(".")):
        text = {part: text}
    (tmp_path / "list.yaml").write_text(yaml.safe_dump(text))
    assert told in refused("CoOp", "--dataset-config-file", tmp_path / "list.yaml")


# ---- 12. options without effect ----------------------------------------------------------------------------------
def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_every_key_says_when_it_acts():
    assert set(leaves(get_cfg_default())) <= set(EFFECTS)


SILENT = [  # trainer, words, {key: why}
    ("CoOp", ("MODEL.BACKBONE.PRETRAINED", False), {"MODEL.BACKBONE.PRETRAINED": "a CLIP is always used with its"}),
    ("CoOp", ("DATASET.VAL_PERCENT", 0.3), {"DATASET.VAL_PERCENT": "read by nothing"}),
    ("CoOp", ("DATASET.NUM_LABELED", 9, "DATASET.ALL_AS_UNLABELED", True),
     {"DATASET.NUM_LABELED": "read by nothing", "DATASET.ALL_AS_UNLABELED": ""}),
    ("CoOp", ("DATASET.STL10_FOLD", 2, "DATASET.CIFAR_C_TYPE", "fog", "DATASET.CIFAR_C_LEVEL", 3),
     dict.fromkeys(("DATASET.STL10_FOLD", "DATASET.CIFAR_C_TYPE", "DATASET.CIFAR_C_LEVEL"), "read by nothing")),
    ("CoOp", ("TRAIN.COUNT_ITER", "smaller_one"), {"TRAIN.COUNT_ITER": "read by nothing"}),
    ("CoOp", ("--head", "mlp", "MODEL.HEAD.BN", False), dict.fromkeys(("MODEL.HEAD.NAME", "MODEL.HEAD.BN"), "no such")),
    ("CoOp", ("MODEL.HEAD.DROPOUT", 0.5, "MODEL.HEAD.ACTIVATION", "gelu"),
     dict.fromkeys(("MODEL.HEAD.ACTIVATION", "MODEL.HEAD.DROPOUT"), "no such")),
    ("CoOp", ("OPTIM.STAGED_LR", True, "OPTIM.NEW_LAYERS", "ctx"),
     {"OPTIM.STAGED_LR": "from tensors", "OPTIM.NEW_LAYERS": "without OPTIM.STAGED_LR on named layers"}),
    ("CoOp", ("OPTIM.BASE_LR_MULT", 0.5), {"OPTIM.BASE_LR_MULT": "without OPTIM.STAGED_LR"}),
    ("CoOp", ("OPTIM.NAME", "adamw", "OPTIM.SGD_NESTEROV", True), {"OPTIM.SGD_NESTEROV": "of another optimizer"}),
    ("CoOp", ("OPTIM.ADAM_BETA1", 0.8), {"OPTIM.ADAM_BETA1": "of another optimizer"}),
    ("CoOp", ("OPTIM.RMSPROP_ALPHA", 0.8), {"OPTIM.RMSPROP_ALPHA": "of another optimizer"}),
    ("CoOp", ("OPTIM.GAMMA", 0.5, "OPTIM.STEPSIZE", "5"), dict.fromkeys(("OPTIM.STEPSIZE", "OPTIM.GAMMA"), "schedule")),
    ("CoOp", ("OPTIM.WARMUP_MIN_LR", 1e-6), {"OPTIM.WARMUP_MIN_LR": "without such a warm-up"}),
    ("CoOp", ("OPTIM.WARMUP_EPOCH", -1, "OPTIM.WARMUP_RECOUNT", False), {
        "OPTIM.WARMUP_TYPE": "without a warm-up", "OPTIM.WARMUP_RECOUNT": "without a warm-up"}),
    ("CoOp", ("INPUT.GB_K", 9, "INPUT.CUTOUT_LEN", 8), {"INPUT.GB_K": "gaussian_blur", "INPUT.CUTOUT_LEN": "cutout"}),
    ("CoOp", ("INPUT.TRANSFORMS", "random_flip", "INPUT.PIXEL_MEAN", "0.5,0.5,0.5"),
     {"INPUT.PIXEL_MEAN": "without normalize"}),
    ("CoOp", ("DATASET.TARGET_PART", "test"), {"DATASET.TARGET_PART": "no target domains"}),
    ("CoOp", ("--source-domains", "photo"), {"DATASET.SOURCE_DOMAINS": "the dataset has no domains"}),
    ("CoOp", ("DATALOADER.TRAIN_X.N_INS", 2), {"DATALOADER.TRAIN_X.N_INS": "of another sampler"}),
    ("CoOp", ("DATALOADER.TRAIN_X.N_DOMAIN", 1), {"DATALOADER.TRAIN_X.N_DOMAIN": "of another sampler"}),
    ("CoOp", ("DATALOADER.TRAIN_U.BATCH_SIZE", 8), {"DATALOADER.TRAIN_U.BATCH_SIZE": "no unlabelled images"}),
    ("CoOp", ("DATALOADER.RETURN_IMG0", True), {"DATALOADER.RETURN_IMG0": "does not look at img0"}),
    ("CoOp", ("TEST.NO_TEST", True, "TEST.COMPUTE_CMAT", True), {"TEST.COMPUTE_CMAT": "nothing is tested"}),
    ("CoOp", ("TRAINER.MAPLE.N_CTX", 4), {"TRAINER.MAPLE.N_CTX": "of another method"}),
    ("CoOp", ("--model-dir", "elsewhere"), {"--model-dir": "without --eval-only"}),
    ("CoOp", ("VERSION", 2), {"VERSION": "read by nothing"}),
    ("TipAdapterF", ("OPTIM.WARMUP_CONS_LR", 1e-4), {
        "OPTIM.LR_SCHEDULER": "follows OPTIM's schedule", "OPTIM.WARMUP_EPOCH": "", "OPTIM.WARMUP_TYPE": "",
        "OPTIM.WARMUP_CONS_LR": "without such"}),
    ("ZeroshotCLIP", ("OPTIM.MAX_EPOCH", 9), {"OPTIM.MAX_EPOCH": "nothing is trained"}),
    ("ZeroshotCLIP", ("OPTIM.LABEL_SMOOTHING", 0.1), {"OPTIM.LABEL_SMOOTHING": "nothing is trained"}),
    ("ZeroshotCLIP", ("INPUT.TRANSFORMS", "center_crop,normalize"), {"INPUT.TRANSFORMS": "no picture is augmented"}),
    ("ZeroshotCLIP", ("TEST.FINAL_MODEL", "best_val"), {"TEST.FINAL_MODEL": "nothing is trained and tested"}),
]


@pytest.mark.parametrize(("trainer", "words", "silent"), SILENT)
def test_what_acts_nowhere_is_named_in_one_line(trainer, words, silent, made):
    if any(str(word).isupper() and word not in set(leaves(train.default_config())) for word in words):
        pytest.skip("this tree has no such key")
    _, said = made(trainer, "--no-train", *words)
    [line] = [line for line in said.splitlines() if line.startswith("Note: without effect")]
    told = {key: why for part in line.partition(": ")[2].partition(": ")[2].split("; ")
            for keys, _, why in [part.partition(" (")] for key in keys.split(", ")}
    assert set(told) == set(silent) and all(why in told[key] for key, why in silent.items()), line


@pytest.mark.parametrize(("trainer", "words"), [
    ("CoOp", ()), ("MetaPrompt", ()), ("ZeroshotCLIP", ("OPTIM.MAX_EPOCH", 10)),
    ("CoOp", ("OPTIM.LR_SCHEDULER", "multi_step", "OPTIM.STEPSIZE", "1", "OPTIM.GAMMA", 0.5)),
    ("CoOp", ("INPUT.TRANSFORMS", "gaussian_blur,normalize", "INPUT.GB_K", 9)),
    ("CoOp", ("DATALOADER.TRAIN_X.SAMPLER", "RandomClassSampler", "DATALOADER.TRAIN_X.N_INS", 2)),
    ("TipAdapter", ("INPUT.TRANSFORMS", "random_resized_crop", "INPUT.RRCROP_SCALE", "0.5,1")),
    ("ZeroshotCLIP", ("INPUT.TRANSFORMS", "center_crop")),  # test pictures are then not normalised
    ("CoOp", ("TEST.FINAL_MODEL", "best_val")),
])
def test_what_acts_is_not_named(trainer, words, made, tiny_config, tmp_path):
    _, said = made(trainer, "--no-train", *words)
    assert "without effect" not in said


def test_results_keep_what_acted_nowhere(made):
    results, _ = made("ZeroshotCLIP", "DATASET.VAL_PERCENT", 0.3)
    assert results["without_effect"] == ["DATASET.VAL_PERCENT"]
    assert "without_effect" not in made("ZeroshotCLIP", out="other")[0]


@pytest.mark.parametrize(("words", "silent"), [
    (("OPTIM.MAX_EPOCH", 1, "OPTIM.LR", 0.02), None), (("OPTIM.MAX_EPOCH", 5), ["OPTIM.MAX_EPOCH"]),
    (("OPTIM.NAME", "adamw", "TEST.NO_TEST", True), ["OPTIM.NAME", "TEST.NO_TEST"]),
])
def test_an_evaluation_names_what_its_training_was_not_made_with(words, silent, made, tmp_path):
    """A protocol gives the options of its training runs to the evaluations, too."""
    made("CoOp", "OPTIM.MAX_EPOCH", 1, "OPTIM.LR", 0.02, out="trained")
    results, _ = made("CoOp", "--eval-only", "--model-dir", tmp_path / "trained", *words)
    assert results.get("without_effect") == silent


READER = """
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from datasets.caltech101 import Caltech101
from trainers.coop import CoOp


@DATASET_REGISTRY.register()
class Parted(Caltech101):
    def __init__(self, cfg):
        assert cfg.DATASET.VAL_PERCENT == 0.3
        super().__init__(cfg)


@TRAINER_REGISTRY.register()
class Staged(CoOp):
    def build_model(self, towers, classnames):
        assert self.cfg.MODEL.HEAD.NAME == "mlp"
        from yacs.config import CfgNode
        self.cfg.defrost()
        self.cfg.TRAINER.STAGED = CfgNode({"CSC": False, "CTX_INIT": "", "N_CTX": 2, "CLASS_TOKEN_POSITION": "end"})
        self.cfg.freeze()
        return super().build_model(towers, classnames)
"""


def test_what_a_plugin_reads_is_not_named(made, tmp_path):
    (tmp_path / "reader.py").write_text(READER)
    _, said = made("Staged", "--no-train", "--plugin", tmp_path / "reader.py", "--head", "mlp", "DATASET.NAME",
                   "Parted", "DATASET.VAL_PERCENT", 0.3, "DATASET.STL10_FOLD", 1)
    assert "Note: without effect in this run: DATASET.STL10_FOLD (read by nothing)\n" in said


# ---- 17. configs that read back ----------------------------------------------------------------------------------
FOREIGN = """
import torch

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer


@TRAINER_REGISTRY.register()
class Foreign(TrainerX):
    def build_model(self):
        self.model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, self.num_classes))
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.register_model("model", self.model, self.optim, build_lr_scheduler(self.optim, self.cfg.OPTIM))
        assert self.cfg.TRAINER.MAPLE.N_CTX

    def forward_backward(self, batch):
        loss = torch.nn.functional.cross_entropy(self.model(batch["img"]), batch["label"])
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}
"""


@pytest.fixture
def foreign(made, tmp_path):
    """(*words, out) -> the config.yaml of a run of a trainer that knows only Dassl."""
    (tmp_path / "foreign.py").write_text(FOREIGN)

    def foreign(*words, out="foreign"):
        made("Foreign", "--plugin", tmp_path / "foreign.py", "--no-train", *words, out=out)
        return tmp_path / out / "config.yaml"

    return foreign


@pytest.mark.parametrize(("words", "nodes"), [
    ((), {"COOP", "COCOOP", "METAPROMPT"}),  # which the shared config file sets
    (("TRAINER.MAPLE.N_CTX", 5), {"COOP", "COCOOP", "METAPROMPT", "MAPLE"}),
    (("TRAINER.NEW.RATE", 0.5), {"COOP", "COCOOP", "METAPROMPT", "NEW"}),
    (("TRAINER.TIPADAPTER.SEARCH_SCALE", "(3,3)"), {"COOP", "COCOOP", "METAPROMPT", "TIPADAPTER"}),
])
def test_a_foreign_run_keeps_what_differs_and_reads_back(words, nodes, foreign, tmp_path):
    path = foreign(*words)
    assert set(yaml.safe_load(path.read_text())["TRAINER"]) == {"NAME", *nodes}
    assert "*id" not in path.read_text()
    cfg = train.build_config(train.parse_arguments(["--config-file", str(path), "--output-dir", "x"]))
    first = train.build_config(train.parse_arguments(["--config-file", str(path)]))
    assert cfg.TRAINER == first.TRAINER and "TIPADAPTERF" in cfg.TRAINER


def test_a_key_that_a_plugin_does_not_read_is_named(made, tmp_path):
    """A plugin that declares no keys may be given any under TRAINER; one with a typing error would be lost."""
    (tmp_path / "foreign.py").write_text(FOREIGN)
    _, said = made("Foreign", "--plugin", tmp_path / "foreign.py", "--no-train", "TRAINER.FOREIGN.N_CTXX", 3,
                   "TRAINER.MINE.N_CTX", 2)
    assert "TRAINER.FOREIGN.N_CTXX (its name is nowhere in the plugin)" in said and "TRAINER.MINE" not in said


def test_the_config_of_a_foreign_run_makes_the_run_again(foreign, made, tmp_path):
    path = foreign(out="first")
    results, _ = made("Foreign", "--plugin", tmp_path / "foreign.py", config=path, out="second")
    assert results["config"]["TRAINER"]["NAME"] == "Foreign"
    again, said = made("Foreign", "--plugin", tmp_path / "foreign.py", config=path, out="second")
    assert again == results and "Finished before" in said


ALIASES = "\nOPTIM: &id001 {LR: 0.1}\nTEST: *id001"


def test_an_early_config_with_shared_lists_is_read(made, tmp_path):
    """As runs of plugins kept them before: a list of one method stands for another's."""
    made("CoOp", "OPTIM.MAX_EPOCH", 1, out="run")
    path = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    shared = (7.0, 3.0)
    for method in ("TIPADAPTER", "TIPADAPTERF"):
        config["TRAINER"][method] = {"SEARCH_SCALE": list(shared)}
    config["TRAINER"]["TIPADAPTERF"]["SEARCH_SCALE"] = config["TRAINER"]["TIPADAPTER"]["SEARCH_SCALE"]
    path.write_text(yaml.safe_dump(config))
    assert "*id001" in path.read_text()
    assert predict.load_run(str(tmp_path / "run")).predict([Image.fromarray(GREY)])
    assert interpret(str(tmp_path / "run"))


@pytest.mark.parametrize("text", ["OPTIM: &a {LR: 1}\nTEST: *a", "A: &a [[x]]\nB: *a",
                                  f"A: &a [{'x, ' * 17}]\nB: *a", "A: &a x\nB: *a"])
def test_other_aliases_say_what_to_do(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match="the alias [*]a is not read here; write out what it stands for"):
        merge_file(get_cfg_default(), str(tmp_path / "a.yaml"))


# ---- 19. small contradictions ------------------------------------------------------------------------------------
@pytest.fixture
def without_validation(drawn_root, tmp_path):
    """A Caltech101 whose split has no validation images."""
    shutil.copytree(drawn_root / "caltech-101", tmp_path / "data" / "caltech-101")
    path = tmp_path / "data" / "caltech-101" / "split_zhou_Caltech101.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"val": []}))
    shutil.rmtree(path.parent / "split_fewshot", ignore_errors=True)
    return tmp_path / "data"


@pytest.mark.parametrize(("trainer", "words", "told"), [
    ("CoOp", ("TEST.FINAL_MODEL", "best_val"), "TEST.FINAL_MODEL best_val needs validation images"),
    ("MetaPrompt", ("TEST.FINAL_MODEL", "best_val"), "but Caltech101 has no validation part"),
    ("Foreign", ("TEST.FINAL_MODEL", "best_val"), "needs validation images"),
    ("CoOp", ("TEST.SPLIT", "val"), "TEST.SPLIT val needs validation images"),
    ("ZeroshotCLIP", ("TEST.SPLIT", "val"), "TEST.SPLIT val needs validation images"),
    ("CoOp", ("TEST.SPLIT", "val", "TEST.FINAL_MODEL", "best_val"), "best_val and TEST.SPLIT val need validation"),
])
def test_a_missing_validation_part_is_told_before_the_first_epoch(trainer, words, told, refused, without_validation,
                                                                 tmp_path, capsys):
    if trainer == "Foreign":
        (tmp_path / "foreign.py").write_text(FOREIGN)
        words += ("--plugin", tmp_path / "foreign.py")
    assert told in refused(trainer, *words, root=without_validation)
    assert "epoch [1/" not in capsys.readouterr().out and not list(tmp_path.rglob("model.pth*"))


def test_best_val_without_a_test_chooses_nothing(made, without_validation):
    made("CoOp", "TEST.FINAL_MODEL", "best_val", "TEST.NO_TEST", True, "OPTIM.MAX_EPOCH", 1, root=without_validation)


@pytest.mark.parametrize(("words", "key", "value"), [
    (["OPTIM.LR", "0.1", "--seed", "3"], "OPTIM.LR", 0.1), (["OPTIM.LR=0.1", "--seed", "3"], "OPTIM.LR", 0.1),
    (["--seed", "3", "OPTIM.LR=0.1"], "OPTIM.LR", 0.1), (["SEED=9", "--seed", "3"], "SEED", 3),
    (["OPTIM.STEPSIZE", "-1", "--seed=3"], "OPTIM.STEPSIZE", (-1,)),
    (["--source-domains", "photo", "OPTIM.LR=0.1", "--seed", "3"], "OPTIM.LR", 0.1),
    (["TRAINER.COOP.CTX_INIT=a=b", "--seed", "3"], "TRAINER.COOP.CTX_INIT", "a=b"),
    (["--", "OPTIM.LR", "0.1", "--seed", "3"], "OPTIM.LR", 0.1),
])
def test_flags_and_options_stand_in_any_order(words, key, value):
    cfg = train.build_config(train.parse_arguments(["--trainer", "CoOp", "--output-dir", "RUN.1", *words]))
    assert cfg.SEED == 3 and cfg.OUTPUT_DIR == "RUN.1"
    for part in key.split("."):
        cfg = cfg[part]
    assert cfg == value


@pytest.mark.parametrize(("words", "told"), [
    (("OPTIM.LR", "--seed", 3), "'OPTIM.LR' has no value, --seed follows"),
    (("OPTIM.LR", 0.1, "--sed", 3), "unknown flag --sed (did you mean '--seed'?)"),
    (("optim.lr=0.1",), "unknown key optim.lr"), (("OPTIM.LRR=0.1",), "did you mean 'OPTIM.LR'"),
    (("OPTIM.LR=",), "OPTIM.LR must be of type float"), (("SEED=1", "OPTIM.LR"), "'OPTIM.LR' has no value"),
])
def test_a_word_that_is_neither_flag_nor_option(words, told, refused):
    assert told in refused("CoOp", *words)


def test_flags_behind_options_of_a_protocol(drawn_root, clip_file, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("OPTIM: {MAX_EPOCH: 1}\n")
    words = ["fewshot", "--dataset", "caltech101", "--trainer", "CoOp", "OPTIM.LR=0.1", "--seeds", "1", "--shots", "2",
             "OPTIM.MAX_EPOCH", "3", "--root", drawn_root, "--output", tmp_path, "--backbone", clip_file, "--dry-run",
             "--cfg", tmp_path / "a.yaml"]
    assert protocol.main([str(word) for word in words]).splitlines()[1] == "1 run, 0 done"
    args = protocol.parse_arguments([str(word) for word in words])
    assert args.opts == ["OPTIM.LR", "0.1", "OPTIM.MAX_EPOCH", "3"] and args.protocol == "fewshot"


def test_a_protocol_without_a_value(protocol_refused):
    line = protocol_refused("fewshot", "--dataset", "caltech101", "--trainer", "CoOp", "OPTIM.LR", "--seeds", 1)
    assert "'OPTIM.LR' has no value, --seeds follows" in line


@pytest.mark.parametrize("kind", ["xd", "zeroshot", "dg"])
def test_a_datasets_own_root_stands_above_that_of_all(kind, folder, drawn_root, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"DATASET: {{NAME: ImageFolder, ROOT: {folder}}}\n")
    shutil.copytree(folder, tmp_path / "domains" / "photo")
    shutil.copytree(folder, tmp_path / "domains" / "drawing")
    (tmp_path / "two.yaml").write_text(f"DATASET: {{NAME: DomainFolder, ROOT: {tmp_path / 'domains'}}}\n")
    planner = Planner(root=str(drawn_root), output=str(tmp_path / "out"), seeds=[1])
    if kind == "dg":
        runs = planner.plan("dg", ["CoOp"], [str(tmp_path / "two.yaml")])
        assert {run.place.part for run in runs} == {"photo", "drawing"}
        roots = {str(tmp_path / "domains")}
    elif kind == "zeroshot":
        runs, roots = planner.plan("zeroshot", ["ZeroshotCLIP"], [str(tmp_path / "mine.yaml")]), {str(folder)}
    else:
        runs = planner.plan("xd", ["CoOp"], ["caltech101"], targets=[str(tmp_path / "mine.yaml"), "pacs"])
        roots = {str(folder), str(drawn_root)}
        assert {run.place.part: run.check().DATASET.ROOT for run in runs} == {
            "caltech101": str(drawn_root), "mine": str(folder), "pacs": str(drawn_root)}
    assert {run.check().DATASET.ROOT for run in runs} == roots


def test_an_explicit_root_of_one_run_wins(folder, tmp_path):
    (tmp_path / "mine.yaml").write_text("DATASET: {NAME: ImageFolder, ROOT: elsewhere}\n")
    words = ["--trainer", "CoOp", "--dataset-config-file", str(tmp_path / "mine.yaml"), "--root", str(folder)]
    assert train.build_config(train.parse_arguments(words)).DATASET.ROOT == str(folder)


@pytest.mark.parametrize("door", ["dataset", "method", "kept", "sentences", "cluster", "plugin"])
def test_a_byte_order_mark_is_no_part_of_a_name(door, made, tmp_path, tiny_config, drawn_root):
    mark = b"\xef\xbb\xbf"
    path = tmp_path / "marked.yaml"
    if door == "dataset":
        path.write_bytes(mark + (ROOT / "configs" / "datasets" / "caltech101.yaml").read_bytes())
        made("ZeroshotCLIP", "--no-train", "--dataset-config-file", path)
    elif door == "method":
        path.write_bytes(mark + Path(tiny_config).read_bytes())
        made("ZeroshotCLIP", "--no-train", config=path)
    elif door == "kept":
        made("ZeroshotCLIP")
        kept = tmp_path / "out" / "config.yaml"
        kept.write_bytes(mark + kept.read_bytes())
        (tmp_path / "out" / "results.json").unlink()
        assert made("ZeroshotCLIP")[0]
    elif door == "sentences":
        from trainers.coprompt import read_sentences

        path.write_bytes(mark + b'{"a_cat": ["It purrs."]}')
        assert read_sentences(str(path)) == {"a cat": ["It purrs."]}
    elif door == "cluster":
        from tools.running.slurm_settings import read_cluster_file

        path.write_bytes(mark + b"partition: gpu\n")
        assert read_cluster_file(str(path)) == {"partition": "gpu"}
    else:
        (tmp_path / "marked.py").write_bytes(mark + FOREIGN.replace("Foreign", "Marked").encode())
        made("Marked", "--no-train", "--plugin", tmp_path / "marked.py")


def test_memory_is_measured_without_the_resource_module(monkeypatch, made):
    monkeypatch.setattr("dassl.engine.run_record.resource", None)
    results, _ = made("ZeroshotCLIP")
    assert results["peak_memory"]["of"] == "process" and results["peak_memory"]["bytes"] > 2**20
