"""Processes: what lies in the working folder is not run, nobody waits for ever, and nobody outlives its parent."""
import contextlib
import json
import os
import pickle
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch.utils.data import BatchSampler, SequentialSampler

from dassl.data import loader as loaders
from dassl.data.loader import EpochLoader, possible_workers
from dassl.engine.loaders import end_workers
from dassl.utils import InputError, orphaned, surroundings
from runs.run_spec import RunSpec
from tools import protocol
from tools.running import before_run, cluster, side_by_side, slurm_settings, status

NAMES = ("torch", "yaml", "submitit", "multiprocessing", "runpy", "signal", "train", "numpy", "cloudpickle", "tools",
         "sitecustomize", "contextlib", "random")
ABSENT = "absent"


def gone(pid, within=5.0):
    """Whether a process ends in time; one that has ended and is not yet waited for counts."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


# ---- modules in the working folder ----
@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A working folder full of files that say so when they are imported; what they have said."""
    folder = tmp_path / "planted"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'said')!r}, 'a').write('{name} ')\n")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return lambda: (tmp_path / "said").read_text() if (tmp_path / "said").exists() else ""


def test_planted_files_do_speak(planted):
    """What the tests below look at is not blind."""
    subprocess.run([sys.executable, "-c", "import yaml"], check=True)
    assert planted() == "yaml "


def test_a_process_of_jobs_takes_no_module_from_the_working_folder(planted):
    worker = side_by_side.Worker(None, 1)
    try:
        worker.give(types.SimpleNamespace(spec=RunSpec(trainer="NoSuchMethod")))
        kind, told = worker.take()
    finally:
        worker.run = None
        worker.ask_to_end()
        worker.end()
    assert kind == "failed" and "NoSuchMethod" in told
    assert planted() == "" and worker.process.returncode == 0


def test_a_slurm_task_takes_no_module_from_the_working_folder(planted, tmp_path):
    """As submitit writes the command; the folder holds no task, so that it ends when all is imported."""
    done = subprocess.run([sys.executable, "-u", "-c", cluster.AS_MODULE, "-u", "-m", "submitit.core._submit",
                           str(tmp_path / "jobs")], capture_output=True, text=True, check=False)
    assert "Could not figure out which environment" in done.stderr, done.stderr
    assert planted() == ""


def test_the_command_of_a_task_is_the_safe_one(monkeypatch, tmp_path):
    import submitit

    given = {}
    monkeypatch.setattr(submitit.SlurmExecutor, "submit_array", lambda self, tasks: given.update(python=self.python)
                        or [])
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 1))
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    cluster._submit_array([], str(tmp_path / "jobs"), {"job_name": "a"})
    assert shlex.split(given["python"]) == [sys.executable, "-u", "-c", cluster.AS_MODULE]


def copied_script(tmp_path, program):
    """run.sh in a project of its own, whose Python and protocol are `program`'s."""
    top = tmp_path / "project"
    (top / ".venv" / "bin").mkdir(parents=True)
    shutil.copytree(ROOT / "scripts", top / "scripts")
    python = top / ".venv" / "bin" / "python"
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    return top


def test_ranks_take_no_module_from_the_working_folder(planted, tmp_path):
    top = copied_script(tmp_path, f'exec "{sys.executable}" "$@"')
    (top / "metaprompt.py").write_text(  # one write: torchrun's processes print piece by piece
        "import sys, os, yaml\nfound = os.getcwd() in sys.path or '' in sys.path\n"
        "os.write(1, f'rank {os.environ[\"RANK\"]} {found}\\n'.encode())\n")
    done = subprocess.run(["bash", str(top / "scripts" / "run.sh"), "base2new", "CoOp", "shapes"], capture_output=True,
                          text=True, check=False, env={**os.environ, "RANKS": "2"})
    assert done.returncode == 0, done.stderr
    assert sorted(re.findall(r"rank (\d) (\w+)", done.stdout)) == [("0", "False"), ("1", "False")]
    assert planted() == ""


PATHS = [(ABSENT, ""), ("", ""), (":", ""), ("::", ""), (":/mine", "/mine"), ("/mine:", "/mine"),
         ("/mine::/own", "/mine:/own"), ("/mine", "/mine"), ("/with space:", "/with space")]


