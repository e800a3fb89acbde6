"""What a training batch of pictures costs, with and without the cache of decoded ones."""
import os
import tempfile
import time

import numpy as np
from PIL import Image

from dassl.config import get_cfg_default
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform

PICTURES, SIZE, BATCH, EPOCHS = 96, (500, 375), 32, 3  # the size of most pictures of ImageNet and Caltech101


def draw_pictures(folder):
    """JPEG files of smooth noise, whose size on disk is that of a photograph's."""
    rng = np.random.RandomState(0)
    items = []
    for number in range(PICTURES):
        path = os.path.join(folder, f"{number:03d}.jpg")
        draw_picture(path, rng)
        items.append(Datum(path, number % 10, 0, str(number % 10)))
    return items


def draw_picture(path, rng):
    coarse = Image.fromarray(rng.randint(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), dtype=np.uint8))
    fine = rng.randint(0, 24, (SIZE[1], SIZE[0], 3))
    pixels = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC)) * 0.9 + fine
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=90)


def loader_of(items, workers, megabytes):
    cfg = get_cfg_default()
    cfg.VERBOSE, cfg.SEED, cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.CACHE_MB = False, 1, workers, megabytes
    cfg.INPUT.INTERPOLATION = "bicubic"
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    return build_data_loader(cfg, "RandomSampler", items, BATCH, tfm=build_transform(cfg, is_train=True), is_train=True)


def measure_loader(step=1.0):
    """{"without" and "with" the cache: seconds of processor time per batch, one per epoch, in the process itself;
    "waits": seconds on the clock that a step of `step` seconds waits for a worker's batch, after the first}."""
    found = {"pictures": PICTURES, "size": list(SIZE), "batch": BATCH, "step": step, "waits": []}
    with tempfile.TemporaryDirectory() as folder:
        items = draw_pictures(folder)
        for name, megabytes in (("without", 0), ("with", 2048)):
            loader, found[name] = loader_of(items, 0, megabytes), []
            for epoch in range(EPOCHS):
                loader.batch_sampler.set_epoch(epoch)
                start = time.process_time()
                batches = sum(1 for _ in loader)
                found[name].append((time.process_time() - start) / batches)
        loader = loader_of(items, 1, 2048)
        for epoch in range(EPOCHS):
            loader.batch_sampler.set_epoch(epoch)
            start = time.perf_counter()
            for number, _ in enumerate(loader):
                if number:
                    found["waits"].append(time.perf_counter() - start)
                time.sleep(step)
                start = time.perf_counter()
    return found
