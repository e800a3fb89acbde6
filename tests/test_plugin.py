"""Methods and datasets from elsewhere: a file in the public Dassl style runs unchanged."""
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import drawn
import pytest
import torch
from clip import clip
from conftest import registered_for_a_while
from yacs.config import CfgNode as CN

import train
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError, moved
from prompting import backbone, weights
from tools import protocol

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = Path(__file__).parent / "plugins"
COOP = str(PLUGINS / "coop_style.py")


@pytest.fixture
def cache(clip_file, tmp_path, monkeypatch):
    """`clip`'s cache in a home of its own holds the tiny CLIP under the name ViT-B/16; nothing can be fetched."""
    digest = hashlib.sha256(Path(clip_file).read_bytes()).hexdigest()
    home = tmp_path / "home"
    (home / ".cache" / "clip").mkdir(parents=True)
    os.link(clip_file, home / ".cache" / "clip" / "tiny.pt")
    monkeypatch.setenv("HOME", str(home))
    url = f"https://nowhere.invalid/{digest}/tiny.pt"
    monkeypatch.setitem(clip._MODELS, "ViT-B/16", url)
    monkeypatch.setattr(clip._download, "__defaults__", None)
    return url


@pytest.fixture
def words(arguments, tiny_config, tmp_path):
    """The words of a run of the foreign CoOp, whose own YAML brings keys that nobody declares."""
    config = tmp_path / "foreign.yaml"
    config.write_text(Path(tiny_config).read_text().replace(
        "COOP: {N_CTX: 3}", "COOP: {N_CTX: 3, PREC: fp32, INIT: {STD: 0.05}}"))

    return lambda output, *more: arguments("CoOp", output, "--plugin", COOP, *more, backbone="ViT-B/16", config=config)


@pytest.mark.usefixtures("cache")
def test_a_public_style_trainer_runs_unchanged(words, tmp_path, capsys):
    results = train.main(words(tmp_path / "base", "DATASET.SUBSAMPLE_CLASSES", "base"))
    printed = capsys.readouterr().out
    builtin = sys.modules["trainers.coop"].CoOp
    assert TRAINER_REGISTRY.get("CoOp") is not builtin
    assert f"Note: CoOp of {TRAINER_REGISTRY.get('CoOp').__module__} replaces trainers.coop.CoOp\n" in printed
    assert "epoch [2/2] batch [1/1]" in printed and "* total: 9\n" in printed
    assert results["config"]["TRAINER"]["COOP"]["INIT"] == {"STD": 0.05}
    assert results["metrics"]["test"]["accuracy"] >= 0

    state = torch.load(tmp_path / "base" / "prompt_learner" / "model.pth.tar-2", weights_only=True)
    assert set(state["state_dict"]) == {"ctx", "token_prefix", "token_suffix"}
    assert state["epoch"] == 2 and state["optimizer"]["state"][0]["momentum_buffer"].abs().sum() > 0
    # drawn with the configured deviation, then moved
    assert 0.03 < state["state_dict"]["ctx"].std() < 0.2

    evaluated = train.main(words(tmp_path / "again", "--eval-only", "--model-dir", tmp_path / "base", "--load-epoch", 2,
                                 "DATASET.SUBSAMPLE_CLASSES", "base"))
    assert evaluated["metrics"] == results["metrics"]
    new = train.main(words(tmp_path / "new", "--eval-only", "--model-dir", tmp_path / "base", "--load-epoch", 2,
                           "DATASET.SUBSAMPLE_CLASSES", "new"))
    assert "test" in new["metrics"]
    assert 'Loading weights to prompt_learner from "' in capsys.readouterr().out
    same_seed = train.main(words(tmp_path / "copy", "DATASET.SUBSAMPLE_CLASSES", "base", "DATALOADER.NUM_WORKERS", 2))
    assert same_seed["metrics"] == results["metrics"]
    copy = torch.load(tmp_path / "copy" / "prompt_learner" / "model.pth.tar-2", weights_only=True)
    assert torch.equal(copy["state_dict"]["ctx"], state["state_dict"]["ctx"])


