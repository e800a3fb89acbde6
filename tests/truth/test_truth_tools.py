"""Protocols, reports, figures and predictions: what contradicts itself between methods, configs, variants and runs."""
import csv
import io
import json
import os
import re
import subprocess
import threading
import unicodedata
from pathlib import Path

import drawn
import pytest

import train
from dassl.utils import InputError
from protocols import Place
from protocols.parts.base_new_figures import base_against_new
from tools import plot, predict, protocol, report
from tools.predict import load_run
from tools.results import run_folders
from written_runs import base2new, share, write_run

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "configs" / "trainers" / "CoOp" / "tiny.yaml"
PUBLIC = str(ROOT / "tests" / "plugins" / "public_zsclip.py")
SHARED = "DATALOADER: {NUM_WORKERS: 0}\nINPUT: {SIZE: [32, 32]}\nVERBOSE: False\n"


@pytest.fixture(autouse=True)
def one_clip(monkeypatch, clip_model):
    monkeypatch.setattr("training.towers.load_clip", lambda name: clip_model)


@pytest.fixture
def files(tmp_path):
    """{name: a config file}: for CoOp, for MetaPrompt, a run's own, one with a name that is kept for variants."""
    written = {"coop": "TRAINER: {COOP: {N_CTX: 3}}\n", "meta": "TRAINER: {METAPROMPT: {LAYERS: 4}}\n",
               "run": "TRAINER: {NAME: CoOp}\n", "a+b": "TRAINER: {COOP: {N_CTX: 3}}\n"}
    for name, text in written.items():
        (tmp_path / f"{name}.yaml").write_text(SHARED + text)
    return {name: str(tmp_path / f"{name}.yaml") for name in written} | {"folder": str(TINY)}


@pytest.fixture
def compared(drawn_root, clip_file, tmp_path):
    """(*words) -> the words of a comparison of CoOp and MetaPrompt on the drawn Caltech101."""
    return lambda *words, methods=("CoOp", "MetaPrompt"): [
        "compare", "--trainer", *methods, "--dataset", "caltech101", "--root", drawn_root, "--output", tmp_path / "out",
        "--backbone", clip_file, "--seeds", "1", "--shots", "2", "--dry-run", *words]


# ---- 14: a config is for the method it belongs to ----
@pytest.mark.parametrize(("words", "line"), [
    (["{coop}"], "for CoOp, not for MetaPrompt, which would run with CoOp's settings"),
    (["{folder}"], "for CoOp, not for MetaPrompt"),
    (["{meta}"], "for MetaPrompt, not for CoOp"),
    (["{run}"], "for CoOp, not for MetaPrompt"),
    (["CoOp={coop}", "MetaPrompt={coop}"], "for CoOp, not for MetaPrompt"),
    (["CoOp={meta}", "MetaPrompt={coop}"], "for MetaPrompt, not for CoOp"),
    (["CoOp={coop}", "CoCoOp={coop}"], "CoCoOp is not among the methods that are run (CoOp, MetaPrompt)"),
    (["CoOp={coop}", "CoOp=tiny"], "--cfg names two configs for CoOp"),
    (["{coop}", "{meta}"], "are both for all methods; give a config for each: --cfg METHOD="),
    (["CoOp="], "'CoOp=' names no config"),
    (["MetaPromt={meta}"], "unknown trainer 'MetaPromt' (did you mean 'MetaPrompt'?)"),
    (["CoOp={a+b}"], "rename the file"),
    (["CoOp=no_such"], "configs/trainers/CoOp/no_such.yaml"),
])
def test_a_config_of_another_method(words, line, files, compared, protocol_refused):
    assert line in protocol_refused(*compared("--cfg", *(word.format(**files) for word in words)))


def test_the_refusal_of_a_bare_file_shows_the_pairs(files, compared, protocol_refused):
    line = protocol_refused(*compared("--cfg", files["coop"]))
    assert f"--cfg CoOp={files['coop']} MetaPrompt=FILE-OR-NAME" in line


