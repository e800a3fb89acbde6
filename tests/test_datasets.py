"""Caltech101 and PACS: published splits and draws on the real lists, and the same logic on drawn miniatures."""
import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import drawn
import pytest

import train
from dassl.config import get_cfg_default
from dassl.data import DataManager
from dassl.data.datasets import DatasetBase, Datum, build_dataset, keep_draws
from dassl.utils import InputError


def dataset_of(name, root, shots=-1, seed=1, classes="all", sources=(), targets=()):
    cfg = get_cfg_default()
    cfg.VERBOSE = False
    cfg.SEED = seed
    cfg.DATASET.NAME, cfg.DATASET.ROOT = name, str(root)
    cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES = shots, classes
    cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS = tuple(sources), tuple(targets)
    return build_dataset(cfg)


def linked(source, root):
    """A copy of a dataset's folder of links, without kept draws: tests write nothing into the source."""
    folder = Path(root) / source.name
    folder.mkdir()
    for entry in source.iterdir():
        if entry.name != "split_fewshot":
            (folder / entry.name).symlink_to(entry)
    return Path(root)


def paths(part, folder):
    return [os.path.relpath(item.impath, folder) for item in part]


# ---- real lists ----
@pytest.fixture
def real_root(real_data, tmp_path):
    for name in ("caltech-101", "pacs"):
        linked(real_data / "data" / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize("shots", [1, 16])
def test_published_draws(shots, real_root, real_data):
    reference = real_data / "data" / "fewshot_reference" / "caltech101" / f"shot_{shots}-seed_1.json"
    published = json.loads(reference.read_text())
    for _ in range(2):  # drawn, then read
        dataset = dataset_of("Caltech101", real_root, shots)
        for part in ("train", "val"):
            ours = [(os.path.join(*Path(item.impath).parts[-2:]), item.label, item.classname)
                    for item in getattr(dataset, "train_x" if part == "train" else part)]
            theirs = [(os.path.join(*Path(item["impath"]).parts[-2:]), item["label"], item["classname"])
                      for item in published[part]["data"]]
            assert ours == theirs


def test_caltech101_counts(real_root):
    dataset = dataset_of("Caltech101", real_root)
    assert [len(part) for part in (dataset.train_x, dataset.val, dataset.test)] == [4128, 1649, 2465]
    assert dataset.num_classes == 100
    base, new = (dataset_of("Caltech101", real_root, classes=which) for which in ("base", "new"))
    assert (base.num_classes, new.num_classes) == (50, 50)
    assert base.classnames + new.classnames == dataset.classnames
    assert len(base.test) + len(new.test) == 2465
    assert (len(base.test), len(new.test)) == (1549, 916)


def test_pacs_counts(real_root):
    names = ["art_painting", "cartoon", "photo", "sketch"]
    dataset = dataset_of("PACS", real_root, shots=5, sources=names[1:], targets=names[:1])
    assert dataset.num_classes == 7
    assert dataset.classnames == ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
    assert Counter((item.domain, item.label) for item in dataset.train_x) == {
        (domain, label): 5 for domain in range(3) for label in range(7)}
    for domain, name in enumerate(names[1:]):
        assert {Path(item.impath).parts[-3] for item in dataset.train_x if item.domain == domain} == {name}
    assert Counter(item.label for item in dataset.test) == dict.fromkeys(range(7), 40)
    assert {Path(item.impath).parts[-3] for item in dataset.test} == {"art_painting"}


def test_real_pictures_load(real_root):
    cfg = get_cfg_default()
    cfg.VERBOSE, cfg.SEED, cfg.DATALOADER.NUM_WORKERS = False, 1, 0
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS = "Caltech101", str(real_root), 1
    batch = next(iter(DataManager(cfg).train_loader_x))
    assert batch["img"].shape == (32, 3, 224, 224)


# ---- miniatures ----
@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("written")
    drawn.write_caltech(root)
    drawn.write_pacs(root)
    return root


@pytest.fixture
def root(written, tmp_path):
    """Both miniatures, without kept draws."""
    for name in ("caltech-101", "pacs"):
        linked(written / name, tmp_path)
    return tmp_path


def test_parts_and_classes(root):
    dataset = dataset_of("Caltech101", root)
    split = json.loads((root / "caltech-101" / "split_zhou_Caltech101.json").read_text())
    for name, part in (("train", dataset.train_x), ("val", dataset.val), ("test", dataset.test)):
        found = [[os.path.relpath(item.impath, root / "caltech-101" / "101_ObjectCategories"), item.label,
                  item.classname] for item in part]
        assert found == split[name]
    assert dataset.classnames == drawn.CLASSES and dataset.train_u is None


def test_base_and_new_classes(root):
    whole, base, new = (dataset_of("Caltech101", root, classes=which) for which in ("all", "base", "new"))
    assert base.classnames == drawn.CLASSES[:3] and new.classnames == drawn.CLASSES[3:]
    for half, start in ((base, 0), (new, 3)):
        assert sorted(half.lab2cname) == [0, 1, 2]
        for part in ("train_x", "val", "test"):
            expected = [(item.impath, item.label - start) for item in getattr(whole, part)
                        if start <= item.label < start + 3]
            assert [(item.impath, item.label) for item in getattr(half, part)] == expected


def test_the_larger_half_of_an_odd_number_is_base(tmp_path):
    drawn.write_caltech(tmp_path, classes=drawn.CLASSES[:5], parts={"train": 1, "val": 1, "test": 1})
    assert dataset_of("Caltech101", tmp_path, classes="base").num_classes == 3
    assert dataset_of("Caltech101", tmp_path, classes="new").classnames == drawn.CLASSES[3:5]


@pytest.mark.parametrize("shots", [1, 2, 9])
def test_the_draw_is_coops(shots, root):
    """random.seed(SEED); train class by class in the order of first appearance; then val with at most 4 shots."""
    split = json.loads((root / "caltech-101" / "split_zhou_Caltech101.json").read_text())
    random.seed(3)
    expected = []
    for part, number in (("train", shots), ("val", min(shots, 4))):
        of_class = {}
        for entry in split[part]:
            of_class.setdefault(entry[1], []).append(entry)
        expected.append([f"101_ObjectCategories/{entry[0]}" for entries in of_class.values()
                         for entry in (random.sample(entries, number) if len(entries) >= number else entries)])
    state = random.getstate()
    dataset = dataset_of("Caltech101", root, shots, seed=3)
    assert random.getstate() == state
    folder = root / "caltech-101"
    assert [paths(part, folder) for part in (dataset.train_x, dataset.val)] == expected
    assert len(dataset.test) == 18


def test_base_and_new_are_told_apart_after_the_draw(root):
    whole = dataset_of("Caltech101", root, 2)
    base = dataset_of("Caltech101", root, 2, classes="base")
    assert [i.impath for i in base.train_x] == [i.impath for i in whole.train_x if i.label < 3]
    assert [i.impath for i in base.val] == [i.impath for i in whole.val if i.label < 3]


def recorded(dataset, folder):
    """What a run of `dataset` keeps of its draw, put into the dataset's own folder. Returns (file, content)."""
    keep_draws(dataset, folder)
    kept = folder / "split_fewshot" / "shot_2-seed_1.json"
    return kept, json.loads(kept.read_text())


def test_a_draw_is_a_function_and_its_record_can_be_given_back(root, tmp_path_factory, capsys):
    first = dataset_of("Caltech101", root, 2)
    assert not (root / "caltech-101" / "split_fewshot").exists()  # nothing is written into a dataset
    kept, stored = recorded(first, root / "caltech-101")
    assert stored["train"][0] == [os.path.relpath(first.train_x[0].impath, root / "caltech-101"),
                                  first.train_x[0].label, first.train_x[0].classname]
    # Someone's own draw in that file is what counts, wherever the dataset lies.
    stored["train"] = stored["train"][::-1]
    kept.write_text(json.dumps(stored))
    moved = tmp_path_factory.mktemp("moved")
    shutil.copytree(root / "caltech-101", moved / "caltech-101")
    again = dataset_of("Caltech101", moved, 2)
    assert paths(again.train_x, moved / "caltech-101") == paths(first.train_x[::-1], root / "caltech-101")
    assert paths(dataset_of("Caltech101", root, 2, seed=2).train_x, root) != paths(again.train_x, moved)
    del stored["source"]  # as an earlier version wrote it
    kept.write_text(json.dumps(stored))
    assert paths(dataset_of("Caltech101", root, 2).train_x, root) == paths(first.train_x[::-1], root)
    assert "Note:" not in capsys.readouterr().out


@pytest.mark.parametrize(("damage", "why"), [
    (lambda stored: stored["train"][0].__setitem__(0, "101_ObjectCategories/dog/gone.png"), "gone.png is not in the"),
    (lambda stored: stored["val"][0].__setitem__(1, 99), "not in the dataset's val part, or has another label there"),
    (lambda stored: stored.update(train=stored["val"]), "is not in the dataset's train part"),
    (lambda stored: stored["train"].pop(), "its train part has 1 of the images of class 'guitar', not 2"),
    (lambda stored: stored["train"].append(stored["train"][0]), "an image is twice in its train part"),
    (lambda stored: stored.update(source="0" * 64), "it was drawn from other lists"),
])
def test_a_draw_that_does_not_fit_is_drawn_anew_with_one_note(damage, why, root, capsys):
    first = dataset_of("Caltech101", root, 2)
    kept, stored = recorded(first, root / "caltech-101")
    damage(stored)
    kept.write_text(json.dumps(stored))
    capsys.readouterr()
    again = dataset_of("Caltech101", root, 2)
    said = capsys.readouterr().out
    assert said.count("Note:") == 1 and f"Note: {kept} does not fit: " in said and why in said
    assert [paths(part, root) for part in (again.train_x, again.val)] == [
        paths(part, root) for part in (first.train_x, first.val)]
    assert json.loads(kept.read_text()) == stored  # it is the user's


@pytest.mark.parametrize("damage", [lambda stored: stored.pop("val"), lambda stored: stored.update(train=[[]])])
def test_a_kept_draw_that_is_none_is_refused(damage, root):
    kept, stored = recorded(dataset_of("Caltech101", root, 2), root / "caltech-101")
    damage(stored)
    kept.write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"shot_2-seed_1.json is no few-shot draw: .* delete it"):
        dataset_of("Caltech101", root, 2)
    kept.write_text("{torn")
    with pytest.raises(InputError, match=r"shot_2-seed_1.json is not valid JSON"):
        dataset_of("Caltech101", root, 2)


