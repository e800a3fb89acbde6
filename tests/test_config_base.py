"""`BASE:` of a config file: what is merged, in which order, what is refused, and the configs that ship with it."""
import itertools
import os
from pathlib import Path

import pytest
import yaml

import train
from dassl.config import get_cfg_default, merge_file, methods_of, write_config
from dassl.config import tree as walk
from dassl.config.effect import EFFECTS, RunFacts, without_effect
from dassl.config.reading import MOST_CONFIG_BYTES, MOST_DEEP, MOST_FILES, config_layers
from dassl.engine import build_trainer
from dassl.utils import InputError
from runs.build_config import CONFIGS as CONFIG_FOLDER
from runs.build_config import owner_of_config

CONFIGS = Path(CONFIG_FOLDER)
SHIPPED = sorted([*CONFIGS.glob("inputs/*.yaml"), *CONFIGS.glob("datasets/*.yaml"), *CONFIGS.glob("trainers/*/*.yaml")])


@pytest.fixture
def write(tmp_path):
    """(name, text) -> the path of that config file, as text."""

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


def merged(path):
    cfg = get_cfg_default()
    merge_file(cfg, path, open_trainer=True)
    return cfg


def leaves(tree, prefix=""):
    for name, value in tree.items():
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]


def told(path):
    """What is said of a config that must be refused, one line."""
    with pytest.raises(InputError) as error:
        merged(path)
    line = str(error.value)
    assert "\n" not in line
    return line


def test_a_base_is_merged_first(write):
    write("inputs/base.yaml", "OPTIM: {LR: 0.5, NAME: sgd}\nDATALOADER: {NUM_WORKERS: 3}\n")
    cfg = merged(write("trainers/own.yaml", "OPTIM: {LR: 0.25}\nBASE: ../inputs/base.yaml\n"))
    assert (cfg.OPTIM.LR, cfg.OPTIM.NAME, cfg.DATALOADER.NUM_WORKERS) == (0.25, "sgd", 3)
    assert "BASE" not in cfg


def test_of_several_bases_the_later_wins_and_each_is_merged_once(write):
    write("common.yaml", "OPTIM: {LR: 0.1, MAX_EPOCH: 7, NAME: sgd}\n")
    write("a.yaml", "BASE: common.yaml\nOPTIM: {LR: 0.2}\n")
    write("b.yaml", "BASE: [common.yaml]\nOPTIM: {MAX_EPOCH: 8}\n")
    own = write("own.yaml", "BASE: [a.yaml, b.yaml]\n")
    cfg = merged(own)
    assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.NAME) == (0.2, 8, "sgd")
    assert [Path(name.split(" ")[0]).stem for name, _ in config_layers(own)] == ["common", "a", "b", "own"]


def test_an_absolute_path_and_an_empty_list(write, tmp_path):
    base = write("elsewhere/base.yml", "SEED: 5\n")
    assert merged(write("own.yaml", f"BASE: {base}\n")).SEED == 5
    assert merged(write("none.yaml", "BASE: []\nSEED: 6\n")).SEED == 6


def test_a_base_that_changes_is_seen(write, tiny_config, tmp_path):
    """Also in a process that has read it before, as in a sweep."""
    base = write("base.yaml", "DATALOADER: {TEST: {BATCH_SIZE: 3}}\n")
    own = write("own.yaml", f"BASE: [{tiny_config}, base.yaml]\n")
    words = ["--trainer", "CoOp", "--config-file", own, "--output-dir", str(tmp_path / "out")]
    assert train.build_config(train.parse_arguments(words)).DATALOADER.TEST.BATCH_SIZE == 3
    Path(base).write_text("DATALOADER: {TEST: {BATCH_SIZE: 4}}\n")
    assert train.build_config(train.parse_arguments(words)).DATALOADER.TEST.BATCH_SIZE == 4


def test_a_run_keeps_the_whole_config(write, tmp_path):
    cfg = merged(str(CONFIGS / "trainers" / "CoOp" / "tiny.yaml"))
    stored = write_config(cfg, tmp_path / "run")
    assert "BASE" not in yaml.safe_load(Path(stored).read_text())
    assert merged(str(stored)) == cfg


# ---- what is refused ----
def test_a_base_that_is_not_there(write, tmp_path):
    own = write("own.yaml", "BASE: gone.yaml\n")
    assert told(own) == (f"cannot read the config {tmp_path / 'gone.yaml'} (BASE of {own}): No such file or directory; "
                         "BASE is relative to the file that says it: give the path from there, or write its keys into "
                         "the file")