@pytest.mark.parametrize("which", ["coop", "folder", "run"])
def test_train_py_refuses_the_config_of_another_method(which, files, refused):
    line = refused("MetaPrompt", config=files[which])
    assert "is for CoOp, not for MetaPrompt" in line and "TRAINER.METAPROMPT" in line


def test_an_evaluation_with_the_config_of_another_method(files, refused, tmp_path):
    assert "is for MetaPrompt, not for CoOp" in refused("CoOp", "--eval-only", "--model-dir", tmp_path,
                                                        config=files["meta"])


# ---- 14: variants ----
@pytest.mark.parametrize(("words", "line"), [
    (["--variant"], "'' is no name"),
    (["--variant", "../up", "OPTIM.LR", "0.01"], "'../up' is no name"),
    (["--variant", "a/b", "OPTIM.LR", "0.01"], "'a/b' is no name"),
    (["--variant", "a+b", "OPTIM.LR", "0.01"], "'a+b' is no name"),
    (["--variant", ":lr01", "OPTIM.LR", "0.01"], "':lr01' is no name"),
    (["--variant", "OPTIM.LR", "0.01"], "give a name, then options in pairs"),
    (["--variant", "lr01"], "give a name, then options in pairs"),
    (["--variant", "lr01", "OPTIM.LR"], "give a name, then options in pairs"),
    (["--variant", "lr", "OPTIM.LR", "0.01", "--variant", "lr", "OPTIM.LR", "0.02"], "two variants of this name"),
    (["--variant", "lr", "OPTIM.LR", "0.01", "--variant", "CoOp:lr", "OPTIM.LR", "0.02"], "two variants of this name"),
    (["--variant", "a", "OPTIM.LR", "0.01", "--variant", "b", "OPTIM.LR", "0.01"], "sets the same options as --var"),
    (["--variant", "a", "OPTIM.LR", "0.01", "--variant", "b", "OPTIM.LR", "1e-2"], "it is the same as --variant a"),
    (["--variant", "a", "OPTIM.LR", "0.01", "OPTIM.LR", "0.02"], "sets an option twice"),
    (["--variant", "a", "OPTIM.RATE", "0.01"], "--variant a: option: unknown key OPTIM.RATE"),
    (["--variant", "a", "OPTIM.LR", "fast"], "OPTIM.LR must be of type float"),
    (["--variant", "CoOp:same", "OPTIM.LR", "0.05"], "for CoOp it is the same as the method without a variant"),
    (["--variant", "same", "OPTIM.LR", "0.05"], "changes nothing for CoOp, MetaPrompt"),
    (["--variant", "CoOp:deep", "TRAINER.METAPROMPT.LAYERS", "2"], "the same as the method without a variant"),
    (["--variant", "quiet", "VERBOSE", "True"], "changes nothing for CoOp, MetaPrompt"),
    (["--variant", "CoCoOp:lr", "OPTIM.LR", "0.01"], "CoCoOp is not among the methods that are run"),
    (["--variant", "s4", "DATASET.NUM_SHOTS", "4"], "DATASET.NUM_SHOTS does not go with a protocol"),
    (["--variant", "s2", "SEED", "2"], "SEED does not go with a protocol"),
    (["--variant", "clip", "MODEL.BACKBONE.NAME", "RN50"], "give --backbone instead"),
    (["DATASET.NUM_SHOTS", "4"], "option: DATASET.NUM_SHOTS does not go with a protocol"),
    (["DATASET.SUBSAMPLE_CLASSES", "all"], "the protocol chooses; train.py makes other runs"),
    (["MODEL.BACKBONE.NAME", "RN50"], "give --backbone instead"),
    (["SEED", "7"], "give --seeds instead"),
])
def test_variants_and_options_that_say_nothing_or_two_things(words, line, compared, protocol_refused, tiny_config):
    assert line in protocol_refused(*compared("--cfg", tiny_config, *words))


