"""What every method trains, what it costs, how near it is to its authors' numbers, and what its published settings
spend: the two tables of trainers/README.md.

    metaprompt method-table                              # print the tables
    metaprompt method-table --write trainers/README.md   # put them between the marks in that file
    metaprompt method-table --timed-on vit_b16           # time the steps on ViT-B/16's architecture

Everything in it is read or measured: paper and subject from the methods' docstrings, parameters counted on a CLIP of
ViT-B/16's architecture with random weights and each method's vit_b16.yaml, the time of a training step against CoOp's
in turns in one process, the largest deviation from the golden records out of a run of tests/test_parity.py, budgets
counted while each method trains with its vit_b16.yaml (tools/results/config_budgets.py).
"""
import contextlib
import io
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch

import train
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError, count_num_param, is_class_bound
from dassl.utils.checkpoint import write_atomically
from runs.run_spec import RunSpec
from tools.results.budgets import HEADERS as BUDGET_HEADERS
from tools.results.config_budgets import config_budget_rows

ROOT = Path(__file__).resolve().parents[1]

REFERENCE = "CoOp"
SHOTS = 16
WARM_UP = 3
MARKS = ("<!-- begin of the table of tools/method_table.py -->", "<!-- end of the table -->")
BUDGET_MARKS = ("<!-- begin of the budgets of tools/method_table.py -->", "<!-- end of the budgets -->")
HEADERS = ("method", "paper", "learned", "trained parameters, ViT-B/16", "scores new classes", "configs",
           "golden records: largest deviation", f"step / {REFERENCE}'s")


def parse_arguments(argv):
    parser = train.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trainer", nargs="+", help="methods; default all")
    parser.add_argument("--root", default="data", help="folder of the datasets; Shapes is drawn there (default data)")
    parser.add_argument("--timed-on", default="tiny", choices=("tiny", "vit_b16"), help="whose steps are timed")
    parser.add_argument("--batch", type=int, default=16, help="images of a timed step (default 16)")
    parser.add_argument("--repeats", type=int, default=40, help="timed steps of each method (default 40)")
    parser.add_argument("--write", metavar="FILE", help="put the tables between the marks in a file")
    train.add_options(parser, "config options for every run: KEY VALUE or KEY=VALUE ...")
    return train.parse_words(parser, sys.argv[1:] if argv is None else argv)


def random_vit_b16():
    """A CLIP of ViT-B/16's architecture with random weights, frozen."""
    from clip.model import CLIP

    torch.manual_seed(0)
    model = CLIP(embed_dim=512, image_resolution=224, vision_layers=12, vision_width=768, vision_patch_size=16,
                 context_length=77, vocab_size=49408, transformer_width=512, transformer_heads=8, transformer_layers=12)
    return model.float().eval().requires_grad_(False)


class Builder:
    """Trainers on Shapes; the CLIPs are built once."""

    def __init__(self, args):
        self.args, self.clips = args, {"ViT-B/16": random_vit_b16()}

    def __call__(self, method, config, *options):
        """The trainer of a method with its config `config`. Raises InputError where it has none or refuses it."""
        path = ROOT / "configs" / "trainers" / method / f"{config}.yaml"
        if not path.is_file():
            raise InputError(f"{method} has no {path.name}")
        common = ("DATASET.NUM_SHOTS", str(SHOTS), "DATALOADER.NUM_WORKERS", "0", "VERBOSE", "False",
                  "STORE.USE", "False")  # a step is timed with its pictures
        spec = RunSpec(root=self.args.root, seed=1, trainer=method, config_file=str(path),
                       dataset_config_file=str(ROOT / "configs" / "datasets" / "shapes.yaml"),
                       options=(*common, *options, *self.args.opts))
        with contextlib.redirect_stdout(io.StringIO()):
            cfg = train.build_config(spec)
            return TRAINER_REGISTRY.get(method)(cfg, clips=self.clips)


def parameters(build, method):
    """Trained parameters in words: a number, and what comes on top for each class."""
    counts = {}
    for which in ("base", "all"):
        trainer = build(method, "vit_b16", "DATASET.SUBSAMPLE_CLASSES", which)
        if not trainer.trains:
            return "0"
        counts[trainer.num_classes] = count_num_param(params=trainer.trainables)
    (few, less), (many, more) = sorted(counts.items())
    each, rest = divmod(more - less, many - few)
    if rest:
        raise AssertionError(f"{method}: {counts} parameters do not grow evenly with the classes")
    fixed = less - each * few
    parts = ([f"{fixed:,}"] if fixed or not each else []) + ([f"{each:,} per class"] if each else [])
    return " + ".join(parts)


def step_times(build, method, args):
    """Median seconds of a training step of the method and of the reference, made in turns: processor time on a CPU,
    which other programs disturb less, else time on the clock."""
    config = args.timed_on
    trainers = [build(name, config, "DATALOADER.TRAIN_X.BATCH_SIZE", str(args.batch)) for name in (method, REFERENCE)]
    batches = [next(iter(trainer.train_loader_x)) for trainer in trainers]
    times: tuple[list[float], list[float]] = ([], [])
    clock = time.process_time if trainers[0].device.type == "cpu" else time.perf_counter
    for trainer in trainers:
        trainer.set_model_mode("train")
        trainer.num_batches = 10**9  # the epoch does not end
    for repeat in range(WARM_UP + args.repeats):
        for trainer, batch, seconds in zip(trainers, batches, times):
            start = clock()
            trainer.forward_backward(dict(batch))
            if trainer.device.type == "cuda":
                torch.cuda.synchronize()
            if repeat >= WARM_UP:
                seconds.append(clock() - start)
    return [statistics.median(seconds) for seconds in times]


