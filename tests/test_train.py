"""Whole runs through `train.main([...])` and the protocols, on drawn pictures with the tiny CLIP."""
import csv
import gzip
import hashlib
import io
import json
import re
from pathlib import Path

import drawn
import numpy as np
import pytest
import torch
import yaml

import train
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError
from tools import protocol
from tools.running import plans
from training import PromptTrainer
from training.trained_tensors import TrainedTensors

TRAINED = {
    "CoOp": {"prompt_learner.ctx"},
    "CoCoOp": {"prompt_learner.ctx", *(f"prompt_learner.meta_net.linear{i}.{kind}" for i in (1, 2)
                                       for kind in ("weight", "bias"))},
    "MetaPrompt": {"prompt_learner.ctx", "vision_prompt_learner.ctx"},
}
DG = ("--source-domains", "art_painting", "cartoon", "photo", "--target-domains", "sketch")


@pytest.fixture
def run(arguments, clips):
    return lambda *args, **kwargs: train.main(arguments(*args, **kwargs), clips=clips)


def state_of(folder, epoch=2):
    path = Path(folder) / "prompt_learner" / f"model.pth.tar-{epoch}"
    return torch.load(path, map_location="cpu", weights_only=True)


def prompts(folder, epoch=2):
    return state_of(folder, epoch)["state_dict"]


def same(first, second):
    """Bitwise the same tensors under the same names."""
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def never(*args, **kwargs):
    raise AssertionError("a finished run was run again")


@pytest.mark.parametrize("method", sorted(TRAINED))
def test_a_run_and_its_folder(method, run, tmp_path, monkeypatch, capsys):
    results = run(method, tmp_path / "a")
    assert 0 <= results["metrics"]["test"]["accuracy"] <= 100
    assert results["trainer"] == method and results["seed"] == 1
    with open(tmp_path / "a" / "results.json", encoding="utf-8") as file:
        assert json.load(file) == results
    config = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    assert config == results["config"]
    assert set(config["TRAINER"]) == {"NAME", method.upper()}
    log = (tmp_path / "a" / "log.txt").read_text()
    accuracy = results["metrics"]["test"]["accuracy"]
    assert f"=> result\n* total: 18\n* correct: {round(accuracy * 18 / 100)}\n* accuracy: {accuracy:.2f}%\n" in log
    assert "Finish training" in log
    assert "epoch [2/2] batch [3/3]" in log and "eta " in log
    assert list((tmp_path / "a" / "tensorboard").glob("events.out.tfevents.*"))

    state = state_of(tmp_path / "a")
    assert set(state["state_dict"]) == TRAINED[method]
    assert all(t.dtype == torch.float32 for t in state["state_dict"].values())
    assert state["epoch"] == 2
    first = prompts(tmp_path / "a", epoch=1)
    assert not any(torch.equal(first[name], state["state_dict"][name]) for name in first)
    assert not list((tmp_path / "a").rglob("*.tmp*"))

    monkeypatch.setattr(train, "run", never)
    assert run(method, tmp_path / "a") == results
    assert "Finished before" in capsys.readouterr().out


@pytest.mark.parametrize(("method", "options"), [("ZeroshotCLIP", ()), ("ZeroshotCLIP2", ()),
                                                 ("ZeroshotCLIP2", ("TRAINER.ZEROSHOTCLIP2.TEMPLATES", "all"))])
def test_zero_shot_evaluates_and_keeps_no_checkpoint(method, options, run, tmp_path):
    results = run(method, tmp_path / "a", *options)
    again = run(method, tmp_path / "b", "--eval-only", *options)
    assert results["metrics"] == again["metrics"]
    assert (tmp_path / "a" / "results.json").is_file()
    assert not list(tmp_path.rglob("model.pth.tar*"))


@pytest.mark.parametrize("method", sorted(TRAINED))
def test_a_seed_gives_one_result_whatever_loads_the_images(method, run, tmp_path):
    runs = [run(method, tmp_path / f"workers{n}", "DATALOADER.NUM_WORKERS", n) for n in (0, 2)]
    assert runs[0]["metrics"] == runs[1]["metrics"]
    assert same(prompts(tmp_path / "workers0"), prompts(tmp_path / "workers2"))
    run(method, tmp_path / "seed2", seed=2)
    assert not same(prompts(tmp_path / "workers0"), prompts(tmp_path / "seed2"))


