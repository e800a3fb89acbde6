"""The README's examples run as they stand."""
import re

import torch
from conftest import ROOT

import prompting
import train

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def block(word):
    [found] = [text for text in BLOCKS if word in text]
    return found


def test_the_example_trainer_trains_and_scores_new_classes(tmp_path, arguments, own_registries):
    plugin = tmp_path / "shift.py"
    plugin.write_text(block("TextShift"))
    words = arguments("TextShift", tmp_path / "base", "--plugin", str(plugin))
    base = train.main([*words, "OPTIM.MAX_EPOCH", "2", "DATASET.SUBSAMPLE_CLASSES", "base"])
    assert 0 <= base["metrics"]["test"]["accuracy"] <= 100
    stored = torch.load(tmp_path / "base/prompt_learner/model.pth.tar-2", weights_only=True)["state_dict"]
    assert list(stored) == ["shift"] and stored["shift"].abs().max() > 0
    words = arguments("TextShift", tmp_path / "new", "--plugin", str(plugin), "--eval-only", "--model-dir",
                      str(tmp_path / "base"))
    new = train.main([*words, "OPTIM.MAX_EPOCH", "2", "DATASET.SUBSAMPLE_CLASSES", "new"])
    assert new["metrics"]["test"]["accuracy"] >= 0


def test_prompting_alone(monkeypatch, clip_model):
    monkeypatch.setattr(prompting, "load_clip", lambda name: clip_model)
    scope = {}
    exec(block("embed_words"), scope)
    assert scope["logits"].shape == (8, 2)


def test_every_script_and_file_the_readme_names_exists():
    text = (ROOT / "README.md").read_text()
    for path in set(re.findall(r"\b(?:scripts|configs|trainers|datasets|tools|tests)/[\w/.]+\.(?:sh|py|yaml)\b", text)):
        assert (ROOT / path).is_file(), path
