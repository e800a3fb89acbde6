"""What the scripts are given as words and variables is taken apart into words: none is lost, none becomes a pattern or
a command."""
import os
import subprocess

import pytest
from scripted import calls

COOP, XD, COMPARE, TABLE = "coop/base2new.sh", "coop/xd.sh", "compare.sh", "reproduce_table.sh"


@pytest.fixture
def home(copied_scripts):
    return copied_scripts.parent


@pytest.fixture
def call(home, tmp_path):
    """(script, *words, **environment) -> [the words of each call of python], from a folder with files that patterns
    find."""
    here = tmp_path / "here"
    here.mkdir()
    for name in ("1", "2", "CoOp", "dtd", "my set.yaml", "my method.yaml"):
        (here / name).touch()

    def call(script, *words, cwd=here, start=home / "scripts", **environment):
        done = subprocess.run(["bash", f"{start}/{script}", *words], cwd=cwd, capture_output=True, timeout=60,
                              env={"PATH": os.environ["PATH"], **environment}, check=False)
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert sorted(os.listdir(here)) == ["1", "2", "CoOp", "dtd", "my method.yaml", "my set.yaml"]
        return calls(done.stdout.decode())

    return call


def behind(flag, words):
    """The words that a flag was given."""
    rest = words[words.index(flag) + 1:]
    return rest[:next((i for i, word in enumerate(rest) if word.startswith("--") or "." in word), len(rest))]


@pytest.mark.parametrize("between", [" ", "\n", "\t", "\r\n ", " \n\t  "], ids=repr)
@pytest.mark.parametrize("script", [COMPARE, COOP, "zsclip/zeroshot.sh"])
def test_all_datasets_count_whatever_parts_them(script, between, call):
    [found] = call(script, f"shapes{between}dtd{between}eurosat")
    assert behind("--dataset", found) == ["shapes", "dtd", "eurosat"]


@pytest.mark.parametrize("pattern", ["*", "?", "[12]", "1 *", "*\n2", "{1,2}", "$(touch x)", "`touch x`", "1;touch x",
                                     "$HOME", "~", "!!", "\\*"])
@pytest.mark.parametrize("variable", ["SEEDS", "SHOTS", "TARGETS"])
def test_a_pattern_or_a_command_in_a_variable_stays_a_word(variable, pattern, call):
    [found] = call(XD, "imagenet", **{variable: pattern})
    flag = f"--{variable.lower()}"
    assert behind(flag, found) == pattern.split()


@pytest.mark.parametrize("variable", ["DATA", "OUTPUT", "BACKBONE", "JOBS"])
@pytest.mark.parametrize("value", ["a  b", "*", "a\nb", "$(touch x)", "--dry-run", "'\""], ids=repr)
def test_what_is_one_word_stays_one(variable, value, call):
    [found] = call(COOP, "dtd", **{variable: value})
    flag = {"DATA": "--root"}.get(variable, f"--{variable.lower()}")
    assert found[found.index(flag) + 1] == value


@pytest.mark.parametrize(("value", "words"), [
    ("my method.yaml", ["my method.yaml"]), ("vit_b16", ["vit_b16"]), ("*", ["*"]),
    ("CoOp=a.yaml\nMaPLe=b.yaml", ["CoOp=a.yaml", "MaPLe=b.yaml"])], ids=repr)
def test_a_config_may_have_spaces_and_is_no_pattern(value, words, call):
    [found] = call(COOP, "dtd", "--dry-run", CFG=value)
    start = found.index("--cfg") + 1
    assert found[start:found.index("--dry-run")] == words


def test_a_dataset_file_may_have_spaces(call):
    [found] = call(COOP, "my set.yaml", "--dry-run")
    assert found[found.index("--dataset") + 1] == "my set.yaml"


@pytest.mark.parametrize("method", ["*", "C*", "[C]oOp", "$(touch x)"])
def test_a_method_is_no_pattern(method, call):
    [found] = call(COMPARE, "shapes", method, "CoOp")
    assert behind("--trainer", found) == [method, "CoOp"]


@pytest.mark.parametrize("value", ["dtd *", "dtd\n*", "dtd\t*"], ids=repr)
def test_the_table_is_of_all_its_datasets(value, call):
    for found in call(TABLE, "base2new", "Co*", DATASETS=value):
        assert behind("--dataset", found) == ["dtd", "*"] and behind("--trainer", found) == ["Co*"]


def test_no_dataset_is_no_word(call):
    [found] = call(COOP, " \n ")
    assert behind("--dataset", found) == []


@pytest.mark.parametrize("script", [COOP, TABLE])
def test_a_search_path_of_cd_leads_to_no_other_copy(script, call, home, tmp_path):
    """CDPATH makes `cd` look elsewhere first, and print where it went."""
    (tmp_path / "other" / "scripts" / "coop").mkdir(parents=True)
    words = ["base2new"] if script == TABLE else ["dtd"]
    for found in call(script, *words, cwd=home, start="scripts", CDPATH=str(tmp_path / "other")):
        assert found[0].startswith(str(home)) and "\n" not in found[0]
