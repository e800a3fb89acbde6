"""The protocols beyond a single table: cross-dataset, few-shot, zero-shot, plans, failures, interruption, processes."""
import json
import os
import re
import signal
from pathlib import Path

import pytest
import yaml

import train
from dassl.utils import InputError
from protocols import PROTOCOL_REGISTRY, base2new, xd
from protocols.parts import plan
from tools import plot, protocol, report
from tools.running import execution, plans, side_by_side
from tools.running.plans import Planner

ROOT = Path(__file__).resolve().parents[1]
DOMAINS = ["art_painting", "cartoon", "photo", "sketch"]


@pytest.fixture
def words(drawn_root, tiny_config, clip_file, tmp_path, monkeypatch, clip_model):
    monkeypatch.setattr("training.towers.load_clip", lambda name: clip_model)

    def words(name, *more, dataset="caltech101", shots=("--shots", "2"), options=()):
        return [name, *more, "--dataset", dataset, "--cfg", tiny_config, "--root", str(drawn_root), "--output",
                str(tmp_path / "out"), *shots, "--backbone", clip_file, "OPTIM.MAX_EPOCH", "1", *options]

    return words


@pytest.fixture
def call(words):
    return lambda *args, **kwargs: protocol.main(words(*args, **kwargs))


def cells(table):
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()]


def stored(folder):
    return json.loads((folder / "results.json").read_text())


def never(*args, **kwargs):
    raise AssertionError("a finished run was run again")


def test_xd_tests_the_source_prompts_on_all_domains_of_the_target(call, tmp_path, monkeypatch):
    table = call("xd", "--trainer", "CoOp", "--seeds", "1", "--targets", "pacs")
    folder = tmp_path / "out" / "xd" / "caltech101" / "shots_2" / "CoOp" / "tiny"
    source, target = stored(folder / "caltech101" / "seed1"), stored(folder / "pacs" / "seed1")
    assert source["config"]["DATASET"]["SUBSAMPLE_CLASSES"] == "all"
    assert target["evaluation"]["eval_only"] and target["evaluation"]["checkpoint"]
    assert target["config"]["DATASET"]["TARGET_DOMAINS"] == DOMAINS == target["config"]["DATASET"]["SOURCE_DOMAINS"]
    assert set(target["domains"]) == set(DOMAINS) and not list((folder / "pacs").rglob("model.pth*"))
    numbers = [f"{run['metrics']['test']['accuracy']:.2f}" for run in (source, target)]
    assert cells(table)[0] == ["seed 1", "mean"]
    assert cells(table)[2:] == [["caltech101", *2 * numbers[:1]], ["pacs", *2 * numbers[1:]],
                                ["average", *2 * numbers[1:]]]
    monkeypatch.setattr(train, "run", never)
    assert call("xd", "--trainer", "CoOp", "--seeds", "1", "--targets", "pacs") == table


def test_xd_of_a_class_bound_method_is_a_dash(call, tmp_path, capsys):
    options = ("TRAINER.COOP.CSC", "True")
    table = call("xd", "--trainer", "CoOp", "--seeds", "1", "--targets", "pacs", options=options)
    assert [row[0] for row in cells(table)[2:]] == ["caltech101"]
    assert "CoOp belongs to its training classes" in capsys.readouterr().out
    assert not list((tmp_path / "out").rglob("pacs"))


def test_compared_with_a_method_that_transfers_a_class_bound_one_has_dashes(call):
    table = call("compare", "--protocol", "xd", "--trainer", "ZeroshotCLIP", "LinearOnly", "--seeds", "1", "--targets",
                 "pacs", "--plugin", str(ROOT / "tests" / "plugins" / "bound.py"))
    rows = {row[0]: row[1:] for row in cells(table)[2:]}
    assert rows["LinearOnly"][1:] == ["-", "-"] and float(rows["LinearOnly"][0]) >= 0
    assert "-" not in rows["ZeroshotCLIP"]


def test_xd_needs_other_targets(call):
    with pytest.raises(InputError, match="--targets"):
        call("xd", "--trainer", "CoOp")
    with pytest.raises(InputError, match="leave it out"):
        call("xd", "--trainer", "CoOp", "--targets", "pacs", "caltech101")
    with pytest.raises(InputError, match="one --dataset"):
        protocol.main(["xd", "--trainer", "CoOp", "--dataset", "caltech101", "pacs"])


