"""Output that nobody reads and streams that are closed: a training goes on to its end, what only prints ends quietly.
"""
import contextlib
import errno
import io
import os
import runpy
import subprocess
import sys
import threading
import traceback

import pytest
from conftest import ROOT

import train
from dassl.utils import InputError, quiet, read_json, setup_logger
from dassl.utils.streams import ReaderGone, Watched, end_quietly, go_on, watched_streams

CLOSED = 'exec "$@" <&- >&- 2>&-'
FULL = "/dev/full"
needs_full = pytest.mark.skipif(not os.path.exists(FULL), reason=f"no {FULL} here")


def child(words, **streams):
    return subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, **streams)


def called(file, *words):
    """What a program's file does with these words; its status is that of the SystemExit."""
    sys.argv = [str(file), *map(str, words)]
    runpy.run_path(str(ROOT / file), run_name="__main__")


def forked(function, closed=(), stdout=None):
    """(exit status, what was told on stderr) of a program in a fork of this process, which is loaded already.

    function: its work; it returns the status, or raises it as a SystemExit. closed: numbers of its streams.
    stdout: a file's path; default a pipe that nobody reads."""
    told, telling = os.pipe()
    unheard, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.close(unheard)
            os.dup2(telling, 2)
            os.dup2(writing if stdout is None else os.open(stdout, os.O_WRONLY), 1)
            sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in
                                                 enumerate(("r", "w", "w")))
            for number in closed:
                os.close(number)
                setattr(sys, ("stdin", "stdout", "stderr")[number], None)
            try:
                status = function()
            except SystemExit as end:
                status = end.code
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()  # as the interpreter does
        except BaseException:
            status = 70
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    for number in (telling, writing, unheard):
        os.close(number)
    with open(told) as stderr:
        said = stderr.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def require_whole(folder):
    """The run is finished, and its log has everything, once."""
    assert read_json(str(folder / "results.json"))["metrics"]["test"]
    log = (folder / "log.txt").read_text()
    assert log.startswith("** CoOp") and log.count("Finish training") == log.count("=> result") == 1
    assert [line.partition(":")[0] for line in log.splitlines()[-2:]] == ["Elapsed", "Features"]


# ---- trainings ----
@pytest.fixture
def words(arguments, tmp_path):
    return arguments("CoOp", tmp_path / "out", "OPTIM.MAX_EPOCH", 1)


@pytest.mark.slow
def test_a_training_without_any_stream(words, tmp_path):
    done = subprocess.run(["sh", "-c", CLOSED, "sh", sys.executable, ROOT / "train.py", *words], cwd=ROOT, timeout=120)
    assert done.returncode == 0
    require_whole(tmp_path / "out")


def test_a_training_whose_reader_goes(words, tmp_path):
    """`train.py ... 2>&1 | head -1`"""
    running = child([ROOT / "train.py", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert running.stdout.readline()
    running.stdout.close()
    assert running.wait(120) == 0
    require_whole(tmp_path / "out")


@pytest.mark.parametrize("stdout", [None, pytest.param(FULL, marks=needs_full)], ids=["no reader", "full disk"])
def test_a_training_that_cannot_print(stdout, words, tmp_path):
    status, told = forked(lambda: called("train.py", *words), stdout=stdout)
    assert status == 0 and not any(word in told for word in ("Traceback", "Broken pipe", "No space", "error")), told
    require_whole(tmp_path / "out")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2)], ids=str)
def test_a_training_with_some_streams(closed, words, tmp_path):
    status, told = forked(lambda: called("train.py", *words), closed=closed)
    assert status == 0 and "Traceback" not in told, told
    require_whole(tmp_path / "out")


def test_what_cannot_be_done_is_still_an_error_without_streams(words, tmp_path):
    status, _ = forked(lambda: called("train.py", *words, "OPTIM.LR", "fast"), closed=(0, 1, 2))
    assert status == 2 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("closed", [(), (0, 1, 2)], ids=["no reader", "closed"])
