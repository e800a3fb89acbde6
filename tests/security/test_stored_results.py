"""Run folders that were edited: results, predictions, configs. What reads them names the file and the field in one
line; what cannot be read at all is said."""
import csv
import gzip
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from dassl.engine.run_folder import read_results, require_results, stored_config
from dassl.engine.run_record import COLUMNS
from dassl.utils import InputError
from tools import plot, report
from tools.results import loaded_run
from tools.results.significance import read_predictions
from written_runs import base2new, share, write_run

BOMB = "c0: &c0 [1, 2]\n" + "".join(f"c{i}: &c{i} [*c{i - 1}, *c{i - 1}]\n" for i in range(1, 60))  # 2^60 numbers


@pytest.fixture
def run(tmp_path):
    """A finished run of base-to-new below tmp_path, of which `edit(change)` edits the results."""
    folder = write_run(tmp_path, base2new("A"), share(50))

    def edit(change):
        path = folder / "results.json"
        results = json.loads(path.read_text())
        change(results)
        path.write_text(json.dumps(results))
        return folder

    return edit


def at(*keys, value):
    def change(results):
        for key in keys[:-1]:
            results = results.setdefault(key, {})
        results[keys[-1]] = value

    return change


def each(*keys: str, values: Sequence[Any]) -> list[Callable]:
    return [at(*keys, value=value) for value in values]


FIELDS: dict[str, list[Callable]] = {
    "accuracy": each("metrics", "test", "accuracy", values=("80", math.nan, True, -1, [80], 10**400)),
    "metrics": each("metrics", values=(None, [], 5, "x")),
    "metrics.test": each("metrics", "test", values=(None, [1], "x")),
    "metrics.test.macro_f1": each("metrics", "test", "macro_f1", values=("80", math.inf, True)),
    "seconds": each("seconds", values=("1", None, math.nan, -1, True, [])),
    "classes": each("classes", values=([], "x", 3)),
    "classes.name": [at("classes", value={"name": value}) for value in ("x", [1], None)],
    "classes.accuracy": [at("classes", value={"name": ["a", "b"], "accuracy": value})
        for value in ([1.0], [1.0, "x"], [1.0, 200], "ab")],
    "confusion": each("confusion", values=("x", [1], [[1, 2], [3]], [[1.5]], [[-1]], [[1, 2]])),
    "dataset_digest": each("dataset_digest", values=([], "x", {"test": 3}, {"test": ["a"]})),
    "overlap": each("overlap", values=([], "x", {"test": "many"}, {"test": -1}, {"of": 1.5})),
    "changed": each("changed", values=([], "x", {"a": 1}, {"a": [1]}, {"a": [1, 2, 3]})),
    "budget": each("budget", values=([], "x", {"updates": "many"}, {"updates": -1},
        {"images": 1.5}, {"images": True})),
    "backbone": each("backbone", values=([], "x", {"name": 3}, {"digest": [1]})),
    "config.MODEL": each("config", "MODEL", values=(None, {"BACKBONE": {"NAME": 3}},
        {"BACKBONE": {}}, {})),
    "config.DATASET": each("config", "DATASET", values=([], {"NUM_SHOTS": "16"})),
    "config": each("config", values=(None, [], "x")),
    "evaluation": each("evaluation", values=([], {"eval_only": "yes"}, {"load_epoch": "x"})),
    "seed": each("seed", values=("1", 1.5, True)),
}
EDITED = [pytest.param(field, change, id=f"{field} {number}") for field, changes in FIELDS.items()
          for number, change in enumerate(changes)]


@pytest.mark.parametrize(("field", "change"), EDITED)
def test_a_report_names_file_and_field(field, change, run, tmp_path, one_line):
    line = one_line(lambda: report.main([str(run(change).parents[1])]), results=True)
    assert "results.json" in line and len(line) < 600
    assert field.split(".")[-1] in line or field in ("metrics", "config")  # "is not a run's results"


@pytest.mark.parametrize(("field", "change"), [pytest.param(field, changes[0], id=field)
                                               for field, changes in FIELDS.items()])
def test_figures_and_predictions_name_the_file(field, change, run, one_line):
    folder = run(change)
    for read in (lambda: plot.main([str(folder)]), lambda: loaded_run.trained_classes(str(folder))):
        assert "results.json" in one_line(read, results=True)


@pytest.mark.parametrize("content", ["", "[", "null", "[1]", "3", '"text"', "[" * 10**5, "9" * 5000, "\x00",
                                     '{"config": {}, "metrics": {}}'], ids=lambda text: text[:12])
def test_other_files_in_the_place_of_results(content, run, one_line):
    folder = run(lambda results: None)
    (folder / "results.json").write_text(content)
    assert "results.json" in one_line(lambda: report.main([str(folder)]), results=True)


def test_results_of_former_versions_are_read(run):
    results = read_results(str(run(lambda results: [results.pop(key) for key in ("seconds", "dataset_digest")])))
    assert results["metrics"]["test"]["accuracy"] == 50


