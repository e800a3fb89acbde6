"""Hostile inputs without end: every reader of files and words is given generated and damaged ones, through the
project's own entries.

    python tests/fuzz.py --minutes 60 --seed 1
    python tests/fuzz.py --minutes 5 --only images checkpoints --memory 1500
    python tests/fuzz.py --replay output/fuzz/images-ValueError-images.py-42.input

An input is well read where it is accepted, or refused in one line (`train.mendable`). Anything else is a fault: another
exception, a crash, more than --limit seconds, more than --memory megabytes, a number that is not finite, a write
outside the folder that it may write to, a program started, a connection made. Each distinct fault is kept below --keep:
NAME.input, and NAME.txt with the reader, the seed and the traceback.

Input n of a reader is a function of (seed, reader, n). The inputs run in a child process, which is replaced when it
hangs or dies; the readers share the time equally.
"""
import argparse
import contextlib
import ctypes
import errno
import faulthandler
import hashlib
import mmap
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT / "tests" / "golden", ROOT / "tests", ROOT):
    sys.path.insert(0, str(folder))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import fuzz_readers  # noqa: E402
import torch  # noqa: E402

import train  # noqa: E402

ATTEMPTS = 20  # at drawing an input
POLL = 0.02  # seconds between two looks at the child
TELLS = 0.3  # seconds for a child to say where it is, before it is killed
PROGRESS = 30  # seconds between two lines
OWN = 70  # exit status of a child that failed outside of a reader
MOST_INPUTS = 5000  # of one child
GROWTH = 300  # megabytes that a child may keep before it is replaced
STATE = struct.Struct("qdq")  # the child's words: number of the input, when it began, memory then (bytes)
STOP = struct.Struct("q")  # the parent's, behind them: whether to stop
MB = 1 << 20


# ---- memory ------------------------------------------------------------------------------------------------------


def resident(pid="self"):
    """Bytes that a process holds in memory; 0 where it is gone."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError):
        return 0


def forget_peak():
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak():
    """Bytes that this process held at most since `forget_peak`."""
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+)", file.read())[1]) * 1024


# ---- one input ---------------------------------------------------------------------------------------------------


def input_of(reader, seed, number):
    """The bytes of input `number`."""
    for attempt in range(ATTEMPTS):
        with contextlib.suppress(Exception):  # a draw that cannot be written, such as text of half a character
            return reader.make(random.Random(f"{seed}/{reader.name}/{number}/{attempt}"))
    return reader.make(random.Random(f"{seed}/{reader.name}/{number}"))


def place_of(error):
    """file:line of the innermost frame of this project's code in an exception's traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_ours(frame.filename)]
    frame = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
    return f"{os.path.relpath(frame.filename, ROOT)}:{frame.lineno}"


def _is_ours(file):
    file = os.path.realpath(file)
    return file.startswith(f"{ROOT}/") and "/.venv/" not in file and os.path.basename(file)[:4] != "fuzz"


def judged(reader, data, scratch):
    """(outcome, key, detail) of reading an input: ("accepted" | "refused" | "fault", what is counted once, text)."""
    watch.start(scratch)
    try:
        reader.read(data, scratch)
        found = "accepted", "", ""
    except BaseException as error:
        line, where = told(error), f"{type(error).__name__} {place_of(error)}"
        if isinstance(error, fuzz_readers.Fault):
            where = f"Fault: {str(error).partition(':')[0]}"
        # the end of a long one is what matters, and what a recursion repeats is left out
        text = "".join(traceback.format_exception(error, limit=-40))[-8000:]
        found = ("fault", where, text) if line is None else ("refused", where, line)
    finally:
        seen = watch.stop()
    if seen:
        what, text = seen[0]
        return "fault", what, f"{what}\n{text}"
    return found


