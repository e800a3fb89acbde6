"""Pictures that cost far more than their bytes: each is refused by every reader alike, with its name, in little time
and memory. The files are made here."""
import io
import json
import os
import resource
import socket
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

import train
from dassl.config import get_cfg_default
from dassl.data.data_manager import DatasetWrapper
from dassl.data.datasets import Datum
from dassl.data.image_cache import ImageCache
from dassl.data.pictures import require_readable, unreadable
from dassl.data.transforms import build_transform
from dassl.utils import InputError, read_image
from dassl.utils.images import MOST_ASPECT, bombs_are_errors, decoded, fault_of, is_picture, size_of, to_rgb
from tools import predict
from tools.results import loaded_run

SECONDS = 8  # bombs take minutes; what is refused takes up to one on a fast machine, and three on a busy one


# ---- files -------------------------------------------------------------------------------------------------------
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *before):
    """A black picture of one bit per pixel."""
    rows = zlib.compress(bytes(((width + 7) // 8 + 1) * height), 9)
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", head), *before, chunk(b"IDAT", rows), chunk(b"IEND", b"")])


def encoded(kind, size=(64, 64), mode="RGB", **how):
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **how)
    return file.getvalue()


def segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg(*segments, of=None):
    """A JPEG with more segments at its beginning."""
    plain = of or encoded("JPEG")
    return plain[:2] + b"".join(segments) + plain[2:]


def scans(number, size=(64, 64), **how):
    """A JPEG with empty passes over one colour before its end."""
    plain = encoded("JPEG", size, **how)
    start = plain.index(b"\xff\xda") if not how else len(plain) - 2
    one = b"\xff\xda\0\x08\1\1\0" + (b"\0\x3f\0" if not how else b"\1\x3f\0")
    return plain[:start] + one * number + b"\xff\xd9"


def tiff(tags, count=None):
    """A little-endian TIFF of tags {number: whole numbers}."""
    place, entries, more = 8 + 2 + 12 * len(tags) + 4, b"", b""
    for tag, values in sorted(tags.items()):
        data = struct.pack(f"<{len(values)}I", *values)
        where = data if len(data) == 4 else struct.pack("<I", place + len(more))
        more += data if len(data) > 4 else b""
        entries += struct.pack("<HHI", tag, 4, len(values)) + where
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + more


def gif(width, height, *blocks):
    return (b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + b"".join(blocks)
            + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2\x44\1\0;")


def icon(content, side=16):
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", side, side, 0, 0, 1, 32, len(content), 22) + content


def bitmap(width, height, rows):
    """A BMP of 8 bits with run lengths."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + head + bytes(1024) + rows + b"\0\1"


def dds(side):
    colours = struct.pack("<II4sIIIII", 32, 0x40, b"", 24, 0xFF, 0xFF00, 0xFF0000, 0)
    return b"DDS " + struct.pack("<IIII", 124, 0x1007, side, side) + bytes(56) + colours + bytes(20 + side * side * 3)


PLAIN_TIFF = {256: [8], 257: [8], 258: [8], 259: [1], 262: [1], 277: [1], 278: [1], 279: [8]}
# name -> (a function that makes the file, what the message says)
STRIPS = {
    "a PNG one pixel wide": (lambda: png(1, 200_000), "1 x 200000 pixels: one side"),
    "a PNG one pixel wide, twice as long": (lambda: png(1, 400_000), "1 x 400000 pixels: one side"),
    "a PNG one pixel high": (lambda: png(200_000, 1), "200000 x 1 pixels: one side"),
    "a PNG just beyond the bound": (lambda: png(3, 3 * MOST_ASPECT + 1), "3 x 301 pixels: one side"),
    "a JPEG one pixel wide": (lambda: encoded("JPEG", (1, 60_000)), "1 x 60000 pixels: one side"),
    "a progressive JPEG one pixel high": (lambda: encoded("JPEG", (60_000, 1), progressive=True), "60000 x 1 pixels"),
    "a GIF one pixel wide": (lambda: gif(1, 65_535), "1 x 65535 pixels: one side"),
    "a BMP one pixel wide": (lambda: encoded("BMP", (1, 100_000)), "1 x 100000 pixels: one side"),
    "a TIFF one pixel wide": (lambda: encoded("TIFF", (1, 60_000)), "1 x 60000 pixels: one side"),
    "a WebP one pixel wide": (lambda: encoded("WEBP", (1, 16_000)), "1 x 16000 pixels: one side"),
    "a JPEG 2000 one pixel wide": (lambda: encoded("JPEG2000", (1, 30_000)), "1 x 30000 pixels: one side"),
    "a PPM one pixel wide": (lambda: encoded("PPM", (1, 30_000)), "1 x 30000 pixels: one side"),
    "a TGA one pixel wide": (lambda: encoded("TGA", (1, 30_000)), "1 x 30000 pixels: one side"),
    "an icon whose PNG is one pixel wide": (lambda: icon(png(1, 200_000)), "an icon that holds 1 x 200000 pixels"),
}
COSTLY = {
    "40 MB of EXIF": (lambda: jpeg(segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 600), "more than 8 MB of metadata"),
    "40 MB of a colour profile": (lambda: jpeg(segment(0xE2, b"ICC_PROFILE\0\1\xff" + bytes(65_000)) * 600),
                                  "more than 8 MB of metadata"),
    "100,000 empty segments": (lambda: jpeg(segment(0xE5, b"") * 100_000), "too many pieces of it"),
    "a million bytes between segments": (lambda: jpeg(b"\xff" * 1_000_000), "too many pieces of it"),
    "40,000 tables of codes": (lambda: jpeg(segment(0xC4, b"\0\1" + bytes(16)) * 40_000), "too many pieces of it"),
    "40,000 texts in a PNG": (lambda: png(8, 8, chunk(b"tEXt", b"k\0x") * 40_000), "too many pieces of it"),
    "a PNG's unknown chunks": (lambda: png(8, 8, chunk(b"abCd", b"") * 40_000), "too many pieces of it"),
    "a GIF's extensions": (lambda: gif(8, 8, b"\x21\x01\0\0" * 40_000), "too many pieces of it"),
    "a GIF's comments": (lambda: gif(8, 8, b"\x21\xfe\1x\0" * 40_000), "too many pieces of it"),
    "a TIFF's strips": (lambda: tiff({**PLAIN_TIFF, 273: [8] * 2_100_000}), "more than 8 MB of metadata"),
    "a TIFF of 8 x 8 pixels in 70,000 strips": (lambda: tiff({**PLAIN_TIFF, 273: [8] * 70_000}), "70000 pieces"),
    "a TIFF whose tags share their bytes": (
        lambda: b"II*\0\x08\0\0\0" + struct.pack("<H", 60_000) + b"".join(
            struct.pack("<HHII", tag, 1, 700_000, 8) for tag in range(60_000)) + bytes(4), "metadata"),
    "a PPM's comment": (lambda: b"P6\n#" + b"x" * 100_000 + b"\n8 8\n255\n" + bytes(192), "too many pieces of it"),
    "200 scans of a JPEG": (lambda: scans(200), "a JPEG of 200 scans"),
    "300 scans of a large JPEG": (lambda: scans(300, (4000, 4000)), "a JPEG of 300 scans"),
    "200 scans of a progressive JPEG": (lambda: scans(200, progressive=True), "a JPEG of 210 scans"),
    "60 scans of a large JPEG": (lambda: scans(60, (7000, 7000)), "a JPEG of 60 scans"),
    "a large BMP of run lengths": (lambda: bitmap(9000, 9000, b"\0\0" * 9000), "decoded slowly"),
    "a small BMP of run lengths in many bytes": (lambda: bitmap(64, 64, b"\0\0" * 4_500_000), "decoded slowly"),
    "a large DDS": (lambda: dds(1500), "decoded slowly"),
    "a large PPM in digits": (lambda: b"P3\n1500 1500\n255\n" + b"1 " * (3 * 1500 ** 2), "decoded slowly"),
    "a large PPM of an odd range": (lambda: b"P6\n1500 1500\n77\n" + bytes(3 * 1500 ** 2), "decoded slowly"),
    "an icon whose bitmap is large": (lambda: icon(bitmap(4000, 8000, b"")[14:]), "an icon that holds 4000 x 4000"),
    "an icon whose PNG is large": (lambda: icon(png(9600, 9600)), "an icon that holds 9600 x 9600 pixels"),
    "an icon of 60,000 pictures": (lambda: icon(png(8, 8)).replace(b"\1\0\1\0", b"\1\0\x60\xea", 1), "60000 icons"),
    "a file of a terabyte": (lambda: png(8, 8), "a file of more than 512 MB"),
}
REFUSED = {**STRIPS, **COSTLY}


@pytest.fixture
def hostile(request, tmp_path):
    make, told = REFUSED[request.param]
    path = tmp_path / "planted.img"
    path.write_bytes(make())
    if request.param == "a file of a terabyte":
        with open(path, "r+b") as file:
            file.truncate(2**40)  # of which the disk keeps nothing
    return str(path), told


@pytest.fixture
def quick():
    """The processor time of a test is bounded, and what it adds to memory."""
    start, size = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.process_time() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size < 600 * 1024


# ---- refused alike -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("hostile", REFUSED, indirect=True)
def test_every_reader_refuses_it(hostile, quick):
    path, told = hostile
    with bombs_are_errors():
        fault = fault_of(path)
    assert fault is not None
    if told != "metadata":
        assert told in fault
    assert fault == unreadable([Datum(path, 0, 0, "x")])[path]
    for read in (read_image, lambda path: ImageCache([path], 2**20).read(0)):
        with pytest.raises(InputError, match="cannot decode the image .*planted.img") as caught:
            read(path)
        assert fault in str(caught.value)
    with pytest.raises(InputError, match="first .*planted.img"):
        require_readable([Datum(path, 0, 0, "x")])


@pytest.mark.parametrize("hostile", ["a PNG one pixel wide", "40 MB of EXIF", "200 scans of a JPEG"], indirect=True)
def test_its_size_is_not_asked_for(hostile, quick):
    assert size_of(hostile[0], exif=True) is None and size_of(hostile[0]) is None


def test_a_strip_is_a_picture_that_cannot_be_read(tmp_path):
    """It enters a split, so that it is named and not silently absent."""
    (tmp_path / "a.png").write_bytes(png(1, 200_000))
    assert is_picture(tmp_path / "a.png")


# ---- what is no file ---------------------------------------------------------------------------------------------
def planted(kind, path):
    """Put something at `path` that is no regular file."""
    if kind.startswith("a link to"):
        target = {"a link to /dev/zero": "/dev/zero", "a link to a folder": str(path.parent),
                  "a link to itself": str(path)}.get(kind)
        if target is None:
            target = str(path.with_suffix(".pipe"))
            os.mkfifo(target)
        path.symlink_to(target)
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        place = os.getcwd()
        os.chdir(path.parent)  # a socket's path is short
        try:
            socket.socket(socket.AF_UNIX).bind(path.name)
        finally:
            os.chdir(place)


@pytest.mark.parametrize("kind", ["a pipe", "a link to a pipe", "a link to /dev/zero", "a link to a folder", "a folder",
                                  "a socket", "a link to itself"])
def test_what_is_no_file_is_not_waited_for(kind, tmp_path, quick):
    path = tmp_path / "x.png"
    planted(kind, path)
    assert not is_picture(path) and size_of(path) is None
    with bombs_are_errors():
        assert fault_of(path)
    with pytest.raises(InputError, match="x.png"):
        read_image(path)


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch, quick):
    """Between the question what it is and its opening: what is open is asked, not the path."""
    os.mkfifo(tmp_path / "x.png")
    monkeypatch.setattr(os.path, "isfile", lambda path: True)
    with pytest.raises(InputError, match="not a regular file"):
        read_image(tmp_path / "x.png")


# ---- what is still read ------------------------------------------------------------------------------------------
FINE = {
    "a panorama of 1:50": (lambda: png(5000, 100), (5000, 100)),
    "a strip of 1:100": (lambda: png(1, MOST_ASPECT), (1, MOST_ASPECT)),
    "a picture of one pixel": (lambda: png(1, 1), (1, 1)),
    "5 MB of EXIF": (lambda: jpeg(segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 80), (64, 64)),
    "a colour profile of 3 MB": (lambda: png(8, 8, chunk(b"iCCP", b"k\0\0" + os.urandom(3_000_000))), (8, 8)),
    "a progressive JPEG": (lambda: encoded("JPEG", (640, 480), progressive=True), (640, 480)),
    "a JPEG with a film behind it": (
        lambda: encoded("JPEG", progressive=True) + b"\xff\xda\0\x08" * 100_000, (64, 64)),
    "a JPEG with scans in its preview": (
        lambda: jpeg(segment(0xE1, b"\xff\xda\0\2" * 9000), of=encoded("JPEG", progressive=True)), (64, 64)),
    "90 scans": (lambda: scans(80, progressive=True), (64, 64)),
    "a GIF of 500 frames": (lambda: gif(300, 300, (b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
                                                   + b"\2\2\x44\1\0") * 500), (300, 300)),
    "a TIFF of a strip per row": (lambda: tiff({**PLAIN_TIFF, 257: [700], 273: [8] * 700, 278: [1], 279: [8] * 700}),
                                  (8, 700)),
    "an icon": (lambda: encoded("ICO", (256, 256)), (256, 256)),
    "an icon with a bitmap": (lambda: encoded("ICO", (256, 256), bitmap_format="bmp"), (256, 256)),
    "a screen in run lengths": (lambda: bitmap(1920, 1080, (b"\xff\1" * 7 + b"\x87\1\0\0") * 1080), (1920, 1080)),
    "a PPM in digits": (lambda: b"P3\n100 100\n255\n" + b"1 " * 30_000, (100, 100)),
    "a JPEG of two pictures": (lambda: encoded("MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))]),
                               (64, 64)),
    "a large photograph": (lambda: encoded("JPEG", (6000, 4000)), (6000, 4000)),
}


@pytest.mark.parametrize("name", FINE)
def test_it_is_read(name, tmp_path, quick):
    make, size = FINE[name]
    path = tmp_path / "fine.img"
    path.write_bytes(make())
    with bombs_are_errors():
        assert fault_of(path) is None
    assert is_picture(path) and size_of(path)[0] == size == read_image(path).size


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "BMP", "JPEG"])
def test_pixels_are_those_that_pillow_reads_by_the_path(kind, tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x", kind)
    with Image.open(tmp_path / "x") as image:
        assert np.array_equal(np.asarray(image), np.asarray(read_image(tmp_path / "x")))


# ---- whole programs ----------------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path):
    """Two classes of twelve pictures, and one each that cannot be read, for two reasons."""
    for name, bad in (("apple", png(1, 200_000)), ("pear", scans(200))):
        (tmp_path / "own" / name).mkdir(parents=True)
        for number in range(12):
            pixels = np.random.RandomState(number).randint(0, 256, (40, 36, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "own" / name / f"{number}.png")
        (tmp_path / "own" / name / "bad.png").write_bytes(bad)
    return tmp_path / "own"


def test_they_are_left_out_before_the_training(folder, arguments, clips, tmp_path, capsys):
    words = arguments("CoOp", tmp_path / "run", "--skip-bad-images", "DATASET.NUM_SHOTS", 12,
                      dataset="image_folder", root=folder)
    found = train.main(words, clips=clips)["skipped_images"]
    assert found == {str(folder / "apple" / "bad.png"): "1 x 200000 pixels: one side is more than 100 times the other",
                     str(folder / "pear" / "bad.png"): "a JPEG of 200 scans"}


def test_they_end_a_run_in_one_line(folder, arguments, clips, tmp_path, one_line):
    for bad in folder.glob("*/bad.png"):  # whatever part the split puts them into
        for number in range(12):
            (bad.parent / f"{number}.png").write_bytes(bad.read_bytes())
    words = arguments("CoOp", tmp_path / "run", dataset="image_folder", root=folder)
    line = one_line(lambda: train.main(words, clips=clips))
    assert ".png (" in line and "--skip-bad-images" in line


@pytest.fixture
def run(folder, arguments, clips, tmp_path):
    words = arguments("ZeroshotCLIP", tmp_path / "run", "--skip-bad-images", dataset="image_folder", root=folder)
    train.main(words, clips=clips)
    return predict.load_run(str(tmp_path / "run"), clips=clips)


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["table", "json"])
def test_predictions_name_them_and_go_on(words, run, folder, tmp_path, one_line, capsys):
    line = one_line(lambda: predict.main([str(folder), "--model-dir", str(tmp_path / "run"), *words]), results=True)
    assert line.startswith("error: 2 of 26 files") and "apple/bad.png" in line and "pear/bad.png" in line


def test_an_array_is_whole_though_files_were_bad(run, folder, tmp_path, capsys):
    capsys.readouterr()
    with pytest.raises(InputError, match="2 of 26 files"):
        predict.main([str(folder), "--model-dir", str(tmp_path / "run"), "--json", "--top", "1"])
    said = capsys.readouterr()
    entries = json.loads(said.out)
    assert len(entries) == 24 and said.out == json.dumps(entries, indent=2) + "\n"
    assert said.err.count("not predicted: ") == 2


def test_an_array_is_whole_though_the_program_ends_early(run, folder, tmp_path, capsys, monkeypatch):
    def later(logits, files, judge=loaded_run.require_finite):
        if "pear" in files[0]:
            raise InputError("not finite")
        judge(logits, files)

    monkeypatch.setattr(loaded_run, "require_finite", later)
    words = [*map(str, sorted(folder.glob("*/?.png"))), "--model-dir", str(tmp_path / "run"), "--json"]
    monkeypatch.setattr(predict, "BATCH", 2)
    capsys.readouterr()
    with pytest.raises(InputError, match="not finite"):
        predict.main(words)
    assert len(json.loads(capsys.readouterr().out)) == 10


def test_predictions_come_before_all_images_are_read(run, folder):
    """Of a list without end."""
    asked = []

    def endless():
        while True:
            asked.append(str(folder / "apple" / "0.png"))
            yield asked[-1]

    stream = run.predict_stream(endless(), batch_size=4)
    assert [next(stream).path for _ in range(10)] == asked[:10] and len(asked) <= 20
    stream.close()


def test_predictions_in_a_stream_are_those_of_a_list(run, folder):
    files = [str(folder / "apple" / f"{number}.png") for number in range(6)]
    images = [Image.open(file) for file in files]
    bad, others = [], [*files[:3], str(folder / "apple" / "bad.png"), *files[3:]]
    found = list(run.predict_stream(others, batch_size=1, on_fault=lambda file, error: bad.append(file)))
    assert found == run.predict(files, batch_size=1) and bad == [others[3]]
    assert [one.top for one in run.predict(images, batch_size=1)] == [one.top for one in found]
    with pytest.raises(InputError, match="bad.png"):
        run.predict(others)


# ---- after resizing ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(1, MOST_ASPECT), (MOST_ASPECT, 1)], ids=["tall", "wide"])
@pytest.mark.parametrize("choice", ["", "random_crop", "random_resized_crop", "random_translation", "center_crop",
                                    "random_flip", "randaugment", "test"])
def test_no_transform_explodes(choice, size, tmp_path, quick):
    cfg = get_cfg_default()
    cfg.INPUT.TRANSFORMS = ["normalize", *([choice] if choice not in ("", "test") else [])]
    cfg.DATALOADER.RETURN_IMG0 = True
    (tmp_path / "x.png").write_bytes(png(*size))
    transform = build_transform(cfg, is_train=choice != "test")
    [item] = [DatasetWrapper(cfg, [Datum(str(tmp_path / "x.png"), 0, 0, "x")], transform, is_train=True)[0]]
    assert item["img"].shape == item["img0"].shape == (3, *cfg.INPUT.SIZE)


def test_the_size_that_pictures_are_resized_to_is_bounded():
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (2000, 2000)
    with pytest.raises(InputError, match="INPUT.SIZE must be at most 1024 a side"):
        build_transform(cfg)


def test_a_transform_of_ones_own_that_takes_all_memory_names_the_picture(tmp_path):
    def greedy(image):
        raise MemoryError

    (tmp_path / "x.png").write_bytes(png(8, 8))
    wrapper = DatasetWrapper(get_cfg_default(), [Datum(str(tmp_path / "x.png"), 0, 0, "x")], greedy)
    with pytest.raises(InputError, match="no memory to transform the 8 x 8 pixels of .*x.png"):
        wrapper[0]


def test_a_strip_in_memory_is_refused():
    with pytest.raises(ValueError, match="1 x 5000 pixels: one side"):
        to_rgb(Image.new("L", (1, 5000)))


def test_pixels_are_bounded_where_warnings_are_no_errors(tmp_path, monkeypatch):
    """Several threads share the filters of warnings."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    (tmp_path / "x.png").write_bytes(png(40, 40))
    told = pytest.raises(InputError, match="40 x 40 pixels, more than 1000")
    with pytest.warns(Image.DecompressionBombWarning), told:
        decoded(tmp_path / "x.png")
