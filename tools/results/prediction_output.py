"""How predictions are printed: as one JSON array or as a table (metaprompt predict)."""
import json
import sys
import unicodedata

from dassl.utils import printable
from dassl.utils.text import escaped


class JsonArray:
    """Prints one JSON array piece by piece; it is whole after `close`, whatever ended it. Names that a terminal or its
    encoding could not take as they are, are escaped as JSON."""

    def __init__(self):
        self.entries = False

    def begin(self):
        print("[", end="")

    def put(self, prediction):
        entry = {"path": prediction.path, "top": [{"class": name, "probability": round(probability, 6)}
                                                  for name, probability in prediction.top]}
        text = json.dumps(entry, indent=2, ensure_ascii=False)
        if escaped(text) != text or not (sys.stdout.encoding or "utf-8").lower().startswith("utf"):
            text = json.dumps(entry, indent=2)
        print(",\n  " if self.entries else "\n  ", text.replace("\n", "\n  "), sep="", end="")
        self.entries = True

    def close(self):
        print("\n]" if self.entries else "]")


def columns_of(word):
    """How many columns of a terminal a word takes: East Asian characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")
               for letter in word)


class Table:
    """Prints a table row by row, a block of rows per image. Its columns are as wide as any of the files and classes
    needs, so that no row has to wait for the others."""

    def __init__(self, files, names):
        self.widths = [max(columns_of(printable(word)) for word in words)
                       for words in (["image", *files], ["class", *names])]
        self.begun = False

    def _row(self, image, name, probability):
        words = [word + " " * (width - columns_of(word)) for word, width in zip((image, name), self.widths)]
        print(*words, f"{probability:>11}", sep="  ")

    def begin(self):
        self._row("image", "class", "probability")
        self._row(*("-" * width for width in (*self.widths, 11)))
        self.begun = True

    def put(self, prediction):
        for rank, (name, probability) in enumerate(prediction.top):
            self._row("" if rank else printable(prediction.path), printable(name), f"{100 * probability:.2f} %")

    def close(self):
        pass
