"""PER_DATASET of a method's config file: which settings a run takes from it, what wins over them, what is refused."""
import functools
import json
from pathlib import Path

import drawn
import pytest
import yaml

import train
from dassl.config import methods_of
from dassl.config.per_dataset import entries_of
from runs.build_config import CONFIGS
from runs.configs import Configs
from tools import protocol

ENTRIES = """
PER_DATASET:
  Caltech101: {OPTIM: {MAX_EPOCH: 1, LR: 0.25}, TRAINER: {COOP: {CTX_INIT: "one photo"}}}
  PACS: {DATALOADER: {TEST: {BATCH_SIZE: 7}}, TRAINER: {COOP: {CTX_INIT: "a big photo"}}}
"""


@pytest.fixture
def write(tmp_path, tiny_config):
    """(text, name) -> the path of a config file that holds it, behind what `tiny_config` says."""

    def write(text, name="own.yaml", base=tiny_config):
        path = tmp_path / name
        path.write_text(f"BASE: {base}\n{text}")
        return str(path)

    return write


@pytest.fixture
def built(arguments, tmp_path):
    """(config file, *words) -> the BuiltConfig of a run of CoOp."""
    return lambda config, *words, dataset="caltech101": train.build(train.parse_arguments(
        arguments("CoOp", tmp_path / "run", *words, dataset=dataset, config=config)))


def test_a_run_takes_the_settings_of_its_dataset_and_says_so(write, arguments, tmp_path, capsys):
    own = write(ENTRIES)
    words = arguments("CoOp", tmp_path / "run", "OPTIM.LR", "0.125", "DATASET.NUM_SHOTS", "2", config=own)
    train.main(words)
    line = ("Note: for Caltech101, as PER_DATASET of "
            f"{own} says: OPTIM.MAX_EPOCH 1, OPTIM.LR 0.25 (overridden), TRAINER.COOP.CTX_INIT one photo")
    assert line in capsys.readouterr().out
    assert line in (tmp_path / "run" / "log.txt").read_text()
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert "PER_DATASET" not in kept
    assert (kept["OPTIM"]["MAX_EPOCH"], kept["OPTIM"]["LR"]) == (1, 0.125)
    assert kept["TRAINER"] == {"NAME": "CoOp", "COOP": {**kept["TRAINER"]["COOP"], "CTX_INIT": "one photo"}}
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["config"]["TRAINER"] == kept["TRAINER"] and "PER_DATASET" not in results["config"]
    assert (tmp_path / "run" / "prompt_learner" / "model.pth.tar-1").is_file()
    # The same command finds it finished, and an evaluation finds its settings.
    assert train.main(words)["metrics"] == results["metrics"] and "Finished before" in capsys.readouterr().out
    again = train.main(arguments("CoOp", tmp_path / "again", "--eval-only", "--model-dir", tmp_path / "run",
                                 "DATASET.NUM_SHOTS", "2", config=own))
    assert again["metrics"]["test"] == results["metrics"]["test"]


def test_each_dataset_takes_its_own(write, built):
    own = write(ENTRIES)
    first, second = built(own), built(own, dataset="pacs")
    assert (first.cfg.OPTIM.MAX_EPOCH, first.cfg.TRAINER.COOP.CTX_INIT) == (1, "one photo")
    assert (second.cfg.OPTIM.MAX_EPOCH, second.cfg.TRAINER.COOP.CTX_INIT) == (2, "a big photo")
    assert second.cfg.DATALOADER.TEST.BATCH_SIZE == 7 != first.cfg.DATALOADER.TEST.BATCH_SIZE
    other = built(own, "DATASET.NAME", "PACS")
    assert other.cfg.OPTIM == second.cfg.OPTIM and other.taken.dataset == "PACS"
    assert built(own, "DATASET.NAME", "Food101").taken is None
    assert built(write("PER_DATASET: {}\n", "none.yaml")).taken is None


def test_an_entry_wins_over_the_files_and_its_own_base(write, built):
    base = write("OPTIM: {LR: 0.5}\nPER_DATASET: {Caltech101: {OPTIM: {LR: 0.25, MOMENTUM: 0.5}}}\n", "base.yaml")
    cfg = built(write("OPTIM: {LR: 0.75, MOMENTUM: 0.25}\n", "plain.yaml", base)).cfg
    assert (cfg.OPTIM.LR, cfg.OPTIM.MOMENTUM) == (0.25, 0.5)
    cfg = built(write("OPTIM: {LR: 0.75}\nPER_DATASET: {Caltech101: {OPTIM: {LR: 1.5}}}\n", "own.yaml", base)).cfg
    assert (cfg.OPTIM.LR, cfg.OPTIM.MOMENTUM) == (1.5, 0.5)


def test_flags_and_options_win_over_an_entry(write, built):
    own = write("PER_DATASET: {Caltech101: {INPUT: {TRANSFORMS: [normalize], SIZE: [64, 64]}, SEED: 5}}\n")
    found = built(own, "--transforms", "random_flip", "normalize")
    assert found.cfg.INPUT.TRANSFORMS == ("random_flip", "normalize") and found.cfg.SEED == 1  # the fixture's --seed
    assert found.cfg.INPUT.SIZE == (64, 64)  # not the size of the backbone
    assert [row[0] for row in found.taken.settings if row[2]] == ["INPUT.TRANSFORMS"]


