"""The Shapes dataset: the same pixels everywhere, well-mixed classes, parts that do not overlap."""

import hashlib
import os
import re

import numpy as np
import pytest
import yaml
from conftest import ROOT
from PIL import Image
from scipy.special import ndtri

from dassl.utils import InputError
from datasets import shapes
from datasets._drawing import DOMAINS, PATTERNS, SHAPES, SIZE, draw, main_colors

DIGESTS = {
    "photo": "317623c2d29d6efb13b7588da1c5c67fe2410859214eebd8019e688c3e29a512",
    "painting": "da517fb7e1106a3be69e78f2c5b0075badfcc8cacaf0688e73adb20bf9d46da0",
    "cartoon": "4680b52740e7a57ffbcf50e3bfe298bae2b06bdcd25985768c4b6950e35227c5",
    "sketch": "84ebc8d72837ed7e2e2e4c7564857e55e1db3a98452c25b80d5bea0938923866",
}


def digest(domain):
    """SHA-256 over two pictures of each shape with each pattern, the dataset's own and the broader ones."""
    grid = np.array([(s, p) for s in range(len(SHAPES)) for p in range(len(PATTERNS)) for _ in range(2)])
    keys = np.arange(len(grid), dtype=np.uint32) * np.uint32(2654435761)
    images = draw(keys, grid[:, 0], grid[:, 1], np.full(len(grid), DOMAINS.index(domain)))
    assert images.shape == (len(grid), SIZE, SIZE, 3) and images.dtype == np.uint8
    return hashlib.sha256(images.tobytes() + main_colors(keys).astype("<i8").tobytes()).hexdigest()


def test_the_page_names_the_optimizer_and_the_rate_that_ship():
    page = (ROOT / "docs" / "SHAPES.md").read_text().split("## How the settings were chosen")[1]
    ours, of_64_pixels = page.split("## Settings for a CLIP of 64-pixel images")
    setting = r"(?:(base classes|source domains), )?(\w+)(?: \((\w+)\))?(?:, [\d., ]+)?"
    for text, config, heads in ((ours, "tiny", 4), (of_64_pixels, "clip64", 1)):
        rows = re.findall(rf"^\| {setting} \|.*\| ([\d.]+) \|$", text, re.M)
        assert len(rows) == text.count("\n| ") - heads > 10
        for part, method, optimizer, rate in rows:
            file = f"{config}_dg.yaml" if part == "source domains" else f"{config}.yaml"
            optim = yaml.safe_load((ROOT / "configs" / "trainers" / method / file).read_text())["OPTIM"]
            assert (optim["NAME"], optim["LR"]) == ((optimizer or "SGD").lower(), float(rate)), method


def test_the_page_has_every_method_and_its_numbers_agree():
    page = (ROOT / "docs" / "SHAPES.md").read_text()
    everywhere = sorted((path.parent.name for path in (ROOT / "configs" / "trainers").glob("*/tiny.yaml")),
                        key=str.casefold)
    few, all_methods = page.split("## All thirty-two methods")[0], page.split("## All thirty-two methods")[1]
    found = {}
    for name, part in (("few", few), ("all", all_methods)):
        number = r" +([\d.]+) \+- [\d.]+"
        found[name, "H"] = re.findall(rf"^    (\w+){number}(?:{number} +([\d.]+)| +- +-)$", part, re.M)
        found[name, "domains"] = re.findall(rf"^    (\w+){number * 4}{number}$", part, re.M)
    for kind in ("H", "domains"):
        assert [row[0] for row in found["all", kind]] == everywhere
        assert {*found["few", kind]} <= {*found["all", kind]} and len(found["few", kind]) == 4
    for name, base, new, mean in found["all", "H"]:
        if new:
            base, new = float(base), float(new)
            assert float(mean) == pytest.approx(2 * base * new / (base + new), abs=0.011), name
    for name, *domains, average in found["all", "domains"]:
        assert float(average) == pytest.approx(sum(map(float, domains)) / 4, abs=0.011), name


@pytest.mark.parametrize("domain", DOMAINS)
def test_pixels_are_the_same_on_every_machine(domain):
    assert digest(domain) == DIGESTS[domain]


def test_a_picture_does_not_depend_on_its_batch():
    labels, numbers = np.arange(40), np.arange(40)
    for domain in DOMAINS:
        together = shapes.draw_pictures(domain, labels, numbers)
        alone = shapes.draw_pictures(domain, labels[17:18], numbers[17:18])
        assert np.array_equal(together[17:18], alone)


