"""The scripts without a process per call of Python: bash takes words and variables apart as ever, and what Python is
asked to do is done here. A start of Python with PyTorch takes as long as twenty plans."""
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from conftest import ROOT

import metaprompt


class Done(NamedTuple):
    """As of subprocess.run."""

    returncode: int
    stdout: str
    stderr: str


def copy_of_scripts(home):
    """The scripts below the folder `home`, with a python that prints its words and a null byte behind each; an empty
    line ends a call. Returns the folder of the scripts."""
    shutil.copytree(ROOT / "scripts", Path(home) / "scripts")
    python = Path(home) / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\nprintf '\\n\\0'\n")
    python.chmod(0o755)
    return Path(home) / "scripts"


def calls(printed):
    """[the words of each call] of what the python of `copy_of_scripts` has printed."""
    found, words = [], []
    for word in printed.split("\0")[:-1]:
        if word == "\n":
            found.append(words)
            words = []
        else:
            words.append(word if words else word.lstrip("\n"))  # demo.sh prints an empty line between its two
    return found


class Scripts:
    """Calls scripts and, in this process, what they call.

    Args:
        folder: the scripts, of `copy_of_scripts`.
        monkeypatch, capsys: pytest's.
    """

    def __init__(self, folder, monkeypatch, capsys):
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys

    def __call__(self, script, *words, cwd, **variables):
        """What `VARIABLES bash scripts/SCRIPT WORDS` prints and returns in the folder `cwd`."""
        done = subprocess.run(["bash", str(self.folder / script), *words], cwd=cwd, capture_output=True, text=True,
                              check=False, timeout=60, env={**os.environ, **variables})
        if done.returncode or done.stderr:  # refused by the script
            return Done(done.returncode, done.stdout, done.stderr)
        self.capsys.readouterr()
        status = 0
        with self.monkeypatch.context() as patch:
            patch.chdir(cwd)
            for name, value in variables.items():
                patch.setenv(name, value)
            for program, *given in calls(done.stdout):
                assert Path(program) == self.folder.parent / "metaprompt.py"
                patch.setattr(sys, "argv", [program, *given])
                patch.setattr(sys, "path", list(sys.path))
                status = metaprompt.main()
                if status:  # the scripts end with the first that fails
                    break
        return Done(status, *self.capsys.readouterr())
