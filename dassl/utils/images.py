"""Reading pictures that may be damaged or hostile."""
import contextlib
import os
import warnings

from PIL import Image

from dassl.utils.errors import InputError

# Pillow's other readers are seldom needed, and one of them (EPS) starts a program on what it reads.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
CHECKED_BY_SUMS = ("PNG",)  # formats whose `verify` reads the whole file


@contextlib.contextmanager
def bombs_are_errors():
    """Within it a picture of more pixels than Pillow's `Image.MAX_IMAGE_PIXELS` is an error, not a warning; what else
    Pillow remarks on odd files is not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def read_image(path):
    """The RGB picture at `path`.

    Raises InputError, naming the path, when there is none, it does not decode or it is too large."""
    if not os.path.exists(path):
        raise InputError(f"no image at {path}; check DATASET.ROOT and the dataset's split file")
    try:
        _require_file(path)
        with bombs_are_errors(), Image.open(path, formats=FORMATS) as image:
            return image.convert("RGB")
    except Exception as error:  # a damaged file can fail anywhere in its format's decoder
        raise InputError(f"cannot decode the image {path} ({_reason(error)}); replace the file, take it out of the "
                         "split, or leave it out with --skip-bad-images") from None


def fault_of(path):
    """What keeps the picture at `path` from being read, None if nothing does. Call it within `bombs_are_errors()`.

    Cheaper than reading it: check sums where the format has them, else the smallest decoding there is."""
    try:
        _require_file(path)
        with Image.open(path, formats=FORMATS) as image:
            if image.format in CHECKED_BY_SUMS:
                image.verify()
            else:
                image.draft("RGB", (1, 1))  # JPEG decodes to an eighth of the size, and still meets every byte
                image.load()
    except Exception as error:
        return _reason(error)
    return None


def _require_file(path):
    """Folders, sockets and pipes, which would be waited on for ever, are refused."""
    if not os.path.isfile(path):
        os.stat(path)  # says what is wrong with a link that leads nowhere
        raise OSError("it is not a regular file")


def _reason(error):
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())[:160]