def test_xd_from_imagenet_is_tested_on_ten_datasets_and_four_variants():
    assert len(xd.TARGETS["imagenet"]) == 14 and len(set(xd.TARGETS["imagenet"])) == 14
    groups = xd.groups("imagenet", ["imagenet", *xd.TARGETS["imagenet"]])
    assert [len(group) for group in groups.values()] == [10, 4]


def test_fewshot(call, tmp_path):
    table = call("fewshot", "--trainer", "CoOp", "--seeds", "1", "2", shots=("--shots", "1", "2"))
    assert cells(table)[0] == ["shots", "seed 1", "seed 2", "mean"]
    for row, shots in zip(cells(table)[2:], (1, 2)):
        runs = [stored(tmp_path / "out" / f"fewshot/caltech101/shots_{shots}/CoOp/tiny/seed{seed}") for seed in (1, 2)]
        assert row[:3] == [str(shots), *(f"{run['metrics']['test']['accuracy']:.2f}" for run in runs)]
        assert all(run["config"]["DATASET"]["NUM_SHOTS"] == shots for run in runs)


def test_fewshot_takes_five_numbers_of_shots_by_default(call, capsys):
    listed = call("fewshot", "--trainer", "CoOp", "--seeds", "1", "--dry-run", shots=())
    assert [int(n) for n in re.findall(r"shots_(\d+)", listed)] == [1, 2, 4, 8, 16]


def test_zeroshot(call, tmp_path):
    table = call("zeroshot", "--trainer", "ZeroshotCLIP", "ZeroshotCLIP2", shots=())
    rows = cells(table)
    assert rows[0] == ["method", "caltech101", "average"] and [row[0] for row in rows[2:]] == ["ZeroshotCLIP",
                                                                                                "ZeroshotCLIP2"]
    accuracy = stored(tmp_path / "out/zeroshot/caltech101/ZeroshotCLIP/tiny/seed1")["metrics"]["test"]["accuracy"]
    assert rows[2][1] == f"{accuracy:.2f}"
    with pytest.raises(InputError, match="CoOp learns"):
        call("zeroshot", "--trainer", "CoOp", shots=())


def test_compare_of_another_protocol(call):
    table = call("compare", "--protocol", "dg", "--trainer", "ZeroshotCLIP", "ZeroshotCLIP2", "--seeds", "1",
                 dataset="pacs")
    assert cells(table)[0] == ["method", *DOMAINS, "average"]
    assert all(len(row) == 6 for row in cells(table)[2:])


def test_several_datasets_end_in_an_average(words, tmp_path, capsys):
    twin = tmp_path / "twin.yaml"
    twin.write_text('DATASET: {NAME: "Caltech101"}\n')
    argv = words("base2new", "--trainer", "ZeroshotCLIP", "--seeds", "1")
    argv.insert(argv.index("caltech101") + 1, str(twin))
    table = protocol.main(argv)
    rows = cells(table)
    assert rows[0] == ["dataset", "base", "new", "H"] and [row[0] for row in rows[2:]] == ["caltech101", "twin",
                                                                                           "average"]
    assert rows[2][1:] == rows[3][1:] == rows[4][1:]
    assert "caltech101, base to new" in capsys.readouterr().out


# ---- plans ----
def test_a_dry_run_says_what_is_done_and_writes_nothing(call, tmp_path, capsys):
    listed = call("base2new", "--trainer", "CoOp", "--seeds", "1", "2", "--dry-run")
    assert listed.count("to do") == 4 and "4 runs, 0 done" in listed
    assert not (tmp_path / "out").exists()
    call("base2new", "--trainer", "CoOp", "--seeds", "1")
    capsys.readouterr()
    listed = call("base2new", "--trainer", "CoOp", "--seeds", "1", "2", "--dry-run")
    assert "4 runs, 2 done" in listed and listed == capsys.readouterr().out.rstrip("\n")
    assert all(line.startswith("done") == ("seed1" in line) for line in listed.splitlines()[:4])
    with pytest.raises(InputError, match="2 of 2 runs would be refused"):
        call("base2new", "--trainer", "CoOp", "--seeds", "1", "--dry-run", options=("OPTIM.LR", "0.3"))
    other = capsys.readouterr().out
    assert other.startswith("refused (") and "OPTIM.LR is 0.05 there, 0.3 here" in other


