"""The list of config keys with their defaults and meanings, `train.py --config-keys WORD`."""
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from dassl.config.effect import EFFECTS, NEVER
from dassl.config.meanings import engine_meanings, method_meanings
from dassl.config.near import meant_key
from dassl.config.tree import dotted
from dassl.engine import TRAINER_REGISTRY
from dassl.utils.errors import InputError
from dassl.utils.text import printable
from runs.build_config import default_config
from runs.read_keys import read_keys

LEAST_WIDTH = 24  # columns of a terminal that meanings have at least


@dataclass(frozen=True)
class Key:
    """A config key. method: whose it is, "" for one of the engine; unread: why no run reads it, or ""."""

    name: str
    default: Any
    meaning: str
    method: str = ""
    unread: str = ""

    def has(self, word: str) -> bool:
        """Whether it is found by a word, in any letters: in its name or its method's, or where a word of its meaning
        begins."""
        words = f"{self.method} {self.meaning}"
        return word.casefold() in self.name.casefold() or bool(re.search(rf"(?<!\w){re.escape(word)}", words, re.I))

    def row(self) -> tuple[str, str, str]:
        meaning = f"{self.method}: {self.meaning}" if self.method else self.meaning
        return self.name, _shown(self.default), meaning + (f" ({self.unread})" if self.unread else "")


def all_keys() -> list[Key]:
    """Every key of the engine and of every registered method, in the order of their declaration."""
    cfg, meanings = default_config(), engine_meanings()
    values = dotted(cfg)
    keys = [Key(name, values[name], meaning, unread=EFFECTS[name][0] if EFFECTS[name][0] in NEVER else "")
            for name, meaning in meanings.items()]
    for method, trainer in TRAINER_REGISTRY.items():
        node = cfg.TRAINER.get(method.upper(), {})
        told = method_meanings(trainer, node)
        keys += [Key(f"TRAINER.{method.upper()}.{name}", value, told[name], method)
                 for name, value in dotted(node).items()]
    return keys


def listed_keys(word: str = "", method: str = "") -> str:
    """The table of the keys that have a word, for stdout: wrapped to a terminal's width, else one line per key.

    Args:
        word: "" for all keys.
        method: only the keys that this method reads.
    Raises:
        InputError: there is no such method, or no key has the word; then the nearest keys are told.
    """
    keys = all_keys()
    if method:
        read = set(read_keys(TRAINER_REGISTRY.get(method)))
        keys = [key for key in keys if key.name in read or key.method == method]
    found = [key for key in keys if key.has(word)]
    if not found:
        of = f" that {method} reads" if method else ""
        raise InputError(f"--config-keys: no key{of} has '{word}' in its name or meaning"
                         f"{meant_key(word, [key.name for key in keys], method)}; without a word all keys are listed")
    return _table([key.row() for key in found])


def _table(rows: Sequence[tuple[str, str, str]]) -> str:
    rows = [(printable(name), printable(default), printable(meaning)) for name, default, meaning in rows]
    widths: list[int | None] = [None, None, None]
    if sys.stdout.isatty():
        taken = sum(max(len(row[column]) for row in rows) + 2 for column in (0, 1))
        widths[2] = max(LEAST_WIDTH, shutil.get_terminal_size().columns - taken)
    return tabulate(rows, headers=("key", "default", "meaning"), tablefmt="plain", disable_numparse=True,
                    maxcolwidths=widths)


def _shown(value: Any) -> str:
    """A value as an option takes it; '' for an empty text."""
    return repr(value) if value == "" else str(value)