def cost(build, method, args):
    if not TRAINER_REGISTRY.get(method).trains:
        return "-"
    own, reference = step_times(build, method, args)
    return f"{own / reference:.2f}"


def deviations():
    """{method: (records, largest deviation)} from a run of the parity tests. Raises InputError if one fails."""
    folder = ROOT / "tests" / "golden"
    methods = {}
    for path in folder.glob("*.npz"):
        with np.load(path, allow_pickle=False) as record:
            methods[path.stem] = json.loads(str(record["meta"]))["method"]
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "parity.xml"
        run = subprocess.run([sys.executable, "-m", "pytest", "-q", "tests/test_parity.py", f"--junitxml={report}"],
                             cwd=ROOT, capture_output=True, text=True)
        if run.returncode:
            said = f"{run.stderr}\n{run.stdout}".strip().splitlines() or ["it said nothing"]
            raise InputError(f"tests/test_parity.py does not pass: {said[-1]}")
        found: dict[str, list[float]] = {}
        for case in ElementTree.parse(report).iter("testcase"):
            record = re.search(r"\[(.+)\]", case.get("name", ""))
            for item in case.iter("property"):
                if record and item.get("name") == "largest_difference":
                    found.setdefault(methods[record[1]], []).append(float(item.attrib["value"]))
    return {method: (len(values), max(values)) for method, values in found.items()}


def subject(trainer):
    """(paper, what is learned) as the docstrings say: "arXiv <number>", else the conference, and the sentence behind
    "Learned:" ("Learned, for each test image anew:" where nothing is trained before)."""
    text = " ".join(f"{trainer.__doc__ or ''} {sys.modules[trainer.__module__].__doc__ or ''}".split())
    paper = re.search(r"arXiv (\d{4}\.\d{5})", text)
    venue = re.search(r"(CVPR|ICCV|ECCV|ICLR|ICML|NeurIPS) \d{4}", text)
    learned = re.search(r"Learned(?:, ([^:]+))?: (.+?)(?=[.;:]( |$))",
                        re.sub(r" \([^)]*\)|, section \d+(\.\d+)*", "", text))
    when = f", {learned[1]}" if learned and learned[1] else ""
    return (f"[{paper[1]}](https://arxiv.org/abs/{paper[1]})" if paper else venue[0] if venue else "-",
            f"{learned[2]}{when}" if learned and (trainer.trains or trainer.adapts) else
            "nothing" if not trainer.trains else "-")


def scores_new_classes(trainer):
    """yes, no, or "with some settings": whether that depends on a switch of the method's config."""
    cfg = get_cfg_default()
    trainer.extend_cfg(cfg)
    node, bound = cfg.TRAINER[trainer.__name__.upper()], {is_class_bound(trainer, cfg)}
    for key, value in list(node.items()):
        if isinstance(value, bool):
            node[key] = not value
            bound.add(is_class_bound(trainer, cfg))
            node[key] = value
    return "with some settings" if len(bound) > 1 else "no" if bound == {True} else "yes"


def row(build, method, parity, args):
    trainer = TRAINER_REGISTRY.get(method)
    paper, learned = subject(trainer)
    new = scores_new_classes(trainer)
    configs = sorted(path.stem for path in (ROOT / "configs" / "trainers" / method).glob("*.yaml"))
    records, largest = parity.get(method, (0, 0))
    return [method, paper, learned, parameters(build, method), new, ", ".join(configs),
            f"{records}: {largest:.0e}" if records else "-", cost(build, method, args)]


def markdown(headers, rows):
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
                     for cells in (headers, ["---"] * len(headers), *rows))


def put(text, marks, table, path):
    """The text of the file `path` with a table between its marks. Raises InputError where it does not hold both once.
    """
    if any(text.count(mark) != 1 for mark in marks):
        raise InputError(f"{path} does not hold the two marks {marks[0]} and {marks[1]}")
    before, behind = text.split(marks[0])[0], text.split(marks[1])[1]
    return f"{before}{marks[0]}\n\n{table}\n\n{marks[1]}{behind}"


def main(argv=None):
    args = parse_arguments(argv)
    if args.repeats < 1 or args.batch < 1:
        raise InputError("--repeats and --batch are at least 1")
    train.discover()
    own = [name for name, trainer in TRAINER_REGISTRY.items() if trainer.__module__.startswith("trainers.")]
    methods = args.trainer or sorted(own, key=str.lower)
    for method in methods:
        TRAINER_REGISTRY.get(method)
    build, parity, rows, left_out = Builder(args), deviations(), [], []
    for method in methods:
        try:
            rows.append(row(build, method, parity, args))
        except (InputError, ValueError) as error:
            left_out.append(f"{method} is left out: {error}")
    table = markdown(HEADERS, rows)
    budgets = markdown(("method", *BUDGET_HEADERS), config_budget_rows([method for method, *_ in rows]))
    print("\n".join([budgets, "", table, *left_out]))
    if args.write:
        text = put(Path(args.write).read_text(encoding="utf-8"), MARKS, table, args.write)
        new = put(text, BUDGET_MARKS, budgets, args.write)
        write_atomically(args.write, lambda file: file.write(new.encode()))
    return table


def command_line():
    """The program; returns its exit status."""
    return train.command_line(main)


if __name__ == "__main__":
    sys.exit(command_line())
