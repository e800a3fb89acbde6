"""The command line of train.py: its flags and options become a RunSpec."""
import argparse
import functools
import sys
from collections.abc import Iterable
from typing import Any

from dassl.config.words import ArgumentParser, add_options, parse_words
from runs.run_spec import RunSpec


def parse_arguments(argv: Iterable[str] | None = None) -> RunSpec:
    """The RunSpec of a command line; of this process's where none is given.

    Raises:
        InputError: an unknown flag, a flag or an option without a value, or a word that is no number where one belongs.
    """
    given = vars(parse_words(_parser(), sys.argv[1:] if argv is None else argv))
    del given["config_keys"]  # which is no part of a run
    names = {"plugin": "plugins", "opts": "options"}
    fields: dict[str, Any] = {names.get(name, name): tuple(value) if isinstance(value, list) else value
                              for name, value in given.items()}
    return RunSpec(**fields)


def asked_for_keys(argv: Iterable[str] | None = None) -> tuple[str, str, tuple[str, ...]] | None:
    """(word, trainer, plugins) of a command line that asks for config keys; None of one that asks for a run. Arguments
    and errors are those of `parse_arguments`."""
    given = parse_words(_parser(), sys.argv[1:] if argv is None else argv)
    return None if given.config_keys is None else (given.config_keys, given.trainer, tuple(given.plugin))


@functools.cache
def _parser() -> ArgumentParser:
    parser = ArgumentParser(description="Train or evaluate one run.",
                            epilog="Other words are config options, KEY VALUE or KEY=VALUE. Started by torchrun, "
                                   "several processes make one run together; see docs/SCALING.md.")
    parser.add_argument("--root", default="",
                        help="folder that holds the datasets, DATASET.ROOT (default the config's)")
    parser.add_argument("--output-dir", default="", help="run folder, OUTPUT_DIR (default ./output)")
    parser.add_argument("--resume", default="", help="run folder to go on from, when it is not --output-dir")
    parser.add_argument("--seed", type=int, default=-1, help="seed of every draw; negative: drawn and printed")
    parser.add_argument("--source-domains", nargs="+", default=[],
                        help="training domains (default none; a dataset with domains needs them)")
    parser.add_argument("--target-domains", nargs="+", default=[],
                        help="test domains (default none; a dataset with domains needs them)")
    parser.add_argument("--transforms", nargs="+", default=[],
                        help="transforms of training images, INPUT.TRANSFORMS (default the config's)")
    parser.add_argument("--config-file", default="", help="the method's YAML config")
    parser.add_argument("--dataset-config-file", default="", help="the dataset's YAML config")
    parser.add_argument("--trainer", default="", help="name of the method (default the config's)")
    parser.add_argument("--backbone", default="",
                        help="a CLIP by name (ViT-B/16, RN50, ...) or a weights file (default the config's)")
    parser.add_argument("--head", default="", help="MODEL.HEAD.NAME, for methods that have one (default the config's)")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE",
                        help="import more methods or datasets from here (repeatable)")
    parser.add_argument("--protocol", default="", help=argparse.SUPPRESS)  # which one has planned the run
    parser.add_argument("--trained-on", default="", help=argparse.SUPPRESS)  # a plan's, before that run was made
    parser.add_argument("--store-dir", default="", help=argparse.SUPPRESS)  # that its runs share; users have STORE.DIR
    parser.add_argument("--eval-only", action="store_true", help="evaluate only")
    parser.add_argument("--model-dir", default="", help="run folder whose prompts --eval-only loads")
    parser.add_argument("--load-epoch", type=int, help="epoch of that run; default the best kept, else the last")
    parser.add_argument("--no-train", action="store_true", help="build everything, neither train nor evaluate")
    parser.add_argument("--skip-bad-images", action="store_true",
                        help="leave unreadable images out and list them in results.json (DATASET.SKIP_BAD_IMAGES)")
    keys: Any = parser.add_argument(
        "--config-keys", nargs="?", const="", metavar="WORD",
        help="list the config keys that have WORD in their name or meaning, with their defaults, and run nothing; with "
             "--trainer only those that this method reads; default all keys")
    keys.in_full = True  # --config is --config-file
    add_options(parser)
    return parser
