"""The protocols of the papers, one implementation: many runs in one process with one loaded CLIP, then a table.

    python tools/protocol.py base2new --trainer MetaPrompt --dataset caltech101
    python tools/protocol.py dg --trainer MetaPrompt --dataset pacs
    python tools/protocol.py compare --dataset caltech101

The scripts in scripts/ call this. Runs that are finished are taken over, interrupted ones go on.
"""
import argparse
import os
import statistics
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from tabulate import tabulate  # noqa: E402

import train  # noqa: E402
from dassl.config import get_cfg_default, merge_file  # noqa: E402
from dassl.data.datasets import DATASET_REGISTRY  # noqa: E402
from dassl.engine import TRAINER_REGISTRY  # noqa: E402
from dassl.utils import InputError  # noqa: E402
from dassl.utils.registry import nearest  # noqa: E402
from prompting import load_clip  # noqa: E402
from prompting.backbone import SHIPPED  # noqa: E402

COMPARED = ("ZeroshotCLIP", "CoOp", "CoCoOp", "MetaPrompt")
BASE2NEW_SHOTS, DG_SHOTS = 16, 1


PROTOCOLS = {
    "base2new": "train on the first half of the classes, test on both halves",
    "dg": "train on all domains of a dataset but one, test on that one",
    "compare": "base2new for several methods side by side",
}


def parse_arguments(argv):
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--trainer", nargs="+", help="the method, or for compare several "
                                                     f"(default {' '.join(COMPARED)})")
    shared.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default 1 2 3")
    shared.add_argument("--dataset", required=True, help="name of a config in configs/datasets, or a YAML file")
    shared.add_argument("--cfg", default="", help="name of a config in configs/trainers/<trainer>, or a YAML file; "
                                                  "default vit_b16; tiny for that CLIP, clip64 for a CLIP file of "
                                                  "64-pixel images")
    shared.add_argument("--root", default="data", help="folder that holds the datasets (default data)")
    shared.add_argument("--output", default="output", help="folder of all run folders (default output)")
    shared.add_argument("--shots", type=int, help="images a class (dg: a class and domain); default 16, dg 1")
    shared.add_argument("--backbone", default="", help="a CLIP by name or a weights file, instead of the config's")
    shared.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE", help="more methods")
    shared.add_argument("opts", nargs=argparse.REMAINDER, help="config options for every run: KEY VALUE ...")
    parser = train.ArgumentParser(description="Run a protocol over seeds and print its table.")
    protocols = parser.add_subparsers(dest="protocol", required=True, metavar="PROTOCOL")
    for name, text in PROTOCOLS.items():
        protocols.add_parser(name, parents=[shared], help=text, description=text)
    return train.give_back_options(parser.parse_args(argv), "trainer")


