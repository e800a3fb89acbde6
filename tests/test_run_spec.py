"""A run as data: RunSpec, its words, and what train.main makes of it."""
import json
import pickle
import shutil
import tracemalloc
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import train
from dassl.config.words import is_key, is_option
from dassl.engine.run_folder import read_results, settings_digest
from dassl.utils import InputError
from runs import build_config
from runs.configs import Configs
from runs.run_spec import RunSpec
from tools import protocol
from training import towers

WHOLE = RunSpec(
    trainer="CoOp", dataset_config_file="d.yaml", config_file="c.yaml", output_dir="out", root="data",
    backbone="ViT-B/16", seed=3, source_domains=("a", "b"), target_domains=("c",), transforms=("normalize",),
    head="mlp", resume="before", eval_only=True, model_dir="trained", load_epoch=2, no_train=True, skip_bad_images=True,
    plugins=("p.py", "q"), options=("OPTIM.LR", "0.1", "DATASET.NUM_SHOTS", "4"), protocol="xd")


def test_every_field_survives_its_words():
    assert all(getattr(WHOLE, field.name) != field.default for field in fields(RunSpec))
    assert train.parse_arguments(WHOLE.argv()) == WHOLE


@pytest.mark.parametrize("field", [field.name for field in fields(RunSpec)])
def test_a_field_that_is_not_given_is_no_word(field):
    without = replace(WHOLE, **{field: RunSpec.__dataclass_fields__[field].default})
    assert train.parse_arguments(without.argv()) == without
    assert len(without.argv()) < len(WHOLE.argv())


WORDS = st.text(max_size=6) | st.sampled_from(["-x", "--root", "-1", "-h", "a=b", "=", "SEED", "A.B", "A.B=c", "", " "])
ONE = WORDS.filter(lambda word: word != "--")
LISTED = WORDS.filter(lambda word: not word.startswith("-") and not is_option(word))
KEYS = st.sampled_from(["SEED", "OPTIM.LR", "TRAINER.COOP.N_CTX", "MODEL.BACKBONE.NAME"])
SPECS = st.builds(
    RunSpec, **dict.fromkeys(("trainer", "dataset_config_file", "config_file", "output_dir", "root", "backbone", "head",
                              "resume", "model_dir", "protocol"), ONE),
    **{name: st.lists(LISTED, max_size=3).map(tuple) for name in ("source_domains", "target_domains", "transforms")},
    seed=st.integers(-3, 2**40), load_epoch=st.none() | st.integers(-2, 99), eval_only=st.booleans(),
    no_train=st.booleans(), skip_bad_images=st.booleans(), plugins=st.lists(ONE, max_size=2).map(tuple),
    options=st.lists(st.tuples(KEYS, WORDS), max_size=3).map(lambda pairs: tuple(chain.from_iterable(pairs))))


@given(SPECS)
def test_any_run_survives_its_words_and_its_way_to_another_process(spec):
    assert train.parse_arguments(spec.argv()) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec and hash(spec) == hash(replace(spec))


@pytest.mark.parametrize("argv", [
    ["OPTIM.LR", "-0.1"], ["OPTIM.LR=-0.1"], ["MODEL.HEAD.NAME", ""], ["MODEL.HEAD.NAME="], ["MODEL.HEAD.NAME=a=b"],
    ["--root=-x"], ["--root", ""], ["--load-epoch", "0", "--eval-only"], ["--", "SEED", "3", "--root", "x"],
    ["--source-domains", "a", "b", "SEED", "1"], ["--seed", "-4"]], ids=" ".join)
def test_words_at_the_edge_say_the_same_once_they_are_written_anew(argv):
    spec = train.parse_arguments(argv)
    assert train.parse_arguments(spec.argv()) == spec
    assert train.parse_arguments([*spec.argv(), "SEED", "5"]).settings() == {**spec.settings(), "SEED": "5"}


@pytest.mark.parametrize("word", ["-x", "--root", "SEED", "OPTIM.LR", "A.B=c"])
def test_a_word_that_would_end_its_list_has_no_place_on_a_command_line(word):
    with pytest.raises(InputError, match="--source-domains cannot be given"):
        RunSpec(source_domains=("a", word)).argv()


@pytest.mark.parametrize(("word", "key"), [
    ("SEED", True), ("USE_CUDA", True), ("OPTIM.LR", True), ("TRAINER.MINE.X", True), ("A.B_2", True),
    ("optim.lr", True), ("trainer.coop.n_ctx", True), ("optim", False), ("seed", False), ("optim.no_such", False),
    ("my.yaml", False), ("CoOp", False), ("model.backbone", False), ("", False), ("SEED=1", False)])
def test_which_words_are_config_keys(word, key):
    assert is_key(word) == key
    assert is_option(f"{word}=1") == (key or word == "SEED=1") and is_option(word) == (key or word == "SEED=1")


# ---- one config for each run ----
@pytest.fixture
def built(monkeypatch):
    """[OUTPUT_DIR of each config that is built]."""
    found, check = [], build_config.check_config

    def checked(cfg):
        found.append(cfg.OUTPUT_DIR)
        check(cfg)

    monkeypatch.setattr(build_config, "check_config", checked)
    return found