def test_checking_is_quick(run):
    """3,000 of them are read for one report."""
    results = read_results(str(run(at("classes", value={"name": ["a"] * 100, "accuracy": [1.0] * 100}))))
    before = time.process_time()
    for _ in range(100):
        require_results(results, "results.json")
    assert time.process_time() - before < 0.1 * 3


# ---- what is left out is said ----
def test_a_folder_without_permission_is_named(run, tmp_path, monkeypatch, capsys):
    run(lambda results: None)
    closed, scandir = write_run(tmp_path, base2new("B"), share(40)), os.scandir

    def refuse(path):
        if os.fspath(path) == str(closed):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report.main([str(tmp_path)])
    assert f"1 folder left out, they cannot be read, first {closed} (Permission denied)" in capsys.readouterr().err


def test_runs_that_are_not_finished_are_counted(run, tmp_path, capsys):
    run(lambda results: None)
    for name in "BC":
        folder = write_run(tmp_path, base2new(name), share(40))
        (folder / "results.json").rename(folder / "config.yaml")
    report.main([str(tmp_path)])
    told = capsys.readouterr().err
    assert "2 folders not finished, without a results.json, first " in told and "/B/" in told


# ---- predictions ----
def packed(rows, columns=COLUMNS):
    return gzip.compress("\n".join(",".join(map(str, row)) for row in [columns, *rows]).encode())


GOOD = [("a.png", 1, 1, 0.5), ("b.png", 0, 1, 0.5)]
PREDICTIONS = {
    "a field beyond the limit": packed([("a" * 10**6, 1, 1, 0.5)]),
    "other columns": packed(GOOD, ("path", "label")),
    "a column more": packed([(*GOOD[0], 5)]),
    "a column less": packed([GOOD[0][:3]]),
    "an empty row": packed([GOOD[0], ()]) + gzip.compress(b"\n\n"),
    "a label that is a text": packed([("a.png", "cat", "cat", 0.5)]),
    "a label below 0": packed([("a.png", -1, -1, 0.5)]),
    "a label of 100 digits": packed([("a.png", "9" * 100, "9" * 100, 0.5)]),
    "a prediction that is a fraction": packed([("a.png", 1, 1.5, 0.5)]),
    "a confidence of NaN": packed([("a.png", 1, 1, "nan")]),
    "a confidence of 7": packed([("a.png", 1, 1, 7)]),
    "a confidence that is a text": packed([("a.png", 1, 1, "sure")]),
    "no rows": packed([]),
    "nothing": b"",
    "not packed": b"path,label,prediction,confidence\n",
    "cut": packed(GOOD)[:-9],
    "other check sums": packed(GOOD)[:-8] + bytes(8),
    "noise behind a head": packed(GOOD)[:12] + bytes(range(256)),
    "256 MiB of zeros": gzip.compress(bytes(2**28)),
}


@pytest.mark.parametrize("content", [pytest.param(content, id=name) for name, content in PREDICTIONS.items()])
def test_predictions_that_no_run_has_written(content, run, one_line):
    folder = run(lambda results: None)
    (folder / "predictions.csv.gz").write_bytes(content)
    line = one_line(lambda: read_predictions(str(folder)), results=True)
    assert "predictions.csv.gz is damaged (" in line and len(line) < 600


def test_a_report_says_which_predictions_are_damaged(run, tmp_path, capsys):
    run(lambda results: None)
    other = write_run(tmp_path, base2new("B"), share(40))
    (other / "predictions.csv.gz").write_bytes(PREDICTIONS["a field beyond the limit"])
    report.main([str(tmp_path)])
    assert f"{other}/predictions.csv.gz is damaged" in capsys.readouterr().out


def test_predictions_as_they_are_written(run):
    paths, right = read_predictions(str(run(lambda results: None)))
    assert len(paths) == 100 and np.count_nonzero(right) == 50


def test_a_path_with_every_sign_is_read(run):
    folder, name = run(lambda results: None), 'a,"b"\nc.png'
    with gzip.open(folder / "predictions.csv.gz", "wt", newline="") as file:
        csv.writer(file).writerows([COLUMNS, (name, 1, 1, "1.000000")])
    assert read_predictions(str(folder))[0] == (name,)


# ---- configs ----
@pytest.mark.parametrize("content", [BOMB, "[1, 2]", "3", "\x00", "a: [", "1: 2", "a: 2020-01-01", "? [1]\n: 2",
                                     "a: " + "[" * 3000, "a: !!python/object:os.system {}"], ids=lambda text: text[:16])
def test_a_config_that_was_not_written_here_counts_as_none(content, tmp_path):
    (tmp_path / "config.yaml").write_text(content)
    assert stored_config(str(tmp_path)) == {}


# ---- what is known of a run's classes ----
def test_a_checkpoint_that_does_not_say_its_classes(tmp_path):
    import torch

    (tmp_path / "prompt_learner").mkdir()
    torch.save({"state_dict": {}}, tmp_path / "prompt_learner" / "model.pth.tar-1")
    (tmp_path / "prompt_learner" / "checkpoint").write_text("model.pth.tar-1\n")
    with pytest.raises(InputError, match="model.pth.tar-1 does not say its classes"):
        loaded_run.trained_classes(str(tmp_path))
