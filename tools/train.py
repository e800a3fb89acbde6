"""What a program of this folder finds for `import train` when it is started as a file, as earlier releases were:
`python tools/report.py`. It ends the program with the command to give instead."""
import runpy
import sys
from pathlib import Path

if __name__ == "train":
    root = Path(__file__).resolve().parents[1]
    started = Path(sys.argv[0]).resolve()
    programs = runpy.run_path(str(root / "metaprompt.py"))["programs"]()
    name = next((name for name, file in programs.items() if file == started), "PROGRAM")
    print(f"error: programs are started by their names now: `metaprompt {name} ...`, or without installation "
          f"`python metaprompt.py {name} ...` in {ascii(str(root))}", file=sys.stderr)
    sys.exit(2)
