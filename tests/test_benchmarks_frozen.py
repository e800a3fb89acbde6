"""The benchmark of frozen features at hand: what it compares is the same work, and what it says is what it measured."""
import json

import pytest
import torch

from benchmarks import compare, frozen_rows, page, table_cost
from benchmarks.frozen_rows import Comparison, StepRow, measured_steps
from benchmarks.frozen_work import Place
from benchmarks.measure import CountOperations
from benchmarks.models import random_clip
from benchmarks.sides import Work
from training.store.store import Store

CLASSES, SHOTS = 8, 2  # of which four are base classes
STEP = StepRow("CoOp", 1.0, "CoOp", 4, SHOTS, 4, 2, filling=True)


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    rows = {"coop_50": STEP, "metaprompt_50": StepRow("MetaPrompt", 1.0, "MetaPrompt", 4, SHOTS, 4, 1)}
    monkeypatch.setattr(frozen_rows, "DATA", (CLASSES, SHOTS))
    monkeypatch.setattr(frozen_rows, "STEP_ROWS", rows)
    monkeypatch.setattr("benchmarks.frozen_page.STEP_ROWS", rows)
    monkeypatch.setattr(frozen_rows, "COMPARISON", Comparison(("CoOp", "ZeroshotCLIP"), 4, SHOTS, 3, 4))


def test_everything_is_measured_once_and_the_page_tells_of_it(tmp_path, capsys):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "SPEED.md").write_text("# Speed\n\n## Many runs\n\nmeasured elsewhere\n\n## On a GPU\n\nthere\n")
    words = ["--backbone", "tiny", "--pairs", "1", "--tested", "1", "--output", str(tmp_path / "out"), "--folder",
             str(tmp_path / "work"), "--docs", str(docs)]
    found = compare.main(words)
    assert list(found) == ["coop_50", "metaprompt_50", "comparison", "evaluation"]
    for name in ("coop_50", "metaprompt_50", "evaluation"):
        assert len(found[name]["none"]["processor"]) == len(found[name]["warm"]["clock"]) == 1
        assert max(found[name]["differences"]) < 1e-5
    first, second = found["comparison"]["methods"]
    assert (first["computed"], first["stored"]) == (2 * 4 + 3 * 4, 0)  # two steps of four pictures, and the tests
    assert (second["computed"], second["stored"]) == (0, 3 * 4)
    assert found["comparison"]["bytes"] > 0
    text = (docs / "SPEED.md").read_text()
    order = [text.index(part) for part in ("# Speed", page.FROZEN, "MetaPrompt: stored features", "| ZeroshotCLIP",
                                           "measured elsewhere", "## On a GPU\n\nthere")]
    assert order == sorted(order) and str(tmp_path) not in text and "nan" not in text
    stored = json.loads((tmp_path / "out" / "coop_50.json").read_text())
    compare.main(words)
    assert json.loads((tmp_path / "out" / "coop_50.json").read_text()) == stored
    assert (docs / "SPEED.md").read_text() == text


def test_other_features_are_noticed(tmp_path, monkeypatch):
    read = Store.read
    monkeypatch.setattr(Store, "read", lambda self, entry: {
        number: piece * 1.01 for number, piece in read(self, entry).items()})
    with pytest.raises(AssertionError, match="a full store gives other numbers than an empty one"):
        measured_steps(Place(tmp_path, "tiny"), STEP, 1)


def test_a_store_that_is_not_used_is_noticed(tmp_path, monkeypatch):
    """What is timed as warm takes no picture through the tower."""
    encoded, towers = [], "training.store.feed.Towers.encode_image"
    from prompting.towers import Towers

    original = Towers.encode_image
    monkeypatch.setattr(towers, lambda self, images: encoded.append(images.shape) or original(self, images))
    found = measured_steps(Place(tmp_path, "tiny"), STEP, 1)
    assert [shape for shape in encoded if len(shape) == 4 and shape[0] == 8] == [torch.Size([8, 3, *encoded[0][2:]])]
    assert set(found) >= {"none", "filling", "warm"}


# ---- the whole table ----
@pytest.fixture(scope="module")
def tiny():
    return random_clip("tiny")


@pytest.mark.parametrize("stage", ["train", "eval"])
@pytest.mark.parametrize("method", [method for method in table_cost.SETTINGS if method not in table_cost.IMAGE_SIDE])
def test_what_the_features_at_hand_save_is_the_images_pass(tiny, method, stage):
    work = Work(method, 5, 2, table_cost.SETTINGS[method].n_ctx, stage=stage, backbone="tiny")
    saved = table_cost.counted(work, tiny) - table_cost.counted(work, tiny, stored=True)
    images = torch.randn(2, 3, tiny.visual.input_resolution, tiny.visual.input_resolution)
    with CountOperations() as count, torch.no_grad():
        from prompting import Towers

        Towers(tiny).encode_image(images)
    assert saved == count.flop == 2 * table_cost.image_operations(tiny)


def test_metaprompt_keeps_its_prompted_pass(tiny):
    work = Work("MetaPrompt", 5, 4, 2, backbone="tiny")
    whole, stored = (table_cost.counted(work, tiny, stored) for stored in (False, True))
    assert whole - stored == pytest.approx(4 * table_cost.image_operations(tiny), rel=0.01) and stored > whole / 2


def test_the_store_holds_the_views_of_the_longest_training():
    coop, dept = table_cost.stored_pictures(["CoOp"]), table_cost.stored_pictures(["DePT"])
    both = table_cost.stored_pictures(["CoOp", "DePT"])
    assert both == coop and dept[0] < coop[0] and dept[1] == coop[1]
    # 16 images of 5 base classes of EuroSAT, 10 epochs, three seeds: in batches of 4 all of them are read
    eurosat = table_cost.SETTINGS["DePT"]
    assert eurosat.steps("eurosat") * eurosat.batch == 16 * 5 * 10
    assert table_cost.pictures_of("DePT")[0] == dept[0]


def test_together_the_pictures_are_encoded_once():
    without = {"CoOp": (3e15, 1e15, 1.0), "DePT": (2e15, 1e15, 1.0)}
    stored = {"CoOp": (5e14, 0.0, 1.0), "DePT": (5e14, 0.0, 1.0)}
    encoded = sum(table_cost.stored_pictures(["CoOp"]))
    lines = table_cost.table_with(without, stored, 1e15 / encoded, 1.0).splitlines()
    together = next(line for line in lines if line.startswith("text-side methods together"))
    assert together.split()[6:10] == ["7.0", "1.0", "1.0", "3.5"]  # without, with, encoded once, ratio
