"""A run as data: RunSpec, its words, and what train.main makes of it."""
import json
import os
import pickle
import shutil
import tracemalloc
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path

import pytest
from drawn import write_split_dataset
from hypothesis import given
from hypothesis import strategies as st

import train
from dassl.config.words import is_key, is_option
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.run_folder import read_results, settings_digest
from dassl.utils import InputError
from protocols.parts.registry import PROTOCOL_REGISTRY
from protocols.parts.stored_run import StoredRun
from runs import build_config
from runs.configs import Configs
from runs.results import model_of
from runs.run_spec import RunSpec
from tools import protocol
from training import towers

WHOLE = RunSpec(
    trainer="CoOp", dataset_config_file="d.yaml", config_file="c.yaml", output_dir="out", root="data",
    backbone="ViT-B/16", seed=3, source_domains=("a", "b"), target_domains=("c",), transforms=("normalize",),
    head="mlp", resume="before", eval_only=True, model_dir="trained", load_epoch=2, no_train=True, skip_bad_images=True,
    plugins=("p.py", "q"), options=("OPTIM.LR", "0.1", "DATASET.NUM_SHOTS", "4"), protocol="xd", trained_on="t.yaml",
    store_dir="features")


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
                              "resume", "model_dir", "protocol", "store_dir"), ONE),
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
    ("optim.lr", True), ("trainer.coop.n_ctx", True), ("trainer.mine.x", True), ("trainer.name", True),
    ("trainer.yaml", False), ("Trainer.v2", False), ("trainer.v2.1", False), ("trainer.coop.yaml", False),
    ("configs/optim.lr", False), ("optim.lr.yml", False), ("optim", False), ("seed", False), ("optim.no_such", False),
    ("my.yaml", False), ("CoOp", False), ("model.backbone", False), ("", False), ("SEED=1", False)])
def test_which_words_are_config_keys(word, key):
    assert is_key(word) == key
    assert is_option(f"{word}=1") == (key or word == "SEED=1") and is_option(word) == (key or word == "SEED=1")


def test_a_file_that_is_there_is_no_key_in_small_letters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("trainer.coop.new", "optim.lr"):
        assert is_key(name)
        (tmp_path / name).write_text("")
        assert not is_key(name)


def test_a_dataset_file_may_be_called_as_a_key_in_small_letters(drawn_root, tiny_config, clip_file, tmp_path,
                                                                monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trainer.yaml").write_text("DATASET: {NAME: Caltech101}\n")
    protocol.main(["base2new", "--trainer", "CoOp", "--dataset", "trainer.yaml", "--seeds", "1", "--cfg", tiny_config,
                   "--root", str(drawn_root), "--output", "out", "--backbone", clip_file, "--dry-run"])


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


@pytest.mark.parametrize("changed", [None, "TRAINER: {COCOOP: {N_CTX: 2}}"], ids=["deleted", "edited"])
def test_a_run_reads_no_config_file_again_that_its_plan_has_read(changed, arguments, clips, tmp_path, tiny_config,
                                                                 capsys, monkeypatch):
    """Also what is said of the file is of the one that the run uses."""
    own = tmp_path / "own.yaml"
    own.write_text(Path(tiny_config).read_text().partition("TRAINER:")[0] + "TRAINER: {COOP: {N_CTX: 3}}\n")

    monkeypatch.setattr(TRAINER_REGISTRY, "_objects", dict(TRAINER_REGISTRY._objects))

    @TRAINER_REGISTRY.register()
    class Unlisted(TRAINER_REGISTRY.get("ZeroshotCLIP")):
        """A method without a folder of configs."""

    words = arguments("Unlisted", tmp_path / "out", "--no-train", config=own)
    spec, configs = train.parse_arguments(words), Configs()
    configs.of(spec)
    own.unlink() if changed is None else own.write_text(changed)
    train.main(spec, clips=clips, configs=configs)
    assert f"Unlisted has no config of its own and runs with CoOp's, {own}" in capsys.readouterr().out


def test_the_method_that_a_config_file_names_is_read_once(arguments, clips, tmp_path, tiny_config):
    own = tmp_path / "own.yaml"
    own.write_text(Path(tiny_config).read_text().replace("TRAINER:", "TRAINER:\n  NAME: CoOp"))
    spec = train.parse_arguments(arguments("", tmp_path / "out", "--no-train", config=own))
    spec = replace(spec, trainer="", seed=-1)
    configs = Configs()  # which keeps no config whose seed is to be drawn, but its files
    configs.of(spec)
    own.unlink()
    assert train.main(spec, clips=clips, configs=configs) == {}


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
           "target_domains": ["sketch"], "name": "PACS", "shots": base["config"]["DATASET"]["NUM_SHOTS"]}
    assert base["run"] == who | {"part": "base", "eval_only": False, "model": None}
    assert json.loads((folder / "results.json").read_text())["run"] == base["run"]
    words = arguments("CoOp", tmp_path / "new", *domains, "--eval-only", "--model-dir", folder,
                      "DATASET.SUBSAMPLE_CLASSES", "new", dataset="pacs")
    expected = who | {"part": "new", "eval_only": True, "model": {
        "dataset": "pacs", "name": "PACS", "part": "base", "source_domains": who["source_domains"],
        "shots": who["shots"], "seed": base["seed"], "settings": settings_digest(base["config"])}}
    assert train.main(words, clips=clips)["run"] == expected
    stored = {key: value for key, value in base.items() if key != "run"}  # of a former version
    (folder / "results.json").write_text(json.dumps(stored))
    assert read_results(str(folder)) == stored
    shutil.rmtree(tmp_path / "new")
    assert train.main(words, clips=clips)["run"] == expected  # as the config of that run says