@pytest.mark.parametrize("method", sorted(TRAINED))
def test_an_interrupted_run_ends_in_the_same_prompts(method, run, tmp_path, monkeypatch, capsys):
    options = ("OPTIM.MAX_EPOCH", 4)
    whole = run(method, tmp_path / "whole", *options)

    def interrupt(self):
        if self.epoch == 2:
            torch.rand(3)  # a run that is killed leaves the generators anywhere
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "before_epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(method, tmp_path / "cut", *options)
    assert not (tmp_path / "cut" / "results.json").exists()
    capsys.readouterr()
    resumed = run(method, tmp_path / "cut", *options)
    printed = capsys.readouterr().out
    assert "epoch [3/4]" in printed and "epoch [2/4]" not in printed
    assert resumed["metrics"] == whole["metrics"]
    assert same(prompts(tmp_path / "cut", 4), prompts(tmp_path / "whole", 4))
    first, second = (state_of(tmp_path / name, 4)["optimizers"][0] for name in ("cut", "whole"))
    assert all(torch.equal(first["state"][i]["momentum_buffer"], second["state"][i]["momentum_buffer"])
               for i in second["state"])


def test_a_run_killed_before_its_evaluation_only_evaluates(run, tmp_path, monkeypatch, capsys):
    whole = run("CoOp", tmp_path / "whole")

    def interrupt(self, split=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "test", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run("CoOp", tmp_path / "cut")
    capsys.readouterr()
    assert run("CoOp", tmp_path / "cut")["metrics"] == whole["metrics"]
    assert "epoch [" not in capsys.readouterr().out


def test_best_val_deploys_the_best_epoch(run, tmp_path, monkeypatch):
    scores = iter([10.0, 30.0, 20.0])
    test = PromptTrainer.test
    monkeypatch.setattr(PromptTrainer, "test",
                        lambda self, split=None: next(scores) if split == "val" else test(self, split))
    results = run("CoOp", tmp_path, "OPTIM.MAX_EPOCH", 3, "TEST.FINAL_MODEL", "best_val", "TRAIN.CHECKPOINT_FREQ", 1)
    best = torch.load(tmp_path / "prompt_learner" / "model-best.pth.tar", weights_only=True)
    assert best["epoch"] == 2 and best["val_result"] == 30.0
    assert same(best["state_dict"], prompts(tmp_path, 2))
    assert "model-best.pth.tar (epoch 2)" in (tmp_path / "log.txt").read_text()
    monkeypatch.setattr(PromptTrainer, "test", test)
    evaluated = run("CoOp", tmp_path / "again", "--eval-only", "--model-dir", tmp_path, "OPTIM.MAX_EPOCH", 3)
    assert evaluated["metrics"]["test"] == results["metrics"]["test"]
    assert "model-best.pth.tar (epoch 2)" in (tmp_path / "again" / "log.txt").read_text()


def test_a_resumed_run_remembers_the_best_epoch(run, tmp_path, monkeypatch):
    scores, test = {0: 30.0, 1: 20.0, 2: 25.0}, PromptTrainer.test
    monkeypatch.setattr(PromptTrainer, "test",
                        lambda self, split=None: scores[self.epoch] if split == "val" else test(self, split))

    def interrupt(self):
        if self.epoch == 2:
            raise KeyboardInterrupt

    options = ("OPTIM.MAX_EPOCH", 3, "TEST.FINAL_MODEL", "best_val")
    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "before_epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run("CoOp", tmp_path, *options)
    run("CoOp", tmp_path, *options)
    assert torch.load(tmp_path / "prompt_learner" / "model-best.pth.tar", weights_only=True)["epoch"] == 1


def test_best_val_evaluates_the_validation_part(run, tmp_path):
    results = run("CoOp", tmp_path, "TEST.FINAL_MODEL", "best_val")
    assert set(results["metrics"]) == {"val", "test"}
    assert "Evaluate on the *val* set" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("method", sorted(TRAINED))
def test_evaluation_on_new_classes(method, run, tmp_path, capsys):
    run(method, tmp_path / "base", "DATASET.SUBSAMPLE_CLASSES", "base")
    assert run(method, tmp_path / "same", "--eval-only", "--model-dir", tmp_path / "base",
               "DATASET.SUBSAMPLE_CLASSES", "base")["metrics"] == run(
        method, tmp_path / "base", "DATASET.SUBSAMPLE_CLASSES", "base")["metrics"]
    loaded = {}
    original = TrainedTensors.load

    def watch(self, directory, epoch):
        changed = original(self, directory, epoch)
        loaded.update(self.trainer.trained_state())
        return changed

    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainedTensors, "load", watch)
        results = run(method, tmp_path / "new", "--eval-only", "--model-dir", tmp_path / "base", "--load-epoch", 1,
                      "DATASET.SUBSAMPLE_CLASSES", "new")
    path = tmp_path / "base" / "prompt_learner" / "model.pth.tar-1"
    assert f"Loaded {path} (epoch 1)\n" in capsys.readouterr().out
    assert same(loaded, prompts(tmp_path / "base", 1))
    assert results["metrics"]["test"]["accuracy"] >= 0
    assert "* total: 9\n" in (tmp_path / "new" / "log.txt").read_text()


