"""Which method a YAML config is for."""
import functools
import os

from dassl.config.defaults import get_cfg_default
from dassl.config.merge import merge_entry, merge_text
from dassl.config.per_dataset import entries_of
from dassl.config.reading import ConfigFile, read_config


def methods_of(path: str) -> set[str]:
    """The methods that a config file is for, a set of names in capitals; empty for settings that suit any method.

    A file in a folder `configs/trainers/<method>` is for that method. Any other file is for the method that it names as
    TRAINER.NAME, else for each method whose node of TRAINER it sets, else for the methods that its BASE files are for.
    Raises InputError as `merge_file` does."""
    return methods_of_file(read_config(path))


def methods_of_file(file: ConfigFile) -> set[str]:
    """As `methods_of`, of a file that was read."""
    said = _methods_in(file.text, file.told)  # also where the folder decides: it raises for a key that is unknown
    below = [methods_of_file(base) for base in file.bases]
    folders = os.path.abspath(file.path).split(os.sep)[-4:-1]
    if folders[:2] == ["configs", "trainers"]:
        return {folders[2].upper()}
    return set(said) or set().union(*below)


@functools.lru_cache(maxsize=128)
def _methods_in(text: str, told: str) -> frozenset[str]:
    """The methods that the text of one config file names. told: the file, for the messages."""
    peek = get_cfg_default()
    merge_text(peek, text, told, open_trainer=True)
    for dataset in entries_of(text, told):
        merge_entry(peek, text, told, dataset, open_trainer=True)
    if peek.TRAINER.NAME:
        return frozenset({peek.TRAINER.NAME.upper()})
    return frozenset(name for name in peek.TRAINER if name != "NAME")
