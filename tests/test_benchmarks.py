"""The benchmark's two sides give the same numbers; what makes ours fast or small changes none of them."""
import json
import os
import subprocess
import sys
from dataclasses import replace

import drawn
import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from benchmarks import all as benchmarks_all
from benchmarks import page, step, suite, table_cost
from benchmarks import pictures as benchmarks_pictures
from benchmarks import ranks as benchmarks_ranks
from benchmarks.loader import draw_picture, measure_loader
from benchmarks.measure import TOLERANCE, CountOperations, alternate, relative_difference
from benchmarks.models import class_names, random_clip
from benchmarks.sides import Work, both_sides
from dassl.config import get_cfg_default
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import Datum
from dassl.data.image_cache import STATE, ImageCache
from dassl.data.transforms import build_transform
from dassl.utils import InputError, read_image
from prompting import ClassPrompts, Towers
from train import main as train_main

WORKS = {
    "CoOp": Work("CoOp", 9, 4, backbone="tiny"),
    "CoOp from noise": Work("CoOp", 9, 4, n_ctx=7, backbone="tiny"),
    "CoCoOp": Work("CoCoOp", 9, 3, backbone="tiny"),
    "MetaPrompt, classes": Work("MetaPrompt", 9, 6, n_ctx=2, backbone="tiny"),
    "MetaPrompt, domains": Work("MetaPrompt", 7, 6, domains=3, backbone="tiny"),
    "MetaPrompt, two layers": Work("MetaPrompt", 7, 6, layers=2, backbone="tiny"),
}


@pytest.fixture(scope="module")
def tiny():
    return random_clip("tiny")


# ---- the twin ----
@pytest.mark.parametrize("work", [
    pytest.param(work, id=name, marks=pytest.mark.slow if name in ("CoOp from noise", "MetaPrompt, two layers") else ())
    for name, work in WORKS.items()])
def test_both_sides_give_the_same_losses_gradients_and_logits(work):
    ours, plain = both_sides(work)
    found = alternate(ours.train_step, plain.train_step, 1, "cpu")
    assert max(found["differences"]) < TOLERANCE / 10
    assert found["plain"]["flop"] > 2 * found["ours"]["flop"]
    assert relative_difference([ours.evaluate()], [plain.evaluate()]) < TOLERANCE / 10


def test_the_comparison_notices_a_difference():
    ours, plain = both_sides(WORKS["CoOp"])
    plain.start = {name: start * 1.01 for name, start in ours.start.items()}
    found = alternate(ours.train_step, plain.train_step, 1, "cpu")
    assert found["differences"][1] > TOLERANCE


def test_a_step_can_be_repeated():
    ours, plain = both_sides(WORKS["MetaPrompt, classes"])
    for side in (ours, plain):
        first, again = side.train_step(), side.train_step()
        assert all(torch.equal(a, b) for x, y in zip(first, again) for a, b in zip(x, y))


def test_step_reports_ratio_memory_and_equality(capsys, monkeypatch):
    monkeypatch.setattr(step, "matrix_peak", lambda *device: 1e9)  # takes seconds
    found, = step.main(["--method", "CoOp", "--classes", "12", "--batch", "2", "--backbone", "tiny", "--pairs", "2",
                        "--stage", "train"])
    printed = capsys.readouterr().out
    assert found["plain"]["memory"] > 2 * found["ours"]["memory"] > 0
    assert len(found["ours"]["clock"]) == 2 and "2 pairs" in printed
    assert "relative difference: losses" in printed


def test_an_evaluation_encodes_static_prompts_once(tiny):
    def operations(classes):
        found = step.measure(Work("CoOp", classes, 2, stage="eval", backbone="tiny"), pairs=1, memory=False)
        assert max(found["differences"]) < TOLERANCE
        return found["ours"]["flop"]

    # What a batch costs for twelve classes more is their logits.
    assert operations(24) - operations(12) == 2 * 2 * 12 * tiny.text_projection.shape[1]


def test_operations_are_counted_in_attention_too():
    q = torch.randn(2, 3, 5, 4, requires_grad=True)
    with CountOperations() as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert counter.flop == 2 * 2 * 2 * 3 * 5 * 5 * 4