class Protocol:
    """What the runs of one call share: places, seeds, options, the loaded CLIP."""

    def __init__(self, args):
        self.args = args
        self.dataset_file = self.config_file("datasets", args.dataset)
        self.dataset = os.path.splitext(os.path.basename(self.dataset_file))[0]
        self.dataset_config = get_cfg_default()
        merge_file(self.dataset_config, self.dataset_file)
        args.backbone = args.backbone or self.dataset_config.MODEL.BACKBONE.NAME
        if os.path.isfile(args.backbone):
            args.backbone = os.path.abspath(args.backbone)
        self.clips = {}
        self.shots = args.shots or (DG_SHOTS if args.protocol == "dg" else BASE2NEW_SHOTS)

    @staticmethod
    def config_file(folder, name):
        """A YAML file by its name in configs/<folder>, or by its path."""
        if name.endswith((".yaml", ".yml")):
            return name
        folder = os.path.join(ROOT, "configs", folder)
        path = os.path.join(folder, f"{name}.yaml")
        if not os.path.isfile(path):
            known = sorted(os.path.splitext(f)[0] for f in os.listdir(folder)) if os.path.isdir(folder) else []
            raise InputError(f"no config {path}{nearest(name, known)}; there are: {', '.join(known) or 'none'}; "
                             "or give a YAML file")
        return path

    def method_config(self, trainer):
        """(name, file) of the config a method runs with."""
        name = self.args.cfg or self.default_config()
        if self.args.protocol == "dg" and not self.args.cfg:
            special = os.path.join(ROOT, "configs", "trainers", trainer, f"{name}_dg.yaml")
            name = f"{name}_dg" if os.path.isfile(special) else name
        path = self.config_file(os.path.join("trainers", trainer), name)
        return os.path.splitext(os.path.basename(path))[0], path

    def default_config(self):
        backbone = self.args.backbone
        if backbone in SHIPPED:
            return backbone
        if not os.path.isfile(backbone):  # a published name, or one that load_clip will refuse
            return "vit_b16"
        if backbone not in self.clips:
            self.clips[backbone] = load_clip(backbone)
        size = self.clips[backbone].visual.input_resolution
        return "vit_b16" if size == 224 else f"clip{size}"

    def run(self, trainer, folder, seed, *words, options=()):
        """One run of `train.main` in output/<folder>; its results."""
        args, (_, config) = self.args, self.method_config(trainer)
        output = os.path.join(args.output, *folder, f"seed{seed}")
        argv = ["--root", args.root, "--seed", str(seed), "--trainer", trainer, "--dataset-config-file",
                self.dataset_file, "--config-file", config, "--output-dir", output, *words]
        if args.backbone:
            argv += ["--backbone", args.backbone]
        for plugin in args.plugin:
            argv += ["--plugin", plugin]
        argv += ["DATASET.NUM_SHOTS", str(self.shots), *options, *args.opts]
        return train.main(argv, clips=self.clips)

    # ---- base to new ----
    def base2new(self, trainer):
        """[(seed, base, new, seconds)]; new is None for a method bound to its training classes."""
        name, _ = self.method_config(trainer)
        tail = (self.dataset, f"shots_{self.shots}", trainer, name)
        rows = []
        for seed in self.args.seeds:
            train_folder = ("base2new", "train_base", *tail)
            base = self.run(trainer, train_folder, seed, options=("DATASET.SUBSAMPLE_CLASSES", "base"))
            new, seconds = None, base["seconds"]
            if not base["class_bound"]:
                trained = os.path.join(self.args.output, *train_folder, f"seed{seed}")
                result = self.run(trainer, ("base2new", "test_new", *tail), seed, "--eval-only", "--model-dir", trained,
                                  options=("DATASET.SUBSAMPLE_CLASSES", "new"))
                new, seconds = accuracy(result), seconds + result["seconds"]
            rows.append((seed, accuracy(base), new, seconds))
        return rows

    # ---- leave one domain out ----
    def dg(self, trainer):
        """{target domain: [accuracy a seed]}"""
        dataset = DATASET_REGISTRY.get(self.dataset_config.DATASET.NAME)
        if len(dataset.domains) < 2:
            raise InputError(f"{dataset.__name__} has no domains; dg needs a dataset such as pacs")
        name, _ = self.method_config(trainer)
        table = {}
        for target in dataset.domains:
            sources = [domain for domain in dataset.domains if domain != target]
            folder = ("dg", self.dataset, f"shots_{self.shots}", trainer, name, target)
            table[target] = [accuracy(self.run(trainer, folder, seed, "--source-domains", *sources,
                                               "--target-domains", target)) for seed in self.args.seeds]
        return table


def accuracy(results):
    """Test accuracy in percent. Raises InputError for a run that was kept from testing."""
    if "test" not in results["metrics"]:
        raise InputError("a protocol's table needs test accuracies; leave out TEST.NO_TEST and TEST.SPLIT")
    return results["metrics"]["test"]["accuracy"]


def harmonic(base, new):
    """H = 2 / (1 / base + 1 / new), 0 when either is."""
    return 2 * base * new / (base + new) if base + new else 0.0