@pytest.mark.parametrize(("given", "kept"), PATHS, ids=[repr(given) for given, _ in PATHS])
def test_an_empty_entry_of_pythonpath_is_left_out_by_the_scripts(given, kept, tmp_path):
    top = copied_script(tmp_path, 'echo "[$PYTHONPATH]"')
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(["bash", str(top / "scripts" / "run.sh"), "base2new", "CoOp", "shapes"], capture_output=True,
                          text=True, check=True, env=environment | ({} if given == ABSENT else {"PYTHONPATH": given}))
    assert done.stdout == f"[{kept}]\n"


@pytest.mark.parametrize(("given", "kept"), PATHS, ids=[repr(given) for given, _ in PATHS])
def test_an_empty_entry_of_pythonpath_is_left_out_by_tasks(given, kept):
    lines = slurm_settings.slurm_parameters(protocol.parse_arguments(
        ["base2new", "--trainer", "CoOp", "--dataset", "dtd", "--launcher", "slurm"]))["setup"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(["bash", "-c", "\n".join([*lines, 'echo "$PYTHONPATH $PYTHONSAFEPATH"'])], text=True,
                          capture_output=True, check=True,
                          env=environment | ({} if given == ABSENT else {"PYTHONPATH": given}))
    assert done.stdout == f"{ROOT}{':' if kept else ''}{kept} 1\n"


SPAWNED = """
import multiprocessing, sys
if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    multiprocessing.set_start_method("spawn")
    from torch.utils.data import BatchSampler, SequentialSampler
    from dassl.data.loader import EpochLoader
    loader = EpochLoader(range(4), batch_sampler=BatchSampler(SequentialSampler(range(4)), 2, False), num_workers=1)
    print([batch.tolist() for batch in loader])
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there a started loader worker looks into the working folder")
def test_a_loader_worker_that_is_started_takes_no_module_from_the_working_folder(planted, tmp_path):
    (tmp_path / "program.py").write_text(SPAWNED)
    done = subprocess.run([sys.executable, str(tmp_path / "program.py"), str(ROOT)], capture_output=True, text=True,
                          check=False)
    assert done.stdout == "[[0, 1], [2, 3]]\n", done.stderr
    assert planted() == ""


@pytest.mark.parametrize("folder", [".", "tools", "tests"])
def test_no_file_of_a_programs_folder_is_called_like_a_module_of_python(folder):
    assert not {path.stem for path in (ROOT / folder).glob("*.py")} & set(sys.stdlib_module_names)


# ---- the output folder of somebody else ----
class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def ended(output, job="1_0"):
    """What --status says of a run whose job has failed."""
    run = types.SimpleNamespace(folder=str(output / "run"))
    return status._ended(run, job, "FAILED", "", str(output)).detail


@pytest.fixture
def jobs(tmp_path):
    folder = tmp_path / "sweep" / "jobs"
    folder.mkdir(parents=True)
    return folder


def test_status_opens_no_pickle(jobs, tmp_path):
    (jobs / "1_0_0_result.pkl").write_bytes(pickle.dumps(("error", Trap(tmp_path / "trapped"))))
    (jobs / "1_0_0_log.err").write_text("Traceback\ndassl.utils.errors.InputError: no such folder\n"
                                        "srun: error: node: task 0: Exited with exit code 1\n")
    assert ended(tmp_path) == "FAILED; no such folder"
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"error": 7}', b"\xff\xfe", b"[" * 9000, b'{"error": ""}'])
def test_a_damaged_reason_is_passed_over(content, jobs, tmp_path):
    (jobs / "1_0_reason.json").write_bytes(content)
    (jobs / "1_0_0_log.err").write_text("out of memory\n")
    assert ended(tmp_path) == "FAILED; out of memory"


@pytest.mark.parametrize("name", ["1_0_reason.json", "1_0_0_log.err"])
def test_a_pipe_in_a_files_place_is_not_waited_for(name, jobs, tmp_path):
    os.mkfifo(jobs / name)
    found = []
    thread = threading.Thread(target=lambda: found.append(ended(tmp_path)), daemon=True)
    thread.start()
    thread.join(20)
    assert found == ["FAILED"]


@pytest.mark.parametrize("name", ["1_0_reason.json", "1_0_0_log.err"])
def test_a_reason_gives_a_terminal_no_orders(name, jobs, tmp_path):
    text = "\x1b]0;owned\x07\x1b[2Jbad\x9b1m \u202eend"
    (jobs / name).write_text(json.dumps({"error": text}) if name.endswith("json") else text)
    assert ended(tmp_path) == r"FAILED; \x1b]0;owned\x07\x1b[2Jbad\x9b1m \u202eend"


def test_a_log_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "log.txt")
    assert status.last_line_of(tmp_path / "log.txt") == ""


def test_jobs_are_not_written_through_a_link(one_line, tmp_path, monkeypatch, drawn_root, tiny_config, clip_file):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "sweep").mkdir(parents=True)
    (tmp_path / "out" / "sweep" / "jobs").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(status, "Queue", lambda: None)
    words = ["base2new", "--trainer", "CoOp", "--seeds", "1", "--dataset", "caltech101", "--cfg", tiny_config, "--root",
             str(drawn_root), "--output", str(tmp_path / "out"), "--shots", "2", "--backbone", clip_file]
    line = one_line(lambda: protocol.main([*words, "--launcher", "slurm"]))
    assert "jobs is a link" in line and not list((tmp_path / "elsewhere").iterdir())


# ---- what a loader's workers need ----
@pytest.mark.parametrize(("soft", "hard", "workers"), [
    (16, 16, 0), (32, 32, 0), (40, 40, 0), (128, 128, 0), (1024, 1024, 4), (256, 4096, 4), (32, -1, 4), (-1, -1, 4)])
def test_no_more_workers_than_open_files_allow(soft, hard, workers, monkeypatch):
    asked = []
    monkeypatch.setattr(loaders.resource, "getrlimit", lambda what: (soft, hard))
    monkeypatch.setattr(loaders.resource, "setrlimit", lambda what, limits: asked.append(limits))
    monkeypatch.setattr(loaders, "_open_files", lambda: 20)
    found, why = possible_workers(4)
    assert found == workers and (workers == 4 or f"open {hard} files only" in why)
    wanted = 20 + loaders.SPARE + 4 * loaders.FILES
    assert asked == ([] if soft in (-1, 1024) or soft == hard == 1024 else
                     [(wanted if hard == -1 else min(hard, wanted), hard)])


def test_a_limit_that_cannot_be_raised(monkeypatch):
    def refuse(what, limits):
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(loaders.resource, "getrlimit", lambda what: (64, 4096))
    monkeypatch.setattr(loaders.resource, "setrlimit", refuse)
    assert possible_workers(2)[0] == 0


@pytest.mark.parametrize(("length", "workers"), [(20, 2), (60, 2), (90, 0), (180, 0), (240, 0)])
def test_no_workers_where_the_temporary_folders_path_is_too_long_for_a_socket(length, workers, monkeypatch):
    monkeypatch.setattr(loaders.tempfile, "tempdir", "/" + "t" * (length - 1))
    found, why = possible_workers(2)
    assert found == workers and (workers or "TMPDIR" in why)


def test_no_workers_without_a_temporary_folder(monkeypatch):
    def none():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(loaders.tempfile, "gettempdir", none)
    assert possible_workers(2)[0] == 0


@pytest.mark.slow
def test_a_run_with_few_files_has_the_same_numbers(arguments, tmp_path):
    """As a process of its own under `ulimit -n 40`, where workers would hang."""
    found = []
    for limit in ("40", "1000"):
        words = arguments("CoOp", tmp_path / limit, "DATALOADER.NUM_WORKERS", 2)
        done = subprocess.run(["bash", "-c", f'ulimit -n {limit}; exec "$@"', "run", sys.executable,
                               str(ROOT / "train.py"), *words], capture_output=True, text=True, check=False,
                              timeout=120)
        assert done.returncode == 0, done.stderr
        assert ("loader workers: this process may open 40 files only" in done.stdout) == (limit == "40")
        found.append(json.loads((tmp_path / limit / "results.json").read_text())["metrics"])
    assert found[0] == found[1]


# ---- a worker that fails or is slow ----
class Does:
    """A dataset whose item is what `function()` gives, in the worker."""

    def __init__(self, function):
        self.function = function

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.function()


def first_batch(function, **settings):
    sampler = BatchSampler(SequentialSampler(range(2)), 1, False)
    loader = EpochLoader(Does(function), batch_sampler=sampler, num_workers=1, persistent_workers=True, **settings)
    try:
        return next(iter(loader))
    finally:
        end_workers(loader)


def without_files():
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with contextlib.suppress(OSError):  # the numbers below that are free
        while True:
            os.open(os.devnull, os.O_RDONLY)
    return torch.zeros(3)


def without_a_temporary_folder():
    loaders.tempfile.tempdir = "/no/such/folder"
    return torch.zeros(3)


@pytest.mark.parametrize(("function", "settings"), [
    (without_files, {}), (without_a_temporary_folder, {}), (threading.Lock, {"collate_fn": list}),
    (lambda: os.kill(os.getpid(), signal.SIGKILL), {}), (lambda: os._exit(3), {})],
    ids=["no files left", "no temporary folder", "what cannot be sent", "killed", "exits"])
def test_a_worker_that_cannot_hand_its_batch_over_ends_the_wait(function, settings):
    started = time.monotonic()
    with pytest.raises((RuntimeError, OSError)) as error:
        first_batch(function, **settings)
    assert time.monotonic() - started < 20
    assert "loader worker died" in surroundings(error.value)


def test_a_worker_that_does_not_answer_ends_in_one_line(monkeypatch, one_line):
    monkeypatch.setattr(loaders, "BATCH_TIMEOUT", 1)
    monkeypatch.setattr(loaders, "WORKER_POLL", 0.3)
    line = one_line(lambda: first_batch(lambda: time.sleep(60)))
    assert "no batch has come from the loader's workers for 1 s" in line


def test_a_death_that_torch_is_not_told_of_is_noticed():
    """A worker that dies before torch knows its number."""
    sampler, former = BatchSampler(SequentialSampler(range(2)), 1, False), signal.getsignal(signal.SIGCHLD)
    loader = EpochLoader(Does(lambda: time.sleep(1) or os._exit(1)), batch_sampler=sampler, num_workers=2,
                         persistent_workers=True)
    batches, started = iter(loader), time.monotonic()
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with pytest.raises(RuntimeError, match="exited unexpectedly"):
            next(batches)
        assert time.monotonic() - started < 30
    finally:
        signal.signal(signal.SIGCHLD, former)
        end_workers(loader)


def test_a_slow_batch_and_kept_workers_are_no_fault(monkeypatch):
    """A batch may take many looks, in the second pass, too."""
    monkeypatch.setattr(loaders, "WORKER_POLL", 0.2)
    sampler = BatchSampler(SequentialSampler(range(2)), 1, False)
    loader = EpochLoader(Does(lambda: time.sleep(0.7) or 5), batch_sampler=sampler, num_workers=1,
                         persistent_workers=True)
    try:
        assert next(iter(loader)).tolist() == [5]
        for _ in range(2):
            assert [batch.tolist() for batch in loader] == [[5], [5]]
    finally:
        end_workers(loader)


def test_an_error_of_the_dataset_stays_what_it_is():
    def refuse():
        raise InputError("a picture is broken")

    with pytest.raises(InputError, match="^a picture is broken$"):
        first_batch(refuse)


# ---- a parent that is gone ----
CHILD = "import runpy, sys, time; runpy.run_path(sys.argv[1])['end_with_parent'](int(sys.argv[2])); time.sleep(60)"
PARENT = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}, sys.argv[1], str(os.getpid())])
print(child.pid, flush=True)
time.sleep(60)
"""
PROCESSES = ROOT / "dassl" / "utils" / "processes.py"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_process_ends_with_its_parent(number):
    with subprocess.Popen([sys.executable, "-c", PARENT, str(PROCESSES)], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True) as parent:
        child = int(parent.stdout.readline())
        assert not gone(child, within=1.5)
        os.kill(parent.pid, number)
        parent.wait(10)
    assert gone(child)


def test_a_process_whose_parent_went_before_it_looked_ends_at_once():
    """A worker of --jobs, before it imports anything that takes long."""
    with subprocess.Popen(["true"]) as another:
        another.wait()
    started = time.monotonic()
    done = subprocess.run([sys.executable, side_by_side.WORKER, str(another.pid), "0"], stdin=subprocess.DEVNULL,
                          capture_output=True, check=False, timeout=20)
    assert done.returncode in (0, 1) and time.monotonic() - started < 5  # it may see the end of its pipe first


LOADING = """
import sys, time
sys.path.insert(0, sys.argv[1])
import torch
from torch.utils.data import BatchSampler, SequentialSampler
from dassl.data.loader import EpochLoader
class Large:
    def __len__(self): return 40
    def __getitem__(self, index): return b"x" * 10**6  # more than a pipe takes: the workers wait for somebody to read
loader = EpochLoader(Large(), batch_sampler=BatchSampler(SequentialSampler(range(40)), 1, False), num_workers=2)
batches = iter(loader)
next(batches)
print(*[worker.pid for worker in __import__("multiprocessing").active_children()], flush=True)
time.sleep(60)
"""


def test_loader_workers_end_with_a_killed_parent():
    with subprocess.Popen([sys.executable, "-c", LOADING, str(ROOT)], stdout=subprocess.PIPE, text=True) as parent:
        workers = list(map(int, parent.stdout.readline().split()))
        time.sleep(1)
        parent.kill()
    assert len(workers) == 2 and all(map(gone, workers))


RANK = """
import os, subprocess, sys, time
code = "import sys; sys.path[0] = sys.argv[1]; from dassl.utils import joined; print(flush=True); joined().__enter__()"
child = subprocess.Popen([sys.executable, "-c", code, sys.argv[1]], stdout=subprocess.PIPE, env={
    **os.environ, "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"})
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_rank_ends_with_a_killed_torchrun():
    """It waits for the others, whom nobody will start any more."""
    with subprocess.Popen([sys.executable, "-c", RANK, str(ROOT)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          text=True, env={**os.environ, "TORCHELASTIC_RUN_ID": "none"}) as parent:
        rank = int(parent.stdout.readline())
        time.sleep(1)
        parent.kill()
    assert gone(rank)


@contextlib.contextmanager
def left_alone(seconds=30):
    """A process whose parent is gone."""
    done = subprocess.run(["bash", "-c", f"sleep {seconds} >/dev/null 2>&1 & echo $!"], capture_output=True, text=True,
                          check=True)
    pid = int(done.stdout)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_who_is_orphaned():
    with left_alone() as pid:
        assert orphaned(pid)
    assert gone(pid) and not orphaned(2**22 + 1)
    for session in (False, True):
        with subprocess.Popen(["sleep", "30"], start_new_session=session) as child:
            assert not orphaned(child.pid)
            child.kill()


def hold(folder, pid):
    folder.mkdir(exist_ok=True)
    (folder / ".lock").write_text(json.dumps({"pid": pid, "host": os.uname().nodename}))


def test_a_folder_whose_holder_is_ending_is_waited_for(tmp_path, capsys):
    with left_alone(1) as pid:
        hold(tmp_path / "run", pid)
        started = time.monotonic()
        before_run.wait_for_ending(str(tmp_path / "run"))
        assert gone(pid, within=0.2) and time.monotonic() - started < 5
    assert capsys.readouterr().out.count("is in use by process") == 1


def test_a_holder_that_stays_is_not_waited_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(before_run, "SECONDS_FOR_ORPHANS", 0.3)
    with left_alone() as pid:
        hold(tmp_path / "run", pid)
        before_run.wait_for_ending(str(tmp_path / "run"))
        assert not gone(pid, within=0)


@pytest.mark.parametrize("holder", ["ours", "another one's", "gone", "elsewhere"])
def test_any_other_holder_is_told_at_once(holder, tmp_path, capsys, monkeypatch):
    if holder == "ours":
        monkeypatch.setattr(before_run, "orphaned", lambda pid: True)
    with subprocess.Popen(["sleep", "30"]) as child:
        hold(tmp_path / "run", {"ours": os.getpid(), "another one's": child.pid}.get(holder, 2**22 + 1))
        if holder == "elsewhere":
            (tmp_path / "run" / ".lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
        started = time.monotonic()
        before_run.wait_for_ending(str(tmp_path / "run"))
        assert time.monotonic() - started < 1 and capsys.readouterr().out == ""
        child.kill()


@pytest.mark.slow
def test_a_protocol_that_is_killed_goes_on_to_the_same_tables(shapes_root):
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "chaos_protocol.py"), "--kills", "3", "--seed", "2",
                           "--root", str(shapes_root)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and " 0 faults" in done.stdout, done.stdout + done.stderr
