"""What is left to gain: where a step's time goes, and what bfloat16 would bring and cost."""
from dataclasses import replace

from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import alternate
from benchmarks.models import random_clip
from benchmarks.sides import Ours, Work

WORK = Work("MetaPrompt", 20, 4, n_ctx=2)
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::mkldnn_convolution")


def shares(step):
    """{"matrix products", "attention", "other": share of the processor time} of a function."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    times = {"matrix products": 0.0, "attention": 0.0, "other": 0.0}
    for event in found.key_averages():
        kind = ("matrix products" if event.key in PRODUCTS else
                "attention" if "scaled_dot_product" in event.key else "other")
        times[kind] += event.self_cpu_time_total
    return {kind: time / sum(times.values()) for kind, time in times.items()}


def measure_rest(pairs):
    """Both for a small training step of MetaPrompt: shares, and float32 against bfloat16 (PREC amp on a CPU)."""
    model = random_clip(WORK.backbone)
    ours, half = (Ours(work, model) for work in (WORK, replace(WORK, prec="amp")))
    ours.train_step()
    found = alternate(half.train_step, ours.train_step, pairs, WORK.device)
    return {"shares": shares(ours.train_step), "float32": found["plain"], "bfloat16": found["ours"],
            "differences": found["differences"]}
