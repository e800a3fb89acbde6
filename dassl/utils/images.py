"""Reading pictures that may be damaged or hostile.

Every reader opens a file by `_opened`, so that all agree on what is refused; the bounds stand in docs/CUSTOM_DATA.md.
"""
import contextlib
import math
import os
import re
import struct
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from dassl.utils.errors import InputError
from dassl.utils.files import open_regular

Image.init()  # all of Pillow's formats are known from here on
# What is read, here and wherever a file is asked whether it is a picture. Pillow's other readers are seldom needed, and
# one of them (EPS) starts a program on what it reads. AVIF is missing in old builds of Pillow; TGA has no signature of
# its own and is asked last.
FORMATS = tuple(kind for kind in ("AVIF", "BMP", "DDS", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "SGI",
                                  "TIFF", "WEBP", "TGA") if kind in Image.OPEN)
SUFFIXES = {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
CHECKED_BY_SUMS = ("PNG",)  # formats whose `verify` reads the whole file
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}  # what makes a picture of this EXIF orientation upright
SIDEWAYS = [TURNS[orientation] for orientation in (5, 6, 7, 8)]
ORIENTATION, BITS, PHOTOMETRIC, SAMPLE_FORMAT = 274, 258, 262, 339  # tags of EXIF and TIFF

# Bounds on what a small file can cost. They know nothing of INPUT.SIZE, so that a file is good or bad for all runs.
MOST_PICTURE_BYTES = 2**29  # of a file, some formats of which are read as a whole, twice
MOST_METADATA = 2**23  # bytes of a file that stand before its pixels; READ more for each of their pieces
READ = 256
MOST_ASPECT = 100  # of the longer side to the shorter: the shorter is resized to INPUT.SIZE, the longer grows with it
MOST_ICONS, MOST_ICON = 256, 1024  # pictures of an icon, pixels a side of each
MOST_TILES = 2**16  # pieces that a TIFF is in
MOST_SCANS, MOST_SCANNED = 100, 2**31  # of a JPEG: passes over it, and pixels that all of them go over
SLOW_DECODERS, MOST_SLOW = ("bmp_rle", "dds_rgb", "ppm", "ppm_plain"), 2**21  # in Python; numbers in it
JPEG_MARKER = re.compile(rb"\xff+([\xc0-\xcf\xd9-\xfe])")  # those that bytes follow, and the end
END_OF_IMAGE, START_OF_SCAN, SCAN_MARKER = 0xD9, 0xDA, b"\xff\xda"


@contextlib.contextmanager
def bombs_are_errors():
    """Within it a picture of more pixels than Pillow's `Image.MAX_IMAGE_PIXELS` is an error, not a warning; what else
    Pillow remarks on odd files is not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


class _Source:
    """A file as Pillow reads it: what it reads before the pixels is counted, how often it reads it, too.

    Counting what is read and not what there is bounds parts that a file names again and again."""

    def __init__(self, file, size):
        self.file, self.size, self.seek, self.tell = file, size, file.seek, file.tell
        self.left: float = MOST_METADATA
        self.last = 0

    def read(self, size=-1):
        data = self.file.read(size)
        if size is not None and size >= 0:  # some formats take the whole file, of which the size is bounded
            self.last = size
            self.left -= len(data) + READ
            if self.left < 0:
                raise OSError(f"more than {MOST_METADATA // 2**20} MB of metadata, or too many pieces of it")
        return data

    def __getattr__(self, name):
        return getattr(self.file, name)


@contextlib.contextmanager
def _opened(path):
    """The Pillow image of a regular file, its pixels not yet read. Raises OSError, or what Pillow does, for a file that
    is no picture or is beyond the bounds."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MOST_PICTURE_BYTES:
            raise OSError(f"a file of more than {MOST_PICTURE_BYTES // 2**20} MB")
        if file.read(4) == b"\0\0\1\0":
            _require_small_icons(file)
        source = _Source(file, size)
        try:
            image = Image.open(source, formats=FORMATS)
        except UnidentifiedImageError:
            raise UnidentifiedImageError(f"cannot identify image file {os.fspath(path)!r}") from None
        source.left = math.inf
        with image:
            yield image


