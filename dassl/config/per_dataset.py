"""PER_DATASET of a method's config file: settings for single datasets.

    PER_DATASET:
      StanfordCars: {TRAINER: {MMRL: {REG_WEIGHT: 7.0}}}
"""
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dassl.config.reading import BASE, keys_of
from dassl.config.tree import dotted
from dassl.utils.errors import InputError

PER_DATASET = "PER_DATASET"  # the key of a config file that holds the entries
DECIDED = {"DATASET.NAME": "it chooses the entry", "TRAINER.NAME": "the file is one method's"}  # not an entry's to say


def entries_of(text: str, told: str) -> dict[str, dict[str, Any]]:
    """{DATASET.NAME: tree of config keys} that the text of one config file says under PER_DATASET, not to be changed.

    Args:
        told: how messages name the file.
    Raises:
        InputError: PER_DATASET or an entry is no mapping, or an entry has a key that does not belong there. Whether the
            other keys are known is not looked at.
    """
    keys = keys_of(text, told)
    if PER_DATASET not in keys:
        return {}
    entries = keys[PER_DATASET]
    if not isinstance(entries, dict):
        raise InputError(f"config {told}: {PER_DATASET} must hold config keys for each dataset, such as "
                         f"{{ImageNet: {{OPTIM: {{MAX_EPOCH: 50}}}}}}, not {entries!r}")
    for name, tree in entries.items():
        if not isinstance(name, str):
            raise InputError(f"config {told}: {PER_DATASET} has the entry {name!r}, which is no DATASET.NAME")
        _check(tree, place_of(told, name))
    return entries


def place_of(told: str, dataset: str) -> str:
    """How messages name an entry."""
    return f"config {told}, {PER_DATASET}.{dataset}"


def _check(tree: Any, where: str) -> None:
    """Raise InputError for an entry that is no tree of keys, or that says what is not its own to say."""
    if not isinstance(tree, dict):
        raise InputError(f"{where}: it must hold config keys, such as {{OPTIM: {{MAX_EPOCH: 50}}}}, not {tree!r}")
    for name in tree:
        if isinstance(name, str) and name.upper() in (BASE, PER_DATASET):
            raise InputError(f"{where}: {name} stands at the top of a config file, not in an entry of {PER_DATASET}")
    for key in dotted(tree):
        if key.upper() in DECIDED:
            raise InputError(f"{where}: {key} is not an entry's to say, as {DECIDED[key.upper()]}; leave it out")


def datasets_named(layers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """{DATASET.NAME: how messages name the last file with an entry for it} of the layers of a config file, ((name for
    messages, text), ...). Raises InputError as `entries_of` does."""
    return {name: told for told, text in layers for name in entries_of(text, told)}


def require_no_entries(layers: Iterable[tuple[str, str]]) -> None:
    """Raise InputError where the layers of a dataset's config file say PER_DATASET."""
    for told, text in layers:
        if PER_DATASET in keys_of(text, told):
            raise InputError(f"config {told}: {PER_DATASET} belongs in a method's config file; a dataset's own says "
                             "its settings at the top")


@dataclass(frozen=True)
class Taken:
    """What a run took from entries for its dataset.

    Attributes:
        dataset: its DATASET.NAME.
        file: the method's config file.
        settings: ((key, value, whether a flag or an option says otherwise), ...).
    """

    dataset: str
    file: str
    settings: tuple[tuple[str, Any, bool], ...]

    def told(self) -> str:
        """A line for the log."""
        words = [f"{key} {value}{' (overridden)' if overridden else ''}" for key, value, overridden in self.settings]
        return f"Note: for {self.dataset}, as {PER_DATASET} of {self.file} says: {', '.join(words)}"
