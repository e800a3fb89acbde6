"""Trainings that count their updates, and the methods that train weights of the towers."""
import re
import signal

import chaos
import numpy as np
import pytest
import torch
from chaos import same
from test_robustness_kills import EPOCHS, stop_at, whole

import tiny_clip
import train
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError, Terminated
from harness import make_trainer
from prompting import text
from tools.running.trials import Trials
from trainers.clipood import beta_density

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


@pytest.mark.parametrize("method", ["TipAdapterF", "WiSEFT", "CLIPood", "TwoSFS"])
def test_a_method_can_be_tried_before_its_length_is_known(clip_model, clips, method):
    """As a dry run does, which reads no data."""
    cfg = make_trainer(method, clip_model, NAMES).cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.NAME = next(iter(clips))
    assert Trials(clips).of(cfg, NAMES, len(NAMES)).problem == ""


# ---- a training that is stopped and goes on ----
@pytest.mark.parametrize(("method", "batch"), [("CLIPood", 1), ("TwoSFS", 0), ("TwoSFS", 1)])
def test_a_stop_changes_nothing(run, tmp_path, monkeypatch, method, batch):
    """The second stage of 2SFS begins with the 8th of 12 updates, which is the second of the third epoch."""
    words = (*EPOCHS, "OPTIM.NAME", "adamw")
    expected = whole(tmp_path / "whole", run(method, tmp_path / "whole", *words))
    with monkeypatch.context() as patch:
        stop_at(patch, 2, batch, signal.SIGTERM, TRAINER_REGISTRY.get(method))
        with pytest.raises(Terminated):
            run(method, tmp_path / "cut", *words)
    assert same(whole(tmp_path / "cut", run(method, tmp_path / "cut", *words)), expected)
    extra = [torch.load(tmp_path / where / "prompt_learner" / "model.pth.tar-4", weights_only=True)["extra"]
             for where in ("whole", "cut")]
    assert same(extra[0], extra[1])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["CLIPLoRA", "CLIPood", "TwoSFS", "WiSEFT"])
def test_kills_change_nothing(shapes_root, capsys, method):
    words = ["--kills", "8", "--stops", "4", "--root", str(shapes_root), "--seed", "4", "--methods", method]
    assert chaos.main(words) == 0
    assert "; 0 differences" in capsys.readouterr().out


def test_a_second_stage_goes_on_with_the_length_that_it_began_with(run, tmp_path, one_line):
    words = ("OPTIM.NAME", "adamw", "OPTIM.MAX_EPOCH")
    run("TwoSFS", tmp_path / "two", *words, 2)  # 3 + 3 updates
    line = one_line(lambda: run("TwoSFS", tmp_path / "more", *words, 4, "--resume", tmp_path / "two"))
    for told in ("had 3 updates in its first stage", "of the 12 updates", "the first stage has 7"):
        assert told in line


def test_an_average_counts_as_its_updates_do_in_a_longer_training(run, tmp_path):
    words = ("OPTIM.NAME", "adamw", "TRAINER.CLIPOOD.BETA", 0.5, "OPTIM.MAX_EPOCH")
    run("CLIPood", tmp_path / "one", *words, 1)
    run("CLIPood", tmp_path / "more", *words, 2, "--resume", tmp_path / "one")
    extra = torch.load(tmp_path / "more" / "prompt_learner" / "model.pth.tar-2", weights_only=True)["extra"]
    planned = [beta_density(0.5, (update + 0.5) / 7) for update in range(7)]
    assert extra["weight"] == pytest.approx(sum(planned), rel=1e-6) and extra["updates"] == 6


# ---- WiSE-FT and full fine-tuning ----
def trained(trainer, steps=2):
    """The trainer after a few steps."""
    trainer.planned_steps, trainer.batch_idx = steps, 0
    trainer.optimizers = trainer.build_optimizers()
    trainer.optim, trainer.sched = trainer.optimizers[0]
    for trainer.batch_idx in range(steps):
        trainer.forward_backward(tiny_clip.batch("tuned", trainer.batch_idx, 8, 4))
    return trainer


def taken_over(trainer, classnames, **settings):
    """A trainer for other classes that has what was trained, as one that loads its checkpoint."""
    method = type(trainer).__name__
    other, state = make_trainer(method, trainer.clip_model, classnames, **settings), trainer.trained_state()
    for name, tensor in other.trained_tensors().items():
        if not name.startswith(trainer.class_tensors):
            tensor.data.copy_(state[name])
    other.load_extra_state(trainer.extra_state())
    return other


def scores(trainer):
    return trainer.logits_of({"img": tiny_clip.batch("eval", 0, 8, 4)["img"]})


