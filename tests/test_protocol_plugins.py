"""Protocols as plugins: single-domain generalisation, a protocol from a file, runs of train.py in protocols' tables."""
import importlib.metadata
import json
import re
import types
from pathlib import Path

import pytest

import train
from dassl.engine.run_folder import settings_digest
from dassl.utils import InputError
from protocols import PROTOCOL_REGISTRY, Cells, Place, Protocol, protocol_named
from protocols.base2new import DATASETS
from protocols.parts.stored_run import StoredRun
from tools import plot, protocol, report
from tools.results import run_folders
from tools.running.plans import Planner
from written_runs import base2new, share, write_run

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = str(ROOT / "tests" / "plugins" / "several_sources.py")
DOMAINS = ["art_painting", "cartoon", "photo", "sketch"]


@pytest.fixture
def call(drawn_root, tiny_config, clip_file, tmp_path, monkeypatch, clip_model):
    """`metaprompt protocol` on the drawn data, one seed and one epoch."""
    monkeypatch.setattr("training.towers.load_clip", lambda name: clip_model)

    def call(name, *more, dataset="pacs"):
        return protocol.main([name, *more, "--dataset", dataset, "--cfg", tiny_config, "--root", str(drawn_root),
                              "--output", str(tmp_path / "out"), "--seeds", "1", "--backbone", clip_file,
                              "OPTIM.MAX_EPOCH", "1"])

    return call


def cells(table):
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()]


def stored(folder):
    return json.loads((folder / "results.json").read_text())


# ---- single-domain generalisation ----
def test_sdg_trains_on_each_domain_and_tests_the_others(call, tmp_path):
    table = call("sdg", "--trainer", "CoOp")
    folder, rows = tmp_path / "out" / "sdg" / "pacs" / "shots_1" / "CoOp" / "tiny", cells(table)
    assert rows[0] == ["source", *DOMAINS, "average"]
    assert [row[0] for row in rows[2:]] == [*DOMAINS, "average"]
    numbers = {}
    for source, row in zip(DOMAINS, rows[2:]):
        assert row[1 + DOMAINS.index(source)] == "-"
        for target in (name for name in DOMAINS if name != source):
            run = stored(folder / source / target / "seed1")
            assert run["config"]["DATASET"]["SOURCE_DOMAINS"] == [source] and set(run["domains"]) == {target}
            assert run["changed"] == {} and run["overlap"]["test"] == 0
            numbers[source, target] = run["metrics"]["test"]["accuracy"]
            assert row[1 + DOMAINS.index(target)] == f"{numbers[source, target]:.2f}"
        trained = [path.parent.parent.name for path in (folder / source).glob("*/seed1/prompt_learner")]
        assert trained == [next(name for name in DOMAINS if name != source)]
    assert rows[-1][-1] == f"{sum(numbers.values()) / 12:.2f}"
    assert rows[-1][2] == f"{sum(numbers[source, 'cartoon'] for source in DOMAINS if source != 'cartoon') / 3:.2f}"
    assert rows[2][-1] == f"{sum(numbers['art_painting', target] for target in DOMAINS[1:]) / 3:.2f}"


def test_sdg_of_metaprompt_splits_by_classes(call, tmp_path):
    call("sdg", "--trainer", "MetaPrompt")
    config = stored(tmp_path / "out/sdg/pacs/shots_1/MetaPrompt/tiny/photo/sketch/seed1")["config"]
    assert config["TRAINER"]["METAPROMPT"]["SPLIT"] in ("auto", "class")


def test_sdg_takes_no_config_that_splits_by_domains(drawn_root):
    [run, *_] = Planner(str(drawn_root), "out", [1], backbone="tiny").plan("sdg", ["MetaPrompt"], ["pacs"])
    assert run.place.config == "tiny" and run.place.shots == 1  # tiny_dg asks for several domains
    with pytest.raises(InputError, match="has no domains"):
        Planner(str(drawn_root), "out", [1], backbone="tiny").plan("sdg", ["CoOp"], ["caltech101"])


