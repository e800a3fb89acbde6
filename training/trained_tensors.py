"""What the checkpoints of a PromptTrainer hold: the trained tensors only, with what a run needs to go on."""
from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil
import torch

from dassl.engine.checkpointer import Contents, require_found
from dassl.engine.identity import check_evaluated, check_resumed, same_training
from dassl.optim import go_on, require_fits
from dassl.utils import (
    InputError,
    checkpoint_to_evaluate,
    is_class_bound,
    load_checkpoint,
    refusing,
    require_rng_state,
    world_size,
)
from dassl.utils.checkpoint_folder import Found
from dassl.utils.stored import problem_of_values

if TYPE_CHECKING:
    from training.prompt_trainer import PromptTrainer

FOLDER = "prompt_learner"
NEEDED = ("precision", "optimizers", "schedules", "threads", "activation_bytes", "best_result", "step", "rng")
State = dict[str, Any]
Tensors = dict[str, torch.Tensor]


class TrainedTensors(Contents["PromptTrainer"]):
    """The trained tensors of a PromptTrainer with the states of its optimizers and schedules, the loss scale, how it
    computes, and what the method keeps besides (`extra_state`), in one folder."""

    def folders(self) -> list[str]:
        return [FOLDER] if self.trainer.trains else []

    def state(self, folder: str) -> State:
        trainer = self.trainer
        return {
            "trainer": type(trainer).__name__,
            "classnames": list(trainer.dm.dataset.classnames),
            "state_dict": trainer.trained_state(),
            "optimizers": [optim.state_dict() for optim, _ in trainer.optimizers],
            "schedules": [sched.state_dict() for _, sched in trainer.optimizers],
            "precision": trainer.precision.state_dict(),
            "ranks": world_size(),
            "threads": torch.get_num_threads(),
            "activation_bytes": trainer.towers.text.activation_bytes,
            "extra": trainer.extra_state(),
        }

    # ---- going on ----
    def require_fits(self, folder: str, path: str, state: State) -> None:
        trainer = self.trainer
        if state.get("trainer") != type(trainer).__name__ or not same_training(trainer, state):
            return
        self._fitting(path, state)
        with refusing(path, "{path} is damaged: {error}; delete it"):
            lacking = [key for key in NEEDED if key not in state]
            if lacking:
                raise KeyError(lacking[0])
            epoch, step, best_epoch = state["epoch"], state["step"], state.get("best_epoch", 0)
            batches = len(trainer.train_loader_x) if trainer.train_loader_x is not None else 0
            if batches and step > batches or best_epoch > epoch:
                raise InputError(f"it says batch {step} of {batches}, best epoch {best_epoch} of {epoch}")
            for (optim, sched), optim_state, sched_state in zip(trainer.optimizers, state["optimizers"],
                                                                state["schedules"], strict=True):
                require_fits(optim, sched, optim_state, sched_state, epoch, (epoch + 1) * max(batches, 1),
                             same_kind=bool(state.get("made_for")))
            require_rng_state(state["rng"])
            trainer.load_extra_state(state.get("extra", {}))  # another checkpoint's takes its place

    def restore(self, directory: str, found: list[Found]) -> None:
        trainer, (path, state) = self.trainer, found[0]
        changed = self._put(path, state, check_resumed)
        with refusing(path):
            for (optim, sched), optim_state, sched_state in zip(trainer.optimizers, state["optimizers"],
                                                                state["schedules"], strict=True):
                go_on(optim, sched, optim_state, sched_state, changed, state["epoch"])
            trainer.precision.load_state_dict(state["precision"])
            if state.get("ranks", 1) == world_size():  # with another number all is rounded differently anyway
                self._compute_as(state["threads"], state["activation_bytes"])
            step = f", batch {state['step']}" if state["step"] else ""
        print(f"Resuming from {os.path.join(directory, FOLDER)} after epoch {state['epoch']}{step}")

    def _compute_as(self, threads: int, activation_bytes: int) -> None:
        """Take the number of threads and the size of chunks that the run began with, as other ones round differently;
        those of a larger machine are said and left."""
        device, text = self.trainer.device, self.trainer.towers.text
        memory = (torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else
                  psutil.virtual_memory().total)
        cores, now = os.cpu_count() or 1, torch.get_num_threads()
        for name, before, here, most in (("threads", threads, now, cores),
                                         ("bytes at a time", activation_bytes, text.activation_bytes, memory)):
            if before > most and before != here:
                print(f"Warning: the run was computed with {before:,} {name}, more than this machine has ({most:,}); "
                      f"it goes on with {here:,}, and its numbers may be rounded otherwise")
        if threads <= cores and threads != now:
            print(f"Note: computed with {threads} threads, as the run began, not with {now}")
            torch.set_num_threads(threads)
        if activation_bytes <= memory:  # a smaller setting is what a run that ran out of memory was told to take
            setting = self.trainer.cfg.TRAIN.TEXT_MEMORY_MB * 2**20
            text.activation_bytes = min(activation_bytes, setting or activation_bytes)

    # ---- evaluating ----
    def load(self, directory: str, epoch: int | None = None) -> dict[str, list]:
        """As in Contents: those of `epoch`, else the best on validation if kept, else the newest.

        Raises:
            InputError: there is no such checkpoint, or it is another method's, or was trained with another backbone or
                other settings (`dassl.engine.identity`), or is of another shape.
        """
        folder, best = os.path.join(directory, FOLDER), self.trainer.cfg.TEST.FINAL_MODEL == "best_val"
        path = require_found(checkpoint_to_evaluate(folder, epoch, best), folder)
        state = load_checkpoint(path)
        changed = self._put(path, state, check_evaluated)
        self.trainer.note(f"Loaded {path} (epoch {state.get('epoch', '?')})")
        return changed

    def _put(self, path: str, state: State, check: Callable[[PromptTrainer, str, State], Any]) -> Any:
        """Put a checkpoint's trained tensors in their places. Returns what `check(trainer, path, state)` gives, which
        compares what it was trained for."""
        trainer = self.trainer
        _named_tensors(path, state)
        answer = check(trainer, path, state) if state.get("trainer") == type(trainer).__name__ else None
        tensors, own = self._fitting(path, state)
        trained_on, classes = list(state.get("classnames", [])), list(trainer.dm.dataset.classnames)
        extra = state.get("extra", {})
        by_name = isinstance(extra, dict) and "rows" in extra and all(name in trained_on for name in classes)
        if is_class_bound(trainer, trainer.cfg) and trained_on != classes and not by_name:
            raise InputError(f"{path} was trained on other classes ({', '.join(trained_on[:3])}, ...), and "
                             f"what {type(trainer).__name__} learns with this config belongs to its classes")
        for name, tensor in tensors.items():
            own[name].data.copy_(tensor)
        with refusing(path, "{path} is damaged: {error}; train again"):
            trainer.load_extra_state(extra)
        trainer.forget_class_features()
        return answer

    # ---- stored tensors and parameters ----
    def _fitting(self, path: str, state: State) -> tuple[Tensors, Tensors]:
        """({name: stored tensor}, {name: parameter}) of what is trained and belongs to these classes.

        Raises InputError where their names or shapes differ, or a stored value cannot be one of the parameter."""
        trainer, method = self.trainer, type(self.trainer).__name__
        tensors: Tensors = _named_tensors(path, state)
        own: Tensors = dict(trainer.trained_tensors())
        if trainer.class_tensors and list(state.get("classnames", ())) != list(trainer.dm.dataset.classnames):
            own, tensors = ({n: t for n, t in named.items() if not n.startswith(trainer.class_tensors)}
                            for named in (own, tensors))
        if state.get("trainer") != method or set(tensors) != set(own):
            raise InputError(f"{path} holds {state.get('trainer', 'another kind of trainer')} with "
                             f"{', '.join(sorted(map(str, tensors)))[:300]}; {method} needs {', '.join(sorted(own))}")
        for name, tensor in tensors.items():
            if tensor.shape != own[name].shape:
                hint = ("it belongs to the classes it was trained on" if is_class_bound(trainer, trainer.cfg) else
                        "use the config it was trained with")
                raise InputError(f"{path}: {name} has shape {tuple(tensor.shape)}, this run needs "
                                 f"{tuple(own[name].shape)}; {hint}")
            if problem := problem_of_values(tensor, own[name]):
                raise InputError(f"{path}: {name} {problem}; train again")
        return tensors, own


def _named_tensors(path: str, state: State) -> Tensors:
    """The state_dict of a checkpoint. Raises InputError where it holds no named tensors."""
    tensors = state.get("state_dict", {})
    if not isinstance(tensors, dict) or not all(torch.is_tensor(tensor) for tensor in tensors.values()):
        raise InputError(f"{path} is not a checkpoint of prompts: its state_dict does not hold named tensors")
    return tensors