def test_a_variant_that_changes_the_training_of_what_is_not_trained(compared, protocol_refused, tiny_config):
    line = protocol_refused(*compared("--cfg", tiny_config, "--variant", "lr01", "OPTIM.LR", "0.01",
                                      methods=("ZeroshotCLIP",)))
    assert "--variant lr01 changes nothing for ZeroshotCLIP" in line


def test_two_datasets_of_one_name(compared, protocol_refused, tmp_path, tiny_config):
    (tmp_path / "caltech101.yaml").write_text("DATASET: {NAME: Caltech101, NUM_SHOTS: 2}\n")
    words = compared("--cfg", tiny_config)
    words.insert(words.index("caltech101") + 1, tmp_path / "caltech101.yaml")
    assert "would have the same run folders" in protocol_refused(*words)


# ---- 15: classes to predict among ----
@pytest.fixture(scope="module")
def predicting(tmp_path_factory, clip_file, clips, drawn_root):
    """(folder of a CoOp run, a picture): the base classes of the drawn Caltech101."""
    folder = tmp_path_factory.mktemp("predicting")
    config = folder / "config.yaml"
    config.write_text(SHARED + "OPTIM: {MAX_EPOCH: 1}\nTRAINER: {COOP: {N_CTX: 2}}\n")
    train.main(["--root", str(drawn_root), "--seed", "1", "--trainer", "CoOp", "--backbone", clip_file,
                "--dataset-config-file", str(ROOT / "configs" / "datasets" / "caltech101.yaml"), "--config-file",
                str(config), "--output-dir", str(folder / "run"), "DATASET.NUM_SHOTS", "2", "DATASET.SUBSAMPLE_CLASSES",
                "base", "DATALOADER.TRAIN_X.BATCH_SIZE", "4"], clips=clips)
    return folder / "run", next((Path(drawn_root) / "caltech-101" / "101_ObjectCategories" / "dog").iterdir())


def with_classes(run, tmp_path, names):
    """A copy of a run that says these are its classes."""
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(run), str(copy)], check=True)
    results = json.loads((copy / "results.json").read_text())
    results["classes"] = {"name": names}
    results.pop("confusion", None)
    (copy / "results.json").write_text(json.dumps(results))
    return copy


