"""The plugins of tests/plugins/kinds: what they are called, the settings of their runs, and these runs in one process
or in several.

    python tests/kinds.py FOLDER NAME ...     # what each of the processes started by torchrun does
"""
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import ranks
import torch

import train
from dassl.utils import rank
from datasets import shapes

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "tests" / "conformance" / "tiny.yaml"
SHOTS, EPOCHS = 8, 3


def part_sizes(tested):
    """Pictures per class of each part. Those of fewer tested ones are among those of more."""
    return {"photo": (SHOTS, 1, tested)} | dict.fromkeys(shapes.DOMAINS[1:], (1, 1, 1))


class Kind(NamedTuple):
    """file: in tests/plugins/kinds; options: of its run; gain: points of accuracy that it must be above zero-shot CLIP
    on the test pictures, half of what was measured; trains: whether it has a training; tested: how many test pictures
    per class it is run on; surer: by how many nats the entropy of its predictions must be below zero-shot CLIP's, None
    where it need not."""

    file: str
    options: tuple
    gain: float
    trains: bool = True
    tested: int = 10
    surer: float | None = None

    @property
    def path(self):
        return ROOT / "tests" / "plugins" / "kinds" / self.file


KINDS = {
    "LoRAParametrized": Kind("lora_parametrized.py", ("OPTIM.LR", 0.02), 10),
    "LoRAWrapped": Kind("lora_wrapped.py", ("OPTIM.LR", 0.05), 12.5),
    "LayerNormTuning": Kind("layer_norm.py", ("OPTIM.LR", 0.5), 14),
    "FineTunedAverage": Kind("fine_tuned.py", ("OPTIM.LR", 0.02), 3.5),
    # The tiny CLIP gains nothing by it, and loses with larger updates: it knows fewer of the views than of the images.
    "EntropyOverViews": Kind("entropy.py", ("TRAINER.ENTROPYOVERVIEWS.LR", 0.0005, "DATALOADER.TEST.BATCH_SIZE", 10), 0,
                             trains=False, tested=2, surer=0.001),
    "FeatureCache": Kind("feature_cache.py", (), 1.5, trains=False),
    "BatchPrototypes": Kind("batch_prototypes.py", (), 1.25, trains=False),
    "PatchAttention": Kind("patch_tokens.py", ("OPTIM.LR", 0.5), 7.5),
}


def draw(root):
    """Draw what the runs read."""
    with mock.patch.object(shapes, "PART_SIZES", part_sizes(max(kind.tested for kind in KINDS.values()))):
        shapes.write_shapes(str(root / "shapes"))


def run(name, root, folder, clips, *options, tested=None):
    """The results of a run on the base classes.

    Args:
        name: one of KINDS or another registered trainer; root: where `draw` has drawn.
        tested: test pictures per class; default the kind's.
    """
    kind = KINDS.get(name, Kind("", (), 0))
    words = (
        "--root", root, "--seed", 1, "--trainer", name, "--dataset-config-file",
        ROOT / "configs" / "datasets" / "shapes.yaml", "--config-file", CONFIG, "--output-dir", folder,
        *(("--plugin", kind.path) if kind.file else ()), "DATASET.NUM_SHOTS", SHOTS, "DATASET.SUBSAMPLE_CLASSES",
        "base", "OPTIM.MAX_EPOCH", EPOCHS, "DATALOADER.TRAIN_X.BATCH_SIZE", 32, "DATALOADER.TEST.BATCH_SIZE", 100,
        "DATALOADER.NUM_WORKERS", 0, "USE_CUDA", False, "VERBOSE", False, "TRAIN.PRINT_FREQ", 0,
        "TRAIN.CHECKPOINT_FREQ", 1, "TEST.SAVE_LOGITS", True, *kind.options, *options)
    with mock.patch.object(shapes, "PART_SIZES", part_sizes(tested or kind.tested)):
        return train.main([str(word) for word in words], clips=clips)


def logits_in(folder):
    """The logits of a run's test images."""
    with np.load(folder / "logits.npz") as kept:
        return torch.from_numpy(kept["logits"])


def small_runs(folder, names):
    """{name: what a run of one epoch with 20 test images gave}; see tests/ranks.py."""
    return {name: ranks.make_run(folder / name, name, ranks.BASE, (
        "--plugin", KINDS[name].path, "--config-file", CONFIG, "--root", folder.parent / "data"),
        more=KINDS[name].options) for name in names}


def main(folder, *names):
    torch.set_num_threads(1)
    found = small_runs(Path(folder), names)
    if rank() == 0:
        torch.save(found, Path(folder) / "found.pt")


if __name__ == "__main__":
    sys.exit(train.command_line(lambda: main(*sys.argv[1:])))
