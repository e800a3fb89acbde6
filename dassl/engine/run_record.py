"""What is kept of a finished run beside its accuracies: what it was made on, with what, and every prediction."""
import contextlib
import gzip
import os
import platform
import sys
from typing import Any

import numpy as np
import PIL
import psutil
import torch

from dassl.data.datasets import dataset_digest, relative_path
from dassl.data.overlap import evaluated_part, images_of
from dassl.engine.trainer_base import TrainerBase
from dassl.utils import count_num_param, csv_text, world_size, write_atomically
from dassl.utils.optional import optional_module

resource = optional_module("resource")  # Windows has none

PREDICTIONS = "predictions.csv.gz"
LOGITS = "logits.npz"
COLUMNS = ("path", "label", "prediction", "confidence")


def describe_run(trainer: Any) -> dict[str, Any]:
    """The facts of results.json that do not depend on the kind of trainer; a foreign one lacks some.

    Returns:
        dict of classes, domains and confusion (of the part that TEST.SPLIT names), dataset_digest, untested_classes
        (names, where a class has no test image), backbone, budget, trained_parameters, device, device_name, peak_memory
        (bytes), processes, versions.
    """
    import torchvision  # takes a second, which tools that only read need not wait

    facts: dict[str, Any] = {}
    dataset = getattr(getattr(trainer, "dm", None), "dataset", None)
    part = evaluated_part(trainer.cfg, dataset) if dataset is not None else "test"
    if predictions_of(trainer, part) is not None and hasattr(trainer.evaluator, "breakdown"):
        facts.update(trainer.evaluator.breakdown())
        if part != "test":
            facts["domains"] = {}  # the target domains are the test part's
    asked = [key for key in ("PER_CLASS_RESULT", "COMPUTE_CMAT") if trainer.cfg.TEST[key]]
    if asked and "classes" not in facts and not trainer.cfg.TEST.NO_TEST:
        print(f"Note: TEST.{' and TEST.'.join(asked)}: {type(trainer.evaluator).__name__} gives no numbers per class "
              f"of the {part} part; results.json has none")
    if dataset is not None:
        facts["dataset_digest"] = dataset_digest(dataset, trainer.cfg.DATASET.ROOT)
        if untested := getattr(dataset, "untested_classes", None):
            facts["untested_classes"] = list(untested)
    return {
        **facts,
        "backbone": trainer.backbone_facts,
        "budget": TrainerBase.budget.of(trainer).facts(),
        "trained_parameters": trained_parameters(trainer),
        "device": str(trainer.device),
        "device_name": device_name(trainer.device),
        "peak_memory": peak_memory(trainer.device),
        "processes": world_size(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "torchvision": torchvision.__version__, "numpy": np.__version__, "Pillow": PIL.__version__,
                     "cuda": torch.version.cuda if trainer.device.type == "cuda" else None},
    }


def trained_parameters(trainer: Any) -> int:
    """How many numbers the trainer's registered models learn."""
    if not getattr(trainer, "trains", True):
        return 0
    models = [trainer.registered_model(name).model for name in trainer.get_model_names()]
    parameters = {id(p): p for model in models if model is not None for p in model.parameters() if p.requires_grad}
    return count_num_param(params=parameters.values())


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def peak_memory(device: torch.device) -> dict[str, Any]:
    """Bytes: the most that torch held on the GPU in this run; on a CPU the most that the process held so far, which in
    a process of many runs may be an earlier run's."""
    if device.type == "cuda":
        return {"of": "cuda", "bytes": torch.cuda.max_memory_allocated(device)}
    if resource is None:
        memory = psutil.Process().memory_info()
        return {"of": "process", "bytes": getattr(memory, "peak_wset", memory.rss)}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"of": "process", "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def predictions_of(trainer: Any, part: str) -> tuple[list, list, list, list] | None:
    """(paths, labels, predictions, confidences) when the last evaluation was of the part (train, val or test), else
    None.

    A foreign trainer with a `test` of its own may not hand on the files; its labels in the order of the part's list say
    which they are."""
    evaluator, dataset = trainer.evaluator, getattr(getattr(trainer, "dm", None), "dataset", None)
    items = images_of(dataset, part) if dataset is not None else []
    if not hasattr(evaluator, "predictions") or not items:
        return None
    paths, labels, predictions, confidences = evaluator.predictions()
    if not paths and labels == [item.label for item in items]:
        paths = [item.impath for item in items]
    if sorted(paths) != sorted(item.impath for item in items):
        return None
    return paths, labels, predictions, confidences


def write_predictions(trainer: Any, folder: str) -> None:
    """Write `predictions.csv.gz`, one row per image: path below DATASET.ROOT, label, prediction, confidence.

    Without predictions of the test part there is no such file afterwards."""
    path, found = os.path.join(folder, PREDICTIONS), predictions_of(trainer, "test")
    if found is None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
        return
    rows = [[relative_path(impath, trainer.cfg.DATASET.ROOT), label, prediction, f"{confidence:.6f}"]
            for impath, label, prediction, confidence in zip(*found)]
    # without a time stamp: the same predictions are the same bytes
    packed = gzip.compress(csv_text([COLUMNS, *rows]).encode("utf-8", "surrogateescape"), mtime=0)
    write_atomically(path, lambda file: file.write(packed))


def write_logits(trainer: Any, folder: str) -> None:
    """With TEST.SAVE_LOGITS write `logits.npz` of the part that TEST.SPLIT names: logits (N, n_cls) float32, labels
    (N,), paths below DATASET.ROOT (N,), in the order of the predictions, and classnames (n_cls,).

    Where the evaluator keeps none, that is said and there is no such file afterwards."""
    cfg, path = trainer.cfg, os.path.join(folder, LOGITS)
    if not cfg.TEST.SAVE_LOGITS:
        return
    dataset = getattr(getattr(trainer, "dm", None), "dataset", None)
    found = predictions_of(trainer, evaluated_part(cfg, dataset)) if dataset is not None else None
    logits = trainer.evaluator.scores() if hasattr(trainer.evaluator, "scores") else None
    if found is None or logits is None or len(logits) != len(found[0]):
        print(f"Note: TEST.SAVE_LOGITS: {type(trainer.evaluator).__name__} has no class scores of the images evaluated "
              f"last; {LOGITS} is not written")
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
        return
    arrays = {
        "logits": logits.numpy(),
        "labels": np.array(found[1], np.int64),
        "paths": np.array([relative_path(impath, cfg.DATASET.ROOT) for impath in found[0]]),
        "classnames": np.array([str(name) for name in trainer.dm.dataset.classnames]),
    }
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))
