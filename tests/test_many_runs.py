"""Thousands of finished runs: what they share is read once, and nothing that was read hides a change."""
import copy
import csv
import gzip
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

import train
from benchmarks import many_runs, page
from dassl.config import copied, merge_file
from dassl.data.datasets import build_dataset, dataset_digest
from dassl.engine import run_folder
from dassl.engine.run_folder import Listings, Sources
from dassl.engine.run_record import COLUMNS, PREDICTIONS
from dassl.utils import InputError, read_json
from datasets.shapes import Shapes
from tools import protocol, report
from tools.results import run_folders, significance

DATASETS, SEEDS = ("shapes", "dtd"), 2


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, shapes_root):
    """The folder of a sweep of 240 finished runs; the pictures of one of two datasets are there."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "data").symlink_to(shapes_root)
    runs = many_runs.write_runs(folder, SEEDS, DATASETS)
    assert len(runs) == 240
    return folder


@pytest.fixture
def words(sweep):
    return many_runs.words(sweep, SEEDS, DATASETS)


@pytest.fixture
def work(monkeypatch):
    """Counter of what is done: YAML files parsed, datasets listed, JSON files and predictions read."""
    done = Counter()

    def count(owner, name, what):
        function = getattr(owner, name)

        def counting(*args, **kwargs):
            done[what] += 1
            return function(*args, **kwargs)
        monkeypatch.setattr(owner, name, counting)

    count(yaml, "load", "yaml")
    count(Shapes, "__init__", "lists")
    count(run_folder, "read_json", "json")
    count(significance, "read_predictions", "predictions")
    return done


@pytest.mark.parametrize("flag", ["--dry-run", "--status", "--table"])
def test_a_look_at_a_sweep_reads_what_its_runs_share_once(words, work, flag):
    told = protocol.main([*words, flag])
    assert flag == "--table" or "240 runs, 240 done" in told or "240 runs: 240 done" in told
    assert work["yaml"] <= 10  # two datasets, four methods, and not even these where they were read before
    assert work["lists"] == 1  # of ten seeds and shots
    assert work["json"] == 240


def test_a_report_reads_each_run_once(sweep, work):
    tables = report.main([str(sweep / "output")])
    assert any("does the difference hold" in table.title for table in tables)
    assert work["json"] == work["predictions"] == 240 and work["lists"] == 0


def test_a_table_keeps_of_a_run_what_it_shows(sweep):
    cells, _ = run_folders.find_runs([str(sweep / "output")])
    assert all("confusion" not in results and set(results["config"]) == {"DATASET", "MODEL"}
               for results in cells.values())


# ---- nothing hides a change ----
def test_a_run_that_changes_meanwhile_is_seen(words, sweep):
    path = sweep / "output" / "fewshot/shapes/shots_4/CoOp/tiny/seed2/results.json"
    whole = path.read_text()
    protocol.main([*words, "--dry-run"])
    try:
        path.write_text(whole.replace('"MAX_EPOCH": 20', '"MAX_EPOCH": 21'))
        with pytest.raises(InputError, match="1 of 240 runs would be refused"):
            protocol.main([*words, "--dry-run"])
    finally:
        path.write_text(whole)


def test_a_config_that_changes_meanwhile_is_seen(tmp_path):
    path = tmp_path / "mine.yaml"
    argv = ["--trainer", "CoOp", "--config-file", str(path), "--seed", "1"]
    for rate in (0.5, 0.7):  # of one length, within one tick of the disk's clock
        path.write_text(f"OPTIM: {{LR: {rate}}}")
        assert train.build_config(train.parse_arguments(argv)).OPTIM.LR == rate


def test_configs_share_nothing_that_can_be_changed(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("INPUT: {PIXEL_MEAN: [0.1, 0.2, 0.3]}")
    for _ in range(2):
        cfg = train.default_config()
        assert cfg.INPUT.PIXEL_MEAN[0] == 0.485 and cfg.OPTIM.LR == 0.0003 and not cfg.is_frozen()
        merge_file(cfg, str(path))
        assert cfg.INPUT.PIXEL_MEAN == [0.1, 0.2, 0.3]
        cfg.INPUT.PIXEL_MEAN[0] = cfg.OPTIM.LR = 9.0
        cfg.freeze()
    assert train.default_config() == train.default_config().clone()


def test_a_copied_config_is_a_clone():
    cfg = train.default_config()
    cfg.TRAINER.COOP.MORE = [1, [2]]
    cfg.OPTIM.freeze()
    for other in (copied(cfg), copy.deepcopy(cfg)):
        assert other == cfg and other.OPTIM.is_frozen() and not other.INPUT.is_frozen()
        other.TRAINER.COOP.MORE[1].append(3)
        assert cfg.TRAINER.COOP.MORE == [1, [2]]


# ---- the short ways lead to the same ----
def config(root, seed, shots, *more):
    return train.build_config(train.parse_arguments([
        "--root", str(root), "--seed", str(seed), "--trainer", "CoOp", "--dataset-config-file",
        str(many_runs.ROOT / "configs" / "datasets" / "shapes.yaml"), "DATASET.NUM_SHOTS", str(shots), *more]))


@pytest.mark.parametrize("more", [(), ("DATASET.SUBSAMPLE_CLASSES", "new"),
                                  ("DATASET.SOURCE_DOMAINS", "photo,sketch", "DATASET.TARGET_DOMAINS", "cartoon")])
def test_other_draws_from_kept_lists_are_those_of_a_new_dataset(shapes_root, more):
    seen = Listings()
    for seed in (1, 2):
        for shots in (-1, 2, 4):
            cfg = config(shapes_root, seed, shots, *more)
            digests, _ = Sources(cfg, None, seen).data()
            assert digests == dataset_digest(build_dataset(cfg), cfg.DATASET.ROOT)
    assert len(seen) == 6


def test_lists_are_kept_only_where_they_are_drawn_from_again(shapes_root):
    assert not hasattr(build_dataset(config(shapes_root, 1, 2)), "lists")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10))
def test_json_reads_as_pythons_own(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(value))
    assert repr(read_json(path)) == repr(json.loads(json.dumps(value)))


@pytest.mark.parametrize("rows", [
    [["a.png", 1, 1, 0.5], ["b.png", 1, 2, 0.5]], [["a,b.png", 1, 1, 0.5]], [['a".png', 1, 2, 0.5]],
    [["a\nb.png", 1, 1, 0.5]], [["\udcff.png", 1, 1, 0.5]], [["é.png", 3, 3, 0.5]] * 3])
def test_predictions_are_read_as_csv_reads_them(tmp_path, rows):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    Path(tmp_path, PREDICTIONS).write_bytes(gzip.compress(text.getvalue().encode("utf-8", "surrogateescape")))
    paths, right = significance.read_predictions(tmp_path)
    assert list(paths) == [row[0] for row in rows] and right.tolist() == [row[1] == row[2] for row in rows]


@settings(max_examples=15, deadline=None)  # statsmodels takes long for each
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holms_method_is_that_of_statsmodels(p_values):
    assert np.array_equal(significance.holm(p_values), multipletests(p_values, method="holm")[1])


# ---- the page ----
def test_the_section_survives_the_others(tmp_path):
    (tmp_path / "SPEED.md").write_text(f"old\n\n{page.GPU}\n\nof the card\n")
    page.write_section(tmp_path, page.MANY_RUNS, "the one before\n")
    page.write_section(tmp_path, page.MANY_RUNS, "second\n")
    page.write({}, tmp_path)
    text = (tmp_path / "SPEED.md").read_text()
    assert text.endswith(f"\n{page.MANY_RUNS}\n\nsecond\n\n{page.GPU}\n\nof the card\n")
    assert "the one before" not in text and "old" not in text
