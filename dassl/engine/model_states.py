"""What the checkpoints of a Dassl-style trainer hold: all of each registered model, its optimizer and its schedule."""
from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from dassl.engine.checkpointer import Contents
from dassl.engine.identity import check_resumed, same_training
from dassl.engine.loaders import train_loaders
from dassl.optim import go_on, require_fits
from dassl.utils import (
    InputError,
    checkpoint_to_evaluate,
    load_checkpoint,
    load_tensors,
    refusing,
    require_rng_state,
)
from dassl.utils.checkpoint_folder import Found
from dassl.utils.stored import problem_of_state

if TYPE_CHECKING:
    from dassl.engine.trainer_base import TrainerBase


class ModelStates(Contents["TrainerBase"]):
    """The registered models of a trainer, one folder for each."""

    module_prefix = True

    def folders(self) -> list[str]:
        return self.trainer.get_model_names()

    def state(self, folder: str) -> dict[str, Any]:
        model, optim, sched = self.trainer.registered_model(folder)
        return {"state_dict": model.state_dict(), "optimizer": optim.state_dict() if optim is not None else None,
                "scheduler": sched.state_dict() if sched is not None else None}

    def require_fits(self, folder: str, path: str, state: dict[str, Any]) -> None:
        if not same_training(self.trainer, state):
            return
        model, optim, sched = self.trainer.registered_model(folder)
        if problem := problem_of_state(model, state["state_dict"]):
            raise InputError(f"{path} is damaged: {problem}; delete it")
        batches = max(map(len, train_loaders(self.trainer)), default=0)
        with refusing(path, "{path} is damaged: {error}; delete it"):
            if batches and state.get("step", 0) > batches:
                raise InputError(f"it says batch {state['step']} of {batches}")
            if optim is not None and state.get("optimizer") is not None:
                require_fits(optim, sched, state["optimizer"], state.get("scheduler"), state["epoch"],
                             (state["epoch"] + 1) * max(batches, 1), same_kind=bool(state.get("made_for")))
            if "rng" in state:
                require_rng_state(state["rng"])

    def restore(self, directory: str, found: list[Found]) -> None:
        changed = check_resumed(self.trainer, *found[0])
        print(f"Found a checkpoint in {directory} (training goes on from it)")
        for name, (path, state) in zip(self.folders(), found):
            model, optim, sched = self.trainer.registered_model(name)
            load_tensors(model, state["state_dict"], path)
            with refusing(path):
                if optim is not None and state.get("optimizer") is not None:
                    go_on(optim, sched, state["optimizer"], state.get("scheduler"), changed, state["epoch"])
                elif sched is not None and state.get("scheduler") is not None:
                    sched.load_state_dict(state["scheduler"])

    def load(self, directory: str, epoch: int | None = None) -> dict[str, list]:
        """As in Contents: the best of each model, or that of `epoch`; its settings are not compared.

        Raises FileNotFoundError where there is none."""
        trainer: TrainerBase = self.trainer
        for name in self.folders():
            path = checkpoint_to_evaluate(os.path.join(directory, name), epoch, best=True)
            checkpoint = load_checkpoint(path)
            print(f'Loading weights to {name} from "{path}" (epoch = {checkpoint.get("epoch", "?")})')
            load_tensors(trainer.registered_model(name).model, checkpoint.get("state_dict"), path)
        return {}