def test_class_bound_prompts_are_refused_for_other_classes(run, tmp_path):
    run("CoOp", tmp_path / "base", "DATASET.SUBSAMPLE_CLASSES", "base", "TRAINER.COOP.CSC", "True")
    with pytest.raises(InputError, match="classes it was trained on|config it was trained with"):
        run("CoOp", tmp_path / "all", "--eval-only", "--model-dir", tmp_path / "base", "TRAINER.COOP.CSC", "True")


def test_a_folder_belongs_to_one_config(run, tmp_path):
    run("CoOp", tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(InputError, match=r"OPTIM.LR is 0.05 there, 0.01 here"):
        run("CoOp", tmp_path, "OPTIM.LR", 0.01)
    with pytest.raises(InputError, match="another config"):
        run("CoOp", tmp_path, seed=2)
    with pytest.raises(InputError, match="another config"):
        run("MetaPrompt", tmp_path)
    # An unfinished run's folder, too.
    (tmp_path / "results.json").unlink()
    with pytest.raises(InputError, match="OPTIM.MAX_EPOCH"):
        run("CoOp", tmp_path, "OPTIM.MAX_EPOCH", 3)
    run("CoOp", tmp_path, "TRAIN.PRINT_FREQ", 3, "DATALOADER.NUM_WORKERS", 1)
    assert json.loads((tmp_path / "results.json").read_text())["metrics"] == json.loads(before)["metrics"]


def first_epoch_pictures(run, method, folder, patch, *options):
    """[(bytes of an image, label, file)] that the method's training step is given in epoch 1."""
    seen = []

    def record(self, batch):
        if self.epoch == 0:
            seen.extend(zip((image.numpy().tobytes() for image in batch["img"]), batch["label"].tolist(),
                            batch["impath"]))
        torch.autograd.grad(sum(p.sum() for p in self.trainables), self.trainables)  # all of it is reached
        return {"loss": 0.0}

    with patch.context() as context:
        context.setattr(TRAINER_REGISTRY.get(method), "training_step", record)
        run(method, folder, "OPTIM.MAX_EPOCH", 1, "STORE.USE", "False", *options)
    return seen


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # nothing is trained here
def test_methods_on_one_seed_see_the_same_pictures(run, tmp_path, monkeypatch):
    coop = first_epoch_pictures(run, "CoOp", tmp_path / "coop", monkeypatch)
    assert len(coop) == 12 and len({file for *_, file in coop}) == 12
    for method, workers, batch in (("CoOp", 2, 4), ("MetaPrompt", 0, 4), ("MetaPrompt", 2, 4), ("CoCoOp", 0, 1),
                                   ("CoCoOp", 2, 1)):
        assert coop == first_epoch_pictures(run, method, tmp_path / f"{method}{workers}", monkeypatch,
                                            "DATALOADER.TRAIN_X.BATCH_SIZE", batch, "DATALOADER.NUM_WORKERS", workers)


@pytest.mark.parametrize("options", [("SPLIT", "domain"), ("SPLIT", "auto", "ORDER", 2), ("SPLIT", "class"),
                                     ("SPLIT", "domain", "VARIANT", "released")],
                         ids=lambda options: "-".join(map(str, options)))
def test_metaprompt_over_domains(options, run, tmp_path):
    options = [f"TRAINER.METAPROMPT.{word}" if i % 2 == 0 else word for i, word in enumerate(options)]
    results = run("MetaPrompt", tmp_path, *DG, "DATALOADER.TRAIN_X.BATCH_SIZE", 6, *options, dataset="pacs")
    assert "held_out" in (tmp_path / "log.txt").read_text()
    assert results["config"]["DATASET"]["SOURCE_DOMAINS"] == ["art_painting", "cartoon", "photo"]
    # 3 domains x 4 classes x 2 shots, in batches of 6; the target has 4 classes x 5 images
    log = (tmp_path / "log.txt").read_text()
    assert "batch [4/4]" in log and "* total: 20\n" in log


def test_several_targets_are_told_apart(run, tmp_path):
    results = run("ZeroshotCLIP", tmp_path, "--source-domains", "photo", "--target-domains", "sketch", "cartoon",
                  dataset="pacs")["metrics"]["test"]
    assert results["accuracy"] == pytest.approx((results["accuracy_sketch"] + results["accuracy_cartoon"]) / 2)


@pytest.mark.parametrize(("method", "precision"), [("MetaPrompt", "amp"), ("MetaPrompt", "fp16"), ("CoOp", "amp"),
                                                   ("CoCoOp", "fp16")])
def test_prompts_stay_float32_in_every_precision(method, precision, run, tmp_path):
    run(method, tmp_path, f"TRAINER.{method.upper()}.PREC", precision)
    first, last = prompts(tmp_path, 1), prompts(tmp_path, 2)
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in last.values())
    assert not any(torch.equal(first[name], last[name]) for name in last)


