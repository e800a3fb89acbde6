"""`python -m benchmarks.launches`: what a GPU launches, and whether a graph can capture it, counted without one."""
import json
import re

import pytest
import torch
from conftest import ROOT

from benchmarks import launches, other_device, page
from dassl.utils import InputError
from prompting import ClassPrompts, Towers

MOST = {"coop": 525, "b2n": 2550, "dg": 1750, "cocoop": 575, "eval_first": 285, "eval": 140}
WORKS = {counted.name: counted for counted in launches.WORKS}


@pytest.mark.parametrize("name", MOST)
def test_few_kernels_are_launched(name):
    model = launches.narrow_clip()
    ours = launches.ours_for(WORKS[name], model)
    found = launches.run(ours, WORKS[name], launches.Launches())
    assert 100 < found.total <= MOST[name], found.by_name.most_common()


@pytest.mark.parametrize("number", [2, 20, 60])
def test_the_lengths_of_the_classes_cost_no_launches(number, clip_model):
    """Names of one to nine words, in one row or in several."""
    names, ctx = [" ".join(["dog"] * (1 + i % 9)) for i in range(number)], torch.zeros(2, 128)

    def of_a_pass(names):
        text = Towers(clip_model).text
        text.run_as_on_gpu()
        prompts = ClassPrompts(text, names, 2)
        text.encode(prompts(ctx))  # lays the classes out
        with launches.Launches() as found:
            text.encode(prompts(ctx))
        return found.by_name

    assert of_a_pass(names) == of_a_pass(["dog"])


def test_what_launches_is_counted():
    x = torch.ones(2, 3)
    with launches.Launches() as found:
        (x + 1).t()[0].view(2).detach()
        torch.empty(3)
        torch.zeros(3).add_(1)
        float(x.sum())
    assert found.by_name == {"add": 1, "zeros": 1, "add_": 1, "sum": 1}


def test_what_the_host_waits_for_is_seen():
    def seen(function):
        with other_device.runs_on_it():
            x = torch.arange(4.0).to(other_device.DEVICE)
            with launches.OnTheDevice() as found:
                function(x)
            return dict(found.waits)

    assert seen(lambda x: (x * 2).sum() + torch.zeros(4, device=x.device)[:2].sum()) == {}
    assert seen(lambda x: x[torch.tensor([0, 1], device=x.device).detach()]) == {"_to_copy": 1}
    assert seen(lambda x: x[torch.tensor([0, 1])]) == seen(lambda x: x[[0, 1]]) == {"index": 1}
    assert seen(lambda x: x.tolist()) == seen(lambda x: x.new_tensor([1, 2])) == {"_to_copy": 1}
    assert seen(lambda x: torch.as_tensor([1, 2], device=x.device)) == {"_to_copy": 1}
    assert seen(lambda x: torch.equal(x, x)) == {"equal": 1}
    assert seen(lambda x: torch.repeat_interleave(x, x.long())) == {"repeat_interleave": 1}
    assert seen(lambda x: x.sum().item()) == seen(lambda x: bool(x.sum() > 1)) == {"_local_scalar_dense": 1}
    assert seen(lambda x: torch.where(x > 1)) == {"nonzero": 1}
    assert seen(lambda x: x[x > 1]) == {"index": 1}
    assert seen(lambda x: x.cpu()) == seen(lambda x: torch.ones(3).to(x.device)) == {"_to_copy": 1}
    assert seen(lambda x: x.copy_(torch.ones(4))) == {"copy_": 1}
    assert seen(lambda x: x.double()) == {}


@pytest.mark.parametrize(("one", "other"), [
    (lambda x: x * 2, lambda x: x * 3), (lambda x: x[:2] + 1, lambda x: x[2:] + 1), (lambda x: x + 1, lambda x: x - 1),
    (lambda x: x + 1, lambda x: x[:2] + 1)])
def test_what_a_graph_would_keep_is_compared(one, other):
    def sequence(function):
        with other_device.runs_on_it():
            x = torch.arange(4.0).to(other_device.DEVICE)
            with launches.OnTheDevice() as found:
                function(x)
            return found.sequence

    assert sequence(one) == sequence(one) != sequence(other)


