"""What a training with the published settings spends, counted while it trains: a table for metaprompt method-table."""
import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import train
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.budget import COUNTS
from prompting.block_adapters import BlockAdapter
from runs.run_spec import RunSpec

ROOT = Path(__file__).resolve().parents[2]
CLASSES, SHOTS = 50, 16


class Idle:
    """In the place of a `prompting.blocks.Block`: what a pass costs does not change how many there are.

    Args:
        module: the block's module, whose trained tensors must be reached by gradients.
    """

    whole = False

    def __init__(self, module):
        self.module = module

    def query(self, x):
        return x

    def key_value(self, x):
        return torch.cat([x, x], dim=-1)

    def query_key_value(self, x):
        return torch.cat([x, x, x], dim=-1)

    def attend(self, query, keys, values, **kwargs):
        return query + values.mean(dim=-2, keepdim=True)

    def finish(self, x, seen):
        return x + seen + sum(p.mean() for p in self.module.parameters() if p.requires_grad)


class IdleBlocks:
    """In the place of `prompting.blocks.Blocks`."""

    def __init__(self, blocks):
        self.idle = [Idle(block) for block in blocks.transformer.resblocks]

    def now(self):
        return self.idle


def small_vit():
    """A CLIP with as many blocks as ViT-B/16 in both towers, random weights, one head wide, for images of 32 pixels."""
    from clip.model import CLIP

    torch.manual_seed(0)
    model = CLIP(embed_dim=64, image_resolution=32, vision_layers=12, vision_width=64, vision_patch_size=16,
                 context_length=77, vocab_size=49408, transformer_width=64, transformer_heads=1, transformer_layers=12)
    return model.float().eval().requires_grad_(False)


def write_pictures(folder):
    """Noise in the places of CLASSES x SHOTS training pictures, one validation and one test picture per class."""
    draws = np.random.RandomState(0)
    for part, number in (("train", SHOTS), ("val", 1), ("test", 1)):
        for label in range(CLASSES):
            path = Path(folder, part, f"thing {label}")
            path.mkdir(parents=True)
            for i in range(number):
                Image.fromarray(draws.randint(0, 256, (8, 8, 3), np.uint8)).save(path / f"{i}.png")


class ConfigBudgets:
    """What a training with a method's vit_b16.yaml spends on CLASSES classes x SHOTS shots, counted while it trains:
    the method's own loop, settings and loaders, on towers that compute nothing, unless something is learned beside
    their blocks.

    Args:
        data: what `write_pictures` has filled.
    """

    def __init__(self, data):
        self.data, self.clips = data, {"ViT-B/16": small_vit()}

    def __call__(self, method, whole=False):
        """{name of COUNTS: number}. When all batches of two epochs have spent the same, the other epochs are taken to
        do so, too; where batches differ (ProMetaR draws its support images), where a training has stages that last
        for epochs, and with `whole`, all are made."""
        with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(io.StringIO()):
            trainer = self.trainer(method, output)
            planned, steps, epochs = trainer.max_epoch, [], []  # counts before the first one and after each
            before_train, step, after_epoch = trainer.before_train, trainer.forward_backward, trainer.after_epoch

            def begun():
                before_train()
                steps.append(trainer.budget.counts())
                epochs.append(steps[0])

            def step_done(batch):
                summary = step(batch)
                steps.append(trainer.budget.counts())
                return summary

            def epoch_done():
                after_epoch()
                epochs.append(trainer.budget.counts())
                stages = trainer.trains_in_turns > 1
                if not (whole or stages) and len(epochs) == 3 and steady(epochs) and steady(steps):
                    trainer.max_epoch = trainer.epoch + 1

            trainer.before_train, trainer.forward_backward, trainer.after_epoch = begun, step_done, epoch_done
            trainer.train()
        made = len(epochs) - 1
        left = planned - made if made else 0
        before = epochs[-2] if left else epochs[-1]
        return {name: last + left * (last - before[name]) for name, last in epochs[-1].items()}

    def trainer(self, method, output):
        configs = ROOT / "configs"
        cfg = train.build_config(RunSpec(
            root=str(self.data), seed=1, trainer=method, output_dir=output,
            config_file=str(configs / "trainers" / method / "vit_b16.yaml"),
            dataset_config_file=str(configs / "datasets" / "image_folder.yaml"),
            options=("DATASET.NUM_SHOTS", str(SHOTS), "INPUT.SIZE", "(32,32)", "DATALOADER.NUM_WORKERS", "0",
                     "TEST.NO_TEST", "True", "VERBOSE", "False", "USE_CUDA", "False")))
        trainer = TRAINER_REGISTRY.get(method)(cfg, clips=self.clips)
        if not any(isinstance(module, BlockAdapter) for module in trainer.model.modules()):
            for tower in (trainer.towers.text, trainer.towers.image):
                tower.stack = IdleBlocks(tower.stack)
        return trainer


def steady(seen):
    """Whether counts grow by the same from each entry to the next."""
    return len({tuple(later[name] - earlier[name] for name in COUNTS) for earlier, later in zip(seen, seen[1:])}) == 1


def config_budget_rows(methods):
    """[[method, count, ...]] of the methods' vit_b16.yaml, in words."""
    with tempfile.TemporaryDirectory() as data:
        write_pictures(data)
        count = ConfigBudgets(data)
        counted = {method: count(method) for method in methods}
    return [[method, *(f"{spent[name]:,}" for name in COUNTS)] for method, spent in counted.items()]