def test_a_run_keeps_its_draw_in_its_own_folder(root, arguments, clips, tmp_path):
    before = sorted(root.rglob("*"))
    out = tmp_path / "out"
    train.main(arguments("ZeroshotCLIP", out / "dry", "--no-train", root=root), clips=clips)
    assert not list(out.rglob("split_fewshot"))
    train.main(arguments("ZeroshotCLIP", out / "run", root=root), clips=clips)
    record = json.loads((out / "run" / "split_fewshot" / "shot_2-seed_1.json").read_text())
    drawn_now = dataset_of("Caltech101", root, 2)
    assert [entry[0] for entry in record["train"]] == paths(drawn_now.train_x, root / "caltech-101")
    assert record["source"] == drawn_now.draw_records["split_fewshot/shot_2-seed_1.json"]["source"]
    assert [path for path in sorted(root.rglob("*")) if out not in (path, *path.parents)] == before


def test_names_of_many_domains_fit_a_disk(tmp_path):
    dataset = DatasetBase([Datum("a", 0, 0, "a"), Datum("b", 1, 0, "b")], test=[Datum("c", 0, 0, "a")])
    dataset.draw_records = {f"split_fewshot/shot_1-seed_1-{'x' * 400}.json": {}, "split_drawn.json": {"train": []}}
    keep_draws(dataset, tmp_path)
    assert len(list((tmp_path / "split_fewshot").iterdir())) == 1 and (tmp_path / "split_drawn.json").is_file()


