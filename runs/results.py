"""What results.json says of a run."""
import contextlib
import glob
import json
import os
from collections.abc import Mapping
from typing import Any

from yacs.config import CfgNode

from dassl.config.reading import keys_of, read_config
from dassl.config.tree import dotted
from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.overlap import evaluated_part
from dassl.engine.identity import plain
from dassl.engine.run_folder import read_results, settings_digest, stored_config
from dassl.engine.run_record import describe_run, predictions_of
from dassl.metrics import deciding
from dassl.utils import InputError, is_class_bound
from prompting.backbone import weights_digest
from runs.build_config import CONFIGS
from runs.run_spec import RunSpec, stem
from training.test_time import facts_of


def results_of(spec: RunSpec, trainer: Any, stored: CfgNode, overlap: dict[str, Any] | None, evaluation: dict[str, Any],
               silent: dict[str, str], seconds: float) -> dict[str, Any]:
    """The results of a run that was trained or evaluated, as they read back from results.json.

    Args:
        stored: the config as the run folder keeps it.
        overlap: of test and training images (`count_overlap`); evaluation: `what_is_evaluated`.
        silent: {setting: why} of what acts nowhere; seconds: that the run took.
    """
    cfg = trainer.cfg
    results = {
        "trainer": cfg.TRAINER.NAME,
        "dataset": cfg.DATASET.NAME,
        "seed": cfg.SEED,
        "run": who(spec, cfg),
        "metrics": measured(trainer),
        "overlap": overlap,
        "evaluation": evaluation,
        "changed": trainer.changed,
        "stopped": trainer.stopped,
        "class_bound": is_class_bound(trainer, cfg),
        "seconds": round(seconds, 2),
        **describe_run(trainer),
        **features_of(trainer),
        "config": plain(stored),
    }
    if silent:
        results["without_effect"] = list(silent)
    if test_time := facts_of(trainer):
        results["test_time"] = test_time
    if cfg.MODEL.INIT_WEIGHTS:
        results["init_weights"] = weights_digest(cfg.MODEL.INIT_WEIGHTS)
    if cfg.DATASET.SKIP_BAD_IMAGES:
        results["skipped_images"] = getattr(getattr(trainer, "dm", None), "skipped_images", {})
    return json.loads(json.dumps(results))


def features_of(trainer: Any) -> dict[str, Any]:
    """{"features": {"stored", "computed"}}: of how many pictures (views, where they are augmented) this process took
    the frozen features from the feature store, and of how many it computed them. {} where no store is used."""
    feed = getattr(trainer, "_feed", None)  # a foreign trainer has none
    counts = {"stored": getattr(feed, "taken", None), "computed": getattr(feed, "computed", None)}
    return {"features": counts} if any(counts.values()) else {}


def who(spec: RunSpec, cfg: CfgNode) -> dict[str, Any]:
    """Which run this is, whatever its folder: what a table needs to find its cell.

    Returns:
        {"dataset", "config": names of the config files, "name": DATASET.NAME, "part": DATASET.SUBSAMPLE_CLASSES,
        "source_domains", "target_domains": names, "shots", "eval_only", "model": `model_of` the run whose prompts are
        evaluated, or None, and "protocol": the name of the protocol that planned the run, where one did}.
    """
    names = spec.identity()
    dataset = names["dataset"] or file_of_dataset(cfg.DATASET.NAME)
    return {
        "dataset": dataset,
        "name": cfg.DATASET.NAME,
        "config": names["config"],
        "part": cfg.DATASET.SUBSAMPLE_CLASSES,
        "source_domains": list(cfg.DATASET.SOURCE_DOMAINS),
        "target_domains": list(cfg.DATASET.TARGET_DOMAINS),
        "shots": cfg.DATASET.NUM_SHOTS,
        "eval_only": spec.eval_only,
        "model": model_of(spec.model_dir, dataset, cfg) if spec.eval_only and spec.model_dir else None,
        **({"protocol": spec.protocol} if spec.protocol else {}),
    }


