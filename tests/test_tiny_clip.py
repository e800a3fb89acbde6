"""The tiny CLIP: what the shipped weights can do, and that the tool that makes them can be trusted."""

import os
from unittest import mock

import clip
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from datasets import shapes
from datasets._drawing import COLORS, DOMAINS, PATTERNS, SHAPES
from prompting.weights import SHIPPED, sha256
from tools import pretrain_tiny_clip as tool
from tools.pretraining import captions, loop
from tools.pretraining.measures import Evaluation
from tools.pretraining.model import ARCHITECTURE, TRAINED_POSITIONS, load, text_features
from tools.pretraining.pictures import LEFT_OUT, sample_scenes

WEIGHTS = SHIPPED["tiny"]
CARD = os.path.join(os.path.dirname(WEIGHTS), "tiny_clip.md")


@pytest.fixture(scope="module")
def model():
    return load(WEIGHTS)


FEWER = {"photo": (24, 8, 20)} | dict.fromkeys(DOMAINS[1:], (8, 4, 10))  # the first of each class's test pictures


@pytest.fixture(scope="module", params=[FEWER, pytest.param(shapes.PART_SIZES, marks=pytest.mark.slow)],
                ids=["fewer", "all"])
def measured(request, model):
    """What the model card reports, measured again on the dataset's test parts."""
    with mock.patch.object(shapes, "PART_SIZES", request.param):
        pictures = {domain: shapes.draw_part(domain, "test") for domain in DOMAINS}
        vocab = torch.arange(ARCHITECTURE["vocab_size"])
        evaluation = Evaluation(vocab, shapes.draw_part("photo", "train"), pictures, "cpu")
        return evaluation(model) | evaluation.probes(model)


def test_weights_are_small_and_deep_enough_for_deep_prompts(model):
    assert os.path.getsize(WEIGHTS) <= 8_000_000
    assert len(model.visual.transformer.resblocks) >= 4
    assert len(model.transformer.resblocks) >= 4
    assert model.visual.input_resolution == 64


def test_sight_is_not_the_bottleneck(measured):
    assert measured["probe photo"] >= 95


@pytest.mark.parametrize("half", ["base", "new"])
def test_zero_shot_on_photos_is_decent_and_leaves_room(measured, half):
    assert 45 <= measured[f"zero-shot photo {half}"] <= 70


@pytest.mark.parametrize("domain", DOMAINS)
def test_zero_shot_is_decent_and_leaves_room_in_every_domain(measured, domain):
    assert 45 <= measured[f"zero-shot {domain} all"] <= 70


@pytest.mark.parametrize("measured", [pytest.param(shapes.PART_SIZES, marks=pytest.mark.slow)], ids=["all"],
                         indirect=True)
def test_the_card_tells_what_the_weights_do(measured):
    with open(CARD, encoding="utf-8") as file:
        card = file.read()
    rows = {cells[0]: cells[1:] for line in card.splitlines() if (cells := [c.strip() for c in line.split("|")[1:-1]])}
    for domain in DOMAINS:
        told = [float(v) for v in rows[domain]]
        again = [measured[f"zero-shot {domain} {part}"] for part in ("all", "base", "new")]
        again.append(measured[f"probe {domain}"])
        assert told == pytest.approx(again, abs=0.5)


def test_the_card_is_of_these_weights():
    with open(CARD, encoding="utf-8") as file:
        assert sha256(WEIGHTS) in file.read()


def test_words_that_were_never_trained_have_vectors_of_their_own(model):
    rows = load_file(WEIGHTS)["token_embedding.rows"]
    assert len(rows) < 1000
    weight = model.token_embedding.weight
    assert weight.shape == (49408, 128)
    other = torch.ones(len(weight), dtype=torch.bool)
    other[rows] = False
    assert weight[other].std() < weight[rows].std()
    assert len(torch.unique(weight[other], dim=0)) == other.sum()
    with torch.no_grad():
        features = model.encode_text(clip.tokenize(["a photo of a zebra.", "a photo of a giraffe."]))
    assert not torch.allclose(features[0], features[1])


def test_trimmed_text_features_are_those_of_the_whole_sequence(model):
    tokens = clip.tokenize(["a photo of a striped star.", "fabric sample: a ringed pentagon.", "star"])
    with torch.no_grad():
        whole = torch.nn.functional.normalize(load(WEIGHTS).encode_text(tokens), dim=-1)
        trimmed = text_features(load(WEIGHTS), tokens)
    assert torch.allclose(whole, trimmed, atol=1e-5)