def without_identity(folder, how):
    """Make a training's folder one that does not say which run it is: interrupted, or of a former version."""
    path = Path(folder) / "results.json"
    if how == "interrupted":
        path.unlink()
    else:
        path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "run"}))


@pytest.mark.parametrize("how", ["interrupted", "former version"])
def test_an_evaluation_knows_its_training_by_its_dataset(how, tmp_path, arguments, clips):
    """The name of OxfordPets' config file is not its name in small letters."""
    write_split_dataset(tmp_path, "oxford_pets")
    given = {"dataset": "oxford_pets", "root": tmp_path}
    train.main(arguments("CoOp", tmp_path / "base", "OPTIM.MAX_EPOCH", "1", "DATASET.SUBSAMPLE_CLASSES", "base",
                         **given), clips=clips)
    without_identity(tmp_path / "base", how)
    told = train.main(arguments("CoOp", tmp_path / "new", "--eval-only", "--model-dir", tmp_path / "base",
                                "DATASET.SUBSAMPLE_CLASSES", "new", **given), clips=clips)
    assert (told["run"]["dataset"], told["run"]["name"]) == ("oxford_pets", "OxfordPets")
    assert (told["run"]["model"]["dataset"], told["run"]["model"]["name"]) == ("oxford_pets", "OxfordPets")
    assert protocol_of(told) == "base2new"


def protocol_of(results):
    """The protocol in whose tables a run is found."""
    found = PROTOCOL_REGISTRY.get("base2new")().recognise(StoredRun.of(results))
    return found and found.protocol


@pytest.fixture
def stored(tmp_path):
    """(DATASET.NAME, DATASET.ROOT) -> what an evaluation of one's own "mine", an ImageFolder at `here`, says of the
    dataset of such a training, which is known by its config alone."""
    def stored(name, root):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "config.yaml").write_text(f"DATASET: {{NAME: {name}, ROOT: {root}}}\n")
        cfg = train.default_config()
        cfg.DATASET.NAME, cfg.DATASET.ROOT = "ImageFolder", str(tmp_path / "here")
        return [model_of(str(tmp_path / "run"), word, cfg)["dataset"] for word in ("mine", "image_folder")]

    return stored


def test_a_training_that_kept_no_name_of_its_dataset(stored, tmp_path):
    os.symlink(tmp_path / "here", tmp_path / "link")
    for same in ("here", "link", "there/../here"):
        assert stored("ImageFolder", tmp_path / same) == ["mine", "image_folder"]
    assert stored("ImageFolder", tmp_path / "there") == ["image_folder", "imagefolder"]
    assert stored("StanfordCars", tmp_path) == ["stanford_cars"] * 2
    assert stored("OfPlugin", tmp_path) == ["ofplugin"] * 2
    assert stored("''", "''") == [""] * 2
    assert stored("ImageFolder", '"a\\0b"') == ["image_folder", "imagefolder"]  # damaged


def test_a_run_without_a_dataset_file_is_called_as_with_one(tmp_path, arguments, clips):
    write_split_dataset(tmp_path, "oxford_pets")
    words = arguments("ZeroshotCLIP", tmp_path / "out", "DATASET.NAME", "OxfordPets", root=tmp_path)
    spec = replace(train.parse_arguments(words), dataset_config_file="")
    assert train.main(spec, clips=clips)["run"]["dataset"] == "oxford_pets"


@pytest.mark.parametrize("wrong", [[], "x", {"dataset": 3}, {"name": 3}, {"shots": "4"}, {"source_domains": "photo"},
                                   {"model": {"part": []}}], ids=str)
def test_a_damaged_identity_is_refused(tmp_path, arguments, clips, wrong):
    results = train.main(arguments("ZeroshotCLIP", tmp_path / "out"), clips=clips)
    (tmp_path / "out" / "results.json").write_text(json.dumps(results | {"run": wrong}))
    with pytest.raises(InputError, match="run"):
        read_results(str(tmp_path / "out"))


def test_a_run_without_a_method_is_refused(tmp_path):
    with pytest.raises(InputError, match="no method is named"):
        train.main(RunSpec(output_dir=str(tmp_path / "out")))
