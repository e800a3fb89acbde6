"""What is planted in a run folder in a file's place: links to files that are worth more, pipes, devices. Nothing is
written through them, nothing is removed through them, and nothing waits for them."""
import contextlib
import gzip
import os
import shutil
import signal
import socket
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tensorboard.summary.writer import event_file_writer

import train
from dassl.config import get_cfg_default, merge_file
from dassl.data.datasets.names import read_names
from dassl.data.overlap import RECORD, File, ImageSet
from dassl.engine import TrainerBase
from dassl.engine.checkpointer import Checkpointer
from dassl.utils import (
    FolderLock,
    InputError,
    load_checkpoint,
    load_plugin,
    lock_holder,
    noted_checkpoint,
    open_own,
    open_regular,
    read_json,
    remove_torn_files,
    resume_from_checkpoint,
    save_checkpoint,
    setup_logger,
    write_atomically,
)
from datasets.files import read_lines
from prompting import PromptingError, backbone, load_clip
from protocols.parts import style
from tools import plot, protocol
from tools.running import cluster
from trainers.coprompt import read_sentences
from training import PromptTrainer

WORTH = "worth more than a run\n"


@pytest.fixture(autouse=True)
def no_test_waits_for_ever():
    def late(number, frame):
        raise AssertionError("it waits for what was planted")

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


@pytest.fixture
def victim(tmp_path):
    """A file that no test may change, and a folder in which none may; checked at the end."""
    file, folder = tmp_path / "elsewhere" / "thesis.txt", tmp_path / "elsewhere" / "folder"
    folder.mkdir(parents=True)
    file.write_text(WORTH)
    for name in ("checkpoint.tmp7", "model.pth.tar-1", "model-interrupted.pth.tar", "shot_2-seed_1.json.tmp7"):
        (folder / name).write_text(WORTH)
    before = sorted(os.listdir(folder))
    yield types.SimpleNamespace(file=file, folder=folder, missing=tmp_path / "elsewhere" / "missing")
    assert file.read_text() == WORTH and not (tmp_path / "elsewhere" / "missing").exists()
    assert sorted(os.listdir(folder)) == before
    assert all((folder / name).read_text() == WORTH for name in before)