ADAMW = {"OPTIM.NAME": "adamw", "OPTIM.LR": 0.001}


@pytest.mark.parametrize(("method", "options"), [("WiSEFT", {"TEMPLATES": "simple"}), ("TwoSFS", {})])
def test_a_class_is_told_by_its_row_wherever_it_stands_and_new_ones_by_their_text(clip_model, method, options):
    trainer = trained(make_trainer(method, clip_model, NAMES, options, settings=ADAMW), 4)
    before = scores(trainer)

    def taken_over_by(*classnames):
        return scores(taken_over(trainer, list(classnames), options=options))

    mixed = taken_over_by("emu", "dog", "fox", "bee")
    torch.testing.assert_close(mixed[:, [1, 3]], before[:, [3, 1]], atol=1e-5, rtol=0)
    torch.testing.assert_close(taken_over_by("emu", "fox"), mixed[:, [0, 2]], atol=1e-5, rtol=0)
    assert (scores(make_trainer(method, clip_model, NAMES, options)) - before).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["FineTune", "TwoSFS"])
@pytest.mark.parametrize("damage", [
    {"classnames": 3}, {"classnames": ["bee"]}, {"rows": {}}, {"rows": {"classifier": torch.full((4, 64), torch.nan),
     "weight": torch.full((4, 64), torch.nan), "bias": torch.zeros(4)}}])
def test_rows_that_are_none_are_refused(clip_model, method, damage):
    trainer = make_trainer(method, clip_model, NAMES)
    with pytest.raises(InputError, match="rows"):
        trainer.load_extra_state({**trainer.extra_state(), **damage})


def test_full_fine_tuning_is_wise_ft_that_keeps_nothing_of_zero_shot(clip_model):
    settings = {**ADAMW, "OPTIM.CLIP_GRAD_NORM": 1.0}
    alone = trained(make_trainer("FineTune", clip_model, NAMES, settings=settings))
    for alpha, same_as in ((1.0, alone), (0.0, make_trainer("FineTune", clip_model, NAMES))):
        mixed = trained(make_trainer("WiSEFT", clip_model, NAMES, {"ALPHA": alpha, "TEMPLATES": "simple"},
                                     settings=settings))
        torch.testing.assert_close(scores(mixed), scores(same_as), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["FineTune", "WiSEFT"])
def test_no_other_copy_of_the_clip_is_kept(clip_model, method):
    trainer = make_trainer(method, clip_model, NAMES)
    trained(trainer, 1)
    scores(trainer)
    assert "frozen_towers" not in vars(trainer)


@pytest.mark.parametrize("final", ["last_step", "best_val"])
def test_what_is_interpolated_is_what_a_checkpoint_is_evaluated_with(run, tmp_path, final):
    words = ("OPTIM.NAME", "adamw", "TRAINER.WISEFT.TEMPLATES", "simple", "TEST.FINAL_MODEL", final, "TEST.SAVE_LOGITS",
             True)
    run("WiSEFT", tmp_path / "run", *words, "OPTIM.MAX_EPOCH", 2, "OPTIM.LR", 1e-3)
    run("WiSEFT", tmp_path / "again", *words, "--eval-only", "--model-dir", tmp_path / "run")
    first, again = (np.load(tmp_path / where / "logits.npz")["logits"] for where in ("run", "again"))
    assert np.array_equal(first, again)
    run("WiSEFT", tmp_path / "zero", *words, "--eval-only", "--model-dir", tmp_path / "run",
        "TRAINER.WISEFT.ALPHA", 0.0, "TEST.ALLOW_CHANGED", "['TRAINER.WISEFT.ALPHA']")
    assert np.abs(first - np.load(tmp_path / "zero" / "logits.npz")["logits"]).max() > 1e-3


@pytest.mark.parametrize(("method", "options", "told"), [
    ("WiSEFT", {"ALPHA": 1.5}, "ALPHA 1.5"), ("FineTune", {"WARMUP": 1.0}, "WARMUP 1.0"),
    ("FineTune", {"TEMPLATES": "some"}, "simple"), ("CLIPood", {"MARGIN": -0.1}, "MARGIN -0.1"),
    ("CLIPood", {"TEMPERATURE": -1.0}, "TEMPERATURE -1.0"), ("CLIPood", {"BETA": 0.0}, "BETA 0.0"),
    ("TwoSFS", {"FRAC": 0.0}, "FRAC 0.0"), ("TwoSFS", {"FRAC": 1.0}, "FRAC 1.0")])
