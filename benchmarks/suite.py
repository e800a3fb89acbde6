"""What `benchmarks.all` measures: the rows of the table, and the points of the scaling curves."""
from dataclasses import dataclass

from benchmarks.sides import Work


@dataclass
class Row:
    """A line of the table; `at_least` is the ratio plain / ours that is the goal. `memory`: measure it, too (a run
    more of each side)."""

    name: str
    what: str
    at_least: float | None
    work: Work
    memory: bool = True


ROWS = (
    Row("cocoop_train", "CoCoOp, 50 classes, batch 1", 4.5, Work("CoCoOp", 50, 1)),
    Row("coop_50", "CoOp, 50 classes, batch 8", None, Work("CoOp", 50, 8)),
    Row("coop_100", "CoOp, 100 classes, batch 8", None, Work("CoOp", 100, 8)),
    Row("coop_200", "CoOp, 200 classes, batch 8", None, Work("CoOp", 200, 8)),
    Row("coop", "CoOp, 100 classes, batch 32", 1.6, Work("CoOp", 100, 32)),
    Row("dg_3", "MetaPrompt DG, 3 domains, 7 classes, batch 12", 1.6,
        Work("MetaPrompt", 7, 12, domains=3), memory=False),
    Row("b2n_50", "MetaPrompt base-to-new, 50 classes, batch 16, both updates, n_ctx 2", 2.8,
        Work("MetaPrompt", 50, 16, n_ctx=2), memory=False),
    Row("cocoop_eval", "CoCoOp evaluation, 50 classes, batch 20", 4.0,
        Work("CoCoOp", 50, 20, stage="eval"), memory=False),
    Row("eval", "evaluation of a static prompt (CoOp), 1000 classes, batch 50", 4.0,
        Work("CoOp", 1000, 50, stage="eval"), memory=False),
    Row("b2n_100", "MetaPrompt base-to-new, 100 classes, batch 16, n_ctx 2", 3.1,
        Work("MetaPrompt", 100, 16, n_ctx=2), memory=False),
    Row("dg_5", "MetaPrompt DG, 5 domains, 100 classes, batch 15", 3.7,
        Work("MetaPrompt", 100, 15, domains=5), memory=False),
)
# The fit over the number of classes: a step costs a fixed part and a part for each class.
SLOPE_ROWS, SLOPE_CLASSES, SLOPE_AT_LEAST, MEMORY_AT_MOST = ("coop_50", "coop_100", "coop_200"), 1000, 3.5, 1 / 3


@dataclass
class Curve:
    """How one side's training step grows: `works` by the values of `axis`."""

    name: str
    label: str
    axis: str
    side: str
    works: dict


def _curve(name, label, axis, values, side="ours", **fixed):
    return Curve(name, label, axis, side, {v: Work(**{**fixed, axis: v}) for v in values})


CURVES = (
    _curve("classes_coop", "CoOp, batch 2", "classes", (10, 100, 1000), method="CoOp", batch=2),
    _curve("classes_coop_plain", "CoOp plain, batch 2", "classes", (10, 100), "plain", method="CoOp", batch=2),
    _curve("classes_metaprompt", "MetaPrompt, batch 4", "classes", (10, 100, 1000), method="MetaPrompt", batch=4,
           n_ctx=2),
    _curve("batch_metaprompt", "MetaPrompt, 50 classes", "batch", (2, 4, 8, 16), method="MetaPrompt", classes=50,
           n_ctx=2),
    _curve("n_ctx_metaprompt", "MetaPrompt, 50 classes, batch 4", "n_ctx", (2, 4, 8, 16), method="MetaPrompt",
           classes=50, batch=4),
    _curve("layers_metaprompt", "MetaPrompt, 50 classes, batch 4", "layers", (1, 3, 6, 12), method="MetaPrompt",
           classes=50, batch=4, n_ctx=2),
)
