"""Datasets that contradict themselves: lists, folders, kept draws, names, halves of one class."""
import json
import shutil
from collections import Counter
from pathlib import Path

import drawn
import pytest
from test_datasets_layouts import counts, load

from dassl.data.datasets import keep_draws
from tools import prepare_data

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"
BOM = b"\xef\xbb\xbf"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def caltech(root):
    """(folder, change): `change(function)` has it change the split, {part: [[path, label, name]]}."""
    folder = drawn.write_caltech(root)
    file = folder / "split_zhou_Caltech101.json"

    def change(function):
        split = json.loads(file.read_text())
        function(split)
        file.write_text(json.dumps(split))

    return folder, change


def own(folder, *classes, count=6):
    """Class folders of drawn pictures; a path `a/b` is the class b of a domain or of a part."""
    for name in classes:
        for i in range(count):
            drawn.draw(folder / name / f"{i}.png", name.split("/")[-1])
    return folder


def no_images(folder, count=4, suffix=".HEIC"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i}{suffix}").write_bytes(b"ftyp")
    return folder


def spoil(paths):
    for path in paths:
        path.write_bytes(PNG)


# ---- 1: labels and names agree in every part ----
def renumber(split, part, step=1):
    classes = len({entry[1] for entry in split["train"]})
    for entry in split[part]:
        entry[1] = (entry[1] + step) % classes


def entry_of(split, part, name):
    return next(entry for entry in split[part] if entry[2] == name)


SPLITS = {
    "the test part renumbered": (
        lambda s: renumber(s, "test"), (), ["label 2 is 'alarm_clock' in train and 'dog' in test", "image_0009.png"]),
    "the validation part renumbered": (
        lambda s: renumber(s, "val", 2), (), ["in train and", "in val"]),
    "a validation label of -1": (
        lambda s: s["val"][3].__setitem__(1, -1), ("TEST.FINAL_MODEL", "best_val"),
        ["an image of val has the label -1", "labels start at 0"]),
    "one test image of another name": (
        lambda s: entry_of(s, "test", "dog").__setitem__(2, "cat"), (),
        ["label 1 is 'dog' in train and 'cat' in test"]),
    "one training image of another name, which the draw misses": (
        lambda s: s["train"][-1].__setitem__(2, "cat"), ("DATASET.NUM_SHOTS", 1), ["'cat' in train", "image_0003.png"]),
    "a name that differs in the half that is not read": (
        lambda s: entry_of(s, "test", "guitar").__setitem__(2, "violin"), ("DATASET.SUBSAMPLE_CLASSES", "base"),
        ["label 4 is 'guitar' in train and 'violin' in test"]),
    "a gap in the labels, which base and new would close": (
        lambda s: s.update({p: [e for e in s[p] if e[2] != "dog"] for p in s}), ("DATASET.SUBSAMPLE_CLASSES", "base"),
        ["no training image has label 1"]),
    "a class that only validates": (
        lambda s: s["val"].append([s["val"].pop()[0], 6, "cow"]), (),
        ["the val part has the class 'cow' (label 6", "no training image"]),
    "a class that only tests, in the other half": (
        lambda s: s["test"].append([s["test"].pop()[0], 6, "cow"]), ("DATASET.SUBSAMPLE_CLASSES", "base"),
        ["the test part has the class 'cow'", "no training image"]),
    "a test image that trains under another label": (
        lambda s: s["test"].append([s["train"][0][0], s["train"][1][1], s["train"][1][2]]), (),
        ["has the label 1 ('dog') and the label 0 ('horse', in test)", "image_0000.png"]),
    "an image of two labels by two ways to it": (
        lambda s: s["train"].append(["house/../dog/image_0001.png", 3, "house"]), (),
        ["dog/image_0001.png has the label 1 ('dog') and the label 3 ('house', in train)"]),
}


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_that_contradicts_itself(name, caltech, refused, root):
    change, words, parts = SPLITS[name]
    caltech[1](change)
    line = refused("CoOp", *words, root=root)
    assert [part for part in parts if part not in line] == [], line


def rewrite(path, function):
    path.write_text("".join(f"{function(*line.split(' '))}\n" for line in path.read_text().splitlines()))


def shifted(path, label):
    return f"{path} {int(label) % 4 + 1}"


