"""Count what a training step and a test batch launch on a GPU, on any machine, and say whether a graph can capture it.

    python -m benchmarks.launches            # a table, in some five minutes
    python -m benchmarks.launches --json     # a line per work
    python -m benchmarks.launches --docs docs    # also writes the section of docs/SPEED.md

A launch is an operation that makes or changes a tensor; views and empty tensors are none, and some operations launch
several kernels. The towers go the way that they take on a GPU. Counts do not depend on the width of a CLIP: this one
has the twelve blocks of ViT-B/16 and is narrow.

A graph can capture a step if every batch makes the same operations with the same numbers on the same shapes, and if the
host waits for nothing: reads no number, and copies nothing to or from the device. That is seen on a stand-in device
(benchmarks/other_device.py).
"""
import contextlib
import json
import sys
from collections import Counter
from dataclasses import dataclass, replace

import torch
from clip.model import CLIP
from tabulate import tabulate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import other_device, page
from benchmarks.models import SEED, VIT_B16
from benchmarks.other_device import OnDevice
from benchmarks.sides import Ours, Plain, Work
from dassl.config.words import ArgumentParser
from dassl.utils import InputError
from dassl.utils.registry import nearest
from train import command_line

NARROW = {**VIT_B16, "embed_dim": 64, "image_resolution": 32, "vision_width": 128, "transformer_width": 128,
          "transformer_heads": 2}
ABOUT = """\
Made by `python -m benchmarks.launches --docs docs`, on any machine; `benchmarks.all` leaves this section as it is. The
operations of a training step (with its update) and of a test batch that make or change a tensor, in float32; views and
empty tensors are none, and some operations launch several kernels. torch {torch}.

{table}

A graph can capture what makes the same operations with the same numbers on the same shapes for every batch ({batches}
different ones were compared), and in which the host waits for nothing. The times of the section above were measured
before classes shared rows, with the launches that stand there."""
BATCHES = 20  # different ones, whose operations are compared
NO_LAUNCH = {f"aten::{name}" for name in (
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_reshape_alias",
    "detach", "lift_fresh", "_efficientzerotensor", "_local_scalar_dense")}
WAITS = {f"aten::{name}" for name in (  # for a number, or for the size of what they give
    "_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive",
    "bincount", "repeat_interleave")}


@dataclass(frozen=True)
class Counted:
    """A row of the table. first: whether it is the first batch of an evaluation, which encodes the classes."""

    name: str
    title: str
    work: Work
    first: bool = False


WORKS = (
    Counted("coop", "CoOp, 100 classes, batch 32", Work("CoOp", 100, 32)),
    Counted("b2n", "MetaPrompt base-to-new, 50 classes, batch 16", Work("MetaPrompt", 50, 16, n_ctx=2)),
    Counted("dg", "MetaPrompt DG, 3 domains, 7 classes, batch 12", Work("MetaPrompt", 7, 12, n_ctx=2, domains=3)),
    Counted("cocoop", "CoCoOp, 50 classes, batch 1", Work("CoCoOp", 50, 1)),
    Counted("eval_first", "evaluation of a static prompt (CoOp), 1000 classes, batch 50, first batch",
            Work("CoOp", 1000, 50, stage="eval"), first=True),
    Counted("eval", "evaluation of a static prompt (CoOp), 1000 classes, batch 50, later batches",
            Work("CoOp", 1000, 50, stage="eval")),
)


class Launches(TorchDispatchMode):
    """Within it, `by_name` counts the operations that launch something."""

    def __init__(self):
        super().__init__()
        self.by_name: Counter[str] = Counter()

    @property
    def total(self):
        return sum(self.by_name.values())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        if name.startswith("aten::") and not function.is_view and name not in NO_LAUNCH:
            self.by_name[name.removeprefix("aten::")] += 1
        return function(*args, **(kwargs or {}))


class OnTheDevice(TorchDispatchMode):
    """Within it, `sequence` has the operations on the stand-in device in their order, with their numbers and the shapes
    of their tensors. `waits` counts those that the host waits for: for a number, a copy to or from the device, or a
    size."""

    def __init__(self):
        super().__init__()
        self.sequence: list[tuple] = []
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name, leaves = function._schema.name, tree_leaves((args, kwargs))
        given, made = tensors_of(leaves), tensors_of(out)
        places = {isinstance(tensor, OnDevice) for tensor in (*given, *made)}
        if True in places:
            self.sequence.append((str(function), *(tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else str(leaf)
                                                   for leaf in leaves)))
            if name in WAITS or name in other_device.COPIES and len(places) > 1 or (
                    name in other_device.INDEXED and any(map(_host_or_mask, tensors_of(args[1])))):
                self.waits[name.removeprefix("aten::")] += 1
        return out