def test_every_picture_has_a_key_of_its_own_with_the_highest_bit_clear():
    keys = [
        shapes.picture_keys(domain, label, np.arange(sum(shapes.PART_SIZES[domain])))
        for domain in DOMAINS
        for label in range(len(shapes.CLASSNAMES))
    ]
    keys = np.concatenate(keys)
    assert len(np.unique(keys)) == len(keys)
    assert keys.max() < 1 << 31


def test_base_and_new_classes_both_hold_every_pattern_and_every_shape():
    assert len(shapes.CLASSNAMES) == len(set(shapes.CLASSNAMES)) == 40
    half = -(-len(shapes.CLASSNAMES) // 2)
    for part in (shapes.CLASSNAMES[:half], shapes.CLASSNAMES[half:]):
        patterns, names = zip(*(name.split() for name in part))
        assert set(patterns) == set(shapes.CLASS_PATTERNS)
        assert set(names) == set(shapes.CLASS_SHAPES)
        for close in ({"striped", "pinstriped"}, {"dotted", "speckled"}):  # told apart on each of a shape's classes
            assert all(close <= of or not close & of for of in ({p for p, n in zip(patterns, names) if n == name}
                                                                for name in names))
        for close in ({"star", "hexagram"}, {"pentagon", "circle"}):
            assert all(close <= of or not close & of for of in ({n for p, n in zip(patterns, names) if p == pattern}
                                                                for pattern in patterns))


def test_a_lead_of_two_points_can_hold():
    """The test pictures alone would show a difference of 2 points among six pairs of methods, of which each pair
    disagrees on a tenth of the pictures, half of them the same for every seed, in 80 % of repetitions."""
    tests = {domain: len(shapes.part_numbers(domain, "test")) * len(shapes.CLASSNAMES) for domain in DOMAINS}
    shares = {"half of the photos": [tests["photo"] // 2], "the domains": list(tests.values())}
    for pictures in shares.values():
        error = np.sqrt(sum(0.05 / n for n in pictures)) / len(pictures)
        assert 0.02 >= error * (ndtri(1 - 0.05 / 6 / 2) + ndtri(0.8))


@pytest.mark.parametrize("domain", DOMAINS)
def test_parts_are_disjoint_and_complete(domain):
    numbers = [n for part in shapes.PARTS for n in shapes.part_numbers(domain, part)]
    assert numbers == list(range(sum(shapes.PART_SIZES[domain])))


def test_the_object_stands_out_in_every_picture():
    # the same key with another shape differs inside the object and hardly elsewhere
    plain = PATTERNS.index("plain")
    for domain in range(len(DOMAINS)):
        keys = np.arange(40, dtype=np.uint32)
        pictures = [draw(keys, np.full(40, s), np.full(40, plain), np.full(40, domain)).astype(int) for s in (3, 4)]
        changed = (np.abs(pictures[0] - pictures[1]).sum(-1) > 40).mean((1, 2))
        assert changed.min() > 0.01
        assert changed.max() < 0.6


def test_written_files_hold_the_drawn_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "PART_SIZES", dict.fromkeys(DOMAINS, (1, 1, 1)))
    folder = tmp_path / "shapes"
    shapes.write_shapes(folder)
    label = shapes.CLASSNAMES.index("ringed pentagon")
    for domain in DOMAINS:
        path = folder / shapes.picture_path(domain, "ringed pentagon", 2)
        assert np.array_equal(np.asarray(Image.open(path)), shapes.draw_pictures(domain, [label], [2])[0])
    assert sum(len(files) for _, _, files in os.walk(folder)) == 4 * 40 * 3
    assert os.listdir(tmp_path) == ["shapes"]  # nothing unfinished is left behind


def test_an_existing_folder_is_left_alone(tmp_path):
    folder = tmp_path / "shapes"
    folder.mkdir()
    shapes.write_shapes(folder)
    assert os.listdir(folder) == []


def test_drawings_of_other_classes_are_refused_and_left(tmp_path):
    old = tmp_path / "shapes" / "photo" / "hollow_star"
    old.mkdir(parents=True)
    with pytest.raises(InputError, match=r"hollow_star, which is no class of Shapes.*Remove .*drawn anew"):
        shapes.write_shapes(str(tmp_path / "shapes"))
    assert old.is_dir()


def test_a_file_of_the_system_among_the_classes_is_no_class(tmp_path):
    (tmp_path / "photo").mkdir()
    (tmp_path / "photo" / ".DS_Store").touch()
    shapes.write_shapes(str(tmp_path))
