"""The part of `benchmarks.gpu` that compares training steps in graphs with the same steps without: every method that
says `static_step`, in float32 and amp."""
import contextlib
import time
from functools import partial
from unittest import mock

import torch

import train
from benchmarks.gpu_equality import FEW, exact_float32, furthest, golden_clip, helpers
from dassl.engine import TRAINER_REGISTRY
from training.graphs import TRIALS

HEADERS = {"graphs": ["trainer", "float32: losses", "learned", "amp: losses", "learned", "pieces", "ms without",
                      "ms in graphs", "passes"]}
STEPS, TIMED = 9, 4  # of which the last are timed: the first four are made without graphs, too
ALLOWED = {"fp32": 1e-4, "amp": 2e-2}  # of losses and learned tensors, in units of what is larger than 1
NAMES = ["cat", "dog", "alarm clock", "big red car", "house", "plane"]
VARIANTS = {  # name: (method, its options, domains)
    "MetaPrompt, domain split": ("MetaPrompt", {"SPLIT": "domain"}, 3),
    "MetaPrompt, second order": ("MetaPrompt", {"ORDER": 2}, 1),
    "CoOp, class-specific context": ("CoOp", {"CSC": True}, 1),
}


def graphs_rows(device):
    exact_float32()
    helpers()
    train.discover()
    clip_model = golden_clip()
    cases: dict[str, tuple] = {name: (name, {}, 1) for name, method in sorted(TRAINER_REGISTRY.items())
             if method.__module__.startswith("trainers.") and vars(method).get("static_step")}
    for name, case in {**cases, **VARIANTS}.items():
        if device != "cpu" or name in FEW:
            yield name, partial(compared, case, clip_model, device)
    yield "a step that cannot be captured", partial(failed_capture, clip_model, device)


def failed_capture(clip_model, device):
    """A step that asks for a number: it is refused. Afterwards memory and random numbers are as usable as before."""
    coop = TRAINER_REGISTRY.get("CoOp")

    def compute_loss(trainer, batch):
        loss, logits = super(coop, trainer).compute_loss(batch)
        return loss * max(1.0, loss.item() * 0), logits

    with mock.patch.object(coop, "compute_loss", compute_loss, create=True):
        losses, learned, trainer, _ = steps_of(("CoOp", {}, 1), clip_model, device, "fp32", "auto")
    expected, of_them, *_ = steps_of(("CoOp", {}, 1), clip_model, device, "fp32", "off")
    different = max(furthest(losses, expected), furthest(learned, of_them))
    drawn = torch.nn.functional.dropout(torch.ones(1000, device=device))
    if device != "cpu":
        torch.cuda.empty_cache()
        again = torch.cuda.CUDAGraph()
        with torch.cuda.graph(again):
            drawn + 1
    return {"ok": bool(trainer._graphs.refused) and different <= ALLOWED["fp32"] and 0 < float(drawn.mean()) < 2,
            "refused": trainer._graphs.refused,
            "cells": [f"{different:.1e}", "-", "-", "-", trainer._graphs.refused[:80]]}


def compared(case, clip_model, device):
    found, ok = {}, True
    for prec in ("fp32", "amp"):
        losses, learned, trainer, seconds = steps_of(case, clip_model, device, prec, "auto")
        expected, of_them, _, without = steps_of(case, clip_model, device, prec, "off")
        graphs = trainer._graphs
        captured = [graph for graph in graphs.captured.values() if graph is not None and graph.trials >= TRIALS]
        found[prec] = {"losses": furthest(losses, expected), "learned": furthest(learned, of_them),
                       "seconds": seconds, "without": without, "refused": graphs.refused}
        ok = ok and graphs.refused == "" and bool(captured) and max(
            found[prec]["losses"], found[prec]["learned"]) <= ALLOWED[prec]
    cells = [f"{found[prec][what]:.1e}" for prec in found for what in ("losses", "learned")]
    pieces = graphs.refused or str(sum(len(graph.pieces) for graph in captured))
    times = [f"{1000 * found['amp'][what]:.1f}" for what in ("without", "seconds")]
    return {**found, "ok": ok, "cells": [*cells, pieces, *times]}


def steps_of(case, clip_model, device, prec, said):
    """(losses, learned tensors, the trainer, seconds of a step, the mean of the last)."""
    (method, options, domains), (_, harness, _, tiny_clip) = case, helpers()
    import test_training_options

    with contextlib.ExitStack() as within:
        if device == "cpu":
            from tape import as_on_a_gpu

            within.enter_context(as_on_a_gpu())
        torch.manual_seed(0)
        trainer = harness.make_trainer(
            method, clip_model, NAMES, {**test_training_options.SMALL.get(method, {}), **options, "PREC": prec},
            domains=domains, settings={"TRAIN.GRAPHS": said}, device=device)
        trainer.precision.scale = min(trainer.precision.scale, 2.0 ** 8)  # no gradient overflows
        losses, start = [], 0.0
        for trainer.batch_idx in range(STEPS):
            if trainer.batch_idx == STEPS - TIMED:
                start = time.perf_counter()
            batch = tiny_clip.batch("graphs", trainer.batch_idx, 8, len(NAMES), domains)
            losses.append(trainer.forward_backward(batch).get("loss", float("nan")))  # which waits for the device
    return losses, list(trainer.trained_state().values()), trainer, (time.perf_counter() - start) / TIMED
