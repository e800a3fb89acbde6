"""What may go wrong with a protocol of one's own: each mistake is one line, and no number stands for another one."""
import json
import re
from pathlib import Path

import pytest

import train
from dassl.utils import InputError
from protocols import PROTOCOL_REGISTRY, Cells, Column, Place, Protocol, by_seed, difference, seeds_across
from protocols.parts.stored_run import StoredRun
from tools import plot, protocol, report
from tools.results import comparisons, single_runs
from tools.running.execution import Outcome
from tools.running.plans import Planner
from written_runs import base2new, share, write_run

HALF = """
from protocols import PROTOCOL_REGISTRY, Protocol, class_bound


@PROTOCOL_REGISTRY.register()
class Half(Protocol):
    name = "half"
    layout = "half/{dataset}/shots_{shots}/{trainer}/{config}/{part}/seed{seed}"
    shots = (4,)

    def plan(self, make):
        trained = make.run("all")
        yield trained
        if not class_bound(trained):
            yield make.evaluation(trained, "new", options=("DATASET.SUBSAMPLE_CLASSES", "new"))
"""


@pytest.fixture
def half(tmp_path):
    """A plugin file with the protocol `half`; changed as {text: other text} says."""
    def half(**changed):
        text = HALF
        for old, new in changed.get("words", {}).items():
            assert old in text
            text = text.replace(old, new)
        file = tmp_path / f"half{len(list(tmp_path.glob('half*.py')))}.py"
        file.write_text(text)
        return str(file)

    return half


def plan(file, root):
    train.discover([file])
    return Planner(str(root), "out", [1], backbone="tiny", plugins=[file]).plan("half", ["CoOp"], ["caltech101"])


def refused(capsys, words, main=protocol.main):
    assert train.command_line(lambda: main(words)) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("error: "), line
    return line


# ---- folders ----
@pytest.mark.parametrize(("words", "parts"), [
    ({"{config}/{part}/": "{config}/"}, ["parts 'all' and 'new'", "name {part} in its layout"]),
    ({'trained, "new"': 'trained, "all"'}, ["parts 'all' and 'all'", "a part of its own"]),
    ({'trained, "new"': 'trained, "a/new"'}, ["the part 'a/new' cannot be read back", "part_pattern"]),
    ({'make.run("all")': 'make.run("x")', "{config}/{part}/": "{config}/", "if not class_bound(trained)": "if False"},
     ["the part 'x' cannot be read back", "{part}"])])
def test_two_runs_with_one_folder_are_refused(half, drawn_root, words, parts):
    with pytest.raises(InputError, match="protocol half: ") as told:
        plan(half(words=words), drawn_root)
    assert [part for part in parts if part not in str(told.value)] == [], told.value


def test_a_part_with_a_pattern_is_read_back(half, drawn_root):
    runs = plan(half(words={'trained, "new"': 'trained, "a/new"', "shots = (4,)": "part_pattern = '.+'"}), drawn_root)
    assert [run.place.part for run in runs] == ["all", "a/new"] and len({run.folder for run in runs}) == 2


# ---- what is refused when a protocol is read ----
@pytest.mark.parametrize(("attributes", "parts"), [
    ({"shots": 4}, ["`shots` is 4", "(4,)"]), ({"shots": (0,)}, ["`shots`"]), ({"seeds": 1}, ["`seeds` is 1"]),
    ({"seeds": ()}, ["`seeds`"]), ({"shots": (1, 2)}, ["several_shots"]), ({"methods": "CoOp"}, ["`methods`"]),
    ({"shots": (1, 2), "several_shots": True, "layout": "mine/{dataset}/{trainer}/{config}/seed{seed}"}, ["{shots}"]),
    ({"name": "compare"}, ["compare"]), ({"name": "Mine"}, ["small letters"]), ({"name": "a/b"}, ["'a/b'"]),
    ({"plan": Protocol.plan}, ["no method `plan`"]),
    *(({"layout": "mine/{dataset}/{trainer}/{config}/seed{seed}".replace(field, "x")}, [field])
      for field in ("{dataset}", "{trainer}", "{config}", "{seed}"))])
