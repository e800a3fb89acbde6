"""What the tools cost where a sweep has thousands of finished runs: processor time and memory of each.

    python -m benchmarks.many_runs                 # 3,000 runs in a temporary folder
    python -m benchmarks.many_runs --runs 300 --docs docs    # also writes the section of docs/SPEED.md

The sweep is few-shot curves of four methods and two variants of each on five datasets: the pictures of one are there,
so that its lists are built and compared, those of the others are not. No run is trained: folders are written as
finished runs leave them, with drawn predictions.
"""
import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import train
from benchmarks import page
from dassl.config import own_cfg, write_config
from dassl.config.words import ArgumentParser
from dassl.engine.identity import plain
from dassl.engine.run_folder import Sources
from dassl.engine.run_record import COLUMNS, PREDICTIONS
from dassl.utils import InputError
from prompting.backbone import weights_digest
from tools import protocol
from tools.running.plans import Planner

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("CoOp", "KgCoOp", "ProGrad", "CLIPAdapter")
VARIANTS = ("--variant", "low", "OPTIM.LR", "0.0001", "--variant", "long", "OPTIM.MAX_EPOCH", "77")
DATASETS = ("shapes", "caltech101", "dtd", "eurosat", "ucf101")  # only the pictures of the first are there
SHOTS = (1, 2, 4, 8, 16)
CLASSES, IMAGES = 100, 500
PER_SEED = len(METHODS) * 3 * len(SHOTS)  # runs of a dataset and a seed
COMMANDS = {
    "`metaprompt protocol compare --dry-run`": ("protocol", "--dry-run"),
    "`metaprompt protocol compare --status`": ("protocol", "--status"),
    "`metaprompt protocol compare --table`": ("protocol", "--table"),
    "`metaprompt report`": ("report",),
    "`metaprompt plot`": ("plot",),
}

# In the process itself: what a parent sees of a child's memory includes its own.
CHILD = """
import atexit, re, runpy, sys, time

def tell():
    with open("/proc/self/status") as file:
        peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", file.read())[1])
    print(f"\\n{time.process_time()} {peak}", file=sys.stderr)

atexit.register(tell)
sys.argv = sys.argv[1:]
sys.path.insert(0, "")
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
ABOUT = """\
Made by `python -m benchmarks.many_runs --docs docs`; `benchmarks.all` leaves this section as it is. What each tool
costs over a folder of finished few-shot runs (five datasets, twelve rows of methods, five numbers of shots), in a
process of its own and with its imports."""


def words(folder, seeds, datasets=DATASETS):
    """The words of the sweep for metaprompt protocol: compare."""
    return ["compare", "--protocol", "fewshot", "--trainer", *METHODS, "--dataset", *datasets, "--seeds",
            *map(str, range(1, seeds + 1)), "--shots", *map(str, SHOTS), "--backbone", "tiny", "--root",
            str(Path(folder, "data")), "--output", str(Path(folder, "output")), *VARIANTS]


def write_runs(folder, seeds, datasets=DATASETS):
    """The sweep's run folders below `folder`/output, finished. Returns the runs, a list of `protocols.Run`."""
    args = protocol.parse_arguments(words(folder, seeds, datasets))
    train.discover()
    protocol.check_arguments(args)
    planner = Planner(args.root, args.output, args.seeds, backbone=args.backbone, variants=args.variant)
    runs, draws = planner.plan(args.protocol, args.trainer, args.dataset, args.shots), np.random.default_rng(0)
    lists: dict[str, dict[str, str]] = {}
    for run in runs:
        write_run(run, draws, lists)
    return runs


