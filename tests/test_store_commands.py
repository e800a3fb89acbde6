"""The feature store of commands: where it lies, who shares it, in which order runs are made, and who passes it over."""
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import train
from dassl.engine.progress import FEATURES
from dassl.utils import InputError
from runs.listener import Noticing
from tools import protocol, report
from tools.results.run_folders import collect, places_below
from tools.running import estimates, execution
from tools.running.cluster import chains
from tools.running.console import Running
from tools.running.live import part_done, state
from tools.running.making_order import in_making_order
from tools.running.plans import Planner
from trainers.coop import CoOp
from training.store.files import MARK
from training.store.folder import store_folder

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def words(drawn_root, tiny_config, clip_file, tmp_path):
    def words(name, *more, dataset="caltech101", shots=("--shots", "1"), options=(), output="out"):
        return [name, *more, "--dataset", dataset, "--cfg", tiny_config, "--root", str(drawn_root), "--output",
                str(tmp_path / output), *shots, "--backbone", clip_file, "OPTIM.MAX_EPOCH", "1", *options]

    return words


@pytest.fixture
def planner(drawn_root, tiny_config, clip_file, tmp_path):
    def planner(seeds=(1, 2), variants=(), options=()):
        return Planner(str(drawn_root), str(tmp_path / "out"), seeds, tiny_config, clip_file, (), options, variants)

    return planner


# ---- where it lies ----
def test_the_store_of_one_run_lies_in_its_folder_unless_a_word_says_otherwise(arguments, tmp_path):
    def folder(*more, config=None):
        argv = arguments("CoOp", tmp_path / "run", *more, **({"config": config} if config else {}))
        return store_folder(train.build_config(train.parse_arguments(argv)))

    assert folder() == str(tmp_path / "run" / "features")
    assert folder("STORE.DIR", "~/kept") == os.path.expanduser("~/kept")
    assert folder("STORE.USE", "False") is None and folder("STORE.DIR", "x", "STORE.USE", "False") is None
    # what a protocol says stands behind what a user says, in a config file as well
    assert folder("--store-dir", "shared") == "shared"
    assert folder("--store-dir", "shared", "STORE.DIR", "mine") == "mine"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"BASE": arguments("CoOp", "")[-3], "STORE": {"DIR": "own"}}))
    assert folder("--store-dir", "shared", config=tmp_path / "mine.yaml") == "own"


def test_a_folder_of_the_store_that_cannot_be_printed_is_refused(arguments, tmp_path, one_line):
    argv = arguments("CoOp", tmp_path / "run", "STORE.DIR", "a\x1b[31mb")
    assert "STORE.DIR 'a\\x1b[31mb' has control characters" in one_line(lambda: train.main(argv))


@pytest.mark.parametrize(("name", "own"), [
    ("base2new", {}), ("xd", {"targets": ["pacs"]}), ("dg", {}), ("zeroshot", {})])
def test_all_runs_of_a_protocol_share_one_store_evaluations_too(planner, tmp_path, name, own):
    method = "ZeroshotCLIP" if name == "zeroshot" else "CoOp"
    runs = planner().plan(name, [method], ["pacs" if name == "dg" else "caltech101"], [1], **own)
    assert {store_folder(run.check()) for run in runs} == {str(tmp_path / "out" / "features")}
    assert name not in ("base2new", "xd") or any(run.spec.eval_only for run in runs)
    for run in runs:  # as a worker of --jobs, or a scheduler, gets it
        assert train.parse_arguments(run.spec.argv()) == run.spec


def test_options_win_and_a_field_of_a_protocol_is_not_the_protocols_to_choose(planner, tmp_path):
    runs = planner(options=["STORE.DIR", "elsewhere"]).plan("fewshot", ["CoOp"], ["caltech101"], [1])
    assert {store_folder(run.check()) for run in runs} == {"elsewhere"}
    runs = planner(options=["STORE.USE", "False"]).plan("fewshot", ["CoOp"], ["caltech101"], [1])
    assert {store_folder(run.check()) for run in runs} == {None}


