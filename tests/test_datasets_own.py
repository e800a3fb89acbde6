"""Folders of one's own pictures, with all that people have in them."""
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import drawn
import numpy as np
import pytest
from PIL import Image
from test_datasets_layouts import counts, load

import train
from dassl.data.datasets import keep_draws
from dassl.utils import InputError, read_image
from datasets import files

CLASSES = ["Grüne Äpfel", "my cat (2019)", "o'neill & söhne, 100%"]


def colours(seed, channels=3, size=(40, 36)):
    rng = np.random.RandomState(seed)
    pixels = rng.randint(0, 256, (*size, channels), np.uint8)
    return pixels if channels > 1 else pixels[..., 0]


@pytest.fixture
def pictures(tmp_path):
    """Three classes with odd names; eight images each, of every kind; one file that is no image."""
    folder = tmp_path / "my pictures"
    for number, name in enumerate(CLASSES):
        path = folder / name
        path.mkdir(parents=True)
        seed = 10 * number
        Image.fromarray(colours(seed)).save(path / "IMG 0001.JPG")
        Image.fromarray(colours(seed + 1)).save(path / "ünïcödé ☃.Jpeg")
        Image.fromarray(colours(seed + 2, 4)).save(path / "with alpha.PNG")
        Image.fromarray(colours(seed + 3, 4), mode="CMYK").save(path / "print.jpg")
        Image.fromarray(colours(seed + 4, 1)).save(path / "grey.jpg")
        Image.fromarray(colours(seed + 5)).save(path / "x.webp")
        Image.fromarray(colours(seed + 6)).convert("P").save(path / "palette.gif")
        Image.fromarray(colours(seed + 7, 1) > 99).save(path / "one bit.png")
        (path / ".DS_Store").write_bytes(b"hidden")
    (folder / CLASSES[0] / "notes for me.jpg").write_text("these are apples")
    (folder / "readme.txt").write_text("my pictures")
    return folder


@pytest.mark.parametrize("trainer", ["CoOp", "MetaPrompt"])
def test_a_folder_of_ones_own_trains(trainer, pictures, arguments, clips, tmp_path, capsys):
    results = train.main(arguments(trainer, tmp_path / "out", dataset="image_folder", root=pictures), clips=clips)
    assert results["dataset"] == "ImageFolder" and results["metrics"]["test"]["accuracy"] >= 0
    said = capsys.readouterr().out
    bad = pictures / CLASSES[0] / "notes for me.jpg"
    assert f"Left out, not an image that can be read: {bad}\n" in said and f"1 file of {pictures} left out" in said
    assert said.count("Left out") == 1
    assert sorted(path.name for path in pictures.iterdir()) == sorted([*CLASSES, "readme.txt"])  # nothing is written
    split = json.loads((tmp_path / "out" / "split_drawn.json").read_text())
    assert split["left_out"] == [f"{CLASSES[0]}/notes for me.jpg"]
    assert Counter(entry[2] for part in ("train", "val", "test") for entry in split[part]) == dict.fromkeys(CLASSES, 8)


def test_base_and_new_of_a_folder(pictures, arguments, clips, tmp_path):
    for i in range(4):
        drawn.draw(pictures / "zebra" / f"{i}.jpg", "zebra")
    train.main(arguments("CoOp", tmp_path / "out", "DATASET.SUBSAMPLE_CLASSES", "base", dataset="image_folder",
                         root=pictures), clips=clips)
    results = train.main(arguments("CoOp", tmp_path / "new", "--eval-only", "--model-dir", tmp_path / "out",
                                   "DATASET.SUBSAMPLE_CLASSES", "new", dataset="image_folder", root=pictures),
                         clips=clips)
    assert results["classes"]["name"] == [CLASSES[2], "zebra"]


def test_every_kind_is_read_as_rgb(pictures):
    dataset = load("image_folder", pictures)
    assert dataset.classnames == CLASSES and counts(dataset) == [12, 6, 6]
    for item in dataset.train_x + dataset.val + dataset.test:
        assert read_image(item.impath).mode == "RGB"


