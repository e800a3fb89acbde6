"""Inputs that are well formed and contradict themselves: each is refused in one line, or gives the number that is
right. Every test below this folder is one such input; `pytest -m truth` counts them."""
from pathlib import Path

import pytest

import train
from tools import protocol

FOLDER = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before the items are chosen by their marks
def pytest_collection_modifyitems(items):
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.truth)


@pytest.fixture(autouse=True)
def nothing_stays_registered(own_registries):
    """What an input registers is forgotten after it."""


@pytest.fixture
def one_line(capsys, tmp_path):
    """Call what must be refused and return its line: exit status 2, nothing but one line on stderr that begins with
    "error: ", and (with `results=False`) no new results.json."""

    def one_line(function, results=False):
        before = set(tmp_path.rglob("results.json"))
        capsys.readouterr()
        status = train.command_line(function)
        told = capsys.readouterr().err
        lines = [line for line in told.splitlines() if line.startswith("error: ")]
        assert status == 2, told
        assert len(lines) == 1 and "Traceback" not in told, told
        assert results or set(tmp_path.rglob("results.json")) == before
        return lines[0]

    return one_line


@pytest.fixture
def refused(arguments, clips, tmp_path, one_line):
    """(trainer, *words, out="out", **what `arguments` takes) -> the one line of a run of train.py that is refused."""

    def refused(trainer, *words, out="out", shared=True, **kwargs):
        argv = arguments(trainer, tmp_path / out, *words, **kwargs)
        return one_line(lambda: train.main(argv, clips=clips if shared else {}))

    return refused


@pytest.fixture
def made(arguments, clips, tmp_path, capsys):
    """(trainer, *words, out="out", ...) -> (results, what was printed) of a run of train.py that must succeed."""

    def made(trainer, *words, out="out", shared=True, **kwargs):
        argv = arguments(trainer, tmp_path / out, *words, **kwargs)
        capsys.readouterr()
        results = train.main(argv, clips=clips if shared else {})
        return results, "".join(capsys.readouterr())

    return made


@pytest.fixture
def protocol_refused(one_line):
    """(*words of tools/protocol.py) -> its one line; runs that were made before the refusal may have results."""
    return lambda *words: one_line(lambda: protocol.main([str(word) for word in words]), results=True)