def spread(values):
    """"mean +- standard deviation" (over seeds, n - 1), or the value alone for one seed; "-" where there is none."""
    if any(value is None for value in values):
        return "-"
    mean = statistics.mean(values)
    return f"{mean:.2f} +- {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def number(value):
    return "-" if value is None else f"{value:.2f}"


def base2new_table(rows):
    """A row a seed, then the mean; H of the mean is the H of the averaged base and new."""
    lines = [[f"seed {seed}", number(base), number(new), number(new and harmonic(base, new))]
             for seed, base, new, _ in rows]
    return tabulate([*lines, ["mean", *summary(rows)]], headers=["", "base", "new", "H"], disable_numparse=True,
                    colalign=("left", "right", "right", "right"))


def summary(rows):
    """base, new, H as they stand in a table."""
    base, new = [row[1] for row in rows], [row[2] for row in rows]
    if any(value is None for value in new):
        return spread(base), "-", "-"
    return spread(base), spread(new), f"{harmonic(statistics.mean(base), statistics.mean(new)):.2f}"


def compare_table(results):
    lines = [[trainer, *summary(rows), f"{statistics.mean(row[3] for row in rows):.0f}"]
             for trainer, rows in results.items()]
    return tabulate(lines, headers=["method", "base", "new", "H", "seconds a seed"], disable_numparse=True,
                    colalign=("left", "right", "right", "right", "right"))


def dg_table(table, seeds):
    targets = list(table)
    averages = [statistics.mean(table[target][i] for target in targets) for i in range(len(seeds))]
    lines = [[f"seed {seed}", *(number(table[target][i]) for target in targets), number(averages[i])]
             for i, seed in enumerate(seeds)]
    lines.append(["mean", *(spread(table[target]) for target in targets), spread(averages)])
    return tabulate(lines, headers=["", *targets, "average"], disable_numparse=True,
                    colalign=("left", *["right"] * (len(targets) + 1)))


def main(argv=None):
    args = parse_arguments(argv)
    train.discover(args.plugin)
    trainers = args.trainer or (list(COMPARED) if args.protocol == "compare" else [])
    if not trainers or (args.protocol != "compare" and len(trainers) > 1):
        raise InputError(f"{args.protocol} needs one --trainer")
    if min(args.seeds) < 0:
        raise InputError(f"--seeds are numbers from 0 on, not {min(args.seeds)}")
    for trainer in trainers:
        TRAINER_REGISTRY.get(trainer)
    protocol = Protocol(args)
    figures, started, seeds = [], time.time(), ", ".join(map(str, args.seeds))
    if args.protocol == "dg":
        table = dg_table(protocol.dg(trainers[0]), args.seeds)
        title = f"{trainers[0]} on {protocol.dataset}, leave one domain out: accuracy (%) on each target domain"
        shots = f"{protocol.shots} shots a class and domain"
    else:
        results = {trainer: protocol.base2new(trainer) for trainer in trainers}
        table = (compare_table(results) if args.protocol == "compare" else base2new_table(results[trainers[0]]))
        title = f"{', '.join(trainers)} on {protocol.dataset}, base to new: accuracy (%)"
        shots = f"{protocol.shots} shots a class"
        if args.protocol == "compare":
            from tools.plot import base_against_new  # matplotlib only where a figure is wanted

            name = os.path.join(args.output, "base2new", f"{protocol.dataset}_shots_{protocol.shots}")
            figures = base_against_new(results, name, f"{protocol.dataset}, {shots}, {len(args.seeds)} seeds")
    print(f"\n{title}\n{shots}, seeds {seeds}, backbone {args.backbone or 'of the config'}, "
          f"results in {args.output}, {time.time() - started:.0f} s\n\n{table}")
    if figures:
        print(f"\nFigure: {', '.join(figures)}")
    return table


if __name__ == "__main__":
    sys.exit(train.command_line(main))
