"""Every dataset on a miniature of its published layout: runs, classes, parts, and splits drawn where none is there."""
import json
import os
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import drawn
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

import train
from dassl.config import get_cfg_default
from dassl.data import DataManager
from dassl.data.datasets import DATASET_REGISTRY, Datum, build_dataset, keep_draws
from dassl.utils import InputError
from datasets.base import DomainDataset
from datasets.splits import draw_split, split_trainval
from datasets.stanford_cars import StanfordCars

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path.stem for path in (ROOT / "configs" / "datasets").glob("*.yaml"))
OWN = ("image_folder", "domain_folder", "shapes")  # tested elsewhere


def class_of(config):
    words = yaml.safe_load((ROOT / "configs" / "datasets" / f"{config}.yaml").read_text())
    return DATASET_REGISTRY.get(words["DATASET"]["NAME"])


def load(config, root, shots=-1, seed=1, classes="all", sources=(), targets=(), part=""):
    cfg = get_cfg_default()
    cfg.VERBOSE, cfg.SEED, cfg.DATALOADER.NUM_WORKERS = False, seed, 0
    cfg.DATASET.NAME, cfg.DATASET.ROOT = class_of(config).__name__, str(root)
    cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES, cfg.DATASET.TARGET_PART = shots, classes, part
    cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS = tuple(sources), tuple(targets)
    return build_dataset(cfg)


def counts(dataset):
    return [len(part or []) for part in (dataset.train_x, dataset.val, dataset.test)]


@pytest.fixture(scope="session")
def every_layout(tmp_path_factory):
    """A data folder with a miniature of every published layout."""
    root = tmp_path_factory.mktemp("layouts")
    for write in drawn.LAYOUTS.values():
        write(root)
    return root


@pytest.fixture
def one_layout(tmp_path):
    def one_layout(config, *more):
        for name in (config, *more):
            drawn.LAYOUTS[name](tmp_path)
        return tmp_path

    return one_layout


def test_every_config_has_a_layout_here():
    assert sorted([*drawn.LAYOUTS, *OWN]) == CONFIGS


# ---- whole runs ----
@pytest.mark.parametrize("config", sorted(drawn.LAYOUTS))
def test_trains_and_tests(config, every_layout, arguments, clips, tmp_path):
    words = []
    if issubclass(class_of(config), DomainDataset):
        *sources, target = class_of(config).domain_names(every_layout)
        words = ["--source-domains", *sources, "--target-domains", target]
    variant = config.startswith("imagenet") and config != "imagenet"  # which has test images only
    argv = arguments("CoOp", tmp_path, *words, "OPTIM.MAX_EPOCH", 1, "DATASET.ALLOW_OVERLAP", variant, dataset=config,
                     root=every_layout)
    results = train.main(argv, clips=clips)
    assert 0 <= results["metrics"]["test"]["accuracy"] <= 100
    assert (tmp_path / "prompt_learner" / "model.pth.tar-1").is_file()


# ---- parts and classes ----
@pytest.mark.parametrize("config", sorted(drawn.SPLIT_LAYOUTS))
def test_published_split_files(config, every_layout):
    dataset = load(config, every_layout)
    images, split_file, _ = drawn.SPLIT_LAYOUTS[config]
    split = json.loads((every_layout / split_file).read_text())
    for name, part in (("train", dataset.train_x), ("val", dataset.val), ("test", dataset.test)):
        assert [[os.path.relpath(item.impath, every_layout / images), item.label] for item in part] == [
            entry[:2] for entry in split[name]]
    if config != "eurosat":
        assert dataset.classnames == list(drawn.SPLIT_LAYOUTS[config][2])


def test_eurosat_has_coops_new_names(every_layout):
    assert load("eurosat", every_layout).classnames == ["Annual Crop Land", "Forest", "Highway or Road", "Sea or Lake"]


def test_aircraft(every_layout):
    dataset = load("fgvc_aircraft", every_layout)
    assert dataset.classnames == ["707-320", "A300B4", "Boeing 717", "F/A-18"]
    assert counts(dataset) == [16, 20, 12]