def model_of(folder: str, dataset: str, cfg: CfgNode) -> dict[str, Any]:
    """{"dataset", "name", "part", "source_domains", "shots", "seed", "settings": `settings_digest`} of the run in a
    folder, as its results say; as its config does where they do not.

    Args:
        dataset, cfg: what the evaluation calls its dataset, and its config.
    """
    config = stored_config(folder)
    seed = config.get("SEED")
    trained = {"seed": seed if type(seed) is int else -1, "settings": settings_digest(config) if config else ""}
    with contextlib.suppress(InputError, OSError):
        results = read_results(folder)
        run = {"name": results.get("dataset", ""), **(results.get("run") or {})}
        known = ("dataset", "name", "part", "source_domains", "shots")
        if all(key in run for key in known):
            return {key: run[key] for key in known} | trained
    data = config.get("DATASET")
    data = data if isinstance(data, dict) else {}
    domains = data.get("SOURCE_DOMAINS")
    return {"dataset": _dataset_of(data, dataset, cfg), "name": str(data.get("NAME", "")),
            "part": str(data.get("SUBSAMPLE_CLASSES", "")),
            "source_domains": domains if isinstance(domains, list) else [],
            "shots": data.get("NUM_SHOTS", -1), **trained}


def _dataset_of(data: Mapping[str, Any], dataset: str, cfg: CfgNode) -> str:
    """What a training is to call its dataset that did not keep the name of the dataset's config file.

    Args:
        data: DATASET of the training's config.
        dataset, cfg: what the evaluation calls its dataset, and its config.
    """
    name = str(data.get("NAME", ""))
    if name != cfg.DATASET.NAME:
        return file_of_dataset(name)
    if getattr(DATASET_REGISTRY.get(name), "dataset_dir", "") or _same_folder(data.get("ROOT"), cfg.DATASET.ROOT):
        return dataset
    # Two folders of one's own pictures are two datasets.
    return next((word for word in (file_of_dataset(name), name.lower()) if word != dataset), "")


def _same_folder(one: Any, other: str) -> bool:
    """Whether two paths lead to one folder; what is no path (a zero byte in it, as in a damaged config) does not."""
    with contextlib.suppress(ValueError):
        return os.path.realpath(os.path.expanduser(str(one or ""))) == os.path.realpath(os.path.expanduser(other))
    return False


def file_of_dataset(name: str) -> str:
    """The name of the file of configs/datasets for the dataset with this DATASET.NAME, such as oxford_pets for
    OxfordPets; the DATASET.NAME in small letters where there is none."""
    for path in sorted(glob.glob(os.path.join(glob.escape(CONFIGS), "datasets", "*.yaml"))):
        with contextlib.suppress(InputError):  # another dataset's file that cannot be read
            said: dict[str, Any] = {}
            for told, text in read_config(path).layers():
                said |= dotted(keys_of(text, told))
            if said.get("DATASET.NAME") == name:
                return stem(path)
    return name.lower()


def measured(trainer: Any) -> dict[str, dict[str, float]]:
    """{split: {name: number}} of a trainer's evaluations; of its evaluator's last where it has a `test` of its own."""
    dataset = getattr(getattr(trainer, "dm", None), "dataset", None)
    last = getattr(trainer.evaluator, "last_results", None)
    asked = evaluated_part(trainer.cfg, dataset) if dataset is not None else "test"
    found = getattr(trainer, "results", None)
    if not found:
        parts = [part for part in (asked, "test", "val", "train") if predictions_of(trainer, part) is not None]
        found = {next(iter(parts), "test"): last} if last else {}
    if found and asked not in found and not trainer.cfg.TEST.NO_TEST:
        print(f"Note: TEST.SPLIT asks for the {asked} part, but {type(trainer).__name__} has a test() of its own that "
              f"evaluated the {' and '.join(found)} part")
    for numbers in filter(None, found.values()):
        deciding(numbers)
    return {split: {name: float(value) for name, value in numbers.items()} for split, numbers in found.items()}
