"""What a user gets wrong: one line that names it, exit status 2, no results."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import drawn
import pytest
import torch

import tiny_clip
import train
from tools import protocol

ROOT = Path(__file__).resolve().parents[1]
PACS = ("--source-domains", "photo", "cartoon", "--target-domains", "sketch")


@pytest.fixture
def complains(arguments, clips, tmp_path, capsys):
    """Run what must fail and return its one line."""

    def complains(trainer="CoOp", *words, shared=True, **kwargs):
        argv = arguments(trainer, tmp_path / "out", *words, **kwargs)
        capsys.readouterr()
        status = train.command_line(lambda: train.main(argv, clips=clips if shared else {}))
        line = capsys.readouterr().err
        assert status == 2, line
        assert line.startswith("error: ") and line.count("\n") == 1 and line.endswith("\n"), line
        assert "Traceback" not in line
        assert not list(tmp_path.rglob("results.json"))
        return line

    return complains


@pytest.mark.parametrize(("trainer", "words", "parts"), [
    ("MetaPromt", (), ["'MetaPromt'", "did you mean 'MetaPrompt'", "CoCoOp", "ZeroshotCLIP2"]),
    ("", (), ["no method is named", "MetaPrompt"]),
    ("CoOp", ("DATASET.NAME", "Caltech"), ["dataset 'Caltech'", "Caltech101", "PACS"]),
    ("CoOp", ("OPTIM.LRATE", 1), ["OPTIM.LRATE", "did you mean 'OPTIM.LR'"]),
    ("CoOp", ("TRAINER.COOP.NCTX", 1), ["TRAINER.COOP.NCTX", "did you mean 'TRAINER.COOP.N_CTX'"]),
    ("CoOp", ("OPTIM.MAX_EPOCH", "many"), ["OPTIM.MAX_EPOCH", "int", "'many'"]),
    ("CoOp", ("OPTIM.MAX_EPOCH",), ["OPTIM.MAX_EPOCH", "no value"]),
    ("CoOp", ("OPTIM.MAX_EPOCH", 0), ["OPTIM.MAX_EPOCH"]),
    ("CoOp", ("OPTIM.LR", -1), ["OPTIM.LR", "-1"]),
    ("CoOp", ("OPTIM.NAME", "sdg"), ["OPTIM.NAME", "did you mean 'sgd'"]),
    ("CoOp", ("OPTIM.MOMENTUM", -1), ["OPTIM.MOMENTUM", "-1"]),
    ("CoOp", ("OPTIM.LR_SCHEDULER", "cosinus"), ["OPTIM.LR_SCHEDULER", "cosine"]),
    ("CoOp", ("INPUT.TRANSFORMS", "['random_flop']"), ["INPUT.TRANSFORMS", "did you mean 'random_flip'"]),
    ("CoOp", ("INPUT.INTERPOLATION", "cubic"), ["INPUT.INTERPOLATION", "bicubic"]),
    ("CoOp", ("INPUT.SIZE", 32), ["INPUT.SIZE"]),
    ("CoOp", ("INPUT.SIZE", "(64,64)"), ["INPUT.SIZE", "(64, 64)", "32 x 32"]),
    ("CoOp", ("INPUT.SIZE", "large"), ["INPUT.SIZE"]),
    ("CoOp", ("DATALOADER.TRAIN_X.SAMPLER", "Random"), ["'Random'", "RandomSampler"]),
    ("CoOp", ("DATALOADER.TRAIN_X.BATCH_SIZE", 0), ["DATALOADER.TRAIN_X.BATCH_SIZE"]),
    ("CoOp", ("DATALOADER.TEST.BATCH_SIZE", 0), ["DATALOADER.TEST.BATCH_SIZE"]),
    ("CoOp", ("INPUT.PIXEL_STD", "[1.0,1.0,0.0]"), ["INPUT.PIXEL_STD"]),
    ("CoOp", ("DATALOADER.NUM_WORKERS", -1), ["DATALOADER.NUM_WORKERS"]),
    ("CoOp", ("TEST.EVALUATOR", "Regression"), ["'Regression'", "Classification"]),
    ("CoOp", ("TEST.FINAL_MODEL", "best"), ["TEST.FINAL_MODEL", "best_val"]),
    ("CoOp", ("DATASET.SUBSAMPLE_CLASSES", "old"), ["DATASET.SUBSAMPLE_CLASSES", "base"]),
    ("CoOp", ("TRAINER.COOP.PREC", "fp8"), ["PREC", "fp8", "fp16", "bf16"]),
    ("CoOp", ("TRAINER.COOP.N_CTX", 0), ["N_CTX"]),
    ("CoOp", ("TRAINER.COOP.CLASS_TOKEN_POSITION", "back"), ["'back'", "front"]),
    ("ZeroshotCLIP2", ("TRAINER.ZEROSHOTCLIP2.TEMPLATES", "some"), ["'some'", "selected"]),
    ("MetaPrompt", ("TRAINER.METAPROMPT.LAYERS", 5), ["LAYERS", "1 to 4"]),
    ("MetaPrompt", ("TRAINER.METAPROMPT.ORDER", 3), ["ORDER"]),
    ("MetaPrompt", ("TRAINER.METAPROMPT.SPLIT", "domain"), ["SPLIT", "two source domains"]),
    ("MetaPrompt", ("DATALOADER.TRAIN_X.BATCH_SIZE", 1), ["BATCH_SIZE", "2 images"]),
    ("CoOp", ("--eval-only",), ["--eval-only", "--model-dir"]),
    ("CoOp", ("--eval-only", "--model-dir", "/nowhere"), ["/nowhere", "--model-dir"]),
    ("CoOp", ("--plugin", "/nowhere/mine.py"), ["--plugin", "/nowhere/mine.py"]),
    ("CoOp", ("--plugin", "no.such.module"), ["--plugin", "no.such.module"]),
    ("CoOp", ("--config-file", "/nowhere/a.yaml"), ["/nowhere/a.yaml"]),
    ("CoOp", ("--config-file", __file__), [__file__, "YAML"]),
    ("CoOp", ("--sead", "1"), ["--sead"]),
    ("CoOp", ("--seed", "one"), ["--seed", "one"]),
    ("CoOp", ("--seed", 2**70), ["seed"]),
])
def test_wrong_words(trainer, words, parts, complains):
    line = complains(trainer, *words)
    assert [part for part in parts if str(part) not in line] == [], line


@pytest.mark.parametrize(("words", "parts"), [
    (("--source-domains", "photo", "--target-domains", "scetch"), ["'scetch'", "sketch"]),
    ((), ["--source-domains", "art_painting"]),
    (("--source-domains", "photo", "--target-domains", "sketch", "TRAINER.METAPROMPT.SPLIT", "domain"),
     ["SPLIT", "two source domains"]),
])
def test_wrong_domains(words, parts, complains):
    line = complains("MetaPrompt", *words, dataset="pacs")
    assert [part for part in parts if part not in line] == [], line


@pytest.mark.parametrize(("name", "value"), [("images", 1), ("rate", 1e38)])
def test_a_loss_that_explodes_names_the_step_and_the_images(name, value, complains):
    words = ("OPTIM.LR", value, "OPTIM.WARMUP_EPOCH", 0, "OPTIM.MAX_EPOCH", 9)
    if name == "images":
        words = ("INPUT.PIXEL_STD", "[1e-38,1e-38,1e-38]")
    line = complains("CoOp", *words)
    step = ("epoch", "batch", "learning rate") if name == "rate" else ("features", "12 images", "not finite")
    assert [part for part in (*step, ".png") if part not in line] == [], line
    if name == "images":
        line = complains("CoOp", *words, "STORE.USE", "False")
        assert "epoch" in line and "batch" in line and "learning rate" in line and ".png" in line


# ---- data ----
def test_missing_data_folder(complains, tmp_path):
    line = complains(root=tmp_path / "nowhere")
    assert str(tmp_path / "nowhere" / "caltech-101") in line and "https://" in line and "--root" in line
    line = complains("MetaPrompt", *PACS, root=tmp_path / "nowhere", dataset="pacs")
    assert str(tmp_path / "nowhere" / "pacs") in line and "https://" in line


@pytest.fixture
def own_data(tmp_path):
    drawn.write_caltech(tmp_path / "own")
    return tmp_path / "own"


def test_missing_split_and_images(complains, own_data):
    (own_data / "caltech-101" / "split_zhou_Caltech101.json").unlink()
    shutil.rmtree(own_data / "caltech-101" / "101_ObjectCategories")
    line = complains(root=own_data)
    assert str(own_data / "caltech-101" / "101_ObjectCategories") in line and "https://" in line


@pytest.mark.parametrize("content", ["{torn", "[]", "{}", '{"train": [["a"]], "val": [], "test": []}',
                                     '{"train": [], "val": [], "test": []}'])
def test_split_of_another_form(content, complains, own_data):
    (own_data / "caltech-101" / "split_zhou_Caltech101.json").write_text(content)
    line = complains(root=own_data)
    assert "split_zhou_Caltech101.json" in line or "training part is empty" in line


def test_split_that_names_a_missing_image(complains, own_data):
    gone = own_data / "caltech-101" / "101_ObjectCategories" / "dog" / "image_0000.png"
    gone.unlink()
    line = complains(root=own_data)
    assert str(gone) in line and "split_zhou_Caltech101.json" in line


def test_pacs_list_of_another_form(complains, tmp_path):
    path = drawn.write_pacs(tmp_path / "own") / "splits" / "photo_train_kfold.txt"
    path.write_text(path.read_text() + "photo/dog/pic_000.png dog\n")
    line = complains("MetaPrompt", *PACS, root=tmp_path / "own", dataset="pacs")
    assert "photo_train_kfold.txt, line 13" in line


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_image_that_does_not_decode(workers, content, complains, own_data):
    for path in (own_data / "caltech-101" / "101_ObjectCategories" / "dog").iterdir():
        path.write_bytes(path.read_bytes()[:300] if content is None else content)
    line = complains("CoOp", "DATALOADER.NUM_WORKERS", workers, root=own_data)
    assert "101_ObjectCategories/dog/image_" in line and "decode" in line


def test_class_name_longer_than_a_prompt(complains, tmp_path):
    drawn.write_caltech(tmp_path / "own", classes=[*drawn.CLASSES[:5], "very_" + "a_" * 90 + "long"])
    for trainer in ("CoOp", "CoCoOp", "MetaPrompt", "ZeroshotCLIP"):
        line = complains(trainer, root=tmp_path / "own")
        assert "very" in line and "77" in line and "shorten" in line


def test_one_class_in_a_class_split(complains, tmp_path):
    drawn.write_caltech(tmp_path / "own", classes=["dog"])
    line = complains("MetaPrompt", root=tmp_path / "own")
    assert "class" in line and "one" in line


def test_data_whose_batches_cannot_be_split(complains, tmp_path):
    folder = drawn.write_caltech(tmp_path / "own")
    split = json.loads((folder / "split_zhou_Caltech101.json").read_text())
    split["train"] = [entry for entry in split["train"] for _ in range(1 if entry[1] else 20)]
    (folder / "split_zhou_Caltech101.json").write_text(json.dumps(split))
    line = complains("MetaPrompt", "DATASET.NUM_SHOTS", -1, root=tmp_path / "own")
    assert "two classes" in line and "batches" in line


def test_kept_draw_of_another_dataset(complains, own_data):
    kept = own_data / "caltech-101" / "split_fewshot" / "shot_2-seed_1.json"
    kept.parent.mkdir()
    kept.write_text('{"training": [["101_ObjectCategories/cat/image_0000.png", 0, "cat"]], "val": []}')
    line = complains(root=own_data)
    assert str(kept) in line and "delete it" in line


# ---- backbones ----
def without(key):
    return {name: tensor for name, tensor in tiny_clip.state_dict().items() if name != key}


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("make", [
    lambda path: path.write_bytes(b"no weights"),
    lambda path: path.write_bytes(b""),
    lambda path: torch.save({"weight": torch.zeros(2)}, path),
    lambda path: torch.save([torch.zeros(2)], path),
    lambda path: torch.save(torch.zeros(2), path),
    lambda path: torch.save({"text_projection": "words"}, path),
    lambda path: torch.save(without("logit_scale"), path),
    lambda path: torch.save(without("visual.proj"), path),
    lambda path: torch.save(without("visual.transformer.resblocks.2.ln_1.weight"), path),
    lambda path: torch.save({**tiny_clip.state_dict(), "positional_embedding": torch.zeros(3)}, path),
    lambda path: torch.save({**tiny_clip.state_dict(), "text_projection": torch.zeros(())}, path),
    lambda path: torch.save({**tiny_clip.state_dict(), "visual.conv1.weight": torch.zeros(7)}, path),
    lambda path: torch.save(torch.nn.Linear(1, 1), path),
    lambda path: torch.save({"logit_scale": Trap(str(path.parent / "sprung"))}, path),
], ids=range(14))
def test_backbone_that_is_no_clip(make, complains, tmp_path):
    path = tmp_path / "weights.pt"
    make(path)
    line = complains(backbone=path, shared=False)
    assert str(path) in line
    assert not (tmp_path / "sprung").exists()


def test_backbone_that_is_not_there(complains, tmp_path):
    line = complains(backbone=tmp_path / "gone.pt", shared=False)
    assert "gone.pt" in line and "ViT-B/16" in line
    line = complains(backbone="ViT-B16", shared=False)
    assert "ViT-B16" in line and "ViT-B/16" in line
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    assert "torn.safetensors" in complains(backbone=tmp_path / "torn.safetensors", shared=False)


# ---- checkpoints ----
def spoil(arguments, clips, folder, spoiled):
    train.main(arguments("CoOp", folder), clips=clips)
    (folder / "results.json").unlink()
    spoiled(folder / "prompt_learner" / "model.pth.tar-2")


@pytest.mark.parametrize("spoiled", [
    lambda path: path.write_bytes(path.read_bytes()[:500]),
    lambda path: path.write_bytes(b""),
    lambda path: torch.save(torch.zeros(2), path),
    lambda path: torch.save({"trainer": "MetaPrompt", "state_dict": {}}, path),
    lambda path: torch.save({"trainer": "CoOp", "state_dict": {"prompt_learner.ctx": torch.zeros(9, 9)}}, path),
    lambda path: path.unlink(),
], ids=range(6))
@pytest.mark.parametrize("way", ["resume", "evaluate"])
def test_damaged_checkpoint(spoiled, way, arguments, clips, complains, tmp_path):
    spoil(arguments, clips, tmp_path / "first", spoiled)
    if way == "resume":  # which falls back to the checkpoint before, were that whole
        spoiled(tmp_path / "first" / "prompt_learner" / "model.pth.tar-1")
        line = complains("CoOp", "--resume", tmp_path / "first")
    else:
        line = complains("CoOp", "--eval-only", "--model-dir", tmp_path / "first")
    assert "model.pth.tar-2" in line


def test_missing_epoch(arguments, clips, complains, tmp_path):
    spoil(arguments, clips, tmp_path / "first", lambda path: None)
    line = complains("CoOp", "--eval-only", "--model-dir", tmp_path / "first", "--load-epoch", 7)
    assert "model.pth.tar-7" in line and "--load-epoch" in line


def test_prompts_of_another_method(arguments, clips, complains, tmp_path):
    spoil(arguments, clips, tmp_path / "first", lambda path: None)
    line = complains("MetaPrompt", "--eval-only", "--model-dir", tmp_path / "first")
    assert "CoOp" in line and "MetaPrompt" in line


def test_a_folder_that_is_a_file(complains, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert str(tmp_path / "out") in complains()
    assert (tmp_path / "out").read_text() == "mine"


# ---- protocols ----
@pytest.mark.parametrize(("words", "parts"), [
    (["base2new", "--dataset", "caltech"], ["base2new needs one --trainer"]),
    (["base2new", "--dataset", "caltech", "--trainer", "CoOp"], ["did you mean 'caltech101'", "pacs"]),
    (["base2new", "--dataset", "caltech101", "--trainer", "CoOP"], ["did you mean 'CoOp'"]),
    (["base2new", "--dataset", "caltech101", "--trainer", "CoOp", "--cfg", "vit"], ["vit_b16"]),
    (["dg", "--dataset", "caltech101", "--trainer", "CoOp"], ["no domains"]),
    (["base2new", "--trainer", "CoOp"], ["--dataset"]),
    (["fewshots", "--dataset", "caltech101"], ["fewshots", "base2new"]),
    (["compare", "--dataset", "caltech101", "--seeds", "-1"], ["--seeds"]),
])
def test_wrong_protocol(words, parts, capsys):
    assert train.command_line(lambda: protocol.main(words)) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert [part for part in parts if part not in line] == [], line


def test_a_protocol_needs_tests(drawn_root, tiny_config, clip_file, tmp_path, capsys):
    words = ["base2new", "--dataset", "caltech101", "--cfg", tiny_config, "--root", str(drawn_root), "--output",
             str(tmp_path), "--backbone", clip_file, "--shots", "1", "--trainer", "CoOp", "TEST.NO_TEST", "True"]
    assert train.command_line(lambda: protocol.main(words)) == 2
    assert "TEST.NO_TEST" in capsys.readouterr().err


# ---- as a program ----
def program(*argv):
    return subprocess.run([sys.executable, str(ROOT / "train.py"), *argv], capture_output=True, text=True, timeout=120,
                          check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow  # a start of Python with PyTorch; test_the_program_runs has one, too
def test_the_program_exits_with_2(arguments, tmp_path):
    done = program(*arguments("CoOp", tmp_path / "out", "DATALOADER.NUM_WORKERS", "2", root=tmp_path / "nowhere"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and str(tmp_path / "nowhere") in done.stderr
    assert not list(tmp_path.rglob("results.json"))


def test_the_program_runs(arguments, tmp_path):
    done = program(*arguments("CoOp", tmp_path / "out", "DATALOADER.NUM_WORKERS", "2"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "" and "* accuracy: " in done.stdout
    assert (tmp_path / "out" / "results.json").is_file()