# ---- ImageNet ----
def test_imagenet_classes_are_known_by_folder(every_layout):
    dataset = load("imagenet", every_layout)
    assert dataset.classnames == ["tench", "goldfish", "missile", "missile"] and dataset.num_classes == 4
    assert all(list(drawn.WNIDS)[item.label] == Path(item.impath).parts[-2] for item in dataset.train_x + dataset.test)
    assert [item.impath for item in dataset.train_x] == sorted(item.impath for item in dataset.train_x)


@pytest.mark.parametrize("config", ["imagenet", "imagenetv2", "imagenet_sketch"])
def test_a_missing_class_folder_is_an_error(config, one_layout):
    root = one_layout(config)
    gone = {"imagenet": "imagenet/images/val/n01443537", "imagenet_sketch": "imagenet-sketch/images/n01443537",
            "imagenetv2": "imagenetv2/imagenetv2-matched-frequency-format-val/1"}[config]
    shutil.rmtree(root / gone)
    with pytest.raises(InputError, match=f"has no folder {Path(gone).name} .1 of 4 classes"):
        load(config, root)


@pytest.mark.parametrize(("config", "folder"), [("imagenet", "imagenet/images/train"),
                                                ("imagenet_a", "imagenet-adversarial/imagenet-a")])
def test_a_folder_that_is_no_class_is_an_error(config, folder, one_layout):
    root = one_layout(config)
    drawn.draw(root / folder / "n09999999" / "x.jpg", "x")
    with pytest.raises(InputError, match="folder n09999999 that is no class of classnames.txt"):
        load(config, root)


def test_imagenet_without_class_names_says_what_to_do(one_layout):
    root = one_layout("imagenet")
    (root / "imagenet" / "classnames.txt").unlink()
    with pytest.raises(InputError, match="no file at .*classnames.txt; metaprompt data imagenet"):
        load("imagenet", root)
    (root / "imagenet" / "classnames.txt").write_text("n01440764\n")
    with pytest.raises(InputError, match="'folder class name'"):
        load("imagenet", root)


def test_imagenet_selects_on_unused_training_images(one_layout):
    root = one_layout("imagenet")
    first = load("imagenet", root, shots=2)
    rng = random.Random(1)  # CoOp draws training images only
    expected = [path for label in range(4) for path in rng.sample(
        [item.impath for item in load("imagenet", root).train_x if item.label == label], 2)]
    again = load("imagenet", root, shots=2)
    for dataset in (first, again):
        assert [item.impath for item in dataset.train_x] == expected
        assert counts(dataset) == [8, 8, 12]
        used, val, test = ({item.impath for item in part} for part in (dataset.train_x, dataset.val, dataset.test))
        assert not val & used and not val & test and all("/train/" in path for path in val)
        assert Counter(item.label for item in dataset.val) == dict.fromkeys(range(4), 2)
    assert [item.impath for item in first.val] == [item.impath for item in again.val]
    assert counts(load("imagenet", root)) == [28, 0, 12]  # nothing is left to select on
    base = load("imagenet", root, shots=2, classes="base")
    assert counts(base) == [4, 4, 6] and base.classnames == ["tench", "goldfish"]


def test_a_kept_draw_that_selects_on_training_images_is_not_used(one_layout, capsys):
    root = one_layout("imagenet")
    first = load("imagenet", root, shots=2)
    keep_draws(first, root / "imagenet")
    kept = root / "imagenet" / "split_fewshot" / "shot_2-seed_1.json"
    stored = json.loads(kept.read_text())
    again = load("imagenet", root, shots=2)
    assert [i.impath for i in again.val] == [i.impath for i in first.val] and "Note: /" not in capsys.readouterr().out
    kept.write_text(json.dumps({**stored, "val": stored["train"]}))
    again = load("imagenet", root, shots=2)
    assert [i.impath for i in again.val] == [i.impath for i in first.val]
    assert f"Note: {kept} does not fit: " in capsys.readouterr().out