def test_sdg_in_report_and_figures(tmp_path, capsys):
    for trainer, gain in (("A", 0), ("B", 10)):
        for seed in (1, 2, 3):
            for source, target in (("x", "y"), ("x", "z"), ("y", "x"), ("y", "z"), ("z", "x"), ("z", "y")):
                write_run(tmp_path, Place("sdg", "pacs", trainer, "c", f"{source}/{target}", 1, seed),
                          share(50 + gain + seed), train=source + str(seed), test=target)
    tables = {table.title: cells(table.render()) for table in report.main([str(tmp_path)])}
    square = tables["A: pacs, trained on one domain, tested on another"]
    assert square[0] == ["source", "x", "y", "z", "average"]
    assert square[2] == ["x", "-", "52.00 +- 1.00", "52.00 +- 1.00", "52.00 +- 1.00"]
    assert tables["pacs, trained on one domain, averages over the others"][3] == ["B", *4 * ["62.00 +- 1.00"]]
    assert sum("does the difference hold" in title for title in tables) == 3  # one per source
    assert any(title.startswith("pacs, trained on x") for title in tables)
    files = plot.main([str(tmp_path), "--only", "sdg"])
    svg = Path(files[1]).read_text()
    assert Path(files[1]).name == "sdg_pacs.svg" and all(word in svg for word in ("x", "average", "accuracy (%)"))


def test_a_mark_names_the_pair_of_domains(tmp_path, capsys):
    folder = write_run(tmp_path, Place("sdg", "pacs", "A", "c", "x/y", 1, 1), share(50))
    results = stored(folder) | {"overlap": {"test": 3, "of": 100}}
    (folder / "results.json").write_text(json.dumps(results))
    report.main([str(tmp_path)])
    assert "*  trained on 3 of its 100 test images (A, pacs, x to y, seed 1)".replace("  ", " ") in \
        capsys.readouterr().out


# ---- a protocol from a file ----
def test_a_plugins_protocol_prints_tables_and_figures(call, tmp_path, capsys):
    more = ("--plugin", PLUGIN, "--number", "3", "--trainer")
    table = call("sources", *more, "CoOp")
    parts = [f"{'+'.join(name for name in DOMAINS if name != target)}/{target}" for target in reversed(DOMAINS)]
    assert cells(table)[0] == [*parts, "average"]
    said = capsys.readouterr().out
    assert "train on some domains, test on each of the others; accuracy (%)\n2 shots per class, seeds 1" in said
    listed = call("sources", *more, "CoOp", "--dry-run")
    assert "4 runs, 4 done" in listed
    assert "12 runs, 0 done" in call("sources", "--plugin", PLUGIN, "--trainer", "CoOp", "--dry-run")  # two of four
    assert "4 runs: 4 done" in call("sources", *more, "CoOp", "--status")
    table = call("compare", "--protocol", "sources", *more, "CoOp", "ZeroshotCLIP")
    assert [row[0] for row in cells(table)[2:]] == ["CoOp", "ZeroshotCLIP"]
    tables = report.main([str(tmp_path / "out"), "--plugin", PLUGIN, "--compare"])
    assert [row[0] for row in tables[0].rows] == ["CoOp", "ZeroshotCLIP"] and tables[0].headers[-1] == "average"
    files = plot.main([str(tmp_path / "out"), "--plugin", PLUGIN, "--only", "sources"])
    assert [Path(name).name for name in files] == ["sources_pacs.png", "sources_pacs.svg"]
    names = {Path(name).name for name in plot.main([str(tmp_path / "out"), "--plugin", PLUGIN, "--only", "training"])}
    assert len(names) == 8 and all("/" not in name for name in names)
    with pytest.raises(InputError, match="--number 4"):
        call("sources", "--plugin", PLUGIN, "--trainer", "CoOp", "--number", "4")


def test_without_the_plugin_its_runs_are_passed_over(tmp_path):
    folder = tmp_path / "sources" / "pacs" / "shots_2" / "A" / "c" / "x+y" / "z" / "seed1"
    write_run(tmp_path, base2new("A"), share(50)).parent.mkdir(exist_ok=True)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text((tmp_path / base2new("A").folder / "results.json").read_text())
    assert len(report.main([str(tmp_path)])) == 1
    with pytest.raises(InputError, match="no figures are called sources"):
        plot.main([str(tmp_path), "--only", "sources"])
    with pytest.raises(InputError, match="sources"):
        protocol.main(["sources", "--trainer", "CoOp", "--dataset", "pacs"])