def told(error):
    """The line that the program would end with; None for a fault."""
    if isinstance(error, SystemExit):
        return "exit" if error.code in (0, None) else None
    if not isinstance(error, Exception) or isinstance(error, MemoryError):
        return None
    line = train.mendable(error)
    return line if line and len(line.splitlines()) == 1 else None


class Watch:
    """Says what an input has done that none may, and keeps it from being done, by Python's audit events: changes
    outside the scratch folder, programs, connections."""

    CHANGES = {"os.mkdir": (0,), "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "os.symlink": (1,),
               "os.link": (0, 1), "os.chmod": (0,), "os.chown": (0,), "os.utime": (0,),
               "shutil.rmtree": (0,)}  # which of an event's words are paths
    FOLLOW = {"open", "os.chmod", "os.utime", "os.truncate"}  # what goes through a link
    NEVER = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "os.kill",
             "os.killpg", "socket.sendto", "socket.bind", "socket.getaddrinfo"}
    POOL = {"os.fork", "os.kill"}
    FREE = ("/dev/null", "/proc/", "/dev/tty")

    def __init__(self):
        self.scratch, self.seen, self.hooked = None, [], False

    def start(self, scratch):
        if not self.hooked:  # a hook is for ever: only children have it
            sys.addaudithook(self.hook)
            self.hooked = True
        self.seen, self.scratch = [], f"{os.path.realpath(scratch)}/"

    def stop(self):
        self.scratch = None
        return self.seen

    def hook(self, event, args):
        if self.scratch is None:
            return
        if event in self.NEVER:
            self.refuse(event, args)
        elif event == "open":
            path, _, flags = args
            if isinstance(path, (str, bytes)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.check(event, path)
        elif event == "os.truncate":
            if isinstance(args[0], (str, bytes)):  # else it is an open file
                self.check(event, args[0])
        elif event in self.CHANGES and args[-1] in (-1, None):  # else it is below an open folder
            for place in self.CHANGES[event]:
                if isinstance(args[place], (str, bytes)):
                    self.check(event, args[place])

    def check(self, event, path):
        scratch, self.scratch = self.scratch, None  # what follows is no input's doing
        try:
            path = os.fsdecode(path)
            real = os.path.realpath(path) if event in self.FOLLOW else os.path.join(
                os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))
            inside = f"{real}/".startswith(scratch) or real.startswith(self.FREE) or (
                "/__pycache__/" in real and real.startswith((f"{ROOT}/", sys.prefix, sys.base_prefix)))
        except (OSError, ValueError):  # what cannot be looked up cannot be changed
            return
        finally:
            self.scratch = scratch
        if not inside:
            self.refuse(f"{event} outside", (real,))

    def refuse(self, what, args):
        frames = traceback.extract_stack()
        if what in self.POOL and any(frame.filename.endswith("concurrent/futures/process.py") for frame in frames):
            return  # a reader in a process of its own, which has this hook, too
        ours = [frame for frame in frames if _is_ours(frame.filename)]
        where = f"{os.path.relpath(ours[-1].filename, ROOT)}:{ours[-1].lineno}" if ours else ""
        text = "".join(traceback.format_list(frames[-20:]))
        self.seen.append((f"{what} {where}", f"{str(args)[:500]}\n{text}"))
        raise PermissionError(errno.EPERM, f"the fuzzer does not let an input do this ({what})")


watch = Watch()


# ---- the child ---------------------------------------------------------------------------------------------------