@pytest.mark.parametrize("options", [("ORDER", 2), ("VARIANT", "released")])
def test_metaprompt_over_classes(options, run, tmp_path):
    run("MetaPrompt", tmp_path / "a")
    run("MetaPrompt", tmp_path / "b", f"TRAINER.METAPROMPT.{options[0]}", options[1])
    assert "held_out" in (tmp_path / "b" / "log.txt").read_text()
    assert not same(prompts(tmp_path / "a"), prompts(tmp_path / "b"))


def test_too_few_classes_to_halve_leave_the_first_update(run, tmp_path):
    results = run("MetaPrompt", tmp_path, "DATASET.SUBSAMPLE_CLASSES", "base")
    log = (tmp_path / "log.txt").read_text()
    assert log.count("cannot be halved") == 1 and "held_out" not in log
    assert "test" in results["metrics"]


def test_a_clip_is_shared_and_never_changed(run, clip_model, tmp_path):
    before = {name: tensor.clone() for name, tensor in clip_model.state_dict().items()}
    run("CoOp", tmp_path / "half", "TRAINER.COOP.PREC", "fp16")
    run("MetaPrompt", tmp_path / "meta")
    after = clip_model.state_dict()
    assert same(before, after) and not any(p.requires_grad or p.grad is not None for p in clip_model.parameters())


