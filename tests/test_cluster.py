"""Sweeps: submission to Slurm (here a fake one), status, tables of what is done, preemption, locks of former starts."""
import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest
import submitit
import torch
from fake_slurm import FakeSlurm
from test_robustness_kills import stop_at

import train
from dassl.utils import FolderLock, InputError, Terminated
from tools import protocol
from tools.running import cluster, slurm_settings, status
from tools.running.before_run import finished
from tools.running.plans import Planner

ROOT = Path(__file__).resolve().parents[1]
SLURM = ("--launcher", "slurm", "--gpus", "0", "--cpus", "1")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def call(drawn_root, tiny_config, clip_file, out, monkeypatch, clip_model):
    """(*words, options) -> what protocol.main returns for base2new of CoOp with seeds 1 and 2."""
    monkeypatch.setattr("training.towers.load_clip", lambda name: clip_model)

    def call(*more, options=()):
        return protocol.main(["base2new", "--trainer", "CoOp", "--seeds", "1", "2", "--dataset", "caltech101", "--cfg",
                              tiny_config, "--root", str(drawn_root), "--output", str(out), "--shots", "2",
                              "--backbone", clip_file, *more, "OPTIM.MAX_EPOCH", "3", *options])

    return call


@pytest.fixture
def one_run(drawn_root, tiny_config, clip_file, out):
    """The first run of that protocol."""
    options = ["OPTIM.MAX_EPOCH", "3"]
    planner = Planner(str(drawn_root), str(out), [1], tiny_config, clip_file, options=options)
    return planner.plan("base2new", ["CoOp"], ["caltech101"], [2])[0]


def in_task(task, requeued):
    """Call a Task as submitit does on a node, with the signals as submitit leaves them; those that reach submitit's
    handler, which requeues, are added to `requeued`."""
    former = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR2)}
    signal.signal(signal.SIGTERM, lambda *args: None)
    signal.signal(signal.SIGUSR2, lambda number, frame: requeued.append(number))
    try:
        task()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def words_of(text):
    """{folder below the output: state} of --status."""
    return {re.search(r"base2new/(\S+?):? ", line + " ")[1]: line.split("  ")[0].strip()
            for line in text.splitlines() if "base2new/" in line}


def place(part, seed):
    return f"{part}/caltech101/shots_2/CoOp/tiny/seed{seed}"


BASE, NEW = ([place(part, seed) for seed in (1, 2)] for part in ("train_base", "test_new"))