@pytest.mark.parametrize(("sources", "target", "parts"), [
    (["photo"], "sketch", ["label 1 is 'elephant' in train and 'dog' in test", "/photo/elephant/", "/sketch/dog/"]),
    (["photo", "sketch"], "cartoon", ["label 1 is 'elephant' and 'dog' in train"]),
    (["sketch"], "photo", ["label 0 is 'house' in train and 'dog' in test"]),
    (["photo"], "cartoon", ["label 1 is 'elephant' in train and 'dog' in the domain sketch"]),
    (["sketch"], "sketch", ["label 0 is 'house' in train and 'dog' in the domain art_painting"]),
])
def test_lists_of_domains_that_disagree(sources, target, parts, refused, root):
    lists = drawn.write_pacs(root) / "splits"
    for part in ("train", "crossval"):
        rewrite(lists / f"sketch_{part}_kfold.txt", shifted)
    words = ("--source-domains", *sources, "--target-domains", target)
    line = refused("CoOp", *words, dataset="pacs", root=root)
    assert [part for part in parts if part not in line] == [], line


def test_a_domain_whose_folders_shift_its_labels(refused, root):
    drawn.write_office_home(root)
    for part in ("train", "val"):
        shutil.rmtree(root / "office_home_dg" / "clipart" / part / "Bike")
    line = refused("CoOp", "--source-domains", "art", "--target-domains", "clipart", dataset="office_home", root=root)
    assert "label 1 is 'bike' in train and 'tv' in test" in line, line


def test_a_list_of_domainnet_with_the_label_of_another_class(refused, root):
    drawn.write_domainnet(root)
    path = root / "domainnet" / "splits" / "real_test.txt"
    rewrite(path, lambda file, label: f"{file} {1 if '/zigzag/' in file else label}")
    line = refused("CoOp", "--source-domains", "clipart", "--target-domains", "real", dataset="domainnet", root=root)
    assert "label 1 is 'airplane' in train and 'zigzag' in test" in line


def test_a_class_folder_named_twice_in_classnames(refused, root):
    drawn.write_imagenet(root)
    path = root / "imagenet" / "classnames.txt"
    path.write_text(path.read_text() + "n01440764 shark\n")
    assert "classnames.txt names the class 'n01440764' twice" in refused("CoOp", dataset="imagenet", root=root)


def test_a_variant_named_twice(refused, root):
    root.mkdir()
    drawn.write_aircraft(root)
    path = root / "fgvc_aircraft" / "variants.txt"
    path.write_text("F/A-18\n" + path.read_text())
    assert "variants.txt names the class 'F/A-18' twice" in refused("CoOp", dataset="fgvc_aircraft", root=root)


