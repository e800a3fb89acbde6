"""docs/ARCHITECTURE.md says what is: its functions exist, a batch goes through them in its order, arrows go one way."""
import ast
import re
import sys
from pathlib import Path

import pytest

import train

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
PACKAGES = ("benchmarks", "dassl", "datasets", "prompting", "protocols", "runs", "tools", "train", "trainers",
            "training")
MAY_IMPORT = {  # besides itself
    "dassl": set(), "prompting": set(), "datasets": {"dassl"}, "training": {"dassl", "prompting"},
    "trainers": {"training", "dassl", "prompting"}, "runs": {"training", "dassl", "prompting"},
    "train": {"runs", "trainers", "training", "datasets", "dassl", "prompting"},
    "protocols": {"train", "runs", "training", "trainers", "datasets", "dassl", "prompting"},
}


def steps(title):
    """[(path, name)] of the numbered lines below a heading."""
    part = TEXT.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\d+\. `([\w/]+\.py)` `([\w.]+)`", part, re.MULTILINE)


def defined(path):
    """{dotted name of a class or function in a file: its first line, decorators included}"""
    found = {}

    def visit(node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                found[prefix + child.name] = min([child.lineno, *(line.lineno for line in child.decorator_list)])
                visit(child, f"{prefix}{child.name}.")

    visit(ast.parse((ROOT / path).read_text(encoding="utf-8")), "")
    return found


def test_every_function_on_the_page_exists():
    named = steps("The life of a batch") + steps("The life of a frozen feature") + steps("The life of a run")
    assert len(named) >= 30
    assert [entry for entry in named if entry[1] not in defined(entry[0])] == []


def test_every_file_on_the_page_exists():
    files = set(re.findall(r"`((?:\w+/)+\w+\.(?:py|md|yaml))`", TEXT)) - {
        "trainers/name.py", "configs/trainers/Name/vit_b16.yaml", "datasets/name.py", "configs/datasets/name.yaml",
        "protocols/name.py"}
    assert len(files) > 25 and [name for name in files if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(("title", "store"), [("The life of a batch", False), ("The life of a frozen feature", True)])
def test_a_batch_goes_through_the_functions_in_their_order(title, store, tmp_path, tiny_config, drawn_root, clips):
    wanted = {(str(ROOT / path), defined(path)[name]): number for number, (path, name) in enumerate(steps(title))}
    first_calls = []

    def note(frame, event, _):
        if event == "call":
            number = wanted.get((frame.f_code.co_filename, frame.f_code.co_firstlineno))
            if number is not None and number not in first_calls:
                first_calls.append(number)

    sys.setprofile(note)
    try:
        train.main([
            "--trainer", "CoOp", "--root", str(drawn_root), "--seed", "1", "--output-dir", str(tmp_path / "run"),
            "--dataset-config-file", str(ROOT / "configs/datasets/caltech101.yaml"), "--config-file", tiny_config,
            "--backbone", next(iter(clips)), "DATASET.NUM_SHOTS", "2", "DATALOADER.NUM_WORKERS", "0",
            "STORE.USE", str(store)], clips=clips)
    finally:
        sys.setprofile(None)
    assert first_calls == list(range(len(wanted)))


def imports(path):
    """The packages of this project that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
            [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
        yield from (name.split(".")[0] for name in names if name.split(".")[0] in PACKAGES)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_arrows_go_one_way(package):
    files = [ROOT / "train.py"] if package == "train" else sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert set(imports(path)) - {package} <= MAY_IMPORT[package], path
