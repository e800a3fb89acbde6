"""Doors that the first round of identity checks had left open: templates, files besides the backbone, other nodes."""
import shutil
from pathlib import Path

import pytest
import torch

FOREIGN = str(Path(__file__).resolve().parents[1] / "plugins" / "habits.v2.py")
XRAY = ("DATASET.TEMPLATES", "an X-ray of a {}.")


def cut(folder, left=1):
    """The run in `folder` as a kill after its epoch `left` leaves it."""
    (folder / "results.json").unlink()
    (folder / "prompt_learner" / f"model.pth.tar-{left + 1}").unlink()
    (folder / "prompt_learner" / "checkpoint").write_text(f"model.pth.tar-{left}\n")
    return folder


# ---- templates ----
@pytest.mark.parametrize("method", ["CLIPAdapter", "TipAdapterF"])
def test_evaluated_with_other_templates(method, made, refused, tmp_path):
    trained, _ = made(method, out="trained")
    line = refused(method, "--eval-only", "--model-dir", tmp_path / "trained", *XRAY)
    assert "trained for something else, DATASET.TEMPLATES: trained with [], now ['an X-ray of a {}.']" in line
    results, _ = made(method, "--eval-only", "--model-dir", tmp_path / "trained", *XRAY, "TEST.ALLOW_CHANGED",
                      "DATASET.TEMPLATES", out="allowed")
    assert list(results["changed"]) == ["DATASET.TEMPLATES"]
    same, _ = made(method, "--eval-only", "--model-dir", tmp_path / "trained", out="same")
    assert same["metrics"] == trained["metrics"] and same["changed"] == {}


def test_resumed_with_other_templates(made, refused, tmp_path):
    made("KgCoOp", "TRAIN.CHECKPOINT_FREQ", 1, out="trained")
    line = refused("KgCoOp", "--resume", cut(tmp_path / "trained"), *XRAY)
    assert "DATASET.TEMPLATES: trained with [], now ['an X-ray of a {}.']" in line


def test_templates_that_a_method_does_not_read_change_nothing(made, tmp_path):
    trained, _ = made("CoOp", out="trained")
    results, _ = made("CoOp", "--eval-only", "--model-dir", tmp_path / "trained", *XRAY)
    assert results["metrics"] == trained["metrics"] and results["changed"] == {}


def test_another_dataset_has_its_own_templates(made, tmp_path):
    made("CLIPAdapter", *XRAY, out="trained")
    results, _ = made("CLIPAdapter", "--eval-only", "--model-dir", tmp_path / "trained", "--source-domains", "photo",
                      "--target-domains", "sketch", dataset="pacs")
    assert results["changed"] == {}


@pytest.mark.parametrize("text", ["a photo of a {}.,a sketch of a {}.", "a photo of a {}, a sketch of a {}"])
def test_two_templates_in_one_text(text, refused):
    line = refused("ZeroshotCLIP", "DATASET.TEMPLATES", text)
    assert f"DATASET.TEMPLATES: '{text}' looks like several templates in one text; give them as a list" in line


# ---- files besides the backbone ----
def test_weights_to_begin_with_that_were_replaced(made, refused, tmp_path):
    made("CoOp", "TRAIN.CHECKPOINT_FREQ", 1, out="trained")
    start = tmp_path / "start.pth.tar"
    shutil.copy(tmp_path / "trained" / "prompt_learner" / "model.pth.tar-1", start)
    first, _ = made("CoOp", "MODEL.INIT_WEIGHTS", start)
    shutil.move(start, tmp_path / "moved.pth.tar")
    again, printed = made("CoOp", "MODEL.INIT_WEIGHTS", tmp_path / "moved.pth.tar")
    assert again == first and "Finished before" in printed
    shutil.copy(tmp_path / "trained" / "prompt_learner" / "model.pth.tar-2", start)
    line = refused("CoOp", "MODEL.INIT_WEIGHTS", start)
    assert f"the file it began with, MODEL.INIT_WEIGHTS {start}, is another now" in line


# ---- a foreign trainer may read any method's node ----
@pytest.mark.parametrize("way", ["--model-dir", "--resume"])
def test_a_foreign_trainer_under_another_methods_setting(way, refused, made, tmp_path):
    made("OwnTest", "--plugin", FOREIGN, "TRAIN.CHECKPOINT_FREQ", 1, "TRAINER.COOP.CLASS_TOKEN_POSITION", "front",
         out="trained")
    words = ["--eval-only"] if way == "--model-dir" else []
    line = refused("OwnTest", "--plugin", FOREIGN, *words, way, tmp_path / "trained")
    assert "TRAINER.COOP.CLASS_TOKEN_POSITION: trained with front, now end" in line


# ---- where a run is ----
def test_a_rate_that_follows_the_batches_is_no_mixture(made, refused, tmp_path):
    made("TipAdapterF", "TRAIN.CHECKPOINT_FREQ", 1, out="trained")
    line = refused("TipAdapterF", "--resume", cut(tmp_path / "trained"), "DATALOADER.TRAIN_X.BATCH_SIZE", 2)
    assert "its learning rate follows the batches" in line and "resume with that of the stored run" in line


def test_batches_of_another_size_from_an_epoch_on(made, tmp_path):
    made("CoOp", "TRAIN.CHECKPOINT_FREQ", 1, out="trained")
    _, printed = made("CoOp", "--resume", cut(tmp_path / "trained"), "DATALOADER.TRAIN_X.BATCH_SIZE", 2)
    assert "Note: DATALOADER.TRAIN_X.BATCH_SIZE 4 -> 2 from epoch 2 on" in printed


# ---- what may differ, by name ----
def test_allowing_what_is_not_compared_in_a_training(refused, made):
    assert "'nonsense' is no setting" in refused("CoOp", "TEST.ALLOW_CHANGED", "nonsense")
    results, _ = made("CoOp", "TEST.ALLOW_CHANGED", "INPUT.PIXEL_MEAN")
    assert results["without_effect"] == ["TEST.ALLOW_CHANGED"]


def test_another_order_of_the_images_within_an_epoch(made, refused, tmp_path):
    words = ("DATASET.NUM_SHOTS", -1, "TRAIN.CHECKPOINT_FREQ", 1)  # all images: another seed is another order of them
    made("CoOp", *words, out="trained")
    folder = cut(tmp_path / "trained") / "prompt_learner"
    state = torch.load(folder / "model.pth.tar-1", weights_only=True)
    torch.save({**state, "step": 1}, folder / "model-interrupted.pth.tar")
    line = refused("CoOp", "--resume", tmp_path / "trained", *words, seed=2)
    assert "a point within an epoch, after 1 batches with SEED 1; with 2 the batches are other ones" in line
