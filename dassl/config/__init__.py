"""The configuration tree: Dassl's keys and defaults, YAML files and command-line options merged with care."""
from dassl.config.belongs import methods_of
from dassl.config.check import check_config
from dassl.config.defaults import copied, get_cfg_default
from dassl.config.merge import (
    dump,
    merge_entry,
    merge_file,
    merge_flag,
    merge_options,
    merge_text,
    paired,
    write_config,
)
from dassl.config.reading import config_layers


def clean_cfg(cfg, trainer):
    """Remove the TRAINER nodes of the methods that are not run.

    Args:
        cfg: the config, changed in place.
        trainer: the trainer's name; its own node is its name in capitals.
    """
    for key in list(cfg.TRAINER.keys()):
        if key not in ("NAME", trainer.upper()):
            cfg.TRAINER.pop(key)


def own_cfg(cfg, defaults):
    """A config as it is stored with its run: a copy without the TRAINER nodes of other methods that say nothing.

    A foreign trainer may read any node, so that one that differs from its defaults is kept, and one that has none.

    Args:
        cfg: the config of a run.
        defaults: the tree before anything was merged.
    """
    own = cfg.clone()
    own.defrost()
    for key, node in cfg.TRAINER.items():
        if key not in ("NAME", cfg.TRAINER.NAME.upper()) and node == defaults.TRAINER.get(key):
            own.TRAINER.pop(key)
    own.freeze()
    return own


__all__ = ["check_config", "clean_cfg", "config_layers", "copied", "dump", "get_cfg_default", "merge_entry",
           "merge_file", "merge_flag", "merge_options", "merge_text", "methods_of", "own_cfg", "paired", "write_config"]