def ucf_lists(root):
    """The published lists, in which the labels of the videos are one too high."""
    drawn.write_split_dataset(root, "ucf101")
    file = root / "ucf101" / "split_zhou_UCF101.json"
    split, folder = json.loads(file.read_text()), root / "ucf101" / "ucfTrainTestlist"
    file.unlink()
    folder.mkdir()
    names = [name.replace("_", "") for name in drawn.SPLIT_LAYOUTS["ucf101"][2]]
    (folder / "classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    for name, parts in (("trainlist01", ("train", "val")), ("testlist01", ("test",))):
        (folder / f"{name}.txt").write_text("".join(
            f"{names[label]}/{Path(path).stem}.avi {label + 2}\n" for p in parts for path, label, _ in split[p]))


def test_a_list_of_videos_numbered_otherwise_than_the_classes(refused, root):
    ucf_lists(root)
    line = refused("CoOp", dataset="ucf101", root=root)
    assert "trainlist01.txt, line 1: 'ApplyEyeMakeup' is class 1 of classInd.txt, not 2" in line


def test_a_target_of_cross_dataset_evaluation_renumbered(made, refused, root, tmp_path):
    """Trained on Caltech101, evaluated on pets whose test part means other classes by its labels."""
    made("CoOp", "OPTIM.MAX_EPOCH", 1, out="source")
    drawn.write_split_dataset(root, "oxford_pets")
    file = root / "oxford_pets" / "split_zhou_OxfordPets.json"
    split = json.loads(file.read_text())
    renumber(split, "test")
    file.write_text(json.dumps(split))
    line = refused("CoOp", "--eval-only", "--model-dir", tmp_path / "source", dataset="oxford_pets", root=root)
    assert "OxfordPets: label 1 is 'american_bulldog' in train and 'abyssinian' in test" in line


PLUGIN = """
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum

@DATASET_REGISTRY.register()
class Foreign(DatasetBase):
    def __init__(self, cfg):
        train = [Datum("a.png", 0, 0, "cat"), Datum("b.png", 1, 0, "dog")]
        test = [Datum("c.png", 0, 0, "cat"), Datum("d.png", 1, 0, "dog")]
        {change}
        super().__init__(train_x=train, test=test, {more})
"""
PLUGINS = {
    "test names": ("test[0].classname = 'cow'", "", "label 0 is 'cat' in train and 'cow' in test (a.png, c.png)"),
    "validation names": ("", "val=[Datum('e.png', 1, 0, 'cat')]", "label 1 is 'dog' in train and 'cat' in val"),
    "unlabelled names": ("", "train_u=[Datum('e.png', 1, 0, 'cat')]", "'dog' in train and 'cat' in train_u"),
    "half a label": ("test[0].label = 0.5", "", "the label of c.png in test is 0.5, which is no whole number"),
    "a whole number that is none": ("test[1].label = 1.0", "", "is 1.0, which is no whole number"),
    "a label below 0": ("test[1].label = -1", "", "an image of test has the label -1 (d.png)"),
    "a name that is none": ("train[0].classname = None", "", "the class name of a.png in train is None"),
    "a path of two labels": ("test[0].impath = './b.png'", "", "b.png has the label 1 ('dog') and the label 0"),
    "one class": ("del train[1], test[1]", "", "Foreign has one class, 'cat': an accuracy among one class is always"),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_a_dataset_of_a_plugin_that_contradicts_itself(name, refused, tmp_path):
    change, more, part = PLUGINS[name]
    (tmp_path / "foreign.py").write_text(PLUGIN.format(change=change or "pass", more=more))
    line = refused("ZeroshotCLIP", "--plugin", tmp_path / "foreign.py", "DATASET.NAME", "Foreign")
    assert part in line, line


def test_two_classes_of_one_name_are_two_classes(made, root):
    drawn.write_imagenet(root)
    results, said = made("ZeroshotCLIP", dataset="imagenet", root=root)
    assert results["classes"]["name"] == ["tench", "goldfish", "missile", "missile"]
    assert "classes (labels) whose prompts are the same: 'missile' (2)/'missile' (3)" in said


# ---- 2: no class disappears ----
@pytest.mark.parametrize("name", ["zucchini", "banana"])  # behind the others, or between them
def test_a_class_of_no_images(name, refused, root):
    own(root, "apple", "cherry")
    no_images(root / name)
    line = refused("CoOp", dataset="image_folder", root=root)
    assert f"the class '{name}' has 4 files in {root}/{name} and none is an image" in line
    assert f"first {root}/{name}/0.HEIC; convert them to JPEG or PNG" in line and "delete the folder" in line


def test_two_classes_of_no_images_are_one_line(refused, root):
    own(root, "apple", "cherry", "date")
    for name in ("banana", "zucchini"):
        no_images(root / name, suffix=".avif.txt")
    line = refused("ZeroshotCLIP", dataset="image_folder", root=root)
    assert "the class 'banana' has 4 files" in line and "nor in 'zucchini'" in line


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_class_of_no_images_in_one_part(part, refused, root):
    own(root, *(f"{p}/{c}" for p in ("train", "val", "test") for c in ("apple", "cherry", "fig")), count=3)
    shutil.rmtree(root / part / "cherry")
    no_images(root / part / "cherry", 3)
    line = refused("CoOp", dataset="image_folder", root=root)
    assert f"the class 'cherry' has 3 files in {root}/{part}/cherry and none is an image" in line


@pytest.mark.parametrize(("sources", "target"), [(["photo"], "sketch"), (["photo", "clip"], "sketch"),
                                                 (["sketch"], "photo")])
def test_a_class_of_no_images_in_one_domain(sources, target, refused, root):
    own(root, *(f"{d}/{c}" for d in ("photo", "sketch", "clip") for c in ("apple", "cherry", "fig")), count=4)
    shutil.rmtree(root / "sketch" / "cherry")
    no_images(root / "sketch" / "cherry", 2)
    line = refused("CoOp", "--source-domains", *sources, "--target-domains", target, dataset="domain_folder", root=root)
    assert f"the class 'cherry' has 2 files in {root}/sketch/cherry" in line


@pytest.mark.parametrize(("part", "word", "numbers"), [
    ("train", "none of its 4 training images", range(4)), ("val", "none of its 5 validation images", range(4, 9)),
    ("test", "none of its 3 test images", range(9, 12))])
def test_a_class_that_skipping_bad_images_would_drop(part, word, numbers, caltech, refused, root):
    spoil(caltech[0] / "101_ObjectCategories" / "dog" / f"image_{n:04d}.png" for n in numbers)
    line = refused("CoOp", "--skip-bad-images", "DATASET.NUM_SHOTS", -1, root=root)
    assert f"the class 'dog' would disappear: {word} can be read" in line and "dog/image_00" in line


def test_the_one_shot_of_a_class_cannot_be_read(caltech, refused, root):
    spoil((caltech[0] / "101_ObjectCategories" / "dog").iterdir())
    line = refused("CoOp", "--skip-bad-images", "DATASET.NUM_SHOTS", 1, root=root)
    assert "the class 'dog' would disappear: its one training image cannot be read" in line


@pytest.mark.parametrize(("domain", "words"), [("cartoon", "of the domain cartoon"), ("sketch", "5 test images can")])
def test_a_class_that_one_domain_would_lose(domain, words, refused, root):
    spoil((drawn.write_pacs(root) / "images" / domain / "dog").iterdir())
    line = refused("CoOp", "--skip-bad-images", "--source-domains", "photo", "cartoon", "--target-domains", "sketch",
                   "DATASET.NUM_SHOTS", -1, dataset="pacs", root=root)
    assert "the class 'dog' would disappear" in line and words in line


def test_a_test_class_that_an_evaluation_would_lose(made, caltech, refused, root, tmp_path):
    made("CoOp", "OPTIM.MAX_EPOCH", 1, out="trained", root=root)
    spoil(caltech[0] / "101_ObjectCategories" / "house" / f"image_{n:04d}.png" for n in range(9, 12))
    line = refused("CoOp", "--eval-only", "--model-dir", tmp_path / "trained", "--skip-bad-images", root=root)
    assert "the class 'house' would disappear: none of its 3 test images" in line


@pytest.mark.parametrize("lost", [["dog"], ["dog", "guitar"]])
def test_classes_without_a_test_image_are_told_and_stored(lost, caltech, made, root):
    caltech[1](lambda s: s.update(test=[entry for entry in s["test"] if entry[2] not in lost]))
    results, said = made("ZeroshotCLIP", root=root)
    assert results["untested_classes"] == lost
    assert f"Note: {len(lost)} of 6 classes have no test image, first 'dog'" in said


def test_a_class_of_one_image_is_trained_and_told(made, root):
    own(root, "apple", "cherry")
    own(root, "fig", count=1)
    results, said = made("CoOp", "OPTIM.MAX_EPOCH", 1, dataset="image_folder", root=root)
    assert results["untested_classes"] == ["fig"] and "first 'fig'" in said


# ---- 4: a draw belongs to its lists ----
def shots_of(folder):
    stored = json.loads(next((folder / "split_fewshot").glob("shot_*.json")).read_text())
    return Counter(entry[2] for entry in stored["train"])


def test_a_split_that_grew(made, root, tmp_path):
    """Two training images per class, then twelve: four shots are two, then four."""
    classes = ("dog", "guitar", "house")
    for count, expected in ((2, 2), (12, 4)):
        shutil.rmtree(root, ignore_errors=True)
        drawn.write_caltech(root, classes, {"train": count, "val": 2, "test": 2})
        made("ZeroshotCLIP", "DATASET.NUM_SHOTS", 4, root=root, out=f"out{count}")
        assert shots_of(tmp_path / f"out{count}") == dict.fromkeys(classes, expected)


def test_a_folder_that_grew(made, root, tmp_path):
    for count, expected in ((4, 2), (20, 4)):
        own(root, "apple", "cherry", count=count)
        made("ZeroshotCLIP", "DATASET.NUM_SHOTS", 4, dataset="image_folder", root=root, out=f"out{count}")
        assert shots_of(tmp_path / f"out{count}") == {"apple": expected, "cherry": expected}


def stale_draw(root, folder, config, **kwargs):
    """What an earlier version left: the draw of the lists as they are, kept in the dataset's folder."""
    keep_draws(load(config, root, shots=4, **kwargs), folder)
    (file,) = (folder / "split_fewshot").iterdir()
    stored = json.loads(file.read_text())
    del stored["source"]
    file.write_text(json.dumps(stored))
    return file


@pytest.mark.parametrize("written_by", ["an earlier version", "this one"])
def test_a_kept_draw_of_fewer_images(written_by, made, root, tmp_path):
    classes = ("dog", "guitar", "house")
    folder = drawn.write_caltech(root, classes, {"train": 2, "val": 2, "test": 2})
    kept = stale_draw(root, folder, "caltech101")
    if written_by == "this one":
        keep_draws(load("caltech101", root, shots=4), folder)
    content = kept.read_bytes()
    shutil.rmtree(folder / "101_ObjectCategories")
    drawn.write_caltech(root, classes, {"train": 12, "val": 2, "test": 2})
    _, said = made("ZeroshotCLIP", "DATASET.NUM_SHOTS", 4, root=root)
    assert shots_of(tmp_path / "out") == dict.fromkeys(classes, 4) and kept.read_bytes() == content
    assert said.count(str(kept)) == 1 and f"Note: {kept} does not fit" in said


def test_a_kept_draw_of_images_that_are_gone(made, caltech, root, tmp_path):
    kept = stale_draw(root, caltech[0], "caltech101")
    caltech[1](lambda s: s.update(train=[e for e in s["train"] if not e[0].endswith("_0000.png")]))
    _, said = made("ZeroshotCLIP", "DATASET.NUM_SHOTS", 4, root=root)
    assert set(shots_of(tmp_path / "out").values()) == {3} and said.count(f"Note: {kept} does not fit") == 1


def test_a_kept_draw_of_other_domains_lists(made, root, tmp_path):
    folder = drawn.write_pacs(root)
    kept = stale_draw(root, folder, "pacs", sources=["photo"], targets=["sketch"])
    path = folder / "splits" / "photo_train_kfold.txt"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "pic_001" not in line))
    _, said = made("ZeroshotCLIP", "--source-domains", "photo", "--target-domains", "sketch", "DATASET.NUM_SHOTS", 4,
                   dataset="pacs", root=root)
    assert set(shots_of(tmp_path / "out").values()) == {2} and said.count(f"Note: {kept} does not fit") == 1