def test_resume_from_another_folder(run, tmp_path):
    run("CoOp", tmp_path / "first", "OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1)
    run("CoOp", tmp_path / "more", "--resume", tmp_path / "first", "OPTIM.MAX_EPOCH", 3)
    log = (tmp_path / "more" / "log.txt").read_text()
    assert "epoch [3/3]" in log and "epoch [2/3]" not in log


def test_checkpoint_frequency_keeps_epochs(run, tmp_path):
    run("CoOp", tmp_path / "few", "OPTIM.MAX_EPOCH", 5)
    run("CoOp", tmp_path / "some", "OPTIM.MAX_EPOCH", 5, "TRAIN.CHECKPOINT_FREQ", 2)

    def kept(name):
        return sorted(int(p.name.rsplit("-", 1)[1]) for p in (tmp_path / name).rglob("model.pth.tar-*"))

    assert kept("few") == [4, 5]
    assert kept("some") == [2, 4, 5]


def test_no_train_builds_and_leaves_no_results(run, tmp_path):
    assert run("CoOp", tmp_path, "--no-train") == {}
    assert (tmp_path / "config.yaml").is_file() and not (tmp_path / "results.json").exists()
    assert run("CoOp", tmp_path)["metrics"]["test"]


def test_a_drawn_seed_is_printed_and_kept(run, tmp_path, capsys):
    results = run("ZeroshotCLIP", tmp_path, seed=-1)
    assert results["seed"] >= 0
    assert f"seed {results['seed']}" in capsys.readouterr().out


def test_an_evaluation_follows_the_prompts_it_is_asked_for(run, tmp_path):
    for seed in (1, 2):
        run("CoOp", tmp_path / f"trained{seed}", seed=seed)
    words = ("--eval-only", "--model-dir")
    first = run("CoOp", tmp_path / "out", *words, tmp_path / "trained1")
    again = run("CoOp", tmp_path / "out", *words, tmp_path / "trained1")
    other = run("CoOp", tmp_path / "out", *words, tmp_path / "trained2")
    assert again == first and other["evaluation"]["checkpoint"] != first["evaluation"]["checkpoint"]
    with open(tmp_path / "out" / "results.json", encoding="utf-8") as file:
        assert json.load(file) == other


def test_class_bound_prompts_are_refused_for_as_many_other_classes(run, tmp_path):
    words = ("TRAINER.COOP.CSC", "True")
    run("CoOp", tmp_path / "base", *words, "DATASET.SUBSAMPLE_CLASSES", "base")
    with pytest.raises(InputError, match="other classes"):
        run("CoOp", tmp_path / "new", "--eval-only", "--model-dir", tmp_path / "base", *words,
            "DATASET.SUBSAMPLE_CLASSES", "new")


def test_resuming_from_nowhere_is_an_error(run, tmp_path):
    with pytest.raises(InputError, match="no checkpoint"):
        run("CoOp", tmp_path / "out", "--resume", tmp_path / "nowhere")


def test_a_resumed_run_deploys_the_best_epoch_of_the_first(run, tmp_path, monkeypatch):
    values = iter([90.0, 10.0])
    test = PromptTrainer.test
    monkeypatch.setattr(PromptTrainer, "test", lambda self, split=None: next(values) if split else test(self))
    words = ("TEST.FINAL_MODEL", "best_val")
    loop = PromptTrainer.after_epoch

    def stop(self):
        loop(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "after_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            run("CoOp", tmp_path / "first", *words)
    run("CoOp", tmp_path / "second", "--resume", tmp_path / "first", *words)
    best = torch.load(tmp_path / "second/prompt_learner/model-best.pth.tar", weights_only=True)
    assert best["epoch"] == 1 and "model-best" in (tmp_path / "second/log.txt").read_text()


def test_an_evaluation_does_not_move_into_a_training_folder(run, tmp_path):
    run("CoOp", tmp_path / "a")
    (tmp_path / "a" / "results.json").unlink()
    with pytest.raises(InputError, match="holds a training run"):
        run("CoOp", tmp_path / "a", "--eval-only", "--model-dir", tmp_path / "a")


def test_configs_in_the_manner_of_coop_load(run, tmp_path):
    config = tmp_path / "coop.yaml"
    config.write_text('INPUT:\n  SIZE: (32, 32)\nOPTIM:\n  STEPSIZE: (-1, )\n  LR: 2e-3\n  MAX_EPOCH: 1\n'
                      'DATALOADER:\n  NUM_WORKERS: 0\n')
    stored = run("CoOp", tmp_path / "out", config=config)["config"]
    assert stored["INPUT"]["SIZE"] == [32, 32] and stored["OPTIM"]["STEPSIZE"] == [-1]
    assert stored["OPTIM"]["LR"] == 0.002


# ---- protocols ----
@pytest.fixture
def call(drawn_root, tiny_config, clip_file, tmp_path, monkeypatch, clip_model):
    monkeypatch.setattr("training.towers.load_clip", lambda name: clip_model)
    monkeypatch.setattr(plans, "load_clip", lambda name: clip_model)

    def call(name, *words, dataset="caltech101", options=()):
        return protocol.main([name, *words, "--dataset", dataset, "--cfg", tiny_config, "--root", str(drawn_root),
                              "--output", str(tmp_path / "out"), "--shots", "2", "--backbone", clip_file,
                              "OPTIM.MAX_EPOCH", "1", *options])

    return call


def cells(table):
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()]


def test_base2new(call, tmp_path, monkeypatch, capsys):
    table = call("base2new", "--trainer", "CoOp", "--seeds", "1", "2")
    folder = tmp_path / "out" / "base2new"
    values = []
    for seed in (1, 2):
        value = []
        for part in ("train_base", "test_new"):
            path = folder / part / "caltech101" / "shots_2" / "CoOp" / "tiny" / f"seed{seed}" / "results.json"
            stored = json.loads(path.read_text())
            assert stored["config"]["DATASET"]["SUBSAMPLE_CLASSES"] == part.split("_")[1]
            value.append(stored["metrics"]["test"]["accuracy"])
        values.append(value)
    rows = cells(table)
    assert rows[0] == ["base", "new", "H"]
    for row, seed, (base, new) in zip(rows[2:], (1, 2), values):
        h = 2 * base * new / (base + new) if base + new else 0.0
        assert row == [f"seed {seed}", f"{base:.2f}", f"{new:.2f}", f"{h:.2f}"]
    base, new = (sum(column) / 2 for column in zip(*values))
    spread = abs(values[0][0] - values[1][0]) / 2 ** 0.5
    assert rows[4][0] == "mean" and rows[4][1] == f"{base:.2f} +- {spread:.2f}"
    assert rows[4][3] == f"{2 * base * new / (base + new) if base + new else 0:.2f}"
    assert table in capsys.readouterr().out

    monkeypatch.setattr(train, "run", never)
    assert call("base2new", "--trainer", "CoOp", "--seeds", "1", "2") == table


def test_base2new_of_a_class_bound_method_has_no_new(call, tmp_path):
    table = call("base2new", "--trainer", "CoOp", "--seeds", "1", options=("TRAINER.COOP.CSC", "True"))
    assert cells(table)[2][2:] == ["-", "-"] and cells(table)[3][2:] == ["-", "-"]
    assert not (tmp_path / "out" / "base2new" / "test_new").exists()


def test_dg(call, tmp_path, monkeypatch):
    table = call("dg", "--trainer", "MetaPrompt", "--seeds", "1", dataset="pacs",
                 options=("DATALOADER.TRAIN_X.BATCH_SIZE", "6"))
    rows = cells(table)
    targets = ["art_painting", "cartoon", "photo", "sketch"]
    assert rows[0] == [*targets, "average"]
    numbers = []
    for target in targets:
        path = tmp_path / "out" / "dg" / "pacs" / "shots_2" / "MetaPrompt" / "tiny" / target / "seed1" / "results.json"
        stored = json.loads(path.read_text())
        assert stored["config"]["DATASET"]["TARGET_DOMAINS"] == [target]
        assert target not in stored["config"]["DATASET"]["SOURCE_DOMAINS"]
        numbers.append(stored["metrics"]["test"]["accuracy"])
    assert rows[2] == ["seed 1", *(f"{n:.2f}" for n in numbers), f"{sum(numbers) / 4:.2f}"]
    monkeypatch.setattr(train, "run", never)
    assert call("dg", "--trainer", "MetaPrompt", "--seeds", "1", dataset="pacs",
                options=("DATALOADER.TRAIN_X.BATCH_SIZE", "6")) == table


def test_compare(call, monkeypatch):
    table = call("compare", "--seeds", "1")
    rows = cells(table)
    assert rows[0] == ["method", "base", "new", "H", "seconds per seed"]
    assert [row[0] for row in rows[2:]] == ["ZeroshotCLIP", "CoOp", "CoCoOp", "MetaPrompt"]
    monkeypatch.setattr(train, "run", never)
    assert call("compare", "--seeds", "1") == table


def test_compare_takes_methods(call):
    rows = cells(call("compare", "--seeds", "1", "--trainer", "ZeroshotCLIP", "ZeroshotCLIP2"))
    assert [row[0] for row in rows[2:]] == ["ZeroshotCLIP", "ZeroshotCLIP2"]


def test_dg_needs_domains(call):
    with pytest.raises(InputError, match="has no domains"):
        call("dg", "--trainer", "CoOp", "--seeds", "1")


def test_a_resnet_serves_methods_that_leave_the_image_tower_alone(run, arguments, tmp_path, resnet_file):
    results = run("CoOp", tmp_path / "coop", backbone=resnet_file)
    assert results["metrics"]["test"]["accuracy"] >= 0
    assert set(prompts(tmp_path / "coop")) == TRAINED["CoOp"]
    run("CoCoOp", tmp_path / "cocoop", backbone=resnet_file)
    errors = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", errors)
        assert train.command_line(lambda: run("MetaPrompt", tmp_path / "meta", backbone=resnet_file)) == 2
    assert "ViT" in errors.getvalue() and errors.getvalue().count("\n") == 1


# ---- options of every training step ----
def end_with(run, folder, monkeypatch, scores, *words, method="CoOp"):
    """A run whose epochs have these validation accuracies."""
    test = PromptTrainer.test
    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "test",
                      lambda self, split=None: scores[self.epoch] if split == "val" else test(self, split))
        return run(method, folder, "OPTIM.MAX_EPOCH", 6, "TRAIN.PATIENCE", 2, *words)