def test_a_plan_says_what_each_run_needs(tiny_config, drawn_root):
    planner = Planner(str(drawn_root), "out", [1], tiny_config, "tiny")
    runs = planner.plan("xd", ["CoOp"], ["caltech101"], targets=["pacs"])
    assert [(run.place.part, run.needs) for run in runs] == [("caltech101", ""), ("pacs", runs[0].folder)]
    assert all(run.folder == os.path.join("out", run.place.folder) for run in runs)
    runs = planner.plan("dg", ["CoOp", "MetaPrompt"], ["pacs"])
    assert [run.place.part for run in runs] == 2 * DOMAINS and not any(run.needs for run in runs)


@pytest.mark.parametrize(("name", "special"), [("dg", True), ("xd", True), ("fewshot", True), ("base2new", False)])
def test_a_method_may_have_a_config_for_a_protocol(name, special, tmp_path, monkeypatch):
    folder = tmp_path / "configs" / "trainers" / "CoOp"
    folder.mkdir(parents=True)
    for config in ("tiny", f"tiny_{name}", "vit_b16"):
        (folder / f"{config}.yaml").write_text("VERBOSE: False\n")
    shapes = plans.Dataset.of("shapes")
    monkeypatch.setattr(plan, "ROOT", str(tmp_path))
    wanted = f"tiny_{name}" if special else "tiny"
    assert Planner().method_config(name, "CoOp", shapes) == (wanted, str(folder / f"{wanted}.yaml"))
    assert Planner(backbone="ViT-B/16").method_config(name, "CoOp", shapes)[0] == "vit_b16"
    assert Planner(cfg="tiny").method_config(name, "CoOp", shapes)[0] == "tiny"


def test_each_method_runs_with_the_config_it_is_given(tiny_config, drawn_root, tmp_path):
    """METHOD=FILE and METHOD=NAME pairs; a name for all methods; the others take their default."""
    own = tmp_path / "mine.yaml"
    own.write_text("TRAINER: {COOP: {N_CTX: 3}}\n")

    def configs(words, trainers=("CoOp", "MetaPrompt", "CoCoOp")):
        runs = Planner(str(drawn_root), "out", [1], words, "tiny").plan("fewshot", trainers, ["caltech101"], [1])
        return [(run.place.config, Path(run.spec.config_file).parent.name) for run in runs]

    assert configs([f"CoOp={own}", "MetaPrompt=clip64"]) == [
        ("mine", tmp_path.name), ("clip64", "MetaPrompt"), ("tiny", "CoCoOp")]
    assert configs("clip64") == configs(["clip64"]) == [
        ("clip64", name) for name in ("CoOp", "MetaPrompt", "CoCoOp")]
    assert configs(["clip64", f"CoOp={own}"])[0] == ("mine", tmp_path.name)
    assert configs(str(own), ["CoOp"]) == [("mine", tmp_path.name)]
    assert [name for name, _ in configs(tiny_config)] == 3 * ["tiny"]  # a file for several methods


def test_a_plugin_without_configs_runs_with_another_methods_and_that_is_said(words, tmp_path, capsys):
    """README's example, with a bare file and with a pair."""
    (tmp_path / "lent.yaml").write_text(f"BASE: {ROOT / 'configs' / 'trainers' / 'CoOp' / 'tiny.yaml'}\n")
    plugin = ("--plugin", str(ROOT / "tests" / "plugins" / "bound.py"))
    lent = str(tmp_path / "lent.yaml")
    for configs in ([lent], [f"LinearOnly={lent}", f"CoOp={lent}"]):
        argv = words("compare", "--trainer", "CoOp", "LinearOnly", *plugin, "--dry-run", "--seeds", "1")
        argv[argv.index("--cfg") + 1:argv.index("--cfg") + 2] = configs
        protocol.main(argv)
        said = capsys.readouterr().out
        assert f"LinearOnly has no config of its own and runs with CoOp's, {lent}\n" in said
        assert said.count("to do") == 3