# ---- what a run says of it ----
def test_a_copied_output_folder_goes_on_with_the_store_beside_it(words, tmp_path, capsys):
    argv = words("base2new", "--trainer", "CoOp", "--seeds", "1")
    table = protocol.main(argv)
    [base] = (tmp_path / "out" / "base2new" / "train_base").rglob("config.yaml")
    assert yaml.safe_load(base.read_text())["STORE"]["DIR"] == ""
    shutil.move(tmp_path / "out", tmp_path / "copy")
    capsys.readouterr()
    for more in ((), ("STORE.USE", "False"), ("STORE.DIR", str(tmp_path / "other"), "STORE.MB", "1")):
        assert protocol.main(words("base2new", "--trainer", "CoOp", "--seeds", "1", output="copy",
                                   options=more)) == table
        assert "runs 1 to 2 of 2  done before" in capsys.readouterr().out
    assert not (tmp_path / "out").exists() and not (tmp_path / "other").exists()


def test_a_folder_that_was_asked_for_stands_in_the_config(arguments, clips, tmp_path):
    train.main(arguments("ZeroshotCLIP", tmp_path / "run", "STORE.DIR", tmp_path / "mine"), clips=clips)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["STORE"]["DIR"] == str(tmp_path / "mine")


def test_runs_with_and_without_a_store_stand_in_one_table(words, tmp_path):
    protocol.main(words("base2new", "--trainer", "CoOp", "--seeds", "1", options=("STORE.USE", "False")))
    protocol.main(words("base2new", "--trainer", "CoOp", "--seeds", "1", "2", options=("STORE.MB", "7")))
    with_store = [results["config"] for results in map(json.loads, map(Path.read_text, sorted(
        (tmp_path / "out").rglob("seed2/results.json"))))]
    assert len(with_store) == 2 and all(config["STORE"]["MB"] == 7 for config in with_store)
    tables = report.main([str(tmp_path / "out")])
    assert "base to new" in tables[0].title and len(collect([str(tmp_path / "out")]).cells) == 4


def test_a_variant_of_the_store_alone_changes_nothing(words):
    with pytest.raises(InputError, match="--variant off changes nothing for CoOp, MetaPrompt"):
        protocol.main(words("compare", "--trainer", "CoOp", "MetaPrompt", "--seeds", "1", "--variant", "off",
                            "STORE.USE", "False"))


@pytest.mark.parametrize(("asks", "options", "silent"), [
    (True, ("STORE.MB", "7"), None), (True, ("STORE.USE", "False"), None),
    (True, ("STORE.USE", "False", "STORE.MB", "7"), ["STORE.MB"]), (False, ("STORE.USE", "False"), ["STORE.USE"]),
    (False, ("STORE.DIR", "x"), ["STORE.DIR"]), (False, ("--store-dir", "x"), None)])
