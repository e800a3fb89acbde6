"""Runs give the same numbers whatever the feature store holds: nothing, all, a part, damaged files, other runs' own."""
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from chaos import IN_A_WRITE, die_in_a_write
from conftest import ROOT

import train
from dassl.data import data_manager, image_cache
from dassl.utils import Terminated
from training import PromptTrainer
from training.store.feed import Feed

METHODS = ("CoOp", "KgCoOp", "MetaPrompt", "PromptSRC", "TipAdapterF")
SMALL = {"TipAdapterF": ("TRAINER.TIPADAPTERF.AUGMENT_EPOCH", 2),
         "PromptSRC": ("TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", 3, "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", 3)}


def numbers(folder):
    """All that a run has learned, said and drawn: {name: array}."""
    found = {}
    for path in sorted(folder.glob("*/model.pth.tar-*")):
        state = torch.load(path, weights_only=True)
        found |= {f"{path.name} {name}": tensor.numpy() for name, tensor in state["state_dict"].items()}
        found[f"{path.name} rng"] = state["rng"]["torch"].numpy()
    with np.load(folder / "logits.npz") as file:
        found["logits"] = file["logits"]
    metrics = json.loads((folder / "results.json").read_text())["metrics"]["test"]
    return found | {name: np.float64(value) for name, value in metrics.items()}


