"""Reading pictures that may be damaged or hostile."""
import contextlib
import os
import warnings

import numpy as np
from PIL import Image

from dassl.utils.errors import InputError

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


@contextlib.contextmanager
def bombs_are_errors():
    """Within it a picture of more pixels than Pillow's `Image.MAX_IMAGE_PIXELS` is an error, not a warning; what else
    Pillow remarks on odd files is not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def is_picture(path):
    """Whether the file at `path` is a picture of one of FORMATS, by its header alone."""
    try:
        require_regular(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow has to say of a size or of metadata is no verdict
            Image.open(path, formats=FORMATS).close()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True


def read_image(path, exif=False):
    """The RGB picture at `path`, converted by `to_rgb`.

    Args:
        exif: turn the picture upright as its EXIF says.
    Raises InputError, naming the path, when there is none, it does not decode, is too large or of unknown range."""
    if not os.path.exists(path):
        raise InputError(f"no image at {path}; check DATASET.ROOT and the dataset's split file")
    try:
        require_regular(path)
        with bombs_are_errors(), Image.open(path, formats=FORMATS) as image:
            return to_rgb(image, exif)
    except Exception as error:  # a damaged file can fail anywhere in its format's decoder
        raise InputError(f"cannot decode the image {path} ({_reason(error)}); replace the file, take it out of the "
                         "split, or leave it out with --skip-bad-images") from None


def fault_of(path):
    """What keeps the picture at `path` from being read, None if nothing does. Call it within `bombs_are_errors()`.

    Cheaper than reading it: check sums where the format has them, else the smallest decoding there is."""
    try:
        require_regular(path)
        with Image.open(path, formats=FORMATS) as image:
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
    is not known."""
    if getattr(image, "tag_v2", {}).get(ORIENTATION, 1) > 4:
        image.filename = ""  # Pillow turns a TIFF by itself, and scrambles the rows of one that it maps from its file
    image.load()
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
    return ((pixels.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)


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
        require_regular(path)
        with bombs_are_errors(), Image.open(path, formats=FORMATS) as image:
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
        return TURNS.get(exif.get(ORIENTATION))
    except Exception:
        return None


def require_regular(path):
    """Raise OSError for what is no regular file: folders, sockets and pipes, which would be waited on for ever."""
    if not os.path.isfile(path):
        os.stat(path)  # says what is wrong with a link that leads nowhere
        raise OSError("it is not a regular file")


def _reason(error):
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())[:160]
