"""What a run folder says about the run in it: whether it is whole, and whether it is the one that is asked for."""
import contextlib
import hashlib
import json
import os
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml
from yacs.config import CfgNode

from dassl.config.reading import MOST_CONFIG_BYTES, parse
from dassl.config.tree import dotted
from dassl.data.datasets import build_dataset, dataset_digest, keep_lists, relative_path
from dassl.engine.identity import plain, require_same_data, same_backbone, shown
from dassl.utils import (
    BEST,
    InputError,
    checkpoint_files,
    isolated_rng,
    load_checkpoint,
    model_folders,
    names_newest_first,
    open_regular,
    quiet,
    read_json,
)
from dassl.utils.stored import require, shortened

MOST_RESULTS = 2**28  # bytes of a results.json; a confusion matrix of 5,000 classes has less

# What may differ between two runs that count as the same: places, and what changes no number. The names in the file
# DATASET.CLASSNAMES are compared with the lists of images, which hold them.
NOT_COMPARED = ("OUTPUT_DIR", "RESUME", "VERBOSE", "DATASET.ROOT", "DATALOADER.NUM_WORKERS", "TRAIN.PRINT_FREQ",
                "TRAIN.CHECKPOINT_FREQ", "DATALOADER.CACHE_MB", "DATASET.CLASSNAMES", "STORE.USE", "STORE.DIR",
                "STORE.MB", "TRAIN.GRAPHS")