def test_domains(root):
    dataset = dataset_of("PACS", root, sources=["photo", "cartoon"], targets=["sketch", "art_painting"])
    assert Counter(item.domain for item in dataset.train_x) == {0: 12, 1: 12}
    assert Counter(item.domain for item in dataset.val) == {0: 8, 1: 8}
    assert Counter(item.domain for item in dataset.test) == {0: 20, 1: 20}
    for part, names in ((dataset.train_x, ["photo", "cartoon"]), (dataset.val, ["photo", "cartoon"]),
                        (dataset.test, ["sketch", "art_painting"])):
        assert all(Path(item.impath).parts[-3] == names[item.domain] for item in part)
    assert dataset.classnames == drawn.PACS_CLASSES


def test_the_draw_over_domains(root):
    """A class of a domain at a time, domains in the order of SOURCE_DOMAINS, one stream of random numbers."""
    sources = ["sketch", "art_painting", "photo"]
    whole = dataset_of("PACS", root, sources=sources, targets=["cartoon"])
    rng, expected = random.Random(1), []
    for part in (whole.train_x, whole.val):
        drawn_part = []
        for domain in range(3):
            for label in range(4):
                drawn_part += rng.sample([i.impath for i in part if (i.domain, i.label) == (domain, label)], 2)
        expected.append(drawn_part)
    for _ in range(2):  # drawn, then read
        few = dataset_of("PACS", root, 2, sources=sources, targets=["cartoon"])
        assert [[item.impath for item in part] for part in (few.train_x, few.val)] == expected
        assert [item.domain for item in few.train_x] == [d for d in range(3) for _ in range(8)]
        assert len(few.test) == 20
    other = dataset_of("PACS", root, 2, sources=sources[::-1], targets=["cartoon"])
    assert len(other.train_x) == 24 and [Path(other.train_x[0].impath).parts[-3]] == ["photo"]


def test_an_image_that_pacs_lists_but_never_had_is_left_out(tmp_path):
    folder = drawn.write_pacs(tmp_path)
    with open(folder / "splits" / "sketch_train_kfold.txt", "a", encoding="utf-8") as file:
        file.write("\nsketch/dog/n02103406_4068-1.png 1\n")
    assert len(dataset_of("PACS", tmp_path, sources=["photo"], targets=["sketch"]).test) == 20


@pytest.mark.parametrize(("sources", "targets", "message"), [
    (["photo"], ["scetch"], "no domain 'scetch' .did you mean 'sketch'.*; known: art_painting, cartoon, photo, sketch"),
    (["foto"], ["sketch"], "--source-domains"), ([], ["sketch"], "give --source-domains"),
    (["photo"], [], "give --target-domains"),
])
def test_wrong_domains(sources, targets, message, root):
    with pytest.raises(InputError, match=message):
        dataset_of("PACS", root, sources=sources, targets=targets)