@pytest.mark.usefixtures("cache")
def test_foreign_code_loads_the_clip_that_comes_along(monkeypatch):
    monkeypatch.setattr(clip, "_MODELS", dict(clip._MODELS))
    backbone.serve_foreign_code("tiny")
    path = clip._download(clip._MODELS["tiny"])
    loaded = torch.load(path, weights_only=True)
    expected = backbone.load_clip("tiny").state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name].float(), tensor) for name, tensor in expected.items())
    assert "tiny" not in weights.published_urls()


@pytest.mark.usefixtures("cache")
def test_a_public_style_trainer_goes_on_where_it_stopped(words, tmp_path, monkeypatch):
    options = ("OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1)
    train.main(words(tmp_path / "whole", *options))

    def interrupt(self):
        if self.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TRAINER_REGISTRY.get("CoOp"), "before_epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train.main(words(tmp_path / "cut", *options))
    train.main(words(tmp_path / "cut", *options))
    whole, cut = (torch.load(tmp_path / name / "prompt_learner" / "model.pth.tar-3", weights_only=True)["state_dict"]
                  for name in ("whole", "cut"))
    assert torch.equal(whole["ctx"], cut["ctx"])


@pytest.mark.slow  # a start of Python with PyTorch
def test_as_a_program(words, cache, tmp_path):
    """In a fresh process: two lines set the stand-in for the download, the rest is train.py."""
    stub = tmp_path / "stub.py"
    stub.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom clip import clip\n"
                    f"clip._MODELS['ViT-B/16'] = {cache!r}\nimport train\n"
                    "sys.exit(train.command_line(train.main))\n")
    done = subprocess.run([sys.executable, str(stub), *words(tmp_path / "out")], capture_output=True, text=True,
                          timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "replaces trainers.coop.CoOp" in done.stdout and "* accuracy: " in done.stdout
    assert json.loads((tmp_path / "out" / "results.json").read_text())["trainer"] == "CoOp"


@pytest.mark.usefixtures("cache")
def test_undeclared_keys_are_a_plugins_only(words, arguments, tmp_path):
    with pytest.raises(InputError, match=r"unknown key OPTIM.MINE"):
        train.main(words(tmp_path / "a", "OPTIM.MINE", 1))
    with pytest.raises(InputError, match=r"unknown key TRAINER.METAPROMPT.INIT.STD"):
        train.main(arguments("MetaPrompt", tmp_path / "b", "--plugin", COOP, "TRAINER.METAPROMPT.INIT.STD", 1))


def test_a_dataset_a_sampler_and_a_method(arguments, clips, tmp_path, capsys):
    results = train.main(arguments("Shift", tmp_path / "out", "--plugin", PLUGINS / "shapes.py",
                                   "DATASET.NAME", "Shapes", "DATALOADER.TRAIN_X.SAMPLER", "BackwardSampler",
                                   "TRAINER.SHIFT.STRENGTH", 2), clips=clips)
    assert results["dataset"] == "Shapes" and results["config"]["TRAINER"]["SHIFT"] == {"PREC": "auto", "STRENGTH": 2.0}
    order = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("order: "))
    assert order.split()[1:] == [name for name in sorted(drawn.CLASSES, reverse=True) for _ in range(2)]
    state = torch.load(tmp_path / "out" / "prompt_learner" / "model.pth.tar-2", weights_only=True)
    assert list(state["state_dict"]) == ["shift.ctx"]


def test_a_module_name_is_a_plugin(arguments, clips, tmp_path, monkeypatch):
    (tmp_path / "my_shapes_module.py").write_text((PLUGINS / "shapes.py").read_text())
    monkeypatch.syspath_prepend(str(tmp_path))
    argv = arguments("Shift", tmp_path / "out", "--plugin", "my_shapes_module", "--no-train")
    assert train.main(argv, clips=clips) == {}
    assert TRAINER_REGISTRY.get("Shift").__module__ == "my_shapes_module"