def test_peak_memory_is_what_a_function_needs():
    # In a process of its own, as the benchmark measures: this one has freed memory that it would use again.
    code = ("import torch; from benchmarks.measure import peak_above; "
            "print(peak_above(lambda: torch.ones(64 * 2**20 // 4).sum().item(), 'cpu'))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 60 * 2**20 < int(done.stdout) < 100 * 2**20


def test_all_stores_each_measurement_and_measures_it_once(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks_all, "measure_loader", lambda: measure_loader(step=0.01))
    words = ["--output", str(tmp_path / "out"), "--docs", str(tmp_path / "docs"), "--only", "loader"]
    benchmarks_all.main(words)
    stored = tmp_path / "out" / "loader.json"
    before = stored.stat().st_mtime_ns
    assert set(json.loads(stored.read_text())) >= {"with", "without"}
    benchmarks_all.main(words)
    assert stored.stat().st_mtime_ns == before
    assert (tmp_path / "docs" / "SPEED.md").is_file()


def test_steps_are_timed_in_one_process_as_in_several(monkeypatch, tiny):
    works = {"train": Work("CoOp", 4, 2, backbone="tiny"), "test": Work("CoOp", 4, 3, stage="eval", backbone="tiny")}
    monkeypatch.setattr(benchmarks_ranks, "WORKS", works)
    monkeypatch.setattr(benchmarks_ranks, "random_clip", lambda name: tiny)
    found = benchmarks_ranks.measure(repeats=2)
    assert list(found) == list(works)
    assert all(len(times[kind]) == 2 and min(times[kind]) > 0 for times in found.values() for kind in times)


def test_the_tables_cost_is_what_its_steps_cost(tiny):
    """A method's line through two counts says what a third count says, and a run's training is its steps."""
    one = table_cost.line("CoCoOp", "train", 1, 4, tiny)
    assert one(16) == pytest.approx(table_cost.counted(Work("CoCoOp", 16, 1, backbone="tiny"), tiny), rel=0.1)
    runs = table_cost.runs_of("CoCoOp", tiny)
    assert runs["eurosat"][0] == pytest.approx(16 * 5 * 10 * one(5))  # 16 images of 5 base classes, 10 epochs
    assert runs["imagenet"][1] / runs["oxford_pets"][1] > 50000 / 3669  # more images, and more classes for each


def test_unknown_measurements_are_named(tmp_path):
    with pytest.raises(InputError, match="known: cocoop_train"):
        benchmarks_all.main(["--output", str(tmp_path), "--only", "nothing"])


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """A folder of four JPEG files; all four are timed."""
    folder = tmp_path / "photographs" / "class"
    folder.mkdir(parents=True)
    rng = np.random.RandomState(0)
    for number in range(4):
        draw_picture(folder / f"{number}.jpg", rng)
    (folder / "list.txt").write_text("no picture\n")
    monkeypatch.setattr(benchmarks_pictures, "PASSES", 2)
    return folder.parent


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
def test_the_ways_to_read_pictures_are_compared_and_written_down(photographs, tmp_path):
    (tmp_path / "SPEED.md").write_text(f"# Speed\n\n{page.FROZEN}\n\nmeasured elsewhere\n")
    text = benchmarks_pictures.main([str(photographs), "--docs", str(tmp_path), "--note", "It was busy."])
    assert "the same pixels for\n4 of 4 pictures" in text and "| crop and resize " in text and "| photographs" in text
    assert f"{page.machine()}. It was busy.\n" in text
    assert "nan" not in text and "inf" not in text
    written = (tmp_path / "SPEED.md").read_text()
    assert written == f"# Speed\n\n{page.PICTURES}\n\n{text}\n{page.FROZEN}\n\nmeasured elsewhere\n"


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
def test_ways_that_give_other_numbers_are_not_compared(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr("dassl.data.transforms.fused._tensor_of", lambda image, normal: torch.zeros(3, 224, 224))
    with pytest.raises(InputError, match="'plain' gives other numbers than ours"):
        benchmarks_pictures.main([str(photographs)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pictures in"):
        benchmarks_pictures.main([str(tmp_path / "empty")])


@pytest.mark.slow
def test_pairs_add_up_and_the_page_tells_of_all(tmp_path, monkeypatch):
    tiny = [replace(row, work=replace(row.work, classes=6, batch=4, backbone="tiny", domains=min(row.work.domains, 2)),
                    memory=False) for row in suite.ROWS if row.name in ("coop", "dg_5")]
    monkeypatch.setattr(benchmarks_all, "ROWS", tiny)
    monkeypatch.setattr("benchmarks.page.ROWS", tiny)
    words = ["--output", str(tmp_path), "--docs", str(tmp_path), "--only", "coop", "dg_5"]
    benchmarks_all.main([*words, "--pairs", "1"])
    with open(tmp_path / "SPEED.md", "a") as file:
        file.write("\n## On a GPU\n\nmeasured elsewhere\n")
    benchmarks_all.main([*words, "--pairs", "3"])
    found = json.loads((tmp_path / "coop.json").read_text())
    assert found["pairs"] == 3 == len(found["plain"]["clock"]) == len(found["ours"]["processor"])
    text = (tmp_path / "SPEED.md").read_text()
    assert text.count("| MetaPrompt DG, 5 domains") == 2 and "host" not in text
    assert "nan" not in text
    assert text.endswith("\n\n## On a GPU\n\nmeasured elsewhere\n") and text.count("## On a GPU") == 1


# ---- the text tower ----
@pytest.mark.parametrize("shape", [(3,), (11, 1, 3), (2, 3)], ids=["shared", "class-specific", "an image's own"])
@pytest.mark.parametrize("position", ["end", *(pytest.param(word, marks=pytest.mark.slow)
                                                for word in ("middle", "front"))])
def test_chunks_of_classes_change_nothing_but_rounding(tiny, shape, position):
    tower = Towers(tiny).text
    prompts = ClassPrompts(tower, class_names(11), 3, position)
    start = torch.randn(*shape, tower.width, generator=torch.Generator().manual_seed(1)) * 0.1

    def run(budget):
        tower.activation_bytes = budget
        ctx = start.clone().requires_grad_()
        features = tower.encode(prompts(ctx))
        return features.detach(), torch.autograd.grad(features.square().sum(), ctx)[0]

    whole, pieces = run(None), run(200_000)
    for a, b in zip(whole, pieces):
        assert relative_difference([a], [b]) < 1e-5
    assert all(torch.equal(a, b) for a, b in zip(pieces, run(200_000)))


@pytest.mark.parametrize("padding", [5, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", [(3,), (11, 1, 3), (2, 3)], ids=["shared", "class-specific", "an image's own"])
def test_padding_classes_to_one_length_changes_nothing_but_rounding(tiny, shape, padding):
    tower = Towers(tiny).text
    prompts = ClassPrompts(tower, class_names(11), 3)
    ctx = torch.randn(*shape, tower.width, generator=torch.Generator().manual_seed(1)).mul(0.1).requires_grad_()
    found = []
    for tower.padding in (0, padding):
        features = tower.encode(prompts(ctx))
        found.append([features.detach(), *torch.autograd.grad(features.square().sum(), ctx)])
    assert relative_difference(*found) < 1e-5


def test_there_are_as_many_chunks_as_the_memory_demands(tiny, monkeypatch):
    tower = Towers(tiny).text
    prompts, weights = ClassPrompts(tower, class_names(60), 4), {p.data_ptr() for p in tiny.parameters()}
    ctx = tower.embed_words("a photo of a").requires_grad_()
    kept, encode, calls = {}, tower._encode_chunk, []
    monkeypatch.setattr(tower, "_encode_chunk", lambda *args: calls.append(args) or encode(*args))

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def chunks(budget):
        calls.clear()
        tower.activation_bytes = budget
        tower.encode(prompts(ctx))
        return len(calls)

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        assert chunks(None) == 1
    needed = sum(kept.values())
    assert chunks(1.4 * needed) == 1
    assert chunks(0.9 * needed) >= 2
    assert 4 <= chunks(needed / 4) <= 8
    with torch.no_grad():
        assert chunks(1) == 1


def test_second_order_gradients_pass_through_chunks(tiny):
    from prompting.blocks import differentiable_attention

    tower = Towers(tiny).text
    prompts = ClassPrompts(tower, class_names(6), 2)
    start = torch.randn(2, tower.width, generator=torch.Generator().manual_seed(1)) * 0.1

    def run(budget):
        tower.activation_bytes = budget
        ctx = start.clone().requires_grad_()
        with differentiable_attention():
            inner, = torch.autograd.grad(tower.encode(prompts(ctx)).square().mean(), ctx, create_graph=True)
            return torch.autograd.grad(tower.encode(prompts(ctx - inner)).pow(3).mean(), ctx)[0]

    assert relative_difference([run(100_000)], [run(None)]) < 1e-5


def test_a_run_keeps_the_chunks_it_was_started_with(arguments, tmp_path, monkeypatch):
    """Stopped after an epoch and gone on with where less memory is free: the same numbers."""
    def budget(value):
        monkeypatch.setattr("training.towers.activation_budget", lambda device, processes: value)

    def final(folder):
        path = folder / "prompt_learner" / "model.pth.tar-2"
        return torch.load(path, weights_only=True)

    budget(100_000)
    train_main(arguments("CoOp", tmp_path / "whole"))
    train_main(arguments("CoOp", tmp_path / "stopped"))
    (tmp_path / "stopped" / "results.json").unlink()
    (tmp_path / "stopped" / "prompt_learner" / "model.pth.tar-2").unlink()
    (tmp_path / "stopped" / "prompt_learner" / "checkpoint").write_text("model.pth.tar-1\n")
    budget(1 << 40)
    train_main(arguments("CoOp", tmp_path / "stopped"))
    whole, stopped = final(tmp_path / "whole"), final(tmp_path / "stopped")
    assert stopped["activation_bytes"] == whole["activation_bytes"] == 100_000
    assert all(torch.equal(whole["state_dict"][name], stopped["state_dict"][name]) for name in whole["state_dict"])


# ---- the image cache ----
@pytest.fixture
def pictures(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        drawn.draw(path, str(number % 2))
    return [str(path) for path in paths]


def samples(pictures, megabytes, workers=0, epochs=2):
    cfg = get_cfg_default()
    cfg.VERBOSE, cfg.SEED, cfg.INPUT.SIZE = False, 1, (16, 16)
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.CACHE_MB = workers, megabytes
    items = [Datum(path, 0, 0, "thing") for path in pictures]
    loader = build_data_loader(cfg, "RandomSampler", items, 3, tfm=build_transform(cfg, is_train=True))
    batches = []
    for epoch in range(epochs):
        loader.batch_sampler.set_epoch(epoch)
        batches.extend(batch["img"] for batch in loader)
    return torch.cat(batches), loader


def test_samples_are_the_same_with_and_without_the_cache(pictures):
    plain, loader = samples(pictures, 0)
    assert loader.dataset.cache is None
    for workers in (0, 2):
        cached, loader = samples(pictures, 1, workers)
        assert torch.equal(plain, cached) and len(loader.dataset.cache) == 6


def test_a_picture_is_decoded_once(pictures, monkeypatch):
    decoded = []

    def counting(path, exif):
        decoded.append(path)
        return read_image(path, exif)

    monkeypatch.setattr("dassl.data.image_cache.read_image", counting)
    samples(pictures, 1, epochs=3)
    assert sorted(decoded) == sorted(pictures)


def test_workers_share_what_they_decode(pictures):
    _, loader = samples(pictures, 1, workers=2)
    cache = loader.dataset.cache
    assert bytes(cache.memory[:6]) == b"\1" * 6  # written by the workers, seen here


def test_the_cache_stays_within_its_budget(pictures):
    sizes = [3 * read_image(path).width * read_image(path).height for path in pictures]
    marks = len(pictures) * (1 + STATE.size)
    cache = ImageCache(pictures, budget=marks + sum(sizes[:3]) + 10)
    assert len(cache) == 3 and len(cache.memory) == marks + sum(sizes[:3])
    for index, path in enumerate(pictures * 2):
        assert cache.read(index % 6).tobytes() == read_image(path).tobytes()
    assert len(ImageCache(pictures, budget=10)) == 0


def test_a_picture_that_has_changed_is_decoded_anew(pictures, tmp_path):
    """Also one of the same size. Of one that is gone, what was decoded stays."""
    path = str(tmp_path / "picture.png")
    Image.new("RGB", (8, 8), "red").save(path)
    cache = ImageCache([path], budget=2**20)
    assert cache.read(0).getpixel((0, 0)) == (255, 0, 0)
    Image.new("RGB", (8, 8), "blue").save(path)
    assert cache.read(0).getpixel((0, 0)) == (0, 0, 255)
    os.remove(path)
    assert cache.read(0).size == (8, 8)


def test_a_missing_picture_is_named_when_it_is_read(pictures):
    cache = ImageCache([*pictures, "nowhere.png"], budget=2**20)
    with pytest.raises(InputError, match=r"no image at nowhere\.png"):
        cache.read(6)


def test_a_negative_budget_is_refused(pictures):
    with pytest.raises(InputError, match="CACHE_MB"):
        samples(pictures, -1)