def test_attributes_that_do_not_fit_are_refused(attributes, parts):
    whole = {"name": "mine", "layout": "mine/{dataset}/shots_{shots}/{trainer}/{config}/seed{seed}",
             "plan": lambda self, make: [make.run()]}
    PROTOCOL_REGISTRY.register(type("Mine", (Protocol,), whole))
    with pytest.raises(InputError) as told:
        PROTOCOL_REGISTRY.register(type("Mine", (Protocol,), whole | attributes))
    assert "\n" not in str(told.value) and [part for part in parts if part not in str(told.value)] == [], told.value


@pytest.mark.parametrize(("words", "line", "part"), [
    ({"    def plan": "    def plans"}, 5, "no method `plan`"), ({"shots = (4,)": "shots = 4,5"}, 5, "several_shots"),
    ({"shots = (4,)": "shots = (4"}, None, "line"),
    ({'make.run("all")': 'make.run("all", source_domain=("a",))'}, 12, "did you mean 'source_domains'"),
    ({'make.run("all")': 'make.run("all", seed=3)'}, 12, "the field 'seed'"),
    ({"        yield trained": "        return []", "yield make.ev": "make.ev"}, None, "yields no run of CoOp")])
def test_a_plugin_that_is_wrong_is_one_line_that_says_where(half, words, line, part, capsys):
    file = half(words=words)
    told = refused(capsys, ["half", "--trainer", "CoOp", "--dataset", "caltech101", "--dry-run", "--plugin", file])
    assert part in told and (file in told or "yields" in part), told
    assert line is None or re.search(rf"line {line}\b|line {line + 1}\b", told), told


def test_an_unknown_protocol(half, capsys):
    told = refused(capsys, ["halv", "--trainer", "CoOp", "--dataset", "pacs"])
    assert "unknown protocol 'halv'" in told and "--plugin FILE" in told and "sdg" in told
    told = refused(capsys, ["compare", "--protocol", "half", "--dataset", "pacs"])
    assert "unknown protocol 'half'" in told and "--plugin FILE" in told
    told = refused(capsys, ["halv", "--trainer", "CoOp", "--dataset", "pacs", "--plugin", half()])
    assert "did you mean 'half'" in told
    told = refused(capsys, ["half", "--dataset", "pacs", "--plugin", half()])
    assert "half needs one --trainer; compare --protocol half takes several" in told


def test_what_is_done_under_other_options_is_said(half, drawn_root, tmp_path, tiny_config, clip_file, monkeypatch,
                                                  clip_model, capsys):
    monkeypatch.setattr("training.towers.load_clip", lambda name: clip_model)
    words = ["half", "--trainer", "CoOp", "--dataset", "caltech101", "--cfg", tiny_config, "--root", str(drawn_root),
             "--output", str(tmp_path / "out"), "--seeds", "1", "--shots", "1", "--backbone", clip_file, "--plugin",
             half()]
    table = protocol.main([*words, "OPTIM.MAX_EPOCH", "1"])
    assert "mean" in table
    assert json.loads(next((tmp_path / "out").rglob("results.json")).read_text())["run"]["protocol"] == "half"
    with pytest.raises(InputError, match="none of these 2 runs is done yet with these options; 2 .*OPTIM.MAX_EPOCH.*"
                                         r"another --output-dir \(--output, for the scripts OUTPUT\)"):
        protocol.main([*words, "OPTIM.MAX_EPOCH", "2", "--table"])


def test_runs_of_one_class_name_their_protocol(half, drawn_root):
    runs = plan(half(), drawn_root)
    with pytest.raises(InputError, match=r"has one class \(cat\).*; half needs") as told:
        Outcome(runs, one_class={runs[0].folder: "cat"}).require_all()
    assert "base2new" not in str(told.value)


