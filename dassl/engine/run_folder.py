"""What a run folder says about the run in it: whether it is whole, and whether it is the one that is asked for."""
import contextlib
import hashlib
import os
import re

import yaml

from dassl.config import dump
from dassl.utils import BEST, INTERRUPTED, InputError, read_json

# What may differ between two runs that count as the same: places, and what changes no number.
NOT_COMPARED = ("OUTPUT_DIR", "RESUME", "VERBOSE", "DATASET.ROOT", "DATALOADER.NUM_WORKERS", "TRAIN.PRINT_FREQ",
                "TRAIN.CHECKPOINT_FREQ", "DATALOADER.CACHE_MB")


def plain(cfg):
    """A config as nested dicts of plain values, as it reads back from a file."""
    return yaml.safe_load(dump(cfg))


def flat(tree, prefix=""):
    """Nested dicts -> {dotted key: value}, without what is not compared."""
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves.update(flat(value, f"{prefix}{key}."))
        elif prefix + key not in NOT_COMPARED:
            leaves[prefix + key] = value
    return leaves


def finished_results(cfg, defaults, evaluation):
    """The results of a finished run in OUTPUT_DIR, or None when the run is still to be made or to be gone on with.

    Args:
        cfg: the run's config; defaults: the tree before anything was merged, for keys that a stored config lacks.
        evaluation: {"eval_only", "load_epoch", "checkpoint"}: what is evaluated, and the digest of its files.
    Raises:
        InputError: the folder holds a run of another config.
    """
    folder = cfg.OUTPUT_DIR
    results, config = os.path.join(folder, "results.json"), os.path.join(folder, "config.yaml")
    stored = _whole_json(results)
    if stored is not None:
        parts = ("config", "evaluation", "metrics")
        if not isinstance(stored, dict) or not all(isinstance(stored.get(part), dict) for part in parts):
            raise InputError(f"{results} is not a run's results; choose another --output-dir or move it away")
        _require_same(folder, stored["config"], cfg, defaults)
        for key in ("eval_only", "load_epoch"):
            if stored["evaluation"].get(key) != evaluation[key]:
                raise InputError(f"{folder} holds a run with {key} {stored['evaluation'].get(key)}, this one has "
                                 f"{evaluation[key]}; choose another --output-dir or delete that folder")
        return stored if stored["evaluation"].get("checkpoint") == evaluation["checkpoint"] else None
    if evaluation["eval_only"] and _checkpoints(folder):
        raise InputError(f"{folder} holds a training run; choose another --output-dir for the evaluation")
    if os.path.isfile(config):
        stored = stored_config(folder)
        if not stored:
            raise InputError(f"{config} is damaged; delete the folder to run again")
        # A test image that turns out unreadable after the training may be left out for the evaluation.
        _require_same(folder, stored, cfg, defaults, free=("DATASET.SKIP_BAD_IMAGES",))
    return None


def stored_config(folder):
    """The config that a run folder keeps, nested dicts of plain values; {} where there is none or it is damaged."""
    try:
        with open(os.path.join(folder, "config.yaml"), encoding="utf-8-sig") as file:
            stored = yaml.safe_load(file)
    except (FileNotFoundError, yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _whole_json(path):
    """What a results.json holds; None, with a warning, for a torn one: a run that has that is not finished."""
    if not os.path.isfile(path):
        return None
    try:
        stored = read_json(path)
        return {} if stored is None else stored
    except InputError as error:
        print(f"Warning: {error}; the run is taken for unfinished")
        return None


def _require_same(folder, stored, cfg, defaults, free=()):
    here, there, default = flat(plain(cfg)), flat(stored), flat(plain(defaults))
    for key, value in here.items():
        other = there.get(key, default.get(key))
        if value != other and key not in free:
            raise InputError(f"{folder} holds a run of another config ({key} is {other!r} there, {value!r} here); "
                             "choose another --output-dir or delete that folder")


def _checkpoints(folder):
    """Subfolders of a run that hold checkpoints."""
    if not os.path.isdir(folder):
        return []
    return [path for name in sorted(os.listdir(folder))
            if os.path.isfile(os.path.join(path := os.path.join(folder, name), "checkpoint"))
            or os.path.isfile(os.path.join(path, BEST)) or os.path.isfile(os.path.join(path, INTERRUPTED))]


def newest_epoch(folder):
    """The epoch (from 1) of a run's newest checkpoint, None if only the best or none is there."""
    for path in _checkpoints(folder):
        if os.path.isfile(os.path.join(path, BEST)):
            return None
        with contextlib.suppress(OSError, UnicodeDecodeError), \
                open(os.path.join(path, "checkpoint"), encoding="utf-8") as file:
            if found := re.fullmatch(r"model\.pth\.tar-(\d+)", file.readline().strip()):
                return int(found[1])
    return None


def checkpoint_digest(folder, epoch=None):
    """SHA-256 over the checkpoints that an evaluation of the run in `folder` loads; None if there are none."""
    digest = hashlib.sha256()
    for path in _checkpoints(folder):
        names = [f"model.pth.tar-{epoch}"] if epoch is not None else [BEST]
        if epoch is None and not os.path.isfile(os.path.join(path, names[0])):
            names = [f"model.pth.tar-{newest_epoch(folder)}"]
        for name in names:
            if os.path.isfile(os.path.join(path, name)):
                with open(os.path.join(path, name), "rb") as file:
                    digest.update(hashlib.sha256(file.read()).digest())
    return digest.hexdigest() if _checkpoints(folder) else None
