"""Which method a YAML config is for."""
import os

from dassl.config.defaults import get_cfg_default
from dassl.config.merge import merge_file


def methods_of(path):
    """The methods that a config file is for, a set of names in capitals; empty for settings that suit any method.

    A file in a folder `configs/trainers/<method>` is that method's, one that says TRAINER.NAME that one's, any other
    is for each method whose node of TRAINER it sets. Raises InputError as `merge_file` does."""
    peek = get_cfg_default()
    merge_file(peek, path, open_trainer=True)
    *_, configs, trainers, method, _ = ["", "", "", *os.path.abspath(path).split(os.sep)]
    if (configs, trainers) == ("configs", "trainers"):
        return {method.upper()}
    if peek.TRAINER.NAME:
        return {peek.TRAINER.NAME.upper()}
    return {name for name in peek.TRAINER if name != "NAME"}