def test_selection_on_imagenet(every_layout, arguments, clips, tmp_path, capsys):
    words = ("TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 1)
    results = train.main(arguments("CoOp", tmp_path / "a", *words, dataset="imagenet", root=every_layout), clips=clips)
    assert set(results["metrics"]) >= {"test"}
    with pytest.raises(InputError, match="no validation part"):
        train.main(arguments("CoOp", tmp_path / "b", *words, "DATASET.NUM_SHOTS", -1, dataset="imagenet",
                             root=every_layout), clips=clips)


@pytest.mark.parametrize(("config", "names"), [
    ("imagenetv2", ["tench", "goldfish", "missile", "missile"]),
    ("imagenet_sketch", ["tench", "goldfish", "missile", "missile"]),
    ("imagenet_a", ["goldfish", "missile", "missile"]), ("imagenet_r", ["tench", "goldfish", "missile"])])
def test_imagenet_variants(config, names, one_layout, capsys):
    """Names from the variant's own classnames.txt, or from ImageNet's beside it; whole whatever NUM_SHOTS is."""
    root = one_layout(config)
    own = next(root.glob("*/classnames.txt"))
    for _ in range(2):
        dataset = load(config, root, shots=1)
        assert dataset.classnames == names and counts(dataset) == [3 * len(names), 0, 3 * len(names)]
        assert f"classes, {own.parent}" in capsys.readouterr().out  # a miniature has too few, which is said
        if own.is_file():
            (root / "imagenet").mkdir()
            own.rename(root / "imagenet" / "classnames.txt")
    assert not list(root.rglob("split_fewshot"))


# ---- domains ----
PARTS = {"pacs": ("all", 5), "vlcs": ("test", 4), "office_home": ("all", 5), "domainnet": ("test", 2),
         "terra_incognita": ("all", 10)}


@pytest.mark.parametrize("config", sorted(PARTS))
def test_what_of_a_target_domain_is_tested(config, every_layout):
    *sources, target = class_of(config).domain_names(every_layout)
    default, images = PARTS[config]
    dataset = load(config, every_layout, sources=sources, targets=[target])
    assert Counter(item.label for item in dataset.test) == dict.fromkeys(range(dataset.num_classes), images)
    assert [i.impath for i in load(config, every_layout, sources=sources, targets=[target], part=default).test] == [
        i.impath for i in dataset.test]
    whole = load(config, every_layout, sources=sources, targets=[target], part="all").test
    assert len({item.impath for item in whole}) == len(whole) >= len(dataset.test)
    trained = load(config, every_layout, sources=sources[:-1] + [target], targets=sources[-1:])
    inside = {item.impath for item in trained.train_x + trained.val if item.domain == len(sources) - 1}
    if config != "vlcs":  # its folder of all images is a copy
        assert inside <= {item.impath for item in whole}
    with pytest.raises(InputError, match="DATASET.TARGET_PART: 'full' is not known"):
        load(config, every_layout, sources=sources, targets=[target], part="full")


def test_target_part_test(every_layout, one_layout):
    places = ["location_100", "location_43", "location_46"]
    test = load("terra_incognita", every_layout, sources=places[:2], targets=places[2:], part="test").test
    assert Counter(item.label for item in test) == dict.fromkeys(range(4), 3)
    with pytest.raises(InputError, match="no test part"):
        load("office_home", every_layout, sources=["art"], targets=["clipart"], part="test")
    folder = one_layout("pacs") / "pacs" / "splits"
    (folder / "sketch_test_kfold.txt").write_text((folder / "sketch_crossval_kfold.txt").read_text())
    assert len(load("pacs", folder.parents[1], sources=["photo"], targets=["sketch"], part="test").test) == 8


def test_class_names_of_domains(every_layout, tmp_path):
    def names(config, root=every_layout):
        first, second = class_of(config).domain_names(root)[:2]
        return load(config, root, sources=[first], targets=[second]).classnames

    assert names("vlcs") == ["bird", "car", "chair", "dog", "person"]
    assert names("office_home") == ["alarm_clock", "bike", "tv", "toothbrush"]  # in the order of the folders
    assert names("domainnet") == ["aircraft_carrier", "airplane", "t-shirt", "zigzag"]
    # a place that lacks a class keeps the labels of the others
    dataset = load("terra_incognita", every_layout, sources=["location_100"], targets=["location_38"])
    assert dataset.classnames == ["bird", "bobcat", "dog", "empty"]
    assert {Path(item.impath).parts[-2]: item.label for item in dataset.test} == {"bird": 0, "bobcat": 1, "empty": 3}


def test_vlcs_with_named_folders_and_without_the_folder_of_all(one_layout):
    root = one_layout("vlcs")
    for path in list(root.glob("VLCS/*/full")):
        shutil.rmtree(path)
    whole = load("vlcs", root, sources=["sun"], targets=["caltech"], part="all")
    assert len(whole.test) == 45
    for path in list(root.glob("VLCS/*/*/*")):
        path.rename(path.with_name(class_of("vlcs").names[int(path.name)]))
    named = load("vlcs", root, sources=["sun"], targets=["caltech"], part="all")
    assert [(item.label, item.classname) for item in named.test] == [(i.label, i.classname) for i in whole.test]
    (root / "VLCS" / "SUN" / "train" / "cow").mkdir()
    with pytest.raises(InputError, match="'cow'"):
        load("vlcs", root, sources=["sun"], targets=["caltech"])


def test_office_home_without_dassls_split(one_layout, capsys):
    root = one_layout("office_home")
    for domain in class_of("office_home").domains:
        for part in ("train", "val"):
            for folder in (root / "office_home_dg" / domain / part).iterdir():
                shutil.copytree(folder, root / "office_home" / domain / folder.name, dirs_exist_ok=True)
    assert counts(load("office_home", root, sources=["art"], targets=["clipart"])) == [12, 8, 20]
    shutil.rmtree(root / "office_home_dg")
    dataset = load("office_home", root, sources=["art"], targets=["clipart"])
    assert counts(dataset) == [8, 4, 20] and list(dataset.draw_records) == ["split_drawn_OfficeHome.json"]
    assert not list(root.rglob("split_drawn*"))
    assert dataset.classnames == ["alarm_clock", "bike", "tv", "toothbrush"]
    assert "do not compare with those on office_home_dg/" in capsys.readouterr().out
    shutil.rmtree(root / "office_home" / "art")
    with pytest.raises(InputError, match="of the domain art"):
        load("office_home", root, sources=["art"], targets=["clipart"])


# ---- splits that are drawn ----
def test_a_split_is_drawn_once_and_said_so(one_layout, capsys):
    """Half of each class trains, a fifth validates, the rest tests; the published file counts when it comes."""
    root = one_layout("caltech101")
    published = root / "caltech-101" / "split_zhou_Caltech101.json"
    published.rename(root / "kept.json")
    first = load("caltech101", root)
    said = capsys.readouterr().out
    assert "Split: drawn by CoOp's rule (36 train, 12 val, 24 test); numbers do not compare" in said
    assert "numbers do not compare with those on split_zhou_Caltech101.json, which is not there" in said
    assert first.classnames == sorted(drawn.CLASSES)
    for part, number in ((first.train_x, 6), (first.val, 2), (first.test, 4)):
        assert Counter(item.label for item in part) == dict.fromkeys(range(6), number)
    again = load("caltech101", root, seed=2)
    assert [item.impath for item in again.train_x] == [item.impath for item in first.train_x]
    assert not list(root.rglob("split_drawn*"))  # nothing is written into a dataset
    keep_draws(first, root / "caltech-101")
    kept = root / "caltech-101" / "split_drawn_Caltech101.json"
    stored = json.loads(kept.read_text())
    stored["train"][0], stored["test"][0] = stored["test"][0], stored["train"][0]
    for source in ({}, {"source": stored.pop("source")}):  # of an earlier version, and of this
        kept.write_text(json.dumps({**stored, **source}))
        capsys.readouterr()
        theirs = load("caltech101", root)
        assert f"Split: {kept}, drawn by this code; numbers do not compare" in capsys.readouterr().out
        assert theirs.test[0].impath == first.train_x[0].impath
    (root / "kept.json").rename(published)
    assert load("caltech101", root).classnames == drawn.CLASSES and "drawn" not in capsys.readouterr().out


@pytest.mark.parametrize("config", ["food101", "dtd", "eurosat"])
def test_class_folders_are_split(config, one_layout):
    root = one_layout(config)
    published = load(config, root)
    (root / drawn.SPLIT_LAYOUTS[config][1]).unlink()
    dataset = load(config, root)
    assert dataset.classnames == published.classnames and counts(dataset) == [24, 8, 16]


def test_caltechs_folders_that_are_no_classes(tmp_path):
    for name in ("BACKGROUND_Google", "Faces", "Faces_easy", "airplanes"):
        for i in range(4):
            drawn.draw(tmp_path / "caltech-101" / "101_ObjectCategories" / name / f"image_{i}.jpg", name)
    assert load("caltech101", tmp_path).classnames == ["face", "airplane"]


def drop_split(root, config):
    split_file = root / drawn.SPLIT_LAYOUTS[config][1]
    split = json.loads(split_file.read_text())
    split_file.unlink()
    return split


def test_pets_from_their_annotations(one_layout, capsys):
    root = one_layout("oxford_pets")
    split, folder = drop_split(root, "oxford_pets"), root / "oxford_pets" / "annotations"
    folder.mkdir()
    for name, parts in (("trainval", ("train", "val")), ("test", ("test",))):
        (folder / f"{name}.txt").write_text("".join(f"{path[:-4]} {label + 1} 1 1\n" for part in parts
                                                    for path, label, _ in split[part]))
    dataset = load("oxford_pets", root)
    assert counts(dataset) == [28, 8, 12]
    assert dataset.classnames == ["abyssinian", "american_bulldog", "beagle", "birman"]
    assert [Path(item.impath).name for item in dataset.test] == [path for path, _, _ in split["test"]]
    (folder / "test.txt").write_text("Beagle_1 dog 1 1\n")
    with pytest.raises(InputError, match="test.txt, line 1"):
        load("oxford_pets", root)
    keep_draws(dataset, root / "oxford_pets")  # a split that cannot be compared with the lists counts, which is said
    capsys.readouterr()
    assert [i.impath for i in load("oxford_pets", root).train_x] == [i.impath for i in dataset.train_x]
    assert "cannot be compared with what it was drawn from" in capsys.readouterr().out


def test_sun397_from_its_partition(one_layout):
    root = one_layout("sun397")
    split, folder = drop_split(root, "sun397"), root / "sun397"
    classes = {os.path.dirname(path) for part in split.values() for path, _, _ in part}
    (folder / "ClassName.txt").write_text("".join(f"/{name}\n" for name in sorted(classes)))
    for name, parts in (("Training_01", ("train", "val")), ("Testing_01", ("test",))):
        (folder / f"{name}.txt").write_text("".join(f"/{path}\n" for part in parts for path, _, _ in split[part]))
    dataset = load("sun397", root)
    assert dataset.classnames == list(drawn.SPLIT_LAYOUTS["sun397"][2]) and counts(dataset) == [28, 8, 12]


def test_ucf101_from_its_lists(one_layout):
    root = one_layout("ucf101")
    split, folder = drop_split(root, "ucf101"), root / "ucf101" / "ucfTrainTestlist"
    folder.mkdir()
    names = list(drawn.SPLIT_LAYOUTS["ucf101"][2])
    (folder / "classInd.txt").write_text("".join(f"{i} {n.replace('_', '')}\n" for i, n in enumerate(names, 1)))
    for name, parts in (("trainlist01", ("train", "val")), ("testlist01", ("test",))):
        lines = [f"{names[label].replace('_', '')}/{Path(path).stem}.avi {label + 1}\n" for part in parts
                 for path, label, _ in split[part]]
        (folder / f"{name}.txt").write_text("".join(lines))
    dataset = load("ucf101", root)
    assert dataset.classnames == names and counts(dataset) == [28, 8, 12]


def test_flowers_from_their_labels(one_layout):
    root = one_layout("oxford_flowers")
    drop_split(root, "oxford_flowers")
    folder, labels = root / "oxford_flowers", [1, 2, 3] * 10
    shutil.rmtree(folder / "jpg")
    for number, label in enumerate(labels, 1):
        drawn.draw(folder / "jpg" / f"image_{number:05d}.jpg", str(label))
    savemat(folder / "imagelabels.mat", {"labels": [labels]})
    (folder / "cat_to_name.json").write_text(json.dumps({"2": "b", "1": "a", "3": "c"}))
    dataset = load("oxford_flowers", root)
    assert dataset.classnames == ["a", "b", "c"] and counts(dataset) == [15, 6, 9]
    assert all(labels[int(Path(i.impath).stem[-5:]) - 1] == i.label + 1 for i in dataset.train_x + dataset.test)


def test_cars_from_their_annotations(one_layout):
    import numpy as np

    root = one_layout("stanford_cars")
    split, folder = drop_split(root, "stanford_cars"), root / "stanford_cars"
    (folder / "devkit").mkdir()
    names = [" ".join([*name.split()[1:], name.split()[0]]) for name in drawn.SPLIT_LAYOUTS["stanford_cars"][2]]
    cells = np.empty((1, 4), object)
    cells[0] = [np.array([name]) for name in names]
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": cells})
    for name, image_dir in (("devkit/cars_train_annos.mat", "cars_train"),
                            ("cars_test_annos_withlabels.mat", "cars_test")):
        rows = [(Path(path).name, label) for part in split.values() for path, label, _ in part
                if path.startswith(image_dir)]
        table = np.array([[(np.array([file]), np.array([[label + 1]])) for file, label in rows]],
                         dtype=[("fname", object), ("class", object)])
        savemat(folder / name, {"annotations": table})
    with pytest.raises(InputError, match="no training image"):  # this miniature trains on two classes, tests on two
        load("stanford_cars", root)
    cars = StanfordCars.__new__(StanfordCars)
    cars.folder = cars.images = str(folder)
    parts = cars.read_parts()
    assert {item.classname for item in parts[0]} == {"2000 AM General Hummer SUV", "2012 Acura RL Sedan"}
    assert {item.classname for item in parts[2]} == {"2008 Acura TL Type-S", "1991 Audi 100 Wagon"}
    assert len(parts[1]) == 4
    (folder / "cars_test_annos_withlabels.mat").write_bytes(b"torn")
    with pytest.raises(InputError, match="cars_test_annos_withlabels.mat is no MATLAB file"):
        load("stanford_cars", root)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_the_rules_of_drawn_splits(sizes):
    items = [Datum(f"{label}/{i}", label) for label, size in enumerate(sizes) for i in range(size)]
    parts = draw_split(items)
    assert sorted(i.impath for part in parts for i in part) == sorted(i.impath for i in items)
    assert draw_split(items)[0] == parts[0]
    for label, size in enumerate(sizes):
        train_size, val_size, test_size = (sum(i.label == label for i in part) for part in parts)
        assert train_size >= 1 and (size < 2 or test_size >= 1) and (size < 3 or val_size >= 1)
        if size >= 5:
            assert (train_size, val_size) == (round(0.5 * size), round(0.2 * size))
    kept, val = split_trainval(items)
    assert len(kept) + len(val) == len(items) and {i.label for i in kept} == set(range(len(sizes)))


# ---- what every dataset keeps ----
@pytest.mark.parametrize("config", sorted(drawn.LAYOUTS))
def test_missing_data_says_where_and_how(config, tmp_path):
    with pytest.raises(InputError, match=rf"no dataset folder at {re.escape(str(tmp_path))}/\S+; "
                                         rf"metaprompt data {config} .*https://"):
        load(config, tmp_path, sources=["photo"], targets=["sketch"])


@pytest.mark.parametrize("config", sorted(drawn.LAYOUTS))
def test_validation_is_never_test(config, every_layout):
    domains = class_of(config).domain_names(every_layout) if issubclass(class_of(config), DomainDataset) else ["", ""]
    dataset = load(config, every_layout, shots=2, sources=domains[:-1], targets=domains[-1:])
    assert not {item.impath for item in dataset.val or []} & {item.impath for item in dataset.test}


def test_pictures_reach_the_trainer_as_rgb(every_layout):
    cfg = get_cfg_default()
    cfg.VERBOSE, cfg.SEED, cfg.DATALOADER.NUM_WORKERS = False, 1, 0
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "ImageNet", str(every_layout)
    assert next(iter(DataManager(cfg).test_loader))["img"].shape == (12, 3, 224, 224)


def test_shapes_are_tested_on_their_test_part(tmp_path, monkeypatch):
    """By default, so that one picture is test in both settings; or all, when that is asked for."""
    from datasets import shapes

    monkeypatch.setattr(shapes, "write_shapes", lambda folder: None)  # listed, not drawn
    monkeypatch.setattr("datasets.base.check_images", lambda items, source: None)
    for part, images in (("", 30), ("test", 30), ("all", 42)):
        test = load("shapes", tmp_path, sources=["photo"], targets=["sketch"], part=part).test
        assert Counter(item.label for item in test) == dict.fromkeys(range(40), images)
