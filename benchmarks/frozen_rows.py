"""What `benchmarks.compare` measures: steps and an evaluation with and without stored features, and whole methods."""
import contextlib
import io
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

import train
from benchmarks.frozen_work import BATCH, Place, evaluation, forget_files, in_turns, require_equal, steps, trainer_of
from benchmarks.measure import relative_difference, timed

METHODS = ("CoOp", "KgCoOp", "ProGrad", "TCP", "DePT", "CLIPAdapter", "LinearProbe", "ZeroshotCLIP")
# Of the dataset of steps and evaluation: classes and training pictures per class. The first half of the classes are its
# base classes.
DATA = (100, 2)
TESTED = 10  # test pictures per class of an evaluation
BASE = ("DATASET.SUBSAMPLE_CLASSES", "base")
WARM_AT_LEAST, FILLING_AT_LEAST, COMPARISON_AT_LEAST = 30.0, 0.95, 5.0


@dataclass
class StepRow:
    """A training step. `at_least`: the ratio none / warm that is the goal; filling: whether the first pass over an
    empty store is timed, too, and not only made. One pass of a side is `steps` steps."""

    what: str
    at_least: float
    method: str
    classes: int
    shots: int
    batch: int
    steps: int
    filling: bool = False


STEP_ROWS = {
    "coop_50": StepRow("CoOp, 50 classes, batch 32: training step", 20.0, "CoOp", 50, 2, BATCH, 3, filling=True),
    "coop_100": StepRow("CoOp, 100 classes, batch 32: training step", 12.0, "CoOp", 100, 1, BATCH, 3),
    "metaprompt_50": StepRow("MetaPrompt base-to-new, 50 classes, batch 8: training step", 1.4, "MetaPrompt", 50, 2, 8,
                             2),
}


@dataclass
class EvaluationRow:
    """An evaluation of `method`, whose features an evaluation of `first` has left."""

    first: str
    method: str
    pictures: int  # per class

    @property
    def what(self) -> str:
        return (f"evaluation of a second static-prompt method, {DATA[0] * self.pictures:,} pictures, {DATA[0]} "
                "classes")


@dataclass
class Comparison:
    """Methods that are trained and tested one after the other, each without the store and then with it."""

    methods: tuple[str, ...] = METHODS
    classes: int = 50
    shots: int = 2
    pictures: int = 2  # test pictures per class
    batch: int = BATCH


COMPARISON = Comparison()


def measurements(place: Place, pairs: int, tested: int = TESTED) -> dict[str, Callable[[], dict]]:
    """{name: function -> plain numbers, for JSON}, in the order they are made.

    Args:
        pairs: measurements of each side; tested: pictures per class of the evaluation.
    """
    found: dict[str, Callable[[], dict]] = {
        name: lambda row=row: measured_steps(place, row, pairs)  # type: ignore[misc]
        for name, row in STEP_ROWS.items()}
    return found | {"comparison": lambda: measured_comparison(place, COMPARISON),
                    "evaluation": lambda: measured_evaluation(place, EvaluationRow("CoOp", "KgCoOp", tested),
                                                              pairs)}


# ---- steps ----
def measured_steps(place: Place, row: StepRow, pairs: int) -> dict:
    """{"row", "pairs", "none", "warm" and, if asked for, "filling": {"clock", "processor": [seconds per pass]},
    "differences": of losses and of gradients}.

    Each pass begins anew: its trainer is built before the time is taken, and learns the pictures' digests within it."""
    clips, data = place.clips(), place.data(*DATA, 1)
    options = ("DATASET.NUM_SHOTS", row.shots, *(BASE if row.classes < DATA[0] else ()))

    def side(store: Path | None) -> Callable[[], tuple]:
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = trainer_of(place.words(row.method, data, "steps", store, row.batch, options), clips)
        return lambda: steps(trainer, row.steps)

    def new_store(turn: int) -> Path:
        return place.folder / f"store_{row.method}_{row.classes}_{turn if row.filling else 0}"

    shutil.rmtree(new_store(0), ignore_errors=True)
    if not row.filling:
        side(new_store(0))()
    sides = {"none": lambda turn: side(None),
             **({"filling": lambda turn: side(emptied(new_store(turn)))} if row.filling else {}),
             "warm": lambda turn: side(new_store(turn))}
    found, results = in_turns(sides, pairs)
    differences = compared(row.what, results)
    return {"row": asdict(row), **found, "differences": differences}


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def compared(what: str, results: dict) -> list[float]:
    """Differences of losses and gradients of the sides with a store from those without; these sides' are the same bit
    for bit."""
    losses, gradients = results["none"]
    if "filling" in results:
        same = results["filling"][0] == results["warm"][0] and all(
            map(torch.equal, results["filling"][1], results["warm"][1]))
        if not same:
            raise AssertionError(f"{what}: a full store gives other numbers than an empty one")
    differences = [relative_difference([torch.tensor(results["warm"][0])], [torch.tensor(losses)]),
                   relative_difference(results["warm"][1], gradients)]
    require_equal(what, differences)
    return differences