def identical(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture
def run(arguments, clips, tmp_path):
    """(method, name of the folder, *options) -> the run's numbers."""

    def run(method, name, *options, **kwargs):
        store = () if "STORE.DIR" in options else ("STORE.DIR", tmp_path / "store")
        train.main(arguments(method, tmp_path / name, "TEST.SAVE_LOGITS", "True", *SMALL.get(method, ()), *store,
                             *options, **kwargs), clips=clips)
        return numbers(tmp_path / name)

    return run


@pytest.fixture
def told(tmp_path):
    """name of a run's folder -> (pictures from the store, pictures computed)."""

    def told(name):
        found = json.loads((tmp_path / name / "results.json").read_text())["features"]
        return found["stored"], found["computed"]

    return told


def entries(folder):
    return sorted(folder.rglob("*.safetensors"))


@pytest.fixture
def tower_with_rounding(monkeypatch):
    """The tiny tower's features are the same in any batch. Those of larger ones are not, and neither are they here."""
    encode = Feed._encode

    def rounding(self, images):
        return encode(self, images) + 1e-6 * (images.mean() + torch.arange(len(images))[:, None])

    monkeypatch.setattr(Feed, "_encode", rounding)


# ---- the same numbers ----
@pytest.mark.parametrize("method", METHODS)
def test_without_a_store_the_numbers_agree_to_rounding(method, run, tmp_path):
    stored, without = run(method, "stored"), run(method, "without", "STORE.USE", "False")
    assert "features" not in json.loads((tmp_path / "without" / "results.json").read_text())
    for name, value in without.items():
        np.testing.assert_allclose(stored[name], value, rtol=1e-4, atol=1e-4 if name == "logits" else 1e-6)


@pytest.mark.usefixtures("tower_with_rounding")
@pytest.mark.parametrize("method", METHODS)
def test_the_numbers_of_a_run_do_not_depend_on_what_the_store_holds(method, run, told, tmp_path, monkeypatch):
    empty = run(method, "empty")
    stored, computed = told("empty")
    assert computed > 0
    with monkeypatch.context() as patch:
        if method in ("CoOp", "KgCoOp", "TipAdapterF"):
            forbid_pictures(patch)
        assert identical(run(method, "full", "DATALOADER.NUM_WORKERS", 0), empty)
    assert told("full") == (stored + computed, 0)

    for number, path in enumerate(files := entries(tmp_path / "store")):
        if number % 2:
            path.unlink()
    assert files
    assert identical(run(method, "half"), empty)
    assert told("half")[0] > 0 and told("half")[1] > 0

    for number, path in enumerate(entries(tmp_path / "store")):
        damage(path, number)
    assert identical(run(method, "damaged"), empty)
    assert told("damaged")[1] > 0
    assert "is not used" in (tmp_path / "damaged" / "log.txt").read_text()
    assert identical(run(method, "mended"), empty)
    assert told("mended") == (stored + computed, 0)


def forbid_pictures(patch):
    """Let no picture be opened."""
    def refuse(path, exif=False):
        raise AssertionError(f"{path} was opened")

    patch.setattr(data_manager, "read_image", refuse)
    patch.setattr(image_cache, "read_image", refuse)
    patch.setattr(image_cache, "size_of", refuse)


def damage(path, number):
    """Damage an entry in one of ten ways."""
    data, other = bytearray(path.read_bytes()), next((each for each in entries(path.parents[2]) if each != path), path)
    kind = number % 10
    if kind == 0:
        del data[len(data) // 2:]
    elif kind == 1:
        data.clear()
    elif kind == 2:
        data[-1] ^= 1
    elif kind == 3:
        data[20] ^= 255
    elif kind == 4:
        data[:8] = b"\xff" * 8
    elif kind == 5:
        data[:] = other.read_bytes()
    elif kind == 6:
        data += b"more"
    elif kind == 7:
        data[:] = os.urandom(len(data))
    elif kind == 8:
        data[-4:] = np.float32("nan").tobytes()
    path.unlink()
    if kind == 9:
        path.symlink_to(other)
    else:
        path.write_bytes(data)


@pytest.mark.usefixtures("tower_with_rounding")
def test_methods_share_features_whatever_their_batches_are(run, told, tmp_path):
    """Another batch size, another sampler, another number of workers, views of one method beside features of others."""
    run("CoOp", "coop", "DATALOADER.NUM_WORKERS", 2)
    _, computed = told("coop")
    alone = run("MetaPrompt", "alone", "STORE.DIR", tmp_path / "other")
    assert identical(run("MetaPrompt", "metaprompt"), alone)
    assert told("metaprompt")[1] < computed / 4
    run("KgCoOp", "kgcoop", "DATALOADER.TRAIN_X.BATCH_SIZE", 3, "DATALOADER.TEST.BATCH_SIZE", 7)
    assert told("kgcoop")[1] < computed / 4
    run("ZeroshotCLIP", "zeroshot")
    assert told("zeroshot")[1] == 0


@pytest.mark.usefixtures("tower_with_rounding")
def test_a_run_that_goes_on_within_an_epoch_has_the_same_numbers(run, tmp_path, monkeypatch):
    whole = run("CoOp", "whole")
    step = PromptTrainer.training_step

    def stopping(self, batch):
        if (self.epoch, self.batch_idx) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "training_step", stopping)
        with pytest.raises(Terminated):
            run("CoOp", "cut", "STORE.DIR", tmp_path / "another")
    shutil.rmtree(tmp_path / "another")
    assert identical(run("CoOp", "cut"), whole)


@pytest.mark.usefixtures("tower_with_rounding")
def test_a_stop_while_features_are_computed_keeps_them(run, told, tmp_path, monkeypatch):
    """The message says where the run is, and the run that goes on computes nothing twice."""
    whole = run("CoOp", "whole", "STORE.DIR", tmp_path / "other")
    encode, asked = Feed._encode, []

    def stopping(self, images):
        asked.append(len(images))
        if self.trainer.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return encode(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Feed, "_encode", stopping)
        with pytest.raises(Terminated):
            run("CoOp", "cut")
    assert "Stopped by SIGTERM: epoch 2, 0 batches done" in (tmp_path / "cut" / "log.txt").read_text()
    assert identical(run("CoOp", "cut"), whole)
    assert told("cut")[0] >= asked[-1]


# ---- processes ----
def forked(function):
    """Start a process that calls a function and ends with status 0, or 1 where it raises. Returns its number."""
    child = os.fork()
    if not child:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return child


def status_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.robustness
@pytest.mark.usefixtures("tower_with_rounding")
def test_runs_that_are_killed_while_they_fill_the_store_leave_nothing_wrong(kills, run, tally, tmp_path):
    whole, died = run("CoOp", "whole", "STORE.DIR", tmp_path / "other"), 0
    for number in range(kills):
        tally["kills"] += 1

        def dying(number=number):
            die_in_a_write(IN_A_WRITE[number % 3], 1 + number * 7 % 11)
            run("CoOp", f"run{number}")

        died += status_of(forked(dying)) == -signal.SIGKILL
        assert identical(run("CoOp", f"run{number}"), whole)
        tally["survived"] += 1
        for path in entries(tmp_path / "store")[number % 2::2]:  # something is to be filled in the next life, too
            path.unlink()
    assert died >= kills / 2


@pytest.mark.usefixtures("tower_with_rounding")
def test_two_processes_at_once_compute_each_picture_once(run, told, tmp_path):
    alone = [run(method, f"alone{method}", "STORE.DIR", tmp_path / "other") for method in ("CoOp", "KgCoOp")]
    _, computed = told("aloneCoOp")
    children = [forked(lambda method=method: run(method, method.lower())) for method in ("CoOp", "KgCoOp")]
    assert [status_of(child) for child in children] == [0, 0]
    assert identical(numbers(tmp_path / "coop"), alone[0])
    assert identical(numbers(tmp_path / "kgcoop"), alone[1])
    assert told("coop")[1] + told("kgcoop")[1] == computed


@pytest.mark.slow
@pytest.mark.parametrize("method", ["CoOp", "MetaPrompt"])
def test_processes_of_one_run_fill_the_store_with_what_one_process_computes(method, arguments, run, told, tmp_path):
    options = ("TEST.SAVE_LOGITS", "True", "STORE.DIR", tmp_path / "store")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               str(ROOT / "train.py"), *arguments(method, tmp_path / "ranks", *options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    again = run(method, "one")
    assert told("one")[1] == 0 < sum(told("ranks"))
    alone = run(method, "alone", "STORE.DIR", tmp_path / "other")
    assert identical(again, alone)
    for name, value in numbers(tmp_path / "ranks").items():
        np.testing.assert_allclose(again[name], value, rtol=1e-4, atol=1e-4)