def test_variants_are_rows_of_their_own(call, tmp_path, capsys):
    """From the run folders to tables, status, report and figures; the plain method stays a row."""
    more = ("--trainer", "ZeroshotCLIP", "CoOp", "--seeds", "1", "--variant", "wide", "TRAINER.COOP.N_CTX", "5",
            "--variant", "CoOp:lr01", "OPTIM.LR=0.01")
    table = call("compare", *more, options=("OPTIM.WARMUP_EPOCH", "0"))
    names = ["ZeroshotCLIP", "CoOp", "CoOp (wide)", "CoOp (lr01)"]
    assert [row[0] for row in cells(table)[2:6]] == names
    assert "--variant wide changes nothing for ZeroshotCLIP" in capsys.readouterr().out
    configs = {run["config"]["OUTPUT_DIR"].split("/")[-2]: run["config"] for run in map(
        stored, (path.parent for path in sorted((tmp_path / "out").glob("base2new/train_base/*/*/CoOp/*/*/*.json"))))}
    assert {name: (run["TRAINER"]["COOP"]["N_CTX"], run["OPTIM"]["LR"]) for name, run in configs.items()} == {
        "tiny": (3, 0.05), "tiny+wide": (5, 0.05), "tiny+lr01": (3, 0.01)}
    assert all(run["OPTIM"]["MAX_EPOCH"] == 1 for run in configs.values())
    assert "8 runs: 8 done" in call("compare", *more, "--status", options=("OPTIM.WARMUP_EPOCH", "0"))
    assert [row[0] for row in report.main([str(tmp_path / "out"), "--compare"])[0].rows] == [
        "CoOp", "CoOp (lr01)", "CoOp (wide)", "ZeroshotCLIP"]
    svg = Path(plot.main([str(tmp_path / "out"), "--only", "base2new"])[1]).read_text()
    assert all(name in svg for name in names)


def test_a_variant_of_one_method_in_its_own_protocol(call):
    table = call("fewshot", "--trainer", "CoOp", "--seeds", "1", "--variant", "short", "TRAINER.COOP.N_CTX", "1",
                 shots=("--shots", "1"))
    assert [row[0] for row in cells(table)[2:]] == ["CoOp", "CoOp (short)"]


def test_a_dry_run_draws_nothing_and_needs_no_drawings(tmp_path):
    listed = protocol.main(["dg", "--trainer", "CoOp", "--dataset", "shapes", "--root", str(tmp_path), "--seeds", "1",
                            "--output", str(tmp_path / "out"), "--dry-run"])
    assert "4 runs, 0 done" in listed and not list(tmp_path.iterdir())


def test_no_figure_is_named_where_none_was_drawn(call, capsys):
    """Neither when every run failed, nor when no method has both accuracies."""
    call("compare", "--trainer", "CoOp", "--seeds", "1", options=("TRAINER.COOP.CSC", "True"))
    assert "Figure:" not in capsys.readouterr().out
    assert train.command_line(lambda: call("compare", "--trainer", "CoOp", "--seeds", "1", "--keep-going",
                                           options=("OPTIM.LR", "0.3"))) == 2
    assert "Figure:" not in capsys.readouterr().out


