"""README's commands run as written: those that need no download are made, the words of the others are checked."""
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()
DOWNLOADED = re.compile(r"caltech101|pacs|imagenet|reproduce_table|git clone|metaprompt data ")
OF_SCRIPTS = ("DATA", "OUTPUT", "SEEDS", "SHOTS", "BACKBONE", "CFG", "TARGETS", "JOBS", "RANKS", "DRY_RUN")
OF_MAKE = re.compile(r"make ")  # installation, this suite, and the demo, which has tests of its own


def commands(text):
    """The commands of the indented blocks, in their order, without their comments."""
    lines = re.findall(r"^    (.+)$", re.sub(r"```.*?```", "", text, flags=re.S).replace("\\\n", ""), re.M)
    bare = [re.sub(r"\s+", " ", re.split(r"\s+#\s", line)[0]) for line in lines]
    return [line for line in bare if re.match(r"([A-Z]+=\S+ )*(bash|make|git|\.venv/bin/\w+) ", line)]


COMMANDS = [line for line in commands(README) if not OF_MAKE.match(line)]
MADE = [line for line in COMMANDS if not DOWNLOADED.search(line)]
SCRIPTS = [line for line in COMMANDS if DOWNLOADED.search(line) and line.startswith("bash scripts/")]


def run(line, folder):
    environment = {name: value for name, value in os.environ.items() if name not in OF_SCRIPTS}
    return subprocess.run(["bash", "-c", line], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env=environment, timeout=600, check=False)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository with a .venv that stands for an installed one, and README's plugin beside it."""
    top = tmp_path_factory.mktemp("checkout") / "toolkit"
    top.mkdir()
    for part in ROOT.iterdir():
        if part.is_dir() and not part.name.startswith(".") and part.name not in ("data", "output", "build"):
            shutil.copytree(part, top / part.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif part.is_file():
            shutil.copy(part, top)
    programs = top / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, words in {"python": "", "metaprompt": f"{shlex.quote(str(top / 'metaprompt.py'))} "}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words}"$@"\n')
        (programs / name).chmod(0o755)
    (top / "shift.py").write_text(re.search(r'```python\n("""shift\.py.*?)```', README, re.S)[1])
    return top


def test_readme_has_commands_of_both_kinds():
    assert len(MADE) >= 6 and len(SCRIPTS) >= 7


@pytest.mark.slow
def test_the_commands_that_need_no_download_run_in_their_order(checkout):
    """One test of all: each finds what those before it have made."""
    for line in MADE:
        done = run(line, checkout)
        assert done.returncode == 0, f"{line}\n{done.stdout}"


@pytest.mark.parametrize("line", SCRIPTS)
def test_a_command_that_needs_data_lacks_nothing_else(line, scripts, tmp_path, monkeypatch):
    for name in OF_SCRIPTS:
        monkeypatch.delenv(name, raising=False)
    program, script, *words = shlex.split(line)
    assert program == "bash"
    done = scripts(script.removeprefix("scripts/"), *words, cwd=tmp_path, DRY_RUN="1", DATA="nothing_there",
                   OUTPUT="dry")
    assert done.returncode == 2 and "metaprompt data" in done.stdout + done.stderr, done
    assert not list(tmp_path.iterdir())


def test_the_scripts_of_methods_can_be_run_as_they_are():
    scripts = list((ROOT / "scripts").glob("*/*.sh"))
    assert scripts and [str(path) for path in scripts if not path.stat().st_mode & 0o100] == []
