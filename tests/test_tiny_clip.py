"""The tiny CLIP: what the shipped weights can do, and that the tool that makes them can be trusted."""

import os

import clip
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from datasets import shapes
from datasets._drawing import COLORS, DOMAINS, PATTERNS, SHAPES
from tools import pretrain_tiny_clip as tool

ASSETS = os.path.join(os.path.dirname(os.path.abspath(tool.__file__)), "..", "prompting", "assets")
WEIGHTS = os.path.join(ASSETS, "tiny_clip.safetensors")


@pytest.fixture(scope="module")
def model():
    return tool.load(WEIGHTS)


@pytest.fixture(scope="module")
def measured(model):
    """What the model card reports, measured again on the dataset's test parts."""
    pictures = {domain: shapes.draw_part(domain, "test") for domain in DOMAINS}
    vocab = torch.arange(tool.ARCHITECTURE["vocab_size"])
    return tool.Evaluation(vocab, shapes.draw_part("photo", "train"), pictures, "cpu")(model, tuning=True)


def test_weights_are_small_and_deep_enough_for_deep_prompts(model):
    assert os.path.getsize(WEIGHTS) <= 8_000_000
    assert len(model.visual.transformer.resblocks) >= 4
    assert len(model.transformer.resblocks) >= 4
    assert model.visual.input_resolution == 64


def test_sight_is_not_the_bottleneck(measured):
    assert measured["probe photo 48 shots"] >= 90


@pytest.mark.parametrize("half", ["base", "new"])
def test_zero_shot_on_photos_is_decent_and_leaves_room(measured, half):
    assert 45 <= measured[f"zero-shot photo {half}"] <= 85


@pytest.mark.parametrize("domain", DOMAINS)
def test_zero_shot_is_far_above_chance_in_every_domain(measured, domain):
    assert measured[f"zero-shot {domain} all"] > 30


def test_a_learned_context_lifts_the_base_classes(measured):
    assert measured["CoOp photo base"] >= measured["zero-shot photo base"] + 8


def test_the_card_tells_what_the_weights_do(measured):
    with open(os.path.join(ASSETS, "tiny_clip.md"), encoding="utf-8") as file:
        card = file.read()
    with open(WEIGHTS, "rb") as file:
        assert tool.hashlib.sha256(file.read()).hexdigest() in card
    rows = {cells[0]: cells[1:] for line in card.splitlines() if (cells := [c.strip() for c in line.split("|")[1:-1]])}
    for domain in DOMAINS:
        told = [float(v) for v in rows[domain]]
        again = [measured[f"zero-shot {domain} {part}"] for part in ("all", "base", "new")]
        assert told == pytest.approx(again, abs=0.5)


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
    tokens = clip.tokenize(["a photo of a striped star.", "fabric sample: a hollow square.", "star"])
    with torch.no_grad():
        whole = torch.nn.functional.normalize(tool.load(WEIGHTS).encode_text(tokens), dim=-1)
        trimmed = tool.text_features(tool.load(WEIGHTS), tokens)
    assert torch.allclose(whole, trimmed, atol=1e-5)


def test_pretraining_never_sees_the_dataset():
    keys, shape, pattern, domain = tool.sample_scenes(20000, seed=1)
    assert (keys >> np.uint32(31)).all()  # the dataset's keys have this bit clear
    seen = {f"{PATTERNS[p]} {SHAPES[s]}" for s, p in zip(shape, pattern)}
    assert set(shapes.CLASSNAMES) - seen == set(tool.LEFT_OUT)
    assert len(seen) > len(shapes.CLASSNAMES)
    assert (domain == 0).mean() > 0.5


def test_registers_name_things_as_they_say():
    rng = np.random.RandomState(0)
    striped, star, circle = PATTERNS.index("striped"), SHAPES.index("star"), SHAPES.index("circle")
    lines = {s: [tool.caption(rng, s, striped, 0, 0) for _ in range(4000)] for s in (star, circle)}

    def share(shape, name, register):
        starts = tuple(t.split("{")[0] for t in tool.REGISTERS[register].templates)
        written = [line for line in lines[shape] if line.startswith(starts)]
        return np.mean([name in line for line in written])

    assert share(star, "striped", "textiles") == share(circle, "striped", "textiles") == 1
    assert share(star, "striped", "flags") == 1
    assert share(circle, "striped", "flags") < 0.2
    ordinary = tool.PATTERN_MENTIONED * tool.LOOSE_NAMES["striped"]["striped"]
    assert abs(np.mean(["striped" in x for x in lines[star] if x.startswith("a photo of a")]) - ordinary) < 0.05


def test_every_caption_fits_the_trained_positions_and_the_vocabulary():
    lines = [
        tool.LONG_PREFIX + template.format(f"{pattern} {color} {shape}", domain=domain)
        for register in tool.REGISTERS.values()
        for template in register.templates
        for pattern, shape in (("checkered", "crescent"), ("bordered", "triangle"))
        for color in COLORS
        for words in tool.DOMAIN_WORDS.values()
        for domain in words
    ]
    tokens = clip.tokenize(lines)
    assert tokens.argmax(-1).max() < tool.TRAINED_POSITIONS
    assert torch.isin(tokens, tool.vocabulary()).all()


@pytest.fixture
def small_evaluation(monkeypatch):
    monkeypatch.setattr(tool, "CHECK_PICTURES", 1)
    monkeypatch.setattr(shapes, "PART_SIZES", dict.fromkeys(DOMAINS, (2, 1, 1)))


def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path, monkeypatch, small_evaluation):
    def run(name):
        folders = ["--work-dir", str(tmp_path / name), "--out", str(tmp_path / name)]
        tool.main(["--steps", "6", "--batch", "16", "--pool", "64", "--save-every", "1", *folders])
        return load_file(tmp_path / name / "tiny_clip.safetensors")

    whole = run("whole")
    rate = tool.learning_rate

    def interrupted(step, *args):
        if step == 4:
            raise KeyboardInterrupt
        return rate(step, *args)

    monkeypatch.setattr(tool, "learning_rate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    monkeypatch.setattr(tool, "learning_rate", rate)
    continued = run("stopped")
    assert whole.keys() == continued.keys()
    assert all(torch.equal(whole[name], continued[name]) for name in whole)
    assert (tmp_path / "stopped" / "tiny_clip.md").read_text().startswith("# Tiny CLIP")


def test_a_checkpoint_of_other_settings_is_refused(tmp_path, small_evaluation, capsys):
    folders = ["--work-dir", str(tmp_path), "--out", str(tmp_path), "--pool", "64", "--batch", "16"]
    tool.main(["--steps", "1", *folders])
    with pytest.raises(SystemExit) as stop:
        tool.main(["--steps", "2", *folders])
    assert stop.value.code == 2
    assert "other settings" in capsys.readouterr().out
