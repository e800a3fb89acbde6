"""Run folders as a finished protocol leaves them, with predictions that a test chooses."""
import csv
import gzip
import json
from pathlib import Path

import numpy as np

from dassl.engine.run_record import COLUMNS
from protocols import Place


def write_run(output, place, right, backbone="ViT-B/16", shots=None, train="a", test="b", predictions=True,
              images=None):
    """A run folder of a Place below `output`.

    Args:
        right: (N,) bool, whether each of the N test images is classified correctly.
        shots, train, test: what the run says of itself; train and test are the digests.
        images: the folder of the test images; default one per part (of sdg: per target).
    Returns:
        the folder.
    """
    folder, images = Path(output) / place.folder, images or place.part.split("/")[-1]
    folder.mkdir(parents=True)
    results = {
        "trainer": place.trainer, "dataset": place.dataset, "seed": place.seed,
        "metrics": {"test": {"accuracy": 100 * float(np.mean(right))}}, "seconds": 1.0,
        "dataset_digest": {"train": train * 64, "val": None, "test": test * 64},
        "config": {"MODEL": {"BACKBONE": {"NAME": backbone}},
                   "DATASET": {"NUM_SHOTS": place.shots if shots is None else shots}},
    }
    (folder / "results.json").write_text(json.dumps(results))
    if predictions:
        with gzip.open(folder / "predictions.csv.gz", "wt", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows([f"{images}/{i}.png", 1, int(hit), 0.5] for i, hit in enumerate(right))
    return folder


def base2new(trainer, seed=1, part="train_base", dataset="dtd", shots=16, config="vit_b16"):
    return Place("base2new", dataset, trainer, config, part, shots, seed)


def share(right, total=100):
    """(total,) bool, the first `right` of them True."""
    return np.arange(total) < right