@pytest.mark.parametrize("change", [
    lambda root: shutil.rmtree(root / "cherry"), lambda root: own(root, "kiwi"), lambda root: own(root, "fig", count=9),
    lambda root: (root / "apple" / "0.png").unlink(), lambda root: (root / "fig").rename(root / "Fig"),
    lambda root: spoil([root / "apple" / "1.png"]) or (root / "apple" / "1.png").write_bytes(b"text")])
def test_a_kept_split_of_other_files(change, made, root):
    """The run is the one of a folder in which no split was ever kept."""
    own(root, "apple", "cherry", "fig")
    keep_draws(load("image_folder", root), root)
    change(root)
    results, said = made("ZeroshotCLIP", dataset="image_folder", root=root)
    assert said.count(f"Note: {root}/split_drawn.json was drawn from other images") == 1
    (root / "split_drawn.json").unlink()
    assert results["dataset_digest"] == made("ZeroshotCLIP", dataset="image_folder", root=root, out="b")[0][
        "dataset_digest"]


def test_a_kept_split_of_a_dataset_with_other_names(made, caltech, root):
    (caltech[0] / "split_zhou_Caltech101.json").unlink()
    keep_draws(load("caltech101", root), caltech[0])
    kept = caltech[0] / "split_drawn_Caltech101.json"
    kept.write_text(kept.read_text().replace('"dog"', '"cow"'))
    results, said = made("ZeroshotCLIP", root=root)
    assert "cow" not in results["classes"]["name"] and said.count(f"Note: {kept} was drawn from other") == 1


