"""TrainerBase: registered models with their optimizers, the epoch loop with its hooks, and the parts that it holds."""
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from dassl.engine.budget import Budget
from dassl.engine.checkpointer import Checkpointer, Contents, State
from dassl.engine.evaluation import Evaluation
from dassl.engine.identity import made_for
from dassl.engine.loaders import train_loaders
from dassl.engine.model_states import ModelStates
from dassl.engine.part import Part
from dassl.engine.progress import Progress
from dassl.utils import (
    INTERRUPTED,
    NonFiniteError,
    StopRequest,
    get_rng_state,
    refusing,
    set_rng_state,
    tolist_if_not,
)
from dassl.utils.registry import nearest


class Registered(NamedTuple):
    """A model that a trainer has registered; optimizer and schedule may be None."""

    model: Any
    optim: Any
    sched: Any


class TrainerBase:
    """Registered models with their optimizers and schedules, the epoch loop with its hooks, and the parts of a trainer.

    Attributes:
        checkpointer, evaluation, progress, stop, budget: the parts that store the training, evaluate, tell how far it
            is, note signals, and count what is spent. A subclass may use these names for something of its own.
        cfg: the config, or None; dm: the DataManager, or None; device; output_dir: the run folder.
        train_loader_x, train_loader_u: loaders of labelled and unlabelled training images, or None.
        start_epoch, epoch: from 0; max_epoch: how many there are.
        batch_idx: from 0, of num_batches; batch: as the loader gave it.
        best_result: the best validation accuracy so far; best_epoch: its epoch (from 1), 0 before.
        results: {part of the data: the numbers of its last evaluation}.
    """

    checkpointer = Part[Checkpointer]()
    evaluation = Part[Evaluation]()
    progress = Part[Progress]()
    stop = Part[StopRequest]()
    budget = Part[Budget]()

    cfg: Any = None
    dm: Any = None
    device: torch.device
    output_dir: str = ""
    train_loader_x: Any = None
    train_loader_u: Any = None
    max_epoch: int
    num_batches: int
    batch: Any = None

    def __init__(self) -> None:
        self._models: OrderedDict[str, Any] = OrderedDict()
        self._optims: OrderedDict[str, Any] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        self._checkpointer = Checkpointer(self.checkpoint_contents())
        self._evaluation = Evaluation()
        self._progress = Progress()
        self._stop = StopRequest()
        self._budget = Budget()
        self.epoch = self.start_epoch = 0
        self.batch_idx = 0
        self.first_batch = 0  # batches of the starting epoch that an interrupted run has consumed
        self.went_through = False  # whether this run has come to the end of its epochs
        self.in_epochs = False  # whether epochs are trained, or what comes before the first is done
        self.batches_done = 0  # batches of the current epoch that are trained on, 0 once its checkpoint is due
        self.best_result, self.best_epoch = -math.inf, 0
        self.went_on_from_finished = False  # whether the run goes on from a training that had come to its end
        self.results = self._evaluation.results
        self.backbone_facts: Mapping[str, Any] | None = None  # {"name", "digest", ...} of its frozen weights
        # {setting: [trained with, evaluated with]} of a model that is evaluated under others
        self.changed: dict[str, list] = {}

    # ---- models ----
    def register_model(self, name="model", model=None, optim=None, sched=None):
        """Make a model known for saving, loading and stepping. `optim` and `sched` may be None."""
        if "_models" not in self.__dict__:
            raise RuntimeError("call super().__init__() before register_model()")
        if name in self._models:
            raise KeyError(f'a model named "{name}" is registered already')
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def registered_model(self, name: str) -> Registered:
        """The registered model of a name. Raises KeyError for another name."""
        self.get_model_names(name)
        return Registered(self._models[name], self._optims[name], self._scheds[name])

    def get_model_names(self, names=None) -> list[str]:
        if names is None:
            return list(self._models)
        names = tolist_if_not(names)
        for name in names:
            if name not in self._models:
                raise KeyError(f'no model "{name}" is registered{nearest(name, self._models)}; '
                               f'known: {", ".join(self._models)}')
        return names

    def set_model_mode(self, mode="train", names=None):
        """mode: train, or eval (or test)."""
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    # ---- checkpoints ----
    def checkpoint_contents(self) -> Contents:
        """What the checkpoints hold; asked for once, before there is a config."""
        return ModelStates(self)

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        """Write a checkpoint to each folder of the checkpointer in `directory`; `epoch` counts from 0.

        All of a run's processes call it, and go on when rank 0 has written."""
        def position():
            step = self.batches_done if model_name == INTERRUPTED else 0
            return self.training_position(epoch + 1, step, val_result)

        self._checkpointer.save(directory, position, is_best, model_name)

    def resume_model_if_exist(self, directory) -> int:
        """Go on from the checkpoint that is furthest on and whole for every model, if there is one.

        Returns the epoch (from 0) to start with; `first_batch` says how many of its batches are done.
        Raises InputError where it was trained for something else (`dassl.engine.identity`)."""
        found = self._checkpointer.resume(directory)
        if found is None:
            return 0
        path, state = found
        with refusing(path):
            self.take_position(state)
        return state["epoch"]

    def load_model(self, directory, epoch=None):
        """Load `model-best.pth.tar`, or the checkpoint of `epoch` (from 1), for evaluation.

        Raises:
            FileNotFoundError: there is none.
        """
        if not directory:
            print("Note: load_model() is skipped, no folder was given")
            return
        self.changed = self._checkpointer.load(directory, epoch)

    def training_position(self, epoch: int, step: int, val_result: float | None) -> State:
        """What a checkpoint says of the trainer's position in its training, after `epoch` epochs and `step` batches."""
        return {"epoch": epoch, "step": step, "val_result": val_result, "rng": get_rng_state(),
                "best_result": float(self.best_result), "budget": self._budget.counts(), "made_for": made_for(self)}

    def take_position(self, state: State) -> None:
        """Take the position that a checkpoint says."""
        self.best_result, self.best_epoch = state.get("best_result", -math.inf), state.get("best_epoch", 0)
        self.went_on_from_finished = state.get("finished", False)
        self._budget.go_on(state.get("budget"))
        self.first_batch = state.get("step", 0)
        if "rng" in state:
            set_rng_state(state["rng"])

    # ---- TensorBoard ----
    def init_writer(self, log_dir):
        self._progress.open(log_dir)

    def close_writer(self):
        self._progress.close()

    def write_scalar(self, tag, scalar_value, global_step=None):
        self._progress.scalar(tag, scalar_value, global_step)

    @property
    def _writer(self):
        """The TensorBoard writer under Dassl's name."""
        return self._progress.writer

    @_writer.setter
    def _writer(self, writer):
        self._progress.writer = writer

    # ---- the loop ----
    def train(self, start_epoch, max_epoch):
        self.start_epoch, self.max_epoch = start_epoch, max_epoch
        self.in_epochs = True
        self.before_train()
        self._budget.require_all(resumed=bool(self.start_epoch or self.first_batch))
        for self.epoch in range(self.start_epoch, self.max_epoch):
            for loader in train_loaders(self):
                if hasattr(getattr(loader, "batch_sampler", None), "set_epoch"):
                    loader.batch_sampler.set_epoch(self.epoch, self.first_batch)
            self._progress.enter_epoch(self.epoch, self.max_epoch)
            self.before_epoch()
            self.batches_done = self.first_batch
            self.run_epoch()
            self.first_batch = 0
            self.after_epoch()
            self.batches_done = 0
            if self.epoch + 1 >= self.max_epoch:  # which may have come nearer
                break
        self.in_epochs, self.went_through = False, True
        self.after_train()

    def stop_if_asked(self):
        """If a signal has asked for it, write a checkpoint of this point and end the run.

        Raises:
            KeyboardInterrupt, Terminated: SIGINT or SIGTERM came.
        """
        if not self._stop.asked():
            return
        point = "the training is done" if self.went_through else "nothing is trained here"
        if self.batches_done:
            self.save_model(self.epoch - 1, self.output_dir, model_name=INTERRUPTED)
        if self.batches_done or self.in_epochs:  # before an epoch's first batch the last one's checkpoint is there
            point = f"epoch {self.epoch + 1}, {self.batches_done} batches done"
        print(f"Stopped by {self._stop.name}: {point}; the same command goes on from there")
        self._stop.end()

    def before_train(self):
        pass

    def after_train(self):
        pass

    def before_epoch(self):
        pass

    def after_epoch(self):
        pass

    def run_epoch(self):
        raise NotImplementedError

    def test(self):
        raise NotImplementedError

    def parse_batch_train(self, batch):
        raise NotImplementedError

    def parse_batch_test(self, batch):
        raise NotImplementedError

    def forward_backward(self, batch):
        raise NotImplementedError

    def model_inference(self, input):
        raise NotImplementedError

    # ---- steps ----
    def update_lr(self, names=None):
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def get_current_lr(self, names=None) -> float:
        """The rate of the first parameter group of the first model that has an optimizer."""
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                return self._optims[name].param_groups[0]["lr"]
        return 0.0

    def detect_anomaly(self, loss: torch.Tensor) -> None:
        """Raise NonFiniteError, with step, rate and files, unless the loss is finite."""
        if not torch.isfinite(loss).all():
            raise NonFiniteError(f"the loss is {loss.detach().mean().item()} {self.step_in_words()}; lower OPTIM.LR, "
                                 "use PREC bf16 or fp32, or look at these images")

    def step_in_words(self) -> str:
        """Epoch, batch, learning rate and images of the current step, in words."""
        files = list(self.batch.get("impath", ())) if isinstance(self.batch, dict) else []
        more = f" and {len(files) - 16} more" if len(files) > 16 else ""
        return (f"in epoch {self.epoch + 1}, batch {self.batch_idx + 1}, at learning rate {self.get_current_lr():.3g}"
                + (f", on {', '.join(files[:16])}{more}" if files else ""))

    def model_zero_grad(self, names=None):
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss):
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names=None):
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(self, loss, names=None):
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)