def plant(kind, path, victim):
    """Put something of a kind where a file is to be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "link":
        path.symlink_to(victim.file)
    elif kind == "second name":
        path.hardlink_to(victim.file)
    elif kind == "link to nothing":
        path.symlink_to(victim.missing)
    elif kind == "link to a folder":
        path.symlink_to(victim.folder)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:  # its name may be 108 bytes long
            server.bind(path.name)
    elif kind == "folder":
        path.mkdir()


LINKS = ("link", "second name", "link to nothing", "link to a folder")
NO_FILES = ("pipe", "device", "socket", "folder")


@pytest.fixture
def run(arguments, clips):
    return lambda *args, **kwargs: train.main(arguments(*args, **kwargs), clips=clips)


# ---- what is opened for writing ----
@pytest.mark.parametrize("mode", ["w", "a", "a+", "wb", "x"])
@pytest.mark.parametrize("kind", [*LINKS, *NO_FILES])
def test_nothing_planted_is_opened_for_writing(kind, mode, victim, tmp_path):
    plant(kind, tmp_path / "file", victim)
    with pytest.raises((InputError, FileExistsError)):
        open_own(tmp_path / "file", mode)


@pytest.mark.parametrize("kind", [*LINKS, *NO_FILES])
@pytest.mark.parametrize("name", [".lock", "log.txt"])
def test_a_run_refuses_what_is_in_the_place_of_an_open_file(name, kind, run, one_line, victim, tmp_path):
    plant(kind, tmp_path / "out" / name, victim)
    line = one_line(lambda: run("ZeroshotCLIP", tmp_path / "out"))
    assert str(tmp_path / "out" / name) in line and "remove it" in line


@pytest.mark.parametrize("kind", [*LINKS, "pipe", "socket"])
@pytest.mark.parametrize("place", ["fresh.json", "there.json"])
def test_a_temporary_name_is_no_way_out(place, kind, victim, tmp_path, monkeypatch):
    """Not even one that was foreseen."""
    (tmp_path / "there.json").write_text("before")
    monkeypatch.setattr("secrets.randbelow", lambda most: 7)
    plant(kind, tmp_path / f"{place}.tmp{os.getpid()}000000007", victim)
    with pytest.raises((InputError, FileExistsError)):
        write_atomically(str(tmp_path / place), lambda file: file.write(b"whole"))
    assert (tmp_path / "there.json").read_text() == "before" and not (tmp_path / "fresh.json").exists()


def test_threads_that_write_one_file_leave_it_whole(tmp_path):
    def write(number):
        for _ in range(50):
            write_atomically(str(tmp_path / "a"), lambda file: file.write(bytes([number]) * 5000))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(set((tmp_path / "a").read_bytes())) == 1 and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("kind", ["link", "second name", "link to nothing", "pipe"])
@pytest.mark.parametrize("name", ["results.json", "config.yaml", "predictions.csv.gz", "logits.npz", "cmat.pt", RECORD,
                                  "prompt_learner/checkpoint", "prompt_learner/model.pth.tar-1",
                                  "split_fewshot/shot_2-seed_1.json"])
def test_a_file_that_is_replaced_leaves_what_it_was_linked_to(name, kind, run, victim, tmp_path, capsys):
    plant(kind, tmp_path / "out" / name, victim)
    words = ("OPTIM.MAX_EPOCH", 1, "TEST.SAVE_LOGITS", True, "TEST.COMPUTE_CMAT", True)
    status = train.command_line(lambda: run("CoOp", tmp_path / "out", *words))
    told = capsys.readouterr().err
    assert status in (0, 2) and "Traceback" not in told, told  # what cannot be read may be refused
    if status == 0:
        assert not (tmp_path / "out" / name).is_symlink() and os.stat(tmp_path / "out" / name).st_nlink == 1


@pytest.mark.parametrize("target", ["folder", "missing"])
@pytest.mark.parametrize("name", ["prompt_learner", "tensorboard", "split_fewshot"])
def test_no_folder_of_a_run_is_a_link(name, target, run, one_line, victim, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(getattr(victim, target))
    line = one_line(lambda: run("CoOp", tmp_path / "out", "OPTIM.MAX_EPOCH", 1))
    assert f"{tmp_path / 'out' / name} is a link" in line


@pytest.mark.parametrize("how", ["the folder itself", "a folder above"])
def test_the_folder_that_is_named_may_lie_on_another_disk(how, run, tmp_path):
    (tmp_path / "disk" / "out").mkdir(parents=True)
    linked = tmp_path / "out" if how == "the folder itself" else tmp_path / "above"
    linked.symlink_to(tmp_path / "disk" / "out")
    out = linked if how == "the folder itself" else linked / "run"
    assert run("CoOp", out, "OPTIM.MAX_EPOCH", 1)["metrics"]
    assert list((tmp_path / "disk" / "out").rglob("results.json")) and linked.is_symlink()


def test_torn_files_are_not_removed_through_a_link(victim, tmp_path):
    out = tmp_path / "out"
    (out / "prompt_learner").mkdir(parents=True)
    (out / "prompt_learner" / "checkpoint.tmp7").touch()
    (out / "models").symlink_to(victim.folder)
    (out / "results.json.tmp7").symlink_to(victim.folder)  # which goes itself
    remove_torn_files(str(out))
    assert sorted(os.listdir(out)) == ["models", "prompt_learner"] and not os.listdir(out / "prompt_learner")


@pytest.mark.parametrize("removes", ["prune", "forget_interruption"])
def test_no_checkpoint_is_removed_through_a_link(removes, victim, tmp_path):
    (tmp_path / "prompt_learner").symlink_to(victim.folder)
    checkpointer = Checkpointer(types.SimpleNamespace(folders=lambda: ["prompt_learner"]))
    with pytest.raises(InputError, match="is a link"):
        getattr(checkpointer, removes)(str(tmp_path), *([9, 0] if removes == "prune" else []))


def test_a_link_that_comes_during_the_training_is_seen(run, one_line, victim, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def swapped(self, *args, **kwargs):
        shutil.rmtree(out / "prompt_learner", ignore_errors=True)
        (out / "prompt_learner").symlink_to(victim.folder)
        return step(self, *args, **kwargs)

    step = PromptTrainer.after_epoch
    monkeypatch.setattr(PromptTrainer, "after_epoch", swapped)
    assert "is a link" in one_line(lambda: run("CoOp", out))


def test_a_public_save_writes_through_no_link(victim, tmp_path):
    (tmp_path / "model").symlink_to(victim.folder)
    with pytest.raises(InputError, match="is a link"):
        save_checkpoint({"state_dict": {}, "epoch": 1}, str(tmp_path / "model"), is_best=True)


def test_the_best_model_of_another_run_is_copied_over_a_link_not_through_it(run, victim, tmp_path):
    run("CoOp", tmp_path / "first", "TEST.FINAL_MODEL", "best_val")
    best = tmp_path / "out" / "prompt_learner" / "model-best.pth.tar"
    plant("link", best, victim)
    run("CoOp", tmp_path / "out", "--resume", tmp_path / "first", "TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 2)
    assert not best.is_symlink() and load_checkpoint(str(best))["epoch"]


def test_a_planted_event_file_is_not_written_through(victim, tmp_path, monkeypatch):
    monkeypatch.setattr(event_file_writer, "time", types.SimpleNamespace(time=lambda: 1e9))
    for number in range(1000):  # TensorBoard counts the writers of a process
        name = f"events.out.tfevents.1000000000.{socket.gethostname()}.{os.getpid()}.{number}"
        (tmp_path / name).symlink_to(victim.file)
    trainer = TrainerBase()
    trainer.init_writer(str(tmp_path))
    trainer.write_scalar("loss", 1.0, 1)
    trainer.close_writer()
    assert len([path for path in tmp_path.glob("events*") if not path.is_symlink()]) == 1


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_figure_is_drawn_over_a_link_not_through_it(suffix, victim, tmp_path):
    plant("link", tmp_path / f"figure.{suffix}", victim)
    files = style.save(style.plt.figure(), str(tmp_path / "figure"))
    assert [os.path.basename(file) for file in files] == ["figure.png", "figure.svg"]
    assert all(os.path.getsize(file) > 100 and not os.path.islink(file) for file in files)


def test_no_figures_are_drawn_into_a_linked_folder(victim, one_line, tmp_path, monkeypatch):
    (tmp_path / "figures").symlink_to(victim.folder)
    monkeypatch.setattr(plot, "find_runs", lambda folders: ({}, {}))
    monkeypatch.setattr(plot, "require_comparable", lambda cells, where: None)
    assert "figures is a link" in one_line(lambda: plot.main([str(tmp_path)]))


def test_the_cache_of_weights_is_written_through_no_link(victim, tmp_path):
    shipped = backbone.SHIPPED["tiny"]
    digest = backbone.weights_digest("tiny")
    plant("link", tmp_path / f"{digest}.pt.tmp{os.getpid()}", victim)
    path = backbone.whole_file(shipped, str(tmp_path))
    assert torch.load(path, weights_only=True) and sorted(os.listdir(tmp_path)) == sorted(
        [f"{digest}.pt", f"{digest}.pt.tmp{os.getpid()}", "elsewhere"])


# ---- protocols ----
@pytest.fixture
def words(drawn_root, tiny_config, clip_file, tmp_path):
    return lambda kind, *more: [
        kind, "--dataset", "caltech101", "--root", str(drawn_root), "--output", str(tmp_path / "out"), "--shots", "2",
        "--backbone", clip_file, "--cfg", tiny_config, *more]


@pytest.mark.parametrize("part", ["base2new", "base2new/train_base", "base2new/test_new/caltech101/shots_2/CoOp",
                                  "base2new/train_base/caltech101/shots_2/CoOp/tiny/seed1"])
def test_no_part_of_the_way_to_a_run_is_a_link(part, words, one_line, victim, tmp_path):
    (tmp_path / "out" / part).parent.mkdir(parents=True)
    (tmp_path / "out" / part).symlink_to(victim.folder)
    argv = words("base2new", "--trainer", "CoOp", "--seeds", "1")
    assert f"{tmp_path / 'out' / part} is a link" in one_line(lambda: protocol.main(argv))


def test_the_output_folder_of_a_protocol_may_be_a_link(words, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    protocol.main(words("base2new", "--trainer", "ZeroshotCLIP", "--seeds", "1"))
    assert list((tmp_path / "disk").rglob("results.json"))


@pytest.mark.parametrize("kind", ["link", "second name", "link to nothing"])
def test_a_run_that_is_filled_from_another_appends_to_no_link(kind, words, one_line, victim, tmp_path):
    plant(kind, tmp_path / "out/base2new/test_new/caltech101/shots_2/ZeroshotCLIP/tiny/seed2/log.txt", victim)
    argv = words("base2new", "--trainer", "ZeroshotCLIP", "--seeds", "1", "2")
    assert "seed2/log.txt" in one_line(lambda: protocol.main(argv), results=True)


@pytest.mark.parametrize("part", ["sweep", "sweep/jobs"])
def test_the_folder_of_a_clusters_jobs_is_no_link(part, one_line, victim, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "require_slurm", lambda: None)
    (tmp_path / part).parent.mkdir(exist_ok=True)
    (tmp_path / part).symlink_to(victim.folder)
    assert f"{part} is a link" in one_line(lambda: cluster.submit([], str(tmp_path), {}))


# ---- locks ----
def test_a_second_thread_is_told_of_the_first(tmp_path):
    told = []

    def second():
        try:
            with FolderLock(str(tmp_path / "same" / ".." / "out")):
                told.append("both are in")
        except InputError as error:
            told.append(str(error))

    with FolderLock(str(tmp_path / "out")):
        for _ in range(2):  # the refusal has not unlocked it
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
    assert len(told) == 2 and all(f"is in use by process {os.getpid()}" in line for line in told)
    with FolderLock(str(tmp_path / "out")):
        pass


def test_threads_that_race_for_a_folder_are_in_it_one_at_a_time(tmp_path):
    inside, most, refused, start = [], [], [], threading.Barrier(8, timeout=30)

    def race():
        start.wait()
        for _ in range(50):
            try:
                with FolderLock(str(tmp_path / "out")):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.0005)
                    inside.pop()
            except InputError:
                refused.append(1)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and refused


def test_asking_who_holds_a_lock_does_not_open_it(tmp_path):
    with FolderLock(str(tmp_path)):
        assert lock_holder(str(tmp_path))["pid"] == os.getpid()
        child = os.fork()
        if child == 0:
            try:
                with FolderLock(str(tmp_path)):
                    os._exit(1)
            except InputError:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert lock_holder(str(tmp_path)) == {}


@pytest.mark.parametrize("content", [
    '{"pid": 1e99, "host": "%s"}', '{"pid": %s, "host": "h"}' % 10**30, '{"pid": 0, "host": "%s"}',
    '{"pid": -1, "host": "%s"}', '{"pid": true, "host": "%s"}', '{"pid": 7, "host": ["h"]}',
    '{"pid": 7, "host": "\\u001b[2Jh"}', '{"pid": 7, "host": "h", "job": "../../evil", "starts": 0}',
    '{"pid": 7, "host": "h", "job": ["1"]}'], ids=["1e99", "huge", "0", "-1", "true", "list", "escape", "path", "job"])
def test_a_signature_that_is_none_holds_nothing(content, tmp_path):
    (tmp_path / ".lock").write_text(content.replace("%s", socket.gethostname()))
    assert lock_holder(str(tmp_path)) == {}
    with FolderLock(str(tmp_path)):
        pass


def test_a_lock_that_is_replaced_all_the_time_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(FolderLock, "_still_there", lambda self, file: False)
    with pytest.raises(InputError, match="all the time"), FolderLock(str(tmp_path)):
        pass


def test_another_ones_lock_is_not_removed_at_the_end(tmp_path):
    with FolderLock(str(tmp_path)):
        (tmp_path / ".lock").rename(tmp_path / "moved")
        (tmp_path / ".lock").write_text("another's")
    assert (tmp_path / ".lock").read_text() == "another's"


# ---- a run folder that somebody changes meanwhile ----
def lock_replaced(out):
    (out / ".lock").rename(out / "moved")
    (out / ".lock").touch()


def other_folder(out):
    out.rename(out.parent / "moved")
    out.mkdir()


CHANGES = {  # and the exit status
    "the folder is removed": (shutil.rmtree, 2),
    "the folder is moved away": (lambda out: out.rename(f"{out}2"), 2),
    "another folder is in its place": (other_folder, 2),
    "the lock is removed": (lambda out: (out / ".lock").unlink(), 2),
    "the lock is another": (lock_replaced, 2),
    "the log is removed": (lambda out: (out / "log.txt").unlink(), 0),
    "the config is removed": (lambda out: (out / "config.yaml").unlink(), 0),
    "the models are removed": (lambda out: shutil.rmtree(out / "prompt_learner"), 0),
    "the scalars are removed": (lambda out: shutil.rmtree(out / "tensorboard"), 2)}


@pytest.mark.parametrize("what", CHANGES)
def test_a_folder_that_is_changed_during_the_training(what, run, tmp_path, monkeypatch, capsys):
    out, (change, expected) = tmp_path / "out", CHANGES[what]
    step = PromptTrainer.training_step

    def changing(self, *args):
        if (self.epoch, self.batch_idx) == (1, 1):
            change(out)
            self._writer.flush()
        return step(self, *args)

    monkeypatch.setattr(PromptTrainer, "training_step", changing)
    if what != "the scalars are removed":  # by which TensorBoard's thread may be the first to see it
        monkeypatch.setattr(PromptTrainer, "write_scalar", lambda self, *args: None)
        monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.flush", lambda self: None)
    status = train.command_line(lambda: run("CoOp", out, "OPTIM.MAX_EPOCH", 3))
    told = capsys.readouterr().err
    assert status == expected and "Traceback" not in told, told
    assert told.count("error: ") == (expected == 2)
    assert expected == 0 or "removed" in told or "No such file" in told  # which TensorBoard's thread may say first
    assert (out / "results.json").exists() == (expected == 0)


# ---- names of run folders ----
@pytest.mark.parametrize("name", ["a.log", "a.txt", "results.json", ".lock", "log.txt", "model.pth.tar-1.tmp7"])
def test_an_output_folder_may_have_any_name(name, run, tmp_path):
    assert run("ZeroshotCLIP", tmp_path / name)["metrics"]
    assert "ZeroshotCLIP" in (tmp_path / name / "log.txt").read_text()


def test_a_log_file_may_still_be_named(tmp_path):
    logger = setup_logger(str(tmp_path / "new" / "mine.log"))
    print("kept")
    logger.close()
    assert (tmp_path / "new" / "mine.log").read_text() == "kept\n"


# ---- what is opened for reading ----
def read_noted(path):
    (path.parent / "checkpoint").exists() or path.rename(path.parent / "checkpoint")
    assert noted_checkpoint(str(path.parent)) is None
    raise InputError("none is noted")


def resume(path):
    path.rename(path.parent / "checkpoint")
    resume_from_checkpoint(str(path.parent), torch.nn.Linear(1, 1))


def read_record(path):
    path.rename(path.parent / RECORD)
    if not ImageSet().add_noted(str(path.parent)):
        raise InputError("there is none")


def read_holder(path):
    path.rename(path.parent / ".lock")
    assert lock_holder(str(path.parent)) == {}
    raise InputError("nobody holds it")


def read_digest(path):
    assert File(str(path), (), 1, 1).digest() == "" and File(str(path), (), 1, 1).ends() is None
    raise InputError("it has none")


READERS = {
    "any": lambda path: open_regular(path),
    "JSON": lambda path: read_json(str(path)),
    "config": lambda path: merge_file(get_cfg_default(), str(path)),
    "names": lambda path: read_names(str(path)),
    "sentences": lambda path: read_sentences(str(path)),
    "list": lambda path: read_lines(str(path), "hint"),
    "checkpoint": lambda path: load_checkpoint(str(path)),
    "note of the newest checkpoint": read_noted,
    "checkpoint to resume": resume,
    "training list": read_record,
    "lock": read_holder,
    "content": read_digest,
    "weights": lambda path: load_clip(str(path)),
    "plugin": lambda path: load_plugin(str(path)),
}


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("reader", READERS)
def test_no_reader_waits_or_reads_for_ever(reader, kind, victim, tmp_path):
    path = tmp_path / "place" / "planted.yaml"
    plant(kind, path, victim)
    with pytest.raises((InputError, PromptingError, OSError)):
        READERS[reader](path)


@pytest.mark.parametrize("reader", ["JSON", "config", "names", "sentences", "list"])
def test_a_text_of_a_terabyte_is_not_read(reader, tmp_path):
    path = tmp_path / "large.yaml"
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(InputError, match="larger|bytes"):
        READERS[reader](path)


def test_a_training_list_that_unpacks_to_much_more_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("dassl.data.overlap.MOST_RECORD_BYTES", 1000)
    (tmp_path / RECORD).write_bytes(gzip.compress(b"0" * 2000))
    with pytest.raises(InputError, match="unpacks to more than 1,000 bytes"):
        ImageSet().add_noted(str(tmp_path))


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("flag", ["--config-file", "--backbone", "--plugin", "DATASET.CLASSNAMES",
                                  "MODEL.INIT_WEIGHTS"])
def test_a_run_is_given_no_file(flag, kind, run, one_line, victim, tmp_path):
    plant(kind, tmp_path / "given.yaml", victim)
    assert "given.yaml" in one_line(lambda: run("CoOp", tmp_path / "out", flag, tmp_path / "given.yaml"))


@pytest.mark.parametrize("name", ["prompt_learner/checkpoint", "prompt_learner/model.pth.tar-2", "results.json",
                                  "prompt_learner/model-interrupted.pth.tar", "predictions.csv.gz"])
def test_a_run_goes_on_past_a_pipe(name, run, victim, tmp_path, capsys):
    run("CoOp", tmp_path / "out", "OPTIM.MAX_EPOCH", 2)
    for gone in ("results.json", name):
        (tmp_path / "out" / gone).unlink(missing_ok=True)
    plant("pipe", tmp_path / "out" / name, victim)
    assert train.command_line(lambda: run("CoOp", tmp_path / "out", "OPTIM.MAX_EPOCH", 2)) == 0, capsys.readouterr().err
    assert (tmp_path / "out" / "results.json").is_file()