@pytest.mark.parametrize(("dataset", "words"), [
    ("caltech101", ()), ("pacs", ("--source-domains", "photo", "--target-domains", "sketch")),
    ("terra_incognita", ("--source-domains", "location_100", "--target-domains", "location_43")), ("imagenet", ()),
    ("image_folder", ()), ("domain_folder", ("--source-domains", "x", "--target-domains", "y"))])
def test_nothing_is_written_into_a_dataset(dataset, words, made, root):
    if dataset in drawn.LAYOUTS:
        drawn.LAYOUTS[dataset](root)
    else:
        own(root, *(("a", "b") if dataset == "image_folder" else ("x/a", "x/b", "y/a", "y/b")))
    for path in root.rglob("split_zhou_*.json"):
        path.unlink()
    before = {path: path.stat().st_mtime_ns for path in (root, *root.rglob("*"))}
    made("ZeroshotCLIP", *words, dataset=dataset, root=root)
    assert {path: path.stat().st_mtime_ns for path in (root, *root.rglob("*"))} == before


# ---- 10: names in two byte forms ----
def test_a_class_composed_in_one_domain_and_not_in_the_other(made, root):
    own(root, f"photo/{COMPOSED}", "photo/bar", "photo/zoo", f"sketch/{DECOMPOSED}", "sketch/bar", "sketch/zoo")
    results, _ = made("ZeroshotCLIP", "--source-domains", "photo", "--target-domains", "sketch",
                      dataset="domain_folder", root=root)
    assert results["classes"]["name"] == ["bar", COMPOSED, "zoo"]


