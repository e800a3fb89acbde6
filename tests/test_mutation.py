"""What tests/mutation.py says of a toy, and of a sample of this project's own mutants (slow)."""
import json
import subprocess
import sys

import mutants
import mutation
import pytest
from conftest import ROOT

TOY = '''"""A docstring."""
LIMIT = 3


def above(n):
    """Another one."""
    if n < 0:
        raise ValueError(f"{n} is below 0")
    return n > LIMIT


def down(n):
    while n > 0:
        n -= 1
    return n


def never(n: int = 1):
    return sorted(n, reverse=True)
'''
TESTS = '''import pytest

from toy import above, down


def test_above():
    assert above(9) and not above(0)
    with pytest.raises(ValueError):
        above(-1)


def test_down():
    assert down(2) == 0
'''
CAUGHT, SLOW, SURVIVED, UNREACHED = mutation.OUTCOMES
OUTCOMES = {
    "LIMIT = None": CAUGHT, "LIMIT = 4": SURVIVED,
    "if not n < 0:": CAUGHT, "if False:": CAUGHT, "if True:": CAUGHT, "if n <= 0:": CAUGHT, "if n < 1:": CAUGHT,
    "pass": CAUGHT, "return n >= LIMIT": SURVIVED,
    "while not n > 0:": CAUGHT, "while n >= 0:": CAUGHT, "while n > 1:": CAUGHT,
    "n += 1": SLOW, "n = 1": SLOW, "n -= 2": SURVIVED,
    "def never(n: int=2):": SURVIVED,
    "return sorted(reverse=True)": UNREACHED, "return sorted(n)": UNREACHED,
    "return sorted(n, reverse=False)": UNREACHED,
}


def mutation_run(*words):
    return subprocess.run([sys.executable, str(ROOT / "tests" / "mutation.py"), *map(str, words)], text=True,
                          capture_output=True, check=False)


@pytest.mark.slow
def test_what_a_test_notices_is_caught_and_the_rest_is_listed(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "tests" / "conftest.py").write_text(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n")
    (tmp_path / "tests" / "test_toy.py").write_text(TESTS)
    words = ("--root", tmp_path, "--paths", "toy.py", "--tests", "test_toy.py", "--folder", tmp_path / "out",
             "--patience", 3, "--jobs", 2, "--preload")
    done = mutation_run(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    stored = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    found = {(result["before"], result["after"]): result["outcome"] for result in stored}
    for (_, after), outcome in found.items():
        if after != "return None":
            assert outcome == OUTCOMES.pop(after), after
    assert not OUTCOMES
    assert found["return n > LIMIT", "return None"] == found["return n", "return None"] == CAUGHT
    assert "toy.py:9 survived (1 tests)\n    - return n > LIMIT\n    + return n >= LIMIT" in done.stdout
    assert (tmp_path / "toy.py").read_text() == TOY
    again = mutation_run(*words)  # all is there
    assert again.stdout.splitlines()[0].startswith("file") and len(stored) == len(found)


def test_mutants_that_are_called_equivalent_exist_and_are_explained():
    listed = mutation.equivalent()
    files = {path: {(m.function[0] if m.function else "", m.before, m.after)
                    for m in mutants.mutants((ROOT / path).read_text(), path)} for path in {key[0] for key in listed}}
    for (path, *mutant), why in listed.items():
        assert tuple(mutant) in files[path], mutant
        assert len(why) > 20, mutant


@pytest.mark.slow
def test_most_faults_are_noticed(tmp_path):
    """A sample of the mutants of trainers/ and prompting/; `python tests/mutation.py` makes them all."""
    done = mutation_run("--sample", 80, "--seed", 20, "--most", 150, "--jobs", 2, "--folder", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    stored = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    results = mutation.name_equivalent(stored, mutation.equivalent())
    assert len(results) == 80 and mutation.share_caught(results) >= 0.95, done.stdout


def test_every_mutant_compiles_to_another_program():
    source = (ROOT / "trainers" / "coop.py").read_text()
    found = mutants.mutants(source, "coop.py")
    programs = {mutants.ast.unparse(mutants.mutated(source, mutant.number)) for mutant in found[::5]}
    assert len(programs) == len(found[::5]) and mutants.ast.unparse(mutants.ast.parse(source)) not in programs
    for program in programs:
        compile(program, "coop.py", "exec")