@pytest.fixture
def base2new(drawn_root, tiny_config, clip_file, tmp_path, monkeypatch, clip_model):
    """(*words) -> what a protocol of four runs tells."""
    monkeypatch.setattr(towers, "load_clip", lambda name: clip_model)
    words = ["base2new", "--trainer", "CoOp", "--seeds", "1", "2", "--dataset", "caltech101", "--cfg", tiny_config,
             "--root", str(drawn_root), "--output", str(tmp_path / "out"), "--shots", "1", "--backbone", clip_file,
             "OPTIM.MAX_EPOCH", "1"]
    return lambda *more: protocol.main([*words, *more])


def test_a_protocol_builds_each_config_once(base2new, built):
    for words in (("--dry-run",), (), (), ("--table",), ("--status",), ("--dry-run",)):
        base2new(*words)
        assert len(built) == len(set(built)) == 4, words
        built.clear()


def test_configs_are_those_that_are_built(tiny_config, drawn_root, tmp_path):
    argv = ["--trainer", "CoOp", "--config-file", tiny_config, "--root", str(drawn_root), "--seed", "1"]
    spec, configs = train.parse_arguments(argv), Configs()
    first, second = configs.of(spec), configs.of(spec)
    assert first == second == train.build_config(spec) and first is not second
    assert second.is_frozen() and second.OPTIM.is_frozen() and type(second.OPTIM) is type(first.OPTIM)
    assert [*first] == [*second] and repr(first) == repr(second)
    second.defrost()
    second.OPTIM.LR, second.INPUT.PIXEL_MEAN[0] = 9.0, 9.0
    assert configs.of(spec) == first
    assert pickle.loads(pickle.dumps(configs))._kept == {}


def test_a_seed_that_is_drawn_is_drawn_for_each_run(tiny_config):
    spec, configs = train.parse_arguments(["--trainer", "CoOp", "--config-file", tiny_config]), Configs()
    assert len({configs.of(spec).SEED for _ in range(3)}) == 3


def test_many_configs_take_little_memory(tiny_config):
    configs = Configs()
    specs = [RunSpec(trainer="CoOp", config_file=tiny_config, seed=seed, output_dir=f"output/seed{seed}")
             for seed in range(300)]
    for spec in specs[:100]:
        configs.of(spec)
    tracemalloc.start()
    for spec in specs[100:]:
        configs.of(spec)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 200 * 2000


def test_the_options_of_a_run():
    assert RunSpec(options=("SEED", "1", "SEED", "2")).settings() == {"SEED": "2"}
    assert WHOLE.with_options("SEED", "5").options[-2:] == ("SEED", "5")
    assert WHOLE.identity() == {"dataset": "d", "config": "c"}


# ---- runs ----
def test_a_run_spec_runs_as_its_words_do(tmp_path, arguments, clips):
    spec = train.parse_arguments(arguments("CoOp", tmp_path / "one", "OPTIM.MAX_EPOCH", "1"))
    one = train.main(spec, clips=clips)
    other = train.main(replace(spec, output_dir=str(tmp_path / "other")).argv(), clips=clips)
    told = ("seconds", "peak_memory", "config")
    assert {key: one[key] for key in one if key not in told} == {key: other[key] for key in other if key not in told}
    assert one["config"] == other["config"] | {"OUTPUT_DIR": str(tmp_path / "one")}
    assert train.main(spec) == one


def test_results_say_which_run_it_is_whatever_its_folder(tmp_path, arguments, clips, tiny_config):
    folder, domains = tmp_path / "anywhere", ("--source-domains", "photo", "cartoon", "--target-domains", "sketch")
    base = train.main(arguments("CoOp", folder, *domains, "OPTIM.MAX_EPOCH", "1", "DATASET.SUBSAMPLE_CLASSES", "base",
                                dataset="pacs"), clips=clips)
    who = {"dataset": "pacs", "config": Path(tiny_config).stem, "source_domains": ["photo", "cartoon"],
           "target_domains": ["sketch"], "shots": base["config"]["DATASET"]["NUM_SHOTS"]}
    assert base["run"] == who | {"part": "base", "eval_only": False, "model": None}
    assert json.loads((folder / "results.json").read_text())["run"] == base["run"]
    words = arguments("CoOp", tmp_path / "new", *domains, "--eval-only", "--model-dir", folder,
                      "DATASET.SUBSAMPLE_CLASSES", "new", dataset="pacs")
    expected = who | {"part": "new", "eval_only": True, "model": {
        "dataset": "pacs", "part": "base", "source_domains": who["source_domains"], "shots": who["shots"],
        "seed": base["seed"], "settings": settings_digest(base["config"])}}
    assert train.main(words, clips=clips)["run"] == expected
    stored = {key: value for key, value in base.items() if key != "run"}  # of a former version
    (folder / "results.json").write_text(json.dumps(stored))
    assert read_results(str(folder)) == stored
    shutil.rmtree(tmp_path / "new")
    assert train.main(words, clips=clips)["run"] == expected  # as the config of that run says


@pytest.mark.parametrize("wrong", [[], "x", {"dataset": 3}, {"shots": "4"}, {"source_domains": "photo"},
                                   {"model": {"part": []}}], ids=str)
def test_a_damaged_identity_is_refused(tmp_path, arguments, clips, wrong):
    results = train.main(arguments("ZeroshotCLIP", tmp_path / "out"), clips=clips)
    (tmp_path / "out" / "results.json").write_text(json.dumps(results | {"run": wrong}))
    with pytest.raises(InputError, match="run"):
        read_results(str(tmp_path / "out"))


def test_a_run_without_a_method_is_refused(tmp_path):
    with pytest.raises(InputError, match="no method is named"):
        train.main(RunSpec(output_dir=str(tmp_path / "out")))
