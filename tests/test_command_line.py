"""What the words of a command line may be: config keys are listed, each flag says its default, what is nearly a known
name is told that name, and words stand in any order."""
import argparse
import contextlib
import functools
import importlib
import io
import itertools
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from scripted import calls

import train
from dassl.config import copied, get_cfg_default, merge_options
from dassl.config.effect import EFFECTS, NEVER
from dassl.config.flags import ArgumentParser, HelpFormatter, action_of
from dassl.config.meanings import declared, method_meanings
from dassl.config.tree import dotted
from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.samplers import SAMPLER_REGISTRY
from dassl.data.transforms.transforms import AVAI_CHOICES, INTERPOLATION_MODES, build_transform
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.identity import SETTINGS, allowed_changes
from dassl.evaluation import EVALUATOR_REGISTRY
from dassl.optim import build_optimizer
from dassl.optim.lr_scheduler import AVAI_SCHEDS, AVAI_WARMUPS, check_schedule
from dassl.optim.optimizer import AVAI_OPTIMS
from dassl.utils import InputError
from dassl.utils.registry import is_slip, nearest, similar
from datasets.base import subsample_classes
from prompting import PromptingError
from prompting.backbone import known_names
from prompting.class_prompts import POSITIONS, ClassPrompts
from prompting.precision import PRECISIONS, Precision
from prompting.weights import read_file
from protocols import PROTOCOL_REGISTRY
from protocols.parts.plan import config_file, config_names
from runs.arguments import asked_for_keys, parse_arguments
from runs.config_keys import all_keys, listed_keys
from runs.read_keys import read_keys
from tools import plot, prepare_data, report
from tools.running.words import check_arguments
from tools.running.words import parse_arguments as parse_protocol
from written_runs import base2new, write_run

train.discover()


# ---- config keys -------------------------------------------------------------------------------------------------


def names_in(listing):
    return [line.split()[0] for line in listing.splitlines()[1:]]


def test_every_key_says_what_it_means():
    assert [key.name for key in all_keys() if len(key.meaning) < 5] == []


def test_every_key_is_listed_once():
    listed = names_in(listed_keys())
    assert sorted(listed) == sorted(dotted(train.default_config())) and len(set(listed)) == len(listed) > 150


def test_a_key_is_found_by_its_name_and_by_a_word_of_its_meaning_in_any_letters():
    assert {"OPTIM.LR", "OPTIM.LR_SCHEDULER", "TRAINER.DEPT.HEAD_LR"} <= set(names_in(listed_keys("lr")))
    assert names_in(listed_keys("Shots")) == ["DATASET.NUM_SHOTS"]
    assert "OPTIM.MAX_EPOCH" in names_in(listed_keys("number of epochs"))
    assert set(names_in(listed_keys("KgCoOp"))) == {key.name for key in all_keys() if key.method == "KgCoOp"}
    with pytest.raises(InputError):
        listed_keys("umber")  # of "number": a word of a meaning is found by its beginning


def test_a_listed_key_shows_its_default_and_whose_it_is():
    [line] = listed_keys("TRAINER.COOP.N_CTX").splitlines()[1:]
    assert line.split(None, 2) == ["TRAINER.COOP.N_CTX", "16", "CoOp: number of context vectors"]
    assert listed_keys("OPTIM.STEPSIZE").split("\n")[1].split()[:2] == ["OPTIM.STEPSIZE", "(-1,)"]
    assert listed_keys("VAL_PERCENT").endswith("(read by nothing)")


@pytest.mark.parametrize(("word", "meant"), [
    ("momentm", "OPTIM.MOMENTUM"), ("optim.lrr", "OPTIM.LR"), ("N_CTXX", "TRAINER.COCOOP.N_CTX"), ("qqqqq", None)])
def test_a_word_that_finds_no_key_is_told_the_nearest(word, meant):
    with pytest.raises(InputError, match="no key has") as error:
        listed_keys(word)
    assert (f"'{meant}'" in str(error.value)) if meant else ("did you mean" not in str(error.value))


