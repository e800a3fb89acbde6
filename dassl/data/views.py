"""Views of test images, for methods that learn from several of them or average over them (`test_views`)."""
import hashlib
import threading

import torch

from dassl.utils import InputError, derive_seed, isolated_rng, quiet, seed_cpu_generators

# The generators that transforms draw from are those of the process: of the threads that read pictures, one draws at a
# time, all views of a picture.
_DRAWING = threading.Lock()
MOST_BYTES = 2**30  # of the views of a test batch, before a note is made


class Views:
    """Augmented views of a picture, whose draws are a function of (seed, content of the picture).

    View k is the same wherever the picture lies, whatever was read before, in any worker or thread, and however many
    views are made. The generators of the process are left as they were.

    Args:
        number: how many.
        transform: PIL image -> (3, H, W), which may draw from the generators of random, numpy and torch.
        seed: of the run.
        method: its name, for messages.
    """

    def __init__(self, number, transform, seed, method):
        self.number, self.transform, self.seed, self.method = number, transform, seed, method

    def __call__(self, picture):
        """(number, 3, H, W) of a decoded PIL image. Raises InputError for a transform that gives something else."""
        content, views = content_of(picture), None
        with _DRAWING, isolated_rng(0):
            for number in range(self.number):
                seed_cpu_generators(derive_seed("view", self.seed, content, number))
                view = self.transform(picture)
                if not (torch.is_tensor(view) and view.ndim == 3 and len(view) == 3):
                    raise InputError(self._told(view))
                if views is None:
                    views = view.new_empty(self.number, *view.shape)  # filled in place: many views are large
                if view.shape != views[0].shape or view.dtype != views.dtype:
                    raise InputError(self._told(view))
                views[number] = view
        return views

    def _told(self, view):
        found = f"{tuple(view.shape)} of {view.dtype}" if torch.is_tensor(view) else type(view).__name__
        return f"{self.method}.view_transform gives {found}; every view is a tensor (3, H, W), all of one size and type"


def content_of(picture):
    """A digest of a decoded PIL image: its mode, size and pixels."""
    digest = hashlib.blake2b(repr((picture.mode, picture.size)).encode(), digest_size=16)
    digest.update(picture.tobytes())
    return digest.hexdigest()


def build_views(method, cfg):
    """The Views that a method asks for; None without `test_views`.

    Args:
        method: a trainer, or its class, with `test_views` and `view_transform`; both may be missing.
    Raises:
        InputError: `test_views` is no whole number of 0 or more, or there is no transform to make them with.
    """
    number, name = getattr(method, "test_views", 0), getattr(method, "__name__", type(method).__name__)
    if type(number) is not int or number < 0:
        raise InputError(f"{name}: test_views must be a whole number of 0 or more, not {number!r}")
    if not number:
        return None
    if cfg.INPUT.NO_TRANSFORM:
        raise InputError(f"{name} is shown {number} views of each test image (test_views), which INPUT.NO_TRANSFORM "
                         "does not make; leave it off")
    with quiet():  # which calls it the transform of training images
        transform = method.view_transform(cfg)
    if not callable(transform):
        raise InputError(f"{name}.view_transform gives {type(transform).__name__}; it must give a function of a PIL "
                         "image")
    if cfg.VERBOSE:
        steps = [type(step).__name__ for step in getattr(transform, "transforms", [transform])]
        print(f"Views of test images: {number} of each, by {', '.join(steps)}")
    return Views(number, transform, cfg.SEED, name)


def bytes_of_views(views, size):
    """Bytes of the views of one picture, (H, W) each."""
    return views.number * 3 * size[0] * size[1] * 4


def note_large_batches(views, cfg, images):
    """Print a note where the views of a test batch, of at most `images` images, take more than MOST_BYTES."""
    batch = min(cfg.DATALOADER.TEST.BATCH_SIZE, images)
    taken = batch * bytes_of_views(views, cfg.INPUT.SIZE)
    if taken > MOST_BYTES:
        print(f"Note: the views of a test batch take {taken / 2**30:.1f} GB ({batch} images, {views.number} views of "
              "each), and each loader worker makes two such batches ahead; a lower DATALOADER.TEST.BATCH_SIZE takes "
              "less")

