"""Kill runs again and again, and compare how they end with the same runs left alone.

    python tests/chaos.py --kills 100        about three minutes on one core

A run on Shapes with the tiny CLIP is started, killed (SIGKILL, at any moment or inside a write) or stopped (SIGTERM,
SIGINT), and started again until it is whole; then comes the next run, of another method and with another number of
loader workers. Every loss on the way, the prompts, the optimizer, the generators and the results must be bitwise those
of the undisturbed run. Exit status 1 if anything differs.

torch is imported once; every life of a run is a forked child.
"""
import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import train  # noqa: E402
from datasets.shapes import write_shapes  # noqa: E402
from prompting import load_clip  # noqa: E402
from training import PromptTrainer  # noqa: E402

EPOCHS = 4
KINDS = [("CoOp", 0), ("MetaPrompt", 2), ("CoOp", 2), ("MetaPrompt", 0), ("CoCoOp", 0)]  # (method, loader workers)
IN_A_WRITE = ("half written", "before the rename", "after the rename", "before pruning", "after pruning")
STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}
MOST_LIVES = 60  # of one run


# ---- in the child ----
def keep_journal(path):
    """Note every loss, every finished checkpoint and every start of training in the file `path`."""
    journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(*words):
        os.write(journal, (" ".join(map(str, words)) + "\n").encode())

    step, save, resume = PromptTrainer.forward_backward, PromptTrainer.save_model, PromptTrainer.resume_model_if_exist

    def forward_backward(self, batch):
        summary = step(self, batch)
        note("loss", self.epoch, self.batch_idx, float(summary["loss"]).hex())
        return summary

    def save_model(self, epoch, directory, **kwargs):
        save(self, epoch, directory, **kwargs)
        if not kwargs.get("model_name"):
            note("saved", epoch + 1, 0)

    def resume_model_if_exist(self, directory):
        start = resume(self, directory)
        note("start", start, self.first_batch)
        return start

    PromptTrainer.forward_backward, PromptTrainer.save_model = forward_backward, save_model
    PromptTrainer.resume_model_if_exist = resume_model_if_exist


def die_in_a_write(where, count):
    """Kill this process at its `count`-th rename (pruning: removal), at the place `where`."""
    name = "remove" if "pruning" in where else "replace"
    original, calls = getattr(os, name), [0]

    def killing(source, *args):
        calls[0] += 1
        due = calls[0] == count
        if due and where == "half written":
            os.truncate(source, os.path.getsize(source) // 2)
        if due and not where.startswith("after"):
            os.kill(os.getpid(), signal.SIGKILL)
        original(source, *args)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, name, killing)


