"""Count what a training step and a test batch launch on a GPU, on any machine, and say whether a graph can capture it.

    python -m benchmarks.launches            # a table, in some five minutes
    python -m benchmarks.launches --json     # a line per work
    python -m benchmarks.launches --docs docs    # also writes the section of docs/SPEED.md

A launch is an operation that makes or changes a tensor; views and empty tensors are none, and some operations launch
several kernels. The towers go the way that they take on a GPU. Counts do not depend on the width of a CLIP: this one
has the twelve blocks of ViT-B/16 and is narrow.

A graph can capture what makes the same operations with the same numbers on the same shapes for every batch, where the
host waits for nothing: reads no number, and copies nothing to or from the device. That is seen on a stand-in device
(benchmarks/other_device.py). Training steps are captured as `training/graphs.py` does it, in pieces between updates.
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
from training.batches import numbers_of
from training.recorders import Recorder

NARROW = {**VIT_B16, "embed_dim": 64, "image_resolution": 32, "vision_width": 128, "transformer_width": 128,
          "transformer_heads": 2}
ABOUT = """\
Made by `python -m benchmarks.launches --docs docs`, on any machine; `benchmarks.all` leaves this section as it is. The
operations of a training step (with its update) and of a test batch that make or change a tensor, in float32; views and
empty tensors are none, and some operations launch several kernels. torch {torch}.

{table}

A graph can capture what makes the same operations with the same numbers on the same shapes for every batch ({batches}
different ones were compared), and in which the host waits for nothing. Training steps are captured in pieces, one in
front of each update (`TRAIN.GRAPHS`): a replay is one launch. The update itself stays with
the host, which then waits once to know whether all was finite. The times of the section above were measured before
classes shared rows and before there were graphs, with the launches that stand there."""
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
        if is_launch(function):
            self.by_name[function._schema.name.removeprefix("aten::")] += 1
        return function(*args, **(kwargs or {}))


def is_launch(function):
    name = function._schema.name
    return name.startswith("aten::") and not function.is_view and name not in NO_LAUNCH


class Probe(Recorder):
    """Looks at what is captured; all of it is done at once."""

    def __init__(self):
        self.now: OnTheDevice | None = None
        self.pieces: list[OnTheDevice] = []

    def begin(self):
        self.now = OnTheDevice()
        self.now.__enter__()

    def end(self):
        self.abandon()
        return lambda: None

    def abandon(self):
        if self.now is not None:
            self.now.__exit__(None, None, None)
            self.pieces.append(self.now)
            self.now = None


class OnTheDevice(TorchDispatchMode):
    """Within it, `sequence` has the operations on the stand-in device in their order, with their numbers and the shapes
    of their tensors; `launches` counts those that launch something. `waits` counts those that the host waits for: for a
    number, a copy to or from the device, or a size."""

    def __init__(self):
        super().__init__()
        self.sequence: list[tuple] = []
        self.waits: Counter[str] = Counter()
        self.launches = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name, leaves = function._schema.name, tree_leaves((args, kwargs))
        given, made = tensors_of(leaves), tensors_of(out)
        places = {isinstance(tensor, OnDevice) for tensor in (*given, *made)}
        if True in places:
            self.launches += is_launch(function)
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


def pieces_of(ours, counted):
    """(what is captured of one step or test batch, a list of OnTheDevice; all of it, an OnTheDevice)."""
    if counted.work.stage == "eval":
        whole = run(ours, counted, OnTheDevice())
        return [whole], whole
    ours.reset()
    trainer, probe = ours.trainer, Probe()
    trainer._graphs.recorder = probe
    batch = trainer._feed.with_frozen(trainer.prepared(ours.batch))
    with OnTheDevice() as whole, trainer.precision.autocast():
        numbers_of(trainer._graphs.capture(batch).summary)
    return [piece for piece in probe.pieces if piece.launches], whole


def capture_of(counted, batches):
    """{"graphs": how many a step has, "captured": launches in them, "of": launches in all, "waits": {operation: how
    often the host waits for it in them}, "waits_between": the same outside of them, "batches": how many were compared,
    "same_shapes": whether all of these made the same operations, "one_graph": whether one graph can be all of it}."""
    with other_device.runs_on_it():
        counted = replace(counted, work=replace(counted.work, device=str(other_device.DEVICE)))
        ours, found = ours_for(counted, narrow_clip().to(other_device.DEVICE)), []
        first = ours.batch
        for number in range(batches):
            ours.batch = another(first, number, counted.work.classes)
            pieces, whole = pieces_of(ours, counted)
            found.append([piece.sequence for piece in pieces])
    same, waits = all(one == found[0] for one in found), Counter[str]()
    for piece in pieces:
        waits.update(piece.waits)
    captured, between = sum(piece.launches for piece in pieces), whole.waits - waits
    return {"graphs": len(pieces), "captured": captured, "of": whole.launches, "waits": dict(waits.most_common()),
            "waits_between": dict(between.most_common()), "batches": batches, "same_shapes": same,
            "one_graph": same and not waits and len(pieces) == 1 and captured == whole.launches}


def graphs_in_words(row):
    """What the table says of capturing."""
    if row["one_graph"]:
        return "yes, all of it"
    waits, between = (sum(row[name].values()) for name in ("waits", "waits_between"))
    if waits or not row["same_shapes"]:
        return ", ".join(["no", *[f"the host waits {waits} time{'s' * (waits > 1)}"] * bool(waits),
                          *["shapes differ"] * (not row["same_shapes"])])
    return (f"all but {row['of'] - row['captured']:,}, in {row['graphs']} graph{'s' * (row['graphs'] > 1)}; the host "
            f"waits {between} time{'s' * (between > 1)} outside")


def table(rows):
    return tabulate([[row["work"], f"{row['ours']:,}", f"{row['plain']:,}", graphs_in_words(row)] for row in rows],
                    ["work", "ours", "plain", "in graphs"], tablefmt="github", disable_numparse=True)


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