@pytest.mark.parametrize("layout", ["", "train/", "photo/"])
def test_a_class_in_both_forms_in_one_folder(layout, refused, root):
    own(root, f"{layout}{COMPOSED}", f"{layout}{DECOMPOSED}", f"{layout}bar", count=3)
    words = ("--source-domains", "photo", "--target-domains", "sketch") if layout == "photo/" else ()
    if layout:
        own(root, *(f"{'test' if layout == 'train/' else 'sketch'}/{name}" for name in ("bar", COMPOSED)), count=3)
    line = refused("CoOp", *words, dataset="domain_folder" if words else "image_folder", root=root)
    assert f"two folders of the one name '{COMPOSED}', {ascii(DECOMPOSED)} and {ascii(COMPOSED)}" in line


def test_a_domain_in_both_forms(refused, root):
    own(root, *(f"{domain}/{name}" for domain in (COMPOSED, DECOMPOSED) for name in ("a", "b")), count=3)
    line = refused("CoOp", "--source-domains", COMPOSED, "--target-domains", DECOMPOSED, dataset="domain_folder",
                   root=root)
    assert "two folders of the one name" in line


@pytest.mark.parametrize(("source", "target"), [(DECOMPOSED, "sketch"), ("sketch", DECOMPOSED)])
def test_a_domain_asked_for_in_the_other_form(source, target, root):
    own(root, *(f"{domain}/{name}" for domain in (COMPOSED, "sketch") for name in ("a", "b")), count=4)
    assert counts(load("domain_folder", root, sources=[source], targets=[target])) == [4, 2, 8]


def test_a_domain_twice_in_two_forms(refused, root):
    own(root, *(f"{domain}/{name}" for domain in (COMPOSED, "sketch") for name in ("a", "b")), count=4)
    line = refused("CoOp", "--source-domains", COMPOSED, DECOMPOSED, "--target-domains", "sketch",
                   dataset="domain_folder", root=root)
    assert "--source-domains names a domain twice" in line


def test_parts_of_a_folder_in_two_forms(made, root):
    own(root, f"train/{COMPOSED}", "train/bar", f"test/{DECOMPOSED}", "test/bar")
    results, _ = made("ZeroshotCLIP", dataset="image_folder", root=root)
    assert results["classes"]["name"] == ["bar", COMPOSED]


def test_a_split_file_in_two_forms(caltech, made, root):
    def spell(split):
        for part, name in (("train", DECOMPOSED), ("val", COMPOSED), ("test", COMPOSED)):
            for entry in split[part]:
                entry[2] = name if entry[2] == "dog" else entry[2]

    caltech[1](spell)
    assert made("ZeroshotCLIP", root=root)[0]["classes"]["name"][1] == COMPOSED


