"""A run in several processes is the run of one: the same losses, prompts and counts, one writer, one message, stops and
resumes with another number of processes. `python tests/ranks.py` prints the table of every trainer."""
import csv
import datetime
import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import ranks
import torch
from conftest import ROOT

import train
from dassl.config import get_cfg_default
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import Datum
from dassl.utils import InputError, distributed
from dassl.utils.signals import Terminated
from runs import command_line
from tools import protocol

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ENDED = "error: another process of this run has ended, or cannot be reached; "
SUBSET = ("CoCoOp", "MetaPrompt, second order", "ProMetaR", "TipAdapterF", "CoOp as written for Dassl")
FEW = ("DATASET.NUM_SHOTS", "1")  # two steps, of seven images each, which two processes cannot share evenly


def check(one, several, tolerance=ranks.TOLERANCE):
    losses, learned, counted, counted_here, same = ranks.compare(one, several)
    assert losses < ranks.TOLERANCE and learned < tolerance
    assert same and counted == counted_here == len(several["logits"])
    torch.testing.assert_close(one["logits"], several["logits"], rtol=1e-3, atol=1e-3)
    assert one["accuracy"] == several["accuracy"]
    assert one["budget"] is not None and one["budget"] == several["budget"]


@pytest.fixture(scope="module")
def of_one(tmp_path_factory):
    return ranks.forked(1, tmp_path_factory.mktemp("one") / "1", SUBSET, FEW)


@pytest.mark.parametrize(("number", "start"), [
    (2, ranks.forked), pytest.param(2, ranks.spawn, marks=pytest.mark.slow),
    pytest.param(3, ranks.spawn, marks=pytest.mark.slow)])
def test_several_processes_give_the_numbers_of_one(number, start, of_one, tmp_path):
    several = start(number, tmp_path / str(number), SUBSET, FEW)
    assert list(several) == list(of_one) == list(SUBSET)
    for name in SUBSET:
        check(of_one[name], several[name])
        assert len(several[name]["tested"]) in (20, 40)
    for folder in (tmp_path / str(number)).iterdir():
        if (folder / "results.json").exists():
            assert json.loads((folder / "results.json").read_text())["processes"] == number


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_every_trainer(number, tmp_path):
    one, several = (ranks.spawn(count, tmp_path / str(count), timeout=1800) for count in (1, number))
    assert set(one) == set(ranks.cases()) == set(several)
    for name in one:
        check(one[name], several[name], ranks.tolerance(name))


def test_processes_on_one_machine_share_its_cores_for_reading(monkeypatch):
    cfg = get_cfg_default()
    cfg.DATALOADER.NUM_WORKERS = 2
    items = [Datum("a.png", 0)]

    def workers():
        return build_data_loader(cfg, data_source=items, batch_size=1).num_workers

    cores = len(os.sched_getaffinity(0))
    assert workers() == min(2, cores)
    monkeypatch.setattr("dassl.data.data_manager.local_world_size", lambda: cores)
    assert workers() == 1


def require_runs_of_two(printed, folder):
    assert printed.count("base to new") == 1  # one of the two prints
    assert re.findall("run . of 2", printed) == ["run 1 of 2", "run 2 of 2"] and "=> result" not in printed
    stored = [json.loads(path.read_text()) for path in folder.rglob("results.json")]
    assert [results["processes"] for results in stored] == [2, 2]  # base and new classes


def test_a_protocol_makes_its_runs_in_several_processes(drawn_root, tiny_config, clip_file, tmp_path):
    def made(name, *more):
        words = ["base2new", "--trainer", "ZeroshotCLIP", "--dataset", "caltech101", "--seeds", "1", "--shots", "2",
                 "--root", str(drawn_root), "--output", str(tmp_path / "output"), "--backbone", clip_file, "--cfg",
                 tiny_config, *more]
        return ranks.fork(2, tmp_path / name, lambda: protocol.main(words))

    (status, printed), (other_status, silent) = made("told")
    assert (status, other_status) == (0, 0), printed + silent
    require_runs_of_two(printed, tmp_path)
    assert "run 1" not in silent and "base to new" not in silent
    refused = made("refused", "--launcher", "slurm")
    assert [status for status, _ in refused] == [2, 2]
    assert any("--launcher slurm submits runs of one process" in printed for _, printed in refused)


@pytest.mark.slow  # three programs that start, twice; test_processes.py looks at what the script starts
def test_a_script_makes_its_runs_in_several_processes(drawn_root, tiny_config, clip_file, tmp_path):
    def script(number, *more):
        return subprocess.run(["bash", str(ROOT / "scripts" / "zsclip" / "base2new.sh"), "caltech101", *more],
                              text=True, capture_output=True, check=False, cwd=tmp_path, env={
                                  **os.environ, "RANKS": number, "DATA": str(drawn_root), "SEEDS": "1", "SHOTS": "2",
                                  "BACKBONE": clip_file, "CFG": tiny_config,
                                  "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"})

    done = script("2")
    assert done.returncode == 0, done.stderr
    require_runs_of_two(done.stdout, tmp_path)
    for number, word in (("two", "RANKS"), ("2", "--launcher slurm submits runs of one process")):
        done = script(number, "--launcher", "slurm")
        assert done.returncode and word in done.stderr and done.stderr.count("error: ") == 1


@pytest.fixture
def words(arguments, shapes_root, tmp_path):
    """The words of a run of CoOp on Shapes, long enough to be killed."""
    def build(output="out", *more):
        return [str(word) for word in (
            "--root", shapes_root, "--seed", 1, "--trainer", "CoOp", "--output-dir", tmp_path / output,
            "--dataset-config-file", ROOT / "configs" / "datasets" / "shapes.yaml",
            "--config-file", ROOT / "configs" / "trainers" / "CoOp" / "tiny.yaml",
            "DATASET.NUM_SHOTS", 4, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 12, "OPTIM.LR", 0.002,
            "TRAIN.PRINT_FREQ", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 12, "TEST.SPLIT", "val", *more)]

    return build


