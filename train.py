"""Train or evaluate one run.

    python train.py --root data --seed 1 --trainer MetaPrompt --dataset-config-file configs/datasets/caltech101.yaml \\
        --config-file configs/trainers/MetaPrompt/vit_b16.yaml --output-dir output/run DATASET.NUM_SHOTS 16

A run folder that is finished (it holds results.json) is not run again; one that was interrupted goes on.
"""
import argparse
import json
import os
import random
import sys
import time

import torch
import torchvision
import yaml

import datasets
import trainers
from dassl.config import clean_cfg, get_cfg_default, merge_file, merge_options, write_config
from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.samplers import SAMPLER_REGISTRY
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.evaluation import EVALUATOR_REGISTRY
from dassl.utils import (
    InputError,
    collect_env_info,
    import_package_modules,
    load_entry_points,
    load_plugin,
    read_json,
    set_random_seed,
    setup_logger,
    write_json,
)
from prompting import PromptingError, load_clip
from prompting.backbone import default_download_folder
from trainers.base import PromptTrainer

REGISTRIES = (TRAINER_REGISTRY, DATASET_REGISTRY, SAMPLER_REGISTRY, EVALUATOR_REGISTRY)
# What may differ between two runs that count as the same: places, and what changes no number.
NOT_COMPARED = ("OUTPUT_DIR", "RESUME", "VERBOSE", "DATASET.ROOT", "DATALOADER.NUM_WORKERS", "TRAIN.PRINT_FREQ",
                "TRAIN.CHECKPOINT_FREQ")


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description="Train or evaluate one run.",
                                     epilog="Words after the flags are config options: KEY VALUE ...")
    parser.add_argument("--root", default="", help="folder that holds the datasets (DATASET.ROOT)")
    parser.add_argument("--output-dir", default="", help="run folder (OUTPUT_DIR)")
    parser.add_argument("--resume", default="", help="run folder to go on from, when it is not --output-dir")
    parser.add_argument("--seed", type=int, default=-1, help="seed of every draw; negative: drawn and printed")
    parser.add_argument("--source-domains", nargs="+", help="training domains")
    parser.add_argument("--target-domains", nargs="+", help="test domains")
    parser.add_argument("--transforms", nargs="+", help="transforms of training images (INPUT.TRANSFORMS)")
    parser.add_argument("--config-file", default="", help="the method's YAML config")
    parser.add_argument("--dataset-config-file", default="", help="the dataset's YAML config")
    parser.add_argument("--trainer", default="", help="name of the method")
    parser.add_argument("--backbone", default="", help="a CLIP by name (ViT-B/16, RN50, ...) or a weights file")
    parser.add_argument("--head", default="", help="MODEL.HEAD.NAME, for methods that have one")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE",
                        help="import more methods or datasets from here (repeatable)")
    parser.add_argument("--eval-only", action="store_true", help="evaluate only")
    parser.add_argument("--model-dir", default="", help="run folder whose prompts --eval-only loads")
    parser.add_argument("--load-epoch", type=int, help="epoch of that run; default the best kept, else the last")
    parser.add_argument("--no-train", action="store_true", help="build everything, neither train nor evaluate")
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=[], help="config options: KEY VALUE ...")
    return parser.parse_args(argv)


def discover(plugins=()):
    """Fill the registries: this project's files, installed plugins, then the files or modules named."""
    import_package_modules(trainers)
    import_package_modules(datasets)
    load_entry_points(registries=REGISTRIES)
    if plugins:
        default_download_folder()
    for spec in plugins:
        load_plugin(spec, registries=REGISTRIES)


def build_config(args):
    """The frozen config of a run: defaults, dataset file, method file, flags, options, in this order."""
    cfg = get_cfg_default()
    for cls in (*TRAINER_REGISTRY.replaced.values(), *(cls for _, cls in TRAINER_REGISTRY.items())):
        if hasattr(cls, "extend_cfg"):
            cls.extend_cfg(cfg)
    # A plugin that declares no keys of its own may bring any under TRAINER.
    open_trainer = args.trainer in TRAINER_REGISTRY and not hasattr(TRAINER_REGISTRY.get(args.trainer), "extend_cfg")
    for path in (args.dataset_config_file, args.config_file):
        if path:
            merge_file(cfg, path, open_trainer)
    for key, value in (("DATASET.ROOT", args.root), ("OUTPUT_DIR", args.output_dir), ("RESUME", args.resume),
                       ("TRAINER.NAME", args.trainer), ("MODEL.BACKBONE.NAME", args.backbone),
                       ("MODEL.HEAD.NAME", args.head), ("DATASET.SOURCE_DOMAINS", args.source_domains),
                       ("DATASET.TARGET_DOMAINS", args.target_domains), ("INPUT.TRANSFORMS", args.transforms)):
        if value:
            *nodes, leaf = key.split(".")
            node = cfg
            for name in nodes:
                node = node[name]
            node[leaf] = tuple(value) if isinstance(value, list) else value
    merge_options(cfg, args.opts, open_trainer)
    if args.seed >= 0:
        cfg.SEED = args.seed
    if cfg.SEED < 0:
        cfg.SEED = random.SystemRandom().randrange(2**31)
    if not cfg.TRAINER.NAME:
        raise InputError(f"no method is named; give --trainer, one of {', '.join(TRAINER_REGISTRY.registered_names())}")
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    if issubclass(trainer, PromptTrainer):
        clean_cfg(cfg, cfg.TRAINER.NAME)
        trainer.complete_cfg(cfg)
    else:
        resolve_precision(cfg)
    if args.eval_only and getattr(trainer, "trains", True) and not args.model_dir:
        raise InputError(f"--eval-only needs --model-dir, the run folder that holds what {cfg.TRAINER.NAME} trained")
    cfg.freeze()
    return cfg


