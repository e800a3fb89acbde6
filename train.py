"""Train or evaluate one run.

    python train.py --root data --seed 1 --trainer MetaPrompt --dataset-config-file configs/datasets/caltech101.yaml \\
        --config-file configs/trainers/MetaPrompt/vit_b16.yaml --output-dir output/run DATASET.NUM_SHOTS 16

A run folder that is finished (it holds results.json) is not run again; one that was interrupted goes on.
"""
import argparse
import contextlib
import functools
import json
import os
import random
import re
import signal
import sys
import threading
import time

import torch

import datasets
import trainers
from dassl.config import (
    check_config,
    clean_cfg,
    config_layers,
    copied,
    get_cfg_default,
    merge_file,
    merge_flag,
    merge_options,
    merge_text,
    methods_of,
    own_cfg,
    paired,
    write_config,
)
from dassl.config.effect import RunFacts, leaf_of, note_of, without_effect
from dassl.data.datasets import DATASET_REGISTRY, keep_draws
from dassl.data.overlap import count_overlap, evaluated_part, learned_from
from dassl.data.samplers import SAMPLER_REGISTRY
from dassl.engine import TRAINER_REGISTRY, build_trainer, learns
from dassl.engine.identity import allowed_changes, check_evaluated, plain
from dassl.engine.run_folder import (
    Sources,
    checkpoint_digest,
    checkpoint_files,
    finished_results,
    newest_epoch,
    stored_config,
)
from dassl.engine.run_record import describe_run, predictions_of, write_logits, write_predictions
from dassl.evaluation import EVALUATOR_REGISTRY
from dassl.metrics import deciding
from dassl.optim import notes_on
from dassl.utils import (
    FolderLock,
    InputError,
    Terminated,
    broadcast,
    collect_env_info,
    escaped_streams,
    first_to_tell,
    import_package_modules,
    joined,
    load_checkpoint,
    load_entry_points,
    load_plugin,
    lost_another,
    rank_zero_within,
    remove_torn_files,
    require_own_folder,
    set_random_seed,
    setup_logger,
    sigterm_raises,
    surroundings,
    write_json,
)
from dassl.utils.streams import ReaderGone, end_quietly, go_on, watched_streams
from prompting import PromptingError
from prompting.backbone import describe_weights, serve_foreign_code, unpublished_note, weights_digest
from prompting.templates import check_templates
from training.prompt_trainer import PromptTrainer, options_set
from training.run_spec import RunSpec

REGISTRIES = (TRAINER_REGISTRY, DATASET_REGISTRY, SAMPLER_REGISTRY, EVALUATOR_REGISTRY)
CONFIGS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs")
TOP_LEVEL_KEYS = ("VERSION", "OUTPUT_DIR", "RESUME", "SEED", "USE_CUDA", "VERBOSE")


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose complaints are InputErrors."""

    def error(self, message):
        raise InputError(f"{message}; see --help")


def is_key(word):
    """Whether a word of the command line is a config key."""
    return word in TOP_LEVEL_KEYS or re.fullmatch(r"[A-Z0-9_]+(\.[A-Z0-9_]+)+", word) is not None


def is_flag(word):
    return re.match(r"--[A-Za-z]|-h$", word) is not None


def parse_words(parser, argv):
    """The arguments of a command line whose flags and options stand in any order; `opts` becomes [KEY, VALUE, ...].

    A flag that takes several words ends before the next flag or option.

    Args:
        parser: an ArgumentParser with the positional argument `opts` (`add_options`).
    Raises:
        InputError: an unknown flag, or an option without a value.
    """
    words, flags, options = list(argv), [], []
    while words:
        word = words.pop(0)
        if is_flag(word):
            flags.append(word)
            most = 0 if "=" in word else _most_words(parser, word)
            while most and words and not is_flag(words[0]) and not (most > 1 and is_key(words[0].partition("=")[0])):
                flags.append(words.pop(0))
                most -= 1
        elif word == "--" or "=" in word:
            options.append(word)
        elif words and is_flag(words[0]):
            raise InputError(f"options come in pairs KEY VALUE; '{word}' has no value, {words[0]} follows")
        else:
            options += [word, *words[:1]]
            del words[:1]
    args = parser.parse_args(flags)
    args.opts = paired(options)
    return args


def _most_words(parser, flag):
    """How many words a flag takes at most; argparse takes a flag's first letters, too, where they are enough."""
    known = parser._option_string_actions
    action = known.get(flag) or next((action for name, action in known.items() if name.startswith(flag)), None)
    if action is None or action.nargs == 0:
        return 0
    return action.nargs if isinstance(action.nargs, int) else 1 if action.nargs in (None, "?") else float("inf")


