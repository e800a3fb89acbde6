"""Train or evaluate one run.

    python train.py --root data --seed 1 --trainer MetaPrompt --dataset-config-file configs/datasets/caltech101.yaml \\
        --config-file configs/trainers/MetaPrompt/vit_b16.yaml --output-dir output/run DATASET.NUM_SHOTS 16

The words become a RunSpec (runs/arguments.py), the RunSpec a config (runs/build_config.py), the config a run
(runs/run.py). A run folder that is finished (it holds results.json) is not run again; one that was interrupted goes
on.
"""
import sys
from collections.abc import Iterable
from typing import Any

import datasets
import trainers
from dassl.config.words import ArgumentParser, add_options, parse_words
from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.samplers import SAMPLER_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from dassl.evaluation import EVALUATOR_REGISTRY
from dassl.utils import (
    FolderLock,
    broadcast,
    import_package_modules,
    load_entry_points,
    load_plugin,
    rank_zero_within,
    sigterm_raises,
)
from dassl.utils.streams import go_on
from runs.arguments import asked_for_keys, parse_arguments
from runs.build_config import build, build_config, default_config
from runs.command_line import command_line, mendable
from runs.config_keys import listed_keys
from runs.configs import Configs
from runs.listener import Listener
from runs.run import finished, logged, run, what_is_evaluated
from runs.run_spec import RunSpec

# What tools and scripts take from here.
__all__ = ["ArgumentParser", "Configs", "RunSpec", "add_options", "build_config", "command_line", "default_config",
           "discover", "main", "mendable", "parse_arguments", "parse_words"]

REGISTRIES = (TRAINER_REGISTRY, DATASET_REGISTRY, SAMPLER_REGISTRY, EVALUATOR_REGISTRY)


def discover(plugins: Iterable[str] = ()) -> None:
    """Fill the registries: this project's files, installed plugins, then the files or modules named."""
    import_package_modules(trainers)
    import_package_modules(datasets)
    load_entry_points(registries=REGISTRIES)
    for spec in plugins:
        load_plugin(spec, registries=REGISTRIES)


def main(argv: RunSpec | Iterable[str] | None = None, clips: dict[str, Any] | None = None,
         seen: dict[str, Any] | None = None, configs: Configs | None = None,
         listener: Listener | None = None) -> dict[str, Any]:
    """Run as the command line does and return the results.

    Args:
        argv: a RunSpec, or the words of the command line; default those of this process.
        clips: {backbone name: loaded CLIP}, filled and shared between calls in one process.
        seen: {}, filled and shared between the calls of one protocol: what its runs' datasets list.
        configs: the configs that one protocol has built for its runs.
        listener: who is told how far the run is, and where it prints; default stdout.
    Returns:
        the dict that is stored as results.json.
    Raises:
        InputError, PromptingError: something given is wrong (exit status 2 on the command line).
    """
    listener = listener or Listener()
    spec = argv if isinstance(argv, RunSpec) else parse_arguments(argv)
    discover(spec.plugins)
    built = build(spec) if configs is None else configs.built(spec)
    cfg = built.cfg
    evaluation = what_is_evaluated(spec)
    results = broadcast(lambda: finished(cfg, evaluation, seen))
    if results is None or spec.no_train:
        with sigterm_raises(), rank_zero_within(lambda: FolderLock(cfg.OUTPUT_DIR)):
            # Asked again: the process that held the lock before may just have finished this very run.
            results = broadcast(lambda: finished(cfg, evaluation, seen))
            if results is None or spec.no_train:
                with rank_zero_within(lambda: logged(cfg.OUTPUT_DIR, listener.prints)):
                    return run(spec, built, evaluation, {} if clips is None else clips, listener)
    listener.finished_before(cfg.OUTPUT_DIR)
    return results


def asked() -> None:
    """Do what the words of this process ask for: list config keys, or make a run."""
    keys = asked_for_keys()
    if keys is None:
        main()
        return
    word, trainer, plugins = keys
    discover(plugins)
    print(listed_keys(word, trainer))


def program() -> int:
    """The program; returns its exit status. (`command_line` here is what all programs call.)"""
    return command_line(asked, unread=go_on)


if __name__ == "__main__":
    sys.exit(program())
