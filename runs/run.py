"""One run: its trainer is built, trained or evaluated, and its results are stored."""
import contextlib
import os
import time
from collections.abc import Iterator
from io import TextIOBase
from typing import Any, TextIO

import torch
from yacs.config import CfgNode

from dassl.config import own_cfg, write_config
from dassl.config.effect import RunFacts, leaf_of, note_of, without_effect
from dassl.data.datasets import keep_draws
from dassl.data.overlap import count_overlap, learned_from
from dassl.engine import TRAINER_REGISTRY, TrainerBase, build_trainer, learns
from dassl.engine.identity import check_evaluated, plain
from dassl.engine.run_folder import (
    Sources,
    checkpoint_digest,
    finished_results,
    stored_config,
)
from dassl.engine.run_record import write_logits, write_predictions
from dassl.optim import notes_on
from dassl.utils import (
    InputError,
    broadcast,
    checkpoint_files,
    collect_env_info,
    load_checkpoint,
    newest_epoch,
    remove_torn_files,
    require_own_folder,
    set_random_seed,
    setup_logger,
    write_json,
)
from prompting.backbone import describe_weights, serve_foreign_code, unpublished_note, weights_digest
from runs.build_config import BuiltConfig, default_config, flag_settings
from runs.listener import Listener
from runs.results import results_of
from runs.run_spec import RunSpec
from training.prompt_trainer import PromptTrainer
from training.store.folder import store_folder

Evaluation = dict[str, Any]  # of `what_is_evaluated`


# ---- before a run ----
def what_is_evaluated(spec: RunSpec) -> Evaluation:
    """What tells two evaluations of one config apart: the epoch and the digest of the checkpoints."""
    return {"eval_only": spec.eval_only, "load_epoch": spec.load_epoch,
            "checkpoint": checkpoint_digest(spec.model_dir, spec.load_epoch) if spec.eval_only else None}


def finished(cfg: CfgNode, evaluation: Evaluation, seen: dict | None = None) -> dict[str, Any] | None:
    """What `finished_results` says of the run of a config."""
    return finished_results(cfg, lambda: default_config(cfg), evaluation, Sources(cfg, weights_digest, seen))


@contextlib.contextmanager
def logged(folder: str, prints: TextIO | TextIOBase | None = None) -> Iterator[None]:
    """Within it what is printed also goes to the run folder's log.txt, and nothing torn is left there. prints: as of
    Listener."""
    remove_torn_files(folder)
    logger = setup_logger(folder, prints)
    try:
        yield
    finally:
        logger.close()


# ---- the run ----
def run(spec: RunSpec, built: BuiltConfig, evaluation: Evaluation, clips: dict[str, Any],
        listener: Listener) -> dict[str, Any]:
    """Build the trainer of a config, train or evaluate it, store the results.

    Args:
        spec, built: the run and its config.
        evaluation: what `what_is_evaluated` says of it.
        clips: {backbone name: loaded CLIP}, filled and shared.
        listener: who is told how far the run is.
    Returns:
        the results, as results.json holds them; {} with --no-train.
    """
    started, cfg = time.time(), built.cfg
    if torch.cuda.is_initialized():  # by an earlier run of this process
        torch.cuda.reset_peak_memory_stats()
    trainer = _trainer_of(spec, built, clips)
    TrainerBase.progress.of(trainer).listener = listener.reached
    stored = kept_config(spec, cfg)
    silent = _told_without_effect(spec, cfg, trainer)
    overlap = broadcast(lambda: begin_folder(spec, stored, trainer))
    if spec.no_train:
        return {}
    broadcast(lambda: keep_draws(getattr(getattr(trainer, "dm", None), "dataset", None), cfg.OUTPUT_DIR))
    if spec.eval_only:
        _evaluate(spec, trainer, evaluation)
    else:
        _train(trainer)
    results = results_of(spec, trainer, stored, overlap, evaluation, silent, time.time() - started)
    if counts := results.get("features"):
        print(f"Features: {counts['stored']:,} pictures from the store, {counts['computed']:,} computed "
              f"({store_folder(cfg) or 'STORE.MB 0 keeps none'})")

    def store():
        write_predictions(trainer, cfg.OUTPUT_DIR)
        write_logits(trainer, cfg.OUTPUT_DIR)
        write_json(results, os.path.join(cfg.OUTPUT_DIR, "results.json"))

    broadcast(store)
    return results