def test_lists_in_two_forms(made, root):
    root.mkdir()
    drawn.write_aircraft(root)
    folder = root / "fgvc_aircraft"
    for file, name in (("variants.txt", COMPOSED), ("images_variant_train.txt", DECOMPOSED),
                       ("images_variant_test.txt", DECOMPOSED), ("images_variant_val.txt", COMPOSED)):
        (folder / file).write_text((folder / file).read_text().replace("Boeing 717", name))
    assert made("ZeroshotCLIP", dataset="fgvc_aircraft", root=root)[0]["classes"]["name"][2] == COMPOSED


@pytest.mark.parametrize(("one", "other"), [("Cat", "cat"), ("alarm clock", "alarm_clock"), ("T-Shirt", "t-shirt"),
                                            (COMPOSED.upper(), COMPOSED)])
def test_two_classes_of_one_prompt_are_told(one, other, made, root):
    own(root, one, other, "tree")
    results, said = made("ZeroshotCLIP", dataset="image_folder", root=root)
    assert len(results["classes"]["name"]) == 3
    assert "whose prompts are the same" in said and f"'{one}' (" in said and f"'{other}' (" in said


# ---- 11: an accuracy among one class ----
@pytest.mark.parametrize(("classes", "half", "words"), [
    (["a", "b"], "base", "SUBSAMPLE_CLASSES is base, and of 2 classes one is base, 'a'"),
    (["a", "b"], "new", "SUBSAMPLE_CLASSES is new, and of 2 classes one is new, 'b'"),
    (["a", "b", "c"], "new", "SUBSAMPLE_CLASSES is new, and of 3 classes one is new, 'c'"),
    (["a"], "base", "of 1 classes one is base, 'a'"),
    (["a"], "all", "ImageFolder has one class, 'a'")])
def test_halves_of_one_class(classes, half, words, refused, root):
    own(root, *classes)
    line = refused("CoOp", "DATASET.SUBSAMPLE_CLASSES", half, dataset="image_folder", root=root)
    assert words in line and "an accuracy among one class is always 100 %" in line
    assert ("base-to-new needs at least four classes" in line) == (half != "all")


def test_domains_of_one_class(refused, root):
    own(root, "photo/a", "sketch/a")
    line = refused("CoOp", "--source-domains", "photo", "--target-domains", "sketch", dataset="domain_folder",
                   root=root)
    assert "DomainFolder has one class, 'a'" in line


def test_an_evaluation_among_one_class(made, refused, root, tmp_path):
    own(root, "a", "b", "c")
    made("CoOp", "OPTIM.MAX_EPOCH", 1, "DATASET.SUBSAMPLE_CLASSES", "base", dataset="image_folder", root=root,
         out="base")
    line = refused("CoOp", "--eval-only", "--model-dir", tmp_path / "base", "DATASET.SUBSAMPLE_CLASSES", "new",
                   dataset="image_folder", root=root)
    assert "of 3 classes one is new, 'c'" in line


def test_a_variant_of_imagenet_with_one_class(refused, root):
    drawn.write_imagenet_variant(root, "imagenet_a")
    for name in ("n03773504", "n04008634"):
        shutil.rmtree(root / "imagenet-adversarial" / "imagenet-a" / name)
    assert "ImageNetA has one class, 'goldfish'" in refused("ZeroshotCLIP", dataset="imagenet_a", root=root)


def test_base_to_new_on_two_classes(protocol_refused, root, tiny_config, clip_file, tmp_path):
    own(root, "a", "b")
    line = protocol_refused("base2new", "--dataset", "image_folder", "--trainer", "CoOp", "--cfg", tiny_config,
                            "--root", root, "--output", tmp_path / "out", "--backbone", clip_file, "--shots", 1,
                            "--seeds", 1)
    assert "each half of the classes has one class (a), and an accuracy among one class says nothing" in line