def test_the_split_is_one_for_all_runs_and_kept(pictures, capsys):
    first = load("image_folder", pictures, seed=1)
    capsys.readouterr()
    second = load("image_folder", pictures, seed=2)
    assert [i.impath for i in first.test] == [i.impath for i in second.test]
    said = capsys.readouterr().out
    assert "notes for me.jpg" in said  # said each time, though the headers are not read again
    keep_draws(first, pictures)
    assert [i.impath for i in load("image_folder", pictures).test] == [i.impath for i in first.test]
    assert f"Split: {pictures}/split_drawn.json\n" in capsys.readouterr().out
    keep_draws(load("image_folder", pictures, shots=2), pictures)  # draws may lie there: the folder is no class
    assert load("image_folder", pictures).classnames == CLASSES


def test_headers_are_read_once_while_files_stay_as_they_are(pictures, monkeypatch):
    first, opened = load("image_folder", pictures), []
    real = files.is_picture
    monkeypatch.setattr("datasets.files.is_picture", lambda path: opened.append(path) or real(path))
    assert counts(load("image_folder", pictures)) == counts(first) and opened == []
    note = pictures / CLASSES[0] / "notes for me.jpg"
    Image.fromarray(colours(99)).save(note)
    assert sum(counts(load("image_folder", pictures))) == sum(counts(first)) + 1 and opened == [str(note)]


def test_a_split_of_other_files_is_drawn_anew_with_one_note(pictures, capsys):
    keep_draws(load("image_folder", pictures), pictures)
    new = pictures / CLASSES[1] / "new.jpg"
    Image.fromarray(colours(99)).save(new)
    capsys.readouterr()
    dataset = load("image_folder", pictures)
    said = capsys.readouterr().out
    assert said.count("Note:") == 1 and f"Note: {pictures}/split_drawn.json was drawn from other images" in said
    assert sum(counts(dataset)) == 25
    new.unlink()
    load("image_folder", pictures)
    assert "Note:" not in capsys.readouterr().out


def arrange(folder, parts, classes=("cat", "dog")):
    for part, count in parts.items():
        for name in classes:
            for i in range(count):
                drawn.draw(folder / part / name / f"{part}{i}.jpg", name)
    return folder


