"""Logits that are not finite end an evaluation of every kind with the file's name, and leave no result behind."""
import csv
import gzip
import json
import os

import pytest
import ranks
import torch
from conftest import ROOT
from test_ranks import Torchrun, told

import train
from dassl.config import get_cfg_default
from dassl.data.data_manager import DatasetWrapper
from dassl.engine import build_trainer
from dassl.evaluation import EVALUATOR_REGISTRY, EvaluatorBase, build_evaluator
from dassl.metrics import compute_accuracy, deciding, require_finite
from dassl.utils import InputError, NonFiniteError
from harness import make_trainer
from prompting import PromptingError
from tools import interpret_prompt, predict, protocol, report
from tools.running import plans
from training import PromptTrainer, towers
from written_runs import base2new, share, write_run

NAN, INF = float("nan"), float("inf")
PLUGINS = ROOT / "tests" / "plugins"


@pytest.fixture
def plant(monkeypatch):
    """A function: the pictures whose path ends so are read as NaN from now on; "" takes it back."""
    read, wanted = DatasetWrapper.__getitem__, [""]

    def planted(self, idx):
        item = read(self, idx)
        if wanted[0] and item["impath"].endswith(wanted[0]):
            item["img"] = torch.full_like(item["img"], NAN)
        return item

    monkeypatch.setattr(DatasetWrapper, "__getitem__", planted)
    return lambda name: wanted.__setitem__(0, name)


@pytest.fixture
def run(arguments, clips):
    """A run as the command line makes it, -> exit status."""
    return lambda *args, **kwargs: train.command_line(lambda: train.main(arguments(*args, **kwargs), clips=clips))