def child(reader, seed, numbers, data, world, state, pipe, stack, memory):
    """Read inputs until told to stop. numbers: (first, last or None); data: an input that stands in for generated ones.
    """
    os.setpgid(0, 0)
    with contextlib.suppress(OSError, AttributeError):  # on Linux: end with the parent, however that ends
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    told_to = open(stack, "w")
    faulthandler.enable(told_to, all_threads=False)
    faulthandler.register(signal.SIGUSR1, told_to, all_threads=False)
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (size + 8 * memory * MB,) * 2)  # the machine's other programs are to live
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    began_with, (first, last) = resident(), numbers
    number = first
    while last is None or number <= last:
        scratch = world.fresh()
        os.chdir(scratch)
        reset()
        forget_peak()
        before = resident()
        STATE.pack_into(state, 0, number, time.monotonic(), before)
        began = time.monotonic()
        content = data if data is not None else input_of(reader, seed, number)
        world.current.write_bytes(content)
        outcome, key, detail = judged(reader, content, scratch)
        seconds = time.monotonic() - began
        more = max(0, peak() - before) / MB
        pipe.send((number, outcome, key, detail, seconds, more))
        number += 1
        if outcome == "fault" or stopping(state) or number - first >= MOST_INPUTS or \
                resident() - began_with > GROWTH * MB:
            break
    pipe.send(None)
    pipe.close()
    os._exit(0)


def stopping(state):
    return STOP.unpack_from(state, STATE.size)[0]


def reset():
    """What an input may have left in the process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)


# ---- the parent --------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What was seen of a reader."""

    reader: object
    next: int = 0  # number of the input
    time: float = 0.0
    counts: Counter = field(default_factory=Counter)
    lines: set = field(default_factory=set)  # where inputs are refused
    faults: dict = field(default_factory=dict)  # key: how often
    slowest: float = 0.0
    memory: float = 0.0

    def add(self, outcome, key, seconds, memory):
        self.counts[outcome] += 1
        self.slowest, self.memory = max(self.slowest, seconds), max(self.memory, memory)
        if outcome == "refused":
            self.lines.add(key)
        if outcome == "fault":
            self.faults[key] = self.faults.get(key, 0) + 1