def test_a_plugins_protocol_by_a_script(tmp_path, drawn_root, scripts):
    done = scripts("run.sh", "sources", "CoOp", "pacs", "--plugin", str(PLUGIN), cwd=tmp_path, DRY_RUN="1",
                   DATA=str(drawn_root), OUTPUT=str(tmp_path), BACKBONE="tiny")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"to do  {tmp_path}/sources/pacs/shots_2/CoOp/tiny/") == 12


def test_a_protocol_of_an_installed_package(monkeypatch):
    entry = types.SimpleNamespace(load=lambda: train.load_plugin(PLUGIN))
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry] if group == "dassl.plugins" else [])
    args = protocol.parse_arguments(["sources", "--trainer", "CoOp", "--dataset", "pacs", "--number", "1"])
    assert args.own == {"number": 1} and args.of.number == 1


def test_the_protocol_of_the_docs(call, tmp_path):
    """docs/PROTOCOLS.md's example as it stands: its tables, its new column, report and figure."""
    text = (ROOT / "docs" / "PROTOCOLS.md").read_text()
    [code] = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "NewToBase" in block]
    file = tmp_path / "new2base.py"
    file.write_text(code)
    plugin = ("--plugin", str(file))
    rows = cells(call("compare", "--protocol", "new2base", *plugin, "--trainer", "CoOp", "LinearProbe",
                      dataset="caltech101"))
    assert rows[0] == ["method", "new", "base", "lost"] and rows[3][0] == "LinearProbe" and rows[3][2:] == ["-", "-"]
    new, base, lost = map(float, rows[2][1:])
    assert lost == pytest.approx(new - base, abs=0.011)
    own = cells(call("new2base", *plugin, "--trainer", "CoOp", dataset="caltech101"))
    assert own[0] == ["new", "base", "lost"] and own[-1] == ["mean", *rows[2][1:]]
    assert report.main([str(tmp_path / "out"), *plugin, "--compare"])[0].headers[-1] == "lost"
    assert plot.main([str(tmp_path / "out"), *plugin, "--only", "new2base"])


