"""What is measured with and without the feature store runs on this: pictures and weights that are made on the spot, and
runs and trainers on them, as train.py builds them."""
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import train
from benchmarks.loader import draw_picture
from benchmarks.measure import TOLERANCE, timed
from benchmarks.models import class_names, random_clip
from dassl.data import contents
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from prompting import load_clip
from runs.build_config import build

ROOT = Path(__file__).resolve().parents[1]
SEED = 1
BATCH = 32


@dataclass
class Place:
    """The folder of a measurement: data, weights, and what its runs write.

    backbone: "ViT-B/16", of random weights, or "tiny".
    """

    folder: Path
    backbone: str = "ViT-B/16"

    @property
    def weights(self) -> str:
        """What --backbone is given: a weights file, written when it is first asked for."""
        if self.backbone == "tiny":
            return self.backbone
        path = self.folder / "vit_b16.safetensors"
        if not path.is_file():  # in half precision, as OpenAI's are
            tensors = random_clip(self.backbone).half().state_dict()
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        return str(path)

    def data(self, classes: int, train_pictures: int, test_pictures: int) -> str:
        """The folder of a dataset with so many JPEG pictures per class, drawn when it is first asked for."""
        root = self.folder / f"data_{classes}_{train_pictures}_{test_pictures}"
        if not root.is_dir():
            unfinished, rng = root.with_name(f"{root.name}.part"), np.random.RandomState(SEED)
            for part, number in (("train", train_pictures), ("test", test_pictures)):
                for name in class_names(classes):
                    os.makedirs(unfinished / part / name, exist_ok=True)
                    for picture in range(number):
                        draw_picture(unfinished / part / name / f"{picture:03d}.jpg", rng)
            unfinished.rename(root)
        return str(root)

    def clips(self) -> dict:
        """{name of the backbone: the loaded CLIP}, which all runs of a measurement share, as those of a protocol do."""
        return {self.weights: load_clip(self.weights)}

    def words(self, method: str, data: str, run: str, store: Path | None, batch: int = BATCH, options=()) -> list[str]:
        """The words of train.py for a run.

        Args:
            run: the name of its folder; store: the folder of the feature store, None: it does without.
        """
        kind = "tiny" if self.backbone == "tiny" else "vit_b16"
        stored = ["STORE.USE", False] if store is None else ["STORE.DIR", store]
        return [str(word) for word in (
            "--root", data, "--seed", SEED, "--trainer", method, "--backbone", self.weights,
            "--dataset-config-file", ROOT / "configs" / "datasets" / "image_folder.yaml",
            "--config-file", ROOT / "configs" / "trainers" / method / f"{kind}.yaml",
            "--output-dir", self.folder / run, "OPTIM.MAX_EPOCH", 1, "OPTIM.WARMUP_EPOCH", 0,
            "DATALOADER.TRAIN_X.BATCH_SIZE", batch, "DATALOADER.NUM_WORKERS", 0, "TEST.SAVE_LOGITS", True,
            f"TRAINER.{method.upper()}.PREC", "fp32", "USE_CUDA", False, "VERBOSE", False, *stored, *options)]


def trainer_of(words: list[str], clips: dict):
    """The trainer of a run."""
    train.discover()
    built = build(train.parse_arguments(words))
    set_random_seed(built.cfg.SEED)
    trainer = build_trainer(built.cfg, clips=clips)
    trainer.num_batches = 10**9  # no step is the last of its epoch
    return trainer


def steps(trainer, number: int):
    """The first steps of the first epoch, with all that the loader does for them -> (losses, gradients applied)."""
    losses: list[float] = []
    gradients: list[torch.Tensor] = []
    apply_gradients = trainer.apply_gradients

    def noted(found, *args, **kwargs):
        gradients.extend(gradient.detach().clone() for gradient in found)
        return apply_gradients(found, *args, **kwargs)

    trainer.apply_gradients, trainer.epoch = noted, 0
    trainer.set_model_mode("train")
    trainer.train_loader_x.batch_sampler.set_epoch(0)
    for trainer.batch_idx, batch in zip(range(number), trainer.train_loader_x):
        losses += [trainer.forward_backward(batch)["loss"], *map(float, getattr(trainer, "held_out_losses", ()))]
    if trainer.batch_idx != number - 1:
        raise AssertionError(f"{trainer.batch_idx + 1} steps, not {number}")
    return losses, gradients


def evaluation(trainer):
    """Logits (N, n_cls) of the test pictures, and the loader's work for them."""
    trainer.test()
    return trainer.evaluator.scores()


def forget_files() -> None:
    """Let this process know no more of the pictures' contents than a new one does."""
    contents._KNOWN.clear()


def in_turns(sides: dict, pairs: int):
    """Measure sides one after the other, again and again.

    Args:
        sides: {name: function (number of the turn) -> function to measure}; the first is made beforehand.
    Returns:
        ({"pairs", name: {"clock", "processor": [seconds]}}, {name: what the last one gave})
    """
    found: dict = {"pairs": pairs, **{name: {"clock": [], "processor": []} for name in sides}}
    results = {}
    for turn in range(pairs):
        for name, prepared in sides.items():
            run = prepared(turn)
            forget_files()
            results[name], clock, processor = timed(run, "cpu")
            found[name]["clock"].append(clock)
            found[name]["processor"].append(processor)
    return found, results


def require_equal(what: str, differences: list[float]) -> None:
    """Raise AssertionError where two sides differ by more than rounding."""
    if not max(differences) < TOLERANCE:
        raise AssertionError(f"{what}: the sides differ by {max(differences):.1e}, more than {TOLERANCE:.0e}")