def line(capsys):
    """The one line that ended it."""
    error = capsys.readouterr().err
    lines = [text for text in error.splitlines() if text.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in error, error
    assert "not finite (nan)" in lines[0] and "use PREC bf16 or fp32" in lines[0]
    return lines[0]


def paths_of(folder):
    with gzip.open(folder / "predictions.csv.gz", "rt", newline="") as file:
        return [row["path"] for row in csv.DictReader(file)]


# ---- one batch ----
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_an_evaluator_takes_finite_logits_only(value):
    evaluator = build_evaluator(get_cfg_default())
    logits = torch.tensor([[1.0, 0.0], [value, 1.0], [0.0, 1.0]])
    with pytest.raises(NonFiniteError, match=rf"the logits of 1 of a batch of 3 .* not finite \({value}\): b\.jpg;"):
        evaluator.process(logits, torch.tensor([0, 0, 1]), impath=["a.jpg", "b.jpg", "c.jpg"])
    with pytest.raises(NonFiniteError, match="image 2 of the batch"):
        evaluator.process(logits, torch.tensor([0, 0, 1]))
    evaluator.process(logits[::2], torch.tensor([0, 1]))
    assert evaluator.evaluate()["accuracy"] == 100


def test_many_files_are_counted_and_few_are_named():
    with pytest.raises(NonFiniteError, match=r"5 of a batch of 6 .*: 1\.jpg, 2\.jpg, 3\.jpg and 2 more;"):
        require_finite(torch.tensor([0.0, NAN, NAN, INF, NAN, NAN])[:, None], [f"{i}.jpg" for i in range(6)])


def test_training_accuracy_counts_no_nan_as_a_hit():
    with pytest.raises(NonFiniteError, match="image 1 of the batch"):
        compute_accuracy(torch.tensor([[NAN, 1.0]]), torch.tensor([0]))
    assert compute_accuracy(torch.tensor([[2.0, 1.0]]), torch.tensor([0]))[0].item() == 100


# ---- runs ----
@pytest.mark.parametrize("method", ["ZeroshotCLIP", "CoOp"])
def test_training_and_evaluation(method, run, plant, tmp_path, capsys):
    assert run(method, tmp_path / "whole") == 0
    last = paths_of(tmp_path / "whole")[-1]
    plant(last)
    evaluate = ("--eval-only", "--model-dir", tmp_path / "whole") if method == "CoOp" else ("--eval-only",)
    for name, words in (("trained", ()), ("evaluated", evaluate)):
        assert run(method, tmp_path / name, *words) == 2
        assert last in line(capsys)
        left = os.listdir(tmp_path / name)
        assert not {"results.json", "predictions.csv.gz"} & set(left) and not [part for part in left if ".tmp" in part]
    plant("")
    assert run(method, tmp_path / "trained") == 0  # the same command evaluates what was trained
    assert paths_of(tmp_path / "trained") == paths_of(tmp_path / "whole")


def test_validation_chooses_no_epoch_by_it(arguments, clips, plant, tmp_path):
    words = arguments("CoOp", tmp_path, "TEST.FINAL_MODEL", "best_val")
    trainer = build_trainer(train.build_config(train.parse_arguments(words)), clips=clips)
    chosen = trainer.dm.dataset.val[0].impath
    plant(chosen)
    with pytest.raises(NonFiniteError, match=chosen):
        trainer.train()
    assert trainer.best_epoch == 0 and not list(tmp_path.rglob("model-best*"))


def test_a_trainer_with_a_test_of_its_own(run, plant, tmp_path, capsys):
    words = ("--plugin", PLUGINS / "habits.v2.py")
    assert run("OwnTest", tmp_path / "whole", *words) == 0
    last = paths_of(tmp_path / "whole")[-1]
    plant(last)
    assert run("OwnTest", tmp_path / "planted", *words) == 2
    assert last in line(capsys) and not (tmp_path / "planted" / "results.json").exists()


def test_an_evaluator_from_elsewhere(arguments, clips, run, plant, tmp_path, capsys):
    @EVALUATOR_REGISTRY.register()
    class Hits(EvaluatorBase):
        hits = []

        def __init__(self, cfg, **kwargs):
            super().__init__(cfg)

        def reset(self):
            self.hits.clear()

        def process(self, mo, gt):
            self.hits.extend((mo.argmax(1) == gt).tolist())

        def evaluate(self):
            return {"accuracy": 100 * sum(self.hits) / len(self.hits)}

    @EVALUATOR_REGISTRY.register()
    class Nothing(Hits):
        def evaluate(self):
            self.last_results = {"accuracy": NAN}
            return self.last_results

    for method, plugin in (("ZeroshotCLIP", ()), ("OwnTest", ("--plugin", PLUGINS / "habits.v2.py"))):
        assert run(method, tmp_path / method, *plugin, "TEST.EVALUATOR", "Nothing") == 2
        assert "the evaluation gives accuracy nan" in capsys.readouterr().err
        assert not (tmp_path / method / "results.json").exists()
    words = arguments("ZeroshotCLIP", tmp_path / "val", "TEST.EVALUATOR", "Nothing")
    trainer = build_trainer(train.build_config(train.parse_arguments(words)), clips=clips)
    with pytest.raises(NonFiniteError, match="the evaluation gives accuracy nan"):
        trainer.test(split="val")
    assert run("ZeroshotCLIP", tmp_path / "whole") == 0
    last = paths_of(tmp_path / "whole")[-1]
    plant(last)
    assert run("ZeroshotCLIP", tmp_path / "planted", "TEST.EVALUATOR", "Hits") == 2
    assert last in line(capsys)


def test_a_run_of_a_protocol_fails_and_the_others_go_on(drawn_root, tiny_config, clip_file, clip_model, plant,
                                                        tmp_path, capsys, monkeypatch):
    for module in (towers, plans):
        monkeypatch.setattr(module, "load_clip", lambda name: clip_model)

    def base2new(name):
        return train.command_line(lambda: protocol.main([
            "base2new", "--dataset", "caltech101", "--seeds", "1", "--trainer", "CoOp", "--cfg", tiny_config, "--root",
            str(drawn_root), "--output", str(tmp_path / name), "--shots", "2", "--backbone", clip_file,
            "OPTIM.MAX_EPOCH", "1"]))

    def finished(name):
        return {path.relative_to(tmp_path / name).parts[1] for path in (tmp_path / name).rglob("results.json")}

    assert base2new("whole") == 0 and finished("whole") == {"train_base", "test_new"}
    [new] = [path.parent for path in tmp_path.rglob("predictions.csv.gz") if "test_new" in path.parts]
    last = paths_of(new)[-1]
    capsys.readouterr()
    plant(last)
    assert base2new("planted") == 2 and finished("planted") == {"train_base"}
    said = capsys.readouterr().err
    assert "1 of 2 runs failed" in said and last in said


@pytest.fixture
def last(run, tmp_path, monkeypatch):
    """A picture that only the second of two ranks reads."""
    assert run("ZeroshotCLIP", tmp_path / "one") == 0
    monkeypatch.setenv("PLANTED", paths_of(tmp_path / "one")[-1])
    return paths_of(tmp_path / "one")[-1]


def test_several_processes_end_together(last, arguments, tmp_path):
    words = arguments("ZeroshotCLIP", tmp_path / "two", "--plugin", PLUGINS / "planted.py")
    (status, _), (other_status, said) = ranks.fork(2, tmp_path / "told", lambda: train.main(words))
    assert (status, other_status) == (1, 2)
    assert last in said and "not finite (nan)" in said
    assert not (tmp_path / "two" / "results.json").exists()


@pytest.mark.slow
def test_several_processes_of_torchrun_end_together(last, arguments, tmp_path):
    out, err = Torchrun(2, arguments("ZeroshotCLIP", tmp_path / "two", "--plugin", PLUGINS / "planted.py")).end(120)
    (said,) = told(err)
    assert last in said and "not finite (nan)" in said
    assert not (tmp_path / "two" / "results.json").exists()
    assert "exitcode  : 2" in err and "=> result" not in out


# ---- what is not a run ----
def test_prediction(run, drawn_root, tmp_path, capsys, monkeypatch, clip_model):
    assert run("CoOp", tmp_path / "run") == 0
    capsys.readouterr()
    pictures = sorted(map(str, (drawn_root / "caltech-101").rglob("*.*")))[:3]
    monkeypatch.setattr("training.towers.load_clip", lambda name: clip_model)
    infer = PromptTrainer.model_inference

    def planted(self, images):
        logits = infer(self, images)
        logits[1, 0] = NAN
        return logits

    monkeypatch.setattr(PromptTrainer, "model_inference", planted)
    for more in ([], ["--json"]):
        assert train.command_line(lambda: predict.main(["--model-dir", str(tmp_path / "run"), *more, *pictures])) == 2
        said = capsys.readouterr()
        assert pictures[1] in said.err and "not finite (nan)" in said.err and said.out == ""
    with pytest.raises(NonFiniteError, match=pictures[1]):
        predict.load_run(str(tmp_path / "run")).predict(pictures)


@pytest.mark.parametrize("part", ["train_x", "val"])
@pytest.mark.parametrize("method", ["TipAdapter", "TipAdapterF"])
def test_tip_adapter_neither_stores_nor_chooses_by_it(method, part, arguments, clips, plant, tmp_path):
    words = arguments(method, tmp_path, f"TRAINER.{method.upper()}.AUGMENT_EPOCH", 1)
    trainer = build_trainer(train.build_config(train.parse_arguments(words)), clips=clips)
    chosen = getattr(trainer.dm.dataset, part)[0].impath
    plant(chosen)
    with pytest.raises(NonFiniteError, match=f"the features of 1 of .*{chosen}"):
        trainer.train()


def test_a_batch_that_does_not_name_its_files(clip_model):
    trainer = make_trainer("TipAdapter", clip_model, ["cat", "dog"], {"AUGMENT_EPOCH": 1}, labels=[0, 1])
    images = torch.zeros(2, 3, trainer.towers.resolution, trainer.towers.resolution)
    images[1] = NAN
    with pytest.raises(NonFiniteError, match="the features of 1 of a batch of 2 images .*image 2 of the batch"):
        trainer.image_features([{"img": images, "label": torch.tensor([0, 1])}])


def test_a_search_passes_over_a_beta_that_overflows(clip_model):
    model = make_trainer("TipAdapter", clip_model, ["cat", "dog"], {"AUGMENT_EPOCH": 1}, labels=[0, 1]).model
    images = model.encode_classes()  # which zero-shot CLIP takes for their own classes
    model.adapter.weight.data = 3 * images  # cosines of 3: inf at a high beta, and inf * 0 = NaN for the other class
    assert model.cache_logits(model.similarities(images, images)[1], 190.0).isnan().any()
    swapped = torch.tensor([1, 0])  # right where NaN counts as the highest
    assert model.search(images, swapped, (200.0, 3.0), (20, 4)) == 0
    assert model.search(images, torch.tensor([0, 1]), (200.0, 3.0), (20, 4)) == 1
    assert torch.isfinite(model.logits(images, images)).all()
    model.adapter.weight.data[0] = NAN
    with pytest.raises(PromptingError, match="not finite"):
        model.search(images, torch.tensor([0, 1]), (7.0, 3.0), (2, 2))


def test_nearest_words_of_a_damaged_context(run, tmp_path):
    assert run("CoOp", tmp_path) == 0
    path = tmp_path / "prompt_learner" / "model.pth.tar-2"
    state = torch.load(path, weights_only=True)
    state["state_dict"]["prompt_learner.ctx"][0] = NAN
    torch.save(state, path)
    with pytest.raises(InputError, match="prompt_learner.ctx holds numbers that are not finite"):
        interpret_prompt.main([str(tmp_path)])


@pytest.mark.parametrize("accuracy", [NAN, INF, -1, 100.5, "80", None])
def test_a_report_takes_no_accuracy_that_is_none(accuracy, tmp_path):
    path = write_run(tmp_path, base2new("A"), share(50)) / "results.json"
    results = json.loads(path.read_text())
    results["metrics"]["test"]["accuracy"] = accuracy
    path.write_text(json.dumps(results))
    if accuracy is None:  # no test was made
        assert report.main([str(tmp_path)])[0].rows[0][1].mean is None
        return
    with pytest.raises(InputError, match="is damaged: its test accuracy is"):
        report.main([str(tmp_path)])


def test_a_finished_run_without_a_finite_accuracy_is_not_taken_over(run, tmp_path, capsys):
    assert run("ZeroshotCLIP", tmp_path) == 0
    path = tmp_path / "results.json"
    results = json.loads(path.read_text())
    results["metrics"]["test"]["accuracy"] = NAN
    path.write_text(json.dumps(results))
    assert run("ZeroshotCLIP", tmp_path) == 2
    assert "is damaged: its test accuracy is nan" in capsys.readouterr().err


@pytest.mark.parametrize("logits", [torch.tensor(float("nan")), torch.tensor([1.0, float("inf")])])
def test_numbers_without_classes_are_named_too(logits):
    with pytest.raises(NonFiniteError, match="the losses of 1 of a batch"):
        require_finite(logits, what="losses")


def test_what_is_no_number_is_left_to_whoever_made_it():
    assert deciding({"report": "words"}) == "words"
