"""What a training spends is counted: updates, images, views, passes; kept through stops; shown by report.py."""
import csv
import json
import signal
import tempfile

import pytest
import torch
from conftest import ROOT
from test_report import cells
from torch.utils.data import DataLoader

import train
from dassl.engine.budget import COUNTS, views_of
from harness import make_trainer
from prompting import ClassPrompts, Towers, load_clip
from prompting.precision import GradientOverflow
from protocols.parts.formats import FORMATS
from tools import report
from tools.results import config_budgets
from training import PromptTrainer
from written_runs import base2new, share, write_run

CLASSES, IMAGES, BATCH, EPOCHS = 6, 12, 4, 2  # of the drawn Caltech101, 2 shots, in tests/conftest.py's config
STEPS = EPOCHS * IMAGES // BATCH
SEEN = STEPS * BATCH
DEEP = ("PROMPT_DEPTH_VISION", 2), ("PROMPT_DEPTH_TEXT", 2)


@pytest.fixture
def run(arguments, clips):
    def make(trainer, folder, *words, **where):
        return train.main(arguments(trainer, folder, *words, **where), clips=clips)

    return make


def budget(updates, images, image_passes, text_passes, views=None):
    return dict(zip(COUNTS, (updates, images, images if views is None else views, image_passes, text_passes)))


def in_node(method, *pairs):
    return [word for key, value in pairs for word in (f"TRAINER.{method.upper()}.{key}", value)]