# ---- the whole way ----
def test_a_sweep_through_the_queue(call, slurm, out, monkeypatch, capfd):
    """Submitted as one array of two chains; a task runs as on a node, the other one fails and alone is submitted
    again; the table is that of local runs."""
    said = call(*SLURM, "--partition", "big", "--time", "1:30", "--mem", "8G", "--slurm", "constraint=a100", "--slurm",
                "exclusive")
    assert said.startswith("Submitted 2 tasks as Slurm job 1; of 4 runs: 0 done, 0 queued or running")
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", slurm.script("1"), re.M))
    assert {"array": "0-1%2", "partition": "big", "time": "90", "mem": "8G", "constraint": "a100", "exclusive": "",
            "requeue": "", "cpus-per-task": "1",
            "job-name": "base2new-CoOp"}.items() <= asked.items()
    assert "gpus-per-node" not in asked
    assert json.loads((out / "sweep" / "jobs.json").read_text()) == {
        f"base2new/{path}": job for job, paths in (("1_0", (BASE[0], NEW[0])), ("1_1", (BASE[1], NEW[1])))
        for path in paths}

    assert set(words_of(call("--status")).values()) == {"queued"} and "(job 1_1): Priority" in call("--status")
    assert call(*SLURM).startswith("Nothing to submit; of 4 runs: 0 done, 4 queued or running")
    assert slurm.jobs() == ["1_0", "1_1"]
    with pytest.raises(InputError, match="none of these 4 runs is done yet"):
        call("--table")

    assert slurm.run("1_0") == 0, (out / "sweep" / "jobs" / "1_0_0_log.err").read_text()
    slurm.set("1_1", "RUNNING")
    assert words_of(call("--status")) == {BASE[0]: "done", NEW[0]: "done", BASE[1]: "running", NEW[1]: "queued"}
    rows = call("--table").splitlines()
    assert rows[3].split() == ["seed", "2", "-", "-", "-"] and "-" not in rows[2]

    slurm.set("1_1", "NODE_FAIL")
    (out / "base2new" / BASE[1]).mkdir(parents=True)
    (out / "base2new" / BASE[1] / "log.txt").write_text("epoch [1/3]\nepoch [2/3] loss 0.5\n\n")
    (out / "base2new" / BASE[1] / ".lock").write_text(json.dumps({"pid": 7, "host": "gone", "job": "1_1", "starts": 0}))
    told = call("--status")
    assert f"{BASE[1]} (job 1_1): NODE_FAIL; last log line: epoch [2/3] loss 0.5\n" in told
    assert told.splitlines()[-1] == "4 runs: 2 done, 2 failed"
    assert call(*SLURM).startswith("Submitted 1 task as Slurm job 2; of 4 runs: 2 done, 0 queued")
    assert "--array" not in slurm.script("2") and not (out / "base2new" / BASE[1] / ".lock").exists()
    assert words_of(call("--status"))[BASE[1]] == "queued"

    slurm.forget()  # job 2 has ended long ago, and nothing is known of it but that the run is not done
    (out / "base2new" / BASE[1] / "log.txt").unlink()
    assert words_of(call("--status"))[BASE[1]] == "to do"
    table = call()
    assert call("--table") == table and "-" not in table.splitlines()[2]
    assert call(*SLURM).startswith("Nothing to submit; of 4 runs: 4 done")
    sequential = out.rename(out.parent / "through_slurm")
    assert call() == table
    for path in (*BASE, *NEW):
        first, second = (json.loads((folder / "base2new" / path / "results.json").read_text())
                         for folder in (out, sequential))
        assert first["metrics"] == second["metrics"]


def test_what_a_task_ended_with_is_told(call, slurm, out):
    """A task whose run is refused: the other tasks are made, the reason is in the status."""
    call(*SLURM)
    folder = out / "base2new" / BASE[0]
    folder.mkdir(parents=True)
    (folder / ".lock").write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    assert slurm.run("1_0") == 1
    lines = call("--status").splitlines()
    assert "(job 1_0): FAILED; 1 of 2 runs failed, 1 depend on them" in lines[0]
    assert words_of("\n".join(lines))[BASE[1]] == "queued"


def test_runs_of_another_config_are_refused_and_the_rest_is_submitted(call, slurm, capsys):
    call("--seeds", "1")
    with pytest.raises(InputError, match="nothing was run: 2 of 4 runs cannot be made; --keep-going"):
        call(*SLURM, options=("OPTIM.LR", "0.3"))
    assert not slurm.jobs()
    with pytest.raises(InputError, match="2 of 4 runs were refused"):
        call(*SLURM, "--keep-going", options=("OPTIM.LR", "0.3"))
    assert "Submitted 1 task" in capsys.readouterr().out and slurm.jobs() == ["1"]


def test_two_submissions_at_once(call, slurm, out):
    (out / "sweep").mkdir(parents=True)
    (out / "sweep" / ".lock").write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    with pytest.raises(InputError, match="process 7 on elsewhere"):
        call(*SLURM)
    assert not slurm.jobs()


