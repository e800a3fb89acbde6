"""Trainers on the tiny CLIP, without image files: batches are handed in."""
import types

import torch

import tiny_clip
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY


def listed_dataset(name, classnames, domains=1, images=8, labels=None):
    """A dataset class of that name that lists files which are never read: `images` a class and domain, or one for each
    of `labels`."""
    items = [Datum(f"{d}/{c}/{i}.png", c, d, classname) for d in range(domains)
             for c, classname in enumerate(classnames) for i in range(images)]
    if labels is not None:
        items = [Datum(f"{i}.png", label, 0, classnames[label]) for i, label in enumerate(labels)]
    return type(name, (DatasetBase,), {
        "__init__": lambda self, cfg: DatasetBase.__init__(self, items, val=items, test=items)})


def make_trainer(method, clip_model, classnames, options=None, dataset="Caltech101", domains=1, batch=8,
                 overrides=None, settings=None, labels=None, device="cpu"):
    """The registered trainer `method` on a listed dataset.

    Args:
        options: the method's own config keys; settings: other ones, {"OPTIM.NAME": ...}.
        labels: of the training images, where they matter.
        overrides: {name: function} that replaces methods of the trainer.
        device: "cpu" or "cuda".
    """
    cls = TRAINER_REGISTRY.get(method)
    cfg = get_cfg_default()
    cls.extend_cfg(cfg)
    cfg.TRAINER.NAME = method
    cfg.TRAINER[method.upper()].PREC = "fp32"
    for key, value in (options or {}).items():
        assert key in cfg.TRAINER[method.upper()], key
        cfg.TRAINER[method.upper()][key] = value
    cfg.VERBOSE = False
    cfg.SEED = 1
    cfg.USE_CUDA = device != "cpu"
    cfg.DATASET.NAME = dataset
    cfg.DATASET.SOURCE_DOMAINS = tuple(f"domain{d}" for d in range(domains)) if domains > 1 else ()
    cfg.INPUT.SIZE = (tiny_clip.RESOLUTION, tiny_clip.RESOLUTION)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = batch
    cfg.OPTIM.NAME, cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH = "sgd", 0.01, 10**6
    for key, value in (settings or {}).items():
        cfg.merge_from_list([key, value])
    known = DATASET_REGISTRY.get(dataset) if dataset in DATASET_REGISTRY else None
    DATASET_REGISTRY.register(listed_dataset(dataset, classnames, domains, labels=labels), force=True)
    try:
        trainer = cls(cfg, clip_model=clip_model)
    finally:
        if known is not None:
            DATASET_REGISTRY.register(known, force=True)
    for name, function in (overrides or {}).items():
        setattr(trainer, name, types.MethodType(function, trainer))
    trainer.num_batches = 10**9
    return trainer


def stacked(losses):
    """Functions prompt -> loss, one of each part of a batch -> the function of the parts' prompts that `meta_gradient`
    takes."""
    return lambda prompts: torch.stack([loss(prompt) for loss, prompt in zip(losses, prompts)])
