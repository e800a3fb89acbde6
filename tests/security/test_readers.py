"""What the fuzzer (tests/fuzz.py) has found in readers, one test for each kind."""
import json
import os
import signal
import struct

import pytest
import torch

import tiny_clip
from dassl.data.datasets.names import read_names
from dassl.utils import InputError
from dassl.utils.errors import LONGEST
from dassl.utils.images import fault_of, is_picture
from datasets import files
from prompting import PromptingError, load_clip
from tools.running import slurm_settings, status

DEEP = 10**5  # containers within each other


def test_a_cluster_file_nested_without_end(tmp_path):
    (tmp_path / "cluster.yaml").write_text("[" * DEEP)
    with pytest.raises(InputError, match="cluster.yaml is not a YAML file"):
        slurm_settings.read_cluster_file(str(tmp_path / "cluster.yaml"))


@pytest.mark.parametrize("text", ["9" * 5000, f"{'9' * 5000}:00", f"1-{'9' * 5000}:00", "٣"],
                         ids=["minutes", "hours", "days", "not 0 to 9"])
def test_times_that_are_no_numbers(text):
    assert slurm_settings.minutes(text) is None


def test_a_number_of_five_thousand_digits():
    assert slurm_settings.positive("9" * 5000) is None


@pytest.mark.parametrize("job", ["1\0", "../../x", "1 2", ""], ids=ascii)
def test_a_record_of_jobs_with_odd_names(job, tmp_path):
    os.makedirs(status.sweep_folder(tmp_path))
    with open(status.record_file(tmp_path), "w") as file:
        json.dump({"base2new/x": job}, file)
    with pytest.raises(InputError, match="is not a record of submitted jobs"):
        status.read_record(tmp_path)


def test_class_names_nested_without_end(tmp_path):
    (tmp_path / "names.txt").write_text('{"dog": ' + "[" * 900 + "]" * 900 + "}")
    with pytest.raises(InputError, match="not a text|not valid JSON"):
        read_names(str(tmp_path / "names.txt"))


def test_a_line_has_an_end():
    told = str(InputError(f"no file at {'x' * 10**6}; give another one"))
    assert len(told) <= LONGEST and told.startswith("no file at x") and told.endswith("give another one")


def test_weights_whose_names_are_numbers(tmp_path):
    torch.save({**tiny_clip.state_dict(), 7: torch.zeros(1)}, tmp_path / "clip.pt")
    with pytest.raises(PromptingError, match="does not hold a state dict of tensors"):
        load_clip(str(tmp_path / "clip.pt"))


@pytest.mark.parametrize("tokens", [0, 1000, 49409])
def test_weights_of_another_vocabulary(tokens, tmp_path):
    state = tiny_clip.state_dict()
    state["token_embedding.weight"] = torch.zeros(tokens, state["token_embedding.weight"].shape[1])
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(PromptingError, match="token vectors of shape"):
        load_clip(str(tmp_path / "clip.pt"))


def test_a_picture_whose_reader_is_not_written(tmp_path):
    (tmp_path / "a.dds").write_bytes(b"DDS " + struct.pack("<7I", 124, 0, 8, 8, 0, 0, 0) + bytes(200))
    assert not is_picture(tmp_path / "a.dds") and fault_of(tmp_path / "a.dds")


def die(path, key):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_matlab_file_on_which_its_reader_dies(tmp_path, monkeypatch):
    (tmp_path / "labels.mat").write_bytes(b"x" * 200)
    monkeypatch.setattr(files, "_mat_array", die)
    with pytest.raises(InputError, match="labels.mat is no MATLAB file with 'labels'"):
        files.read_mat(str(tmp_path / "labels.mat"), "labels", "fetch it again")


MAT = b"MATLAB 5.0".ljust(124) + b"\0\1IM" + b"\x0f\0\0\0\xff\xff\0\0x"


@pytest.mark.parametrize("content", [b"", b"x" * 200, MAT], ids=["empty", "another kind", "cut off"])
def test_a_damaged_matlab_file(content, tmp_path):
    (tmp_path / "labels.mat").write_bytes(content)
    with pytest.raises(InputError, match="labels.mat is no MATLAB file with 'labels'"):
        files.read_mat(str(tmp_path / "labels.mat"), "labels", "fetch it again")
