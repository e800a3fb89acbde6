"""How long the runs of a plan will take, about: one training step and one batch of an evaluation of each method are
made and timed, on the real data and on this machine."""
from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import isolated_rng, quiet, world_size
from protocols import Run
from runs.command_line import mendable
from runs.run import build_foreign
from tools.running.estimates import missing_weights, steps_of, uses_store
from tools.running.time_left import duration
from training.prompt_trainer import PromptTrainer

if TYPE_CHECKING:
    from tools.running.preflight import Looked, Preflight

SECONDS = 60.0  # after which no further method is begun to be timed
LONG = 5.0  # seconds of a step that is not made twice


@dataclass(frozen=True)
class Timed:
    """Seconds that a method takes: to be built, with the features of its classes; for one step of a training; for one
    batch of an evaluation; and how many images such a batch has."""

    build: float
    step: float
    evaluation: float
    batch: int

    def run(self, run: Run, looked: Looked) -> float:
        """Seconds of a run of this method."""
        cfg, parts = run.configs.of(run.spec), looked.parts
        if parts is None:
            return 0.0
        training = 0.0 if run.spec.eval_only else self.step * steps_of(cfg, parts.train)
        return self.build + training + self.evaluation * max(1.0, parts.test / self.batch)


def time_of(found: Preflight, clips: dict[str, Any], jobs: int = 1, seconds: float = SECONDS) -> str:
    """A line on how long the runs to be made will take.

    Args:
        clips: {backbone: loaded CLIP}, filled.
        jobs: runs at a time.
        seconds: after which no further method is begun to be timed.
    """
    runs = [run for run in found.having("to do") if not run.same]
    if not runs:
        return ""
    if missing := missing_weights(runs):
        return f"not measured: {', '.join(missing)} is not here yet"
    if world_size() > 1:
        return "not measured with several processes per run"
    timed, why = _time_methods(found, runs, clips, seconds)
    if not timed:
        return f"not measured: {why}"
    total, unknown = 0.0, 0
    for run in runs:
        looked = found.looked[run.folder]
        near = [each for kind, each in timed.items() if kind[:2] == _kind(run)[:2]]
        of_method = timed.get(_kind(run)) or next(iter(near), None)
        if of_method is None or looked.parts is None:
            unknown += 1
        else:
            total += of_method.run(run, looked)
    threads = torch.get_num_threads()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else (
        f"{threads} CPU thread{'s' if threads > 1 else ''}")
    at_once = f"; {jobs} at a time: {duration(total / jobs)} at best" if jobs > 1 else ""
    without = f", without {unknown} run{'s' if unknown > 1 else ''} of unknown length" if unknown else ""
    store = ", less with what the feature store has" if any(map(uses_store, runs)) else ""
    how = f"a step and a batch of an evaluation, timed {len(timed)} time{'s' if len(timed) > 1 else ''} on {device}"
    return f"about {duration(total)} one after another{at_once}{without}{store}; from {how}"


def _kind(run: Run) -> tuple[str, str, str]:
    """What the time of a step depends on, the method and its config first: a method that was not timed on a dataset is
    taken to be as fast as on another one."""
    return run.place.trainer, run.place.config, run.spec.dataset_config_file


def _time_methods(found: Preflight, runs: list[Run], clips: dict[str, Any],
                  seconds: float) -> tuple[dict[tuple, Timed], str]:
    """({kind of run: Timed}, why the last one was not timed). Every method once, then each on its other datasets while
    there is time."""
    first: dict[tuple, Run] = {}
    sizes = {run.folder: parts.train for run in runs if (parts := found.looked[run.folder].parts) is not None}
    # A training, and one with whole batches, where there is one.
    for run in sorted(runs, key=lambda run: (run.spec.eval_only, -sizes.get(run.folder, 0))):
        if run.folder in sizes:
            first.setdefault(_kind(run), run)
    methods: dict[tuple, int] = {}
    order = []
    for kind in first:
        methods[kind[:2]] = methods.get(kind[:2], -1) + 1
        order.append((methods[kind[:2]], kind))
    timed: dict[tuple, Timed] = {}
    why, until = "the data are not there yet", time.monotonic() + seconds
    for _, kind in sorted(order, key=lambda entry: entry[0]):
        if time.monotonic() < until:
            try:
                timed[kind] = time_run(first[kind], clips)
            except Exception as error:  # whatever a method needs that a run would have made before
                why = mendable(error) or f"{type(error).__name__}: {error}"
    return timed, why


def time_run(run: Run, clips: dict[str, Any]) -> Timed:
    """Build a run's trainer and make a step of it, and a batch of its evaluation. Nothing of it is kept; what it writes
    goes into a folder that is removed."""
    cfg = run.configs.of(run.spec).clone()
    cfg.defrost()
    workers, cfg.DATALOADER.NUM_WORKERS, cfg.VERBOSE = cfg.DATALOADER.NUM_WORKERS, 0, False
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, quiet(), isolated_rng(cfg.SEED):
        cfg.OUTPUT_DIR, cfg.STORE.USE = folder, False  # a store would first be filled
        cfg.freeze()
        trainer = _built(cfg, clips)
        build = time.monotonic() - started
        step = 0.0
        if getattr(trainer, "trains", True) and not run.spec.eval_only and trainer.train_loader_x is not None:
            step = _step(trainer, workers)
        trainer.set_model_mode("eval")
        batch, reading = _timed(lambda: next(iter(trainer.test_loader)))
        first, again = _answer(trainer, batch)
        evaluation = max(again, reading / workers) if workers else again + reading
        return Timed(build + max(0.0, first - again), step, evaluation, len(batch["label"]))


def _answer(trainer: Any, batch: dict[str, Any]) -> tuple[float, float]:
    """Seconds of a batch of an evaluation, the first time, with the features of the classes, and then. Of a method that
    learns from test images, and is shown one at a time, one is timed and counted for all."""
    ours = isinstance(trainer, PromptTrainer)
    alone = ours and (trainer.adapts or trainer.stateful) and not trainer.transductive
    shown = {key: value[:1] for key, value in batch.items()} if alone else batch
    more = len(batch["label"]) - 1 if alone else 0
    with torch.no_grad(), trainer.predicting() if ours else contextlib.nullcontext():
        _, first = _timed(lambda: trainer._answer(shown))
        _, again = _timed(lambda: trainer._answer(shown))
    return first + more * again, again + more * again


def _step(trainer: Any, workers: int) -> float:
    """Seconds of a training step. Workers read the next batch meanwhile; without one reading comes on top."""
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, len(trainer.train_loader_x)
    trainer.before_epoch()
    trainer.set_model_mode("train")
    next(iter(trainer.train_loader_x))  # the first epoch decodes the pictures, the others find them in memory
    batch, reading = _timed(lambda: next(iter(trainer.train_loader_x)))
    _, step = _timed(lambda: trainer.forward_backward(batch))
    if step < LONG:  # else that it warms up is no matter
        _, step = _timed(lambda: trainer.forward_backward(batch))
    return max(step, reading / workers) if workers else step + reading


def _built(cfg: Any, clips: dict[str, Any]) -> Any:
    if issubclass(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), PromptTrainer):
        return build_trainer(cfg, clips=clips)
    return build_foreign(cfg)


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """(what a call gives, its seconds)"""
    started = time.monotonic()
    given = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return given, time.monotonic() - started