def test_a_wrong_option_is_told_before_any_run(call, tmp_path):
    with pytest.raises(InputError, match="unknown key OPTIM.RATE"):
        call("fewshot", "--trainer", "CoOp", options=("OPTIM.RATE", "1"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("more", "part"), [
    (("--shots", "1", "2"), "one number of --shots"), (("--shots", "few"), "whole numbers"),
    (("--seeds", "-1"), "from 0 on"), (("--jobs", "0"), "--jobs"), (("--shots", "0"), "from 1 on")])
def test_numbers_that_make_no_sense(more, part):
    with pytest.raises(InputError, match=part):
        protocol.main(["base2new", "--trainer", "CoOp", "--dataset", "caltech101", *more])


# ---- runs whose numbers are known from another one ----
def all_files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_zeroshot_run_is_made_once_for_all_seeds_and_shots(call, tmp_path, monkeypatch):
    """The folders of the others are filled from it with the numbers of runs of their own, and are taken over."""
    made, run = [], train.run
    monkeypatch.setattr(train, "run", lambda spec, *more: made.append(spec.output_dir) or run(spec, *more))
    more = ("--trainer", "ZeroshotCLIP", "--seeds", "1", "2")
    table = call("fewshot", *more, shots=("--shots", "1", "2"))
    assert len(made) == 1
    place = tmp_path / "out" / "fewshot" / "caltech101"
    found = {(shots, seed): stored(place / f"shots_{shots}" / "ZeroshotCLIP" / "tiny" / f"seed{seed}")
             for shots in (1, 2) for seed in (1, 2)}
    (tmp_path / "out").rename(tmp_path / "filled")
    for (shots, seed), results in found.items():
        call("fewshot", "--trainer", "ZeroshotCLIP", "--seeds", str(seed), shots=("--shots", str(shots)))
        alone = stored(place / f"shots_{shots}" / "ZeroshotCLIP" / "tiny" / f"seed{seed}")
        assert "same_as" not in alone and alone["seed"] == seed
        for key in alone.keys() - {"seconds", "peak_memory", "features", "config"}:
            assert results[key] == alone[key], key
        assert results["config"] == alone["config"] | {"OUTPUT_DIR": results["config"]["OUTPUT_DIR"]}
        one, other = (all_files(top / "fewshot" / "caltech101" / f"shots_{shots}" / "ZeroshotCLIP" / "tiny" /
                                f"seed{seed}") for top in (tmp_path / "filled", tmp_path / "out"))
        assert one["predictions.csv.gz"] == other["predictions.csv.gz"] and one["config.yaml"] == other["config.yaml"]
    assert found[1, 1].get("same_as") is None and found[2, 2]["same_as"].endswith("shots_1/ZeroshotCLIP/tiny/seed1")
    monkeypatch.setattr(train, "run", never)
    assert call("fewshot", *more, shots=("--shots", "1", "2")) == table


def test_a_run_whose_twin_is_not_at_hand_is_made(words, clips, clip_model):
    """A part of a plan, such as a task of a cluster is given, and a twin that fails."""
    name, *_ = argv = words("base2new", "--trainer", "ZeroshotCLIP", "--seeds", "1", "2")
    args = protocol.parse_arguments(argv)
    runs = Planner(args.root, args.output, [1, 2], args.cfg, args.backbone).plan(name, args.trainer, args.dataset, [2])
    outcome = execution.execute([run for run in runs if run.place.seed == 2], dict(clips))
    assert len(outcome.results) == 2 and not any("same_as" in results for results in outcome.results.values())
    assert [bool(run.same) for run in runs] == [False, False, True, True]
    broken = execution.Outcome(runs, failed={runs[0].folder: "a fault"})
    assert not broken.ready(runs[1]) and broken.ready(runs[2])
    broken.results[runs[2].folder] = {}
    assert broken.ready(runs[3])


def test_base_and_new_halves_of_a_zeroshot_method_are_told_apart(call, monkeypatch):
    made, run = [], train.run
    monkeypatch.setattr(train, "run", lambda spec, *more: made.append(spec.output_dir) or run(spec, *more))
    call("compare", "--trainer", "ZeroshotCLIP", "ZeroshotCLIP2", "--seeds", "1", "2")
    assert len(made) == 4 and all(folder.endswith("seed1") for folder in made)


def test_a_method_that_inherits_from_zeroshot_is_run_for_every_seed():
    class Noisy(train.TRAINER_REGISTRY.get("ZeroshotCLIP")):
        """It may draw numbers: it has not said that it does not."""

    class Trained(train.TRAINER_REGISTRY.get("ZeroshotCLIP")):
        trains, learns_from_images = True, False

    assert plans.reads_no_image(train.TRAINER_REGISTRY.get("ZeroshotCLIP"))
    assert not plans.reads_no_image(Noisy) and not plans.reads_no_image(Trained)
    assert not plans.reads_no_image(train.TRAINER_REGISTRY.get("TipAdapter"))


# ---- what goes wrong ----
def test_a_run_that_is_known_to_fail_leaves_the_others_on_request(call, words, tmp_path, capsys):
    call("base2new", "--trainer", "CoOp", "--seeds", "2", options=("OPTIM.LR", "0.3"))
    capsys.readouterr()
    more = ("--trainer", "CoOp", "--seeds", "1", "2", "3", "--keep-going")
    assert train.command_line(lambda: call("base2new", *more)) == 2
    said = capsys.readouterr()
    rows = cells(said.out[said.out.index("caltech101, base to new"):])
    numbers = {row[0]: row[1:] for row in rows if row[0].startswith(("seed", "mean"))}
    assert numbers["seed 2"] == ["-", "-", "-"] and numbers["mean"] == ["-", "-", "-"]
    assert all(float(value) >= 0 for seed in ("seed 1", "seed 3") for value in numbers[seed])
    error = said.err.splitlines()[-1]
    assert error.startswith("error: 2 of 6 runs failed: ") and "OPTIM.LR is 0.3 there" in error


def test_an_interrupted_protocol_says_what_remains(call, tmp_path, monkeypatch, capsys):
    made, run = [], train.run

    def interrupt(*args):
        if len(made) == 2:
            signal.raise_signal(signal.SIGTERM)
        made.append(1)
        return run(*args)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(train, "run", interrupt)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            call("base2new", "--trainer", "CoOp", "--seeds", "1", "2")
    assert signal.getsignal(signal.SIGTERM) == before
    said = capsys.readouterr().err
    assert "2 of 4 runs are done" in said and "goes on from here" in said
    remaining = re.findall(r"to do: .*/(\w+)/caltech101.*/(seed\d)", said)
    assert remaining == [("train_base", "seed2"), ("test_new", "seed2")]
    assert "-" not in cells(call("base2new", "--trainer", "CoOp", "--seeds", "1", "2"))[2]


def test_runs_on_two_processes(words, call, tmp_path, capsys):
    """One method's process dies in its run; the others' numbers, with loader workers of their own, are those of one
    process."""
    plugin = str(ROOT / "tests" / "plugins" / "bound.py")
    more = ("--trainer", "CoOp", "Dies", "--seeds", "1", "--plugin", plugin)
    workers = ("DATALOADER.NUM_WORKERS", "2")
    assert train.command_line(lambda: call("compare", *more, "--jobs", "2", options=workers)) == 2
    said = capsys.readouterr()
    assert "1 of 3 runs failed" in said.err and "ended with status 7" in said.err
    assert re.search(r"^run \d of 3  CoOp  caltech101  seed 1  base ", said.out, re.M)
    parallel = {part: stored(tmp_path / "out" / "base2new" / part / "caltech101/shots_2/CoOp/tiny/seed1")["metrics"]
                for part in ("train_base", "test_new")}
    (tmp_path / "out").rename(tmp_path / "first")
    call("base2new", "--trainer", "CoOp", "--seeds", "1")
    for part, metrics in parallel.items():
        alone = stored(tmp_path / "out" / "base2new" / part / "caltech101/shots_2/CoOp/tiny/seed1")
        assert alone["metrics"] == metrics


def test_gpus_are_taken_in_turn(monkeypatch):
    monkeypatch.setattr(side_by_side.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(side_by_side.torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert side_by_side._devices() == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert side_by_side._devices() == ["5", "7"]
    with side_by_side._environment({"CUDA_VISIBLE_DEVICES": "7", "NOT_SET": None}):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "7" and "NOT_SET" not in os.environ
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,7"


# ---- scripts ----
@pytest.mark.parametrize(("script", "words", "environment", "expected"), [
    ("metaprompt/xd.sh", ["shapes"], {"TARGETS": "pacs caltech101", "SEEDS": "1"},
     ["MetaPrompt/tiny/shapes/seed1", "MetaPrompt/tiny/pacs/seed1", "MetaPrompt/tiny/caltech101/seed1"]),
    ("reproduce_table.sh", ["dg", "CoOp", "OPTIM.MAX_EPOCH", "1"],
     {"SEEDS": "4", "DATASETS": "pacs shapes", "SHOTS": "5", "CFG": "tiny"},
     [*(f"dg/pacs/shots_5/CoOp/tiny/{domain}/seed4" for domain in DOMAINS),
      *(f"dg/shapes/shots_5/CoOp/tiny/{domain}/seed4" for domain in ("photo", "painting", "cartoon", "sketch"))]),
])
def test_scripts_plan(script, words, environment, expected, tmp_path, drawn_root, scripts):
    done = scripts(script, *words, cwd=tmp_path, DRY_RUN="1", DATA=str(drawn_root), **environment)
    assert done.returncode == 0, done.stderr
    lines = [line.split("to do  ./output/")[1] for line in done.stdout.splitlines() if line.startswith("to do")]
    assert len(lines) == len(expected) and all(line.endswith(end) for line, end in zip(lines, expected)), done.stdout


@pytest.mark.parametrize(("script", "words", "expected"), [
    ("reproduce_table.sh", ["base2new", "USE_CUDA", "False"], {"ZeroshotCLIP": 6, "MetaPrompt": 6}),
    ("reproduce_table.sh", ["base2new", "CoOp", "VERBOSE=False"], {"CoOp": 6}),
    ("compare.sh", ["shapes", "USE_CUDA", "False"], {"ZeroshotCLIP": 6, "CoOp": 6, "CoCoOp": 6, "MetaPrompt": 6}),
    ("compare.sh", ["shapes", "ZeroshotCLIP CoOp", "SEED_IS_NO_KEY"], None),
    ("compare.sh", ["shapes", "CoOp", "optim.lr", "0.1"], None)])
def test_scripts_tell_methods_from_options(script, words, expected, tmp_path, scripts, shapes_root):
    of_table = {"DATASETS": "shapes"} if script == "reproduce_table.sh" else {}
    done = scripts(script, *words, cwd=tmp_path, DRY_RUN="1", CFG="tiny", DATA=str(shapes_root), **of_table)
    if expected is None:
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert words[2] in done.stderr and ("unknown key" in done.stderr) == (words[2] == "optim.lr")
        return
    assert done.returncode == 0, done.stderr
    found = [line for line in done.stdout.splitlines() if line.startswith("to do")]
    assert {method: sum(f"/{method}/" in line for line in found) for method in expected} == expected
    assert len(found) == sum(expected.values())


def test_every_method_folder_has_every_script():
    for folder in (path for path in (ROOT / "scripts").iterdir() if path.is_dir()):
        names = {path.name for path in folder.glob("*.sh")}
        assert {"base2new.sh", "dg.sh", "sdg.sh", "xd.sh", "fewshot.sh"} <= names, folder  # of others they are optional
        for path in folder.glob("*.sh"):
            lines = path.read_text().splitlines()
            found = re.fullmatch(r'exec bash "\$\(dirname "\$\{BASH_SOURCE\[0\]\}"\)/\.\./run\.sh" (\w+) (\w+) "\$@"',
                                 lines[2])
            assert len(lines) == 3 and found[1] == path.stem and path.stem in PROTOCOL_REGISTRY, path
            assert found[2] in train.TRAINER_REGISTRY, path


def test_reproduced_datasets_are_those_of_the_papers():
    text = (ROOT / "scripts" / "reproduce_table.sh").read_text().replace("\\\n", "")
    assert tuple(re.search(r'base2new\) datasets="([^"]+)"', text)[1].split()) == base2new.DATASETS
    known = yaml.safe_load((ROOT / "tools" / "results" / "published.yaml").read_text())["dg"]["MetaPrompt"]["1 shots"]
    assert set(re.search(r'dg\) datasets="([^"]+)"', text)[1].split()) == set(known) - {"source"}


def test_the_plan_of_the_docs(monkeypatch, capsys):
    """The Python example of docs/PROTOCOLS.md lists the runs it says, and hands them to `execute`."""
    text = (ROOT / "docs" / "PROTOCOLS.md").read_text()
    [code] = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "Planner" in block]
    given = []
    monkeypatch.setattr(execution, "execute", lambda runs, clips: given.extend(runs))
    exec(code, {})
    assert len(given) == 6 and {run.place.part for run in given} == {"caltech101", "pacs"}
    assert capsys.readouterr().out.count("--trainer CoOp") == 6


def test_every_script_and_tool_the_docs_name_exists():
    for name in ("PROTOCOLS.md", "RESULTS.md"):
        text = (ROOT / "docs" / name).read_text()
        for path in set(re.findall(r"\b(?:scripts|tools|configs)/[\w/]+\.(?:sh|py|yaml)\b", text)):
            assert (ROOT / path).is_file(), path