@pytest.mark.parametrize(("method", "reads", "leaves"), [
    ("CoOp", ["OPTIM.LR", "OPTIM.WARMUP_MIN_LR", "OPTIM.ADAM_BETA1", "INPUT.CUTOUT_N", "TRAINER.COOP.CSC",
              "DATASET.SUBSAMPLE_CLASSES", "DATALOADER.TRAIN_X.N_INS", "TRAIN.PATIENCE"],
     ["TRAINER.COCOOP.N_CTX", "MODEL.HEAD.NAME", "DATALOADER.TRAIN_U.SAMPLER", "OPTIM.STAGED_LR", "VERSION",
      "DATALOADER.RETURN_IMG0"]),
    ("ZeroshotCLIP", ["TEST.SPLIT", "DATASET.TEMPLATES", "TRAINER.ZEROSHOTCLIP.PREC"],
     ["OPTIM.LR", "INPUT.CUTOUT_N", "TRAINER.ZEROSHOTCLIP2.PREC", "TRAIN.PRINT_FREQ"]),
    ("TipAdapter", ["INPUT.CUTOUT_N", "TRAINER.TIPADAPTER.BETA"], ["OPTIM.LR", "TRAINER.TIPADAPTERF.BETA"]),
    ("TipAdapterF", ["OPTIM.LR"], ["OPTIM.LR_SCHEDULER"]), ("MetaPrompt", [], ["DATALOADER.TRAIN_X.N_INS"])])
def test_of_one_method_only_what_it_reads_is_listed(method, reads, leaves):
    listed = names_in(listed_keys("", method))
    assert set(reads) <= set(listed) and not set(leaves) & set(listed)


def test_what_some_method_reads_is_whatever_can_act_at_all():
    read = {key for _, method in TRAINER_REGISTRY.items() for key in read_keys(method)}
    assert read == {key for key, (why, _) in EFFECTS.items() if why not in NEVER
                    } - {"DATALOADER.RETURN_IMG0", "OPTIM.STAGED_LR", "OPTIM.NEW_LAYERS", "OPTIM.BASE_LR_MULT"
                         } - {key for key in EFFECTS if key.startswith("DATALOADER.TRAIN_U.")}


PLUGIN = '''
from yacs.config import CfgNode as CN
from dassl.engine import TRAINER_REGISTRY, TrainerX

def node_of_mine(width):
    node = CN()
    # first line of two,
    # and the second
    node.WIDTH = width
    node.PAIR, node.OTHER = 1, 2  # of a pair
    node.BELOW = CN()
    node.BELOW.DEEP = 3  # "quoted # sign"
    node.BARE = 0
    return node

@TRAINER_REGISTRY.register()
class Mine(TrainerX):
    @classmethod
    def extend_cfg(cls, cfg):
        cfg.TRAINER.MINE = node_of_mine(7)
        cfg.TRAINER.MINE.LAST = (
            1,
        )  # behind several lines

    def use(self):
        return self.cfg.DATALOADER.RETURN_IMG0
'''


def test_meanings_of_a_plugin_are_the_comments_of_its_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine_with_keys.py").write_text(PLUGIN)
    monkeypatch.setattr(sys, "argv", ["train.py", "--plugin", str(tmp_path / "mine_with_keys.py"), "--config-keys",
                                      "--trainer", "Mine"])
    try:
        assert train.program() == 0
        told = {line.split()[0]: line.split(None, 2)[1:] for line in capsys.readouterr().out.splitlines()}
    finally:
        TRAINER_REGISTRY._objects.pop("Mine", None)
    own = {key.split(".", 2)[2]: value for key, value in told.items() if key.startswith("TRAINER.MINE.")}
    assert own == {"WIDTH": ["7", "Mine: first line of two, and the second"], "PAIR": ["1", "Mine: of a pair"],
                   "OTHER": ["2", "Mine: of a pair"], "BELOW.DEEP": ["3", 'Mine: "quoted # sign"'],
                   "BARE": ["0", "Mine:"], "LAST": ["(1,)", "Mine: behind several lines"]}
    assert {"DATALOADER.RETURN_IMG0", "DATALOADER.TRAIN_U.SAMPLER"} <= set(told)  # it may read them


def test_meanings_of_a_class_that_another_is_made_from_count_where_it_says_none():
    class Less(TRAINER_REGISTRY.get("CoOp")):
        @staticmethod
        def extend_cfg(cfg):
            cfg.TRAINER.LESS = {}
            cfg.TRAINER.LESS.N_CTX = 3

    assert method_meanings(Less, {"N_CTX": 3}) == {"N_CTX": "number of context vectors"}
    assert declared(len) == {}  # Python has no source of it


def test_keys_are_listed_without_data_or_method_one_line_each_to_a_pipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "argv", ["train.py", "--config-keys"])
    assert train.program() == 0
    told = capsys.readouterr()
    assert not told.err and not list(tmp_path.iterdir())
    assert len(told.out.splitlines()) == 1 + len(all_keys())


