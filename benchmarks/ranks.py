"""How a training step and an evaluation get faster with the processes that make it.

    python -m benchmarks.ranks                     # 1, 2, 4 and 8 processes
    python -m benchmarks.ranks --ranks 1 2 --repeats 5

Each process has one thread. The processor time of the busiest one tells how well the work is divided, whatever else the
machine does and however few cores it has; the time on the clock means something only while there is a core for each.
"""
import json
import os
import subprocess
import sys
import time

import torch
from tabulate import tabulate
from torch import distributed

from benchmarks.measure import median
from benchmarks.models import random_clip
from benchmarks.sides import Ours, Work
from dassl.config.words import ArgumentParser
from dassl.utils import InputError, all_gather, rank, world_size
from train import command_line

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORKS = {
    "CoOp, 100 classes, batch 8": Work("CoOp", 100, 8),
    "CoOp, 1000 classes, batch 2": Work("CoOp", 1000, 2),
    "CoCoOp, 50 classes, batch 8": Work("CoCoOp", 50, 8),
    "MetaPrompt base-to-new, 50 classes, batch 16": Work("MetaPrompt", 50, 16, n_ctx=2),
    "MetaPrompt DG, 3 domains, 7 classes, batch 12": Work("MetaPrompt", 7, 12, domains=3),
    "evaluation of 16 images, CoOp, 100 classes": Work("CoOp", 100, 16, stage="eval"),
}


def evaluation_step(ours):
    """Each process computes the logits of its own images, and all get all of them; the class features are there."""
    share = ours.trainer.ranks.share(len(ours.batch["img"]))

    def step():
        with torch.no_grad(), ours.trainer.ranks.no_sync():
            all_gather(ours.trainer.logits_of({"img": ours.batch["img"][share]}))

    ours.trainer.set_model_mode("eval")
    return step


def timed(step):
    """(seconds on the clock, the most processor time that a process took)"""
    if world_size() > 1:
        distributed.barrier()
    clock, processor = time.perf_counter(), time.process_time()
    step()
    processor = max(all_gather(time.process_time() - processor))
    return time.perf_counter() - clock, processor


def measure(repeats):
    """What one of the processes does -> {work: {"clock", "processor": [seconds]}}"""
    torch.set_num_threads(1)
    model = random_clip("ViT-B/16")
    found = {}
    for name, work in WORKS.items():
        ours = Ours(work, model)
        step = ours.train_step if work.stage == "train" else evaluation_step(ours)
        step()  # to warm up
        times = [timed(step) for _ in range(repeats)]
        found[name] = {"clock": [t[0] for t in times], "processor": [t[1] for t in times]}
    return found


def in_processes(ranks, repeats):
    """`measure` in so many processes."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m",
             "benchmarks.ranks", "--measure", "--repeats", str(repeats)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise InputError(f"the measurement in {ranks} processes failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(argv=None):
    parser = ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4, 8], help="numbers of processes")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each")
    parser.add_argument("--measure", action="store_true", help="as one of the processes; prints JSON")
    args = parser.parse_args(argv)
    if args.measure:
        found = measure(args.repeats)
        if rank() == 0:
            print(json.dumps(found))
        return
    found = {ranks: in_processes(ranks, args.repeats) for ranks in args.ranks}
    for kind, title in (("processor", "processor seconds of the busiest process"), ("clock", "seconds on the clock")):
        rows = []
        for name in WORKS:
            times = [median(found[ranks][name][kind]) for ranks in args.ranks]
            rows.append([name, *(f"{t:.2f} ({times[0] / t:.2f}x)" for t in times)])
        print(tabulate(rows, headers=[title, *args.ranks], disable_numparse=True), end="\n\n")


if __name__ == "__main__":
    sys.exit(command_line(main))