# ---- runs of a protocol that is not known ----
def test_without_its_plugin_a_protocols_runs_are_named(half, tmp_path, capsys):
    file = half()
    train.discover([file])
    for trainer in "AB":
        for part in ("train_base", "test_new"):
            write_run(tmp_path / "out", base2new(trainer, part=part), share(60))
        for part in ("all", "new"):
            folder = write_run(tmp_path / "out", Place("half", "dtd", trainer, "c", part, 4, 1), share(50))
            results = json.loads((folder / "results.json").read_text())
            told = {"dataset": "dtd", "config": "c", "part": part, "shots": 4, "protocol": "half"}
            (folder / "results.json").write_text(json.dumps(results | {"run": told}))
    del PROTOCOL_REGISTRY._objects["half"]
    for main, words in ((report.main, ["--compare"]), (plot.main, ["--only", "base2new"])):
        main([str(tmp_path / "out"), *words])
        said = capsys.readouterr()
        assert "fewshot" not in said.out and "half" not in said.out
        assert f"(4 of half, first {tmp_path}/out/half/dtd/shots_4/A/c/all/seed1)" in said.err
        assert "--plugin FILE" in said.err and said.err.count("\n") == 1
    with pytest.raises(InputError, match="4 of half.*--plugin FILE"):
        report.main([str(tmp_path / "out" / "half")])


# ---- tables ----
def cells(*places):
    return Cells({place: {"metrics": {"test": {"accuracy": number, "macro_f1": number / 2}}}
                  for place, number in places})


def at(part, seed, trainer="A", shots=4):
    return Place("base2new", "dtd", trainer, "c", part, shots, seed)


def test_a_part_that_a_method_lacks_is_a_dash():
    own = cells((at("all", 1), 50.0), (at("all", 2), 60.0))
    table = by_seed(own, "t", groups={"all": ["all"], "new": ["new"], "both": ["all", "new"]}, averages={})
    assert [[word if isinstance(word, str) else word.text() for word in row] for row in table.rows] == [
        ["seed 1", "50.00", "-", "-"], ["seed 2", "60.00", "-", "-"], ["mean", "55.00 +- 7.07", "-", "-"]]
    table = seeds_across(own, "t", averages={"both": ["all", "new"]})
    assert [word.text() for word in table.rows[-1][1:]] == ["-", "-", "-"]


@pytest.mark.parametrize(("other", "told"), [
    (at("new", 1), "cells differ in part: all, new; choose with where"), (at("all", 1, "B"), "trainer: A, B"),
    (at("all", 1, shots=8), "shots: 4, 8")])
def test_a_column_of_cells_that_differ_is_refused(other, told):
    mixed = cells((at("all", 1), 50.0), (other, 60.0))
    with pytest.raises(ValueError, match=told):
        mixed.by_seed()
    assert cells((at("all", 1), 50.0), (at("all", 2), 60.0)).by_seed() == {1: 50, 2: 60}


def test_another_metric():
    own = cells((at("all", 1), 50.0), (at("all", 2), 60.0))
    assert own.by_seed(metric="macro_f1") == {1: 25, 2: 30}
    assert by_seed(own, "t", averages={}, metric="macro_f1").rows[-1][1].mean == 27.5
    with pytest.raises(InputError, match="no metric 'f1'; it has accuracy, macro_f1"):
        own.by_seed(metric="f1")