def live(argv, clips, place, death):
    """The child: one life of a run. Never returns."""
    status = 70
    try:
        out = os.open(f"{place}.out", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(out, 2)
        keep_journal(f"{place}.journal")
        if death:
            die_in_a_write(*death)
        status = train.command_line(lambda: train.main(argv, clips=clips))
        sys.stdout.flush()
    finally:
        os._exit(status)


# ---- in the parent ----
class Chaos:
    """Runs below `folder`, and what was seen of them."""

    def __init__(self, folder, root, clips, rng):
        self.folder, self.root, self.clips, self.rng = Path(folder), root, clips, rng
        self.counts, self.wrong = collections.Counter(), []
        self.references, self.durations = {}, {}

    def argv(self, method, workers, output):
        configs = ROOT / "configs"
        words = ["--root", self.root, "--seed", 1, "--trainer", method, "--output-dir", output,
                 "--dataset-config-file", configs / "datasets" / "shapes.yaml",
                 "--config-file", configs / "trainers" / method / "tiny.yaml", "VERBOSE", False,
                 "DATASET.NUM_SHOTS", 2, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", EPOCHS,
                 "TEST.SPLIT", "val", "DATALOADER.TRAIN_X.BATCH_SIZE", 6, "DATALOADER.NUM_WORKERS", workers]
        return [str(word) for word in words]

    def start(self, kind, output, death=None):
        """Fork one life; returns its process id."""
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            live(self.argv(*kind, output), self.clips, output, death)
        return pid

    def wait(self, pid, timeout=120):
        """The exit status of a child (negative: the signal it died of); a child that hangs is a fault."""
        until = time.time() + timeout
        while time.time() < until:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.wrong.append(f"a run hung for {timeout} s")
        return None

    def reference(self, kind):
        """What the undisturbed run of a kind leaves; the kinds of a method must agree."""
        if kind not in self.references:
            output = self.folder / "whole_{}_{}".format(*kind)
            started = time.time()
            status = self.wait(self.start(kind, output))
            if status != 0:
                raise SystemExit(f"the undisturbed run ended with {status}: "
                                 f"{Path(f'{output}.out').read_text()[-2000:]}")
            self.durations[kind] = time.time() - started
            self.references[kind] = remains(output)
            for other, found in self.references.items():
                if other[0] == kind[0]:
                    self.compare(found, self.references[kind], f"{kind} against {other}, both undisturbed")
        return self.references[kind]

    def compare(self, expected, found, what):
        for name in expected:
            if not same(expected[name], found[name]):
                detail = f" ({expected[name]} and {found[name]})" if name.startswith(("files", "name")) else ""
                self.wrong.append(f"{what}: the {name} differ{detail}")

    def disturb(self, kind, output, kills, stops):
        """Lives of one run until it is whole, or `kills` and `stops` are used up and it is left to end."""
        expected = self.reference(kind)
        for _ in range(MOST_LIVES):
            before = len(journal(output))
            way = self.rng.choice(["any moment"] * (kills > 0) * 3 + ["in a write"] * (kills > 0) * 3
                                  + ["stop"] * (stops > 0) or ["none"])
            where = self.rng.choice(IN_A_WRITE)
            # a life has up to ten renames and two removals
            death = (where, self.rng.randint(1, 2 if "pruning" in where else 9)) if way == "in a write" else None
            pid = self.start(kind, output, death)
            number = None
            if way in ("any moment", "stop"):
                number = signal.SIGKILL if way == "any moment" else self.rng.choice(list(STATUS))
                time.sleep(self.rng.uniform(0, 1.1 * self.durations[kind]))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            status = self.wait(pid)
            if status == -signal.SIGKILL:
                kills -= 1
                self.counts["kills"] += 1
                self.counts[death[0] if death else "any moment"] += 1
            elif number in STATUS and status in (STATUS[number], -number):  # by the signal itself before main begins
                stops -= 1
                self.counts["stops"] += 1
            elif status != 0:
                self.wrong.append(f"{output.name} ended with {status} ({way}): "
                                  f"{Path(f'{output}.out').read_text()[-300:]}")
                return
            self.counts["lives"] += 1
            self.look_at_journal(output, expected["losses"], before, number in STATUS and status != 0)
            if status == 0:
                self.counts["runs"] += 1
                self.compare(expected, remains(output), output.name)
                return
        self.wrong.append(f"{output.name} was not whole after {MOST_LIVES} lives")

    def look_at_journal(self, output, losses, before, stopped):
        """Every loss is the undisturbed run's, no finished epoch is trained again, a stop loses no batch."""
        reached, lines = (0, 0), journal(output)
        self.counts["losses"] += sum(line[0] == "loss" for line in lines[before:])
        for kind, epoch, number, *value in lines:
            if kind == "loss":
                if losses.get((epoch, number)) != value[0]:
                    self.wrong.append(f"{output.name}: another loss in epoch {epoch + 1}, batch {number + 1}")
                if (epoch, number) < reached:
                    self.wrong.append(f"{output.name}: epoch {epoch + 1} was finished and is trained again")
            else:
                if (epoch, number) < reached:
                    self.wrong.append(f"{output.name}: started at {(epoch, number)}, had reached {reached}")
                reached = max(reached, (epoch, number))
        if stopped and len(lines) > before and lines[-1][0] == "loss":
            # the checkpoint of that point: the next life must start there
            with open(f"{output}.journal", "a", encoding="utf-8") as file:
                file.write(f"stopped {lines[-1][1]} {lines[-1][2] + 1}\n")


def journal(output):
    """[(word, epoch, number, ...)] of a run's journal; a line that a kill tore is left out."""
    path, lines = Path(f"{output}.journal"), []
    if path.exists():
        for line in path.read_text().split("\n")[:-1]:
            word, epoch, number, *rest = line.split()
            lines.append((word, int(epoch), int(number), *rest))
    return lines


def remains(output):
    """What a whole run leaves that must not depend on how often it was killed."""
    newest = torch.load(output / "prompt_learner" / f"model.pth.tar-{EPOCHS}", weights_only=True)
    results = json.loads((output / "results.json").read_text())
    return {
        "losses": {(epoch, number): value[0] for word, epoch, number, *value in journal(output) if word == "loss"},
        "prompts": newest["state_dict"],
        "states of the optimizer and its schedule": [newest["optimizers"], newest["schedules"]],
        "generators": newest["rng"],
        "numbers in results.json": results["metrics"],
        "name of the newest checkpoint": (output / "prompt_learner" / "checkpoint").read_text(),
        # A kill after the results and before the end leaves its lock, which nothing takes for a living one's; what the
        # feature store holds changes no number.
        "files": sorted(str(p.relative_to(output)) for p in output.rglob("*")
                        if p.is_file() and not {"tensorboard", "features"} & {*p.parts} and p.name != ".lock"),
    }


def same(first, second):
    """Bitwise, through dicts, lists and tensors."""
    if torch.is_tensor(first):
        return torch.is_tensor(second) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return isinstance(second, dict) and set(first) == set(second) and all(same(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def main(argv=None):
    parser = argparse.ArgumentParser(description="Kill runs and compare how they end with undisturbed ones.")
    parser.add_argument("--kills", type=int, default=100, help="by SIGKILL (default 100)")
    parser.add_argument("--stops", type=int, help="by SIGTERM or SIGINT (default a fifth of the kills)")
    parser.add_argument("--methods", nargs="+", default=["CoOp", "MetaPrompt", "CoCoOp"],
                        help="any methods with a tiny.yaml; default CoOp, MetaPrompt and CoCoOp")
    parser.add_argument("--seed", type=int, help="of the kills; default drawn and printed")
    parser.add_argument("--root", help="folder that holds shapes/; default drawn anew")
    parser.add_argument("--folder", help="work here and leave everything there; default a temporary folder")
    args = parser.parse_args(argv)
    stops = args.kills // 5 if args.stops is None else args.stops
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    torch.set_num_threads(1)
    train.discover()
    folder = args.folder or tempfile.mkdtemp(prefix="chaos-")
    os.makedirs(folder, exist_ok=True)
    root = args.root or os.path.join(folder, "data")
    write_shapes(os.path.join(root, "shapes"))
    chaos, started = Chaos(folder, root, {"tiny": load_clip("tiny")}, random.Random(seed)), time.time()
    try:
        number, kinds = 0, [kind for kind in KINDS if kind[0] in args.methods]
        kinds += [(method, 0) for method in args.methods if method not in dict(KINDS)]
        while (chaos.counts["kills"] < args.kills or chaos.counts["stops"] < stops) and len(chaos.wrong) < 10:
            kind = kinds[number % len(kinds)]
            chaos.disturb(kind, chaos.folder / f"run{number}_{kind[0]}_{kind[1]}", args.kills - chaos.counts["kills"],
                          stops - chaos.counts["stops"])
            number += 1
    finally:
        if not args.folder:
            shutil.rmtree(folder, ignore_errors=True)
    counts = chaos.counts
    places = ", ".join(f"{counts[place]} {place}" for place in ("any moment", *IN_A_WRITE))
    print(f"{counts['kills']} kills ({places}), {counts['stops']} stops by SIGTERM or SIGINT, in {counts['lives']} "
          f"lives of {counts['runs']} whole runs; seed {seed}, {time.time() - started:.0f} s\n"
          f"{counts['losses']} losses looked at; {len(chaos.wrong)} differences")
    for line in chaos.wrong[:20]:
        print(f"  {line}")
    return 1 if chaos.wrong or counts["kills"] < args.kills else 0


if __name__ == "__main__":
    sys.exit(main())
