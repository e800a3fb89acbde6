"""Kept draws, splits and sentences that contradict what they are of: one line names both, and none is taken."""
import json
import shutil

import pytest
from test_datasets import dataset_of, paths, recorded

from dassl.utils import InputError
from dassl.utils.stored import require
from trainers.coprompt import read_sentences


@pytest.fixture
def root(drawn_root, tmp_path):
    """A DATASET.ROOT of one's own with the drawn Caltech101."""
    shutil.copytree(drawn_root / "caltech-101", tmp_path / "data" / "caltech-101")
    return tmp_path / "data"


def many(stored, root):
    """All the images of each class: what a draw of more shots holds."""
    split = json.loads(next((root / "caltech-101").glob("split_zhou*.json")).read_text())
    stored["train"] = [[f"101_ObjectCategories/{path}", label, name] for path, label, name in split["train"]]


DRAWS = {
    "more shots than asked for": (many, "of the images of class"),
    "fewer shots": (lambda stored, root: stored.update(train=stored["train"][:1]), "of the images of class"),
    "an image 50 times": (lambda stored, root: stored.update(train=stored["train"][:1] * 50), "an image is twice"),
    "another label": (lambda stored, root: stored["train"][0].__setitem__(1, stored["train"][0][1] + 1),
                      "has another label there"),
    "a label that is a text": (lambda stored, root: stored["train"][0].__setitem__(1, "0"), "has another label there"),
    "another class name": (lambda stored, root: stored["train"][0].__setitem__(2, "unicorn"), "its class 'unicorn' of"),
    "a validation image": (lambda stored, root: stored["train"].__setitem__(0, stored["val"][0]),
                           "is not in the dataset's train part"),
    "a file elsewhere": (lambda stored, root: stored["train"][0].__setitem__(0, "/etc/hostname"),
                         "is not in the dataset's train part"),
    "no validation images": (lambda stored, root: stored.update(val=[]), "its val part has 0 of the images"),
    "a source that is a list": (lambda stored, root: stored.update(source=[1]), "it was drawn from other lists"),
}


@pytest.mark.parametrize(("change", "why"), [pytest.param(*case, id=name) for name, case in DRAWS.items()])
def test_a_kept_draw_that_contradicts_its_dataset_is_not_taken(change, why, root, capsys):
    first = dataset_of("Caltech101", root, 2)
    kept, stored = recorded(first, root / "caltech-101")
    change(stored, root)
    kept.write_text(json.dumps(stored))
    capsys.readouterr()
    again = dataset_of("Caltech101", root, 2)
    said = capsys.readouterr().out
    assert said.count("Note:") == 1 and f"Note: {kept} does not fit: " in said and why in said
    assert paths(again.train_x, root) == paths(first.train_x, root)


@pytest.mark.parametrize("entry", [None, 3, [], ["a.png"], [3, 0, "a"], ["a.png", 0, 7], ["a.png", 0, None], {"a": 1}],
                         ids=str)
def test_a_kept_draw_of_other_entries_is_refused(entry, root):
    kept, stored = recorded(dataset_of("Caltech101", root, 2), root / "caltech-101")
    stored["train"][0] = entry
    kept.write_text(json.dumps(stored))
    with pytest.raises(InputError, match="shot_2-seed_1.json is no few-shot draw: .* delete it"):
        dataset_of("Caltech101", root, 2)


@pytest.mark.parametrize("source", [[1], {"a": 1}, 3, True, None], ids=str)
def test_a_split_of_an_odd_source(source, root, one_line):
    [split] = (root / "caltech-101").glob("split_zhou*.json")
    split.write_text(json.dumps({**json.loads(split.read_text()), "source": source}))
    line = one_line(lambda: dataset_of("Caltech101", root, 2))
    assert split.name in line and "source" in line


@pytest.mark.parametrize("content", [
    "[" * 10**5, '{"a": ' * 10**5, "[]", "null", '"text"', '{"cat": "a sentence"}', '{"cat": [["nested"]]}',
    '{"cat": [1]}', '{"cat": {"a": "b"}}', '{"cat": null}', "{", "\x00"], ids=lambda text: text[:16])
def test_sentences_of_another_form(content, tmp_path, one_line):
    path = tmp_path / "sentences.json"
    path.write_text(content)
    line = one_line(lambda: read_sentences(str(path)))
    assert "TRAINER.COPROMPT.SENTENCES" in line and "sentences.json" in line and len(line) < 700


@pytest.mark.parametrize("record", [[], "x", {"run": 3}, {"run": ["1"]}, {"run": None}], ids=str)
def test_a_record_of_jobs(record):
    with pytest.raises(InputError, match=r"jobs.json is damaged: "):
        require("jobs", record, "jobs.json")