SCORES = [10.0, 30.0, 20.0, 30.0, 40.0, 50.0]


@pytest.mark.parametrize("final", ["last_step", "best_val"])
def test_patience_ends_a_training(final, run, tmp_path, monkeypatch):
    results = end_with(run, tmp_path / "a", monkeypatch, SCORES, "TEST.FINAL_MODEL", final)
    assert results["stopped"] == {"epoch": 4, "best_epoch": 2, "patience": 2}
    log = (tmp_path / "a" / "log.txt").read_text()
    assert "No better validation accuracy in 2 epochs: the training ends after epoch 4, the best was epoch 2" in log
    assert "epoch [4/6]" in log and "epoch [5/" not in log
    last = prompts(tmp_path / "a", 4)
    if final == "best_val":
        best = torch.load(tmp_path / "a/prompt_learner/model-best.pth.tar", weights_only=True)
        assert best["epoch"] == 2 and "model-best.pth.tar (epoch 2)" in log and not same(best["state_dict"], last)
    whole = run("CoOp", tmp_path / "whole", "OPTIM.MAX_EPOCH", 6, "TRAIN.CHECKPOINT_FREQ", 1)
    assert same(prompts(tmp_path / "whole", 4), last) and whole["stopped"] is None


@pytest.mark.parametrize("killed_in", [2, 3, "the end"])
def test_patience_survives_a_kill(killed_in, run, tmp_path, monkeypatch):
    whole = end_with(run, tmp_path / "whole", monkeypatch, SCORES)

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if killed_in == "the end":
            patch.setattr(PromptTrainer, "after_train", killed)
        else:
            patch.setattr(PromptTrainer, "before_epoch", lambda self: self.epoch == killed_in and killed(self))
        with pytest.raises(KeyboardInterrupt):
            end_with(run, tmp_path / "cut", monkeypatch, SCORES)
    resumed = end_with(run, tmp_path / "cut", monkeypatch, SCORES)
    assert resumed["stopped"] == whole["stopped"] and resumed["metrics"] == whole["metrics"]
    assert same(prompts(tmp_path / "cut", 4), prompts(tmp_path / "whole", 4))


def test_patience_that_does_not_run_out(run, tmp_path, monkeypatch):
    results = end_with(run, tmp_path, monkeypatch, [1.0, 2.0, 3.0, 4.0, 5.0, 4.0])
    assert results["stopped"] is None and state_of(tmp_path, 6)["finished"]


