"""Which device a run takes, and what it says where a GPU was meant and none is seen. torch and the machine are stood in
for."""
from types import SimpleNamespace

import pytest
import torch

import tiny_clip
import train
from dassl.engine import device as module
from dassl.engine.device import device_of_run
from dassl.utils import InputError
from dassl.utils import distributed as ranks
from harness import make_trainer

SEES_NONE = "but torch sees none, and the run is on the CPU; "
LOOK = "shows a driver that is new enough for CUDA 99.9, or say USE_CUDA False, if the CPU is meant\n"


@pytest.fixture
def machine(monkeypatch):
    """A function that sets what torch sees and what the machine has."""
    def set_to(gpus=0, visible=None, files=(), built=True, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.version, "cuda", "99.9")
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(module.glob, "glob", lambda pattern: list(files) if pattern == "/dev/nvidia[0-9]*" else [])
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return set_to


@pytest.mark.parametrize(("has", "said"), [
    ({}, ""),
    ({"visible": "", "files": ["/dev/nvidia0"]}, ""),  # the CPU is meant
    ({"visible": " ", "files": ["/dev/nvidia0"]}, ""),
    ({"visible": "-1", "files": ["/dev/nvidia0"]}, ""),
    ({"visible": "NoDevFiles"}, ""),
    ({"visible": "2,3"},
     f"Warning: CUDA_VISIBLE_DEVICES=2,3 asks for a GPU, {SEES_NONE}look whether nvidia-smi has GPUs of these numbers "
     f"and {LOOK}"),
    ({"files": ["/dev/nvidia1", "/dev/nvidia0"]},
     f"Warning: there is a GPU (/dev/nvidia0), {SEES_NONE}look whether nvidia-smi {LOOK}"),
    ({"visible": "0", "files": ["/dev/nvidia0"], "built": False},
     f"Warning: CUDA_VISIBLE_DEVICES=0 asks for a GPU, {SEES_NONE}this torch ({torch.__version__}) is built without "
     "CUDA: install one that has it (pytorch.org), or say USE_CUDA False, if the CPU is meant\n"),
    ({"mps": True, "built": False}, "Note: the run is on the CPU; Apple's GPU (MPS) is not supported\n"),
])
def test_no_gpu(has, said, machine, capsys):
    machine(**has)
    assert device_of_run(True) == torch.device("cpu")
    assert capsys.readouterr().out == said
    assert device_of_run(False) == torch.device("cpu")
    assert capsys.readouterr().out == ""


def test_a_gpu_is_the_first_that_is_seen(machine, capsys):
    machine(gpus=2, visible="5,7", files=["/dev/nvidia5"])
    assert device_of_run(True) == torch.device("cuda") and device_of_run(False) == torch.device("cpu")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("visible", "of"), [(None, ""), ("5,7", " of CUDA_VISIBLE_DEVICES=5,7")])
def test_more_processes_than_gpus(visible, of, machine, monkeypatch, capsys):
    machine(gpus=2, visible=visible)
    monkeypatch.setattr(ranks, "world_size", lambda: 3)
    place = SimpleNamespace(rank=1)
    monkeypatch.setattr(ranks, "local_rank", lambda: place.rank)
    assert device_of_run(True) == torch.device("cuda")
    place.rank = 2
    with pytest.raises(InputError) as error:
        device_of_run(True)
    assert str(error.value) == ("torchrun has started more processes on this machine than torch sees GPUs "
                                f"(2{of}); lower --nproc-per-node, or add USE_CUDA False")
    assert device_of_run(False) == torch.device("cpu")


def test_a_trainer_says_it_once(machine, clip_model, capsys):
    machine(visible="3")
    for device, lines in (("cuda", 1), ("cpu", 0)):
        trainer = make_trainer("CoOp", clip_model, tiny_clip.CLASSNAMES, {"N_CTX": 2}, device=device)
        assert trainer.device.type == "cpu"
        told = capsys.readouterr().out
        assert told.count("CUDA_VISIBLE_DEVICES=3 asks for a GPU") == lines
        type(trainer)(trainer.cfg, clip_model=clip_model, classnames=["cat", "dog"])  # to predict
        assert capsys.readouterr().out.count("CUDA_VISIBLE_DEVICES=3 asks for a GPU") == lines


def test_the_line_is_in_the_log_of_the_run(machine, arguments, clips, tmp_path):
    machine(visible="3")
    train.main(arguments("ZeroshotCLIP", tmp_path / "out"), clips=clips)
    assert (tmp_path / "out" / "log.txt").read_text().count("Warning: CUDA_VISIBLE_DEVICES=3 asks for a GPU") == 1
