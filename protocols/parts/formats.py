"""Words of others in each format of a table: whatever a name holds, it stays a word."""
from __future__ import annotations

import re

from dassl.utils import printable

FORMATS = ("text", "markdown", "csv", "latex")
LATEX_TEXT = str.maketrans({
    **{character: f"\\{character}" for character in "&%$#_{}"}, "\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"})
# What Markdown takes for something else; "_" within a word, as in oxford_pets, it does not.
MARKDOWN_TEXT = re.compile(r"[\\`*\[\]<|~$&]|(?<!\w)_|_(?!\w)")
NUMBER = re.compile(r"[+-]?\d*\.?\d*(e[+-]?\d+)?", re.ASCII)  # or a dash
FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"  # with which a spreadsheet's formula begins, also in full width
# Signs of marks (protocols/parts/marks.py) where they are not written as they are.
SIGN = {"latex": {"*": "$^{*}$", "!": r"$^{\dagger}$", "-": "-"}, "markdown": {"*": r"\*"}}


def latex(word: str) -> str:
    """A word as LaTeX text: every character that LaTeX takes for something else is written out, also a first [ or *,
    which would belong to the \\\\ that ends the row before."""
    return re.sub(r"^[\[*]", r"{\g<0>}", printable(word).translate(LATEX_TEXT))


def markdown(word: str) -> str:
    """A word as Markdown text."""
    return MARKDOWN_TEXT.sub(r"\\\g<0>", printable(word))


def csv_cell(word: str) -> str:
    """A word as a cell that a spreadsheet takes for text, which a ' in front of it says; numbers stay numbers."""
    word = printable(word)
    return f"'{word}" if word[:1] in FORMULA and not NUMBER.fullmatch(word) else word


def csv_comment(line: str) -> str:
    """A line that no spreadsheet calculates: it parts lines at commas, whatever they begin with."""
    return re.sub(f"([,;]\\s*)(?=[{re.escape(FORMULA)}])", r"\1'", printable(line))


WORDS = {"text": printable, "markdown": markdown, "csv": csv_comment, "latex": latex}
COMMENTS = {"text": "{}", "markdown": "## {}", "csv": "# {}", "latex": "% {}"}


def sign_in(sign: str, form: str) -> str:
    """The sign of a mark, or the key of a source, in a format."""
    return SIGN.get(form, {}).get(sign) or WORDS[form](sign)


def comment(line: str, form: str) -> str:
    """A line above tables, as a comment in the formats that programs read."""
    words = printable if form == "latex" else WORDS[form]
    return COMMENTS[form].format(words(" ".join(line.split())))