def resolve_precision(cfg):
    """PREC auto is this project's word; a foreign trainer gets the precision that it stands for."""
    for node in cfg.TRAINER.values():
        if isinstance(node, dict) and node.get("PREC") == "auto":
            node.PREC = "amp" if torch.cuda.is_available() and cfg.USE_CUDA else "fp32"


def comparable(config):
    """{dotted key: value} of a config as nested dicts, without what may differ."""
    flat = {}

    def walk(tree, prefix):
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            elif prefix + key not in NOT_COMPARED:
                flat[prefix + key] = value

    walk(config, "")
    return flat


def finished_results(cfg, evaluation):
    """The results of a finished run of this config in OUTPUT_DIR, or None when there is nothing to take over.

    Raises InputError when the folder holds a run of another config."""
    for name in ("results.json", "config.yaml"):
        path = os.path.join(cfg.OUTPUT_DIR, name)
        if not os.path.isfile(path):
            continue
        if name == "results.json":
            stored = read_json(path)
            there = {**comparable(stored["config"]), "evaluation": stored["evaluation"]}
        else:
            with open(path, encoding="utf-8") as file:
                stored, there = None, {**comparable(yaml.safe_load(file)), "evaluation": evaluation}
        here = {**comparable(plain(cfg)), "evaluation": evaluation}
        differing = [key for key in sorted({*here, *there}) if here.get(key) != there.get(key)]
        if differing:
            key = differing[0]
            raise InputError(f"{cfg.OUTPUT_DIR} holds a run of another config ({key} is {there.get(key)!r} there, "
                             f"{here.get(key)!r} here); choose another --output-dir or delete that folder")
        return stored
    return None


def plain(cfg):
    """The config as nested dicts of plain values, as it reads back from a file."""
    return yaml.safe_load(cfg.dump())


def main(argv=None, clips=None):
    """Run as the command line does and return the results.

    Args:
        argv: the words of the command line.
        clips: {backbone name: loaded CLIP}, filled and shared between calls in one process.
    Returns:
        the dict that is stored as results.json.
    Raises:
        InputError, PromptingError: something given is wrong (exit status 2 on the command line).
    """
    args = parse_arguments(argv)
    discover(args.plugin)
    cfg = build_config(args)
    evaluation = {"eval_only": args.eval_only, "load_epoch": args.load_epoch}
    results = finished_results(cfg, evaluation)
    if results is not None and not args.no_train:
        print(f"Finished before: {cfg.OUTPUT_DIR}")
        return results
    logger = setup_logger(cfg.OUTPUT_DIR)
    try:
        return run(args, cfg, evaluation, {} if clips is None else clips)
    finally:
        logger.close()


def run(args, cfg, evaluation, clips):
    """Build the trainer of a config, train or evaluate, store the results."""
    started = time.time()
    print(f"** {cfg.TRAINER.NAME} on {cfg.DATASET.NAME}, seed {cfg.SEED} **\n{collect_env_info()}")
    set_random_seed(cfg.SEED)
    context = {}
    if issubclass(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), PromptTrainer):
        name = cfg.MODEL.BACKBONE.NAME
        if name not in clips:
            clips[name] = load_clip(name)
        context["clip_model"] = clips[name]
    trainer = build_trainer(cfg, **context)
    write_config(cfg, cfg.OUTPUT_DIR)
    if args.no_train:
        return {}
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        trainer.test()
    else:
        trainer.train()
    results = {
        "trainer": cfg.TRAINER.NAME,
        "dataset": cfg.DATASET.NAME,
        "seed": cfg.SEED,
        "metrics": {split: dict(numbers) for split, numbers in getattr(trainer, "results", {}).items()},
        "evaluation": evaluation,
        "class_bound": bool(getattr(trainer, "class_bound", False)),
        "seconds": round(time.time() - started, 2),
        "device": str(trainer.device),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__,
                     "torchvision": torchvision.__version__},
        "config": plain(cfg),
    }
    results = json.loads(json.dumps(results))
    write_json(results, os.path.join(cfg.OUTPUT_DIR, "results.json"))
    return results


def command_line(function):
    """Call `function()`; what the user can mend becomes one line and exit status 2."""
    try:
        function()
    except (InputError, PromptingError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last finished epoch", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(command_line(main))