def test_settings_without_meaning_are_refused(clip_model, method, options, told):
    with pytest.raises(InputError, match=told):
        make_trainer(method, clip_model, NAMES, options)


# ---- CLIPood ----
def test_the_average_of_equal_weights_is_the_mean_of_all_that_was(clip_model):
    trainer = make_trainer("CLIPood", clip_model, NAMES, {"BETA": 1.0}, settings=ADAMW)
    seen = [trainer.trained_state()]
    step = trainer.training_step
    trainer.training_step = lambda batch: (step(batch), seen.append(trainer.trained_state()))[0]
    trained(trainer, 5)
    for name, tensor in trainer.evaluated_weights().items():
        torch.testing.assert_close(tensor, torch.stack([state[name] for state in seen]).mean(dim=0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("damage", [{"average": {}}, {"weight": 0.0}, {"weight": "one"}, {"average": None},
                                    {"updates": 0}, {"updates": None}])
def test_an_average_that_is_none_is_refused(clip_model, damage):
    trainer = trained(make_trainer("CLIPood", clip_model, NAMES, settings=ADAMW))
    with pytest.raises(InputError, match="average"):
        trainer.load_extra_state({**trainer.extra_state(), **damage})


def test_each_step_has_as_many_images_of_every_source_domain(arguments, clips, tmp_path, monkeypatch):
    seen = []
    step = TRAINER_REGISTRY.get("CLIPood").compute_loss
    monkeypatch.setattr(TRAINER_REGISTRY.get("CLIPood"), "compute_loss", lambda self, batch: (
        seen.append(batch["domain"].bincount().tolist()), step(self, batch))[1])
    train.main(arguments("CLIPood", tmp_path, "--source-domains", "cartoon", "photo", "sketch", "--target-domains",
                         "art_painting", "DATALOADER.TRAIN_X.SAMPLER", "SeqDomainSampler", "OPTIM.MAX_EPOCH", 1,
                         "DATALOADER.TRAIN_X.BATCH_SIZE", 6, dataset="pacs"), clips=clips)
    assert seen and all(counts == [2, 2, 2] for counts in seen)


# ---- 2SFS ----
def test_the_two_stages_train_what_they_say(clip_model):
    trainer = make_trainer("TwoSFS", clip_model, NAMES, {"FRAC": 0.5}, settings=ADAMW)
    start = trainer.trained_state()
    trained(trainer, 2)  # one update each
    trainer.load_extra_state(trainer.extra_state())
    now = trainer.trained_state()
    assert all(not torch.equal(now[name], start[name]) for name in now)
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in now} == {"ln_1", "ln_2", ""}
    before = trainer.trained_state()
    trainer.planned_steps = 4
    trainer.optimizers = trainer.build_optimizers()
    trainer.batch_idx = 3  # of the second stage
    trainer.forward_backward(tiny_clip.batch("tuned", 3, 8, 4))
    changed = [name for name, tensor in trainer.trained_state().items() if not torch.equal(tensor, before[name])]
    assert changed == ["classifier"]


@pytest.mark.parametrize("damage", [{"begun_after": None}, {"begun_after": 0}, {"by_row": None}])
def test_rows_that_say_no_beginning_are_refused(clip_model, damage):
    trainer = trained(make_trainer("TwoSFS", clip_model, NAMES, {"FRAC": 0.5}, settings=ADAMW))
    with pytest.raises(InputError, match="begun"):
        trainer.load_extra_state({**trainer.extra_state(), **damage})


def test_the_sentences_of_the_first_stage_are_tokenized_once(clip_model, monkeypatch):
    trainer, seen = make_trainer("TwoSFS", clip_model, ["newt", "owl", "yak", "gnu"], settings=ADAMW), []
    monkeypatch.setattr(text.tokenizer, "encode", seen.append)
    trained(trainer, 3)
    assert not seen


def test_two_stages_need_two_updates(run, tmp_path, one_line):
    words = ("OPTIM.MAX_EPOCH", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 12)
    assert "leaves one of the two stages without any (0 and 1)" in one_line(lambda: run("TwoSFS", tmp_path, *words))


def test_the_rate_that_is_printed_is_that_of_the_stage(run, tmp_path, capsys):
    run("TwoSFS", tmp_path, "OPTIM.MAX_EPOCH", 1, "OPTIM.LR", 0.002, "OPTIM.NAME", "adamw", "TRAINER.TWOSFS.FRAC", 0.4)
    rates = re.findall(r"lr (\S+) eta", capsys.readouterr().out)
    assert [float(rate) for rate in rates] == pytest.approx([2e-3, 2e-3, 1.0005e-3], rel=1e-3)