def add_options(parser, help="config options: KEY VALUE or KEY=VALUE ..."):
    parser.add_argument("opts", nargs="*", default=[], metavar="OPTION", help=help)


def parse_arguments(argv) -> RunSpec:
    """The RunSpec of a command line."""
    given = vars(parse_words(_parser(), sys.argv[1:] if argv is None else argv))
    return RunSpec(**{{"plugin": "plugins", "opts": "options"}.get(name, name):
                      tuple(value) if isinstance(value, list) else value for name, value in given.items()})


@functools.cache
def _parser():
    parser = ArgumentParser(description="Train or evaluate one run.",
                            epilog="Other words are config options, KEY VALUE or KEY=VALUE. Started by torchrun, "
                                   "several processes make one run together; see docs/SCALING.md.")
    parser.add_argument("--root", default="", help="folder that holds the datasets (DATASET.ROOT)")
    parser.add_argument("--output-dir", default="", help="run folder (OUTPUT_DIR)")
    parser.add_argument("--resume", default="", help="run folder to go on from, when it is not --output-dir")
    parser.add_argument("--seed", type=int, default=-1, help="seed of every draw; negative: drawn and printed")
    parser.add_argument("--source-domains", nargs="+", default=[], help="training domains")
    parser.add_argument("--target-domains", nargs="+", default=[], help="test domains")
    parser.add_argument("--transforms", nargs="+", default=[], help="transforms of training images (INPUT.TRANSFORMS)")
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
    parser.add_argument("--skip-bad-images", action="store_true",
                        help="leave unreadable images out and list them in results.json (DATASET.SKIP_BAD_IMAGES)")
    add_options(parser)
    return parser


def discover(plugins=()):
    """Fill the registries: this project's files, installed plugins, then the files or modules named."""
    import_package_modules(trainers)
    import_package_modules(datasets)
    load_entry_points(registries=REGISTRIES)
    for spec in plugins:
        load_plugin(spec, registries=REGISTRIES)


def declares_config(trainer):
    """Whether a trainer class has an `extend_cfg` of its own."""
    return getattr(trainer, "extend_cfg", PromptTrainer.extend_cfg) is not PromptTrainer.extend_cfg


def default_config(run=None):
    """The engine's defaults and those of every known method; those that a run's own config began from where that is
    given (`resolve_precision`)."""
    cfg = copied(_extended(_extensions()))
    if run is not None and not issubclass(TRAINER_REGISTRY.get(run.TRAINER.NAME), PromptTrainer):
        cfg.USE_CUDA = run.USE_CUDA
        resolve_precision(cfg)
        cfg.USE_CUDA = True
    return cfg


def _extensions():
    """What each known method adds to the config, in order."""
    trainers = (*TRAINER_REGISTRY.replaced.values(), *(trainer for _, trainer in TRAINER_REGISTRY.items()))
    return tuple(trainer.extend_cfg for trainer in trainers if declares_config(trainer))


@functools.lru_cache(maxsize=4)  # a plugin makes another one
def _extended(extensions):
    """The defaults with what methods add to them, not to be changed."""
    cfg = get_cfg_default()
    for extend in extensions:
        extend(cfg)
    return cfg


@functools.lru_cache(maxsize=64)
def _with_files(extensions, files, open_trainer):
    """The defaults with config files merged into them, not to be changed: runs of a sweep share them, and a file that
    changes is another text. files: `config_layers` of each."""
    cfg = copied(_extended(extensions))
    for path, text in files:
        merge_text(cfg, text, path, open_trainer)
    return cfg


