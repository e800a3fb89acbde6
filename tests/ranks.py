"""One run in one, two and three processes: is it the same run?

    python tests/ranks.py                           # a table: every trainer, in 2 and 3 processes against one
    python tests/ranks.py --ranks 2 --only CoOp     # these
    python tests/ranks.py --write FOLDER            # what each of the processes started by torchrun does

Each trainer trains for one epoch on a small Shapes with the CLIP that comes along, on the CPU in float32, and is
tested. Compared are the losses of all steps, what is learned (each tensor by its largest difference, in units of its
largest entry where that is above 1), and which test images were counted.
"""
import argparse
import csv
import gzip
import math
import os
import socket
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from dassl.engine import TRAINER_REGISTRY, build_trainer  # noqa: E402
from dassl.utils import rank  # noqa: E402
from datasets import shapes  # noqa: E402
from runs import run as one_run  # noqa: E402

PART_SIZES = dict.fromkeys(shapes.DOMAINS, (3, 1, 1))  # images per class; 20 test images of base classes
BASE = ("DATASET.NUM_SHOTS", 2, "DATASET.SUBSAMPLE_CLASSES", "base")
# Adam divides a gradient by its own size: where it is zero but for rounding, the step is rounding, too, at full length.
# By SGD what is learned differs as the gradients do. At this rate the losses change with each step.
BY_SGD = ("OPTIM.NAME", "sgd", "OPTIM.LR", 0.1)
SHIPPED = ", as shipped"  # the same methods by Adam
TOLERANCE = 1e-5  # of `compare`
VARIANTS = {  # what the trainers' configs leave out
    "CoOp, by loss.backward()": ("CoOp", BASE),
    "CoOp, own context per class": ("CoOp", (*BASE, "TRAINER.COOP.CSC", True)),
    "MetaPrompt, second order": ("MetaPrompt", (*BASE, "TRAINER.METAPROMPT.ORDER", 2)),
    "MetaPrompt, released": ("MetaPrompt", (*BASE, "TRAINER.METAPROMPT.VARIANT", "released")),
    "MetaPrompt, domain split": ("MetaPrompt", ("DATASET.NUM_SHOTS", 1)),
    "MetaPrompt, domain split, second order": (
        "MetaPrompt", ("DATASET.NUM_SHOTS", 1, "TRAINER.METAPROMPT.ORDER", 2)),
    "DPL, three domains": ("DPL", ("DATASET.NUM_SHOTS", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 9)),
    "ProMetaR, first order": ("ProMetaR", (*BASE, "TRAINER.PROMETAR.ORDER", 1)),
    # What its dropout draws is each rank's own, as the towers' work is divided: those runs are alike in kind only.
    "CLIPLoRA": ("CLIPLoRA", (*BASE, *BY_SGD, "TRAINER.CLIPLORA.DROPOUT", 0.0)),
    "CLIPood": ("CLIPood", (*BASE, *BY_SGD)),
    "FineTune": ("FineTune", (*BASE, *BY_SGD)),
    "TCP": ("TCP", (*BASE, *BY_SGD)),
    "WiSEFT": ("WiSEFT", (*BASE, *BY_SGD)),
    f"CLIPLoRA{SHIPPED}": ("CLIPLoRA", (*BASE, "TRAINER.CLIPLORA.DROPOUT", 0.0)),
    **{f"{name}{SHIPPED}": (name, BASE) for name in ("CLIPood", "FineTune", "TCP", "WiSEFT")},
    # Last: it takes the place of this project's CoOp. Its ranks all do the same work but for the evaluation.
    "CoOp as written for Dassl": ("CoOp", (*BASE, "TRAINER.COOP.N_CTX", 3, "TRAINER.COOP.PREC", "fp32",
                                           "TRAINER.COOP.INIT.STD", 0.02)),
}
FOREIGN = {"CoOp as written for Dassl": ("--plugin", ROOT / "tests" / "plugins" / "coop_style.py")}


def by_backward(self, batch):
    """A step as trainers for Dassl make it."""
    loss, _ = self.compute_loss(batch)
    self.model_backward_and_update(loss)
    return {"loss": loss.item()}


STEPS = {"CoOp, by loss.backward()": by_backward}


def cases():
    """{name: (trainer, options)}"""
    train.discover()
    return {**{name: (name, BASE) for name in TRAINER_REGISTRY.registered_names()}, **VARIANTS}


def make_run(folder, trainer, options, words=(), training_step=None, more=()):
    """What a run gives: losses (steps,), learned {name: tensor}, tested: the rows of predictions.csv.gz, logits,
    accuracy, budget. `more`: options that come last."""
    summaries = []

    def watched(cfg, **context):
        built = build_trainer(cfg, **context)
        step = built.forward_backward
        if training_step is not None:
            built.training_step = types.MethodType(training_step, built)

        def forward_backward(batch):
            summaries.append(step(batch))
            return summaries[-1]

        built.forward_backward = forward_backward
        return built

    domains = ("--source-domains", "painting", "cartoon", "sketch", "--target-domains", "photo")
    with mock.patch.object(shapes, "PART_SIZES", PART_SIZES), \
            mock.patch.object(one_run, "build_trainer", watched):
        results = train.main([str(word) for word in (
            "--root", folder.parent / "data", "--seed", 1, "--trainer", trainer, "--backbone", "tiny",
            "--dataset-config-file", ROOT / "configs" / "datasets" / "shapes.yaml",
            "--config-file", ROOT / "configs" / "trainers" / trainer / "tiny.yaml", "--output-dir", folder, *words,
            *(domains if "DATASET.SUBSAMPLE_CLASSES" not in options else ()),
            "DATALOADER.TRAIN_X.BATCH_SIZE", 7, *options, "OPTIM.MAX_EPOCH", 1, "OPTIM.WARMUP_EPOCH", 0,
            "DATALOADER.TEST.BATCH_SIZE", 5, "DATALOADER.NUM_WORKERS", 0, "VERBOSE", False, "USE_CUDA", False,
            "TEST.SAVE_LOGITS", True, *more)])
    with np.load(folder / "logits.npz") as kept:
        logits = torch.from_numpy(kept["logits"])
    epochs = results["config"]["OPTIM"]["MAX_EPOCH"]
    checkpoint = folder / "prompt_learner" / f"model.pth.tar-{epochs}"
    with gzip.open(folder / "predictions.csv.gz", "rt", newline="") as file:
        tested = list(csv.reader(file))
    return {"losses": [summary.get("loss", math.nan) for summary in summaries],
            "learned": torch.load(checkpoint, weights_only=True)["state_dict"] if checkpoint.exists() else {},
            "tested": tested[1:], "logits": logits, "accuracy": results["metrics"]["test"]["accuracy"],
            "budget": results["budget"]}