def test_a_protocol_without_streams(closed, drawn_root, tiny_config, clip_file, tmp_path):
    status, told = forked(lambda: called(
        "metaprompt.py", "protocol", "base2new", "--trainer", "ZeroshotCLIP", "--dataset", "caltech101", "--root",
        drawn_root, "--output", tmp_path, "--shots", "2", "--seeds", "1", "--backbone", clip_file, "--cfg",
        tiny_config), closed=closed)
    assert status == 0 and "Traceback" not in told, told
    folders = [path.parent for path in tmp_path.rglob("results.json")]
    assert len(folders) == 2
    assert all("Evaluate on the *test* set" in (folder / "log.txt").read_text() for folder in folders)


# ---- what only prints ----
@pytest.fixture
def finished(arguments, clips, tmp_path):
    folder = tmp_path / "base2new/train_base/caltech101/shots_2/CoOp/tiny/seed1"
    train.main(arguments("CoOp", folder, "OPTIM.MAX_EPOCH", 1), clips=clips)
    return folder


def test_a_report_that_nobody_reads_ends_quietly(finished, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    running = child([ROOT / "metaprompt.py", "report", tmp_path], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    told = running.communicate(timeout=120)[1]
    assert running.returncode == 141 and told == b"", told


@pytest.mark.parametrize("tool", ["report", "predict"])
def test_a_tool_that_nobody_reads_ends_quietly(tool, finished, tmp_path, drawn_root):
    picture = next(path for path in drawn_root.rglob("image_*") if path.is_file())
    words = {"report": [tmp_path], "predict": ["--model-dir", finished, picture]}
    status, told = forked(lambda: called(f"tools/{tool}.py", *words[tool]))
    told = [line for line in told.splitlines() if not line.startswith(("Note", "Backbone"))]
    assert status == 141 and not told, told


@needs_full
def test_a_report_on_a_full_disk_is_an_error(finished, tmp_path):
    status, told = forked(lambda: called("metaprompt.py", "report", tmp_path), stdout=FULL)
    assert status == 2 and told.count("error: ") == 1 and "No space left" in told and "Traceback" not in told


def test_an_error_is_told_where_nobody_reads_the_output():
    def fails():
        print("half of it")
        raise InputError("this is wrong")

    assert forked(lambda: train.command_line(fails)) == (2, "error: this is wrong\n")


# ---- the parts ----
class Failing(io.StringIO):
    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))

    def flush(self):
        self.write("")


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.EBADF, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("lost", [go_on, end_quietly], ids=["go on", "end quietly"])
def test_a_stream_that_fails(lost, number):
    stream = Watched(Failing(number), lost)
    if lost is go_on:
        assert stream.write("gone") == 4
        return
    with pytest.raises(ReaderGone if number == errno.EPIPE else OSError) as caught:
        stream.write("gone")
    assert number != errno.EPIPE or caught.value.code == 141


def test_closed_descriptors_are_not_given_to_files():
    """And programs that are started inherit what stands in their place."""
    def opened():
        numbers = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
        assert min(numbers) > 2 and all(os.get_inheritable(number) for number in range(3))
        assert [sys.stdin.read(), sys.stdout.write("x"), sys.stderr.write("x")] == ["", 1, 1]

    assert forked(lambda: train.command_line(opened), closed=(0, 1, 2))[0] == 0


def test_streams_are_as_before_at_the_end(capsys):
    before = sys.stdout, sys.stderr
    with contextlib.suppress(ZeroDivisionError), watched_streams(go_on):
        assert (sys.stdout, sys.stderr) != before
        print("said")
        raise ZeroDivisionError
    assert (sys.stdout, sys.stderr) == before and capsys.readouterr().out == "said\n"


def test_a_log_without_a_console(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    logger = setup_logger(str(tmp_path))
    print("kept", flush=True)
    with quiet():
        print("left out")
    logger.close()
    with quiet():
        print("left out")
    assert (tmp_path / "log.txt").read_text() == "kept\n"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ZeroDivisionError("a bug")],
                         ids=["disk", "bug"])
def test_a_thread_of_a_library_dies_in_a_line(error, capsys, monkeypatch):
    former = []
    monkeypatch.setattr(threading, "excepthook", former.append)

    def dies():
        raise error

    def starts():
        thread = threading.Thread(target=dies)
        thread.start()
        thread.join()

    assert train.command_line(starts) == 0 and threading.excepthook == former.append
    told = capsys.readouterr().err
    assert (told.startswith("Warning: [Errno 28] No space left") and told.count("\n") == 1) == (not former)
    assert bool(former) == isinstance(error, ZeroDivisionError)