class Fuzzer:
    """Runs readers on inputs.

    Args:
        readers: `fuzz_readers.Reader`s, prepared; world: their `fuzz_readers.World`.
        seed: of the inputs. limit: seconds an input may take. memory: megabytes it may take.
        keep: the folder that faults are written to; None: nowhere.
    """

    def __init__(self, readers, world, seed, limit=10, memory=1500, keep=None, say=print):
        self.world, self.seed, self.limit, self.memory, self.keep, self.say = world, seed, limit, memory, keep, say
        self.tallies = [Tally(reader) for reader in readers]
        self.stack = world.folder / "stack.txt"
        self.told = self.began = time.monotonic()

    def run(self, seconds, inputs=None):
        """For so many seconds, or until every reader had so many inputs."""
        end = time.monotonic() + seconds
        turn = min(20, max(1, seconds / len(self.tallies) / 10))
        while (now := time.monotonic()) < end:
            open_ones = [tally for tally in self.tallies if inputs is None or tally.next < inputs]
            if not open_ones:
                break
            tally = min(open_ones, key=lambda tally: tally.time)
            self.turn(tally, min(now + turn, end), None if inputs is None else inputs - 1)
            tally.time += time.monotonic() - now

    def turn(self, tally, until, last):
        while time.monotonic() < until and (last is None or tally.next <= last):
            self.one_child(tally, until, last)

    def one_child(self, tally, until, last=None, data=None, again=False):
        """Read inputs in one child until it ends or is ended."""
        first = tally.next
        state = mmap.mmap(-1, STATE.size + STOP.size)
        STATE.pack_into(state, 0, first, time.monotonic(), 1 << 62)
        ours, theirs = multiprocessing.Pipe(duplex=False)
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                child(tally.reader, self.seed, (first, last), data, self.world, state, theirs, self.stack, self.memory)
            except BaseException:
                Path(f"{self.stack}.own").write_text(traceback.format_exc())
            finally:
                os._exit(OWN)
        theirs.close()
        ended = None
        try:
            ended = self.attend(tally, pid, ours, state, until)
        finally:
            for group in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    group(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            number, started, before = STATE.unpack_from(state)
            ours.close()
            state.close()
        if ended == "whole":
            return
        seconds, stack = time.monotonic() - started, self.stack.read_text(errors="replace")
        where = self.place_in(stack)
        if ended == "hangs" and not again:  # a machine may be slow; an input that hangs does so twice
            tally.next = number
            self.one_child(tally, time.monotonic() + 10**6, number, data, again=True)
            return
        word = {"hangs": "hang", "memory": "memory"}.get(ended) or (
            f"signal {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status)
            else f"exit {os.WEXITSTATUS(status)}")
        if word == f"exit {OWN}":  # not the reader's: what makes or keeps inputs has failed
            stack = Path(f"{self.stack}.own").read_text()
            word, where = "the fuzzer itself:", stack.strip().splitlines()[-1][:80]
        content = self.world.current.read_bytes() if self.world.current.exists() else b""
        self.note(tally, number, "fault", f"{word} {where}", f"{word}\n{stack}", seconds,
                  self.memory if word == "memory" else 0, content)

    def attend(self, tally, pid, pipe, state, until):
        """Follow a child. Returns whole (it ended by itself), gone (it died), hangs or memory (it is to be killed)."""
        while True:
            if connection.wait([pipe], POLL):
                try:
                    answer = pipe.recv()
                except (EOFError, OSError):
                    return "gone"
                if answer is None:
                    return "whole"
                number, outcome, key, detail, seconds, memory = answer
                if outcome != "fault" and memory > self.memory:
                    outcome, key, detail = "fault", "memory for a moment", f"{memory:.0f} MB"
                content = self.world.current.read_bytes() if outcome == "fault" else b""
                self.note(tally, number, outcome, key, detail, seconds, memory, content)
            number, started, before = STATE.unpack_from(state)
            now = time.monotonic()
            if now > until:
                STOP.pack_into(state, STATE.size, 1)
            over = "memory" if resident(pid) - before > self.memory * MB else \
                "hangs" if now - started > self.limit and number >= tally.next else ""
            if over:
                STOP.pack_into(state, STATE.size, 1)  # the signal may wake it: it is not to go on then
                if STATE.unpack_from(state)[0] != number:
                    continue
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR1)
                time.sleep(TELLS)
                return over
            self.progress(now)

    def note(self, tally, number, outcome, key, detail, seconds, memory, content):
        tally.next = number + 1
        key = f"{key}"
        known = key in tally.faults
        tally.add(outcome, key, seconds, memory)
        if outcome == "fault" and not known:
            self.say(f"FAULT {tally.reader.name}, input {number}: {key}")
            if self.keep:
                self.store(tally.reader.name, number, key, detail, content)

    def store(self, name, number, key, detail, content):
        os.makedirs(self.keep, exist_ok=True)
        short = re.sub(r"[^\w.]+", "-", f"{name}-{key}")[:100]
        stem = os.path.join(self.keep, f"{short}-{hashlib.sha256(content).hexdigest()[:8]}")
        Path(f"{stem}.input").write_bytes(content)
        Path(f"{stem}.txt").write_text(f"{name} seed {self.seed} input {number}\n{key}\n\n{detail}",
                                       errors="backslashreplace")

    @staticmethod
    def place_in(stack):
        """Of faulthandler's words: the innermost line of the project, else of anything."""
        found = re.findall(r'File "(.+)", line (\d+)', stack)
        ours = [(file, line) for file, line in found if _is_ours(file)] or found
        return f"{os.path.relpath(ours[0][0], ROOT)}:{ours[0][1]}" if ours else "somewhere"

    def progress(self, now):
        if now - self.told >= PROGRESS:
            self.told = now
            inputs = sum(sum(tally.counts.values()) for tally in self.tallies)
            faults = sum(len(tally.faults) for tally in self.tallies)
            self.say(f"{now - self.began:.0f} s: {inputs:,} inputs, {faults} distinct faults; "
                     + ", ".join(f"{tally.reader.name} {tally.next:,}" for tally in self.tallies))

    @property
    def faults(self):
        """{(reader, key): how often}"""
        return {(tally.reader.name, key): often for tally in self.tallies for key, often in tally.faults.items()}

    def table(self):
        """A Markdown table, one row per reader."""
        rows = ["| reader | inputs | accepted | refused (at places) | faults (distinct) | slowest input (s) | "
                "peak memory (MB) |", "|---|---|---|---|---|---|---|"]
        for tally in self.tallies:
            counts = tally.counts
            rows.append(f"| {tally.reader.name} | {sum(counts.values()):,} | {counts['accepted']:,} | "
                        f"{counts['refused']:,} ({len(tally.lines)}) | {counts['fault']} ({len(tally.faults)}) | "
                        f"{tally.slowest:.1f} | {tally.memory:.0f} |")
        return "\n".join(rows)