class Torchrun:
    """A run under torchrun that is still going on."""

    def __init__(self, number, words):
        self.process = subprocess.Popen([*TORCHRUN, str(number), str(ROOT / "train.py"), *words], text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)

    def wait_for(self, beginning):
        for line in self.process.stdout:
            if line.startswith(beginning):
                return
        raise AssertionError(self.process.stderr.read())

    def pids(self):
        """{rank: process}"""
        found = {}
        for pid in subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True,
                                  check=True).stdout.split():
            with open(f"/proc/{pid}/environ", encoding="utf-8") as file:
                entries = dict(entry.split("=", 1) for entry in file.read().split("\0") if "=" in entry)
            if "RANK" in entries:
                found[int(entries["RANK"])] = int(pid)
        return found

    def end(self, timeout=60):
        """(what was printed, to stderr too)"""
        try:
            return self.process.communicate(timeout=timeout)
        finally:
            self.process.kill()


def told(err):
    """What the run itself says in the end; the rest is torchrun's report."""
    return re.findall(r"^(?:error: .*|interrupted; .*)\n", err, re.MULTILINE)


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="finds the ranks in /proc")
@pytest.mark.robustness
@pytest.mark.parametrize(("victim", "number", "next_number"), [
    pytest.param(1, 2, 3, marks=pytest.mark.slow), (0, 2, 1)])
def test_a_rank_that_dies_ends_the_others(victim, number, next_number, words, tmp_path, tally):
    expected = train.main(words("whole"))
    tally["kills"] += 1
    run = Torchrun(number, words())
    run.wait_for("epoch [4/")
    pids = run.pids()
    assert sorted(pids) == list(range(number))
    started = time.time()
    os.kill(pids[victim], signal.SIGKILL)
    out, err = run.end()
    assert time.time() - started < 60
    (line,) = told(err)
    assert line.startswith(ENDED), err
    assert run.process.returncode
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids.values())

    if next_number > 1:
        out, err = Torchrun(next_number, words()).end(timeout=300)
        assert "Resuming from" in out and out.count("=> result") == 1, err
    results = train.main(words())  # finished by torchrun, or now
    assert results["processes"] == next_number
    assert results["metrics"]["val"]["accuracy"] == expected["metrics"]["val"]["accuracy"]
    assert ranks.difference(learned(tmp_path / "whole"), learned(tmp_path / "out")) < ranks.TOLERANCE
    tally["survived"] += 1


def test_a_process_that_is_stopped_while_it_ends_tells_why_it_ends(monkeypatch, capsys):
    """torchrun's SIGTERM comes while the loss of another process is still on its way up."""
    monkeypatch.setattr(command_line, "lost_another",
                        lambda error: "gone" if isinstance(error, ConnectionError) else None)
    monkeypatch.setattr(command_line.signal, "signal", lambda number, handler: None)

    def ends():
        try:
            raise ConnectionError
        finally:
            raise Terminated

    assert train.command_line(ends) == 1
    assert capsys.readouterr().err.startswith(ENDED)


def learned(folder):
    state = torch.load(folder / "prompt_learner" / "model.pth.tar-12", weights_only=True)["state_dict"]
    return [state[name] for name in sorted(state)]


@pytest.mark.robustness
def test_a_stop_is_made_by_all_ranks_at_one_batch(words, tmp_path, tally):
    tally["kills"] += 1
    run = Torchrun(2, words())
    run.wait_for("epoch [3/")
    os.kill(run.process.pid, signal.SIGTERM)  # torchrun hands it on
    out, err = run.end()
    assert told(err) == ["interrupted; the same command goes on from the last checkpoint\n"], err
    epoch, step = map(int, re.search(r"Stopped by SIGTERM: epoch (\d+), (\d+) batches done", out).groups())
    state = torch.load(tmp_path / "out" / "prompt_learner" / "model-interrupted.pth.tar", weights_only=True)
    assert (state["epoch"], state["step"]) == (epoch - 1, step)
    tally["survived"] += 1


@pytest.mark.slow  # test_finite.py has the same error in forks; that torchrun's ranks tell one line is seen above
def test_an_error_of_one_rank_is_told_once(arguments, drawn_root, tmp_path):
    """A test picture that only the second of two ranks reads."""
    root = tmp_path / "data"
    subprocess.run(["cp", "-r", str(drawn_root), str(root)], check=True)
    results = train.main(arguments("ZeroshotCLIP", tmp_path / "one", root=root))
    with gzip.open(tmp_path / "one" / "predictions.csv.gz", "rt", newline="") as file:
        last = list(csv.reader(file))[-1][0]
    assert results["processes"] == 1
    (root / last).write_text("no picture")
    out, err = Torchrun(2, arguments("ZeroshotCLIP", tmp_path / "two", root=root)).end(timeout=120)
    (line,) = told(err)
    assert last in line and "cannot decode" in line
    assert not (tmp_path / "two" / "results.json").exists()
    assert out.count("** ZeroshotCLIP on") == 1


def test_a_process_whose_torchrun_was_killed_while_it_started_ends(monkeypatch):
    """Its parent is gone before it could look for it, and at torchrun's store nobody answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", str(port)),
                        ("TORCHELASTIC_USE_AGENT_STORE", "True")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "AGENT_TIMEOUT", datetime.timedelta(seconds=1))
    with pytest.raises(InputError, match="torchrun, which has started this process, does not answer"), \
            distributed.joined():
        pass
