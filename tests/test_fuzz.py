"""The fuzzer finds what is planted, gives the same inputs for the same seed, and a short run of it finds nothing."""
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fuzz
import fuzz_readers
import pytest

from dassl.utils import InputError

if not os.path.isdir("/proc/self"):
    pytest.skip("the fuzzer watches its processes in /proc", allow_module_level=True)


# ---- the readers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything():
    with fuzz.prepared() as (world, readers):
        yield world, {reader.name: reader for reader in readers}


@pytest.mark.parametrize(("seconds", "inputs"), [(1, 100), pytest.param(4, 600, marks=pytest.mark.slow)],
                         ids=["short", "longer"])
@pytest.mark.parametrize("name", [kind.name for kind in fuzz_readers.READERS])
def test_a_short_run_finds_nothing(name, seconds, inputs, everything, tmp_path):
    world, readers = everything
    fuzzer = fuzz.Fuzzer([readers[name]], world, seed=1, limit=60, keep=tmp_path / "kept")
    fuzzer.run(seconds=seconds, inputs=inputs)
    told = "\n\n".join(path.read_text() for path in (tmp_path / "kept").glob("*.txt"))
    assert not fuzzer.faults, told
    assert fuzzer.tallies[0].counts.total()


def test_the_same_seed_gives_the_same_inputs(everything):
    world, readers = everything
    with fuzz.prepared(["images", "results", "checkpoints", "words", "archives"]) as (other, again):
        assert other.folder != world.folder
        for reader in again:
            first, second = ([fuzz.input_of(each, 7, number) for number in range(15)]
                             for each in (readers[reader.name], reader))
            assert first == second, reader.name
            assert len(set(first)) > 10


# ---- planted faults ----------------------------------------------------------------------------------------------


class Planted(fuzz_readers.Reader):
    """Reads its input number 3 as `do` says, and the others as they should be read."""

    name = "planted"

    def __init__(self, world, do):
        super().__init__(world)
        self.do, self.count = do, 0

    def make(self, rng):
        self.count += 1
        return str(rng.random()).encode()

    def read(self, data, scratch):
        Path("here").write_bytes(data)  # which it may
        if data == THIRD:
            self.do(scratch)
        elif data < b"0.5":
            raise InputError("refused")


class Place(fuzz_readers.World):
    """The folders of a World without its data and models."""

    def __init__(self, folder):
        self.folder = folder
        self.scratch, self.current = folder / "scratch", folder / "current.input"


THIRD = fuzz.input_of(Planted(None, None), 1, 3)


def eat(_):
    kept = []
    while True:
        kept.append(bytearray(b"x") * (8 << 20))


def hang_in_c(_):
    ctypes.PyDLL(None).sleep(1000)  # which keeps Python's lock


def raise_a_bug(_):
    raise KeyError("bug")


def overflow(_):
    overflow(_)


def write_elsewhere(scratch):
    (scratch.parent / "elsewhere").write_text("x")


def write_through_a_link(scratch):
    (scratch / "link").symlink_to(scratch.parent / "elsewhere")
    (scratch / "link").write_text("x")


