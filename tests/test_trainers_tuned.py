"""Trainings that count their updates, and the methods that train weights of the towers."""
import pytest
import torch

import train
from dassl.engine import TRAINER_REGISTRY
from harness import make_trainer

NAMES = ["alarm_clock", "bee", "cat", "dog"]
BATCHES = 3  # of an epoch: 6 classes x 2 shots in batches of 4


@pytest.fixture
def run(arguments, clips):
    def make(trainer, folder, *words, **where):
        return train.main(arguments(trainer, folder, *words, **where), clips=clips)

    return make


# ---- how long a training is ----
@pytest.mark.parametrize(("words", "epochs"), [
    (("OPTIM.STEPS", 7), 3), (("OPTIM.STEPS", 6), 2), (("OPTIM.STEPS_PER_SHOT", 2), 2)])
def test_a_training_of_so_many_updates_makes_whole_epochs(run, tmp_path, capsys, words, epochs):
    results = run("CoOp", tmp_path, *words, "OPTIM.MAX_EPOCH", 9)
    said = capsys.readouterr().out
    assert results["budget"]["updates"] == epochs * BATCHES
    assert f"epoch [{epochs}/{epochs}]" in said
    assert f"OPTIM.MAX_EPOCH ({words[0]} says how long the training is: {epochs} epochs)" in said
    assert run("CoOp", tmp_path / "again", *words, "--resume", tmp_path)["budget"]["updates"] == epochs * BATCHES
    longer = run("CoOp", tmp_path / "more", "OPTIM.MAX_EPOCH", epochs + 1, "--resume", tmp_path)
    assert longer["budget"]["updates"] == (epochs + 1) * BATCHES


@pytest.mark.parametrize(("words", "told"), [
    (("OPTIM.STEPS", 7, "OPTIM.STEPS_PER_SHOT", 2), "set one of them to 0"),
    (("OPTIM.STEPS_PER_SHOT", 2, "DATASET.NUM_SHOTS", 0), "DATASET.NUM_SHOTS 0 takes all"),
    (("OPTIM.STEPS", -1), "OPTIM.STEPS must be between 0")])
def test_a_length_without_meaning_is_one_line(run, tmp_path, one_line, words, told):
    assert told in one_line(lambda: run("CoOp", tmp_path, *words))


def test_the_rate_of_each_update_is_that_of_the_schedule_also_after_a_stop(run, tmp_path, monkeypatch):
    cls, seen = TRAINER_REGISTRY.get("TipAdapterF"), []
    step = cls.training_step
    monkeypatch.setattr(cls, "training_step", lambda self, batch: (
        seen.append(self.optim.param_groups[0]["lr"]), step(self, batch))[1])
    words = ("OPTIM.LR", 0.005, "TRAINER.TIPADAPTERF.AUGMENT_EPOCH", 1)
    run("TipAdapterF", tmp_path / "first", *words, "OPTIM.STEPS", BATCHES)
    run("TipAdapterF", tmp_path / "second", *words, "OPTIM.STEPS", 2 * BATCHES, "--resume", tmp_path / "first")
    rates = [0.0025 * (1 + torch.cos(torch.tensor(torch.pi * i / 3)).item()) for i in range(3)]
    rates += [0.0025 * (1 + torch.cos(torch.tensor(torch.pi * i / 6)).item()) for i in range(3, 6)]
    assert seen == pytest.approx(rates, abs=1e-9)


def test_a_schedule_of_the_updates_goes_on_with_batches_of_that_size_only(run, tmp_path, one_line):
    words = ("TRAINER.TIPADAPTERF.AUGMENT_EPOCH", 1, "OPTIM.MAX_EPOCH")
    run("TipAdapterF", tmp_path / "first", *words, 1)
    assert "resume with that of the stored run" in one_line(lambda: run(
        "TipAdapterF", tmp_path / "second", *words, 2, "--resume", tmp_path / "first",
        "DATALOADER.TRAIN_X.BATCH_SIZE", 6))


def test_the_plan_of_a_training_is_known_when_its_optimizers_are_built(clip_model):
    trainer = make_trainer("CoOp", clip_model, NAMES, settings={"OPTIM.STEPS": 10})
    assert (trainer.max_epoch, trainer.planned_steps) == (3, 12)  # 4 classes x 8 images in batches of 8
    assert trainer.cfg.OPTIM.MAX_EPOCH == 3