# ---- the registry ----
def test_nothing_outside_of_its_file_names_a_protocol():
    """But for what `compare` compares by default, and groups of datasets of that name."""
    names = "|".join(PROTOCOL_REGISTRY.registered_names())
    allowed = {"tools/running/words.py": 1, "tools/downloads/sources.py": 2}
    for folder in ("tools", "training", "trainers", "dassl", "protocols/parts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found = re.findall(rf'"(?:{names})"', path.read_text())
            assert len(found) == allowed.get(str(path.relative_to(ROOT)), 0), (path, found)


@pytest.mark.parametrize(("name", "layout"), [
    ("mine", "other/{dataset}/{trainer}/{config}/seed{seed}"), ("mine", "mine/{trainer}/{config}/seed{seed}"),
    ("mine", "mine/{dataset}/{trainer}/{config}/{colour}/seed{seed}"), ("", "/{dataset}/{trainer}/{config}/{seed}"),
    ("a/b", "a/b/{dataset}/{trainer}/{config}/seed{seed}")])
def test_folders_that_could_not_be_read_back_are_refused(name, layout):
    with pytest.raises(InputError, match=f"protocol Mine: its name|protocol {name}: its layout"):
        PROTOCOL_REGISTRY.register(type("Mine", (Protocol,), {"name": name, "layout": layout}))


def test_a_plugins_protocol_may_stand_in_for_one_of_ours(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("from protocols import PROTOCOL_REGISTRY\nfrom protocols.dg import DomainGeneralisation\n\n\n"
                    "@PROTOCOL_REGISTRY.register()\nclass Mine(DomainGeneralisation):\n    shots = (5,)\n")
    args = protocol.parse_arguments(["dg", "--trainer", "CoOp", "--dataset", "pacs", "--plugin", str(file)])
    assert args.of.shots == (5,) and "replaces protocols.dg" in capsys.readouterr().out


def test_flags_of_another_protocol_are_refused():
    words = ["compare", "--trainer", "CoOp", "--dataset", "pacs", "--targets", "dtd"]
    with pytest.raises(InputError, match="--targets"):
        protocol.parse_arguments(words)
    assert protocol.parse_arguments([*words, "--protocol", "xd"]).own == {"targets": ["dtd"]}


def test_an_average_over_a_part_of_the_domains_is_none():
    """sketch was trained on, and cartoon only tested: what would need the other runs is "-"."""
    runs = {Place("sdg", "pacs", "CoOp", "a", part, 1, 1): {"metrics": {"test": {"accuracy": 50.0}}}
            for part in ("sketch/cartoon", "cartoon/sketch", "sketch/photo")}
    table = protocol_named("sdg").seed_tables(Cells(runs))[-1]
    shown = {row[0]: [number.text() for number in row[1:]] for row in table.rows}
    assert table.headers == ["source", "sketch", "cartoon", "photo", "average"]
    assert shown["sketch"] == ["-", "50.00", "50.00", "50.00"] and shown["cartoon"] == ["50.00", "-", "-", "-"]
    assert shown["photo"] == ["-"] * 4 and shown["average"][-1] == "-"


def test_published_averages_stand_beside_whole_ones_of_their_shots_only():
    numbers = {"CoOp": {"base": 1, "new": 2, "H": 3, "source": "x", "any shots": {"source": "x", "pacs": 90}}}
    named = {"metrics": {"test": {"accuracy": 50.0}},
             "config": {"DATASET": {"SOURCE_DOMAINS": ["b", "c"], "TARGET_DOMAINS": ["a"]}}}
    dg = {Place("dg", "pacs", "CoOp", "c", part, 1, 1): named for part in "abc"}
    base = {Place("base2new", name, "CoOp", "c", part, shots, 1): named for name in DATASETS
            for part in ("train_base", "test_new") for shots in (1,)}
    published = protocol_named("dg").published
    assert published(Cells(dg), numbers)[0][3].text() == "50.00"
    assert published(Cells(list(dg.items())[:2]), numbers)[0][3].text() == "-"
    assert [row[3].text() for row in protocol_named("base2new").published(Cells(base), numbers)] == ["-"] * 3


# ---- single runs ----
def single(folder, trainer="CoOp", seed=1, right=50, test="b", **run):
    """A run of train.py somewhere."""
    written = write_run(folder, base2new(trainer, seed, dataset="any"), share(right), test=test, train=str(seed))
    to = folder / f"single{len(list(folder.glob('single*')))}"
    written.rename(to)
    told = {"dataset": "caltech101", "config": "vit_b16", "part": "all", "source_domains": [], "target_domains": [],
            "shots": 16, "eval_only": False, "model": None} | run
    results = stored(to)
    if told["model"]:
        told["model"] = {"shots": told["shots"], "source_domains": [], "seed": seed,
                         "settings": settings_digest(results["config"])} | told["model"]
    (to / "results.json").write_text(json.dumps(results | {"run": told}))
    return to


def test_two_runs_of_train_py_make_a_base_to_new_table(tmp_path, capsys):
    base = single(tmp_path, right=80, part="base")
    new = single(tmp_path, right=60, part="new", test="c", eval_only=True,
                 model={"dataset": "caltech101", "part": "base"})
    [table] = report.main([str(base), str(new)])
    assert cells(table.render())[2] == ["CoOp", "80.00", "60.00", f"{2 * 80 * 60 / 140:.2f}"]
    assert "base2new: accuracy (%); backbone ViT-B/16, shots 16, seeds 1" in capsys.readouterr().out


DG = {"dataset": "pacs", "shots": 1, "target_domains": ["photo"]}


@pytest.mark.parametrize(("run", "place"), [
    ({"part": "base"}, ("base2new", "caltech101", "train_base", 16)),
    ({"part": "new"}, None),  # trained on the new classes
    ({"part": "new", "eval_only": True, "model": {"dataset": "caltech101", "part": "all"}}, None),
    ({"part": "new", "eval_only": True, "model": {"dataset": "dtd", "part": "base"}}, None),
    ({"part": "new", "eval_only": True}, ("base2new", "caltech101", "test_new", 16)),  # zero-shot CLIP
    ({}, ("fewshot", "caltech101", "all", 16)),
    ({"shots": -1}, None),
    (DG | {"source_domains": ["art_painting", "cartoon", "sketch"]}, ("dg", "pacs", "photo", 1)),
    (DG | {"source_domains": ["art_painting", "cartoon"]}, None),
    (DG | {"source_domains": ["sketch"]}, ("sdg", "pacs", "sketch/photo", 1)),
    (DG | {"source_domains": ["photo"]}, None),
    (DG | {"source_domains": ["sketch"], "eval_only": True, "model": {"dataset": "pacs", "part": "all"}}, None),
    (DG | {"source_domains": ["sketch"], "eval_only": True,
           "model": {"dataset": "pacs", "part": "all", "source_domains": ["sketch"]}},
     ("sdg", "pacs", "sketch/photo", 1)),
    (DG | {"source_domains": ["sketch"], "part": "base"}, None),
    ({"eval_only": True, "model": {"dataset": "imagenet", "part": "all"}}, ("xd", "imagenet", "caltech101", 16)),
    ({"eval_only": True, "model": {"dataset": "imagenet", "part": "base"}}, None),
    ({"eval_only": True, "model": {"dataset": "", "part": ""}}, None),
    ({"eval_only": True}, ("zeroshot", "caltech101", "all", None)),
    ({"dataset": "pacs", "source_domains": DOMAINS, "target_domains": DOMAINS, "eval_only": True},
     ("zeroshot", "pacs", "all", None)),
    ({"dataset": "pacs", "target_domains": DOMAINS[:2], "eval_only": True}, None)])
def test_a_single_run_stands_where_a_protocol_would_have_made_it(tmp_path, run, place):
    folder = single(tmp_path, **run)
    found = run_folders.collect([str(tmp_path)])
    if place is None:
        assert [path for path, *_ in found.single] == [str(folder)] and not found.cells
    else:
        name, dataset, part, shots = place
        assert list(found.where.items()) == [(Place(name, dataset, "CoOp", "vit_b16", part, shots, 1), str(folder))]


def test_what_no_protocol_would_make_is_told_run_by_run(tmp_path, capsys):
    write_run(tmp_path, base2new("A"), share(50))
    for seed in (1, 2):
        single(tmp_path, seed=seed, right=40 + seed, shots=-1, part="new")
    table = report.main([str(tmp_path)])[-1]
    assert [row[3:6] for row in table.rows] == [["new classes: tested after training", "all", seed] for seed in "12"]
    assert [row[6].text() for row in table.rows] == ["41.00", "42.00"]
    assert len(report.main([str(tmp_path), "--protocol", "base2new"])) == 1
    [only] = report.main([str(tmp_path), "--seeds", "2"])
    assert len(only.rows) == 1


def only_single(tmp_path):
    """Why the one run of train.py below a folder stands in no protocol's table."""
    [(_, run, _)] = run_folders.collect([str(tmp_path)]).single
    return run.reason


def test_a_run_that_a_protocol_has_made_too_counts_once(tmp_path, capsys):
    folder = write_run(tmp_path, base2new("A"), share(50))
    single(tmp_path, trainer="A", dataset="dtd", part="base", right=90)
    assert only_single(tmp_path) == f"the same run as {folder}"
    assert report.main([str(tmp_path)])[0].rows[0][1].text() == "50.00"


@pytest.mark.parametrize(("run", "reason"), [
    ({"model": {"seed": 2}}, "evaluated with seed 1, trained with seed 2"),
    ({"model": {"shots": 1}}, "evaluated with 16 shots, trained with 1 shot"),
    ({"model": {"settings": ""}}, "what it was trained with is not known")])
def test_an_evaluation_of_another_training_stands_in_no_table(tmp_path, run, reason):
    single(tmp_path, part="new", eval_only=True, model={"dataset": "caltech101", "part": "base"} | run["model"])
    assert only_single(tmp_path) == reason


@pytest.mark.parametrize(("change", "reason"), [
    ({"evaluation": {"eval_only": True, "load_epoch": 1, "checkpoint": None}}, "epoch 1 of its training was evaluated"),
    ({"metrics": {}}, "it has no test accuracy"),
    ({"metrics": {"val": {"accuracy": 50.0}}}, "it has no test accuracy")])
def test_what_is_no_test_of_the_last_epoch_stands_in_no_table(tmp_path, change, reason):
    folder = single(tmp_path, part="base")
    (folder / "results.json").write_text(json.dumps(stored(folder) | change))
    assert only_single(tmp_path) == reason


def test_runs_of_other_settings_are_not_averaged(tmp_path):
    first, other = single(tmp_path, seed=1), single(tmp_path, seed=2)
    results = stored(other)
    results["config"].setdefault("OPTIM", {})["LR"] = 0.3
    (other / "results.json").write_text(json.dumps(results))
    assert only_single(tmp_path) == f"trained with other settings than {first}"


def test_new_classes_stand_beside_the_base_classes_of_their_own_training_only(tmp_path):
    base = single(tmp_path, part="base")
    single(tmp_path, part="new", test="c", eval_only=True,
           model={"dataset": "caltech101", "part": "base", "settings": "another"})
    assert only_single(tmp_path) == f"trained with other settings than {base}"


def test_a_run_of_other_shots_does_not_block_the_report(tmp_path):
    write_run(tmp_path, base2new("A"), share(50))
    folder = single(tmp_path, trainer="A", dataset="dtd", part="base", shots=4, seed=3)
    results = stored(folder)
    results["config"]["DATASET"]["NUM_SHOTS"] = 4
    (folder / "results.json").write_text(json.dumps(results))
    assert "number of shots" in only_single(tmp_path)
    assert len(report.main([str(tmp_path)])) == 2


def test_zero_shot_evaluations_of_both_halves_make_a_table(tmp_path):
    for part in ("base", "new"):
        single(tmp_path, trainer="ZeroshotCLIP", part=part, test=part[0], eval_only=True)
    [table] = report.main([str(tmp_path)])
    assert [number.mean for number in table.rows[0][1:4]] == [50, 50, 50]


def test_a_moved_run_of_a_protocol_stands_where_it_was_made(tmp_path):
    folder = single(tmp_path, part="base", protocol="base2new")
    results = stored(folder)
    assert run_folders.collect([str(tmp_path)]).single  # its config does not say where
    place = Place("base2new", "caltech101", "CoOp", "vit_b16+lr01", "train_base", 16, 1)
    results["config"]["OUTPUT_DIR"] = f"out/{place.folder}"
    (folder / "results.json").write_text(json.dumps(results))
    assert list(run_folders.collect([str(tmp_path)]).cells) == [place]


def test_a_renamed_folder_of_a_protocol_is_refused(tmp_path):
    folder = write_run(tmp_path, base2new("A", 1), share(50))
    told = {"dataset": "dtd", "config": "vit_b16", "part": "base", "shots": 16}
    (folder / "results.json").write_text(json.dumps(stored(folder) | {"run": told}))
    run_folders.collect([str(tmp_path)])
    folder.rename(folder.parent / "seed9")
    with pytest.raises(InputError, match="says seed 9, and the results in it are of seed 1"):
        run_folders.collect([str(tmp_path)])


@pytest.mark.parametrize("run", [
    None, [], {"dataset": 1}, {"dataset": "../up", "config": "b", "part": "all", "shots": 1},
    {"dataset": "a", "config": "b", "part": "..", "shots": 1},
    {"dataset": "a", "config": "b", "part": "all", "shots": True},
    {"dataset": "a", "config": "b", "part": "all", "shots": 1, "source_domains": [{}]}])
def test_what_is_no_run_is_passed_over(run):
    assert StoredRun.of({"trainer": "A", "seed": 1, "run": run}) is None and StoredRun.of(run) is None


def test_the_readmes_two_runs(arguments, tmp_path):
    """train.py twice, as README's "One run" has it, then `metaprompt report`."""
    base = train.main(arguments("CoOp", tmp_path / "try", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "1",
                                "DATASET.NUM_SHOTS", "2"))
    new = train.main(arguments("CoOp", tmp_path / "try_new", "--eval-only", "--model-dir", tmp_path / "try",
                               "DATASET.SUBSAMPLE_CLASSES", "new", "OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "2"))
    [table] = report.main([str(tmp_path / "try"), str(tmp_path / "try_new")])
    shown = [f"{run['metrics']['test']['accuracy']:.2f}" for run in (base, new)]
    assert cells(table.render())[2][:3] == ["CoOp", *shown]
