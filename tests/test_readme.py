"""The README's examples run as they stand."""
import re
import subprocess

import pytest
import torch
from conftest import ROOT

import prompting
import train

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def block(word):
    [found] = [text for text in BLOCKS if word in text]
    return found


def test_the_example_trainer_trains_and_scores_new_classes(tmp_path, arguments):
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


def pages():
    """The Markdown files of the repository."""
    told = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return told.split() or [str(file.relative_to(ROOT)) for folder in (".", "docs", "trainers", "prompting/assets")
                            for file in (ROOT / folder).glob("*.md")]  # of a copy without its history


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """The places of a page that a link can name, as forges make them of its headings."""
    found = []
    for heading in re.findall(r"^#+ +(.*?) *$", without_code(text), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.append(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return [f"{name}-{found[:i].count(name)}" if name in found[:i] else name for i, name in enumerate(found)]


@pytest.mark.parametrize("page", pages())
def test_links_within_the_repository_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", without_code(text)):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target
    for path, anchor in re.findall(r"(?<![\w/(])([A-Z_]+\.md)#([\w-]+)", text):  # in comments and commands
        file = next((place for place in ((ROOT / page).parent / path, ROOT / "docs" / path) if place.exists()), None)
        assert file and anchor in anchors(file.read_text(encoding="utf-8")), f"{path}#{anchor}"


def test_pages_that_the_code_names_exist():
    files = subprocess.run(["git", "ls-files", "*.py", "*.sh", "*.yaml", "*.yml", "*.toml", "*.txt"], cwd=ROOT,
                           capture_output=True, text=True, check=False).stdout.split()
    named = {(file, path) for file in files if not file.startswith("tests/")
             for path in re.findall(r"\bdocs/[\w/]+\.(?:md|py|png)", (ROOT / file).read_text(encoding="utf-8"))}
    assert [(file, path) for file, path in named if not (ROOT / path).is_file()] == []


def test_an_issues_form_names_headings_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        for heading in re.findall(r'README, "([^"]+)"', file.read_text(encoding="utf-8")):
            assert f"\n## {heading}\n" in readme, heading
