"""The GPU's benchmark, in its small form on the CPU: its rows compare what they should, and a failure stays a row."""
import json
import sys

import pytest
import torch

from benchmarks import gpu, gpu_equality
from dassl.utils import InputError
from prompting.precision import Precision


@pytest.fixture(autouse=True)
def settings_as_before():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow  # that of the records is made below, in a process of its own
@pytest.mark.parametrize("part", gpu.PARTS)
def test_every_part_runs_without_a_gpu(part, tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if part == "equality":
        monkeypatch.setattr(gpu_equality, "FEW", ("CoOp", "TipAdapter", "MetaPrompt, second order"))
    found = gpu.measure_part(part, "cpu", 120, str(tmp_path / "part.json"))
    assert found["rows"] and all(row["ok"] is not False for row in found["rows"])
    assert json.loads((tmp_path / "part.json").read_text())["part"] == part
    assert all(len(row["cells"]) <= len(found["headers"]) - 2 for row in found["rows"])


def test_parts_are_processes_whose_rows_make_one_block(tmp_path, capfd):
    words = ["--device", "cpu", "--part", "parity", "--json", str(tmp_path / "a.json"), "--markdown"]
    found = gpu.main([*words, str(tmp_path / "a.md")])
    block = (tmp_path / "a.md").read_text()
    assert json.loads((tmp_path / "a.json").read_text())["parts"][0]["rows"] == found["parts"][0]["rows"]
    assert f"torch {torch.__version__}" in block and "2 of 2 checked rows pass" in block
    assert "[parity " in capfd.readouterr().out


def test_a_row_that_fails_and_one_that_comes_too_late_are_rows(tmp_path, monkeypatch, capsys):
    def broken():
        raise ValueError("no such kernel\nmore")

    def rows(device):
        yield "broken", broken
        yield "good", lambda: {"ok": True, "cells": ["1"]}

    monkeypatch.setattr(gpu_equality, "parity_rows", rows)
    found = gpu.measure_part("parity", "cpu", 60, str(tmp_path / "a.json"))
    assert [row["ok"] for row in found["rows"]] == [False, True]
    assert found["rows"][0]["cells"] == ["ValueError: no such kernel"] and "Traceback" in found["rows"][0]["traceback"]
    assert "**no**" in gpu.markdown(gpu.card("cpu"), [found])
    late = gpu.measure_part("parity", "cpu", -1, str(tmp_path / "b.json"))
    assert all(row["ok"] is None and "time is up" in row["cells"][0] for row in late["rows"])


@pytest.mark.parametrize("executable", ["false", pytest.param(sys.executable, marks=pytest.mark.slow)],
                         ids=["false", "python"])
def test_a_part_whose_process_dies_is_a_row(executable, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.sys, "executable", executable)
    args = type("Args", (), {"device": "no such device", "seconds": 1.0})
    found = gpu.part_in_process("parity", args, str(tmp_path))
    assert found["rows"][-1]["ok"] is False and "ended with status" in found["rows"][-1]["cells"][0]


def test_the_comparison_notices_other_numbers(tmp_path, monkeypatch):
    gpu_equality.helpers()
    init = Precision.__init__

    def coarse(self, name, device, ranks=None, keeps_casts=True):
        init(self, "amp" if calls else name, device, ranks, keeps_casts)
        calls.append(name)

    calls = []
    monkeypatch.setattr(Precision, "__init__", coarse)
    row = gpu_equality.compared_run("CoOp", "cpu", tmp_path)
    assert not row["ok"] and row["losses"] > gpu_equality.FLOAT32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do():
    with pytest.raises(InputError, match="--device cpu"):
        gpu.main([])
