"""Inputs that are well formed and contradict themselves: each is refused in one line, or gives the number that is
right. Every test below this folder is one such input; `pytest -m truth` counts them."""
import pytest

import train
from tools import protocol


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
    """(*words of `metaprompt protocol`) -> its one line; runs that were made before the refusal may have results."""
    return lambda *words: one_line(lambda: protocol.main([str(word) for word in words]), results=True)
