"""From a config to loaders."""
import os

import torch
from tabulate import tabulate
from torch.utils.data import Dataset as TorchDataset

from dassl.data.datasets import DatasetBase, build_dataset, dataset_digest
from dassl.data.image_cache import ImageCache
from dassl.data.loader import EpochLoader, possible_workers
from dassl.data.pictures import leave_out_unreadable
from dassl.data.samplers import EpochBatchSampler, build_sampler
from dassl.data.views import note_large_batches
from dassl.utils import (
    InputError,
    derive_seed,
    isolated_rng,
    local_world_size,
    read_image,
    seed_cpu_generators,
)


def build_data_loader(cfg, sampler_type="SequentialSampler", data_source=None, batch_size=64, n_domain=0, n_ins=2,
                      tfm=None, is_train=True, dataset_wrapper=None, test_views=None):
    """A DataLoader over a list of Datum whose batches are a function of (SEED, epoch), whatever NUM_WORKERS is.

    Before an epoch, `loader.batch_sampler.set_epoch(epoch)` chooses its order and augmentations. A training loader
    leaves out the last batch if it is not full, unless the whole set is smaller than a batch. With `test_views` (a
    `dassl.data.views.Views`) the items have "views" (V, 3, H, W).

    Raises:
        InputError: DATALOADER.NUM_WORKERS is negative, or the dataset_wrapper has items of its own without "views".
    """
    sampler = build_sampler(sampler_type, cfg=cfg, data_source=data_source, batch_size=batch_size, n_domain=n_domain,
                            n_ins=n_ins, is_train=is_train)
    batches = EpochBatchSampler(sampler, batch_size, drop_last=is_train)
    if cfg.DATALOADER.NUM_WORKERS < 0:
        raise InputError(f"DATALOADER.NUM_WORKERS must be 0 or more, not {cfg.DATALOADER.NUM_WORKERS}")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = min(cfg.DATALOADER.NUM_WORKERS, max(1, usable // local_world_size()))
    workers, why = possible_workers(wanted)
    if workers < wanted and is_train:  # once per run
        print(f"Note: {workers} instead of {wanted} loader workers: {why}; the numbers are the same")
    generator = torch.Generator()
    generator.manual_seed(0)  # the loader draws from it at each pass; the global generator stays untouched
    dataset = (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train)
    if test_views is not None:
        _give_views(dataset, test_views)
    return EpochLoader(
        SeededDataset(dataset, cfg.SEED),
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=is_train and workers > 0,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
        generator=generator,
    )


def _give_views(dataset, views):
    dataset.test_views = views
    if getattr(type(dataset), "__getitem__", None) is DatasetWrapper.__getitem__ or not len(dataset):
        return
    with isolated_rng(0):  # what a plugin's wrapper makes of it is told before the training, not after
        item = dataset[0]
    if not (isinstance(item, dict) and "views" in item):
        raise InputError(f"{views.method} is shown {views.number} views of each test image (test_views), and the items "
                         f"of its dataset_wrapper {type(dataset).__name__} have none; derive it from "
                         "dassl.data.DatasetWrapper and add to the items of that, or put self.test_views(picture) into "
                         "its own as \"views\"")


def require_views(trainer):
    """Raise InputError for a trainer with `test_views` whose own loaders of test images do not make them."""
    for loader in (trainer.val_loader, trainer.test_loader) if trainer.test_views else ():
        dataset = getattr(loader, "dataset", None)
        if isinstance(dataset, SeededDataset) and getattr(dataset, "test_views", None) is None:
            raise InputError(f"{type(trainer).__name__} is shown {trainer.test_views} views of each test image "
                             "(test_views), and its own build_data_loader makes none; take "
                             "self.build_data_manager(...) there in place of DataManager(self.cfg, ...)")


class SeededDataset(TorchDataset):
    """A dataset asked by keys `(index, epoch, position)`: item `index`, with every random draw a function of (seed,
    epoch, position). Other attributes are those of the dataset inside."""

    def __init__(self, dataset, seed):
        self.dataset, self.seed = dataset, seed

    def __len__(self):
        return len(self.dataset)

    def __getattr__(self, name):
        if "dataset" not in self.__dict__:  # while it is unpickled, in a worker that was not forked
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, key):
        return self.__getitems__([key])[0]

    def __getitems__(self, keys):
        """The items of a batch. To keep the generators' states takes longer than to seed them, and is done once."""
        items = []
        with isolated_rng(0):
            for index, epoch, position in keys:
                seed_cpu_generators(derive_seed("augment", self.seed, epoch, position))
                items.append(self.dataset[index])
        return items


class DatasetWrapper(TorchDataset):
    """Reads and transforms. An item is a dict:

    - label, domain, index: numbers; impath: the file;
    - img: (3, H, W) float tensor; with DATALOADER.K_TRANSFORMS = k > 1 a list of k views; with a list of transforms
      img, img2, ...: a view (or list of views) each;
    - img0 with DATALOADER.RETURN_IMG0: the picture resized and normalised only;
    - views with `test_views`: (V, 3, H, W), the views that a method is shown of a test image.

    Training pictures are decoded once and kept, up to DATALOADER.CACHE_MB.
    """

    test_views = None  # dassl.data.views.Views, in a loader of test images

    def __init__(self, cfg, data_source, transform=None, is_train=False):
        self.cfg, self.data_source = cfg, data_source
        self.transform = transform
        self.is_train = is_train
        if cfg.DATALOADER.K_TRANSFORMS < 1:
            raise InputError(f"DATALOADER.K_TRANSFORMS must be at least 1, not {cfg.DATALOADER.K_TRANSFORMS}")
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        self.to_tensor = build_plain_transform(cfg) if self.return_img0 else None
        if cfg.DATALOADER.CACHE_MB < 0:
            raise InputError(f"DATALOADER.CACHE_MB must be 0 or more, not {cfg.DATALOADER.CACHE_MB}")
        budget = cfg.DATALOADER.CACHE_MB * 2**20 if is_train else 0
        self.cache = ImageCache([item.impath for item in data_source], budget, cfg.INPUT.EXIF) if budget else None
        if self.k_tfm > 1 and transform is None:
            raise InputError("DATALOADER.K_TRANSFORMS above 1 needs a transform; leave INPUT.NO_TRANSFORM off")

    def __len__(self):
        return len(self.data_source)

    def reserve(self):
        """Make room for the pictures that are kept."""
        if self.cache is not None:
            self.cache.reserve()

    def __getitem__(self, index):
        item = self.data_source[index]
        image = self.cache.read(index) if self.cache is not None else read_image(item.impath, self.cfg.INPUT.EXIF)
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": index}
        if self.transform is None:
            output["img"] = image
        try:
            self._add_views(output, image)
            if self.test_views is not None:
                output["views"] = self.test_views(image)
        except MemoryError:
            raise InputError(f"no memory to transform the {image.width} x {image.height} pixels of {item.impath}; "
                             "take it out of the split, lower INPUT.SIZE, or look at custom transforms") from None
        return output

    def _add_views(self, output, image):
        transforms = self.transform if isinstance(self.transform, (list, tuple)) else [self.transform]
        for number, transform in enumerate(transforms if self.transform is not None else [], start=1):
            views = [transform(image) for _ in range(self.k_tfm)]
            output["img" if number == 1 else f"img{number}"] = views[0] if self.k_tfm == 1 else views
        if self.to_tensor is not None:
            output["img0"] = self.to_tensor(image)


def build_plain_transform(cfg):
    """Resize to INPUT.SIZE and normalise, nothing random."""
    from torchvision.transforms import Normalize, Resize, ToTensor

    from dassl.data.transforms import INTERPOLATION_MODES, FusedCompose

    steps = [Resize(tuple(cfg.INPUT.SIZE), interpolation=INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]), ToTensor()]
    if "normalize" in cfg.INPUT.TRANSFORMS:
        steps.append(Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    return FusedCompose(steps)


class DataManager:
    """The dataset of a config and its loaders: train_loader_x, train_loader_u, val_loader, test_loader (None where
    the dataset has no such part). `skipped_images` is {path: fault} of what DATASET.SKIP_BAD_IMAGES left out, and
    `listed_digest` {part: digest} of the lists before that.

    test_views: the Views that loaders of test images (val_loader, test_loader, plain_train_loader) make."""

    def __init__(self, cfg, custom_tfm_train=None, custom_tfm_test=None, dataset_wrapper=None, test_views=None):
        dataset = build_dataset(cfg)
        self.listed_digest = dataset_digest(dataset, cfg.DATASET.ROOT)
        if cfg.INPUT.EXIF:
            print("Note: pictures are turned upright as their EXIF says (INPUT.EXIF False: as they are stored)")
        self.skipped_images = leave_out_unreadable(
            dataset, cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS) if cfg.DATASET.SKIP_BAD_IMAGES else {}
        from dassl.data.transforms import build_transform  # torchvision takes a second to import

        tfm_train = custom_tfm_train or build_transform(cfg, is_train=True)
        tfm_test = custom_tfm_test or build_transform(cfg, is_train=False)

        def train_loader(node, source):
            return build_data_loader(cfg, sampler_type=node.SAMPLER, data_source=source, batch_size=node.BATCH_SIZE,
                                     n_domain=node.N_DOMAIN, n_ins=node.N_INS, tfm=tfm_train, is_train=True,
                                     dataset_wrapper=dataset_wrapper)

        def test_loader(source):
            return build_data_loader(cfg, sampler_type=cfg.DATALOADER.TEST.SAMPLER, data_source=source,
                                     batch_size=cfg.DATALOADER.TEST.BATCH_SIZE, tfm=tfm_test, is_train=False,
                                     dataset_wrapper=dataset_wrapper, test_views=test_views)

        node_u = cfg.DATALOADER.TRAIN_X if cfg.DATALOADER.TRAIN_U.SAME_AS_X else cfg.DATALOADER.TRAIN_U
        self.train_loader_x = train_loader(cfg.DATALOADER.TRAIN_X, dataset.train_x)
        self.train_loader_u = train_loader(node_u, dataset.train_u) if dataset.train_u else None
        self.val_loader = test_loader(dataset.val) if dataset.val else None
        self.test_loader = test_loader(dataset.test)
        if test_views is not None:
            note_large_batches(test_views, cfg, len(dataset.test))
        self._as_test_images = test_loader
        self.dataset = dataset
        self.num_classes = dataset.num_classes
        self.num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self.lab2cname = dataset.lab2cname
        if isinstance(dataset, DatasetBase):  # a plugin may register anything that looks like one
            dataset.tell_of_classes()
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    def plain_train_loader(self):
        """A loader of the training images in their order, transformed as test images are."""
        return self._as_test_images(self.dataset.train_x)

    def show_dataset_summary(self, cfg):
        rows = [["Dataset", cfg.DATASET.NAME]]
        if cfg.DATASET.SOURCE_DOMAINS:
            rows.append(["Source", ", ".join(cfg.DATASET.SOURCE_DOMAINS)])
        if cfg.DATASET.TARGET_DOMAINS:
            rows.append(["Target", ", ".join(cfg.DATASET.TARGET_DOMAINS)])
        rows.append(["# classes", f"{self.num_classes:,}"])
        for title, part in (("# train_x", self.dataset.train_x), ("# train_u", self.dataset.train_u),
                            ("# val", self.dataset.val), ("# test", self.dataset.test)):
            if part:
                rows.append([title, f"{len(part):,}"])
        print(tabulate(rows, tablefmt="plain"))
