"""What the published base-to-new table costs: operations of every run, counted, and the time they take at a given rate;
without stored image features, and with them.

    python -m benchmarks.table_cost                # about four minutes on one core
    python -m benchmarks.table_cost --rate 40      # at so many TFLOP/s per GPU

A step's operations grow linearly with the classes: they are counted for two numbers of classes and carried on from
there, and multiplied by the steps that the methods' published settings make on 11 datasets with 16 shots and 3 seeds.
"""
import contextlib
import io
import sys
from dataclasses import dataclass

import torch
from tabulate import tabulate

from benchmarks.measure import CountOperations
from benchmarks.models import random_clip
from benchmarks.sides import Ours, Work
from dassl.config.words import ArgumentParser
from prompting import Towers
from tools.prepare_data import SOURCES
from train import command_line

DATASETS = ("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft",
            "sun397", "dtd", "eurosat", "ucf101")
SHOTS, SEEDS = 16, 3


@dataclass
class Setting:
    """configs/trainers/*/vit_b16.yaml: batch, epochs, context vectors; fewer: epochs of the datasets that have others.
    """

    batch: int
    epochs: int
    n_ctx: int
    fewer: dict[str, int]

    def epochs_of(self, dataset):
        return self.fewer.get(dataset, self.epochs)

    def steps(self, dataset):
        """Training steps of a run."""
        return max(1, SHOTS * base_classes(dataset) // self.batch) * self.epochs_of(dataset)


SETTINGS = {
    "CoOp": Setting(32, 200, 4, {"imagenet": 50}),
    "KgCoOp": Setting(128, 100, 4, {}),
    "ProGrad": Setting(32, 100, 16, {"imagenet": 50}),
    "TCP": Setting(32, 50, 4, {"imagenet": 25, "sun397": 25}),
    "DePT": Setting(4, 10, 16, {}),
    "CoCoOp": Setting(1, 10, 4, {}),
    "MetaPrompt": Setting(16, 8, 2, {}),
}
IMAGE_SIDE = ("MetaPrompt",)  # prompts its image tower: the frozen features stand beside the prompted ones
FEW, MORE = 8, 24  # classes to count with
COUNTED = 2  # images of a batch that is counted; the operations of the larger ones grow with it
GPUS = (1, 8, 256)  # 256: a cluster of 32 machines
BYTES = 4 * 512  # of a stored feature of ViT-B/16


def base_classes(dataset):
    return -(-SOURCES[dataset].expected["classes"] // 2)


def counted(work, model, stored=False):
    """Operations of one step or test batch; of the second one, when what is remembered is there.

    stored: the frozen image features are at hand."""
    with contextlib.redirect_stdout(io.StringIO()):
        ours = Ours(work, model)
    run = ours.train_step if work.stage == "train" else ours.evaluate
    if stored:  # operations do not depend on the numbers
        features = torch.randn(work.batch, model.text_projection.shape[1])
        ours.batch = {**ours.batch, "frozen" if ours.trainer.frozen_features else "img": features}
    if work.stage == "eval":
        run()
    with CountOperations() as count:
        run()
    return count.flop


def line(method, stage, batch, n_ctx, model, stored=False):
    """number of classes -> operations of a step or batch."""
    few, more = (counted(Work(method, classes, batch, n_ctx, stage=stage), model, stored)
                 for classes in (FEW, MORE))
    slope = (more - few) / (MORE - FEW)
    return lambda classes: few + slope * (classes - FEW)


def image_operations(model):
    """Operations of a frozen picture's pass through the image tower."""
    size = model.visual.input_resolution
    with CountOperations() as count, torch.no_grad():
        Towers(model).encode_image(torch.randn(COUNTED, 3, size, size))
    return count.flop / COUNTED


def runs_of(method, model, stored=False):
    """{dataset: (operations of a seed's training, of its two evaluations)}"""
    setting = SETTINGS[method]
    step = line(method, "train", setting.batch, setting.n_ctx, model, stored)
    test = line(method, "eval", COUNTED, setting.n_ctx, model, stored)
    return {name: (setting.steps(name) * step(base_classes(name)),
                   SOURCES[name].expected["test"] / COUNTED * test(base_classes(name))) for name in DATASETS}


def pictures_of(method):
    """(pictures that a method's trainings read in all seeds, that its tests read)."""
    setting = SETTINGS[method]
    return (sum(SEEDS * setting.steps(name) * min(setting.batch, SHOTS * base_classes(name)) for name in DATASETS),
            sum(SEEDS * SOURCES[name].expected["test"] for name in DATASETS))


def stored_pictures(methods):
    """(training views of all seeds, test pictures) that the store has after some methods: those of the longest."""
    views = sum(SEEDS * SHOTS * base_classes(name) * max(SETTINGS[method].epochs_of(name) for method in methods)
                for name in DATASETS)
    return views, sum(SOURCES[name].expected["test"] for name in DATASETS)


def stored_words(methods):
    """What the store has on disk after some methods."""
    views, tests = stored_pictures(methods)
    largest = {name: BYTES * (SHOTS * base_classes(name) * max(SETTINGS[method].epochs_of(name) for method in methods)
                              + SOURCES[name].expected["test"]) for name in DATASETS}
    name = max(largest, key=lambda name: largest[name])
    return (f"The store then holds {views:,} training views and {tests:,} test pictures, "
            f"{BYTES * (views + tests) / 1e9:.1f} GB; one seed of one dataset takes at most "
            f"{largest[name] / 1e9:.1f} GB ({name})")


def totals(runs):
    """(operations of all seeds' trainings, of their tests, of the longest run) of what `runs_of` gives."""
    training, testing = (SEEDS * sum(pair[i] for pair in runs.values()) for i in (0, 1))
    return training, testing, max(sum(pair) for pair in runs.values())


def table_without(found, rate):
    rows = []
    for method, (training, testing, longest) in found.items():
        hours = [max((training + testing) / number, longest) / (rate * 1e12) / 3600 for number in GPUS]
        rows.append([method, len(DATASETS) * SEEDS, f"{training / 1e15:,.1f}", f"{testing / 1e15:,.1f}",
                     f"{longest / 1e15:,.1f}", *(f"{h:.2f}" for h in hours)])
    return tabulate(rows, headers=["method", "runs", "training, PFLOP", "testing", "longest run",
                                   *(f"hours, {number} GPU{'s' if number > 1 else ''}" for number in GPUS)])


def table_with(without, stored, image, rate):
    """Each method by itself with the features at hand, and several together, which have to be encoded once."""
    def row(name, before, after, encoded=0.0, pictures=("", "")):
        return [name, f"{before / 1e15:,.1f}", f"{after / 1e15:,.1f}", f"{encoded / 1e15:,.1f}" if encoded else "-",
                f"{before / (after + encoded):.1f}", f"{(after + encoded) / (rate * 1e12) / 3600:.2f}", *pictures]

    def both(found, methods):
        return sum(sum(found[method][:2]) for method in methods)

    rows = [row(f"{method}, features at hand", both(without, [method]), both(stored, [method]),
                pictures=(f"{sum(pictures_of(method)) / 1e6:.2f}", "-" if method not in IMAGE_SIDE else
                          f"{sum(pictures_of(method)) / 1e6:.2f}"))
            for method in without]
    text_side = [method for method in without if method not in IMAGE_SIDE]
    for name, methods in (("text-side methods together", text_side), ("all of them", list(without)),
                          ("ten settings of CoOp", 10 * ["CoOp"])):
        encoded = sum(stored_pictures(methods))
        read = encoded + sum(sum(pictures_of(method)) for method in methods if method in IMAGE_SIDE)
        rows.append(row(f"{name}, nothing at hand", both(without, methods), both(stored, methods), encoded * image,
                        (f"{sum(sum(pictures_of(method)) for method in methods) / 1e6:.2f}", f"{read / 1e6:.2f}")))
    return tabulate(rows, headers=["with the feature store", "without, PFLOP", "with", "encoding once", "ratio",
                                   "hours, 1 GPU", "pictures read without, millions", "with"], disable_numparse=True)


def main(argv=None):
    parser = ArgumentParser(prog="python -m benchmarks.table_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=40.0, help="TFLOP/s that a GPU sustains; an assumption")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = random_clip("ViT-B/16")
    image, without, stored = image_operations(model), {}, {}
    for method, setting in SETTINGS.items():
        warm = runs_of(method, model, stored=True)
        stored[method] = totals(warm)
        if method in IMAGE_SIDE:
            without[method] = totals(runs_of(method, model))
        else:  # a step of a text-side method is one with features at hand, and the images' passes
            without[method] = totals({
                name: (training + image * setting.steps(name) * min(setting.batch, SHOTS * base_classes(name)),
                       testing + image * SOURCES[name].expected["test"]) for name, (training, testing) in warm.items()})
    print(f"{len(DATASETS)} datasets, {SHOTS} shots, {SEEDS} seeds, ViT-B/16; hours at {args.rate:g} TFLOP/s per GPU, "
          "one run per GPU")
    print(table_without(without, args.rate), table_with(without, stored, image, args.rate), sep="\n\n")
    print(f"\n{stored_words(list(without))}")


if __name__ == "__main__":
    sys.exit(command_line(main))
