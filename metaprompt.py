"""One command for every program of the toolkit: metaprompt PROGRAM WORDS...

    metaprompt train --trainer CoOp ...
    metaprompt compare --dataset caltech101      (metaprompt protocol compare --dataset caltech101)
    metaprompt report output

Without installation it is `python metaprompt.py PROGRAM WORDS...`. A program is train.py or a file of tools/ that has a
function `command_line`; a new file there joins by itself. Its line in the help is the first line of its docstring.
"""
import ast
import difflib
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SHORT = {"prepare_data": "data"}  # names of commands that are not their file's
ALIASES: dict[str, tuple[str, ...]] = {"compare": ("protocol", "compare")}


def programs() -> dict[str, Path]:
    """{name of the command: its file}."""
    found = {"train": ROOT / "train.py"}
    for file in sorted((ROOT / "tools").glob("*.py")):
        if any(isinstance(part, ast.FunctionDef) and part.name == "command_line" for part in _parsed(file).body):
            found[SHORT.get(file.stem, file.stem).replace("_", "-")] = file
    return found


def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def usage(known: dict[str, Path]) -> str:
    """What `metaprompt --help` prints. The programs are not imported for it, so that it comes at once."""
    lines = {name: (ast.get_docstring(_parsed(file)) or "").partition("\n")[0] for name, file in known.items()}
    lines |= {name: f"the same as `{' '.join(words)}`" for name, words in ALIASES.items()}
    width = max(map(len, lines))
    return "\n".join(["usage: metaprompt PROGRAM ...   (metaprompt PROGRAM --help tells its words)", "",
                      *(f"  {name:{width}}  {line}" for name, line in sorted(lines.items()))])


def main() -> int:
    """Call the program that the command line names. Returns its exit status, 2 where there is no such program."""
    if not (ROOT / "train.py").is_file():
        print("error: only the libraries are installed here (dassl, prompting, training); the programs are part of the "
              "repository: get it, and run `pip install -e .` in its folder", file=sys.stderr)
        return 2
    known = programs()
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage(known))
        return 0
    name, *words = [*ALIASES.get(name, (name,)), *words]
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *ALIASES], n=1, cutoff=0.5)
        print(f"error: there is no program {name!r}{f' (did you mean {near[0]!r}?)' if near else ''}; there are: "
              f"{', '.join(sorted([*known, *ALIASES]))}", file=sys.stderr)
        return 2
    # First, so that this project's `datasets` is found before an installed package of that name.
    sys.path[:] = [str(ROOT), *(path for path in sys.path if path != str(ROOT))]
    sys.argv = [f"metaprompt {name}", *words]
    file = known[name]
    module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    status: int = module.program() if name == "train" else module.command_line()
    return status


if __name__ == "__main__":
    sys.exit(main())
