"""A sweep on a real Slurm of one node (tests/slurm/start.sh): python -m pytest tests/slurm -m slow

PREFIX="taskset -c 1" confines the jobs to a core. A Slurm that runs already is taken where SLURM_CONF names it."""
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
START = ROOT / "tests" / "slurm" / "start.sh"
EPOCHS = 120
SWEEP = ["fewshot", "--trainer", "CoOp", "--dataset", "shapes", "--shots", "1", "2", "--seeds", "1", "2", "3"]
OPTIONS = ["OPTIM.MAX_EPOCH", str(EPOCHS), "TRAIN.PRINT_FREQ", "1"]
SLURM = ["--launcher", "slurm", "--gpus", "0", "--cpus", "1", "--time", "60", "--array-parallelism", "2"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment in which sbatch talks to a Slurm of this machine."""
    if os.environ.get("SLURM_CONF"):
        yield dict(os.environ)
        return
    if not shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") and os.geteuid() != 0:
        pytest.skip("slurm-wlm is not installed, and only root can install it")
    folder = tmp_path_factory.mktemp("slurm")
    try:
        started = subprocess.run(["bash", START, folder], capture_output=True, text=True, check=False, timeout=600,
                                 env={**os.environ, "CPUS": "2"})
        if started.returncode:
            pytest.skip(f"Slurm does not start on this machine: {started.stderr.strip()}")
        yield {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    finally:
        subprocess.run(["bash", START, "stop", folder], check=False, timeout=120)


@pytest.fixture
def protocol(slurm, shapes_root):
    """(output, *flags) -> what `metaprompt protocol` prints."""

    def protocol(output, *flags):
        argv = [sys.executable, ROOT / "metaprompt.py", "protocol", *SWEEP, "--root", shapes_root, "--output", output,
                *flags, *OPTIONS]
        done = subprocess.run([str(word) for word in argv], env=slurm, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return protocol


def table(printed):
    """The lines of the table, from its head on."""
    lines = printed.splitlines()
    [head] = [i for i, line in enumerate(lines) if line.startswith("shots ")]
    return lines[head:]


def wait_for(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.2)
    return found


def test_six_runs_with_a_kill_a_preemption_and_a_requeue(slurm, protocol, tmp_path):
    local, out = tmp_path / "local", tmp_path / "slurm"
    expected = table(protocol(local))

    def ask(*command):
        return subprocess.run(command, env=slurm, capture_output=True, text=True, check=True).stdout

    def states():
        listed = ask("squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T")
        return dict(line.split("|") for line in listed.splitlines())

    def log(job):
        [path] = [path for path, each in record.items() if each == job]
        file = out / path / "log.txt"
        return file.read_text() if file.exists() else ""

    def in_training(job):
        """Some epochs after the start of the training, and long before its end."""
        epochs = re.findall(rf"^epoch \[(\d+)/{EPOCHS}\]", log(job), re.M)
        return bool(epochs) and 3 <= int(epochs[-1]) <= EPOCHS // 2

    said = protocol(out, *SLURM)
    array = re.search(r"Submitted 6 tasks as Slurm job (\d+)", said)[1]
    record = json.loads((out / "sweep" / "jobs.json").read_text())
    assert sorted(record.values()) == [f"{array}_{task}" for task in range(6)]
    assert "Nothing to submit; of 6 runs: 0 done, 6 queued or running" in protocol(out, *SLURM)

    killed, preempted, requeued = (f"{array}_{task}" for task in range(3))
    disturbances = {
        killed: ("scancel", "--signal=KILL", f"{killed}.0"),  # of the job without its step it would be a cancellation
        preempted: ("scancel", "--signal=TERM", f"{preempted}.0"),  # what a preemption begins with
        requeued: ("scontrol", "requeue", requeued),
    }

    def disturbed():
        for job in [job for job in disturbances if in_training(job)]:
            ask(*disturbances.pop(job))
        return not disturbances

    wait_for(disturbed, 240, "training of the first three")
    wait_for(lambda: [states()[job] for job in (killed, preempted, requeued)] == ["FAILED", "PENDING", "PENDING"], 60,
             "a kill and two requeues")
    found = protocol(out, "--status")
    assert re.search(rf"failed .*\(job {killed}\): FAILED; last log line: .", found), found
    assert all(re.search(rf"queued .*\(job {job}\)", found) for job in (preempted, requeued)), found
    assert "Stopped by" not in log(killed)
    ask("scontrol", "requeue", killed)
    for job in (killed, preempted, requeued):  # Slurm lets a requeued job wait for two minutes
        if states()[job] == "PENDING":
            ask("scontrol", "update", f"JobId={job}", "StartTime=now")

    wait_for(lambda: set(states().values()) == {"COMPLETED"}, 400, "the end of all tasks")
    for job in (killed, preempted, requeued):
        text = log(job)
        starts = text.split("** CoOp on Shapes")[1:]
        assert len(starts) == 2 and "Resuming from" in starts[1], text
        assert f"epoch [2/{EPOCHS}]" not in starts[1]
        assert ("Stopped by SIGTERM" in starts[0]) == (job != killed)
    assert "6 runs: 6 done" in protocol(out, "--status")
    assert table(protocol(out, "--table")) == expected
    assert "Nothing to submit; of 6 runs: 6 done" in protocol(out, *SLURM)


def test_preempted_tasks_go_on(slurm, protocol, tmp_path):
    """A job of a partition that goes first needs the whole node: both tasks store where they are and queue again."""
    if "urgent" not in subprocess.run(["sinfo", "--noheader", "--format=%P"], env=slurm, capture_output=True, text=True,
                                      check=True).stdout:
        pytest.skip("this Slurm has no partition that preempts others")
    flags = ("--seeds", "1", "2", "--shots", "1")
    expected = table(protocol(tmp_path / "local", *flags))
    protocol(tmp_path / "slurm", *flags, *SLURM)
    logs = [tmp_path / "slurm" / path / "log.txt"
            for path in json.loads((tmp_path / "slurm" / "sweep" / "jobs.json").read_text())]
    wait_for(lambda: all(log.exists() and "epoch [3/" in log.read_text() for log in logs), 240, "training")
    urgent = subprocess.run(["sbatch", "--parsable", "--partition=urgent", "--exclusive", "--time=5",
                             "--output=/dev/null", "--wrap=sleep 1"], env=slurm, check=True, capture_output=True,
                            text=True).stdout.strip()

    def listed():
        found = subprocess.run(["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T"], env=slurm,
                               capture_output=True, text=True, check=True).stdout
        return dict(line.split("|") for line in found.splitlines())

    wait_for(lambda: listed()[urgent] == "COMPLETED", 60, "the job that goes first")
    assert all("Stopped by SIGTERM" in log.read_text() for log in logs)
    jobs = json.loads((tmp_path / "slurm" / "sweep" / "jobs.json").read_text()).values()
    assert [listed()[job] for job in jobs] == ["PENDING", "PENDING"], protocol(tmp_path / "slurm", *flags, "--status")
    for job in jobs:
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], env=slurm, check=True)
    wait_for(lambda: {listed()[job] for job in jobs} == {"COMPLETED"}, 240, "the end of both tasks")
    assert table(protocol(tmp_path / "slurm", *flags, "--table")) == expected


def test_a_cancelled_sweep_stays_cancelled(slurm, protocol, tmp_path):
    said = protocol(tmp_path, *SLURM)
    array = re.search(r"as Slurm job (\d+)", said)[1]
    record = json.loads((tmp_path / "sweep" / "jobs.json").read_text())
    [path] = [path for path, job in record.items() if job == f"{array}_0"]
    log = tmp_path / path / "log.txt"
    wait_for(lambda: log.exists() and "epoch [3/" in log.read_text(), 240, "training")
    subprocess.run(["scancel", array], env=slurm, check=True)
    wait_for(lambda: "6 runs: 6 failed" in protocol(tmp_path, "--status"), 90, "the end of all tasks")
    time.sleep(3)
    found = protocol(tmp_path, "--status")
    assert found.count("CANCELLED") == 6, found
    assert "Stopped by SIGTERM" in log.read_text()