def test_an_averaged_method_that_is_ended_early_averages_what_was_trained(run, tmp_path, monkeypatch):
    words = ("TRAINER.PROMPTSRC.GPA_MEAN", 3.0, "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", 2,
             "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", 2)
    trained, after, evaluated = [], TRAINER_REGISTRY.get("PromptSRC").after_epoch, []
    infer = PromptTrainer.model_inference

    def keep(self):
        trained.append(self.trained_state())
        after(self)

    def look(self, images):
        evaluated.append({name: p.detach().clone() for name, p in self.model.named_parameters()})
        return infer(self, images)

    monkeypatch.setattr(TRAINER_REGISTRY.get("PromptSRC"), "after_epoch", keep)
    monkeypatch.setattr(PromptTrainer, "model_inference", look)
    end_with(run, tmp_path / "a", monkeypatch, SCORES, *words, method="PromptSRC")
    weights = torch.softmax(-0.5 * (torch.arange(1, 5, dtype=torch.float64) - 3.0) ** 2, dim=0).tolist()
    assert same(prompts(tmp_path / "a", 4), trained[-1]) and not same(evaluated[-1], trained[-1])
    for name, tensor in evaluated[-1].items():
        torch.testing.assert_close(tensor, sum(w * epoch[name] for w, epoch in zip(weights, trained)))


def test_a_method_with_an_end_goes_on_from_before_it(run, tmp_path):
    """More epochs after a training that had ended in an average, or in the best epoch's keys, are as if it had not."""
    words = ("OPTIM.WARMUP_EPOCH", 0, "OPTIM.LR_SCHEDULER", "single_step")
    for method, more in (("PromptSRC", ("TRAINER.PROMPTSRC.GPA_MEAN", 2.0, "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", 2,
                                        "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", 2)), ("TipAdapterF", ())):
        run(method, tmp_path / f"{method}2", *words, *more)
        went_on = run(method, tmp_path / f"{method}4", "--resume", tmp_path / f"{method}2", *words, *more,
                      "OPTIM.MAX_EPOCH", 4)
        whole = run(method, tmp_path / f"{method}whole", *words, *more, "OPTIM.MAX_EPOCH", 4)
        if method == "PromptSRC":  # whose rate is the same in both; the cosine of the other is not
            assert went_on["metrics"] == whole["metrics"]
            first, second = prompts(tmp_path / f"{method}4", 4), prompts(tmp_path / f"{method}whole", 4)
            assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in second)
        else:
            keys = state_of(tmp_path / "TipAdapterF2", 2)["extra"]
            assert keys["last_keys"] is not None and went_on["metrics"]["test"]


@pytest.mark.parametrize("method", ["CoOp", "MetaPrompt"])
def test_options_that_are_off_change_nothing_and_on_something(method, run, tmp_path):
    run(method, tmp_path / "plain")
    for key, value, off in (("OPTIM.LABEL_SMOOTHING", 0.2, 0.0), ("OPTIM.CLIP_GRAD_NORM", 1e-3, 1e6)):
        run(method, tmp_path / f"{key}off", key, off)
        run(method, tmp_path / f"{key}on", key, value)
        assert same(prompts(tmp_path / "plain"), prompts(tmp_path / f"{key}off"))
        assert not same(prompts(tmp_path / "plain"), prompts(tmp_path / f"{key}on"))


# ---- what a run keeps on request ----
def test_the_training_images_are_evaluated_as_test_images_are(run, tmp_path):
    """In their order, without augmentation: what another run's test part of the same images gives."""
    results = run("CoOp", tmp_path / "a", "TEST.SPLIT", "train", "TEST.SAVE_LOGITS", True)
    assert set(results["metrics"]) == {"train"} and results["classes"]["total"] == [2] * 6
    assert not (tmp_path / "a" / "predictions.csv.gz").exists()
    words = ("--eval-only", "--model-dir", tmp_path / "a", "TEST.SAVE_LOGITS", True, "TEST.SPLIT", "train",
             "DATALOADER.NUM_WORKERS", 2)
    again = run("CoOp", tmp_path / "b", *words)
    assert again["metrics"] == results["metrics"]
    first, second = (np.load(tmp_path / name / "logits.npz") for name in "ab")
    drawn = json.loads((tmp_path / "a" / "split_fewshot" / "shot_2-seed_1.json").read_text())["train"]
    assert [path.removeprefix("caltech-101/") for path in first["paths"]] == [path for path, _, _ in drawn]
    np.testing.assert_array_equal(first["logits"], second["logits"])


def test_a_trainer_tests_any_part(arguments, clips, tmp_path):
    argv = arguments("ZeroshotCLIP", tmp_path)
    cfg = train.build_config(train.parse_arguments(argv))
    trainer = TRAINER_REGISTRY.get("ZeroshotCLIP")(cfg, clips=clips)
    for split, images in (("train", 12), ("val", 12), ("test", 18)):
        assert trainer.test(split=split) == trainer.results[split]["accuracy"]
        assert len(trainer.evaluator.predictions()[1]) == images
    with pytest.raises(InputError, match="did you mean 'train'"):
        trainer.test(split="trian")