@pytest.mark.parametrize(("parts", "expected"), [
    ({"train": 5, "val": 2, "test": 3}, [4, 4, 6]),
    ({"train": 5, "test": 3}, [4, 4, 6]),  # validation from unused training images
    ({"train": 5, "val": 3}, [4, 4, 6]),  # the only other part is the test part
])
def test_parts_that_are_there_are_taken(parts, expected, tmp_path):
    folder = arrange(tmp_path / "own", parts)
    (folder / "train" / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    dataset = load("image_folder", folder, shots=2)
    assert counts(dataset) == expected and dataset.classnames == ["cat", "dog"]
    assert {Path(i.impath).parts[-3] for i in dataset.train_x} == {"train"}
    assert {Path(i.impath).parts[-3] for i in dataset.test} == {"test" if "test" in parts else "val"}
    assert {Path(i.impath).parts[-3] for i in dataset.val} == {"val" if len(parts) == 3 else "train"}
    assert not (folder / "split_drawn.json").exists()


@pytest.mark.parametrize(("damage", "message"), [
    (lambda folder: shutil.rmtree(folder / "test"), "beside train/ there must be test/ or val/"),
    (lambda folder: (folder / "extra").mkdir(), "beside train/ there must be test/ or val/"),
    (lambda folder: drawn.draw(folder / "test" / "cow" / "a.jpg", "cow"), "class 'cow', which train/ does not have"),
    (lambda folder: [image.unlink() for image in (folder / "train" / "cat").iterdir()], "holds no images"),
    (lambda folder: shutil.rmtree(folder), "must name the folder of your pictures, <class>/<image> below it"),
])
def test_layouts_that_are_wrong(damage, message, tmp_path):
    folder = arrange(tmp_path / "own", {"train": 2, "test": 2})
    damage(folder)
    with pytest.raises(InputError, match=message):
        load("image_folder", folder)


def test_domains_given_to_the_dataset_of_classes(tmp_path):
    folder = arrange(tmp_path / "own", {"photo": 5, "sketch": 5})
    with pytest.raises(InputError, match="folders such as cat; .* domain_folder"):
        load("image_folder", folder)
    with pytest.raises(InputError, match="must name the folder of your pictures"):
        load("domain_folder", tmp_path / "nowhere", sources=["photo"], targets=["sketch"])
    with pytest.raises(InputError, match="cat holds no class folders"):
        load("domain_folder", folder / "photo", sources=["cat"], targets=["dog"])


@pytest.fixture
def domains(tmp_path):
    folder = arrange(tmp_path / "my domains", {"Fotos 2024": 5, "エスキス": 5, "clip art": 5})
    (folder / "clip art" / "dog" / "list.TXT").write_text("no picture")
    return folder


def test_domains_of_ones_own_train(domains, arguments, clips, tmp_path, capsys):
    argv = arguments("MetaPrompt", tmp_path / "out", "--source-domains", "Fotos 2024", "エスキス", "--target-domains",
                     "clip art", dataset="domain_folder", root=domains)
    results = train.main(argv, clips=clips)
    assert results["dataset"] == "DomainFolder"
    assert f"{domains}/clip art/dog/list.TXT" in capsys.readouterr().out


def test_domains_and_their_parts(domains):
    from datasets.domain_folder import DomainFolder

    assert DomainFolder.domain_names(str(domains)) == ["Fotos 2024", "clip art", "エスキス"]
    for _ in range(2):  # drawn, then read
        dataset = load("domain_folder", domains, sources=["エスキス", "clip art"], targets=["Fotos 2024"])
        assert counts(dataset) == [8, 4, 10] and dataset.classnames == ["cat", "dog"]
        assert {(i.domain, Path(i.impath).parts[-3]) for i in dataset.train_x} == {(0, "エスキス"), (1, "clip art")}
    assert counts(load("domain_folder", domains, sources=["clip art"], targets=["エスキス"], part="test")) == [4, 2, 4]
    with pytest.raises(InputError, match="no domain 'Foto' .*; known: Fotos 2024, clip art, エスキス"):
        load("domain_folder", domains, sources=["Foto"], targets=["エスキス"])


def test_a_domain_that_lacks_a_class_keeps_the_labels(domains):
    shutil.rmtree(domains / "clip art" / "cat")
    dataset = load("domain_folder", domains, sources=["エスキス"], targets=["clip art"])
    assert {item.label for item in dataset.test} == {1} and dataset.classnames == ["cat", "dog"]
    with pytest.raises(InputError, match="no training image"):
        load("domain_folder", domains, sources=["clip art"], targets=["エスキス"])


def test_a_folder_of_no_images(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "text.jpg").write_text("no")
    with pytest.raises(InputError, match="class 'a' has 1 file in .*/a and none is an image that can be read"):
        load("image_folder", tmp_path)


def test_names_that_are_composed_differently_are_one_name(tmp_path):
    folder = tmp_path / "own"
    drawn.draw(folder / "u\u0308ber" / "a.jpg", "x")
    drawn.draw(folder / "u\u0308ber" / "b.jpg", "x")
    drawn.draw(folder / "zebra" / "a.jpg", "y")
    drawn.draw(folder / "zebra" / "b.jpg", "y")
    dataset = load("image_folder", folder)
    assert dataset.classnames == ["zebra", "über"]  # in the order of the composed names, on every disk
    (folder / "u\u0308ber").rename(folder / "über")
    assert [Path(i.impath).name for i in load("image_folder", folder).test] == [Path(i.impath).name for i in
                                                                                dataset.test]


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_a_name_that_is_not_unicode_is_reported(tmp_path, capsys):
    folder = arrange(tmp_path / "own", {"": 3})
    bad = os.fsencode(folder / "cat") + b"/caf\xe9.jpg"
    with open(bad, "wb") as file:
        file.write(b"no image")
    assert counts(load("image_folder", folder)) == [2, 2, 2]
    assert r"caf\udce9.jpg" in capsys.readouterr().out
