"""Runs whose numbers are known from another one: a method that reads no training image gives the same for every seed
and number of shots. Its run is made once for each test set; the folders of the others are filled from that one."""
import os
import shutil
import time
from typing import Any

from yacs.config import CfgNode

from dassl.config import write_config
from dassl.data.datasets import build_dataset, dataset_digest
from dassl.engine.identity import plain
from dassl.engine.run_folder import flat
from dassl.engine.run_record import PREDICTIONS
from dassl.utils import (
    FolderLock,
    open_own,
    open_regular,
    read_json,
    remove_torn_files,
    write_atomically,
    write_json,
)
from protocols import Run
from runs.results import who
from runs.run import kept_config, what_is_evaluated

COPIED = (PREDICTIONS, "logits.npz", "cmat.pt")  # what an evaluation leaves beside its results
FREE = {"SEED", "DATASET.NUM_SHOTS"}


def filled(run: Run, finished: dict[str, Any]) -> dict[str, Any] | None:
    """The results of a run, taken from the run in `run.same`, with its folder as if it had been made; None where that
    run has not been made or differs in more than seed and shots.

    The dataset's lists are built as for the run itself: the test images and the class names must be those of the other.

    Args:
        run: a Run with `same`.
        finished: the results in `run.same`.
    """
    cfg = run.configs.of(run.spec)
    if not _differ_in_seed_and_shots_only(cfg, finished["config"]):
        return None
    if finished["evaluation"] != what_is_evaluated(run.spec):
        return None
    with FolderLock(run.folder):
        remove_torn_files(run.folder)
        dataset = build_dataset(cfg)
        digest = dataset_digest(dataset, cfg.DATASET.ROOT)
        same_names = (finished.get("classes") or {}).get("name") == list(dataset.classnames)
        if digest["test"] != (finished.get("dataset_digest") or {}).get("test") or not same_names:
            return None
        _write_folder(run, cfg, {**finished, "seed": cfg.SEED, "run": who(run.spec, cfg), "dataset_digest": digest})
    return read_json(os.path.join(run.folder, "results.json"))


def _differ_in_seed_and_shots_only(cfg: CfgNode, stored: dict[str, Any]) -> bool:
    """Whether a config asks for what a stored one did, seed and shots aside."""
    here, there = flat(plain(cfg)), flat(stored)
    return all(here.get(key) == there[key] for key in there.keys() - FREE)


def _write_folder(run: Run, cfg: CfgNode, results: dict[str, Any]) -> None:
    """Write what a run leaves in its folder, with the files of `run.same` in the place of its own; the results last."""
    shots = {**results["config"]["DATASET"], "NUM_SHOTS": cfg.DATASET.NUM_SHOTS}
    config = {**results["config"], "OUTPUT_DIR": cfg.OUTPUT_DIR, "SEED": cfg.SEED, "DATASET": shots}
    same_as = os.path.relpath(run.same, run.folder).replace(os.sep, "/")
    write_config(kept_config(run.spec, cfg), run.folder)
    for name in COPIED:
        if os.path.isfile(os.path.join(run.same, name)):
            with open_regular(os.path.join(run.same, name)) as stored:
                write_atomically(os.path.join(run.folder, name),
                                 lambda file, stored=stored: shutil.copyfileobj(stored, file))
    with open_own(os.path.join(run.folder, "log.txt"), "a", encoding="utf-8") as log:
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {cfg.TRAINER.NAME} reads no training image: the numbers, "
                  f"and the seconds, are those of {run.same}\n")
    write_json({**results, "config": config, "same_as": same_as}, os.path.join(run.folder, "results.json"))