def test_a_file_that_changes_is_read_again(write, built):
    assert built(write("PER_DATASET: {Caltech101: {OPTIM: {LR: 0.5}}}\n")).cfg.OPTIM.LR == 0.5
    assert built(write("PER_DATASET: {Caltech101: {OPTIM: {LR: 0.75}}}\n")).cfg.OPTIM.LR == 0.75


def test_configs_that_are_kept_tell_it_too(write, arguments, tmp_path):
    spec = train.parse_arguments(arguments("CoOp", tmp_path / "run", config=write(ENTRIES)))
    configs = Configs()
    first, second = configs.built(spec), configs.built(spec)
    assert first == second and first.cfg is not second.cfg and second.taken.settings[0] == ("OPTIM.MAX_EPOCH", 1, False)


def test_protocols_evaluate_another_dataset_with_the_settings_of_the_training(write, drawn_root, clip_file, tmp_path,
                                                                              monkeypatch, clip_model, capsys):
    """N_CTX is a shape: with that of the tested dataset the prompts would not fit."""
    monkeypatch.setattr("training.towers.load_clip", lambda name: clip_model)
    own = write("PER_DATASET:\n  Caltech101: {TRAINER: {COOP: {CTX_INIT: '', N_CTX: 3}}, OPTIM: {MAX_EPOCH: 1}}\n"
                "  PACS: {TRAINER: {COOP: {CTX_INIT: '', N_CTX: 5}}}\n")
    words = ["xd", "--trainer", "CoOp", "--dataset", "caltech101", "--targets", "pacs", "--shots", "2", "--seeds", "1",
             "--cfg", own, "--root", str(drawn_root), "--output", str(tmp_path / "out"), "--backbone", clip_file]
    protocol.main([*words, "--dry-run"])
    assert "refused" not in capsys.readouterr().out
    protocol.main(words)
    folder = tmp_path / "out" / "xd" / "caltech101" / "shots_2" / "CoOp" / "own"
    for name in ("caltech101", "pacs"):
        kept = yaml.safe_load((folder / name / "seed1" / "config.yaml").read_text())
        assert (kept["TRAINER"]["COOP"]["N_CTX"], kept["OPTIM"]["MAX_EPOCH"]) == (3, 1)
    capsys.readouterr()
    protocol.main([*words, "--dry-run"])
    assert "2 runs, 2 done" in capsys.readouterr().out
    # By hand, the folder of the training says which dataset it was.
    done = train.main(["--root", str(drawn_root), "--seed", "1", "--trainer", "CoOp", "--config-file", own,
                       "--dataset-config-file", str(Path(CONFIGS) / "datasets" / "pacs.yaml"), "--eval-only",
                       "--model-dir", str(folder / "caltech101" / "seed1"), "--backbone", clip_file, "--output-dir",
                       str(tmp_path / "hand"), "--source-domains", "photo", "--target-domains", "photo"])
    assert done["config"]["TRAINER"]["COOP"]["N_CTX"] == 3


def test_a_plan_of_two_datasets(write, clip_file, tmp_path, monkeypatch, capsys):
    """Each gets its own settings before anything runs, also by the words that another machine would be given. The
    method's config file is read for both."""
    own, seen = write(ENTRIES.replace("PACS", "EuroSAT")), {}
    drawn.write_caltech(tmp_path / "data")
    drawn.write_split_dataset(tmp_path / "data", "eurosat")
    built = Configs.built

    def noted(configs, spec):
        found = built(configs, spec)
        again = built(Configs(), train.parse_arguments(spec.argv()))
        assert found == again
        seen[found.cfg.DATASET.NAME] = found.cfg.TRAINER.COOP.CTX_INIT
        return found

    monkeypatch.setattr(Configs, "built", noted)
    protocol.main(["fewshot", "--trainer", "CoOp", "--dataset", "caltech101", "eurosat", "--shots", "1", "--seeds",
                   "1", "--cfg", own, "--root", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--backbone",
                   clip_file, "--dry-run"])
    assert "to do" in capsys.readouterr().out
    assert seen == {"Caltech101": "one photo", "EuroSAT": "a big photo"}