def named_trainer(spec):
    """The method's name: an option, the flag, or what a config file says."""
    name = spec.settings().get("TRAINER.NAME") or spec.trainer
    for path in (spec.config_file, spec.dataset_config_file):
        if path and not name:
            peek = get_cfg_default()
            merge_file(peek, path, open_trainer=True)
            name = peek.TRAINER.NAME
    return name


def registered_name(method):
    """The registered name of a method that is written in capitals; as it is where there is none."""
    return next((name for name in TRAINER_REGISTRY.registered_names() if name.upper() == method), method)


def owner_of_config(path, name):
    """The one other method that a config file is for where the method `name`, which has no folder of configs, may run
    with it all the same; else "".

    Raises:
        InputError: the file is another method's, and `name` has configs of its own."""
    owners = methods_of(path)
    if len(owners) != 1 or name.upper() in owners:
        return ""
    owner = registered_name(*owners)
    # The folder of configs is that of our method, not of a plugin's that has its name.
    if os.path.isdir(os.path.join(CONFIGS, "trainers", name)) and name not in TRAINER_REGISTRY.replaced:
        raise InputError(f"config {path} is for {owner}, not for {name}, which would run with {owner}'s settings and "
                         f"its own defaults; give one of {os.path.join('configs', 'trainers', name)}, or a file that "
                         f"sets TRAINER.{name.upper()}")
    return owner


def build_config(spec):
    """The frozen config of a run: defaults, dataset file, method file, flags, options, in this order."""
    name = named_trainer(spec)
    if not name:
        raise InputError(f"no method is named; give --trainer, one of {', '.join(TRAINER_REGISTRY.registered_names())}")
    # A plugin that declares no keys of its own may bring any under TRAINER.
    trainer = TRAINER_REGISTRY.get(name)
    open_trainer = not declares_config(trainer)
    if spec.config_file:
        owner_of_config(spec.config_file, name)
    files = tuple(layer for path in (spec.dataset_config_file, spec.config_file) if path
                  for layer in config_layers(path))
    cfg = copied(_with_files(_extensions(), files, open_trainer))
    for flag, key, value in flag_settings(spec):
        merge_flag(cfg, key, value, flag)
    merge_options(cfg, spec.options, open_trainer)
    check_config(cfg)
    check_templates(cfg.DATASET.TEMPLATES, "DATASET.TEMPLATES")
    if "USE_CUDA" in spec.options[::2] and cfg.USE_CUDA and not torch.cuda.is_available():
        raise InputError("option: USE_CUDA True asks for a GPU, but torch sees none; leave it out to run on the CPU")
    if spec.seed >= 0:
        cfg.SEED = spec.seed
    if cfg.SEED >= 2**63:
        raise InputError(f"the seed must be below 2^63, not {cfg.SEED}")
    if cfg.SEED < 0:
        cfg.SEED = broadcast(lambda: random.SystemRandom().randrange(2**31))
    if cfg.DATASET.CLASSNAMES:
        cfg.DATASET.CLASSNAMES = os.path.abspath(cfg.DATASET.CLASSNAMES)
    if os.path.isfile(cfg.MODEL.BACKBONE.NAME):
        cfg.MODEL.BACKBONE.NAME = os.path.abspath(cfg.MODEL.BACKBONE.NAME)
    if issubclass(trainer, PromptTrainer):
        clean_cfg(cfg, cfg.TRAINER.NAME)
        trainer.complete_cfg(cfg)
        own = cfg.TRAINER.get(cfg.TRAINER.NAME.upper(), {}).get("TEMPLATES", ())
        if not isinstance(own, str):  # which would be the name of a list
            check_templates(own, f"TRAINER.{cfg.TRAINER.NAME.upper()}.TEMPLATES")
    else:
        resolve_precision(cfg)
        if options := options_set(cfg):
            raise InputError(f"{', '.join(options)}: {cfg.TRAINER.NAME} is no PromptTrainer and makes its training "
                             "steps itself, so that nothing would come of it; leave it out")
    allowed_changes(cfg)
    if spec.eval_only and issubclass(trainer, PromptTrainer) and trainer.trains and not spec.model_dir:
        raise InputError(f"--eval-only needs --model-dir, the run folder that holds what {cfg.TRAINER.NAME} trained")
    cfg.freeze()
    return cfg


