"""Datasets that contradict themselves through further doors: empty class folders, classes of lists without images,
names of files in other byte forms, images that are listed twice."""
import json
import os
import shutil
import unicodedata

import drawn
import pytest
from test_datasets_layouts import load

from dassl.data.datasets import keep_draws, source_digest
from tools.results.significance import read_predictions
from truth.test_truth_data import COMPOSED, PLUGIN, own

DOMAINS = {"office_home": ("art", "clipart"), "vlcs": ("caltech", "labelme"),
           "terra_incognita": ("location_100", "location_43")}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


# ---- 1: names ----
@pytest.mark.parametrize("name", ["None", "5"])
def test_a_name_that_is_none_where_the_label_has_one(name, refused, tmp_path):
    (tmp_path / "foreign.py").write_text(PLUGIN.format(change=f"test[0].classname = {name}", more=""))
    line = refused("ZeroshotCLIP", "--plugin", tmp_path / "foreign.py", "DATASET.NAME", "Foreign")
    assert f"the class name of c.png in test is {name}, which is no text" in line


def test_a_class_that_only_an_unread_domain_has_is_named(refused, root):
    own(root, *(f"{domain}/{name}" for domain in ("photo", "sketch", "clip") for name in ("apple", "cherry", "fig")))
    own(root, "clip/banana")
    words = ("--source-domains", "photo", "--target-domains", "sketch")
    line = refused("CoOp", *words, dataset="domain_folder", root=root)
    assert "no training image has label 1, 'banana' in the domain clip (" in line and "/clip/banana/" in line


# ---- 2: no class disappears from a published layout ----
@pytest.mark.parametrize("place", [-1, 1])  # behind the others it left no gap in the labels
@pytest.mark.parametrize("parts", [("train", "val"), ("val",)])
def test_an_empty_class_folder_of_imagenet(parts, place, refused, root):
    drawn.write_imagenet(root)
    for part in parts:
        folder = sorted((root / "imagenet" / "images" / part).iterdir())[place]
        for path in folder.iterdir():
            path.unlink()
    line = refused("ZeroshotCLIP", dataset="imagenet", root=root)
    assert f"{root}/imagenet/images/{parts[0]}/{folder.name} holds no images; bring them back, or delete" in line


def test_an_empty_class_folder_of_a_variant(refused, root):
    drawn.write_imagenet_variant(root, "imagenet_a")
    folder = sorted((root / "imagenet-adversarial" / "imagenet-a").iterdir())[-1]
    for path in folder.iterdir():
        path.unlink()
    assert f"{folder} holds no images" in refused("ZeroshotCLIP", dataset="imagenet_a", root=root)


@pytest.mark.parametrize("dataset", DOMAINS)
def test_a_class_that_is_empty_in_every_domain(dataset, refused, root):
    drawn.LAYOUTS[dataset](root)
    pictures = [path for path in root.rglob("*") if path.is_file() and path.suffix in (".png", ".jpg")]
    last = max(path.parent.name for path in pictures)
    for path in pictures:
        if path.parent.name == last:
            path.unlink()
    source, target = DOMAINS[dataset]
    line = refused("ZeroshotCLIP", "--source-domains", source, "--target-domains", target, dataset=dataset, root=root)
    assert f"/{last} holds no images" in line


def test_an_empty_class_folder_of_which_a_split_is_drawn(refused, root):
    folder = drawn.write_caltech(root)
    (folder / "split_zhou_Caltech101.json").unlink()
    (folder / "101_ObjectCategories" / "zebra").mkdir()
    assert "101_ObjectCategories/zebra holds no images" in refused("CoOp", root=root)


@pytest.mark.parametrize("place", [0, -1])
def test_a_variant_without_an_image(place, refused, root):
    root.mkdir()
    drawn.write_aircraft(root)
    path = root / "fgvc_aircraft" / "variants.txt"
    names = path.read_text().splitlines()
    path.write_text("\n".join(["Zeppelin", *names] if place == 0 else [*names, "Zeppelin"]))
    line = refused("CoOp", dataset="fgvc_aircraft", root=root)
    assert "variants.txt names the class 'Zeppelin', of which no image is listed (1 of 5 classes)" in line


# ---- an image that is listed twice ----
@pytest.mark.parametrize(("part", "line"), [("test", "15 of 33 entries of the test part"),
                                            ("train", "3 of 24 entries of the training part")])
def test_entries_that_come_again_are_told(part, line, made, root):
    """The draw of four training images may be four times the one there is."""
    file = drawn.write_caltech(root) / "split_zhou_Caltech101.json"
    split = json.loads(file.read_text())
    dogs = [entry for entry in split[part] if entry[2] == "dog"]
    if part == "train":
        split[part] = [entry for entry in split[part] if entry[2] != "dog"]
        dogs = dogs[:1]
    split[part] += dogs * 5
    file.write_text(json.dumps(split))
    _, said = made("ZeroshotCLIP", "DATASET.NUM_SHOTS", 4, root=root)
    assert f"Warning: {line} name an image that it has already; each counts again" in said


