"""What results.json says of a run."""
import contextlib
import json
from typing import Any

from yacs.config import CfgNode

from dassl.data.overlap import evaluated_part
from dassl.engine.identity import plain
from dassl.engine.run_folder import read_results, settings_digest, stored_config
from dassl.engine.run_record import describe_run, predictions_of
from dassl.metrics import deciding
from dassl.utils import InputError, is_class_bound
from prompting.backbone import weights_digest
from runs.run_spec import RunSpec


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
        "config": plain(stored),
    }
    if silent:
        results["without_effect"] = list(silent)
    if cfg.MODEL.INIT_WEIGHTS:
        results["init_weights"] = weights_digest(cfg.MODEL.INIT_WEIGHTS)
    if cfg.DATASET.SKIP_BAD_IMAGES:
        results["skipped_images"] = getattr(getattr(trainer, "dm", None), "skipped_images", {})
    return json.loads(json.dumps(results))


def who(spec: RunSpec, cfg: CfgNode) -> dict[str, Any]:
    """Which run this is, whatever its folder: what a table needs to find its cell.

    Returns:
        {"dataset", "config": names of the config files, "part": DATASET.SUBSAMPLE_CLASSES, "source_domains",
        "target_domains": names, "shots", "eval_only", "model": `model_of` the run whose prompts are evaluated, or None,
        and "protocol": the name of the protocol that planned the run, where one did}.
    """
    names = spec.identity()
    return {
        "dataset": names["dataset"] or cfg.DATASET.NAME.lower(),
        "config": names["config"],
        "part": cfg.DATASET.SUBSAMPLE_CLASSES,
        "source_domains": list(cfg.DATASET.SOURCE_DOMAINS),
        "target_domains": list(cfg.DATASET.TARGET_DOMAINS),
        "shots": cfg.DATASET.NUM_SHOTS,
        "eval_only": spec.eval_only,
        "model": model_of(spec.model_dir) if spec.eval_only and spec.model_dir else None,
        **({"protocol": spec.protocol} if spec.protocol else {}),
    }


def model_of(folder: str) -> dict[str, Any]:
    """{"dataset", "part", "source_domains", "shots", "seed", "settings": `settings_digest`} of the run in a folder, as
    its results say; as its config does where they do not."""
    config = stored_config(folder)
    trained = {"seed": config.get("SEED", -1), "settings": settings_digest(config) if config else ""}
    with contextlib.suppress(InputError, OSError):
        run = read_results(folder).get("run") or {}
        known = ("dataset", "part", "source_domains", "shots")
        if all(key in run for key in known):
            return {key: run[key] for key in known} | trained
    data = config.get("DATASET") or {}
    return {"dataset": str(data.get("NAME", "")).lower(), "part": str(data.get("SUBSAMPLE_CLASSES", "")),
            "source_domains": list(data.get("SOURCE_DOMAINS") or ()), "shots": data.get("NUM_SHOTS", -1), **trained}


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