def test_a_difference_is_paired_over_seeds():
    mark = next(iter(cells((at("all", 1), 1.0)).by_seed().marks[1]), "m")
    one, other = Column({1: 50.0, 2: 60.0, 3: 70.0}, {1: frozenset([mark])}), Column({3: 67.0, 1: 49.0, 2: 58.0})
    gap = difference(one, other)
    assert (gap.mean, gap.std, gap.marks) == (2.0, 1.0, frozenset([mark]))
    assert difference([one, other], [other, other]).mean == 1.0
    for missing in (Column(), Column({1: 1.0}), Column({1: 1.0, 2: None, 3: 1.0})):
        gap = difference(one, missing)
        assert gap.mean is None and gap.text() == "-" and gap.marks == frozenset([mark])
    assert difference([], [one]).mean is None


# ---- comparisons ----
def test_parts_that_share_images_are_compared_each_by_itself(half, tmp_path, capsys):
    train.discover([half()])
    for trainer, gain, parts in (("A", 0, ("all", "new")), ("B", 10, ("all", "new")), ("C", 20, ("all",))):
        for seed in (1, 2, 3):
            for part in parts:
                write_run(tmp_path, Place("half", "dtd", trainer, "c", part, 4, seed), share(50 + gain + seed),
                          train=str(seed), test=part[0], images="same")
    tables = {table.title: table for table in report.main([str(tmp_path)])}
    said = capsys.readouterr().out
    assert "all and new have test images in common" in said and "each is compared by itself" in said
    assert "dtd, half, new: no comparison with C: a number is missing there" in said
    pairs = {title: [row[0] for row in table.rows] for title, table in tables.items() if "hold?" in title}
    assert pairs == {"dtd, half, all: does the difference hold?": ["C - B", "C - A", "B - A"],
                     "dtd, half, new: does the difference hold?": ["B - A"]}
    assert all(row[6] == "100" for title in pairs for row in tables[title].rows)


def test_parts_of_other_images_are_averaged(half, tmp_path, capsys):
    train.discover([half()])
    for trainer, parts in (("A", ("all", "new")), ("B", ("all", "new")), ("C", ("all",))):
        for seed in (1, 2, 3):
            for part in parts:
                write_run(tmp_path, Place("half", "dtd", trainer, "c", part, 4, seed), share(50 + seed),
                          train=str(seed), test=part[0])
    [table] = [table for table in report.main([str(tmp_path)]) if "hold?" in table.title]
    assert [(row[0], row[6]) for row in table.rows] == [("A - B", "200")]
    said = capsys.readouterr().out
    assert "dtd, half: no comparison with C" in said and "in common" not in said
    assert callable(comparisons.comparisons)


# ---- single runs ----
def test_a_zero_shot_run_says_that_nothing_was_trained():
    train.discover()
    run = {"dataset": "dtd", "config": "c", "part": "new", "shots": 4, "eval_only": True,
           "model": {"dataset": "dtd", "part": "all"}}
    for trainer, told in (("ZeroshotCLIP", "evaluated without a training"), ("CoOp", "tested with what was trained")):
        stored = StoredRun.of({"trainer": trainer, "seed": 1, "run": run})
        table = single_runs.single_runs_table([("folder", stored, {"metrics": {}})])
        assert table.rows[0][3].startswith(f"new classes: {told}")
        trained = StoredRun.of({"trainer": trainer, "seed": 1, "run": run | {"eval_only": False, "model": None}})
        assert ("without" in trained.told()) == (trainer == "ZeroshotCLIP")


def test_every_name_that_is_public_is_in_the_docs():
    import protocols

    text = (Path(__file__).resolve().parents[1] / "docs" / "PROTOCOLS.md").read_text()
    public = text.partition("**What is public.**")[2].partition("**Runs.**")[0]
    assert {name for name in protocols.__all__ if f"`{name}`" not in public} == {"protocol_named"}
    defaults = text.partition("**What has a default:**")[2].partition("## Tables and figures")[0]
    named = {*re.findall(r"^\| `(\w+)", defaults, re.M)}
    mine = {name for name in {**vars(Protocol), "part_pattern": "", "several_shots": "", "part_words": ""}
            if not name.startswith("_")}
    assert mine - {"plan"} == named