def _host_or_mask(index):
    """Whether an index is copied to the device, or a mask whose size is read."""
    return index.dtype == torch.bool or index.dim() > 0 and not isinstance(index, OnDevice)


def tensors_of(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def narrow_clip():
    """A frozen CLIP of random weights with the blocks of ViT-B/16."""
    torch.manual_seed(SEED)
    return CLIP(**NARROW).eval().requires_grad_(False)


def another(batch, number, classes):
    """The batch with other images and labels; number 0 is the batch itself."""
    if not number:
        return batch
    generator = torch.Generator().manual_seed(number)
    images, label = batch["img"], batch["label"]
    other = torch.randperm(max(classes, len(label)), generator=generator)[:len(label)] % classes
    return {**batch, "img": torch.randn(images.shape, generator=generator).to(images.device),
            "label": other.to(label.device)}


def run(side, counted, mode):
    """One step or test batch of a side, within the mode, which is returned."""
    if counted.first:
        side.new_evaluation()
    if isinstance(side, Ours) and counted.work.stage == "train":
        side.reset()
    with mode:
        if counted.work.stage == "eval":
            with torch.no_grad():
                side.evaluate()
        elif isinstance(side, Ours):
            side.trainer.forward_backward(side.batch)
        else:
            side.train_step()
    return mode


def ours_for(counted, model):
    """Ours, which goes the way of a GPU and has made a step: what only the very first does is not counted."""
    ours = Ours(counted.work, model)
    ours.trainer.towers.text.run_as_on_gpu()
    run(ours, counted, Launches())
    return ours


def launches_of(counted):
    """{"ours" and "plain": launches}."""
    model = narrow_clip()
    ours = ours_for(counted, model)
    plain = Plain(counted.work, model, ours)
    return {"ours": run(ours, counted, Launches()).total, "plain": run(plain, counted, Launches()).total}


def capture_of(counted, batches):
    """{"waits": {operation: how often the host waits for it in a step}, "batches": how many were compared,
    "same_shapes": whether all of these made the same operations, "one_graph"}."""
    with other_device.runs_on_it():
        counted = replace(counted, work=replace(counted.work, device=str(other_device.DEVICE)))
        ours, found = ours_for(counted, narrow_clip().to(other_device.DEVICE)), []
        first = ours.batch
        for number in range(batches):
            ours.batch = another(first, number, counted.work.classes)
            found.append(run(ours, counted, OnTheDevice()))
    same, waits = all(one.sequence == found[0].sequence for one in found), dict(found[0].waits.most_common())
    return {"waits": waits, "batches": batches, "same_shapes": same, "one_graph": same and not waits}


def one_graph_in_words(row):
    if row["one_graph"]:
        return "yes"
    waits = sum(row["waits"].values())
    return ", ".join(["no", *[f"the host waits {waits} time{'s' * (waits > 1)}"] * bool(waits),
                      *["shapes differ"] * (not row["same_shapes"])])


def table(rows):
    return tabulate([[row["work"], f"{row['ours']:,}", f"{row['plain']:,}", one_graph_in_words(row)] for row in rows],
                    ["work", "ours", "plain", "can be one graph"], tablefmt="github", disable_numparse=True)


def main(argv=None):
    names = {counted.name: counted for counted in WORKS}
    parser = ArgumentParser(prog="python -m benchmarks.launches", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a JSON line per work instead of a table")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"{', '.join(names)} (default all)")
    parser.add_argument("--batches", type=int, default=BATCHES,
                        help=f"different batches whose operations are compared (default {BATCHES})")
    parser.add_argument("--docs", help="folder of SPEED.md, whose section is written anew")
    args = parser.parse_args(argv)
    if args.docs and args.only:
        raise InputError("--docs writes all works; leave out --only")
    if args.batches < 1:
        raise InputError(f"--batches must be at least 1, not {args.batches}")
    for name in args.only or ():
        if name not in names:
            raise InputError(f"no work is called {name}{nearest(name, names)}; known: {', '.join(names)}")
    torch.set_num_threads(1)
    rows = []
    for name, counted in names.items():
        if not args.only or name in args.only:
            with contextlib.redirect_stdout(sys.stderr):  # what trainers print
                rows.append({"work": counted.title, **launches_of(counted), **capture_of(counted, args.batches)})
            if args.json:
                print(json.dumps(rows[-1]), flush=True)
    if not args.json:
        print(table(rows))
    if args.docs:
        page.write_section(args.docs, page.LAUNCHES, ABOUT.format(torch=torch.__version__.split("+")[0],
                                                                  table=table(rows), batches=args.batches) + "\n")
    return rows


if __name__ == "__main__":
    sys.exit(command_line(main))