def test_in_a_terminal_the_list_fits_its_width(monkeypatch):
    monkeypatch.setattr(sys, "stdout", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    monkeypatch.setenv("COLUMNS", "90")
    told = listed_keys("TRAIN")
    monkeypatch.undo()
    assert max(map(len, told.splitlines())) <= 90 and len(told.splitlines()) > 1 + len(names_in(listed_keys("TRAIN")))


def test_the_status_of_a_word_without_a_key_is_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--config-keys", "momentm"])
    assert train.program() == 2
    assert capsys.readouterr().err.startswith("error: --config-keys: no key has 'momentm'")


# ---- defaults of flags -------------------------------------------------------------------------------------------


class Seen(Exception):
    """Carries the parser that a program has made."""


def files_with_parsers():
    """The programs, without the one that made the CLIP that comes along, once."""
    return [file for folder in ("tools", "benchmarks") for file in sorted((ROOT / folder).glob("*.py"))
            if ("ArgumentParser(" in file.read_text() or file.name == "protocol.py")
            and file.name != "pretrain_tiny_clip.py"]


PROTOCOLS = list(dict(PROTOCOL_REGISTRY.items()))


@functools.cache
def parsers_of(file):
    """The parsers that a program makes, taken at the moment when it parses."""
    def seen(parser, *_, **__):
        raise Seen(parser)

    module = importlib.import_module(f"{file.parent.name}.{file.stem}")
    found = []
    for words in [[name] for name in [*PROTOCOLS, "compare"]] if file.name == "protocol.py" else [[]]:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(ArgumentParser, "parse_args", seen)
            patched.setattr(argparse.ArgumentParser, "parse_args", seen)
            with pytest.raises(Seen) as caught:
                (getattr(module, "parse_arguments", None) or module.main)(words)
        found.append(caught.value.args[0])
    return found


def programs():
    return [ROOT / "train.py", *files_with_parsers()]


def every_parser(file):
    if file.name == "train.py":
        from runs.arguments import _parser

        return [_parser()]
    return parsers_of(file)


@pytest.mark.parametrize("file", programs(), ids=lambda file: f"{file.parent.name}/{file.name}")
def test_each_flag_says_its_default(file):
    for parser in every_parser(file):
        assert isinstance(parser, ArgumentParser), f"{file} takes argparse's own parser"
        formatter, _ = parser._get_formatter(), parser.format_help()
        for action in parser._actions:
            if not action.option_strings or action.help == argparse.SUPPRESS or "--help" in action.option_strings:
                continue
            told = formatter._expand_help(action)
            assert re.search(r"\bdefault\b|\(required\)", told), (action.option_strings, told)
            values = action.default if isinstance(action.default, list) else [action.default]
            shown = " ".join(map(str, values))
            assert action.default in (None, "", False) or not values or shown in told or "default all" in told, (
                action.option_strings, told)


@pytest.mark.parametrize(("settings", "told"), [
    ({"default": 3}, "this (default 3)"), ({}, "this (default none)"), ({"default": ""}, "this (default none)"),
    ({"action": "store_true"}, "this (default off)"), ({"action": "store_false"}, "this (default on)"),
    ({"nargs": "+", "default": ["a", "b"]}, "this (default a b)"), ({"required": True}, "this (required)"),
    ({"default": "50%"}, "this (default 50%)"), ({"default": 0}, "this (default 0)")])
def test_a_default_that_the_help_leaves_out_is_added(settings, told):
    parser = ArgumentParser()
    parser.add_argument("--this", help="this", **settings)
    assert parser.format_help().rstrip().endswith(told)


def test_a_default_that_the_help_says_is_left_as_it_is():
    parser = ArgumentParser()
    parser.add_argument("--this", help="this; default that", default=3)
    parser.add_argument("--other", help="one word of defaults", default=3)
    told = parser.format_help()
    assert "this; default that\n" in told and "defaults (default 3)" in told
    assert isinstance(parser._get_formatter(), HelpFormatter)


def test_a_flag_without_help_says_its_default():
    parser = ArgumentParser()
    parser.add_argument("--this", default=3)
    for _ in range(2):
        assert parser.format_help().rstrip().endswith("--this THIS  default 3")


# ---- near misses -------------------------------------------------------------------------------------------------


def slips(name, letters="abcdefghijklmnopqrstuvwxyz"):
    """Four words that differ from a name by one letter: missing, added, another one, changed places."""
    draw = random.Random(name)
    place = draw.randrange(len(name))
    letter = draw.choice(letters)
    words = [name[:place] + name[place + 1:], name[:place] + letter + name[place:],
             name[:place] + letter + name[place + 1:],
             name[:place] + name[place + 1:place + 2] + name[place:place + 1] + name[place + 2:]]
    return [word for word in dict.fromkeys(words) if word and word != name]


def config(*options):
    cfg = copied(get_cfg_default())
    merge_options(cfg, options)
    return cfg


def of_optim(key, *more):
    return lambda word: check_schedule(config(*more, f"OPTIM.{key}", word).OPTIM)


def of_domains(word):
    dataset = object.__new__(DATASET_REGISTRY.get("PACS"))
    dataset.check_input_domains([word], ["photo"])


def of_report(flag):
    return lambda word: report.chosen_runs(report.parse_arguments([written(), flag, word]))


@functools.cache
def written():
    folder = os.path.join(os.environ["PYTEST_WRITTEN"], "output")
    for method in ("CoOp", "MetaPrompt"):
        for part in ("train_base", "test_new"):
            write_run(folder, base2new(method, part=part), np.ones(4, bool))
    return folder


@pytest.fixture(autouse=True, scope="module")
def folder_of_runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTEST_WRITTEN", str(tmp_path_factory.mktemp("written")))
        yield


TRAIN_FLAGS = [flag for file in [ROOT / "train.py"] for parser in every_parser(file)
               for flag, action in parser._option_string_actions.items()
               if flag.startswith("--") and action.help != argparse.SUPPRESS]
PLACES = {  # what is named: (the known names, what refuses another one)
    "method": (TRAINER_REGISTRY.registered_names(), TRAINER_REGISTRY.get),
    "dataset": (DATASET_REGISTRY.registered_names(), DATASET_REGISTRY.get),
    "sampler": (SAMPLER_REGISTRY.registered_names(), SAMPLER_REGISTRY.get),
    "evaluator": (EVALUATOR_REGISTRY.registered_names(), EVALUATOR_REGISTRY.get),
    "protocol": ([*PROTOCOLS, "compare"], lambda word: parse_protocol([word, "--dataset", "shapes"])),
    "compared protocol": ([name for name in PROTOCOLS if name != "zeroshot"],
                          lambda word: parse_protocol(["compare", "--protocol", word, "--dataset", "shapes"])),
    "config of a dataset": (config_names("datasets"), lambda word: config_file("datasets", word)),
    "config of a method": (config_names("trainers/MetaPrompt"), lambda word: config_file("trainers/MetaPrompt", word)),
    "data to prepare": ([*prepare_data.GROUPS, *prepare_data.SOURCES],
                        lambda word: prepare_data.parse_arguments([word])),
    "backbone": (known_names(), lambda word: read_file(word, "")),
    "precision": (PRECISIONS, lambda word: Precision(word, torch.device("cpu"))),
    "position": (POSITIONS, lambda word: ClassPrompts(None, ["a"], 2, word)),  # type: ignore[arg-type]  # it reads none
    "optimizer": (AVAI_OPTIMS, lambda word: build_optimizer([torch.ones(1)], config("OPTIM.NAME", word).OPTIM)),
    "schedule": (AVAI_SCHEDS, of_optim("LR_SCHEDULER")),
    "warm-up": (AVAI_WARMUPS, of_optim("WARMUP_TYPE", "OPTIM.WARMUP_EPOCH", "1", "OPTIM.LR_SCHEDULER", "cosine")),
    "transform": (AVAI_CHOICES, lambda word: build_transform(config("INPUT.TRANSFORMS", word))),
    "interpolation": (INTERPOLATION_MODES, lambda word: build_transform(config("INPUT.INTERPOLATION", word))),
    "half of the classes": (("all", "base", "new"), lambda word: subsample_classes([[]], word)),
    "domain": (DATASET_REGISTRY.get("PACS").domains, of_domains),
    "setting": (SETTINGS, lambda word: allowed_changes(config("TEST.ALLOW_CHANGED", f"['{word}']"))),
    "choice of a flag": (("local", "slurm"), lambda word: parse_protocol(
        ["base2new", "--trainer", "CoOp", "--dataset", "shapes", "--launcher", word])),
    "flag": (TRAIN_FLAGS, lambda word: parse_arguments([word, "x"])),
    "key": (dotted(train.default_config()), lambda word: merge_options(train.default_config(), [word, "1"])),
    "figure": (plot.kinds(), lambda word: plot.main([written(), "--only", word])),
    "method of a report": (["CoOp", "MetaPrompt"], of_report("--trainer")),
    "dataset of a report": (["dtd"], of_report("--dataset")),
    "format of a report": (report.FORMATS, of_report("--format")),
    "compared method of a report": (["CoOp", "MetaPrompt"], lambda word: report.main(
        [written(), "--against", word])),
}


def accepted(place, word, known):
    """Whether a slip of one name is a word that is taken."""
    if place == "flag":
        return not word.startswith("--") or len(word) < 3 or not word[2].isalpha() or action_of(
            every_parser(ROOT / "train.py")[0], word) is not None
    return word in known or word.strip() == "" or (place == "backbone" and os.path.isfile(word))


@pytest.mark.parametrize("place", PLACES)
def test_a_slip_of_a_known_name_is_told_the_name(place):
    known, refuse = PLACES[place]
    known, tried = list(known), 0
    for name in random.Random(place).sample(known, min(len(known), 40)):
        for word in slips(name):
            if accepted(place, word, known):
                continue
            with pytest.raises((InputError, PromptingError)) as error:
                refuse(word)
            meant = re.search(r"did you mean (.*?)\?\)", str(error.value))
            assert meant, (word, str(error.value))
            told = re.findall(r"'([^']*)'", meant[1]) or [meant[1]]
            # Another known name may be as near as the one that the slip was made of.
            assert name in told or any(is_slip(word.casefold(), other.casefold()) and other in known
                                       for other in told), (name, word, told)
            tried += 1
    assert tried


@pytest.mark.parametrize("place", PLACES)
def test_a_known_name_in_other_letters_is_told(place):
    known, refuse = PLACES[place]
    for name in [name for name in known if name.swapcase() not in known and place not in ("flag", "figure")][:10]:
        with pytest.raises((InputError, PromptingError)) as error:
            refuse(name.swapcase())
        assert f"did you mean '{name}'" in str(error.value), str(error.value)


def test_case_comes_before_likeness_and_names_as_near_are_all_told():
    assert similar("coop", ["CoCoOp", "CoOp", "coops"]) == ["CoOp"]
    assert similar("vit-b16", ["vit_b16", "vit_b32"]) == ["vit_b16"]
    assert nearest("toy_x", ["toy_a", "toy_r", "toy"]) == " (did you mean 'toy_a' or 'toy_r'?)"
    assert nearest("qqqq", ["imagenet"]) == ""
    assert similar("", ["imagenet"]) == []


@pytest.mark.parametrize(("one", "other", "slip"), [
    ("seeds", "seed", True), ("seed", "seeds", True), ("sedes", "seeds", True), ("seads", "seeds", True),
    ("sdees", "seeds", False), ("seeds", "seeds", True), ("sseeds", "seeds", True), ("see", "seeds", False),
    ("sedse", "seeds", False), ("abba", "baab", False), ("", "a", False), ("a", "b", False), ("dg", "gd", True)])
def test_what_a_slip_is(one, other, slip):
    assert is_slip(one, other) is slip


@pytest.mark.parametrize(("words", "told"), [
    (("--trianer", "CoOp"), "unknown flag --trianer (did you mean '--trainer'?)"),
    (("--seeds", "1"), "unknown flag --seeds (did you mean '--seed'?)"),
    (("--lr", "0.1"), "unknown flag --lr (did you mean the option OPTIM.LR VALUE?)"),
    (("--max-epoch=3",), "(did you mean the option OPTIM.MAX_EPOCH VALUE?)"),
    (("--steps=3",), "(did you mean the option OPTIM.STEPS VALUE?)"),
    (("--optim.lr", "0.1"), "(did you mean the option OPTIM.LR VALUE?)"),
    (("--dataset-name", "dtd"), "unknown flag --dataset-name (did you mean '--dataset-config-file'?)"),
    (("--data-root", "dtd"), "unknown flag --data-root (did you mean '--root'?)"),
    *(((word,), f"unknown flag {word}; see --help") for word in (
        "--qqqqqq", "--rank", "--foo", "--test", "--threads", "--no-cuda", "--iterations", "--account", "--opts"))])
def test_an_unknown_flag_is_told_what_was_meant(words, told):
    with pytest.raises(InputError) as error:
        parse_arguments([*words, "--trainer", "CoOp"])
    assert told in str(error.value)


@pytest.mark.parametrize("word", ["evaluate", "test", "precision", "methods", "resume-from", "overwrite", "weights",
                                  "checkpoint", "iterations", "list", "force"])
def test_a_flag_that_is_a_little_like_many_is_told_none(word):
    with pytest.raises(InputError) as error:
        parse_protocol(["base2new", "--trainer", "CoOp", "--dataset", "shapes", f"--{word}", "1"])
    assert str(error.value) == f"unknown flag --{word}; see --help"


@pytest.mark.parametrize("flag", ["--config-file", "--config", "--conf", "--c"])
def test_abbreviations_of_the_config_files_flag_are_its_own(flag):
    """--config-keys came later."""
    assert parse_arguments([flag, "a.yaml", "--dataset-c", "b.yaml"]).config_file == "a.yaml"
    assert parse_arguments([f"{flag}=a.yaml", "--dataset-c=b.yaml"]).config_file == "a.yaml"
    assert asked_for_keys(["--config-k", "LR"]) == asked_for_keys(["--config-keys=LR"]) == ("LR", "", ())
    assert asked_for_keys(["--config-k", "--trainer", "CoOp"]) == ("", "CoOp", ())


@pytest.mark.parametrize("words", [
    ["OPTIM.LR", "--x"], ["OPTIM.LR", "--root", "1"], ["--root", "1", "OPTIM.LR", "--x=3"]])
def test_an_option_whose_value_begins_with_dashes_is_told_how_to_give_it(words):
    for parse in (parse_arguments, lambda words: parse_protocol(["base2new", "--trainer", "CoOp", *words])):
        with pytest.raises(InputError, match=r"'OPTIM.LR' has no value, --\S+ follows .*given as OPTIM.LR=VALUE"):
            parse(words)
    assert parse_arguments(["TRAINER.COOP.CTX_INIT=--x"]).options == ("TRAINER.COOP.CTX_INIT", "--x")


def test_an_unknown_flag_is_told_before_one_that_is_missing():
    with pytest.raises(InputError, match="unknown flag --datset .did you mean '--dataset'"):
        parse_protocol(["base2new", "--trainer", "CoOp", "--datset", "shapes"])
    with pytest.raises(InputError, match="unknown flag --fromat"):
        report.parse_arguments(["--fromat", "text"])


@pytest.mark.parametrize(("key", "meant"), [
    ("optim.lr", "'OPTIM.LR'"), ("LR", "'OPTIM.LR'"), ("lr", "'OPTIM.LR'"), ("NUM_SHOTS", "'DATASET.NUM_SHOTS'"),
    ("Trainer.CoOp.N_ctx", "'TRAINER.COOP.N_CTX'"), ("N_CTX", "'TRAINER.COOP.N_CTX'"), ("BATCH_SIZE", "TRAIN_X"),
    ("OPTIM.LRATE", "'OPTIM.LR'")])
def test_a_key_in_other_letters_or_without_its_group_is_told_the_whole_key(key, meant):
    cfg = train.default_config()
    cfg.TRAINER.NAME = "CoOp"
    with pytest.raises(InputError) as error:
        merge_options(cfg, [key, "1"])
    assert meant in str(error.value) and "COCOOP" not in str(error.value)


@pytest.mark.parametrize(("variable", "meant"), [
    ("SEED", "SEEDS"), ("seeds", "SEEDS"), ("SHOTs", "SHOTS"), ("SHOT", "SHOTS"), ("BACKBON", "BACKBONE"),
    ("BAKCBONE", "BACKBONE"), ("DATAROOT", "DATA"), ("DATA_ROOT", "DATA"), ("TARGETTS", "TARGETS"), ("OUPUT", "OUTPUT"),
    ("Jobs", "JOBS"), ("NUM_JOBS", "JOBS"), ("DRYRUN", "DRY_RUN"), ("cfg", "CFG"), ("RANKZ", "RANKS"),
    ("PREFLIGT", "PREFLIGHT"), ("KEEPGOING", "KEEP_GOING"), ("Prepare", "PREPARE"), ("TARGET", "TARGETS")])
def test_a_variable_that_is_nearly_one_of_the_scripts_is_refused(variable, meant):
    done = variables(**{variable: "x"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {variable}='x' is not read by the scripts; give {meant} instead, or unset it\n"


def variables(protocol="xd", **environment):
    code = f". '{ROOT}/scripts/variables.sh'; echo read"
    return subprocess.run(["bash", "-euo", "pipefail", "-c", code, "-", protocol], capture_output=True, text=True,
                          env={"PATH": os.environ["PATH"], **environment}, check=False)


def test_other_variables_are_none_of_the_scripts_business():
    others = ["DATE", "RANK", "LOCAL_RANK", "WORLD_SIZE", "CONFIG", "JOB_ID", "HOST", "SEEDING", "CFLAGS", "outputs",
              "TARGET_CPU", "PATHS", "DATABASE", "BOOKS", "SHORT", "_SHOTS_", *read_variables()]
    done = variables(**dict.fromkeys(others, "x"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "read\n", "")
    assert variables(SEED="").returncode == 0  # as good as unset
    assert variables("base2new", TARGET="x86_64-linux-gnu").returncode == 0  # of a build; TARGETS is read of xd alone
    names = ["HOST", "SHELL", "TARGET_ARCH", "OUTPUT_FORMAT", "MAKEFLAGS", "DATABASE_URL", "SEEDBOX", "PREFIX"]
    assert variables(**dict.fromkeys(names, "x")).returncode == 0


def test_a_refused_variables_value_is_shown_on_one_line():
    for name in ("SEED", "DATASET"):
        done = variables(**{name: "a\n\x1b[1mb"})
        assert done.stderr.count("\n") == 1 and "\x1b" not in done.stderr and f"{name}=$'a\\n\\E[1mb'" in done.stderr


def read_variables():
    """The variables that run.sh reads, by its text."""
    text = (ROOT / "scripts" / "run.sh").read_text()
    [pairs] = re.findall("^for pair in (.*); do$", text, re.MULTILINE)
    names = re.findall(r"\$\{([A-Z_]+):-", text) + [pair.partition(":")[0] for pair in pairs.split()]
    return sorted(set(names) - {"PYTHONPATH"})


def test_the_scripts_know_all_the_variables_that_they_read():
    [words] = re.findall('^read_here="(.*)"$', (ROOT / "scripts" / "variables.sh").read_text(), re.MULTILINE)
    assert sorted(words.split()) == read_variables() and "PREFLIGHT" in words


# ---- words in any order ------------------------------------------------------------------------------------------


BASE2NEW = {"--trainer": ["CoOp"], "--dataset": ["shapes"], "--jobs": ["2"], "--seeds": ["1", "2"], "--dry-run": [],
            "--root": ["here"]}
OPTIONS = [("OPTIM.LR", "0.01"), ("optim.max_epoch", "3"), ("SEED=3",), ("TRAINER.COOP.CSC", "True")]


def read(argv):
    args = parse_protocol(argv)
    return args.trainer, args.dataset, args.jobs, args.seeds, args.dry_run, args.root, args.opts


def test_flags_and_options_stand_in_any_order():
    groups = [[flag, *words] for flag, words in BASE2NEW.items()] + [list(words) for words in OPTIONS]
    options = [word for words in OPTIONS for each in words for word in each.split("=")]
    for number in range(60):
        order = random.Random(number).sample(groups, len(groups))
        *found, opts = read(["base2new", *itertools.chain(*order)])
        assert found == [["CoOp"], ["shapes"], 2, ["1", "2"], True, "here"]
        pairs = list(zip(opts[::2], opts[1::2]))
        assert sorted(pairs) == sorted(zip(options[::2], options[1::2]))
        given = [group[0].partition("=")[0] for group in order if not group[0].startswith("-")]
        assert [key for key, _ in pairs] == given


@pytest.mark.parametrize(("words", "trainers", "datasets", "options"), [
    (["shapes", "--jobs", "2", "CoOp"], ["CoOp"], ["shapes"], []),
    (["OPTIM.LR", "0.1", "CoOp", "VPT", "--jobs", "2", "shapes"], ["CoOp", "VPT"], ["shapes"], ["OPTIM.LR", "0.1"]),
    (["--seeds", "1", "2", "CoOp", "--dataset", "shapes", "dtd"], ["CoOp"], ["shapes", "dtd"], []),
    (["--trainer", "CoOp", "--jobs", "2", "VPT", "--dataset", "shapes"], ["CoOp", "VPT"], ["shapes"], []),
    (["--trainer", "--dataset", "shapes", "--jobs", "2", "VPT"], ["VPT"], ["shapes"], []),
    (["--dataset", "shapes", "OPTIM.LR", "0.1", "dtd"], None, ["shapes", "dtd"], ["OPTIM.LR", "0.1"]),
    (["my/own.yaml", "coop"], ["coop"], ["my/own.yaml"], [])])
def test_names_of_methods_and_datasets_stand_anywhere(words, trainers, datasets, options):
    args = parse_protocol(["compare", *words])
    assert (args.trainer, args.dataset, args.opts) == (trainers, datasets, options)


def test_words_join_those_that_a_flag_has_been_given_with_an_equals_sign():
    args = parse_protocol(["compare", "--dataset=shapes", "--trainer=CoOp", "dtd", "VPT", "--seeds=3"])
    assert (args.dataset, args.trainer, args.seeds) == (["shapes", "dtd"], ["CoOp", "VPT"], ["3"])
    args = parse_protocol(["compare", "--dataset=shapes", "dtd", "--data=caltech101"])  # the last flag counts
    assert args.dataset == ["caltech101", "dtd"]


def test_all_methods_are_compared_by_one_word():
    for words in (["shapes", "all", "--seeds", "1"], ["--seeds", "1", "All", "shapes", "CoOp"]):
        args = parse_protocol(["compare", *words])
        check_arguments(args)
        assert args.trainer == sorted(TRAINER_REGISTRY.registered_names(), key=str.casefold) and len(args.trainer) >= 32
    args = parse_protocol(["base2new", "shapes", "all"])
    with pytest.raises(InputError, match="base2new needs one --trainer; compare --protocol base2new takes several"):
        check_arguments(args)


def test_targets_that_are_datasets_stay_targets():
    args = parse_protocol(["xd", "--targets", "dtd", "eurosat", "--dataset", "caltech101", "--trainer", "CoOp"])
    assert args.own["targets"] == ["dtd", "eurosat"] and args.dataset == ["caltech101"]


@pytest.mark.parametrize(("words", "told"), [
    (["compare", "shapes", "--jobs", "2", "Coop"], "unknown trainer 'Coop' (did you mean 'CoOp'?)"),
    (["xd", "--dataset", "shapes", "--targets", "dtd", "--trainer", "Qqqq"],
     "unknown trainer 'Qqqq'; one of your own is named with --plugin"),
    (["compare", "--jobs", "2", "shape", "CoOp"], "did you mean 'shapes'"),
    (["compare", "shapes", "--jobs", "2", "OPTIM.LR"], "'OPTIM.LR' has no value"),
    (["compare", "shapes", "LR", "0.1", "--dry-run"], "unknown key LR (did you mean 'OPTIM.LR'"),
    (["compare", "--dataset", "shapes", "optim.lrr", "0.1"], "unknown key optim.lrr (did you mean 'OPTIM.LR'?)"),
    (["compare", "shapes", "optim.lr", "0.1", "--dry-run"], "unknown key optim.lr (did you mean 'OPTIM.LR'?)")])
def test_words_of_no_known_name_are_refused_with_the_name_meant(words, told, tmp_path):
    from tools import protocol

    with pytest.raises(InputError) as error, contextlib.redirect_stdout(io.StringIO()):
        protocol.main([*words, "--root", str(tmp_path), "--output", str(tmp_path)])
    assert told in str(error.value)


def test_variants_stand_anywhere_too():
    args = parse_protocol(["base2new", "--variant", "a", "OPTIM.LR", "0.1", "--jobs", "2", "shapes", "SEED", "3",
                           "--variant=b", "OPTIM.LR=0.2", "--trainer", "CoOp"])
    assert args.variant == [["a", "OPTIM.LR", "0.1"], ["b", "OPTIM.LR", "0.2"]]
    assert (args.dataset, args.trainer, args.opts, args.jobs) == (["shapes"], ["CoOp"], ["SEED", "3"], 2)


def test_of_tools_words_stand_before_and_behind_flags():
    args = report.parse_arguments(["one", "--format", "csv", "two"])
    assert args.output == ["one", "two"] and args.format == "csv"
    assert report.parse_arguments(["--format", "csv", "--", "-one"]).output == ["-one"]
    with pytest.raises(InputError, match="required: output in front of the flags: --trainer takes all words"):
        report.parse_arguments(["--trainer", "CoOp", "output"])


@pytest.mark.parametrize(("script", "words", "trainers", "datasets", "options"), [
    ("coop/base2new.sh", "shapes OPTIM.LR 0.01 --jobs 2", ["CoOp"], ["shapes"], ["OPTIM.LR", "0.01"]),
    ("coop/base2new.sh", "--jobs 2 shapes", ["CoOp"], ["shapes"], []),
    ("coop/base2new.sh", "--seeds 1 2 OPTIM.LR 0.01 shapes dtd", ["CoOp"], ["shapes", "dtd"], ["OPTIM.LR", "0.01"]),
    ("compare.sh", "shapes CoOp VPT OPTIM.LR 0.01 --jobs 2", ["CoOp", "VPT"], ["shapes"], ["OPTIM.LR", "0.01"]),
    ("compare.sh", "shapes --jobs 2 CoOp SEED 3", ["CoOp"], ["shapes"], ["SEED", "3"]),
    ("compare.sh", "--jobs 2 shapes CoOp", ["CoOp"], ["shapes"], []),
    ("compare.sh", "shapes --jobs 2", [], ["shapes"], []),
    ("compare.sh", "--jobs 2 shapes all", ["all"], ["shapes"], []),
    ("reproduce_table.sh", "dg --jobs 2 CoOp", ["CoOp"], ["pacs", "vlcs", "office_home", "domainnet"], [])])
def test_words_of_the_scripts_stand_in_any_order(script, words, trainers, datasets, options, copied_scripts):
    done = subprocess.run(["bash", copied_scripts / script, *words.split()], capture_output=True, text=True,
                          env={"PATH": os.environ["PATH"]}, check=True)
    [given] = calls(done.stdout)
    args = parse_protocol(given[given.index("protocol") + 1:])
    assert (args.trainer, args.dataset, args.opts) == (trainers, datasets, options)