def _require_bounds(image):
    """Raise ValueError for an image, not yet loaded, that would cost too much."""
    _require_shape(image.size)
    if len(image.tile) > MOST_TILES:
        raise ValueError(f"{len(image.tile)} pieces")
    values = image.size[0] * image.size[1] * len(image.getbands())
    if any(tile[0] in SLOW_DECODERS for tile in image.tile) and (values > MOST_SLOW or image.fp.size > 4 * MOST_SLOW):
        raise ValueError(f"{values} values in {image.fp.size} bytes of a rare kind of {image.format} that is decoded "
                         "slowly; store it as PNG")
    if image.format in ("JPEG", "MPO"):
        source = image.fp
        whole = source.last == 4 + 2 * image.layers  # of its first scan: all colours at once
        if not whole or "progressive" in image.info:
            _require_few_scans(source, image.size)


def _require_shape(size):
    shorter, longer = sorted(size)
    most = Image.MAX_IMAGE_PIXELS  # asked here, too, as the warning is an error only within `bombs_are_errors()`
    if most is not None and shorter * longer > most:
        raise ValueError(f"{size[0]} x {size[1]} pixels, more than {most}")
    if longer > MOST_ASPECT * shorter:
        raise ValueError(f"{size[0]} x {size[1]} pixels: one side is more than {MOST_ASPECT} times the other")


def _require_small_icons(file):
    """Raise ValueError for an icon that holds a larger picture than icons have: Pillow decodes it when it opens the
    file, whatever size the icon says."""
    file.seek(4)
    entries = file.read(2 + 16 * MOST_ICONS)
    number = int.from_bytes(entries[:2], "little")
    if number > MOST_ICONS:
        raise ValueError(f"{number} icons in a file")
    for entry in range(2, 2 + 16 * number, 16):
        file.seek(int.from_bytes(entries[entry + 12:entry + 16], "little"))
        head = file.read(24)
        if head.startswith(b"\x89PNG"):
            width, height = struct.unpack(">II", head[16:24].ljust(8, b"\0"))
        else:  # a bitmap, and a mask of the same size below it
            width, height = map(abs, struct.unpack("<ii", head[4:12].ljust(8, b"\0")))
            height //= 2
        if max(width, height) > MOST_ICON:
            raise ValueError(f"an icon that holds {width} x {height} pixels, more than {MOST_ICON} a side")


def _require_few_scans(source, size):
    """A JPEG may be drawn over as often as it likes, at ten bytes a pass."""
    place, scans = source.tell(), 0
    source.seek(0)
    data, at = source.read(), 2
    source.seek(place)
    if _few(data.count(SCAN_MARKER), size):  # which counts those in the pixels, too, and is quick
        return
    while (found := JPEG_MARKER.search(data, at)) and found[1][0] != END_OF_IMAGE:
        scans += found[1][0] == START_OF_SCAN
        at = found.end() + int.from_bytes(data[found.end():found.end() + 2], "big")
    if not _few(scans, size):
        raise ValueError(f"a JPEG of {scans} scans")


def _few(scans, size):
    return scans <= MOST_SCANS and scans * size[0] * size[1] <= MOST_SCANNED