# ---- preemption ----
def test_submitits_signal_stops_at_the_batch_and_requeues(one_run, clips, out, monkeypatch, clip_model):
    monkeypatch.setattr("training.towers.load_clip", lambda name: clip_model)
    requeued = []
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 0, signal.SIGUSR2)
        with pytest.raises(Terminated):
            in_task(cluster.Task((one_run,)), requeued)
    assert requeued == [signal.SIGUSR2]
    stopped = torch.load(Path(one_run.folder) / "prompt_learner" / "model-interrupted.pth.tar", weights_only=True)
    assert (stopped["epoch"], stopped["step"]) == (1, 1)  # the drawn images are one batch per epoch
    in_task(cluster.Task((one_run,)).checkpoint().function, requeued)
    assert len(requeued) == 1
    numbers = finished(one_run)["metrics"]
    out.rename(out.parent / "stopped")
    assert train.main(one_run.spec.argv(), clips=clips)["metrics"] == numbers


@pytest.mark.parametrize(("state", "goes_on"), [("RUNNING", True), ("COMPLETING", False), ("CANCELLED", False)])
def test_after_sigterm_only_a_job_that_slurm_still_wants_is_requeued(state, goes_on, one_run, slurm, monkeypatch,
                                                                     clip_model):
    """A preemption leaves the job running; scancel and scontrol requeue mark it first."""
    monkeypatch.setattr("training.towers.load_clip", lambda name: clip_model)
    as_job(monkeypatch, "5", array="5", task="1")  # the last task of an array has the number of the array
    (slurm.folder / "bin" / "squeue").write_text(
        f'#!/bin/sh\ncase "$*" in *--jobs=5_1*) ;; *) echo RUNNING ;; esac\necho {state}\n')
    stop_at(monkeypatch, 1, 0, signal.SIGTERM)
    requeued = []
    with pytest.raises(Terminated):
        in_task(cluster.Task((one_run,)), requeued)
    assert bool(requeued) == goes_on