@contextlib.contextmanager
def prepared(names=(), seed=1):
    """(world, [Reader]) in a folder of their own, which is removed at the end. names: of the readers; none: all."""
    chosen = [kind for kind in fuzz_readers.READERS if not names or kind.name in names]
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # an input is many small files
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{os.getpid()}-", dir=in_memory))
    here = os.getcwd()
    try:
        # a process that was forked cannot use the GPU of the one before
        with mock.patch.multiple(torch.cuda, is_available=lambda: False, device_count=lambda: 0,
                                 is_initialized=lambda: False):
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                world = fuzz_readers.World(folder, seed)
                readers = [kind(world) for kind in chosen]
            yield world, readers
    finally:
        os.chdir(here)
        fuzz_readers.wipe(folder)
        shutil.rmtree(folder, ignore_errors=True)


def replay(file, limit, memory, name=""):
    """Read a kept input once more. Returns whether it is a fault still, and prints what happens."""
    note = Path(file).with_suffix(".txt")
    name = name or note.read_text(errors="replace").split()[0]
    with prepared([name]) as (world, readers):
        if not readers:
            raise SystemExit(f"no reader {name}; there are: {', '.join(kind.name for kind in fuzz_readers.READERS)}")
        said = []
        fuzzer = Fuzzer(readers, world, 0, limit, memory)
        fuzzer.store = lambda name, number, key, detail, content: said.append(detail)
        fuzzer.keep = "."
        [tally] = fuzzer.tallies
        fuzzer.one_child(tally, time.monotonic() + 10**6, last=0, data=Path(file).read_bytes())
        print("\n".join(said) or f"{next(iter(tally.counts))} {' '.join(tally.lines)}")
        return bool(said)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[], metavar="READER",
                        choices=[kind.name for kind in fuzz_readers.READERS], help="only these readers")
    parser.add_argument("--inputs", type=int, help="at most so many inputs a reader")
    parser.add_argument("--memory", type=int, default=1500, help="megabytes that an input may take (default 1500)")
    parser.add_argument("--limit", type=float, default=10, help="seconds that an input may take (default 10)")
    parser.add_argument("--keep", default="output/fuzz", help="folder for inputs that are faults")
    parser.add_argument("--replay", metavar="FILE", help="read one kept input again")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.replay:
        return int(replay(args.replay, args.limit, args.memory, *args.only[:1]))
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    keep = os.path.abspath(args.keep)
    with prepared(args.only, args.seed) as (world, readers):
        fuzzer = Fuzzer(readers, world, args.seed, args.limit, args.memory, keep,
                        say=lambda line: print(line, flush=True))
        with contextlib.suppress(KeyboardInterrupt):
            fuzzer.run(60 * args.minutes, args.inputs)
        print(f"\n{fuzzer.table()}\n")
        for (name, key), often in sorted(fuzzer.faults.items()):
            print(f"{name}: {key} ({often} times)")
        if fuzzer.faults:
            print(f"kept in {keep}; --replay FILE reads one again")
    return int(bool(fuzzer.faults))


if __name__ == "__main__":
    sys.exit(main())