def flag_settings(spec):
    """[(flag, key, value)] of the flags that were given and stand for a config key."""
    keys = {"root": "DATASET.ROOT", "output_dir": "OUTPUT_DIR", "resume": "RESUME", "trainer": "TRAINER.NAME",
            "backbone": "MODEL.BACKBONE.NAME", "head": "MODEL.HEAD.NAME", "source_domains": "DATASET.SOURCE_DOMAINS",
            "target_domains": "DATASET.TARGET_DOMAINS", "transforms": "INPUT.TRANSFORMS",
            "skip_bad_images": "DATASET.SKIP_BAD_IMAGES"}
    return [(f"--{name.replace('_', '-')}", key, value) for name, key in keys.items() if (value := getattr(spec, name))]


def resolve_precision(cfg):
    """PREC auto is this project's word; a foreign trainer gets the precision that it stands for."""
    for node in cfg.TRAINER.values():
        if isinstance(node, dict) and node.get("PREC") == "auto":
            node.PREC = "amp" if torch.cuda.is_available() and cfg.USE_CUDA else "fp32"


def main(argv=None, clips=None, seen=None):
    """Run as the command line does and return the results.

    Args:
        argv: the words of the command line, or a RunSpec.
        clips: {backbone name: loaded CLIP}, filled and shared between calls in one process.
        seen: {}, filled and shared between the calls of one protocol: what its runs' datasets list.
    Returns:
        the dict that is stored as results.json.
    Raises:
        InputError, PromptingError: something given is wrong (exit status 2 on the command line).
    """
    spec = argv if isinstance(argv, RunSpec) else parse_arguments(argv)
    discover(spec.plugins)
    cfg = build_config(spec)
    evaluation = what_is_evaluated(spec)
    results = broadcast(lambda: finished(cfg, evaluation, seen))
    if results is None or spec.no_train:
        with sigterm_raises(), rank_zero_within(lambda: FolderLock(cfg.OUTPUT_DIR)):
            # Asked again: the process that held the lock before may just have finished this very run.
            results = broadcast(lambda: finished(cfg, evaluation, seen))
            if results is None or spec.no_train:
                with rank_zero_within(lambda: logged(cfg.OUTPUT_DIR)):
                    return run(spec, cfg, evaluation, {} if clips is None else clips)
    print(f"Finished before: {cfg.OUTPUT_DIR}")
    return results


def finished(cfg, evaluation, seen=None):
    """What `finished_results` says of the run of a config."""
    return finished_results(cfg, lambda: default_config(cfg), evaluation, Sources(cfg, weights_digest, seen))


@contextlib.contextmanager
def logged(folder):
    """Within it what is printed also goes to the run folder's log.txt, and nothing torn is left there."""
    remove_torn_files(folder)
    logger = setup_logger(folder)
    try:
        yield
    finally:
        logger.close()


def what_is_evaluated(spec):
    """What tells two evaluations of one config apart: the epoch and the digest of the checkpoints."""
    return {"eval_only": spec.eval_only, "load_epoch": spec.load_epoch,
            "checkpoint": checkpoint_digest(spec.model_dir, spec.load_epoch) if spec.eval_only else None}