@pytest.mark.parametrize("words", [(), ("--eval-only",)])
def test_every_number_follows_from_the_kept_scores(words, run, tmp_path):
    options = ("TEST.SAVE_LOGITS", True, "TEST.PER_CLASS_RESULT", True, "TEST.COMPUTE_CMAT", True)
    if words:
        run("CoOp", tmp_path / "trained")
        words = (*words, "--model-dir", tmp_path / "trained")
    results = run("CoOp", tmp_path / "a", *words, *options)
    kept = np.load(tmp_path / "a" / "logits.npz")
    logits, labels, metrics = kept["logits"], kept["labels"], results["metrics"]["test"]
    assert logits.shape == (18, 6) and logits.dtype == np.float32
    assert kept["classnames"].tolist() == results["classes"]["name"]
    predicted = logits.argmax(1)
    confusion = np.zeros((6, 6), int)
    np.add.at(confusion, (labels, predicted), 1)
    assert results["confusion"] == confusion.tolist()
    assert metrics["accuracy"] == pytest.approx(100 * (predicted == labels).mean())
    recall = np.diag(confusion) / confusion.sum(1)
    precision = np.diag(confusion) / np.maximum(confusion.sum(0), 1)
    assert metrics["macro_recall"] == pytest.approx(100 * recall.mean())
    assert metrics["macro_precision"] == pytest.approx(100 * precision.mean())
    assert results["classes"]["recall"] == pytest.approx((100 * recall).tolist())
    with gzip.open(tmp_path / "a" / "predictions.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == kept["paths"].tolist()
    shares = np.exp(logits - logits.max(1, keepdims=True))
    confidence = (shares / shares.sum(1, keepdims=True)).max(1)
    np.testing.assert_allclose(confidence, [float(row["confidence"]) for row in rows], atol=1e-5)


def test_a_run_notes_its_training_images(run, tmp_path):
    run("CoOp", tmp_path / "a")
    run("ZeroshotCLIP", tmp_path / "b")
    with gzip.open(tmp_path / "a" / "train_images.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    root = Path(yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["DATASET"]["ROOT"])
    assert len(rows) == 12
    for row in rows:
        content = (root / row["path"]).read_bytes()
        assert int(row["size"]) == len(content) and row["sha256"] == hashlib.sha256(content).hexdigest()[:16]
    assert not (tmp_path / "b" / "train_images.csv.gz").exists()
    found = run("CoOp", tmp_path / "c", "--eval-only", "--model-dir", tmp_path / "a")["overlap"]
    assert found == {"test": 0, "val": 0, "of": 18, "by_path": 0, "val_train": 0}


def test_a_run_that_was_finished_before_these_settings(run, tmp_path, capsys):
    results = run("CoOp", tmp_path)
    for key in ("ALLOW_OVERLAP", "TEMPLATES", "CLASSNAMES"):
        del results["config"]["DATASET"][key]
    del results["config"]["TEST"]["SAVE_LOGITS"], results["overlap"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert run("CoOp", tmp_path) == results and "Finished before" in capsys.readouterr().out


# ---- templates and names of one's own ----
def test_own_names_and_templates_reach_the_prompts(run, tmp_path):
    """A zero-shot run on renamed classes is the run on a dataset that had these names from the start."""
    names = {"horse": "stallion", "water_lilly": "lotus"}
    (tmp_path / "names.json").write_text(json.dumps(names))
    (tmp_path / "names.txt").write_text("horse = stallion\n\nwater_lilly=lotus\n")
    drawn.write_caltech(tmp_path / "data")
    path = tmp_path / "data" / "caltech-101" / "split_zhou_Caltech101.json"
    options = ("TEST.SAVE_LOGITS", True, "DATASET.TEMPLATES", "['an X-ray of a {}.', 'a scan of the {}.']")
    for kind in ("json", "txt"):
        run("ZeroshotCLIP", tmp_path / kind, *options, "DATASET.CLASSNAMES", tmp_path / f"names.{kind}",
            root=tmp_path / "data")
    split = json.loads(path.read_text())
    path.write_text(json.dumps({part: [[file, label, names.get(name, name)] for file, label, name in entries]
                                for part, entries in split.items()}))
    expected = run("ZeroshotCLIP", tmp_path / "a", *options, root=tmp_path / "data")
    plain = run("ZeroshotCLIP", tmp_path / "b", "TEST.SAVE_LOGITS", True, root=tmp_path / "data")
    assert "stallion" in expected["classes"]["name"] and plain["classes"]["name"] == expected["classes"]["name"]
    logits = {name: np.load(tmp_path / name / "logits.npz")["logits"] for name in ("json", "txt", "a", "b")}
    np.testing.assert_array_equal(logits["json"], logits["a"])
    np.testing.assert_array_equal(logits["txt"], logits["a"])
    assert np.abs(logits["a"] - logits["b"]).max() > 1e-3
