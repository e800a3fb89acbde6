"""What is kept of a finished run beside its accuracies: what it was made on, with what, and every prediction."""
import contextlib
import csv
import gzip
import io
import os
import platform
import sys

import numpy as np
import PIL
import psutil
import torch
import torchvision

from dassl.data.datasets import dataset_digest, relative_path
from dassl.utils import count_num_param, world_size, write_atomically

try:
    import resource
except ImportError:  # on Windows
    resource = None

PREDICTIONS = "predictions.csv.gz"
COLUMNS = ("path", "label", "prediction", "confidence")


def describe_run(trainer):
    """The facts of results.json that do not depend on the kind of trainer; a foreign one lacks some.

    Returns:
        dict of classes and domains (accuracies of the test part), dataset_digest, untested_classes (names, where a
        class has no test image), backbone, trained_parameters, device, device_name, peak_memory (bytes), processes,
        versions.
    """
    facts = {}
    if test_predictions(trainer) is not None and hasattr(trainer.evaluator, "breakdown"):
        facts.update(trainer.evaluator.breakdown())
    dataset = getattr(getattr(trainer, "dm", None), "dataset", None)
    if dataset is not None:
        facts["dataset_digest"] = dataset_digest(dataset, trainer.cfg.DATASET.ROOT)
        if untested := getattr(dataset, "untested_classes", None):
            facts["untested_classes"] = list(untested)
    return {
        **facts,
        "backbone": trainer.backbone_facts,
        "trained_parameters": trained_parameters(trainer),
        "device": str(trainer.device),
        "device_name": device_name(trainer.device),
        "peak_memory": peak_memory(trainer.device),
        "processes": world_size(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "torchvision": torchvision.__version__, "numpy": np.__version__, "Pillow": PIL.__version__,
                     "cuda": torch.version.cuda if trainer.device.type == "cuda" else None},
    }


def trained_parameters(trainer):
    """How many numbers the trainer's registered models learn."""
    if not getattr(trainer, "trains", True):
        return 0
    parameters = {id(p): p for name in trainer.get_model_names() if trainer._models[name] is not None
                  for p in trainer._models[name].parameters() if p.requires_grad}
    return count_num_param(params=parameters.values())


def device_name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def peak_memory(device):
    """Bytes: the most that torch held on the GPU in this run; on a CPU the most that the process held so far, which in
    a process of many runs may be an earlier run's."""
    if device.type == "cuda":
        return {"of": "cuda", "bytes": torch.cuda.max_memory_allocated(device)}
    if resource is None:
        memory = psutil.Process().memory_info()
        return {"of": "process", "bytes": getattr(memory, "peak_wset", memory.rss)}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"of": "process", "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def test_predictions(trainer):
    """(paths, labels, predictions, confidences) when the last evaluation was of the test part, else None.

    A foreign trainer with a `test` of its own may not hand on the files; its labels in the order of the test list say
    which they are."""
    evaluator, dataset = trainer.evaluator, getattr(getattr(trainer, "dm", None), "dataset", None)
    if not hasattr(evaluator, "predictions") or dataset is None or not dataset.test:
        return None
    paths, labels, predictions, confidences = evaluator.predictions()
    if not paths and labels == [item.label for item in dataset.test]:
        paths = [item.impath for item in dataset.test]
    if sorted(paths) != sorted(item.impath for item in dataset.test):
        return None
    return paths, labels, predictions, confidences


def write_predictions(trainer, folder):
    """Write `predictions.csv.gz`, a row an image: path below DATASET.ROOT, label and prediction (numbers), confidence.

    Without predictions of the test part there is no such file afterwards."""
    path, found = os.path.join(folder, PREDICTIONS), test_predictions(trainer)
    if found is None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for impath, label, prediction, confidence in zip(*found):
        writer.writerow([relative_path(impath, trainer.cfg.DATASET.ROOT), label, prediction, f"{confidence:.6f}"])
    # without a time stamp: the same predictions are the same bytes
    packed = gzip.compress(text.getvalue().encode(), mtime=0)
    write_atomically(path, lambda file: file.write(packed))