def write(folder, names, more=()):
    """Make the runs and, as the process that writes, store what they gave. more: as of `make_run`."""
    torch.set_num_threads(1)
    chosen = cases()
    found = {name: make_run(folder / name.replace(" ", "_"), *chosen[name], FOREIGN.get(name, ()),
                            STEPS.get(name), more)
             for name in names or chosen}
    if rank() == 0:
        torch.save(found, folder / "found.pt")


def spawn(ranks, folder, names=(), more=(), timeout=600):
    """The runs in so many processes -> {name: what it gave}. Raises RuntimeError, with their output, where one fails.
    more: as of `make_run`."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks, __file__,
             "--write", folder, *(("--only", *names) if names else ()), *(("--more", *more) if more else ())]
    Path(folder).mkdir(parents=True, exist_ok=True)
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, timeout=timeout)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return torch.load(Path(folder) / "found.pt", weights_only=True)


def forked(number, folder, names, more=()):
    """What `spawn` gives, of processes that are forked from this one: torch is imported once, and there is no torchrun.
    """
    told = fork(number, folder, lambda: write(Path(folder), names, more))
    if any(status for status, _ in told):
        raise RuntimeError("".join(output for _, output in told))
    return torch.load(Path(folder) / "found.pt", weights_only=True)


def fork(number, folder, function):
    """Call `function` in so many processes that make one run -> [(exit status, what was printed) of each rank]."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(number),
                 "LOCAL_WORLD_SIZE": str(number)}
    outputs, children = [Path(folder) / f"rank{one}.out" for one in range(number)], []
    sys.stdout.flush()
    sys.stderr.flush()
    for one, output in enumerate(outputs):
        children.append(os.fork())
        if not children[-1]:
            _live({**where, "RANK": str(one), "LOCAL_RANK": str(one)}, output, function)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return [(status, output.read_text()) for status, output in zip(statuses, outputs)]


def _live(environment, output, function):
    """The child: one rank. Never returns."""
    status = 70
    try:
        out = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        os.environ.update(environment)
        status = train.command_line(function)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def difference(first, second):
    """The largest difference of two lists of tensors or numbers, relative to what is larger than 1."""
    pairs = [(torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64))
             for a, b in zip(first, second, strict=True)]
    found = [float((a - b).abs().max() / max(1.0, float(a.abs().max()))) for a, b in pairs]
    return max((math.inf if math.isnan(value) else value for value in found), default=0.0)


def tolerance(name):
    """How far what is learned may be from what one process, or another device, learns. Where Adam's steps are rounding
    in places, that says nothing: there the losses, which follow four updates, are all that is compared."""
    return math.inf if name.endswith(SHIPPED) else TOLERANCE


def compare(one, several):
    """(difference of the losses, of what is learned, images counted by one and by several, the same images)."""
    names = sorted(one["learned"])
    assert names == sorted(several["learned"])
    return (difference(one["losses"], several["losses"]),
            difference(*([run["learned"][name] for name in names] for run in (one, several))),
            len(one["tested"]), len(several["tested"]),
            [row[:2] for row in one["tested"]] == [row[:2] for row in several["tested"]])


def main(argv=None):
    parser = argparse.ArgumentParser(prog="tests/ranks.py", description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 3], help="numbers of processes")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="trainers")
    parser.add_argument("--write", metavar="FOLDER", type=Path, help="make the runs there, as one of the processes")
    parser.add_argument("--more", nargs="+", metavar="WORD", default=[], help="config options, KEY VALUE ...")
    args = parser.parse_args(argv)
    if args.write:
        write(args.write, args.only, args.more)
        return
    with tempfile.TemporaryDirectory() as folder:
        one = spawn(1, Path(folder, "1"), args.only, args.more)
        several = {ranks: spawn(ranks, Path(folder, str(ranks)), args.only, args.more) for ranks in args.ranks}
    rows = []
    for name in one:
        row = [name, len(one[name]["losses"])]
        for ranks in args.ranks:
            losses, learned, counted, counted_here, same = compare(one[name], several[ranks][name])
            row += [f"{losses:.1e}", f"{learned:.1e}", f"{counted_here} of {counted}" + ("" if same else ", others")]
        rows.append(row)
    headers = ["trainer", "steps"]
    for ranks in args.ranks:
        headers += [f"{ranks}: losses", "learned", "tested"]
    print(tabulate(rows, headers=headers))


def threads_of_gloo():
    """Names of the threads of a process group that this process still has; where /proc tells them."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


if __name__ == "__main__":
    status = train.command_line(main)
    if not status and threads_of_gloo():  # they could abort the process while the interpreter ends
        sys.exit(f"the run has ended, but not its threads: {threads_of_gloo()}")
    sys.exit(status)