def run(spec, cfg, evaluation, clips):
    """Build the trainer of a config, train or evaluate, store the results."""
    started = time.time()
    if torch.cuda.is_initialized():  # by an earlier run of this process
        torch.cuda.reset_peak_memory_stats()
    print(f"** {cfg.TRAINER.NAME} on {cfg.DATASET.NAME}, seed {cfg.SEED} **\n{collect_env_info()}")
    if spec.config_file and (owner := owner_of_config(spec.config_file, cfg.TRAINER.NAME)):
        print(f"Note: {cfg.TRAINER.NAME} has no config of its own and runs with {owner}'s, {spec.config_file}")
    set_random_seed(cfg.SEED)
    if issubclass(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), PromptTrainer):
        trainer = build_trainer(cfg, clips=clips)
    else:
        trainer = build_foreign(cfg)
    facts = RunFacts(cfg, trainer, spec.eval_only, isinstance(trainer, PromptTrainer))
    for note in notes_on(cfg.OPTIM) if facts.scheduled else ():
        print(f"Note: {note}")
    silent, stored = settings_without_effect(spec, facts), own_cfg(cfg, default_config(cfg))
    if silent:
        print(note_of(silent))
    overlap = broadcast(lambda: begin_folder(spec, stored, trainer))
    if spec.no_train:
        return {}
    broadcast(lambda: keep_draws(getattr(getattr(trainer, "dm", None), "dataset", None), cfg.OUTPUT_DIR))
    if spec.eval_only:
        epoch = spec.load_epoch
        if epoch is None and not isinstance(trainer, PromptTrainer):
            epoch = newest_epoch(spec.model_dir)  # a Dassl trainer by itself looks for the best epoch only
        if not isinstance(trainer, PromptTrainer):  # some load without the engine's help
            for path in checkpoint_files(spec.model_dir, epoch):
                trainer.changed = check_evaluated(trainer, path, load_checkpoint(path))
        if isinstance(trainer, PromptTrainer) or learns(type(trainer)) or evaluation["checkpoint"]:
            trainer.load_model(spec.model_dir, epoch=epoch)
        trainer.test()
    else:
        if not (isinstance(trainer, PromptTrainer) or learns(type(trainer))):
            require_nothing_to_train(trainer)
            trainer.max_epoch = trainer.start_epoch
        trainer.train()
    results = {
        "trainer": cfg.TRAINER.NAME,
        "dataset": cfg.DATASET.NAME,
        "seed": cfg.SEED,
        "metrics": measured(trainer),
        "overlap": overlap,
        "evaluation": evaluation,
        "changed": trainer.changed,
        "stopped": trainer.stopped,
        "class_bound": bool(getattr(trainer, "class_bound", False)),
        "seconds": round(time.time() - started, 2),
        **describe_run(trainer),
        "config": plain(stored),
    }
    if silent:
        results["without_effect"] = list(silent)
    if cfg.MODEL.INIT_WEIGHTS:
        results["init_weights"] = weights_digest(cfg.MODEL.INIT_WEIGHTS)
    if cfg.DATASET.SKIP_BAD_IMAGES:
        results["skipped_images"] = getattr(getattr(trainer, "dm", None), "skipped_images", {})
    results = json.loads(json.dumps(results))

    def store():
        write_predictions(trainer, cfg.OUTPUT_DIR)
        write_logits(trainer, cfg.OUTPUT_DIR)
        write_json(results, os.path.join(cfg.OUTPUT_DIR, "results.json"))

    broadcast(store)
    return results


def build_foreign(cfg):
    """The trainer of a config that loads its own CLIP, with what is known of that."""
    name = cfg.MODEL.BACKBONE.NAME
    serve_foreign_code(name)
    facts = describe_weights(name)
    if note := unpublished_note(facts):
        print(note)
    trainer = build_trainer(cfg)
    trainer.backbone_facts = facts
    return trainer


def settings_without_effect(spec, facts):
    """{key or flag: why} of what was set and acts nowhere in the run of some RunFacts."""
    given = {*spec.options[::2], *(key for _, key, _ in flag_settings(spec))}
    silent = without_effect(facts, default_config(), given)
    if spec.eval_only and spec.model_dir:  # what the evaluated run was trained with did act, there
        here, there = plain(facts.cfg), stored_config(spec.model_dir)
        silent = {key: why for key, why in silent.items()
                  if leaf_of(here, key) is None or leaf_of(here, key) != leaf_of(there, key)}
    for flag, value in (("--model-dir", spec.model_dir), ("--load-epoch", spec.load_epoch)):
        if value and not spec.eval_only:
            silent[flag] = "without --eval-only"
    return silent


