"""The command `metaprompt`: it finds the programs, and calls the one that is named."""
import os
import re
import runpy
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

import metaprompt

PROGRAM = '''"""%s"""
import sys


def command_line():
    print("called with", *sys.argv)
    return 3
'''


def call(*words, top=ROOT, check=None, **options):
    """The command in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([sys.executable, str(top / "metaprompt.py"), *map(str, words)], text=True, check=False,
                          capture_output="stdout" not in options, timeout=120, **{"env": environment} | options)
    assert check is None or done.returncode == check, done.stderr
    return done


@pytest.fixture
def checkout(tmp_path):
    """A folder with the command and two programs."""
    top = tmp_path / "a checkout"
    (top / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "metaprompt.py", top)
    (top / "train.py").write_text('"""Train."""\ndef program():\n    return 0\n')
    (top / "tools" / "count_up.py").write_text(PROGRAM % "Counts up.")
    (top / "tools" / "helper.py").write_text('"""Shared by programs, and none itself."""\n')
    return top


# ---- which programs there are ----
@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_help_lists_every_program(words):
    lines = dict(re.findall(r"^  (\S+) +(\S.*)$", call(*words, check=0).stdout, re.MULTILINE))
    files = {file.stem for file in (ROOT / "tools").glob("*.py") if "\ndef command_line(" in file.read_text()}
    assert len(files) >= 7
    assert set(lines) == {"train", "compare", "data"} | {name.replace("_", "-") for name in files - {"prepare_data"}}
    assert lines["train"] == "Train or evaluate one run." and lines["compare"] == "the same as `protocol compare`"
    assert all(len(line) <= 100 for line in lines.values())


def test_every_program_can_be_called():
    """Its function takes no words, and says what ended it."""
    for name, file in metaprompt.programs().items():
        if name != "train":
            found = runpy.run_path(str(file))  # under another name than "__main__"
            assert found["command_line"].__code__.co_argcount == 0, name


def test_a_new_file_joins_by_itself(checkout):
    assert re.search(r"^  count-up +Counts up\.$", call(top=checkout, check=0).stdout, re.MULTILINE)
    assert "helper" not in call(top=checkout).stdout
    done = call("count-up", "1", "--to", "3", top=checkout, check=3)
    assert done.stdout == "called with metaprompt count-up 1 --to 3\n"


@pytest.mark.parametrize("content", [
    pytest.param(b"def broken(:\n", id="syntax"), pytest.param(b"\x00", id="null", marks=pytest.mark.slow),
    pytest.param(b"\xff\xfe", id="bytes", marks=pytest.mark.slow)])
def test_a_file_that_is_no_python_harms_no_other_program(content, checkout):
    (checkout / "tools" / "broken.py").write_bytes(content)
    (checkout / "tools" / "._count_up.py").write_bytes(b"\x00\x05")  # as macOS leaves on foreign disks
    listed = call(top=checkout, check=0).stdout
    assert re.search(r"^  broken +tools/broken\.py is no Python$", listed, re.MULTILINE) and "._" not in listed
    assert call("count-up", top=checkout, check=3).stdout == "called with metaprompt count-up\n"
    assert "SyntaxError" in call("broken", top=checkout, check=1).stderr


def test_the_help_imports_no_program():
    done = subprocess.run([sys.executable, "-X", "importtime", str(ROOT / "metaprompt.py")], capture_output=True,
                          text=True, check=True)
    assert "torch" not in done.stderr and "importlib" in done.stderr


@pytest.mark.parametrize("program", [pytest.param("report", marks=pytest.mark.slow), "protocol"])
def test_a_program_imports_at_its_start_what_it_always_needs(program):
    """torchvision takes as long as all else; submitit may not be there."""
    done = subprocess.run([sys.executable, "-c", f"import sys, tools.{program}; print(*sys.modules)"], cwd=ROOT,
                          text=True, capture_output=True, check=True)
    assert not {"torchvision", "matplotlib", "scipy", "submitit"} & set(done.stdout.split())


# ---- words that name none ----
@pytest.mark.parametrize(("word", "meant"), [
    ("reprot", "report"), ("reports", "report"), ("Train", "train"), ("prepare_data", "data"), ("comapre", "compare"),
    ("interpret_prompt", "interpret-prompt"), ("zzz", None), ("--trainer", "train"), ("", None)])
def test_a_word_that_names_no_program_is_refused(word, meant, monkeypatch, capsys):
    assert called_here(monkeypatch, word) == 2
    told, hint = capsys.readouterr(), f" (did you mean '{meant}'?)" if meant else ""
    assert told.out == ""
    assert told.err.startswith(f"error: there is no program '{word}'{hint}; there are: compare, data, ")
    assert told.err.count("\n") == 1


def test_a_word_of_control_characters_is_shown_escaped():
    done = call("\x1b[31mreport\udcff", check=2)
    assert "no program '\\x1b[31mreport\\udcff'" in done.stderr


def test_the_version():
    assert call("--version", check=0).stdout == f"metaprompt {metaprompt.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", metaprompt.__version__)


def test_a_reader_who_goes_away_is_no_error():
    done = subprocess.run(["bash", "-c", '"$@" --help | true; exit ${PIPESTATUS[0]}', "bash", sys.executable,
                           str(ROOT / "metaprompt.py")], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 141) and done.stderr == ""  # 0 where the line was written before


def test_nobody_reads(checkout):
    read, write = os.pipe()
    os.close(read)
    done = call(top=checkout, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 141 and done.stderr == ""


# ---- the programs, called ----
def test_train_from_another_folder(arguments, tmp_path, monkeypatch, capsys):
    done = call("train", *arguments("ZeroshotCLIP", tmp_path / "run"), check=0, cwd=tmp_path)
    assert "* accuracy: " in done.stdout and (tmp_path / "run" / "results.json").is_file()
    monkeypatch.chdir(tmp_path)
    assert called_here(monkeypatch, "report", "run") == 0
    assert "ZeroshotCLIP" in capsys.readouterr().out


def test_the_status_is_the_programs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert called_here(monkeypatch, "train", "--trainer", "NoSuch") == 2
    told = capsys.readouterr().err
    assert "NoSuch" in told and "Traceback" not in told
    assert called_here(monkeypatch, "compare", "--dataset", "nowhere") == 2
    assert "nowhere" in capsys.readouterr().err


def called_here(monkeypatch, *words):
    """The status of the command in this process, which has imported PyTorch before."""
    monkeypatch.setattr(sys, "argv", ["metaprompt", *words])
    monkeypatch.setattr(sys, "path", list(sys.path))
    return metaprompt.main()


def test_help_of_a_program(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        called_here(monkeypatch, "compare", "--help")
    assert not end.value.code
    assert capsys.readouterr().out.startswith("usage: metaprompt protocol compare ")


@pytest.mark.slow
def test_help_of_train():
    assert call("train", "--help", check=0).stdout.startswith("usage: metaprompt train ")


@pytest.mark.slow  # test_packaging.py looks at this where the command is installed
def test_no_other_datasets_is_taken_for_ours(tmp_path):
    """Another package of that name comes first on the path of this process; also the working folder has one."""
    (tmp_path / "site" / "datasets").mkdir(parents=True)
    for place in (tmp_path / "site" / "datasets" / "__init__.py", tmp_path / "datasets.py", tmp_path / "tools.py"):
        place.write_text("raise SystemExit('another package was imported')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = (f"import runpy, sys; sys.path.append({str(ROOT)!r}); import metaprompt; sys.argv[1:] = ['data', '--help']; "
            "sys.exit(metaprompt.main())")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path,
                          env=environment)
    assert done.returncode == 0 and "another package" not in done.stderr, done.stderr
    assert "terra_incognita" in call("data", "--help", check=0, env=environment, cwd=tmp_path).stdout


# ---- how programs were started before ----
@pytest.mark.parametrize(("file", "name"), [
    ("report", "report"), ("prepare_data", "data"), *(pytest.param(*names, marks=pytest.mark.slow) for names in (
        ("plot", "plot"), ("predict", "predict"), ("protocol", "protocol"), ("interpret_prompt", "interpret-prompt"),
        ("method_table", "method-table")))])
def test_the_former_call_says_what_to_give_instead(file, name, tmp_path):
    done = subprocess.run([sys.executable, str(ROOT / "tools" / f"{file}.py"), "output"], cwd=tmp_path, text=True,
                          capture_output=True, check=False)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert f"`metaprompt {name} ...`" in done.stderr and ascii(str(ROOT)) in done.stderr


def test_an_interruption_of_the_start_is_one_line(checkout):
    (checkout / "tools" / "slow.py").write_text(PROGRAM % "Slow." + "\n\nraise KeyboardInterrupt\n")
    done = call("slow", top=checkout, check=130)
    assert done.stdout == "" and done.stderr.startswith("interrupted") and done.stderr.count("\n") == 1