def test_a_file_is_for_the_methods_that_its_entries_name(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("PER_DATASET: {PACS: {TRAINER: {COOP: {N_CTX: 3}}}, DTD: {TRAINER: {KGCOOP: {W: 1.0}}}}\n")
    assert methods_of(str(path)) == {"COOP", "KGCOOP"}


# ---- what is refused ----
REFUSED = {
    "unknown dataset": ("Caltech: {OPTIM: {LR: 1}}", "PER_DATASET.Caltech: unknown dataset 'Caltech' (did you mean "
                                                     "'Caltech101'?)"),
    "name of a file": ("caltech101: {}", "did you mean 'Caltech101'?"),
    "unknown key": ("PACS: {OPTIM: {LRR: 1}}", "PER_DATASET.PACS: unknown key OPTIM.LRR (did you mean 'OPTIM.LR'?)"),
    "another method's key": ("PACS: {TRAINER: {COOP: {NCTX: 1}}}", "unknown key TRAINER.COOP.NCTX"),
    "value of another type": ("PACS: {OPTIM: {LR: fast}}", "OPTIM.LR must be of type float"),
    "a word that YAML takes for False": ("PACS: {TRAIN: {GRAPHS: off}}",
                                         "not False; in YAML a word such as off or no is written in quotes"),
    "group of keys": ("PACS: {OPTIM: 3}", "OPTIM is a group of keys"),
    "number in place of a tree": ("PACS: 3", "PER_DATASET.PACS: it must hold config keys"),
    "nothing in place of a tree": ("PACS:", "PER_DATASET.PACS: it must hold config keys"),
    "list in place of a tree": ("PACS: [OPTIM.LR, 3]", "PER_DATASET.PACS: it must hold config keys"),
    "name that is none": ("3: {OPTIM: {LR: 1}}", "the entry 3, which is no DATASET.NAME"),
    "key that is no name": ("PACS: {OPTIM: {3: 1}}", "PER_DATASET.PACS: the key OPTIM.3 is not a name"),
    "nested": ("PACS: {PER_DATASET: {PACS: {}}}", "PER_DATASET stands at the top of a config file"),
    "nested in small letters": ("PACS: {per_dataset: 3}", "per_dataset stands at the top of a config file"),
    "base": ("PACS: {BASE: other.yaml}", "BASE stands at the top of a config file"),
    "dataset": ("PACS: {DATASET: {NAME: PACS}}", "DATASET.NAME is not an entry's to say"),
    "method": ("PACS: {TRAINER: {NAME: CoOp}}", "TRAINER.NAME is not an entry's to say"),
    "out of bounds": ("Caltech101: {OPTIM: {MAX_EPOCH: 0}}", "OPTIM.MAX_EPOCH must be between 1 and"),
    "twice": ("PACS: {}\n  PACS: {}", "the key PACS comes twice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_entries(name, write, arguments, tmp_path, one_line):
    text, told = REFUSED[name]
    own = write(f"PER_DATASET:\n  {text}\n")
    assert told in one_line(lambda: train.main(arguments("CoOp", tmp_path / "run", config=own)))


@pytest.mark.parametrize("value", ["3", "", "[1]", "text", "{3: {}}", "~"])
def test_bad_values(value, write, arguments, tmp_path, one_line):
    own = write(f"PER_DATASET: {value}\n")
    assert f"config {own}: PER_DATASET" in one_line(
        lambda: train.main(arguments("CoOp", tmp_path / "run", config=own)))


@pytest.mark.parametrize("option", ["PER_DATASET.PACS.OPTIM.LR", "PER_DATASET", "per_dataset.pacs.optim.lr"])
def test_it_is_no_option(option, arguments, tmp_path, one_line):
    assert "PER_DATASET belongs in a config file" in one_line(
        lambda: train.main(arguments("CoOp", tmp_path / "run", option, "0.5")))


def test_small_letters(write, arguments, tmp_path, one_line):
    own = write("Per_Dataset: {}\n")
    assert "unknown key Per_Dataset (did you mean 'PER_DATASET'?)" in one_line(
        lambda: train.main(arguments("CoOp", tmp_path / "run", config=own)))


def test_it_does_not_belong_to_a_dataset(arguments, tmp_path, one_line, drawn_root):
    shipped = Path(CONFIGS) / "datasets" / "pacs.yaml"
    data = tmp_path / "mine.yaml"
    for base, own in (("", "DATASET: {NAME: PACS}\nPER_DATASET: {PACS: {}}\n"), ("middle.yaml", "")):
        (tmp_path / "middle.yaml").write_text(f"BASE: {shipped}\nPER_DATASET: {{}}\n")
        data.write_text((f"BASE: {base}\n" if base else "") + own)
        words = arguments("CoOp", tmp_path / "run")
        words[words.index("--dataset-config-file") + 1] = str(data)
        plan = ["fewshot", "--trainer", "CoOp", "--dataset", str(data), "--root", str(drawn_root), "--output",
                str(tmp_path / "out")]
        for main, line in ((train.main, words), (protocol.main, plan)):
            assert "PER_DATASET belongs in a method's config file" in one_line(functools.partial(main, line))


def test_shipped_entries():
    """Every entry of a shipped config is one that its runs take: built for each dataset that it names."""
    files = {yaml.safe_load(path.read_text())["DATASET"]["NAME"]: path
             for path in Path(CONFIGS).glob("datasets/*.yaml")}
    checked = 0
    for path in sorted(Path(CONFIGS).glob("trainers/*/*.yaml")):
        for dataset in entries_of(path.read_text(), str(path)):
            spec = train.parse_arguments(["--trainer", path.parent.name, "--config-file", str(path), "--seed", "1",
                                          "--dataset-config-file", str(files[dataset])])
            found = train.build(spec)
            assert found.taken.dataset == dataset and found.taken.settings
            checked += 1
    assert checked
