"""Parts of `benchmarks.gpu` that take times: training steps and test batches, and the loader that feeds them."""
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.loader import BATCH, draw_pictures, loader_of
from benchmarks.measure import TOLERANCE, CountOperations, matrix_peak, peak_above, relative_difference, timed
from benchmarks.models import random_clip
from benchmarks.sides import Ours, Plain, Work
from benchmarks.step import TEST_SET, runs_of
from benchmarks.suite import ROWS, Row
from dassl.engine.loaders import end_workers
from training.graphs import TRIALS

HEADERS = {
    "speed": ["work", "plain, ms", "ours, ms", "without graphs", "ratio", "goal", "plain: of the peak",
              "ours: of the peak", "plain: kernels", "ours: kernels", "plain: GPU busy", "ours: GPU busy", "plain: MiB",
              "ours: MiB", "losses (logits)", "gradients", "passes"],
    "input": ["what", "images/s", "of what the step takes", "passes"],
}
# The most important first: a part may run out of time.
ORDER = ("b2n_50", "coop", "cocoop_train", "eval", "dg_3", "cocoop_eval", "b2n_100", "dg_5", "coop_200")
MORE = (  # batches that people use on such a card
    Row("eval_200", "evaluation of a static prompt (CoOp), 1000 classes, batch 200", None,
        Work("CoOp", 1000, 200, stage="eval")),
    Row("coop_1000", "CoOp, 1000 classes, batch 32", None, Work("CoOp", 1000, 32)),
    Row("b2n_500", "MetaPrompt base-to-new, 500 classes, batch 16, n_ctx 2", None,
        Work("MetaPrompt", 500, 16, n_ctx=2)),
)
REPEATS = {"plain": 3, "ours": 9, "without graphs": 3}
GOALS = {"b2n_50": 2.5, "coop": 2.0, "cocoop_train": 4.0, "eval": 3.0}  # ratios in amp, on a card such as these
GOALS_FOR = ("H100", "H200")
WORKERS, LISTED = (0, 8, 16), 30  # the drawn pictures are listed so often, to make an epoch long
STEPS = {  # what the loader has to feed
    "CoOp, 100 classes, batch 32": Work("CoOp", 100, BATCH),
    "MetaPrompt, 50 classes, batch 16": Work("MetaPrompt", 50, 16, n_ctx=2),
}


def rows_for(device):
    """The rows in the order they are made; without a GPU a few small ones, to try the program."""
    by_name = {row.name: row for row in (*ROWS, *MORE)}
    if device != "cpu":
        return [replace(row, work=replace(row.work, device=device))
                for row in (*(by_name[name] for name in ORDER), *MORE)]
    return [replace(by_name[name], work=replace(by_name[name].work, classes=6, batch=4, backbone="tiny"))
            for name in ("b2n_50", "coop", "eval")]


# ---- speed ----
def speed_rows(device):
    """(title, function -> row): a row of `suite.ROWS` in float32, then in amp."""
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    size = 8192 if device != "cpu" else 512
    half = torch.float16 if device != "cpu" else torch.bfloat16
    peaks = {"fp32": matrix_peak(device, torch.float32, size), "amp": matrix_peak(device, half, size)}
    yield "measured peaks of a matrix product", lambda: {
        "ok": None, "peaks": peaks, "cells": [f"{name}: {peak / 1e12:.1f} TFLOP/s" for name, peak in peaks.items()]}
    rows = rows_for(device)
    model = random_clip(rows[0].work.backbone).to(device)
    exact: dict[str, list] = {}  # what the plain side gave in float32, which amp is compared with, too
    for row in rows:
        for prec in ("fp32", "amp"):
            work = replace(row.work, prec=prec)
            goal = GOALS.get(row.name) if prec == "amp" and device != "cpu" else None
            yield f"{row.what}, {prec}", partial(compared_speed, work, row.at_least, model, peaks[prec], exact, goal)


def compared_speed(work, at_least, model, peak, exact, goal=None):
    ours = Ours(work, model)
    plain = Plain(work, model, ours)
    runs, sides, results = dict(zip(("ours", "plain"), runs_of(work, ours, plain))), {}, {}
    settled = settle(work, ours)
    once = 0.0
    if work.stage == "eval":  # what is remembered with the first batch is shared by those of a test set
        runs["ours"]()
        ours.new_evaluation()
        first = timed(runs["ours"], work.device)[1]
    for name in ("ours", "plain"):
        with CountOperations() as counter, ours.without_graphs():  # which would show no operation
            runs[name]()
        results[name] = runs[name]()
        sides[name] = {"flop": counter.flop, "seconds": [], "bytes": peak_above(runs[name], work.device)}
    for number in range(REPEATS["ours"]):
        for name in ("plain", "ours"):
            if number < REPEATS[name]:
                sides[name]["seconds"].append(timed(runs[name], work.device)[1])
    eager = []
    if work.stage == "train":
        with ours.without_graphs():
            eager = [timed(runs["ours"], work.device)[1] for _ in range(REPEATS["without graphs"])]
    for name in ("ours", "plain"):
        sides[name]["median"] = statistics.median(sides[name]["seconds"])
        sides[name].update(launches(runs[name], work.device))
    if work.stage == "eval" and work.method != "CoCoOp":
        once = max(0.0, first - sides["ours"]["median"])
        ours.new_evaluation()
        sides["ours"]["of the first batch"] = launches(runs["ours"], work.device).get("launches")
        sides["ours"]["median"] += once * work.batch / TEST_SET
    # amp is compared with the plain side in float32, its launches and times with the plain side in amp.
    key = str(replace(work, prec="fp32"))
    if work.prec == "fp32":
        exact[key] = results["plain"]
    different = [relative_difference(a, b) for a, b in zip(results["ours"], exact.get(key, results["plain"]))]
    ratio = sides["plain"]["median"] / sides["ours"]["median"]
    ok = max(different) < TOLERANCE if work.prec == "fp32" else None
    if goal and any(name in torch.cuda.get_device_name(work.device) for name in GOALS_FOR):
        ok = ratio >= goal

    def cells(of, text):
        return [text(sides[name], sides[name][of]) if sides[name].get(of) is not None else "-"
                for name in ("plain", "ours")]

    return {"work": vars(work), **sides, "ratio": ratio, "goal on the CPU": at_least, "once": once, "differences":
            different, "scale": settled, "without graphs": eager, "refused": ours.trainer._graphs.refused, "goal": goal,
            "ok": ok, "cells": [
                *cells("median", lambda side, value: f"{1000 * value:.1f}"),
                f"{1000 * statistics.median(eager):.1f}" if eager else "-", f"{ratio:.2f}", f"{goal or '-'}",
                *cells("flop", lambda side, value: f"{100 * value / side['median'] / peak:.0f} %"),
                *cells("launches", lambda side, value: f"{value:,}" + (
                    f" (first batch {side['of the first batch']:,})" if side.get("of the first batch") else "")),
                *cells("busy", lambda side, value: f"{100 * value / side['median']:.0f} %"),
                *cells("bytes", lambda side, value: f"{value / 2**20:.0f}"),
                *([f"{value:.0e}" for value in different] + ["-"])[:2]]}


