"""Kill a protocol of several processes again and again, and compare how it ends with the same protocol left alone.

    python tests/chaos_protocol.py --kills 60        about fifteen minutes on two cores

CoOp and MetaPrompt on Shapes with the tiny CLIP, two seeds, two runs at a time with two loader workers each. At a
random moment the parent, one that makes a run, a loader's worker or the whole group is killed (SIGKILL), or the parent
or the group is asked to stop (SIGTERM, SIGINT); the same command follows at once, until the protocol is whole. Then
comes the next one, in another folder. The table, what every run has learned and its results must be bitwise those of
the protocol left alone, nothing of a killed one may live ten seconds later, and no start may find a folder in use. Exit
status 1 if anything is otherwise. Processes are found in /proc.
"""
import argparse
import collections
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from chaos import EPOCHS, ROOT, STATUS, remains, same

from datasets.shapes import write_shapes

TARGETS = ("parent", "worker", "loader worker", "group")
STAYS = 10  # seconds that a process may outlive the one it works for
LIFE = "CHAOS_LIFE"  # in the environment of every process of a life: which one
HANGS = 240  # seconds after which a life is taken to hang


# ---- processes ----
def processes():
    """{pid: parent} of all processes of this machine."""
    found = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError, ValueError):
            found[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def children(pid, of):
    return [child for child, parent in of.items() if parent == pid]


def victims(target, parent):
    """The processes that may be killed as `target` now."""
    of = processes()
    workers = children(parent, of)
    loaders = [child for worker in workers for child in children(worker, of)]
    return {"parent": [parent], "group": [parent], "worker": workers, "loader worker": loaders}[target]


def living(life):
    """The processes of a life."""
    found = []
    for pid in processes():
        with contextlib.suppress(OSError):
            if f"{LIFE}={life}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
    return found


# ---- lives ----
class Chaos:
    """Protocols below `folder`, and what was seen of them."""

    def __init__(self, folder, root, rng):
        self.folder, self.root, self.rng = Path(folder), root, rng
        self.counts, self.wrong, self.timers = collections.Counter(), [], []
        self.lives = 0

    def start(self, output):
        """Begin a life of a protocol; its process and its name."""
        words = [sys.executable, ROOT / "metaprompt.py", "compare", "--trainer", "CoOp", "MetaPrompt",
                 "--seeds", 1, 2, "--dataset", "shapes", "--cfg", "tiny", "--shots", 2, "--root", self.root,
                 "--output", output, "--jobs", 2, "VERBOSE", False, "OPTIM.MAX_EPOCH", EPOCHS,
                 "DATALOADER.TRAIN_X.BATCH_SIZE", 6, "DATALOADER.NUM_WORKERS", 2, "USE_CUDA", False]
        self.lives += 1
        life = f"{os.getpid()}-{self.lives}"
        with open(f"{output}.{self.lives}.out", "w", encoding="utf-8") as file:
            process = subprocess.Popen([str(word) for word in words], stdout=file, stderr=file, start_new_session=True,
                                       env={**os.environ, LIFE: life, "OMP_NUM_THREADS": "1"})
        return process, life, Path(file.name)

    def wait(self, process):
        """Its exit status; one that hangs is a fault, and is ended."""
        try:
            return process.wait(HANGS)
        except subprocess.TimeoutExpired:
            self.wrong.append(f"a life hung for {HANGS} s")
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait()

    def whole(self, output):
        """Make a protocol that is left alone; (what it leaves, seconds)."""
        started = time.time()
        process, _, said = self.start(output)
        if self.wait(process) != 0:
            raise SystemExit(f"the protocol left alone failed: {said.read_text()[-2000:]}")
        found = left(output, said)
        if not found["table"]:
            raise SystemExit(f"the protocol left alone has printed no table:\n{said.read_text()[-2000:]}")
        return found, time.time() - started

    def strike(self, process, target, number, moment):
        """Send the signal at the moment, or as soon as there is such a process; whether it was sent."""
        until = time.time() + moment
        while process.poll() is None:
            if time.time() >= until and (found := victims(target, process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    if target == "group":
                        os.killpg(process.pid, number)
                    else:
                        os.kill(self.rng.choice(found), number)
                    return True
            time.sleep(0.01)
        return False

    def disturb(self, output, kills, expected, seconds):
        """Lives of a protocol until it is whole; the last one is left alone where `kills` are used up."""
        while len(self.wrong) < 10:
            target, stops = self.rng.choice(TARGETS), self.rng.random() < 0.25
            number = self.rng.choice(list(STATUS)) if stops and target in ("parent", "group") else signal.SIGKILL
            moment = self.rng.uniform(0, 0.5 * seconds)
            process, life, said = self.start(output)
            struck = kills > 0 and self.strike(process, target, number, moment)
            status = self.wait(process)
            # Those that are left of it have ten seconds; the next life begins meanwhile.
            self.timers.append(threading.Timer(STAYS, self.look_for_orphans, (life, f"{target}, {number.name}")))
            self.timers[-1].start()
            if struck:
                kills -= 1
                self.counts["strikes"] += 1
                self.counts[target if number == signal.SIGKILL else number.name] += 1
            print(f"life {self.lives}: {f'{target}, {number.name}' if struck else 'left alone'}: ended with {status}, "
                  f"{len(self.wrong)} faults", file=sys.stderr, flush=True)
            self.judge(status, target if struck else None, number, said)
            if status == 0:
                self.counts["whole"] += 1
                for name, difference in differences(expected, left(output, said)):
                    self.wrong.append(f"{output.name}: {name}: {difference}")
                return

    def judge(self, status, target, number, said):
        """Whether a life has ended as what was done to it explains."""
        text = said.read_text()
        if re.search(r"is in use by process \d+ on ", text):  # not the note that such a one is waited for
            self.wrong.append(f"{said.name}: a folder was in use")
        explained = {0} if target is None or target in ("worker", "loader worker") else {0, -number}
        if target in ("worker", "loader worker"):
            explained.add(2)
            if status == 2 and not re.search("ended by signal 9|a loader worker died", text):
                self.wrong.append(f"{said.name}: {text[-300:]}")
        elif target and number in STATUS:
            explained.add(STATUS[number])
        if status not in explained or "Traceback" in text and number == signal.SIGKILL:
            self.wrong.append(f"{said.name}: ended with {status} ({target}, {number.name}): {text[-300:]}")

    def look_for_orphans(self, life, what):
        if found := living(life):
            self.wrong.append(f"{len(found)} processes lived {STAYS} s after {what}")
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


# ---- what is compared ----
def left(output, said):
    """What a whole protocol leaves: {what: value}; times are no part of it."""
    found = {"table": table(said.read_text())}
    for path in sorted(output.rglob("results.json")):
        name, results = str(path.parent.relative_to(output)), json.loads(path.read_text())
        found[f"{name}: metrics"] = results["metrics"]
        found[f"{name}: predictions"] = (path.parent / "predictions.csv.gz").read_bytes()
        if (path.parent / "prompt_learner").is_dir():
            found |= {f"{name}: {what}": value for what, value in remains(path.parent).items()}
    return found


def table(text):
    """The cells of the accuracies in what a protocol prints, row by row."""
    return [re.findall(r"[A-Za-z]\w*|\d+\.\d\d(?!\d)|±", line) for line in text.splitlines()
            if line.startswith(("CoOp ", "MetaPrompt "))]


def differences(expected, found):
    for name in sorted(expected.keys() | found.keys()):
        if name not in expected or name not in found:
            yield name, "there in one only"
        elif not same(expected[name], found[name]):
            yield name, "another one"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60, help="and stops together (default 60)")
    parser.add_argument("--seed", type=int, help="of the kills; default drawn and printed")
    parser.add_argument("--root", help="folder that holds shapes/; default drawn anew")
    parser.add_argument("--folder", help="work here and leave everything there; default a temporary folder")
    args = parser.parse_args(argv)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    folder = args.folder or tempfile.mkdtemp(prefix="chaos-")
    os.makedirs(folder, exist_ok=True)
    root = args.root or os.path.join(folder, "data")
    write_shapes(os.path.join(root, "shapes"))
    chaos, started = Chaos(folder, root, random.Random(seed)), time.time()
    try:
        expected, seconds = chaos.whole(chaos.folder / "alone")
        number = 0
        while chaos.counts["strikes"] < args.kills and len(chaos.wrong) < 10:
            number += 1
            chaos.disturb(chaos.folder / f"protocol{number}", args.kills - chaos.counts["strikes"], expected, seconds)
        for timer in chaos.timers:
            timer.join()
    finally:
        if not args.folder:
            shutil.rmtree(folder, ignore_errors=True)
    counts = chaos.counts
    kinds = ", ".join(f"{counts[kind]} {kind}" for kind in (*TARGETS, *(each.name for each in STATUS)))
    print(f"{counts['strikes']} kills and stops ({kinds}) in {chaos.lives} lives of {counts['whole']} whole protocols; "
          f"seed {seed}, {time.time() - started:.0f} s; {len(expected)} things of each compared; "
          f"{len(chaos.wrong)} faults")
    for line in chaos.wrong[:20]:
        print(f"  {line}")
    return 1 if chaos.wrong or counts["strikes"] < args.kills else 0


if __name__ == "__main__":
    sys.exit(main())