@pytest.mark.parametrize(("words", "line"), [
    (["--classes", "dog"], "--classes: among one class ('dog') there is nothing to choose"),
    (["--classes", "dog,cat,dog"], "'dog' is given more than once"),
    (["--classes", "dog,cat", "--classes", "dog"], "'dog' is given more than once"),
    (["--classes", f"café,{unicodedata.normalize('NFD', 'café')}"], "'café' is given more than once"),
    (["--classes", ","], "among no class there is nothing to choose"),
    (["--classes", 'dog,"bow, arrow'], "a name with a comma is written in quotes"),
    (["--classes-file", "{place}/twice.txt"], "twice.txt: 'cat' is given more than once"),
    (["--classes-file", "{place}/nowhere.txt"], "cannot read --classes-file"),
    (["--classes-file", "{place}/latin.txt"], "a text file in UTF-8"),
    (["--classes-file", "{place}/empty.txt"], "among no class"),
    (["--classes-file", "{place}/twice.txt", "--classes", "dog,cat"], "not both"),
])
def test_classes_that_are_no_choice(words, line, predicting, tmp_path, one_line):
    run, picture = predicting
    (tmp_path / "twice.txt").write_text("cat\ndog\n\ncat\n")
    (tmp_path / "latin.txt").write_bytes("café\nthé\n".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n\n")
    words = [word.format(place=tmp_path) for word in words]
    assert line in one_line(lambda: predict.main(["--model-dir", str(run), str(picture), *words]))


def test_a_run_of_one_class_says_so(predicting, tmp_path, one_line):
    run, picture = predicting
    copy = with_classes(run, tmp_path, ["dog"])
    line = one_line(lambda: predict.main(["--model-dir", str(copy), str(picture)]))
    assert "has one class, 'dog'" in line and "at least two --classes" in line


def test_a_class_list_that_repeats_a_name(predicting, tmp_path):
    """Classes of one name have one prompt here: equal probabilities, told apart by their labels."""
    run, picture = predicting
    copy = with_classes(run, tmp_path, ["missile", "dog", "missile"])
    [prediction] = predict.main(["--model-dir", str(copy), str(picture)])
    found = dict(prediction.top)
    assert set(found) == {"missile (label 0)", "dog", "missile (label 2)"}
    assert found["missile (label 0)"] == pytest.approx(found["missile (label 2)"])


@pytest.mark.parametrize("words", [["--classes", 'dog,"bow, arrow"'], ["--classes", "dog", "--classes", '"bow, arrow"'],
                                   ["--classes-file", "{place}/names.txt"]])
def test_a_name_with_a_comma_is_one_name(words, predicting, tmp_path):
    run, picture = predicting
    (tmp_path / "names.txt").write_text("\ufeffdog\nbow, arrow\n", encoding="utf-8")
    words = [word.format(place=tmp_path) for word in words]
    [prediction] = predict.main(["--model-dir", str(run), str(picture), *words])
    assert {name for name, _ in prediction.top} == {"dog", "bow, arrow"}


def test_what_other_threads_print_while_one_predicts(predicting, capsys):
    run, picture = predicting
    stop, printed = threading.Event(), []

    def talk():
        while not stop.is_set() and len(printed) < 100_000:
            printed.append(print("a line"))
            stop.wait(0.0002)

    thread = threading.Thread(target=talk)
    thread.start()
    for classes in (["dog", "cat"], ["dog", "cow"], None):
        load_run(run).predict([str(picture)], classes=classes)
    stop.set()
    thread.join()
    assert capsys.readouterr().out == "a line\n" * len(printed) and printed


# ---- 20: foreign trainers that do not train ----
@pytest.fixture
def foreign(monkeypatch, clip_model, drawn_root, tiny_config, clip_file, tmp_path):
    """(protocol, trainer, *words) -> the words of a protocol with the public zero-shot CLIP and its kin."""
    return lambda name, trainer, *words: [name, "--trainer", trainer, "--plugin", PUBLIC, "--dataset", "caltech101",
                                          "--cfg", tiny_config, "--root", drawn_root, "--output", tmp_path / "out",
                                          "--backbone", clip_file, "--seeds", "1", *words]


@pytest.mark.parametrize("name", ["zeroshot", "base2new", "fewshot"])
@pytest.mark.parametrize("trainer", ["ZeroshotCLIP", "RegisteredZeroshot", "SaysSo"])
def test_a_foreign_zeroshot_clip_is_evaluated_only(name, trainer, foreign, capsys, tmp_path):
    words = [] if name == "zeroshot" else ["--shots", "1"]
    table = protocol.main([str(word) for word in foreign(name, trainer, *words)])
    runs = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").rglob("results.json"))]
    assert len(runs) == {"zeroshot": 1, "base2new": 2, "fewshot": 1}[name]
    for results in runs:
        assert f"{results['metrics']['test']['accuracy']:.2f}" in table
    if name != "zeroshot":
        assert f"{trainer} has no training step: it is evaluated only" in capsys.readouterr().out


def test_a_foreign_trainer_that_may_learn_is_told_what_to_say(foreign, protocol_refused):
    line = protocol_refused(*foreign("zeroshot", "InDoubt"))
    assert "InDoubt has a training step" in line and "say `trains = False` in its class" in line


def test_a_foreign_trainer_with_an_optimizer_and_no_step(foreign, protocol_refused):
    line = protocol_refused(*foreign("fewshot", "StepLess", "--shots", "1"))
    assert "StepLess registers an optimizer for head but has no training step" in line


# ---- 21: dry runs ----
def test_a_dry_run_without_data(compared, protocol_refused, tiny_config, tmp_path, capsys):
    words = compared("--cfg", tiny_config)
    words[words.index("--root") + 1] = tmp_path / "no data"
    assert "4 of 4 runs would be refused" in protocol_refused(*words)


def test_a_dry_run_without_a_backbone(compared, protocol_refused, tiny_config, tmp_path):
    words = compared("--cfg", tiny_config)
    words[words.index("--backbone") + 1] = "ViT-B/61"
    assert "4 of 4 runs would be refused" in protocol_refused(*words)


@pytest.mark.parametrize("fault", ["a part that is empty", "an image that is not there", "no split"])
def test_a_dry_run_looks_at_the_lists(fault, compared, protocol_refused, tiny_config, tmp_path):
    drawn.write_caltech(tmp_path / "data")
    path = tmp_path / "data" / "caltech-101" / "split_zhou_Caltech101.json"
    split = json.loads(path.read_text())
    if fault == "a part that is empty":
        split["test"] = []
    elif fault == "an image that is not there":
        split["train"][0][0] = "dog/nowhere.jpg"
    else:
        split = {"train": 7}
    path.write_text(json.dumps(split))
    words = compared("--cfg", tiny_config)
    words[words.index("--root") + 1] = tmp_path / "data"
    before = sorted((tmp_path / "data").rglob("*"))
    assert "4 of 4 runs would be refused" in protocol_refused(*words)
    assert sorted((tmp_path / "data").rglob("*")) == before and not (tmp_path / "out").exists()


# ---- 21: scripts ----
@pytest.mark.parametrize(("variable", "line"), [
    ("SEED=5", "SEED='5' is not read by the scripts; give SEEDS instead"), ("SHOT=4", "give SHOTS"),
    ("JOB=2", "give JOBS"), ("DRYRUN=1", "give DRY_RUN"),
    ("DATASET=pacs", "datasets and methods are words of the command"), ("TRAINER=CoOp", "are words of the command")])
def test_scripts_refuse_variables_that_are_nearly_theirs(variable, line, tmp_path):
    name, _, value = variable.partition("=")
    done = subprocess.run(["bash", str(ROOT / "scripts" / "compare.sh"), "shapes"], capture_output=True, text=True,
                          check=False, cwd=tmp_path, env={**os.environ, name: value})
    assert done.returncode == 2 and line in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_reproduce_table_refuses_them_before_it_makes_a_table(tmp_path):
    done = subprocess.run(["bash", str(ROOT / "scripts" / "reproduce_table.sh"), "dg"], capture_output=True, text=True,
                          check=False, cwd=tmp_path, env={**os.environ, "SEED": "5"})
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "give SEEDS" in done.stderr


# ---- 11: an accuracy among one class ----
def own_pictures(folder, names):
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(6):
            drawn.draw(folder / name / f"{number}.png", name)


@pytest.fixture
def halves(tmp_path, clip_file, tiny_config):
    """(names of classes, *more words) -> the words of a base2new on pictures of one's own."""

    def halves(names, *words):
        own_pictures(tmp_path / "own", names)
        return [str(word) for word in (
            "base2new", "--trainer", "ZeroshotCLIP", "--dataset", "image_folder", "--root", tmp_path / "own", "--cfg",
            tiny_config, "--output", tmp_path / "out", "--backbone", clip_file, "--shots", "2", *words)]

    return halves


def test_base_to_new_of_three_classes_has_no_new_accuracy(halves):
    table = protocol.main(halves(["apple", "banana", "cherry"], "--seeds", "1", "2"))
    rows = {row.split()[0] + row.split()[1]: row.split()[-2:] for row in table.splitlines() if row.startswith("seed")}
    assert rows == {"seed1": ["-", "-"], "seed2": ["-", "-"]}
    assert "- an accuracy among one class ('cherry') says nothing (ZeroshotCLIP, image_folder, new, seeds" in table


def test_the_numbers_of_finished_runs_among_one_class_are_not_reported(tmp_path, capsys):
    for trainer in "AB":
        for part, names in (("train_base", ["cat", "dog"]), ("test_new", ["cow"])):
            folder = write_run(tmp_path, base2new(trainer, part=part), share(100), test=part[0])
            results = json.loads((folder / "results.json").read_text())
            (folder / "results.json").write_text(json.dumps(results | {"classes": {"name": names}}))
    table = report.main([str(tmp_path), "--compare"])[-1]
    assert [[word.text() for word in row[1:]] for row in table.rows] == 2 * [["100.00", "-", "-"]]
    assert "an accuracy among one class ('cow') says nothing (A, dtd, new, seed 1; B, dtd, new, seed 1)" in \
        capsys.readouterr().out
    assert base_against_new(run_folders.find_runs([str(tmp_path)])[0]) is None


# ---- 5: runs that learned from their test images, or were evaluated under other settings ----
@pytest.fixture
def marked(tmp_path):
    """The drawn leave-one-domain-out runs of two methods: one learned from test images, one was evaluated otherwise."""
    more = {("A", "photo"): {"overlap": {"test": 22, "val": 0, "of": 100, "by_path": 22}},
            ("B", "sketch"): {"changed": {"INPUT.INTERPOLATION": ["bicubic", "bilinear"]}},
            ("B", "photo"): {"overlap": {"test": 0, "val": 0, "of": 100, "by_path": 0}, "changed": {}}}
    for trainer, values in (("A", (90, 50)), ("B", (80, 60))):
        for part, value in zip(("photo", "sketch"), values):
            for seed in (1, 2):
                folder = write_run(tmp_path, Place("dg", "pacs", trainer, "c", part, 1, seed), share(value),
                                   train=part[0] + str(seed), test=part)
                results = json.loads((folder / "results.json").read_text())
                (folder / "results.json").write_text(json.dumps(results | more.get((trainer, part), {})))
    return tmp_path


LEARNED = "trained on 22 of its 100 test images (A, pacs, photo, seeds 1, 2)"
OTHERWISE = ("evaluated with INPUT.INTERPOLATION bilinear instead of bicubic of the training "
             "(B, pacs, sketch, seeds 1, 2)")


@pytest.mark.parametrize(("form", "cells", "notes"), [
    ("text", ["90.00 +- 0.00*", "50.00 +- 0.00", "70.00 +- 0.00*", "60.00 +- 0.00!", "80.00 +- 0.00"],
     [f"\n* {LEARNED}\n", f"\n! {OTHERWISE}\n"]),
    ("markdown", [r"90.00 ± 0.00\* ", r"70.00 ± 0.00\* ", "**60.00 ± 0.00!**", "|   80.00 ± 0.00 |"],
     [rf"\* {LEARNED}", f"! {OTHERWISE}"]),
    ("latex", [r"90.00 $\pm$ 0.00$^{*}$", r"60.00 $\pm$ 0.00$^{\dagger}$"],
     [rf"$^{{*}}$ {LEARNED}", r"$^{\dagger}$ evaluated with INPUT.INTERPOLATION"]),
])
def test_numbers_of_runs_that_learned_from_their_test_images_are_marked(form, cells, notes, marked, capsys):
    report.main([str(marked), "--compare", "--format", form])
    said = capsys.readouterr().out
    assert [part for part in (*cells, *notes) if part not in said] == [], said


def test_marks_in_csv_have_columns_of_their_own(marked, capsys):
    report.main([str(marked), "--compare", "--format", "csv"])
    lines = capsys.readouterr().out.splitlines()
    rows = list(csv.DictReader(io.StringIO("\n".join(line for line in lines if line and not line.startswith("#")))))
    assert [(float(row["photo"]), row["photo marks"], row["sketch marks"]) for row in rows] == [
        (90.0, "*", ""), (80.0, "", "!")]
    assert f"# * {LEARNED}" in lines and f"# ! {OTHERWISE}" in lines


def test_comparisons_of_marked_runs_are_marked(marked, capsys):
    report.main([str(marked)])
    table = capsys.readouterr().out.split("does the difference hold?")[1]
    assert re.search(r"[AB] - [AB] +\S+( \+- \S+)?\*! ", table) and f"* {LEARNED}" in table


def test_figures_name_the_methods_that_learned_from_test_images(marked):
    files = plot.main([str(marked), "--only", "dg"])
    svg = Path(next(file for file in files if file.endswith(".svg"))).read_text()
    assert "A*" in svg and "B!" in svg and "* trained on some of its test images" in svg


def test_a_protocol_marks_what_it_has_just_made(halves, tmp_path):
    """A run of several classes, all test images of which it was trained on, whoever found that out."""
    words = halves(["apple", "banana", "cherry", "dates"], "--seeds", "1")
    assert "*" not in protocol.main(words)
    path = next((tmp_path / "out").glob("base2new/train_base/**/results.json"))
    results = json.loads(path.read_text())
    path.write_text(json.dumps(results | {"overlap": {"test": 3, "val": 0, "of": 4, "by_path": 3}}))
    table = protocol.main([*words, "--table"])
    [seed] = [row.split() for row in table.splitlines() if row.startswith("seed 1")]
    assert seed[2].endswith("*") and not seed[3].endswith("*") and seed[4].endswith("*")
    assert "* trained on 3 of its 4 test images (ZeroshotCLIP, image_folder, base, seed 1)" in table


def test_seeds_that_differ_only_in_name_for_a_method_without_images(halves, tmp_path, monkeypatch):
    """The three seeds of zero-shot CLIP are one run: the same numbers, said to be the same."""
    made, run = [], train.run
    monkeypatch.setattr(train, "run", lambda spec, *more: made.append(spec.seed) or run(spec, *more))
    protocol.main(halves(["apple", "banana", "cherry", "dates"]))
    assert made == [1, 1]
    runs = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").rglob("results.json"))]
    assert sorted((results["seed"], "same_as" in results) for results in runs) == sorted(
        2 * [(1, False), (2, True), (3, True)])
    assert len({json.dumps(results["metrics"]) for results in runs}) <= 2


def test_a_test_set_that_depends_on_the_seed_is_tested_for_every_seed(halves, monkeypatch, tmp_path):
    """A dataset may choose its test images by the seed: then the runs are made, though the method reads no image."""
    from datasets.image_folder import ImageFolder

    def chosen(self, cfg, own=ImageFolder.__init__):
        own(self, cfg)
        self.test = self.test[cfg.SEED % 2:]

    monkeypatch.setattr(ImageFolder, "__init__", chosen)
    made, run = [], train.run
    monkeypatch.setattr(train, "run", lambda spec, *more: made.append(spec.seed) or run(spec, *more))
    with pytest.raises(InputError, match="differ in base2new on image_folder, train_base: digest of the test images"):
        protocol.main(halves(["apple", "banana", "cherry", "dates"], "--seeds", "1", "2", "3"))
    assert sorted(made) == [1, 1, 2, 2]  # the third seed has the first one's images


def test_what_was_filled_for_one_config_is_not_taken_over_by_another(halves, capsys):
    words = halves(["apple", "banana", "cherry", "dates"], "--seeds", "1", "2")
    protocol.main(words)
    assert train.command_line(lambda: protocol.main([*words, "INPUT.INTERPOLATION", "nearest"])) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "nothing was run: 4 of 4 runs cannot be made" in error
    assert error.count("INPUT.INTERPOLATION is 'bicubic' there, 'nearest' here") == 1
