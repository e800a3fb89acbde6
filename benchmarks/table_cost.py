"""What the published base-to-new table costs: operations of every run, counted, and the time they take at a given rate.

    python -m benchmarks.table_cost                # about three minutes on one core
    python -m benchmarks.table_cost --rate 40      # at so many TFLOP/s per GPU

A step's operations grow linearly with the classes: they are counted for two numbers of classes and carried on from
there, and multiplied by the steps that the methods' published settings make on 11 datasets with 16 shots and 3 seeds.
"""
import sys

import torch
from tabulate import tabulate

from benchmarks.measure import CountOperations
from benchmarks.models import random_clip
from benchmarks.sides import Ours, Work
from dassl.config.words import ArgumentParser
from tools.prepare_data import SOURCES
from train import command_line

DATASETS = ("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft",
            "sun397", "dtd", "eurosat", "ucf101")
SHOTS, SEEDS = 16, 3
SETTINGS = {  # configs/trainers/*/vit_b16.yaml: batch, epochs, epochs on ImageNet, context vectors
    "CoOp": (32, 200, 50, 4),
    "CoCoOp": (1, 10, 10, 4),
    "MetaPrompt": (16, 8, 8, 2),
}
FEW, MORE = 8, 24  # classes to count with
GPUS = (1, 8, 256)  # 256: a cluster of 32 machines


def counted(work, model):
    """Operations of one step or test batch; of the second one, when what is remembered is there."""
    ours = Ours(work, model)
    run = ours.train_step if work.stage == "train" else ours.evaluate
    if work.stage == "eval":
        run()
    with CountOperations() as count:
        run()
    return count.flop


def line(method, stage, batch, n_ctx, model):
    """number of classes -> operations of a step or batch."""
    few, more = (counted(Work(method, classes, batch, n_ctx, stage=stage), model) for classes in (FEW, MORE))
    slope = (more - few) / (MORE - FEW)
    return lambda classes: few + slope * (classes - FEW)


def runs_of(method, model):
    """{dataset: (operations of a seed's training, of its two evaluations)}"""
    batch, epochs, epochs_imagenet, n_ctx = SETTINGS[method]
    step, test = line(method, "train", batch, n_ctx, model), line(method, "eval", 2, n_ctx, model)
    found = {}
    for name in DATASETS:
        expected = SOURCES[name].expected
        base = -(-expected["classes"] // 2)
        steps = (SHOTS * base // batch) * (epochs_imagenet if name == "imagenet" else epochs)
        found[name] = steps * step(base), expected["test"] / 2 * test(base)
    return found


def main(argv=None):
    parser = ArgumentParser(prog="python -m benchmarks.table_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=40.0, help="TFLOP/s that a GPU sustains; an assumption")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = random_clip("ViT-B/16")
    rows = []
    for method in SETTINGS:
        found = runs_of(method, model)
        training, testing = (SEEDS * sum(pair[i] for pair in found.values()) for i in (0, 1))
        longest = max(sum(pair) for pair in found.values())
        hours = [max((training + testing) / number, longest) / (args.rate * 1e12) / 3600 for number in GPUS]
        rows.append([method, len(found) * SEEDS, f"{training / 1e15:,.1f}", f"{testing / 1e15:,.1f}",
                     f"{longest / 1e15:,.1f}", *(f"{h:.2f}" for h in hours)])
    print(f"11 datasets, {SHOTS} shots, {SEEDS} seeds, ViT-B/16; hours at {args.rate:g} TFLOP/s per GPU, "
          "one run per GPU")
    print(tabulate(rows, headers=["method", "runs", "training, PFLOP", "testing", "longest run",
                                  *(f"hours, {number} GPU{'s' if number > 1 else ''}" for number in GPUS)]))


if __name__ == "__main__":
    sys.exit(command_line(main))
