"""Which method a YAML config is for."""
import functools
import os

from dassl.config.defaults import get_cfg_default
from dassl.config.merge import config_text, merge_text


def methods_of(path):
    """The methods that a config file is for, a set of names in capitals; empty for settings that suit any method.

    A file in a folder `configs/trainers/<method>` is that method's, one that says TRAINER.NAME that one's, any other
    is for each method whose node of TRAINER it sets. Raises InputError as `merge_file` does."""
    said = _methods_in(config_text(path), path)
    *_, configs, trainers, method, _ = ["", "", "", *os.path.abspath(path).split(os.sep)]
    return {method.upper()} if (configs, trainers) == ("configs", "trainers") else set(said)


@functools.lru_cache(maxsize=64)
def _methods_in(text, path):
    """The methods that a config's text itself is for. path: for the messages."""
    peek = get_cfg_default()
    merge_text(peek, text, path, open_trainer=True)
    if peek.TRAINER.NAME:
        return {peek.TRAINER.NAME.upper()}
    return {name for name in peek.TRAINER if name != "NAME"}