def test_installed_plugins_are_found(arguments, clips, tmp_path, monkeypatch):
    class Mine(TRAINER_REGISTRY.get("ZeroshotCLIP")):
        def model_inference(self, images):
            return -super().model_inference(images)

        @staticmethod
        def extend_cfg(cfg):
            cfg.TRAINER.MINE = CN({"PREC": "auto"})

    asked = []

    def entry_points(group):
        asked.append(group)
        load = types.SimpleNamespace(load=lambda: TRAINER_REGISTRY.register(Mine, force=True))
        return [load]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    results = train.main(arguments("Mine", tmp_path / "out"), clips=clips)
    assert asked == ["dassl.plugins"] and results["trainer"] == "Mine"


def test_an_installed_plugin_may_replace_a_built_in(monkeypatch, capsys):
    other = type("CoOp", (), {"__module__": "elsewhere"})
    entry = types.SimpleNamespace(load=lambda: TRAINER_REGISTRY.register(other))
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry])
    train.discover()
    assert TRAINER_REGISTRY.get("CoOp") is other
    assert "CoOp of elsewhere replaces trainers.coop.CoOp" in capsys.readouterr().out


HABITS = str(PLUGINS / "habits.v2.py")


def test_habits_of_public_files(arguments, clips, tmp_path):
    """A dataset wrapper asked by plain indices, a `test` of one's own, a file name with dots."""
    first, again = (train.main(arguments("OwnTest", tmp_path / name, "--plugin", HABITS, "DATALOADER.NUM_WORKERS",
                                         workers)) for name, workers in (("own", 0), ("again", 2)))
    assert 0 <= first["metrics"]["test"]["accuracy"] <= 100
    assert again["metrics"] == first["metrics"]
    one, two = (torch.load(tmp_path / name / "net" / "model.pth.tar-2", weights_only=True)["state_dict"]
                for name in ("own", "again"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_foreign_trainer_without_weights_is_evaluated(arguments, tmp_path):
    results = train.main(arguments("Guess", tmp_path, "--plugin", HABITS, "--eval-only"))
    assert results["metrics"]["test"]["accuracy"] == pytest.approx(100 / len(drawn.CLASSES), abs=15)


def test_a_prompt_trainer_that_declares_nothing_brings_its_keys(arguments, clips, tmp_path):
    words = arguments("Undeclared", tmp_path, "--plugin", HABITS, "TRAINER.UNDECLARED.FOO", 7)
    assert train.main(words, clips=clips)["config"]["TRAINER"]["UNDECLARED"] == {"FOO": 7}


@pytest.mark.usefixtures("cache")
def test_a_foreign_trainer_goes_through_a_protocol(words, tmp_path, drawn_root):
    config = words("unused")[words("unused").index("--config-file") + 1]
    table = protocol.main(["base2new", "--trainer", "CoOp", "--seeds", "1", "--dataset", "caltech101", "--cfg", config,
                           "--root", str(drawn_root), "--output", str(tmp_path / "out"), "--plugin", COOP,
                           "--backbone", "ViT-B/16"])
    assert "mean" in table and "-" not in table.splitlines()[-1]


def test_a_weights_file_as_the_backbone_of_a_foreign_trainer(arguments, words, tmp_path, clip_file):
    config = words("unused")[words("unused").index("--config-file") + 1]
    results = train.main(arguments("CoOp", tmp_path / "out", "--plugin", COOP, backbone=clip_file, config=config))
    assert results["metrics"]["test"]["accuracy"] >= 0


FORMER = str(PLUGINS / "former.py")


@pytest.mark.parametrize(("method", "options", "bound"), [
    ("SoftCoOp", (), False), ("SoftCoOp", ("TRAINER.SOFTCOOP.CSC", True), True), ("Former", (), False),
    ("Former", ("TRAINER.FORMER.OWN", True), True), ("FormerFeatures", (), False)])
def test_former_method_files_and_subclasses_run(method, options, bound, arguments, tiny_config, clips, clip_file,
                                                drawn_root, tmp_path, monkeypatch):
    """Trained, evaluated, and in base2new, where a method that belongs to its classes has no accuracy on new ones."""
    monkeypatch.setattr("training.towers.load_clip", lambda name: next(iter(clips.values())))
    base, again = tmp_path / "base", tmp_path / "again"
    trained = train.main(arguments(method, base, "--plugin", FORMER, *options), clips=clips)
    assert trained["class_bound"] is bound
    if method != "FormerFeatures":
        words = arguments(method, again, "--plugin", FORMER, "--eval-only", "--model-dir", base, *options)
        assert train.main(words, clips=clips)["metrics"] == trained["metrics"]
    table = protocol.main(["base2new", "--trainer", method, "--seeds", "1", "--dataset", "caltech101", "--cfg",
                           tiny_config, "--root", str(drawn_root), "--output", str(tmp_path / "out"), "--plugin",
                           FORMER, "--shots", "2", "--backbone", clip_file, *map(str, options)])
    assert ("-" in table.splitlines()[-1].split()) is bound


@pytest.mark.parametrize(("line", "told"), [
    ("from dassl.utils import from_first", "dassl.utils.from_first, which is dassl.utils.broadcast now"),
    ("import dassl.utils.ranks", "dassl.utils.ranks, which is dassl.utils.distributed now"),
    ("from trainers.checkpoints import X", "trainers.checkpoints, which is training.trained_tensors now"),
    ("from training import Nothing", "training.Nothing, which is not part of this release")])
def test_a_plugin_that_imports_what_has_moved_is_told_where(line, told, tmp_path):
    (tmp_path / "old.py").write_text(line + "\n")
    with pytest.raises(InputError, match=f"^--plugin .*old.py: it imports {told}$"):
        train.discover([str(tmp_path / "old.py")])


def test_what_else_a_plugin_lacks_is_left_as_it_is(tmp_path):
    (tmp_path / "lacks.py").write_text("import nowhere_to_be_found\n")
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        train.discover([str(tmp_path / "lacks.py")])


def test_where_moved_names_are():
    for name in moved.MOVED.values():
        module, _, last = name.rpartition(".")
        found = importlib.import_module(module)
        assert hasattr(found, last) or importlib.util.find_spec(name)


def test_a_foreign_trainer_may_use_the_names_of_parts(arguments, tmp_path):
    words = arguments("OwnNames", tmp_path, "--plugin", HABITS, "DATALOADER.NUM_WORKERS", 0)
    results = train.main(words)
    assert 0 <= results["metrics"]["test"]["accuracy"] <= 100 and results["budget"]["updates"] > 0


@pytest.mark.parametrize(("line", "told"), [
    ("class_bound = property(lambda self: super(Mine, self).class_bound or True)", "Mine.class_bound is a property"),
    ("def to_device(self, value): return value", "Mine defines to_device, which the engine does not call any more")])
def test_a_former_method_file_that_cannot_run_is_refused_at_once(line, told, arguments, clips, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from dassl.engine import TRAINER_REGISTRY\nfrom trainers.zsclip import ZeroshotCLIP\n\n"
        f"@TRAINER_REGISTRY.register()\nclass Mine(ZeroshotCLIP):\n    {line}\n")
    with pytest.raises(InputError, match=f"^{told}"):
        train.main(arguments("Mine", tmp_path / "out", "--plugin", tmp_path / "mine.py"), clips=clips)
    assert "Finish training" not in capsys.readouterr().out


def is_there(name):
    """Whether a module, or a name in one, can be imported."""
    module, _, last = name.rpartition(".")
    return hasattr(importlib.import_module(module), last) or importlib.util.find_spec(name) is not None


@pytest.mark.parametrize(("old", "new"), moved.MOVED.items())
def test_what_moved_is_gone_from_where_it_was_and_is_where_it_is_said_to_be(old, new):
    assert not is_there(old) and is_there(new)


def test_what_a_test_registers_is_not_there_in_the_next():
    for _ in range(2):  # it is loaded anew
        with registered_for_a_while():
            train.discover([str(PLUGINS / "bound.py")])
            assert "Dies" in TRAINER_REGISTRY
        assert "Dies" not in TRAINER_REGISTRY and "CoOp" in TRAINER_REGISTRY