# Which data, which seed and how it is tested are no settings of a training; backbones are compared by their digests.
APART_FROM_SETTINGS = ("SEED", "DATASET.", "TEST.", "DATALOADER.TEST.", "MODEL.BACKBONE.", "USE_CUDA")


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts -> {dotted key: value}, without what is not compared."""
    return {key: value for key, value in dotted(tree).items() if key not in NOT_COMPARED}


def settings_digest(tree: Mapping[str, Any]) -> str:
    """What a method was trained with, whatever the data and the seed: a digest of those settings of a config (nested
    dicts) that can change a number."""
    kept = {key: value for key, value in flat(plain(tree)).items()
            if key in ("TEST.FINAL_MODEL", "TEST.EVALUATOR") or not key.startswith(APART_FROM_SETTINGS)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


class Listings(dict):
    """`seen` of Sources, for a look at many runs as they are now: the seeds and shots of a dataset are drawn from the
    same lists. Those of the last dataset are kept, so that it is not for a process that makes runs meanwhile."""

    last: tuple[Any, Any] = None, None  # what lists depend on, the dataset

    def dataset(self, cfg: CfgNode) -> Any:
        """As `build_dataset(cfg)`."""
        told = plain(cfg.DATASET) | {"NUM_SHOTS": None}
        dataset = self.last[1].drawn_anew(cfg) if self.last[0] == told else None
        if dataset is None:
            self.last = None, None
            with keep_lists():
                dataset = build_dataset(cfg)
            # names from a file are written into the lists
            if hasattr(dataset, "drawn_anew") and not cfg.DATASET.CLASSNAMES:
                self.last = told, dataset
        return dataset


class Sources:
    """What a run of a config reads as things are now. Nothing is looked at before it is asked for.

    Args:
        cfg: the config.
        weights_digest: backbone's name -> SHA-256 of its weights, or None.
        seen: {} or Listings, filled and shared between the runs of a protocol, so that a dataset is listed once.
    """

    def __init__(self, cfg: CfgNode, weights_digest: Callable[[str], str | None],
                 seen: dict[str, Any] | None = None) -> None:
        self.cfg, self.weights_digest, self.seen = cfg, weights_digest, {} if seen is None else seen

    def backbone(self) -> dict[str, str | None]:
        """{"name", "digest"}"""
        name = self.cfg.MODEL.BACKBONE.NAME
        return {"name": name, "digest": self.weights_digest(name)}

    def init_weights(self) -> str | None:
        """The digest of the file that a run begins with (MODEL.INIT_WEIGHTS); None where there is none."""
        path = self.cfg.MODEL.INIT_WEIGHTS
        return self.weights_digest(path) if path else None

    def data(self, skipped: Iterable[str] = ()) -> tuple[dict[str, str | None] | None, str]:
        """({part: digest} of the dataset's lists, ""), or (None, why it cannot be listed); pixels are not read.

        skipped: paths of images that were left out of the lists."""
        cfg = self.cfg
        key = repr((plain(cfg.DATASET), cfg.SEED, sorted(skipped)))
        if key not in self.seen:
            self.seen[key] = self._list(set(skipped))
        return self.seen[key]

    def _list(self, skipped: set[str]) -> tuple[dict[str, str | None] | None, str]:
        cfg = self.cfg
        try:
            with quiet(), isolated_rng(cfg.SEED):
                dataset = self.seen.dataset(cfg) if isinstance(self.seen, Listings) else build_dataset(cfg)
        except Exception as error:  # whatever a dataset does that is not there any more
            return None, " ".join(str(error).split()) or type(error).__name__
        parts = {name: [item for item in getattr(dataset, name) or ()
                        if not skipped or relative_path(item.impath, cfg.DATASET.ROOT) not in skipped]
                 for name in ("train_x", "val", "test")}
        return dataset_digest(types.SimpleNamespace(**parts), cfg.DATASET.ROOT), ""


def finished_results(cfg: CfgNode, defaults: Callable[[], CfgNode], evaluation: dict[str, Any],
                     sources: Sources) -> dict[str, Any] | None:
    """The results of a finished run in OUTPUT_DIR, or None when the run is still to be made or to be gone on with.

    Args:
        cfg: the run's config; defaults: () -> the tree before anything was merged, for keys that a stored config lacks.
        evaluation: {"eval_only", "load_epoch", "checkpoint"}: what is evaluated, and the digest of its files.
        sources: the Sources of `cfg`.
    Raises:
        InputError: the folder holds a run of another config, of other data or with other weights.
    """
    folder = cfg.OUTPUT_DIR
    results, config = os.path.join(folder, "results.json"), os.path.join(folder, "config.yaml")
    stored = _whole_json(results)
    if stored is not None:
        if not isinstance(stored, dict) or not isinstance(stored.get("evaluation"), dict):
            raise InputError(f"{results} is not a run's results; choose another --output-dir (--output, for the "
                             "scripts OUTPUT) or move it away")
        require_results(stored, results)
        then = stored.get("backbone") if isinstance(stored.get("backbone"), dict) else None
        _require_same(folder, stored["config"], cfg, defaults, free=_moved(then, sources, stored.get("init_weights")))
        for key in ("eval_only", "load_epoch"):
            if stored["evaluation"].get(key) != evaluation[key]:
                raise InputError(f"{folder} holds a run with {key} {stored['evaluation'].get(key)}, this one has "
                                 f"{evaluation[key]}; choose another --output-dir (--output, for the scripts OUTPUT) "
                                 "or delete that folder")
        if stored["evaluation"].get("checkpoint") != evaluation["checkpoint"]:
            return None
        _require_same_sources(folder, stored, then, sources)
        return stored
    if evaluation["eval_only"] and model_folders(folder):
        raise InputError(f"{folder} holds a training run; choose another --output-dir (--output, for the scripts "
                         "OUTPUT) for the evaluation")
    if os.path.isfile(config):
        stored = stored_config(folder)
        if not stored:
            raise InputError(f"{config} is damaged; delete the folder to run again")
        then = stored_identity_in(folder).get("backbone") if flat(stored).get("MODEL.BACKBONE.NAME") != \
            cfg.MODEL.BACKBONE.NAME else None
        # A test image that turns out unreadable after the training may be left out for the evaluation.
        free = ("DATASET.SKIP_BAD_IMAGES", *_moved(then, sources))
        _require_same(folder, stored, cfg, defaults, free)
    return None


def _moved(then: dict[str, Any] | None, sources: Sources, digest: str | None = None) -> list[str]:
    """Keys of the config that need not be the same where a file has only moved.

    Args:
        then: {"name", "digest"} of the backbone of the run folder, or None.
        digest: that of the weights it began with, where it is finished and had such.
    """
    free = []
    if then and then.get("digest") and then["digest"] == sources.backbone()["digest"]:
        free.append("MODEL.BACKBONE.NAME")
    if digest and digest == sources.init_weights():
        free.append("MODEL.INIT_WEIGHTS")
    return free


def _require_same_sources(folder: str, stored: dict[str, Any], then: dict[str, Any] | None, sources: Sources) -> None:
    """Raise InputError where a finished run read other weights or other lists of images than it would read now."""
    cfg, digests = sources.cfg, stored.get("dataset_digest")
    if then is None:
        print(f"Warning: {folder} was finished before runs noted the digest of their weights: whether it was made with "
              "those of now cannot be told; delete the folder to make it again")
    elif then.get("digest") and (now := sources.backbone())["digest"]:
        _require_weights(folder, then, now)
    if stored.get("init_weights") and sources.init_weights() not in (None, stored["init_weights"]):
        raise InputError(f"{folder} is of other weights: the file it began with, MODEL.INIT_WEIGHTS "
                         f"{cfg.MODEL.INIT_WEIGHTS}, is another now; bring the former file back, or choose another "
                         "--output-dir (--output, for the scripts OUTPUT), or delete that folder")
    if not isinstance(digests, dict):
        print(f"Warning: {folder} was finished before runs noted what they read: whether that was the data of now "
              "cannot be told; delete the folder to make it again")
        return
    skipped = stored.get("skipped_images") or {}
    root = stored["config"].get("DATASET", {}).get("ROOT", "")
    listed, reason = sources.data([relative_path(path, root) for path in skipped])
    if listed is None:
        print(f"Note: {folder} is finished and is taken over; its data cannot be compared, they cannot be listed any "
              f"more ({reason})")
        return
    require_same_data(folder, digests, listed, cfg)


def _require_weights(folder: str, then: dict[str, Any], now: dict[str, Any]) -> None:
    if not same_backbone(then, now):
        raise InputError(f"{folder} is of other weights: it was made with {shown(then)}, now the backbone is "
                         f"{shown(now)}; bring the former file back, or choose another --output-dir (--output, for "
                         "the scripts OUTPUT), or delete that folder")


def stored_identity_in(folder: str) -> dict[str, Any]:
    """What the newest checkpoint in a run folder says that it was made for (`dassl.engine.identity.made_for`); {} if it
    does not say, or there is none that can be read."""
    for path in model_folders(folder):
        for name in (*names_newest_first(path), BEST):
            with contextlib.suppress(InputError, OSError):
                found = load_checkpoint(os.path.join(path, name)).get("made_for")
                if isinstance(found, dict):
                    return found
    return {}


def require_goes_on(cfg: CfgNode, sources: Sources) -> None:
    """Raise InputError where an interrupted run in OUTPUT_DIR cannot be gone on with: what it reads has changed.

    A trainer that goes on from it finds the same; this is for telling it before."""
    then = stored_identity_in(cfg.OUTPUT_DIR)
    if isinstance(then.get("backbone"), dict):
        _require_weights(cfg.OUTPUT_DIR, then["backbone"], sources.backbone())
    if isinstance(then.get("data"), dict):
        now, _ = sources.data()
        if now is not None:
            require_same_data(cfg.OUTPUT_DIR, then["data"], now, cfg)


def stored_config(folder: str) -> dict[str, Any]:
    """The config that a run folder keeps, nested dicts of plain values; {} where there is none or it is damaged."""
    try:
        with open_regular(os.path.join(folder, "config.yaml"), "r", encoding="utf-8-sig") as file:
            text = file.read(MOST_CONFIG_BYTES + 1)
        if len(text) > MOST_CONFIG_BYTES:  # no config, and a part of it would be another one
            return {}
        stored = parse(text)
        require("config", stored, folder)
    except (FileNotFoundError, yaml.YAMLError, ValueError, RecursionError):  # InputError and UnicodeDecodeError, too
        return {}
    return stored


def _whole_json(path: str) -> Any:
    """What a results.json holds; None, with a warning, for a torn one: a run that has that is not finished."""
    if not os.path.isfile(path):
        return None
    try:
        stored = read_json(path, MOST_RESULTS)
        return {} if stored is None else stored
    except InputError as error:
        print(f"Warning: {error}; the run is taken for unfinished")
        return None


def read_results(folder: str) -> dict[str, Any]:
    """The results of a finished run. Raises InputError where its results.json cannot be read or is damaged."""
    path = os.path.join(folder, "results.json")
    results = read_json(path, MOST_RESULTS)
    require_results(results, path)
    return results


def require_results(results: Any, path: str) -> None:
    """Raise InputError, naming the field, unless what a results.json at `path` holds is a run's results.

    Those of former versions may lack what is not in all tables; what is there must be what it is named."""
    if not isinstance(results, dict) or not all(isinstance(results.get(part), dict) for part in ("config", "metrics")):
        raise InputError(f"{path} is not a run's results; move it away")
    require_accuracies(results["metrics"], path)
    require("results", results, path)
    confusion = results.get("confusion", [])
    lengths = {f"classes.{key}": len(values) for key, values in (results.get("classes") or {}).items()
               if isinstance(values, list)}
    lengths |= {"confusion": len(confusion), **{f"confusion.{i}": len(row) for i, row in enumerate(confusion)}} \
        if confusion else {}
    if len(set(lengths.values())) > 1:
        one = next(iter(lengths))
        other = next(key for key, length in lengths.items() if length != lengths[one])
        raise InputError(f"{path} is damaged: {one} has {lengths[one]} entries and {other} has {lengths[other]}; "
                         "delete it and run again")


def require_accuracies(metrics: Mapping[str, Any], path: str) -> None:
    """Raise InputError unless each accuracy in the metrics of a results.json at `path` is a number of 0 to 100."""
    for split, numbers in metrics.items():
        accuracy = numbers.get("accuracy") if isinstance(numbers, dict) else numbers
        number = isinstance(accuracy, (int, float)) and not isinstance(accuracy, bool)
        if accuracy is not None and not (number and 0 <= accuracy <= 100):
            raise InputError(f"{path} is damaged: its {split} accuracy is {shortened(accuracy)}, not a number of 0 to "
                             "100; delete it and run again")


def _require_same(folder: str, stored: dict[str, Any], cfg: CfgNode, defaults: Callable[[], CfgNode],
                  free: Iterable[str] = ()) -> None:
    """Raise InputError, naming the first key, where a stored config is not `cfg`. free: keys that may differ."""
    there, default = flat(stored), None
    for key, value in flat(cfg).items():
        value = plain(value)
        if key in there:
            other = there[key]
        else:
            default = flat(plain(defaults())) if default is None else default
            other = default.get(key)
        if value != other and key not in free:
            older = f"give {key} {other} to take it over, " if key not in there else ""
            raise InputError(f"{folder} holds a run of another config ({key} is {other!r} there, {value!r} here); "
                             f"{older}choose another --output-dir (--output, for the scripts OUTPUT) or delete that "
                             "folder")


def checkpoint_digest(folder, epoch=None):
    """SHA-256 over the checkpoints that an evaluation of the run in `folder` loads; None if there are none."""
    digest = hashlib.sha256()
    for path in checkpoint_files(folder, epoch):
        with open_regular(path) as file:
            digest.update(hashlib.sha256(file.read()).digest())
    return digest.hexdigest() if model_folders(folder) else None