def write_run(run, draws, lists):
    """A run's folder. draws: a numpy Generator; lists: {}, filled: the digests of what datasets list."""
    cfg = run.check()
    digest, _ = Sources(cfg, weights_digest, lists).data()
    right = draws.random(IMAGES) < draws.normal(0.7, 0.02)
    names = [f"class number {i}" for i in range(CLASSES)]
    of_class = np.arange(IMAGES) % CLASSES
    confusion = np.zeros((CLASSES, CLASSES), int)
    guessed = np.where(right, of_class, (of_class + 1) % CLASSES)
    np.add.at(confusion, (of_class, guessed), 1)
    results = {
        "trainer": cfg.TRAINER.NAME, "dataset": cfg.DATASET.NAME, "seed": cfg.SEED,
        "metrics": {"test": {"accuracy": 100 * right.mean(), "error_rate": 100 - 100 * right.mean(), "macro_f1": 70.0}},
        "overlap": {"train": 0, "of": IMAGES, "test": 0},
        "evaluation": {"eval_only": False, "load_epoch": None, "checkpoint": None}, "changed": {}, "stopped": None,
        "class_bound": False, "seconds": 12.5,
        "classes": {"name": names, "total": [IMAGES // CLASSES] * CLASSES,
                    "accuracy": (100 * confusion.diagonal() / (IMAGES // CLASSES)).tolist()},
        "domains": {}, "confusion": confusion.tolist(),
        "dataset_digest": digest or {"train": f"{cfg.SEED:032}{cfg.DATASET.NUM_SHOTS:032}", "val": None,
                                     "test": "0" * 64},
        "backbone": {"name": "tiny", "digest": weights_digest("tiny"), "published": False},
        "budget": {"updates": 40, "images": 1280}, "trained_parameters": 2048, "device": "cpu",
        "config": plain(own_cfg(cfg, train.default_config(cfg))),
    }
    write_config(own_cfg(cfg, train.default_config(cfg)), run.folder)
    Path(run.folder, "results.json").write_text(json.dumps(results, indent=2))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([f"pictures/{names[label]}/{i:05d}.jpg", label, guess, f"{0.5:.6f}"]
                     for i, (label, guess) in enumerate(zip(of_class, guessed)))
    Path(run.folder, PREDICTIONS).write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def measure(folder, seeds, datasets=DATASETS):
    """{name of COMMANDS: {"seconds" (processor), "peak" (bytes)}} over what `write_runs` has written."""
    found = {}
    for name, (program, *flags) in COMMANDS.items():
        argv = words(folder, seeds, datasets) + flags if program == "protocol" else [str(Path(folder, "output"))]
        done = subprocess.run([sys.executable, "-c", CHILD, f"tools.{program}", *argv], cwd=ROOT, text=True,
                              capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise InputError(f"{name} ended with status {done.returncode}: {done.stderr[-2000:]}")
        seconds, peak = done.stderr.splitlines()[-1].split()
        found[name] = {"seconds": float(seconds), "peak": int(peak)}
    return found


def table(found):
    return page.table([[name, f"{cost['seconds']:.1f}", f"{cost['peak'] / 1e6:.0f}"] for name, cost in found.items()],
                      ["command", "processor time, s", "peak memory, MB"])


def main(argv=None):
    parser = ArgumentParser(prog="python -m benchmarks.many_runs", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3000, help="about how many (default 3000)")
    parser.add_argument("--folder", help="where the runs are written, and found the next time; default a temporary one")
    parser.add_argument("--docs", help="folder of SPEED.md, whose section is written anew")
    args = parser.parse_args(argv)
    seeds = max(1, round(args.runs / PER_SEED / len(DATASETS)))
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or temporary
        if not Path(folder, "output").is_dir():
            write_runs(folder, seeds)
        text = table(measure(folder, seeds))
    print(text)
    if args.docs:
        page.write_section(args.docs, page.MANY_RUNS, f"{ABOUT}\n\nMachine: {page.machine()}. "
                           f"{seeds * PER_SEED * len(DATASETS):,} runs.\n\n{text}\n")
    return text


if __name__ == "__main__":
    sys.exit(train.command_line(main))