def test_other_batches_are_other_and_of_one_shape():
    batch = {"img": torch.zeros(3, 3, 8, 8), "label": torch.tensor([0, 1, 2]), "domain": torch.tensor([0, 1, 2])}
    assert launches.another(batch, 0, 9) is batch
    labels = []
    for number in range(1, 9):
        other = launches.another(batch, number, 9)
        assert other["img"].shape == batch["img"].shape and other["img"].std() > 0.5
        assert other["domain"] is batch["domain"] and max(other["label"]) < 9
        labels.append(tuple(other["label"].tolist()))
    assert len(set(labels)) > 4


def test_the_command_prints_a_table_or_lines(capsys, monkeypatch):
    monkeypatch.setattr(launches, "capture_of", lambda counted, batches: {
        "graphs": 1, "captured": 500, "of": 520, "waits": {"nonzero": 2}, "waits_between": {}, "batches": batches,
        "same_shapes": False, "one_graph": False})
    launches.main(["--only", "cocoop", "--json"])
    row = json.loads(capsys.readouterr().out)
    assert row["work"] == "CoCoOp, 50 classes, batch 1" and row["ours"] < row["plain"] and row["batches"] == 20
    monkeypatch.setattr(launches, "launches_of", lambda counted: {"ours": 1234, "plain": 5678})
    launches.main(["--only", "cocoop", "--batches", "3"])
    assert "| CoCoOp, 50 classes, batch 1 | 1,234  | 5,678   | no, the host waits 2 times, shapes differ |" in (
        capsys.readouterr().out)
    for words, line in ((("--only", "cop"), "no work is called cop (did you mean 'coop'?)"),
                        (("--batches", "0"), "--batches must be at least 1"),
                        (("--only", "coop", "--docs", "docs"), "leave out --only")):
        with pytest.raises(InputError) as refused:
            launches.main(list(words))
        assert line in str(refused.value)


def test_the_page_has_the_counts():
    text = (ROOT / "docs" / "SPEED.md").read_text()
    section = text[text.index(page.LAUNCHES):]
    for name, counted in WORKS.items():
        found = re.search(rf"^\| {re.escape(counted.title)} +\| ([\d,]+) +\| ([\d,]+) ", section, re.M)
        ours, plain = (int(number.replace(",", "")) for number in found.groups())
        assert ours <= MOST[name] and ours < plain


@pytest.mark.parametrize(("name", "batches"), [
    ("cocoop", 3), *(pytest.param(name, launches.BATCHES, marks=pytest.mark.slow) for name in MOST)])
def test_what_a_graph_needs(name, batches):
    """Different batches make the same operations, and in what is captured the host waits for nothing."""
    found = launches.capture_of(WORKS[name], batches)
    assert found["same_shapes"] and not found["waits"] and found["batches"] == batches
    training = name not in ("eval", "eval_first")
    assert found["graphs"] == (2 if name in ("b2n", "dg") else 1) and found["one_graph"] is not training
    assert found["of"] - found["captured"] <= (30 if training else 0) and found["captured"] > 100
    assert sum(found["waits_between"].values()) <= (4 if training else 0)


def test_a_step_that_waits_or_changes_its_shapes_cannot_be_captured(monkeypatch):
    row = {"waits": {}, "same_shapes": True, "one_graph": False, "graphs": 2, "captured": 2400, "of": 2420,
           "waits_between": {"_to_copy": 3}}
    assert launches.graphs_in_words(row) == "all but 20, in 2 graphs; the host waits 3 times outside"
    assert launches.graphs_in_words({**row, "waits": {"nonzero": 1}}) == "no, the host waits 1 time"
    assert launches.graphs_in_words({**row, "same_shapes": False}) == "no, shapes differ"
    assert launches.graphs_in_words({**row, "one_graph": True}) == "yes, all of it"
    coop = type(launches.ours_for(WORKS["cocoop"], launches.narrow_clip()).trainer)
    batches, compute_loss = [], coop.compute_loss

    def changing(trainer, batch):
        batches.append(1)
        loss, logits = compute_loss(trainer, batch)
        return loss * len(batches) * min(1, loss.item()), logits

    monkeypatch.setattr(coop.__bases__[0], "compute_loss", changing, raising=False)
    found = launches.capture_of(WORKS["cocoop"], 2)
    assert found["waits"] == {"_local_scalar_dense": 1} and not found["same_shapes"] and not found["one_graph"]