@pytest.mark.slow  # two processes that start; the same in this process above
def test_a_task_goes_on_through_submitits_local_executor(one_run, clips, out, tmp_path, monkeypatch):
    """The same task object in processes of its own: submitit's signal, requeue, next start, success."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    longer = type(one_run)(one_run.place, one_run.spec.with_options("OPTIM.MAX_EPOCH", "60"))
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=5)
    job = executor.submit(cluster.Task((longer,)))
    log = Path(longer.folder) / "log.txt"
    deadline = time.time() + 90
    while "epoch [2/60]" not in (log.read_text() if log.exists() else "") and time.time() < deadline:
        time.sleep(0.05)
    os.kill(json.loads((log.parent / ".lock").read_text())["pid"], signal.SIGUSR2)
    assert job.results() == [None], job.stderr()
    text = log.read_text()
    assert "Stopped by SIGTERM" in text and text.count("** CoOp on") == 2 and text.count("epoch [2/60]") == 1
    assert "Requeued job" in job.stdout()
    numbers = finished(longer)["metrics"]
    out.rename(tmp_path / "stopped")
    assert train.main(longer.spec.argv(), clips=clips)["metrics"] == numbers


# ---- locks ----
def as_job(monkeypatch, job="5", array=None, task=None, starts=None):
    for name, value in (("JOB_ID", job), ("ARRAY_JOB_ID", array), ("ARRAY_TASK_ID", task), ("RESTART_COUNT", starts)):
        if value is None:
            monkeypatch.delenv(f"SLURM_{name}", raising=False)
        else:
            monkeypatch.setenv(f"SLURM_{name}", value)


@pytest.mark.parametrize(("now", "taken"), [
    ({"array": "4", "task": "2", "starts": "1"}, True),
    ({"array": "4", "task": "2", "starts": None}, False),  # a process of the same start, on another node of the job
    ({"array": "4", "task": "3", "starts": "1"}, False),
    ({"starts": "1"}, False),
    ({"job": None}, False),
])
def test_a_requeued_job_takes_its_lock_over_on_another_node(now, taken, tmp_path, monkeypatch):
    as_job(monkeypatch, array="4", task="2")
    with FolderLock(str(tmp_path)):
        held = json.loads((tmp_path / ".lock").read_text())
    assert held == {"pid": os.getpid(), "host": socket.gethostname(), "job": "4_2", "starts": 0}
    (tmp_path / ".lock").write_text(json.dumps({**held, "host": "a-lost-node"}))
    as_job(monkeypatch, **{"job": "9", **now})
    if taken:
        with FolderLock(str(tmp_path)):
            assert json.loads((tmp_path / ".lock").read_text())["starts"] == 1
    else:
        with pytest.raises(InputError, match="on a-lost-node"), FolderLock(str(tmp_path)):
            pass


# ---- status without a cluster ----
def test_status_of_local_runs(call, one_run, out):
    with pytest.raises(InputError, match="none of these 4 runs was started or submitted"):
        call("--status")
    call("--seeds", "1")
    folder = out / "base2new" / BASE[1]
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("epoch [1/3] loss 1.0\n")
    assert words_of(call("--status")) == {BASE[0]: "done", NEW[0]: "done", BASE[1]: "stopped", NEW[1]: "to do"}
    with FolderLock(str(folder)):
        assert f"running  {folder}: epoch [1/3] loss 1.0\n" in call("--status")
    assert not (out / "sweep").exists()


def test_a_submitted_sweep_without_squeue(call, slurm, monkeypatch):
    call(*SLURM)
    (slurm.folder / "bin" / "squeue").unlink()
    monkeypatch.setenv("PATH", str(slurm.folder / "bin"))
    assert "there is no squeue here" in call("--status")


def test_squeue_that_fails_submits_nothing(call, slurm, out):
    call(*SLURM)
    (slurm.folder / "bin" / "squeue").write_text("#!/bin/sh\necho Unable to contact controller >&2\nexit 1\n")
    for words in (("--status",), SLURM):
        with pytest.raises(InputError, match="squeue fails: Unable to contact controller"):
            call(*words)
    assert slurm.jobs() == ["1_0", "1_1"]


def test_a_damaged_record_is_told(call, slurm, out):
    call(*SLURM)
    (out / "sweep" / "jobs.json").write_text("[]")
    with pytest.raises(InputError, match="is not a record of submitted jobs"):
        call("--status")


def test_sbatch_that_refuses(call, slurm, out):
    (slurm.folder / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition: x' >&2\nexit 1\n")
    with pytest.raises(InputError, match="sbatch refuses the job: .*error: invalid partition: x; see --partition"):
        call(*SLURM)
    assert [path.relative_to(out) for path in out.rglob("*")] == [Path("sweep"), Path("sweep/jobs")]


def test_no_slurm_at_all(call, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no sbatch on PATH"):
        call(*SLURM)


# ---- what is asked for ----
def parameters(*words):
    return slurm_settings.slurm_parameters(protocol.parse_arguments(
        ["base2new", "--trainer", "CoOp", "--dataset", "dtd", "--launcher", "slurm", *words]))


@pytest.mark.parametrize(("text", "expected"), [
    ("90", 90), ("1:30", 90), ("0:10", 10), ("1:30:01", 91), ("2-0:00", 2880), ("0", None), ("0:00", None),
    ("1.5", None), ("2h", None), ("1:5", None), ("", None)])
def test_times(text, expected):
    assert slurm_settings.minutes(text) == expected


def test_flags_win_over_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("partition: long\ntime: 8:00\nmem: 16G\ngpus: 2\nslurm: {constraint: a100, exclusive: true}\n"
                    "setup: [module load cuda]\n")
    found = parameters("--cluster", str(path), "--partition", "short", "--gpus", "v100:1", "--slurm",
                       "constraint=h100")
    assert {"partition": "short", "time": 480, "mem": "16G", "gpus_per_node": "v100:1",
            "cpus_per_task": 4}.items() <= found.items()
    assert found["additional_parameters"] == {"requeue": True, "constraint": "h100", "exclusive": True}
    assert found["setup"][0] == "module load cuda"
    assert {"time": 240, "gpus_per_node": "1"}.items() <= parameters().items()


def test_the_example_is_a_cluster_file():
    found = parameters("--cluster", str(ROOT / "configs" / "cluster" / "example.yaml"))
    assert {"partition": "gpu", "time": 240, "mem": "32G", "cpus_per_task": 8, "array_parallelism": 16,
            "gpus_per_node": "1"}.items() <= found.items()


@pytest.mark.parametrize(("content", "message"), [
    ("partion: gpu\n", r"unknown key 'partion' \(did you mean 'partition'\?\)"), ("- gpu\n", "KEY: VALUE"),
    ("time: soon\n", "time must be minutes or H:MM, not 'soon'"), ("mem: 16\n", "mem must be a number with a unit"),
    ("gpus: [1]\n", "gpus must be one word"), ("setup: module load\n", "setup must be a list"),
    ("slurm: [a]\n", "slurm must be KEY: VALUE"), ("a: {\n", "is not a YAML file"), ("partition:\n", "partition must")])
def test_cluster_files_that_do_not_fit(content, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        parameters("--cluster", str(path))


@pytest.mark.parametrize(("words", "message"), [
    (("--cluster", "nowhere.yaml"), "cannot read nowhere.yaml"), (("--time", "x"), "--time must be minutes"),
    (("--cpus", "0"), "--cpus must be a number from 1"), (("--slurm", "=x"), "--slurm takes KEY=VALUE"),
    (("--slurm", "--constraint=x"), "expected one argument"), (("--mem", "big"), "--mem must be"),
    (("--gpus", "one"), "--gpus must be")])
def test_flags_that_do_not_fit(words, message):
    with pytest.raises(InputError, match=message):
        parameters(*words)


@pytest.mark.parametrize(("words", "message"), [
    (("--partition", "gpu"), "--partition needs --launcher slurm"),
    (("--launcher", "slurm", "--jobs", "2"), "--jobs is for --launcher local"),
    (("--launcher", "lsf"), "invalid choice"), (("--status", "--table"), "not allowed with")])
def test_flags_that_do_not_go_together(words, message):
    with pytest.raises(InputError, match=message):
        protocol.main(["base2new", "--trainer", "CoOp", "--dataset", "caltech101", *words])


def test_a_chain_is_a_run_and_those_that_need_it(drawn_root, tiny_config):
    planner = Planner(str(drawn_root), "out", [1, 2], tiny_config, "tiny")
    runs = planner.plan("xd", ["CoOp"], ["caltech101"], targets=["pacs"])
    assert [[run.place.part for run in chain] for chain in cluster.chains(runs)] == 2 * [["caltech101", "pacs"]]
    assert [len(chain) for chain in cluster.chains(planner.plan("dg", ["CoOp"], ["pacs"]))] == 8 * [1]
    chains = cluster.chains(planner.plan("base2new", ["ZeroshotCLIP", "CoOp"], ["caltech101"]))
    assert [[(run.place.part, run.place.seed) for run in chain] for chain in chains] == [
        [("train_base", 1), ("test_new", 1), ("train_base", 2), ("test_new", 2)],  # the second seed has their numbers
        [("train_base", 1), ("test_new", 1)], [("train_base", 2), ("test_new", 2)]]


@pytest.mark.parametrize("words", [pytest.param(["compare.sh", "shapes", "CoOp", "CoCoOp"], marks=pytest.mark.slow),
                                   ["reproduce_table.sh", "base2new", "CoOp", "CoCoOp"]])
def test_scripts_submit(words, slurm, tmp_path, scripts, shapes_root):
    variables = {"SEEDS": "1", "OUTPUT": str(tmp_path / "out"), "DATA": str(shapes_root)}
    variables |= {"DATASETS": "shapes"} if words[0] == "reproduce_table.sh" else {}
    done = scripts(*words, *SLURM, "OPTIM.MAX_EPOCH", "1", cwd=tmp_path, **variables)
    assert done.returncode == 0 and "Submitted 2 tasks" in done.stdout, done.stdout + done.stderr
    assert slurm.jobs() == ["1_0", "1_1"] and len(status.read_record(str(tmp_path / "out"))) == 4