FAULTS = {
    "raises": (raise_a_bug, "KeyError"),
    "hangs": (lambda _: time.sleep(1000), "hang"),
    "hangs in C": (hang_in_c, "hang"),
    "eats memory": (eat, "memory"),
    "dies of a signal": (lambda _: signal.raise_signal(signal.SIGSEGV), "signal SIGSEGV"),
    "crashes": (lambda _: ctypes.string_at(1), "signal SIGSEGV"),
    "leaves": (lambda _: os._exit(3), "exit 3"),
    "exits": (lambda _: sys.exit(3), "SystemExit"),
    "recurses": (overflow, "RecursionError"),
    "runs out of memory": (lambda _: bytearray(1 << 45), "MemoryError"),
    "is not finite": (lambda _: fuzz_readers.finite({"a": [float("nan")]}, "x"), "Fault"),
    "writes elsewhere": (write_elsewhere, "open outside"),
    "writes through a link": (write_through_a_link, "open outside"),
    "changes modes elsewhere": (lambda scratch: os.chmod(scratch.parent, 0o777), "os.chmod outside"),
    "kills": (lambda _: os.kill(os.getppid(), 0), "os.kill"),
    "removes elsewhere": (lambda scratch: os.rename(scratch / "here", scratch.parent / "x"), "os.rename outside"),
    "starts a program": (lambda _: subprocess.run(["true"]), "subprocess.Popen"),
    "unpickles": (lambda _: eval("exec")(*fuzz_readers.Trap().__reduce__()[1]), "SystemError"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name, tmp_path):
    do, word = FAULTS[name]
    said, keep = [], tmp_path / "kept"
    world = Place(tmp_path)
    fuzzer = fuzz.Fuzzer([Planted(world, do)], world, seed=1, limit=1 if "hang" in name else 30, memory=200, keep=keep,
                         say=said.append)
    fuzzer.run(seconds=100, inputs=8)
    [tally] = fuzzer.tallies
    assert len(fuzzer.faults) == 1 and list(tally.faults)[0].startswith(word), fuzzer.faults
    assert tally.counts.total() == 8 and tally.counts["fault"] == 1  # the others are read all the same
    assert tally.counts["refused"] and tally.counts["accepted"]
    [kept] = keep.glob("*.input")
    assert kept.read_bytes() == THIRD
    assert not (tmp_path / "elsewhere").exists() and not (tmp_path / "x").exists()
    assert kept.with_suffix(".txt").read_text().startswith("planted seed 1 input 3\n")
    assert "FAULT planted, input 3" in said[0]
    assert "| planted | 8 |" in fuzzer.table() and "| 1 (1) |" in fuzzer.table()
    with pytest.raises(ChildProcessError):  # no process is left
        os.waitpid(-1, os.WNOHANG)


def test_the_same_fault_is_kept_once(tmp_path):
    class Always(Planted):
        def read(self, data, scratch):
            raise_a_bug(scratch)

    world = Place(tmp_path)
    fuzzer = fuzz.Fuzzer([Always(world, None)], world, seed=1, keep=tmp_path / "kept", say=[].append)
    fuzzer.run(seconds=100, inputs=4)
    assert list(fuzzer.faults.values()) == [4]
    assert len(list((tmp_path / "kept").glob("*.input"))) == 1


def test_an_input_that_cannot_be_made_does_not_end_the_run(tmp_path):
    class Never(Planted):
        def make(self, rng):
            raise ValueError("none")

    world = Place(tmp_path)
    fuzzer = fuzz.Fuzzer([Never(world, None)], world, seed=1, say=[].append)
    fuzzer.run(seconds=100, inputs=3)
    assert fuzzer.faults == {("planted", "the fuzzer itself: ValueError: none"): 3}


def test_an_archive_whose_links_lead_outside_is_found(everything, monkeypatch):
    """With names taken as they are."""
    world, readers = everything
    monkeypatch.setattr("tools.downloads.archives.inside", lambda name: name)
    fuzzer = fuzz.Fuzzer([readers["archives"]], world, seed=1, say=[].append)
    fuzzer.run(seconds=60, inputs=150)
    assert any(reader == "archives" and "outside" in what for reader, what in fuzzer.faults), fuzzer.faults


# ---- the program -------------------------------------------------------------------------------------------------


def program(*words, **more):
    return subprocess.Popen([sys.executable, str(fuzz.ROOT / "tests" / "fuzz.py"), *map(str, words)],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)


@pytest.mark.slow
def test_a_stop_prints_the_table_and_leaves_nothing(tmp_path):
    run = program("--minutes", 10, "--only", "clusters", "--keep", tmp_path / "kept")
    mine = None
    while mine is None:
        assert run.poll() is None
        for path in [path for place in ("/dev/shm", "/tmp") for path in Path(place).glob(f"fuzz-{run.pid}-*")]:
            if (path / "current.input").exists():
                mine = path
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    told = run.communicate(timeout=300)[0]
    assert "| clusters |" in told and "Traceback" not in told, told
    assert not mine.exists()
    children = [pid for pid in os.listdir("/proc") if pid.isdigit() and str(run.pid) in _parent_of(pid)]
    assert not children


def _parent_of(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1:3]
    except OSError:
        return ()


def test_a_kept_input_is_read_again(tmp_path, capsys):
    kept = tmp_path / "a.input"
    kept.write_bytes(b"time: never\n")
    kept.with_suffix(".txt").write_text("clusters seed 1 input 0\n")
    assert fuzz.main(["--replay", str(kept)]) == 0
    assert "refused" in capsys.readouterr().out