def settle(work, ours):
    """Lower the loss scale until a step's gradients are finite, as the first batches of a run do, and let the steps be
    captured as graphs; -> the scale."""
    precision = ours.trainer.precision
    for _ in range(30):
        if work.stage == "eval":
            break
        ours.reset()
        if "overflow" not in ours.trainer.forward_backward(ours.batch):
            for _ in range(1 + TRIALS):
                ours.train_step()
            break
    return precision.scale


def launches(run, device):
    """{"launches": kernels that a run starts, "copies": of memory, "busy": seconds that the GPU computes}; empty
    without a GPU, or where its profiler does not work."""
    if device == "cpu":
        return {}
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize(device)
    events = [event for event in found.events() if event.device_type == torch.autograd.DeviceType.CUDA
              and not getattr(event, "is_user_annotation", False)]
    kernels = [event for event in events if not event.name.startswith(("Memcpy", "Memset"))]
    if not kernels:
        return {}
    return {"launches": len(kernels), "copies": len(events) - len(kernels),
            "busy": sum(event.time_range.elapsed_us() for event in events) / 1e6}


# ---- input ----
def input_rows(device):
    """Images per second of the loader, of a step, and of both together."""
    torch.set_num_threads(1)
    workers, listed = (WORKERS, LISTED) if device != "cpu" else ((0, 2), 2)
    folder = tempfile.TemporaryDirectory()
    items = draw_pictures(folder.name) * listed
    model = random_clip("ViT-B/16" if device != "cpu" else "tiny").to(device)
    takes: dict[str, float] = {}
    for title, work in STEPS.items():
        backbone = "tiny" if device == "cpu" else work.backbone
        work = replace(work, device=device, prec="amp", backbone=backbone)
        yield f"the step takes: {title}, amp", partial(step_takes, title, work, model, takes)
    for megabytes in (0, 8192):
        for number in workers:
            name = f"the loader gives: {number} workers, {'pictures kept' if megabytes else 'decoded each time'}"
            yield name, partial(loader_gives, items, number, megabytes, device, takes)
    if device != "cpu":
        for number in workers[1:]:
            for title, work in STEPS.items():
                if work.batch == BATCH:
                    yield f"both together: {title}, {number} workers, decoded each time", partial(
                        together, items, number, replace(work, device=device, prec="amp"), model)
    folder.cleanup()


def step_takes(title, work, model, takes):
    ours = Ours(work, model)
    settle(work, ours)
    seconds = statistics.median(timed(ours.train_step, work.device)[1] for _ in range(9))
    takes[title] = work.batch / seconds
    return {"ok": None, "images_per_second": takes[title], "cells": [f"{takes[title]:,.0f}", "1"]}


def loader_gives(items, workers, megabytes, device, takes):
    loader = loader_of(items if workers else items[:len(items) // 6], workers, megabytes)
    for epoch in range(2):  # the first starts the workers and keeps the pictures
        loader.batch_sampler.set_epoch(epoch)
        start, images = time.perf_counter(), 0
        for batch in loader:
            images += len(batch["img"].to(device, non_blocking=True))
    if device != "cpu":
        torch.cuda.synchronize(device)
    rate = images / (time.perf_counter() - start)
    end_workers(loader)
    return {"ok": None, "images_per_second": rate, "asked": workers, "workers": loader.num_workers,
            "cells": [f"{rate:,.0f}", "; ".join(f"{rate / most:.1f} ({title})" for title, most in takes.items())]}


def together(items, workers, work, model):
    """Images per second of steps that wait for the loader's batches, from the second epoch on."""
    ours, loader = Ours(work, model), loader_of(items, workers, 0)
    settle(work, ours)
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        torch.cuda.synchronize(work.device)
        start, images = time.perf_counter(), 0
        for batch in loader:
            ours.trainer.forward_backward(batch)
            images += len(batch["label"])
        torch.cuda.synchronize(work.device)
    rate = images / (time.perf_counter() - start)
    end_workers(loader)
    return {"ok": None, "images_per_second": rate, "cells": [f"{rate:,.0f}", "-"]}