# ---- 18: what is expected of a dataset is what the dataset reads ----
def touch(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


@pytest.fixture(scope="module")
def whole_pacs(tmp_path_factory):
    """The published numbers of images; the one that is listed and not in the archive is the first sketch."""
    root = tmp_path_factory.mktemp("whole")
    classes = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
    (root / "pacs" / "splits").mkdir(parents=True)
    for domain, count in {"art_painting": 2048, "cartoon": 2344, "photo": 1670, "sketch": 3929}.items():
        lists = {"train": [], "crossval": []}
        for label, name in enumerate(classes, start=1):
            files = [f"{i:04d}.png" for i in range(label - 1, count, len(classes))]
            gone = domain == "sketch" and name == "dog"
            touch(root / "pacs" / "images" / domain / name, files[gone:])
            if gone:
                files[0] = "n02103406_4068-1.png"
            for part, some in (("train", files[len(files) // 10:]), ("crossval", files[:len(files) // 10])):
                lists[part] += [f"{domain}/{name}/{file} {label}" for file in some]
        for part, lines in lists.items():
            (root / "pacs" / "splits" / f"{domain}_{part}_kfold.txt").write_text("\n".join(lines))
    return root


def test_a_whole_pacs_passes_and_one_that_lacks_a_sketch_does_not(whole_pacs, root, capsys):
    assert prepare_data.main(["pacs", "--check", "--root", str(whole_pacs)]) is True
    assert "sketch 3,928" in " ".join(capsys.readouterr().out.split())
    (root / "pacs").mkdir(parents=True)
    (root / "pacs" / "images").symlink_to(whole_pacs / "pacs" / "images")
    shutil.copytree(whole_pacs / "pacs" / "splits", root / "pacs" / "splits")
    path = root / "pacs" / "splits" / "sketch_train_kfold.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    assert prepare_data.main(["pacs", "--check", "--root", str(root)]) is False
    assert "sketch 3,927" in " ".join(capsys.readouterr().out.split())


def test_a_whole_office_home_passes_in_its_other_layout(root):
    """The dataset reads office_home/ where office_home_dg/ is not there; it was never counted."""
    for domain, count in {"art": 2427, "clipart": 4365, "product": 4439, "real_world": 4357}.items():
        for label in range(65):
            touch(root / "office_home" / domain / f"Class_{label:02d}",
                  [f"{i:05d}.jpg" for i in range(label, count, 65)])
    assert prepare_data.main(["office_home", "--check", "--root", str(root)]) is True


# ---- 19: byte-order marks ----
def mark(path):
    path.write_bytes(BOM + path.read_bytes())


@pytest.mark.parametrize(("dataset", "file", "words"), [
    ("caltech101", "caltech-101/split_zhou_Caltech101.json", ()), ("imagenet", "imagenet/classnames.txt", ()),
    ("fgvc_aircraft", "fgvc_aircraft/variants.txt", ()),
    ("fgvc_aircraft", "fgvc_aircraft/images_variant_test.txt", ()),
    ("pacs", "pacs/splits/photo_train_kfold.txt", ("photo", "sketch")),
    ("domainnet", "domainnet/splits/real_test.txt", ("clipart", "real"))])
def test_a_byte_order_mark_changes_nothing(dataset, file, words, root):
    root.mkdir(exist_ok=True)
    drawn.LAYOUTS[dataset](root)

    def read():
        found = load(dataset, root, shots=2, sources=words[:1], targets=words[1:])
        return found.classnames, [[(i.impath, i.label, i.classname) for i in part]
                                  for part in (found.train_x, found.val, found.test)]

    expected = read()
    mark(root / file)
    assert read() == expected


def test_lists_that_were_joined_with_their_marks(root):
    folder = drawn.write_pacs(root) / "splits"
    whole = load("pacs", root, sources=["photo"], targets=["sketch"])
    path = folder / "photo_train_kfold.txt"
    lines = path.read_bytes().splitlines(True)
    path.write_bytes(BOM + b"".join(lines[:5]) + BOM + b"".join(lines[5:]))
    assert counts(load("pacs", root, sources=["photo"], targets=["sketch"])) == counts(whole)


def test_a_kept_draw_with_a_mark_is_read(caltech, root, capsys):
    first = load("caltech101", root, shots=2)
    keep_draws(first, caltech[0])
    mark(caltech[0] / "split_fewshot" / "shot_2-seed_1.json")
    assert [i.impath for i in load("caltech101", root, shots=2).train_x] == [i.impath for i in first.train_x]
    assert "Note" not in capsys.readouterr().out