def test_what_a_store_does_not_do_is_told(arguments, clips, tmp_path, monkeypatch, asks, options, silent):
    """asks: whether the method takes frozen image features."""
    monkeypatch.setattr(CoOp, "frozen_images", asks)
    words = arguments("CoOp", tmp_path / "run", "OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "1", *options)
    results = train.main(words, clips=clips)
    assert results.get("without_effect") == silent


# ---- the order ----
def plan_of_two(planner, **more):
    return planner(**more).plan("base2new", ["CoOp", "MetaPrompt"], ["pacs", "caltech101"], [1])


def test_what_shares_features_is_made_together(planner):
    runs = plan_of_two(planner, variants=[["csc", "OPTIM.LR", "0.1"]])
    made = in_making_order(runs)
    assert sorted(map(id, made)) == sorted(map(id, runs)) and made != runs
    shared = [(run.place.dataset, run.place.seed) for run in made]
    assert list(dict.fromkeys(shared)) == [(name, seed) for name in ("pacs", "caltech101") for seed in (1, 2)]
    assert shared == sorted(shared, key=list(dict.fromkeys(shared)).index)  # each group in one piece
    first = [(run.place.trainer, run.place.config, run.place.part) for run in made[:8]]
    assert first == [(method, config, part) for method in ("CoOp", "MetaPrompt") for config in ("tiny", "tiny+csc")
                     for part in ("train_base", "test_new")]
    assert in_making_order(made) == made


def test_a_run_comes_after_those_that_it_takes_something_from(planner):
    runs = planner().plan("fewshot", ["ZeroshotCLIP"], ["caltech101"], [1, 2])
    assert [bool(run.same) for run in in_making_order(runs)] == [False, True, True, True]
    runs = plan_of_two(planner)
    turned = list(reversed(runs))  # as of a protocol that lists them so, or has one seed's run evaluate another's
    turned[0] = replace(turned[0], needs=turned[-2].folder)
    made = in_making_order(turned)
    assert {run.folder for run in made} == {run.folder for run in runs}
    places = {run.folder: number for number, run in enumerate(made)}
    assert all(places[run.needs] < places[run.folder] for run in made if run.needs)


def test_a_circle_of_runs_is_no_endless_loop(planner):
    first, second = planner(seeds=(1,)).plan("base2new", ["CoOp"], ["caltech101"], [1])
    first = replace(first, needs=second.folder)
    assert {run.folder for run in in_making_order([first, second])} == {first.folder, second.folder}


def test_tables_and_lists_do_not_depend_on_the_order(words, monkeypatch, capsys):
    argv = words("compare", "--trainer", "MetaPrompt", "CoOp", "--seeds", "2", "1")
    begun = []
    listed = protocol.main([*argv, "--dry-run"]).splitlines()[:8]
    make = execution._make

    def noted(run, *rest):
        begun.append((run.place.seed, run.place.trainer))
        make(run, *rest)

    monkeypatch.setattr(execution, "_make", noted)
    table = protocol.main(argv)
    assert begun == [(seed, method) for seed in (2, 1) for method in ("MetaPrompt", "CoOp") for _ in range(2)]
    assert [line.split()[0] for line in table.splitlines()[2:]] == ["MetaPrompt", "CoOp"]
    assert [line.split(os.sep)[-3] for line in listed] == ["MetaPrompt"] * 4 + ["CoOp"] * 4
    assert protocol.main([*argv, "--table"]) == table
    assert [line.split(os.sep)[-3] for line in protocol.main([*argv, "--status"]).splitlines()[:8]
            ] == ["MetaPrompt"] * 4 + ["CoOp"] * 4
    protocol.main([*argv, "--dry-run"])
    assert capsys.readouterr().out.count("8 runs, 8 done") == 1


def test_tasks_of_a_cluster_are_in_that_order(planner):
    tasks = chains(in_making_order(plan_of_two(planner)))
    assert [(task[0].place.dataset, task[0].place.seed, task[0].place.trainer) for task in tasks] == [
        (name, seed, method) for name in ("pacs", "caltech101") for seed in (1, 2) for method in ("CoOp", "MetaPrompt")]
    assert all([run.place.part for run in task] == ["train_base", "test_new"] for task in tasks)


# ---- the disk ----
def test_the_features_are_told_and_need_no_room(words, monkeypatch, tmp_path):
    monkeypatch.setattr(CoOp, "frozen_images", True)
    argv = words("fewshot", "--trainer", "CoOp", "--seeds", "1", "--dry-run", options=("STORE.MB", "7000"))
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    told = protocol.main(argv)
    assert f" to write and up to 7 GB of features in {tmp_path / 'out' / 'features'}, 1 MB free" in told
    assert "1 run, 0 done" in told
    told = protocol.main([*argv, "STORE.USE", "False"])
    assert " kB to write, 1 MB free" in told
    monkeypatch.setattr(CoOp, "frozen_images", False)
    assert " kB to write, 1 MB free" in protocol.main(argv)


# ---- who passes it over ----
def test_the_folder_of_a_store_is_passed_over(words, tmp_path, monkeypatch):
    protocol.main(words("base2new", "--trainer", "CoOp", "--seeds", "1"))
    out, [run] = tmp_path / "out", (tmp_path / "out" / "base2new" / "train_base").rglob("seed1")
    before = collect([str(out)])
    space = "0123456789abcdef"
    for store in (out / "features", run / "features", out, out / "mine"):
        inner = store / space / "ab"
        shutil.copytree(run, inner, ignore=shutil.ignore_patterns("features", space))
        (store / MARK).touch()
    assert sorted(map(str, places_below(str(out)))) == sorted(map(str, before.where))
    after = collect([str(out)])
    assert after.where == before.where and after.single == before.single == []
    (out / "mine" / MARK).unlink()  # then it is no store, and the run there is found
    assert [(path, run.reason) for path, run, _ in collect([str(out)]).single] == [
        (str(out / "mine" / space / "ab"), f"the same run as {run}")]


def test_a_dataset_may_be_called_like_the_store(words, tmp_path):
    """Only folders of features are passed over, not whatever is named so."""
    shutil.copy(ROOT / "configs" / "datasets" / "caltech101.yaml", tmp_path / "features.yaml")
    argv = words("fewshot", "--trainer", "CoOp", "--seeds", "1", dataset=str(tmp_path / "features.yaml"))
    protocol.main(argv)
    assert [place.dataset for place in collect([str(tmp_path / "out")]).cells] == ["features"]


# ---- what is computed ----
def counted(output):
    """{(method, seed, part): what results.json says of features} of the runs below an output folder."""
    found = {}
    for path in sorted(output.rglob("results.json")):
        results = json.loads(path.read_text())
        found[results["trainer"], results["seed"], results["run"]["part"]] = results.get("features")
    return found


def kept(output):
    """{file of features: its size} of an output folder."""
    return {path.name: path.stat().st_size for path in (output / "features").rglob("*.safetensors")}


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_what_one_method_computes_the_other_takes(words, tmp_path, jobs, capsys):
    """Base classes: 3 training views an epoch of 3 classes and 9 test pictures; new ones: 9 test pictures."""
    argv = words("compare", "--trainer", "CoOp", "KgCoOp", "--seeds", "1", "2", "--jobs", jobs)
    protocol.main(argv)
    found, written = counted(tmp_path / "out"), kept(tmp_path / "out")
    assert len(found) == 8 and not list((tmp_path / "out" / "base2new").rglob("features"))
    for (_, _, part), features in found.items():
        assert features["stored"] + features["computed"] == (12 if part == "base" else 9)
    total = sum(features["computed"] for features in found.values())
    assert total == 2 * 3 + 9 + 9  # each view and each picture once, whichever run was the first
    if jobs == "1":  # else the workers start a second time
        assert {key[:2] for key, features in found.items() if features["computed"]} == {("CoOp", 1), ("CoOp", 2)}
        metrics = {path: json.loads(path.read_text())["metrics"] for path in (tmp_path / "out").rglob("results.json")}
        shutil.move(tmp_path / "out" / "base2new", tmp_path / "before")
        protocol.main(argv)
        assert metrics == {path: json.loads(path.read_text())["metrics"] for path in metrics}
        assert all(features["computed"] == 0 for features in counted(tmp_path / "out" / "base2new").values())
        assert kept(tmp_path / "out") == written


def test_a_run_tells_how_far_its_features_are(arguments, clips, tmp_path, monkeypatch):
    monkeypatch.setattr("dassl.engine.progress.SECONDS_BETWEEN", -1.0)
    points = []
    words = arguments("CoOp", tmp_path / "run", "DATASET.NUM_SHOTS", "16", "OPTIM.MAX_EPOCH", "2")
    results = train.main(words, clips=clips, listener=Noticing(points.append, None))
    filling = [point for point in points if point.part == FEATURES]
    assert [point.done for point in filling if not point.done] == [0, 0, 0]  # two epochs, then the test pictures
    assert sum(point.batches for point in filling if point.done == point.batches) == results["features"]["computed"]
    assert [point.epoch for point in filling if not point.done] == [1, 2, 2]
    assert filling[0].seconds_left is None and filling[-1].seconds_left > 0
    shown = Running(None, point=filling[0]._replace(done=1, batches=3))
    assert state(shown) == "computes features  33 %" and part_done(shown) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    told = f"{results['features']['computed']} computed ({tmp_path / 'run' / 'features'})"
    assert f"Features: 0 pictures from the store, {told}" in log


def test_a_run_that_needs_no_features_counts_none(words, arguments, clips, tmp_path, monkeypatch):
    more = ("DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1")
    assert "features" not in train.main(arguments("CoOp", tmp_path / "off", *more, "STORE.USE", "False"), clips=clips)
    assert not (tmp_path / "off" / "features").exists()
    monkeypatch.setattr(CoOp, "frozen_images", False)
    assert "features" not in train.main(arguments("CoOp", tmp_path / "pixels", *more), clips=clips)
    assert not (tmp_path / "pixels" / "features").exists()


def test_what_is_timed_before_the_first_run_fills_no_store(words, tmp_path):
    told = protocol.main(words("fewshot", "--trainer", "CoOp", "--seeds", "1", "--preflight"))
    assert "one after another, less with what the feature store has; from a step" in told
    assert not (tmp_path / "out").exists()