def _trainer_of(spec: RunSpec, built: BuiltConfig, clips: dict[str, Any]) -> Any:
    """The trainer of a run, with what is said before it is built."""
    cfg = built.cfg
    print(f"** {cfg.TRAINER.NAME} on {cfg.DATASET.NAME}, seed {cfg.SEED} **\n{collect_env_info()}")
    if built.owner:
        print(f"Note: {cfg.TRAINER.NAME} has no config of its own and runs with {built.owner}'s, {spec.config_file}")
    if built.taken:
        print(built.taken.told())
    set_random_seed(cfg.SEED)
    if issubclass(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), PromptTrainer):
        return build_trainer(cfg, clips=clips)
    return build_foreign(cfg)


def build_foreign(cfg: CfgNode) -> Any:
    """The trainer of a config that loads its own CLIP, with what is known of that."""
    name = cfg.MODEL.BACKBONE.NAME
    serve_foreign_code(name)
    facts = describe_weights(name)
    if note := unpublished_note(facts):
        print(note)
    trainer = build_trainer(cfg)
    trainer.backbone_facts = facts
    return trainer


def _train(trainer: Any) -> None:
    if not (isinstance(trainer, PromptTrainer) or learns(type(trainer))):
        require_nothing_to_train(trainer)
        trainer.max_epoch = trainer.start_epoch
    trainer.train()


def require_nothing_to_train(trainer: Any) -> None:
    """Raise InputError where a foreign trainer without a training step of its own registers something to train."""
    trained = [name for name in trainer.get_model_names() if trainer.registered_model(name).optim is not None]
    if trained:
        raise InputError(f"{type(trainer).__name__} registers an optimizer for {', '.join(trained)} but has no "
                         "training step: define forward_backward, or register it without an optimizer")
    print(f"Note: {type(trainer).__name__} has no training step: it is evaluated only")


def _evaluate(spec: RunSpec, trainer: Any, evaluation: Evaluation) -> None:
    """Load what a run has trained, where there is anything, and test it."""
    own, epoch = isinstance(trainer, PromptTrainer), spec.load_epoch
    if not own:
        if epoch is None:
            epoch = newest_epoch(spec.model_dir)  # a Dassl trainer by itself looks for the best epoch only
        for path in checkpoint_files(spec.model_dir, epoch):  # some load without the engine's help
            trainer.changed = check_evaluated(trainer, path, load_checkpoint(path))
    if own or learns(type(trainer)) or evaluation["checkpoint"]:
        trainer.load_model(spec.model_dir, epoch=epoch)
    trainer.test()


# ---- what is said and kept of it ----
def kept_config(spec: RunSpec, cfg: CfgNode) -> CfgNode:
    """The config as the run folder keeps it: whoever copies an output folder, or takes the config for another one, has
    the feature store there."""
    kept = own_cfg(cfg, default_config(cfg))
    if cfg.STORE.DIR == spec.store_dir:
        kept.defrost()
        kept.STORE.DIR = ""
        kept.freeze()
    return kept


def _told_without_effect(spec: RunSpec, cfg: CfgNode, trainer: Any) -> dict[str, str]:
    """Print notes on the learning-rate schedule and on settings without effect.

    Returns:
        {key or flag: why}, as `settings_without_effect` finds them.
    """
    facts = RunFacts(cfg, trainer, spec.eval_only, isinstance(trainer, PromptTrainer))
    for note in notes_on(getattr(trainer, "cfg", cfg).OPTIM) if facts.scheduled else ():
        print(f"Note: {note}")
    silent = settings_without_effect(spec, facts)
    if silent:
        print(note_of(silent))
    return silent


def settings_without_effect(spec: RunSpec, facts: RunFacts) -> dict[str, str]:
    """{key or flag: why} of what was set and acts nowhere in the run of some RunFacts."""
    given = {*spec.options[::2], *(key for _, key, _ in flag_settings(spec))}
    defaults = default_config()
    defaults.STORE.DIR = spec.store_dir
    silent = without_effect(facts, defaults, given)
    if spec.eval_only and spec.model_dir:  # what the evaluated run was trained with did act, there
        here, there = plain(facts.cfg), stored_config(spec.model_dir)
        silent = {key: why for key, why in silent.items()
                  if leaf_of(here, key) is None or leaf_of(here, key) != leaf_of(there, key)}
    for flag, value in (("--model-dir", spec.model_dir), ("--load-epoch", spec.load_epoch)):
        if value and not spec.eval_only:
            silent[flag] = "without --eval-only"
    return silent


def begin_folder(spec: RunSpec, stored: CfgNode, trainer: Any) -> dict[str, Any] | None:
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
