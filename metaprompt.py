"""One command for every program of the toolkit: metaprompt PROGRAM WORDS...

    metaprompt train --trainer CoOp ...
    metaprompt compare --dataset caltech101      (metaprompt protocol compare --dataset caltech101)
    metaprompt report output

Without installation it is `python metaprompt.py PROGRAM WORDS...`. A program is train.py or a file of tools/ that has a
function `command_line`; a new file there joins by itself. Its line in the help is the beginning of its docstring.
"""
import ast
import difflib
import importlib
import os
import sys
import textwrap
from pathlib import Path

__version__ = "0.1.0"
ROOT = Path(__file__).resolve().parent
SHORT = {"prepare_data": "data"}  # names of commands that are not their file's
ALIASES: dict[str, tuple[str, ...]] = {"compare": ("protocol", "compare")}
READER_GONE = 141  # as a shell reports for a program whose reader has gone
INTERRUPTED = 130  # ... that Ctrl-C has ended


def programs() -> dict[str, Path]:
    """{name of the command: its file}."""
    found = {"train": ROOT / "train.py"}
    for file in sorted((ROOT / "tools").glob("*.py")):
        if file.stem.isidentifier() and _is_program(file):  # others cannot be imported, such as macOS's `._report.py`
            found[SHORT.get(file.stem, file.stem).replace("_", "-")] = file
    return found


def _is_program(file: Path) -> bool:
    module = _parsed(file)
    return module is None or any(isinstance(part, ast.FunctionDef) and part.name == "command_line"
                                 for part in module.body)


def _parsed(file: Path) -> ast.Module | None:
    """A file as Python reads it. None where it is no Python: then it is still a program, and Python says what is wrong
    when it is called. Others work meanwhile."""
    try:
        return ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # ValueError: a null byte
        return None


def usage(known: dict[str, Path]) -> str:
    """What `metaprompt --help` prints. The programs are not imported for it, so that it comes at once."""
    lines = {name: _first_line(file) for name, file in known.items()}
    lines |= {name: f"the same as `{' '.join(words)}`" for name, words in ALIASES.items()}
    width = max(map(len, lines))
    return "\n".join(["usage: metaprompt PROGRAM ...   (metaprompt PROGRAM --help tells its words)", "",
                      *(f"  {name:{width}}  {line}" for name, line in sorted(lines.items()))])


def _first_line(file: Path) -> str:
    """The beginning of a file's docstring."""
    module = _parsed(file)
    if module is None:
        return f"tools/{file.name} is no Python"
    return textwrap.shorten((ast.get_docstring(module) or "").partition("\n\n")[0], 100, placeholder=" ...")


def main() -> int:
    """Call the program that the command line names. Returns its exit status, 2 where there is no such program."""
    name, *words = sys.argv[1:] or ["--help"]
    if name == "--version":
        return _say(f"metaprompt {__version__}")
    if not (ROOT / "train.py").is_file():
        return _refuse("only the libraries are installed here (dassl, prompting, training); the programs are part of "
                       "the repository: get it, and run `pip install -e .` in its folder")
    known = programs()
    if name in ("-h", "--help"):
        return _say(usage(known))
    name, *words = [*ALIASES.get(name, (name,)), *words]
    if name not in known:
        meant = _meant(name, known)
        return _refuse(f"there is no program {ascii(name)}{f' (did you mean {meant!r}?)' if meant else ''}; there are: "
                       f"{', '.join(sorted([*known, *ALIASES]))}")
    # First, so that this project's `datasets` is found before an installed package of that name.
    sys.path[:] = [str(ROOT), *(path for path in sys.path if path != str(ROOT))]
    sys.argv = [f"metaprompt {name}", *words]
    try:  # of PyTorch and all; it takes seconds
        module = importlib.import_module(".".join(known[name].relative_to(ROOT).with_suffix("").parts))
    except KeyboardInterrupt:
        print("interrupted while the program was being loaded; nothing was begun", file=sys.stderr)
        return INTERRUPTED
    status: int = module.program() if name == "train" else module.command_line()
    return status


def _meant(word: str, known: dict[str, Path]) -> str:
    """The program whose name, or whose file's, is like a word; "" where none is."""
    names = {file.stem: name for name, file in known.items()} | {name: name for name in (*known, *ALIASES)}
    near = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.5)
    return names[near[0]] if near else ""


def _say(text: str) -> int:
    """Print; returns the exit status."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter tries again at its end, and complains
        return READER_GONE
    return 0


def _refuse(reason: str) -> int:
    """Print a line of what is wrong; returns the exit status."""
    print(f"error: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