def test_an_unknown_key_is_told_with_the_chain(write, tmp_path):
    write("deep.yaml", "OPTIM: {LRR: 1}\n")
    write("base.yaml", "BASE: deep.yaml\n")
    own = write("own.yaml", "BASE: base.yaml\n")
    assert told(own) == (f"config {tmp_path / 'deep.yaml'} (BASE of {tmp_path / 'base.yaml'} <- {own}): unknown key "
                         "OPTIM.LRR (did you mean 'OPTIM.LR'?)")


@pytest.mark.parametrize("names", [("own.yaml",), ("a.yaml", "own.yaml"), ("a.yaml", "b.yaml", "a.yaml")])
def test_a_circle(names, write, tmp_path):
    for name, base in itertools.pairwise(["own.yaml", *names]):
        write(name, f"BASE: {base}\n")
    chain = " -> ".join(str(tmp_path / name) for name in ("own.yaml", *names))
    assert told(str(tmp_path / "own.yaml")) == f"config {tmp_path / 'own.yaml'}: its BASE leads in a circle: {chain}"


def test_a_circle_through_a_link(write, tmp_path):
    own = write("own.yaml", "BASE: link.yaml\n")
    os.symlink(own, tmp_path / "link.yaml")
    assert "circle" in told(own)


def test_too_deep(write):
    for number in range(MOST_DEEP):
        write(f"{number}.yaml", f"BASE: {number + 1}.yaml\n")
    own = write(f"{MOST_DEEP}.yaml", "SEED: 1\n")
    assert f"more than {MOST_DEEP} files include one another" in told(str(Path(own).with_name("0.yaml")))
    assert merged(str(Path(own).with_name("1.yaml"))).SEED == 1


def test_too_many(write):
    write("base.yaml", "SEED: 1\n")
    for number in range(3):  # each of these alone is small
        write(f"{number + 1}.yaml", f"BASE: [{', '.join(['base.yaml' if number == 0 else f'{number}.yaml'] * 8)}]\n")
    assert f"includes more than {MOST_FILES} files" in told(write("own.yaml", "BASE: 3.yaml\n"))


@pytest.mark.parametrize("value", ["", "null", "3", "{a: b}", "[a.yaml, 3]", "' '", "[[a.yaml]]", "true",
                                   '"a\\0.yaml"', '"\\ud800.yaml"'])
def test_a_base_that_is_no_name(value, write):
    write("a.yaml", "SEED: 1\n")
    own = write("own.yaml", f"BASE: {value}")
    assert told(own).startswith(f"config {own}: BASE must be the path of a config file or a list of paths, not ")


@pytest.mark.parametrize(("name", "text", "why"), [
    ("base.txt", "SEED: 1", "configs are YAML files"), ("base.yaml", "[1, 2]", "holds no keys"),
    ("base.yaml", "a: [", "is not valid YAML"), ("base.yaml", "#" * (MOST_CONFIG_BYTES + 1), "larger than"),
    ("base.yaml", "SEED: 1\nSEED: 2", "comes twice"),
    ("base.yaml", "!!python/object/apply:os.getcwd []", "is not valid YAML")])
def test_a_base_is_read_as_every_config(name, text, why, write):
    base, own = write(name, text), write("own.yaml", f"BASE: {name}\n")
    with pytest.raises(InputError, match=why) as error:
        merged(own)
    assert f"{base} (BASE of {own})" in str(error.value)


@pytest.mark.parametrize("plant", [os.mkfifo, os.mkdir])
def test_a_base_that_is_no_regular_file(plant, write, tmp_path):
    """A pipe would be waited for without an end."""
    plant(tmp_path / "base.yaml")
    assert f"cannot read the config {tmp_path / 'base.yaml'}" in told(write("own.yaml", "BASE: base.yaml\n"))


def test_base_is_no_option(write):
    for word in ("BASE", "base"):
        with pytest.raises(InputError, match="option: BASE belongs in a config file; --config-file takes one"):
            train.build_config(train.parse_arguments(["--trainer", "CoOp", word, write("a.yaml", "SEED: 1\n")]))