def begin_folder(spec, stored, trainer):
    """Write what a run folder holds from the start: its config, and the list of the images it learns from. Returns what
    `count_overlap` gives, or raises as it does, before anything is written.

    stored: the config as the folder keeps it."""
    images = learned_from(trainer, spec.eval_only, spec.model_dir)
    overlap = count_overlap(trainer, images, spec.eval_only)
    for name in () if spec.eval_only or spec.no_train else ("tensorboard", *trainer.get_model_names()):
        require_own_folder(os.path.join(stored.OUTPUT_DIR, name))
    write_config(stored, stored.OUTPUT_DIR)
    if images is not None and not spec.eval_only and not spec.no_train:
        images.write(stored.OUTPUT_DIR)
    return overlap


def require_nothing_to_train(trainer):
    """Raise InputError where a foreign trainer without a training step of its own registers something to train."""
    trained = [name for name in trainer.get_model_names() if trainer._optims[name] is not None]
    if trained:
        raise InputError(f"{type(trainer).__name__} registers an optimizer for {', '.join(trained)} but has no "
                         "training step: define forward_backward, or register it without an optimizer")
    print(f"Note: {type(trainer).__name__} has no training step: it is evaluated only")


def measured(trainer):
    """{split: {name: number}} of a trainer's evaluations; of its evaluator's last where it has a `test` of its own."""
    dataset, last = getattr(getattr(trainer, "dm", None), "dataset", None), getattr(trainer.evaluator, "last_results",
                                                                                    None)
    asked = evaluated_part(trainer.cfg, dataset) if dataset is not None else "test"
    found = getattr(trainer, "results", None)
    if not found:
        parts = [part for part in (asked, "test", "val", "train") if predictions_of(trainer, part) is not None]
        found = {next(iter(parts), "test"): last} if last else {}
    if found and asked not in found and not trainer.cfg.TEST.NO_TEST:
        print(f"Note: TEST.SPLIT asks for the {asked} part, but {type(trainer).__name__} has a test() of its own that "
              f"evaluated the {' and '.join(found)} part")
    for numbers in filter(None, found.values()):
        deciding(numbers)
    return {split: {name: float(value) for name, value in numbers.items()} for split, numbers in found.items()}


def mendable(error):
    """One line for an error that the user can mend, None for a bug."""
    if isinstance(error, (InputError, PromptingError)):
        return " ".join(str(error).split())
    return surroundings(error)


def command_line(function, unread=end_quietly):
    """Call `function()`; what the user can mend becomes one line and exit status 2. What is printed is escaped
    (dassl/utils/text.py).

    Where torchrun has started several processes, they make what `function` does together, and whichever is the first
    to end early tells why.

    unread: what becomes of a program whose output nobody reads any more, `end_quietly` or `go_on`."""
    try:
        with watched_streams(unread), escaped_streams(), threads_told():
            return _status_of(function)
    except ReaderGone as gone:
        return gone.code


def _status_of(function):
    """The exit status of a call of `function()`; what ends it is told."""
    try:
        with joined():
            function()
            sys.stdout.flush()  # a full disk is told as one below
    except (KeyboardInterrupt, Terminated) as stop:
        if lost := lost_another(stop.__context__):  # torchrun's signal, while this process was ending for that reason
            return tell_lost(lost)
        tell("interrupted; the same command goes on from the last checkpoint")
        return 130 if isinstance(stop, KeyboardInterrupt) else stop.code
    except Exception as error:
        if lost := lost_another(error):
            return tell_lost(lost)
        line = mendable(error)
        if line is None:
            if not first_to_tell():
                return 1
            raise
        tell(f"error: {line}")
        return 2
    return 0


@contextlib.contextmanager
def threads_told():
    """Within it what a library's thread dies of (TensorBoard's, of a full disk) is told as `command_line` tells it."""
    former = threading.excepthook

    def told(death):
        line = mendable(death.exc_value)
        if line is None:
            former(death)
        else:
            print(f"Warning: {line}", file=sys.stderr)

    threading.excepthook = told
    try:
        yield
    finally:
        threading.excepthook = former


def tell_lost(reason):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it now, and this process is at its end
    tell("error: another process of this run has ended, or cannot be reached; the same command goes on from the last "
         f"checkpoint ({reason})")
    return 1


def tell(line):
    """Print a line that ends this run, once for all its processes."""
    if first_to_tell():
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(command_line(main, unread=go_on))
