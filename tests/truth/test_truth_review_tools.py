"""More of protocols and their tables: settings that do not act, runs that are missing, plugins of our names."""
import json
from pathlib import Path

import drawn
import pytest

import train
from tools import protocol

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def one_clip(monkeypatch, clip_model):
    monkeypatch.setattr("training.towers.load_clip", lambda name: clip_model)


@pytest.fixture
def words(drawn_root, clip_file, tiny_config, tmp_path):
    """(*words, trainer=, dataset=, seeds=) -> the words of a comparison on drawn data."""
    return lambda *more, trainer="CoOp", dataset="caltech101", seeds=("1",), name="compare": [str(word) for word in (
        name, "--trainer", trainer, "--dataset", dataset, "--root", drawn_root, "--output", tmp_path / "out",
        "--backbone", clip_file, "--seeds", *seeds, "--shots", "2", "--cfg", tiny_config, *more)]


def row(table, name):
    return next(line.split() for line in table.splitlines() if line.startswith(name))


# ---- settings of a method that another one keeps from acting ----
@pytest.mark.parametrize("method", ["CoOp", "CoCoOp", "KgCoOp"])
def test_a_number_of_vectors_beside_words_to_start_from(method, made):
    key = f"TRAINER.{method.upper()}"
    results, said = made(method, f"{key}.CTX_INIT", "a photo of a", f"{key}.N_CTX", 2)
    assert f"without effect in this run: {key}.N_CTX (the 4 tokens of CTX_INIT are the context)" in said
    assert results["without_effect"] == [f"{key}.N_CTX"]


@pytest.mark.parametrize("more", [("TRAINER.COOP.CTX_INIT", "a photo of a", "TRAINER.COOP.N_CTX", 4),
                                  ("TRAINER.COOP.CTX_INIT", "a photo of a", "TRAINER.COOP.N_CTX", 16),
                                  ("TRAINER.COOP.N_CTX", 2)])
def test_a_number_of_vectors_that_is_true_or_the_default_is_not_named(more, made):
    results, said = made("CoOp", "--no-train", *more)
    assert "without effect" not in said


def test_an_evaluation_says_nothing_of_a_schedule(made, tmp_path):
    """What is odd of a schedule is told where it acts: in the training, once."""
    odd, line = ("OPTIM.WARMUP_EPOCH", 2), "is warm-up (OPTIM.WARMUP_EPOCH 2)"
    _, said = made("CoOp", *odd)
    assert said.count(line) == 1
    _, said = made("CoOp", "--eval-only", "--model-dir", tmp_path / "out", *odd, out="evaluated")
    assert line not in said


# ---- variants that are tested on something else ----
@pytest.mark.parametrize(("option", "value"), [("DATASET.CLASSNAMES", "{names}"), ("DATASET.TARGET_PART", "test")])
def test_a_variant_that_changes_what_is_tested(option, value, words, protocol_refused, tmp_path):
    (tmp_path / "names.txt").write_text("dog = hound\n")
    line = protocol_refused(*words("--variant", "v", option, value.format(names=tmp_path / "names.txt")))
    assert f"--variant v: {option} changes what is tested" in line
    assert not (tmp_path / "out").exists()


# ---- runs that are missing ----
def test_seconds_and_figure_of_a_comparison_that_lacks_a_seed(words, tmp_path):
    """A seed that was not made takes no share in the seconds of the others, and no figure shows the mean of the rest.
    """
    protocol.main(words(seeds=("1", "2"), name="compare"))
    out = tmp_path / "out" / "base2new"
    for path in out.rglob("seed2/results.json"):
        results = json.loads(path.read_text())
        path.write_text(json.dumps(results | {"seconds": 30.0}))
    for path in out.rglob("seed1/results.json"):
        if "train_base" in str(path):
            path.unlink()
    for path in out.glob("*.*"):
        path.unlink()
    table = protocol.main(words("--table", seeds=("1", "2")))
    assert row(table, "CoOp")[1] == "-" and row(table, "CoOp")[-2:] == ["-", "60"]
    assert not list(out.glob("*.png"))


def test_a_plan_of_which_nothing_is_timed(words, tmp_path):
    table = protocol.main(words(seeds=("1",)))
    assert row(table, "CoOp")[-1] != "-"
    for path in (tmp_path / "out").rglob("train_base/**/results.json"):
        path.unlink()
    assert row(protocol.main(words("--table")), "CoOp")[-1] == "-"


def test_the_table_of_what_is_done_says_why_a_half_of_one_class_has_no_number(clip_file, tiny_config, tmp_path):
    for name in ("apple", "banana", "cherry"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for number in range(6):
            drawn.draw(tmp_path / "own" / name / f"{number}.png", name)
    words = [str(word) for word in (
        "base2new", "--trainer", "ZeroshotCLIP", "--dataset", "image_folder", "--root", tmp_path / "own", "--cfg",
        tiny_config, "--output", tmp_path / "out", "--backbone", clip_file, "--shots", 2, "--seeds", 1)]
    table = protocol.main(words)
    assert "- an accuracy among one class ('cherry') says nothing" in table
    assert protocol.main([*words, "--table"]) == table


# ---- who a config is for ----
def test_the_advice_does_not_repeat_the_pair_that_is_refused(words, protocol_refused, tmp_path):
    (tmp_path / "meta.yaml").write_text("TRAINER: {METAPROMPT: {LAYERS: 4}}\n")
    pairs = words("MetaPrompt", "--cfg", f"CoOp={tmp_path}/meta.yaml", f"MetaPrompt={tmp_path}/meta.yaml")
    pairs.remove("MetaPrompt")
    pairs.insert(pairs.index("CoOp") + 1, "MetaPrompt")
    line = protocol_refused(*pairs)
    assert line.endswith(f"--cfg CoOp=FILE-OR-NAME MetaPrompt={tmp_path}/meta.yaml")


REPLACED = '''
from dassl.engine import TRAINER_REGISTRY, TrainerX


@TRAINER_REGISTRY.register()
class KgCoOp(TrainerX):
    """As the public file: its settings are those of TRAINER.COOP."""
    def build_model(self):
        raise ValueError(f"{self.cfg.TRAINER.COOP.N_CTX} vectors")
'''


def test_a_plugin_of_one_of_our_names_may_read_the_settings_of_another_method(arguments, tmp_path):
    (tmp_path / "public.py").write_text(REPLACED)
    (tmp_path / "kg.yaml").write_text("TRAINER: {COOP: {N_CTX: 4}}\nVERBOSE: False\n")
    words = arguments("KgCoOp", tmp_path / "out", "--plugin", tmp_path / "public.py", config=tmp_path / "kg.yaml")
    with pytest.raises(ValueError, match="4 vectors"):
        train.main(words)


def test_a_folder_of_a_time_without_a_setting_says_how_it_is_taken_over(made, refused, tmp_path):
    made("ZeroshotCLIP")
    path = tmp_path / "out" / "results.json"
    results = json.loads(path.read_text())
    del results["config"]["INPUT"]["EXIF"]
    path.write_text(json.dumps(results))
    assert "give INPUT.EXIF False to take it over" in refused("ZeroshotCLIP", "INPUT.EXIF", "True")
    assert made("ZeroshotCLIP", "INPUT.EXIF", "False")[0]["metrics"] == results["metrics"]