@pytest.mark.parametrize("value", ["a.yaml", "[a.yaml]", "{a: 1}"])
def test_base_in_small_letters(value, write):
    own = write("own.yaml", f"base: {value}\n")
    assert told(own) == f"config {own}: unknown key base (did you mean 'BASE'?)"


@pytest.mark.parametrize(("text", "key"), [("3: 1", "3"), ("OPTIM: {3: 1}", "OPTIM.3"),
                                           ("OPTIM: {3: {LR: 1}}", "OPTIM.3")])
def test_a_key_that_is_no_name(text, key, write):
    own = write("own.yaml", text)
    assert told(own) == f"config {own}: the key {key} is not a name"


def test_the_keys_of_a_tree():
    tree = {"A": {"B": 1, "C": {"D": [2]}, "E": {}}, 3: None}
    assert [*walk.leaves(tree)] == [(("A", "B"), 1), (("A", "C", "D"), [2]), ((3,), None)]
    assert walk.dotted(tree, ("X",)) == {"X.A.B": 1, "X.A.C.D": [2], "X.3": None}


# ---- which method a file is for ----
def test_a_file_is_for_the_methods_of_its_bases_unless_it_says_otherwise(write):
    coop = CONFIGS / "trainers" / "CoOp" / "tiny.yaml"
    assert methods_of(write("own.yaml", f"BASE: {coop}\n")) == {"COOP"}
    assert methods_of(write("kg.yaml", f"BASE: {coop}\nTRAINER: {{KGCOOP: {{W: 4.0}}}}\n")) == {"KGCOOP"}
    assert methods_of(write("named.yaml", f"BASE: {coop}\nTRAINER: {{NAME: CoCoOp}}\n")) == {"COCOOP"}
    assert methods_of(write("configs/trainers/MaPLe/own.yaml", f"BASE: {coop}\n")) == {"MAPLE"}
    assert methods_of(write("input.yaml", f"BASE: {CONFIGS / 'inputs' / 'tiny.yaml'}\n")) == set()
    with pytest.raises(InputError, match="is for CoOp, not for MaPLe"):
        owner_of_config(write("other.yaml", f"BASE: {coop}\n"), "MaPLe")


# ---- the configs that ship ----
def test_lines_of_shipped_configs_are_at_most_120_characters():
    """Nothing else looks at their comments: ruff reads Python."""
    assert not [f"{path}:{number}" for path in SHIPPED
                for number, line in enumerate(path.read_text().splitlines(), start=1) if len(line) > 120]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_merges(path):
    before = train.default_config()
    cfg = before.clone()
    merge_file(cfg, str(path))
    assert cfg != before
    if path.parent.parent.name == "trainers":
        assert methods_of(str(path)) == {path.parent.name.upper()}
        assert cfg.INPUT.TRANSFORMS[-1] == "normalize" and cfg.INPUT.SIZE != (0, 0)


def test_no_input_is_written_out_twice():
    blocks = [(path, yaml.safe_load(path.read_text()).get("INPUT", {})) for path in SHIPPED]
    for (one, keys), (other, others) in itertools.combinations(blocks, 2):
        both = {key for key in keys if keys[key] == others.get(key)}
        assert len(both) < 2 or {one.parent.name, other.parent.name} == {"inputs"}, (one, other, both)


@pytest.fixture(scope="module")
def loaded():
    """{backbone: loaded CLIP}, filled by the first trainer."""
    return {}


@pytest.mark.parametrize("method", sorted(path.name for path in (CONFIGS / "trainers").iterdir()))
def test_no_config_sets_a_key_that_acts_nowhere(method, drawn_root, tmp_path, loaded):
    def config(path):
        return train.build_config(train.parse_arguments([
            "--root", str(drawn_root), "--trainer", method, "--config-file", str(path), "--dataset-config-file",
            str(CONFIGS / "datasets" / "caltech101.yaml"), "--output-dir", str(tmp_path), "DATASET.NUM_SHOTS", "1"]))

    folder = CONFIGS / "trainers" / method
    trainer = build_trainer(config(folder / "tiny.yaml"), clips=loaded)
    for path in folder.glob("*.yaml"):
        facts, known = RunFacts(config(path), trainer), train.default_config()
        said = set(leaves(yaml.safe_load(path.read_text()))) & set(EFFECTS)
        assert "DATALOADER.TEST.BATCH_SIZE" in said
        assert [key for key in said if not EFFECTS[key][1](facts)] == []
        assert without_effect(facts, known, set()) == {}