def test_pretraining_never_sees_the_dataset():
    keys, shape, pattern, domain = sample_scenes(20000, seed=1)
    assert (keys >> np.uint32(31)).all()  # the dataset's keys have this bit clear
    seen = {f"{PATTERNS[p]} {SHAPES[s]}" for s, p in zip(shape, pattern)}
    assert set(shapes.CLASSNAMES) - seen == set(LEFT_OUT)
    assert len(seen) > len(shapes.CLASSNAMES)
    assert (domain == 0).mean() > 0.5


def test_registers_name_things_as_they_say():
    rng = np.random.RandomState(0)
    striped, star, circle = PATTERNS.index("striped"), SHAPES.index("star"), SHAPES.index("circle")
    lines = {s: [captions.caption(rng, (s, striped, 0, 0)) for _ in range(4000)] for s in (star, circle)}

    def share(shape, name, register):
        starts = tuple(t.split("{")[0] for t in captions.REGISTERS[register].templates)
        written = [line for line in lines[shape] if line.startswith(starts)]
        return np.mean([name in line.replace(",", " ").split() for line in written])

    assert share(star, "striped", "textiles") == share(circle, "striped", "textiles") == 1
    assert share(star, "striped", "flags") == 1
    assert share(circle, "striped", "flags") < 0.2
    ordinary = captions.PATTERN_MENTIONED * captions.LOOSE_NAMES["striped"]["striped"]
    assert abs(np.mean(["striped" in x.split() for x in lines[star] if x.startswith("a photo of a")]) - ordinary) < 0.05


def test_every_caption_fits_the_trained_positions_and_the_vocabulary():
    lines = [
        captions.LONG_PREFIX + template.format(f"{pattern} {color} {shape}", domain=domain)
        for register in captions.REGISTERS.values()
        for template in register.templates
        for pattern, shape in zip(PATTERNS, SHAPES)
        for color in COLORS
        for words in captions.DOMAIN_WORDS.values()
        for domain in words
    ]
    tokens = clip.tokenize(lines)
    assert tokens.argmax(-1).max() < TRAINED_POSITIONS
    assert torch.isin(tokens, captions.vocabulary()).all()


@pytest.fixture
def small_evaluation(monkeypatch):
    monkeypatch.setattr(tool, "CHECK_PICTURES", 1)
    monkeypatch.setattr(shapes, "PART_SIZES", dict.fromkeys(DOMAINS, (2, 1, 1)))


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path, monkeypatch, small_evaluation):
    def run(name):
        folders = ["--work-dir", str(tmp_path / name), "--out", str(tmp_path / name)]
        tool.main(["--steps", "6", "--text-steps", "6", "--batch", "16", "--pool", "64", "--save-every", "1", *folders])
        return load_file(tmp_path / name / "tiny_clip.safetensors")

    whole = run("whole")
    rate = loop.learning_rate
    for stops in ((4,), (0, 4)):  # in the image tower's steps; where those are done, in the text tower's
        left = list(stops)

        def interrupted(step, *args):
            if step == left[0]:
                del left[0]
                if not left:
                    raise KeyboardInterrupt
            return rate(step, *args)

        monkeypatch.setattr(loop, "learning_rate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("stopped")
    monkeypatch.setattr(loop, "learning_rate", rate)
    continued = run("stopped")
    assert whole.keys() == continued.keys()
    assert all(torch.equal(whole[name], continued[name]) for name in whole)
    assert (tmp_path / "stopped" / "tiny_clip.md").read_text().startswith("# Tiny CLIP")


def test_a_checkpoint_of_other_settings_is_refused(tmp_path, small_evaluation, capsys):
    folders = ["--work-dir", str(tmp_path), "--out", str(tmp_path), "--pool", "64", "--batch", "16"]
    tool.main(["--steps", "1", "--text-steps", "1", *folders])
    for steps in (("2", "1"), ("1", "2")):
        with pytest.raises(SystemExit) as stop:
            tool.main(["--steps", steps[0], "--text-steps", steps[1], *folders])
        assert stop.value.code == 2
        assert "other settings" in capsys.readouterr().out
