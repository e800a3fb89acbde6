"""Time a training step and a test batch of a method against its plain twin.

    python -m benchmarks.step --method MetaPrompt --classes 50 --batch 16 --n-ctx 2
"""
import json
import sys

import torch
from tabulate import tabulate

from benchmarks.measure import (
    TOLERANCE,
    alternate,
    in_fresh_process,
    matrix_peak,
    median,
    peak_above,
    ratios,
    seconds,
    timed,
)
from benchmarks.models import random_clip
from benchmarks.sides import METHODS, Work, both_sides
from dassl.config.words import ArgumentParser
from train import command_line

TEST_SET = 50_000  # images over which ours encodes static prompts once: ImageNet's test set


def parse_arguments(argv):
    parser = ArgumentParser(prog="python -m benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=METHODS, required=True, help="whose step is measured")
    parser.add_argument("--classes", type=int, required=True, help="1 to 1000 of ImageNet's")
    parser.add_argument("--batch", type=int, required=True, help="images")
    parser.add_argument("--n-ctx", type=int, default=4, help="context vectors; MetaPrompt: and visual prompts, a layer")
    parser.add_argument("--domains", type=int, default=1, help="above 1: MetaPrompt's domain split")
    parser.add_argument("--layers", type=int, default=0, help="depth of MetaPrompt's prompts; 0: all layers")
    parser.add_argument("--backbone", default="ViT-B/16", choices=("ViT-B/16", "tiny"),
                        help="random weights of that shape, or the tiny CLIP")
    parser.add_argument("--device", default="cpu", help="where: cpu, cuda")
    parser.add_argument("--prec", default="fp32", choices=("fp32", "amp"), help="precision of the frozen towers")
    parser.add_argument("--stage", default="both", choices=("train", "eval", "both"), help="what is measured")
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each side")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for both sides")
    parser.add_argument("--alone", choices=("ours", "plain"),
                        help="one side by itself, its memory first; prints JSON (default both)")
    args = parser.parse_args(argv)
    return args, [Work(args.method, args.classes, args.batch, args.n_ctx, args.domains, args.layers, stage,
                       args.backbone, args.device, args.prec)
                  for stage in (("train", "eval") if args.stage == "both" else (args.stage,))]


def runs_of(work, ours, plain):
    """What is timed on each side -> lists of tensors to compare."""
    def stage(side):
        def run():
            with torch.autocast(torch.device(work.device).type, enabled=work.prec == "amp"):
                return side.train_step() if work.stage == "train" else [[side.evaluate()]]
        return run

    return stage(ours), stage(plain)


def measure(work, pairs=3, memory=True):
    """One work on both sides -> a dict of plain numbers, for JSON."""
    peak = matrix_peak(work.device)
    model = random_clip(work.backbone).to(work.device)
    for run in runs_of(work, *both_sides(work.smallest(), model)):  # to warm up
        run()
    ours, plain = both_sides(work, model)
    remembers = work.stage == "eval" and work.method != "CoCoOp"
    if remembers:  # static prompts are encoded with the first batch of an evaluation
        first = dict(zip(("clock", "processor"), timed(ours.evaluate, work.device)[1:]))
    run_ours, run_plain = runs_of(work, ours, plain)
    found = alternate(run_ours, run_plain, pairs, work.device)
    if remembers:
        found["once"] = {kind: first[kind] - median(found["ours"][kind]) for kind in first}
        for kind in first:  # and shared by all batches of a test set
            found["ours"][kind] = [s + found["once"][kind] * work.batch / TEST_SET for s in found["ours"][kind]]
    found["peak"] = max(peak, matrix_peak(work.device))
    if memory:
        for name in ("ours", "plain"):
            found[name]["memory"] = alone(work, name, repeats=0)["memory"]
    return {"work": vars(work), **found}


def alone(work, name, repeats=3):
    """Peak memory and repeated timings of one side in a process of its own."""
    return in_fresh_process("benchmarks.step", [*work.words(), "--alone", name, "--pairs", str(repeats)])


def measure_alone(work, name, repeats):
    """{"memory": bytes above the weights, "clock", "processor": [seconds]} of a step or batch of one side."""
    ours, plain = both_sides(work)
    run = dict(zip(("ours", "plain"), runs_of(work, ours, plain)))[name]
    times = []
    memory = peak_above(lambda: times.append(timed(run, work.device)[1:]), work.device)
    times += [timed(run, work.device)[1:] for _ in range(repeats)]
    return {"memory": memory, "clock": [t[0] for t in times], "processor": [t[1] for t in times]}


def title(work):
    what = "training step" if work.stage == "train" else "test batch"
    split = f", {work.domains} domains" if work.domains > 1 else ""
    depth = f", {work.layers} layers" if work.layers else ""
    return (f"{work.method}, {work.classes} classes, batch {work.batch}{split}, n_ctx {work.n_ctx}{depth}: {what}, "
            f"{work.backbone}, {work.prec} on {work.device}")


def report(work, found):
    """A measurement as text."""
    unit = "s of processor time" if work.device == "cpu" else "s"
    rows = []
    for name in ("plain", "ours"):
        side, times = found[name], seconds(found[name], work.device)
        rate = side["flop"] / median(times)
        rows.append([name, f"{median(times):.3f}", f"{min(times):.3f} to {max(times):.3f}", f"{side['flop'] / 1e9:.1f}",
                     f"{rate / 1e9:.1f}", f"{100 * rate / found['peak']:.0f} %",
                     f"{side['memory'] / 2**20:.0f} MiB" if "memory" in side else "-"])
    table = tabulate(rows, ["", unit, "spread", "GFLOP", "GFLOP/s", "of the peak", "memory above the weights"],
                     disable_numparse=True)
    of_pairs = ratios(found, work.device)
    lines = [title(work), table,
             f"ratio {median(of_pairs):.2f} ({min(of_pairs):.2f} to {max(of_pairs):.2f}, {found['pairs']} pairs); "
             f"on the clock {median(ratios(found, work.device, 'clock')):.2f}; "
             f"in operations {found['plain']['flop'] / found['ours']['flop']:.2f}"]
    if "once" in found:
        lines.append(f"ours encodes the classes once per evaluation, in {found['once']['processor']:.2f} s, shared by "
                     f"{TEST_SET:,} images")
    names = ("losses", "gradients") if work.stage == "train" else ("logits",)
    lines.append("relative difference: " + ", ".join(f"{name} {value:.1e}"
                                                     for name, value in zip(names, found["differences"])))
    return "\n".join(lines)


def check_equal(work, found):
    """Raises AssertionError when the sides differ by more than rounding."""
    worst = max(found["differences"])
    if work.prec == "fp32" and not worst < TOLERANCE:
        raise AssertionError(f"{title(work)}: the sides differ by {worst:.1e}, more than {TOLERANCE:.0e}")


def main(argv=None):
    args, works = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    if args.alone:
        print(json.dumps(measure_alone(works[0], args.alone, args.pairs)))
        return []
    results = []
    for work in works:
        found = measure(work, args.pairs)
        results.append(found)
        print(report(work, found), end="\n\n", flush=True)
        check_equal(work, found)
    return results


if __name__ == "__main__":
    sys.exit(command_line(main))