# ---- an evaluation ----
def measured_evaluation(place: Place, row: EvaluationRow, pairs: int) -> dict:
    """As `measured_steps`, of a test. "filling" is that of the first method; it and "none" are measured once."""
    clips, data = place.clips(), place.data(*DATA, row.pictures)
    store, options = emptied(place.folder / "store_evaluation"), ("DATASET.NUM_SHOTS", 1)

    def side(method: str, folder: Path | None) -> Callable[[], torch.Tensor]:
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = trainer_of(place.words(method, data, "evaluation", folder, options=options), clips)
        def run() -> torch.Tensor:
            with contextlib.redirect_stdout(io.StringIO()):
                return torch.as_tensor(evaluation(trainer))

        return run

    once, results = in_turns({"none": lambda turn: side(row.method, None),
                              "filling": lambda turn: side(row.first, store)}, 1)
    found, warm = in_turns({"warm": lambda turn: side(row.method, store)}, pairs)
    differences = [relative_difference([warm["warm"]], [results["none"]])]
    require_equal(row.what, differences)
    return {"row": {**asdict(row), "what": row.what}, **once, **found, "differences": differences}


def quietly(function: Callable) -> object:
    with contextlib.redirect_stdout(io.StringIO()):
        return function()


# ---- whole methods ----
def measured_comparison(place: Place, row: Comparison) -> dict:
    """{"row", "methods": [{"method", "none", "store": {"clock", "processor": seconds}, "stored", "computed": pictures,
    "difference": of the logits}], "bytes": of the store}."""
    clips, data = place.clips(), place.data(row.classes, row.shots, row.pictures)
    for name in ("comparison_none", "comparison_store"):
        emptied(place.folder / name)
    store: Path = place.folder / "comparison_store" / "features"
    seen: dict[str, dict] = {"none": {}, "store": {}}
    warm_up = place.words(row.methods[0], place.data(4, 1, 1), "comparison_none/warm_up", None, 4)
    quietly(lambda: train.main(warm_up, clips=clips))  # what is imported when it is first needed
    lines = []
    for method in row.methods:
        line: dict = {"method": method}
        logits = []
        for name in ("none", "store"):
            run = f"comparison_{name}/{method}"
            words = place.words(method, data, run, None if name == "none" else store, row.batch,
                                ("DATASET.NUM_SHOTS", row.shots))
            if method == row.methods[0]:
                forget_files()
            results, clock, processor = timed(
                lambda words=words, name=name: quietly(lambda: train.main(words, clips=clips, seen=seen[name])), "cpu")
            line[name] = {"clock": clock, "processor": processor}
            with np.load(place.folder / run / "logits.npz") as kept:
                logits.append(torch.from_numpy(kept["logits"]))
        line |= {key: results["features"][key] for key in ("stored", "computed")}
        line["difference"] = relative_difference(logits[1:], logits[:1])
        require_equal(method, [line["difference"]])
        lines.append(line)
        print(f"{method}: {line['none']['processor']:.1f} s, with the store {line['store']['processor']:.1f} s "
              f"({line['computed']} pictures computed, {line['stored']} stored)", flush=True)
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    return {"row": asdict(row), "methods": lines, "bytes": size}