@pytest.mark.parametrize(("method", "options", "expected"), [
    ("CoOp", (), budget(STEPS, SEEN, SEEN, CLASSES * STEPS)),
    ("CoOp", ("TRAINER.COOP.CSC", True), budget(STEPS, SEEN, SEEN, CLASSES * STEPS)),
    ("CoCoOp", (), budget(STEPS, SEEN, SEEN, CLASSES * SEEN)),  # a prompt for each image and class
    ("KgCoOp", (), budget(STEPS, SEEN, SEEN, CLASSES * STEPS)),  # its frozen sentences are encoded once
    ("LinearProbe", (), budget(STEPS, SEEN, SEEN, 0)),
    ("LinearProbe", ("DATALOADER.TRAIN_X.BATCH_SIZE", 5),  # a batch that is not full is left out
     budget(EPOCHS * 2, EPOCHS * 10, EPOCHS * 10, 0)),
    ("PromptSRC", in_node("PromptSRC", *DEEP), budget(STEPS, SEEN, 2 * SEEN, CLASSES * STEPS)),  # prompted and frozen
    ("CoPrompt", in_node("CoPrompt", ("PROMPT_DEPTH", 2)),
     budget(STEPS, SEEN, 2 * SEEN, CLASSES * STEPS, views=2 * SEEN)),
    # the second update encodes both halves of the classes before and after the inner step
    ("MetaPrompt", (), budget(2 * STEPS, SEEN, 2 * SEEN, 3 * CLASSES * STEPS)),
    # the first of its stages trains the text tower, whose sentences are encoded anew
    ("TwoSFS", ("TRAINER.TWOSFS.FRAC", 0.5), budget(STEPS, SEEN, SEEN, CLASSES * STEPS // 2)),
    ("TipAdapter", (), budget(0, 10 * IMAGES, 10 * IMAGES, 0)),  # ten augmentations
    ("TipAdapterF", (), budget(STEPS, 10 * IMAGES + SEEN, 10 * IMAGES + SEEN, 0)),
    ("ZeroshotCLIP", (), budget(0, 0, 0, 0)),
])
def test_counts_are_those_of_the_method(method, options, expected, run, tmp_path):
    assert run(method, tmp_path, *options)["budget"] == expected
    assert json.loads((tmp_path / "results.json").read_text())["budget"] == expected


def test_a_domain_split_passes_images_again(run, tmp_path):
    """MetaPrompt on two source domains: prompted, frozen, and each domain's part before and after the inner step."""
    spent = run("MetaPrompt", tmp_path, "--source-domains", "art_painting", "cartoon", "--target-domains", "sketch",
                dataset="pacs")["budget"]
    batches = spent["images"] // BATCH
    assert spent["updates"] == 2 * batches and spent["image_passes"] == 4 * spent["images"]
    assert batches and spent["text_passes"] % batches == 0


def test_the_released_variant_makes_its_inner_steps_with_its_optimizer(clip_model):
    trainer = make_trainer("MetaPrompt", clip_model, ["cat", "dog", "cow", "ape"], {"LAYERS": 2, "VARIANT": "released"})
    batch = {"img": torch.randn(4, 3, 32, 32), "label": torch.arange(4), "domain": torch.zeros(4, dtype=torch.long)}
    trainer.class_order = lambda label: [0, 1, 2, 3]
    with trainer._budget.of_training(lambda: []):
        trainer.forward_backward(dict(batch))
    assert trainer._budget.counts()["updates"] == 1 + 2 + 1  # an inner step for each half before the meta-update
    trainer.forward_backward(dict(batch))
    assert trainer._budget.counts()["updates"] == 4  # not in a training


def test_an_overflow_is_seen_and_makes_no_update(run, tmp_path, monkeypatch):
    apply = PromptTrainer.apply_gradients

    def overflows_once(self, *args):
        if (self.epoch, self.batch_idx) == (0, 1):
            raise GradientOverflow
        return apply(self, *args)

    monkeypatch.setattr(PromptTrainer, "apply_gradients", overflows_once)
    assert run("CoOp", tmp_path)["budget"] == budget(STEPS - 1, SEEN, SEEN, CLASSES * STEPS)


def test_validation_counts_nothing_and_patience_ends_the_counts(run, tmp_path, monkeypatch):
    test = PromptTrainer.test

    def falling(self, split=None):
        accuracy = test(self, split)
        return -self.epoch if split == "val" else accuracy

    monkeypatch.setattr(PromptTrainer, "test", falling)
    results = run("CoOp", tmp_path, "OPTIM.MAX_EPOCH", 9, "TRAIN.PATIENCE", 1, "TEST.FINAL_MODEL", "best_val")
    assert results["stopped"]["epoch"] == 2
    assert results["budget"] == budget(STEPS, SEEN, SEEN, CLASSES * STEPS)


@pytest.mark.parametrize("method", ["CoOp", "PromptSRC", "TipAdapterF"])
def test_a_run_that_is_stopped_and_goes_on_counts_as_one(method, run, tmp_path, monkeypatch):
    """Killed within epoch 2, stopped by a signal within epoch 3 and within its validation: nothing twice, nothing lost.
    """
    options = ("OPTIM.MAX_EPOCH", 4, "TRAIN.PATIENCE", 9, *(in_node(method, *DEEP) if method == "PromptSRC" else ()))
    whole = run(method, tmp_path / "whole", *options)["budget"]
    assert whole["updates"] == 4 * IMAGES // BATCH
    step, evaluate, stops = PromptTrainer.forward_backward, PromptTrainer.model_inference, []

    def training(self, batch):
        found = step(self, batch)
        if (self.epoch, self.batch_idx) == (1, 1) and "kill" not in stops:
            stops.append("kill")
            raise MemoryError
        if (self.epoch, self.batch_idx) == (2, 1) and "signal" not in stops:
            stops.append("signal")
            signal.raise_signal(signal.SIGINT)
        return found

    def validating(self, images):
        if self.epoch == 2 and stops == ["kill", "signal"]:
            stops.append("in validation")
            signal.raise_signal(signal.SIGINT)
        return evaluate(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "forward_backward", training)
        patch.setattr(PromptTrainer, "model_inference", validating)
        for error in (MemoryError, KeyboardInterrupt, KeyboardInterrupt):
            with pytest.raises(error):
                run(method, tmp_path / "cut", *options)
    assert len(stops) == 3
    assert run(method, tmp_path / "cut", *options)["budget"] == whole


def test_a_checkpoint_without_counts_leaves_nothing_known(run, tmp_path, monkeypatch):
    def interrupt(self):
        if self.epoch == 1:
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "before_epoch", interrupt)
        with pytest.raises(MemoryError):
            run("CoOp", tmp_path)
    path = tmp_path / "prompt_learner" / "model.pth.tar-1"
    state = torch.load(path, weights_only=True)
    del state["budget"]
    torch.save(state, path)
    assert run("CoOp", tmp_path)["budget"] is None
    assert torch.load(path.with_name("model.pth.tar-2"), weights_only=True)["budget"] is None


def test_an_evaluation_has_no_budget(run, tmp_path):
    run("TipAdapter", tmp_path / "a")
    assert run("TipAdapter", tmp_path / "b", "--eval-only", "--model-dir", tmp_path / "a")["budget"] is None
    assert run("ZeroshotCLIP", tmp_path / "c", "--eval-only")["budget"] is None


def test_of_a_foreign_trainer_updates_and_images_are_seen(run, tmp_path, monkeypatch):
    options = ("--plugin", ROOT / "tests" / "plugins" / "coop_style.py", "TRAINER.COOP.INIT.STD", 0.02,
               "TRAINER.COOP.PREC", "fp32")
    expected = {**budget(STEPS, SEEN, None, None), "views": SEEN}
    assert run("CoOp", tmp_path / "a", *options)["budget"] == expected

    def own_loader(self):
        build(self)
        loader = self.train_loader_x
        self.train_loader_x = DataLoader(loader.dataset, batch_sampler=loader.batch_sampler)

    trainer = train.TRAINER_REGISTRY.get("CoOp")
    build = trainer.build_data_loader
    monkeypatch.setattr(trainer, "build_data_loader", own_loader)
    assert run("CoOp", tmp_path / "b", *options)["budget"] == {**expected, "images": None, "views": None}
    monkeypatch.setattr(trainer, "model_update", lambda self, names=None: None)  # learns by other means
    assert run("CoOp", tmp_path / "c", *options)["budget"] == dict.fromkeys(COUNTS)


def test_images_of_a_loader_that_was_renewed_are_not_known(run, tmp_path, monkeypatch):
    options = ("--plugin", ROOT / "tests" / "plugins" / "coop_style.py", "TRAINER.COOP.INIT.STD", 0.02,
               "TRAINER.COOP.PREC", "fp32")

    def renewed(self):
        loader = self.dm.train_loader_x
        self.train_loader_x = DataLoader(loader.dataset, batch_sampler=loader.batch_sampler)
        before_epoch(self)

    run("CoOp", tmp_path / "a", *options)  # which registers the plugin's
    trainer = train.TRAINER_REGISTRY.get("CoOp")
    before_epoch = trainer.before_epoch
    monkeypatch.setattr(trainer, "before_epoch", renewed)
    found = run("CoOp", tmp_path / "b", *options)["budget"]
    assert found["updates"] > 0 and found["images"] is found["views"] is None


@pytest.mark.parametrize("method", ["TipAdapter", "CoOp"])
def test_another_training_of_a_trainer_counts_anew(method, arguments, clips, tmp_path):
    cfg = train.build_config(train.parse_arguments([str(word) for word in arguments(method, tmp_path)]))
    trainer = train.TRAINER_REGISTRY.get(method)(cfg, clips=clips)
    trainer.train()
    first = trainer._budget.facts()
    trainer.train()
    assert trainer._budget.facts() == first and first["images"] > 0


def test_views_of_a_batch():
    image = torch.zeros(2, 3, 4, 4)
    assert views_of({"img": image, "img0": image, "impath": ["a", "b"]}) == 1
    assert views_of({"img": [image, image], "img2": [image, image]}) == 4
    assert views_of({"pictures": image}) is None and views_of((image, image)) is None


def test_chunks_that_are_computed_again_are_one_pass(clip_model):
    towers = Towers(clip_model)
    towers.passes.counting = True
    ctx = torch.randn(2, towers.text.width, requires_grad=True)
    prompts = ClassPrompts(towers.text, ["cat", "alarm clock", "dog"], 2)
    towers.text.activation_bytes = 1  # a chunk for each class
    towers.text.encode(prompts(ctx)).sum().backward()
    towers.text.encode(prompts(ctx.expand(4, -1, -1)))
    towers.text.encode_texts(["a sentence"])
    assert (towers.passes.texts, towers.passes.images) == (3 + 4 * 3, 0)


def test_passes_of_both_kinds_of_image_tower(clip_model, resnet_file):
    for towers in (Towers(clip_model), Towers(load_clip(resnet_file))):
        images = torch.zeros(3, 3, towers.resolution, towers.resolution)
        towers.encode_image(images)
        towers.passes.counting = True
        towers.encode_image(images)
        assert (towers.passes.images, towers.passes.texts) == (3, 0)


# ---- the tables ----
@pytest.fixture
def output(tmp_path):
    """Two methods on one dataset, two seeds; the second method's seeds spend differently."""
    for method, counts in (("A", (4000, 4000)), ("B", (100, 300))):
        for seed, number in zip((1, 2), counts):
            for part in ("train_base", "test_new"):
                folder = write_run(tmp_path, base2new(method, seed, part), share(70), train=str(seed), test=part[1])
                path = folder / "results.json"
                results = json.loads(path.read_text())
                spent = {**dict.fromkeys(COUNTS, number), "text_passes": None}
                path.write_text(json.dumps({**results, "evaluation": {"eval_only": part == "test_new"},
                                            "budget": spent if part == "train_base" else None}))
    return tmp_path


@pytest.mark.parametrize("form", FORMATS)
def test_report_shows_budgets(form, output, capsys):
    *_, table = report.main([str(output), "--compare", "--budget", "--format", form])
    assert table.headers == ["method", "updates", "images", "views", "image passes", "text passes"]
    shown = capsys.readouterr().out
    assert table.title in shown and table.render(form) in shown
    rendered = table.render(form)
    if form == "text":
        assert cells(rendered)[2:] == [["A", *["4,000"] * 4, "-"], ["B", *["200 +- 141"] * 4, "-"]]
    elif form == "csv":
        first = next(csv.DictReader(rendered.splitlines()))
        assert float(first["updates"]) == 4000 and first["text passes"] == ""
    else:
        assert "4,000" in rendered and "141" in rendered
    assert len(report.main([str(output), "--compare", "--format", form])) == 1  # only where it is asked for


def test_a_run_without_a_budget_gives_no_average(output):
    path = output / base2new("A", 2).folder / "results.json"
    results = json.loads(path.read_text())
    del results["budget"]
    path.write_text(json.dumps(results))
    *_, table = report.main([str(output), "--compare", "--budget"])
    assert [word.text() for word in table.rows[0][1:]] == ["-"] * 5


def test_a_method_that_lacks_a_dataset_has_no_average(output):
    folder = write_run(output, base2new("A", 1, dataset="eurosat"), share(70), test="e")
    path = folder / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "budget": dict.fromkeys(COUNTS, 1_000_000)}))
    *_, table = report.main([str(output), "--compare", "--budget"])
    assert {row[0]: row[1].text() for row in table.rows} == {"A": "502,000", "B": "-"}


def test_the_published_settings_are_counted():
    """LinearProbe: 300 epochs of 3 batches of 256; two are made."""
    assert config_budgets.config_budget_rows(["LinearProbe", "ZeroshotCLIP"]) == [
        ["LinearProbe", "900", "230,400", "230,400", "230,400", "0"], ["ZeroshotCLIP", "0", "0", "0", "0", "0"]]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["KgCoOp", "MetaPrompt", "VPT", "TipAdapterF"])
def test_whole_trainings_spend_what_two_epochs_say(method):
    with tempfile.TemporaryDirectory() as data:
        config_budgets.write_pictures(data)
        count = config_budgets.ConfigBudgets(data)
        assert count(method) == count(method, whole=True)
