"""The configuration tree: Dassl's keys and defaults, YAML files and command-line options merged with care."""
from dassl.config.belongs import methods_of
from dassl.config.check import check_config
from dassl.config.defaults import get_cfg_default
from dassl.config.merge import merge_file, merge_options, write_config


def clean_cfg(cfg, trainer):
    """Remove the TRAINER nodes of the methods that are not run.

    Args:
        cfg: the config, changed in place.
        trainer: the trainer's name; its own node is its name in capitals.
    """
    for key in list(cfg.TRAINER.keys()):
        if key not in ("NAME", trainer.upper()):
            cfg.TRAINER.pop(key)


__all__ = ["check_config", "clean_cfg", "get_cfg_default", "merge_file", "merge_options", "methods_of", "write_config"]