# ---- 10: the same files on a disk that decomposes accents ----
def decompose(folder):
    for path in sorted(folder.rglob("*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))


@pytest.fixture
def accented(root):
    """Class and file names with accents. Composed, "é" stands behind "f"; decomposed, before it."""
    own(root, COMPOSED, "bar", "zoo")
    for path in sorted((root / "bar").iterdir()):
        path.rename(path.with_name(f"{'éfg'[int(path.stem) % 3]}{path.name}"))
    return root


def test_a_finished_run_of_the_same_files(accented, made):
    first, _ = made("CoOp", dataset="image_folder", root=accented)
    decompose(accented)
    again, said = made("CoOp", dataset="image_folder", root=accented)
    assert again == first and "Finished before" in said
    assert made("CoOp", dataset="image_folder", root=accented, out="anew")[0]["metrics"] == first["metrics"]


def test_an_interrupted_run_of_the_same_files(accented, made, tmp_path):
    made("CoOp", dataset="image_folder", root=accented)
    (tmp_path / "out" / "results.json").unlink()
    decompose(accented)
    _, said = made("CoOp", dataset="image_folder", root=accented)
    assert "Resuming from" in said and "after epoch 2" in said


def test_kept_draws_of_the_same_files(accented, made, capsys):
    keep_draws(load("image_folder", accented, shots=2), accented)
    whole = load("image_folder", accented, shots=2)
    source = source_digest([whole.train_x, whole.test], accented)
    decompose(accented)
    capsys.readouterr()
    now = load("image_folder", accented, shots=2)
    assert source_digest([now.train_x, now.test], accented) == source
    assert all(os.path.isfile(item.impath) for item in [*now.train_x, *now.val, *now.test])
    said = capsys.readouterr().out
    assert "Note" not in said and f"Split: {accented}/split_drawn.json" in said


def test_training_images_are_the_same_files_in_the_other_form(root, made, refused, tmp_path):
    own(root, *(f"{domain}/{name}" for domain in ("photo", "sketch") for name in (COMPOSED, "bar")))
    made("CoOp", "--source-domains", "photo", "--target-domains", "sketch", "DATASET.ALLOW_OVERLAP", True,
         dataset="domain_folder", root=root, out="trained")
    shutil.copytree(root, tmp_path / "elsewhere")
    decompose(tmp_path / "elsewhere")
    line = refused("CoOp", "--eval-only", "--model-dir", tmp_path / "trained", "--source-domains", "sketch",
                   "--target-domains", "photo", dataset="domain_folder", root=tmp_path / "elsewhere")
    assert "4 of 12 test images are training images" in line, line


def test_a_file_whose_name_is_no_unicode(root, made, tmp_path):
    own(root, "a", "b")
    for path in list((root / "a").iterdir()):
        path.rename(os.fsdecode(os.fsencode(path.parent) + b"/\xe9" + os.fsencode(path.name)))
    results, _ = made("CoOp", dataset="image_folder", root=root)
    paths, right = read_predictions(tmp_path / "out")
    assert 100 * right.mean() == pytest.approx(results["metrics"]["test"]["accuracy"])
    assert all((root / path).is_file() for path in paths)


# ---- 23: names from a file ----
def test_a_file_of_names_that_has_moved_is_the_same_run(root, made, refused, tmp_path):
    own(root, "a", "b", "c")
    names = tmp_path / "names.txt"
    names.write_text("a = apple")
    first, _ = made("CoOp", "DATASET.CLASSNAMES", names, dataset="image_folder", root=root)
    (tmp_path / "moved.txt").write_text("b = b\na = apple")
    again, said = made("CoOp", "DATASET.CLASSNAMES", tmp_path / "moved.txt", dataset="image_folder", root=root)
    assert again == first and "Finished before" in said
    (tmp_path / "moved.txt").write_text("a = pear")
    line = refused("CoOp", "DATASET.CLASSNAMES", tmp_path / "moved.txt", dataset="image_folder", root=root)
    assert "is of other data: the training part of ImageFolder is another list of images now" in line
    assert "is of other data" in refused("CoOp", dataset="image_folder", root=root)



# ---- 25: what is measured on what it was chosen on ----
def test_validation_images_that_choose_the_epoch_are_measured_on(made):
    words = ("TEST.SPLIT", "val", "DATASET.NUM_SHOTS", 4)
    line = "Warning: the epoch is chosen on the validation images, and TEST.SPLIT val measures on the same"
    assert line in made("CoOp", *words, "TEST.FINAL_MODEL", "best_val")[1]
    assert line not in made("CoOp", *words, out="last")[1]