def is_picture(path):
    """Whether the file at `path` is a picture of one of FORMATS, by its header alone."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow has to say of a size or of metadata is no verdict
            with _opened(path):
                pass
    except Exception:  # a damaged file can fail anywhere in its format's reader
        return False
    return True


def read_image(path, exif=False):
    """The RGB picture at `path`, converted by `to_rgb`.

    Args:
        exif: turn the picture upright as its EXIF says.
    Raises InputError, naming the path, when there is none, it does not decode, is beyond the bounds or of unknown
    range."""
    with bombs_are_errors():
        return decoded(path, exif)


def decoded(path, exif=False):
    """`read_image` for several threads: `bombs_are_errors()` holds for all of a process and is entered around them."""
    try:
        with _opened(path) as image:
            _require_bounds(image)
            return to_rgb(image, exif)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"no image at {path}; check DATASET.ROOT and the dataset's split file") from None
    except Exception as error:  # a damaged file can fail anywhere in its format's decoder
        raise InputError(f"cannot decode the image {path} ({_reason(error)}); replace the file, take it out of the "
                         "split, or leave it out with --skip-bad-images") from None


def fault_of(path):
    """What keeps the picture at `path` from being read, None if nothing does. Call it within `bombs_are_errors()`.

    Cheaper than reading it: check sums where the format has them, else the smallest decoding there is."""
    try:
        with _opened(path) as image:
            _require_bounds(image)
            if image.format in CHECKED_BY_SUMS:
                image.verify()
            else:
                image.draft("RGB", (1, 1))  # JPEG decodes to an eighth of the size, and still meets every byte
                image.load()
                if image.mode in ("I", "F"):  # a PNG has neither range in doubt
                    to_rgb(image)
    except Exception as error:
        return _reason(error)
    return None


def to_rgb(image, exif=False):
    """A PIL image of any mode as RGB, 8 bits a colour.

    Grey of 16 bits is scaled by 1/257 and rounded, so that 0 to 65535 become 0 to 255; what a TIFF says to be of 12
    bits is scaled from 0 to 4095. Other modes are converted by Pillow.

    Args:
        exif: turn the picture upright as its EXIF says.
    Raises ValueError for floating-point pictures and for whole numbers that are not of 16 bits: which of them is white
    is not known; and for one whose size is beyond the bounds."""
    if getattr(image, "tag_v2", {}).get(ORIENTATION, 1) > 4:  # of an image that was opened elsewhere
        image.filename = ""  # Pillow turns a TIFF by itself, and scrambles the rows of one that it maps from its file
    image.load()
    _require_shape(image.size)  # also of one that was opened elsewhere
    if image.mode == "F" or image.mode.startswith("I"):
        rgb = Image.fromarray(_eight_bits(image)).convert("RGB")
    else:
        rgb = image.convert("RGB")
    turn = _turn(image) if exif else None
    if turn is not None:
        rgb = rgb.transpose(turn)
        rgb.info = {}  # it says how the picture was stored
    return rgb


def _eight_bits(image):
    """Grey values (H, W) uint8 of an image of more than 8 bits. Raises ValueError as `to_rgb` does."""
    tags = getattr(image, "tag_v2", {})
    pixels = np.asarray(image)
    white = 2 ** tags.get(BITS, (16,))[0] - 1 if image.mode != "I" else 65535
    if image.mode == "F":
        raise ValueError(f"floating-point values {_range(pixels)}, of which white is not known; convert it to 8 or 16 "
                         "bits")
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # those two keep 16 bits in it
        signed = tags.get(SAMPLE_FORMAT, (1,))[0] == 2 and tags.get(BITS, (32,))[0] < 32
        if signed or (pixels.any() and not (pixels.min() >= 0 and 255 < pixels.max() <= white)):
            raise ValueError(f"whole numbers {_range(pixels)} in {'signed' if signed else '32-bit'} pixels, of which "
                             "white is not known; convert it to 8 or 16 bits")
    if tags.get(PHOTOMETRIC) == 0:  # white is zero
        pixels = white - pixels
    pixels = pixels.astype(np.uint32)
    pixels *= 255  # in place, as the largest pictures have 360 MB here
    pixels += white // 2
    pixels //= white
    return pixels.astype(np.uint8)


def _range(pixels):
    return f"from {pixels.min():.6g} to {pixels.max():.6g}"


def _turn(image):
    """What makes a loaded image upright by its EXIF; None if nothing does, or its EXIF is damaged."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # of whatever kind: the picture itself can be read
        return None


def size_of(path, exif=False):
    """((width, height), whether it is turned) of the picture at `path` as `read_image` gives it, by its header alone;
    None when there is none (reading it says what is wrong)."""
    try:
        with bombs_are_errors(), _opened(path) as image:
            _require_bounds(image)
            turn = _noted_turn(image) if exif else None
            width, height = image.size
    except Exception:  # a damaged file can fail anywhere
        return None
    return ((height, width) if turn in SIDEWAYS else (width, height)), turn is not None


def _noted_turn(image):
    """`_turn` of an image that is not loaded, where its header says it. Pillow turns a TIFF by itself."""
    if image.format == "TIFF" or not image.info.get("exif"):
        return None
    exif = Image.Exif()
    try:
        exif.load(image.info["exif"])
        return TURNS.get(exif.get(ORIENTATION, 0))
    except Exception:
        return None


def _reason(error):
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())[:160]
