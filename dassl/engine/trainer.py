"""SimpleTrainer adds data, validation and evaluation to TrainerBase; TrainerX runs epochs over labelled batches. A
method in Dassl's style is a subclass of TrainerX with `build_model` and `forward_backward`."""
import contextlib
import datetime
import functools
import os
import time
from typing import Any

import torch

from dassl.data import DataManager
from dassl.engine.checks import part_to_evaluate, require_images, require_validation
from dassl.engine.device import device_of_run
from dassl.engine.former_hooks import require_no_former_hook
from dassl.engine.loaders import end_workers, train_loaders
from dassl.engine.trainer_base import TrainerBase
from dassl.evaluation import build_evaluator
from dassl.metrics import deciding
from dassl.utils import (
    BEST,
    InputError,
    all_gather,
    check_availability,
    is_class_bound,
    main_process_first,
    mkdir_if_missing,
)

__all__ = ["SimpleTrainer", "TrainerBase", "TrainerX"]


class SimpleTrainer(TrainerBase):
    """A trainer with a dataset, an evaluator and one kind of run: train, then test.

    Attributes, beside those of TrainerBase:
        model: what the default `model_inference` calls.
        val_loader, test_loader: None where the dataset has no such part.
        num_classes, num_source_domains; lab2cname: {label: class name}.
        evaluator: of TEST.EVALUATOR.
        stopped: {"epoch", "best_epoch", "patience"} of a training that TRAIN.PATIENCE has ended, else None.
        time_start: when the training began, seconds since 1970.
        divides_evaluation: whether several processes may divide the images of an evaluation.
    """

    model: Any
    val_loader: Any = None
    test_loader: Any = None
    num_classes: int
    num_source_domains: int
    lab2cname: dict[int, str]
    divides_evaluation: Any = True

    def __init__(self, cfg: Any) -> None:
        require_no_former_hook(type(self))
        super().__init__()
        check_availability(cfg.TEST.FINAL_MODEL, ("last_step", "best_val"), "TEST.FINAL_MODEL")
        check_availability(cfg.TEST.SPLIT, ("train", "val", "test"), "TEST.SPLIT")
        self.check_cfg(cfg)
        self.device = device_of_run(cfg.USE_CUDA)
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.stopped: dict[str, int] | None = None
        self.time_start = time.time()
        self.build_data_loader()
        self.prepare_model()
        self.evaluator: Any = build_evaluator(cfg, lab2cname=self.lab2cname)
        is_class_bound(self, cfg)  # one that gives no answer is refused before it trains

    # ---- what a method defines ----
    def check_cfg(self, cfg: Any) -> None:
        """Raise for a config the method cannot run with."""

    def build_data_loader(self):
        dm = main_process_first(self.build_data_manager)
        self.train_loader_x, self.train_loader_u = dm.train_loader_x, dm.train_loader_u
        self.val_loader, self.test_loader = dm.val_loader, dm.test_loader
        self.num_classes, self.num_source_domains = dm.num_classes, dm.num_source_domains
        self.lab2cname, self.dm = dm.lab2cname, dm

    def build_data_manager(self, **settings: Any) -> DataManager:
        """The dataset and its loaders. A trainer whose loaders are to be others overrides this, or calls it with
        settings of DataManager (`dataset_wrapper`, ...) in a `build_data_loader` of its own."""
        return DataManager(self.cfg, **settings)

    def prepare_model(self) -> None:
        """Called once the data is there; a kind of trainer whose `build_model` takes arguments overrides it."""
        self.build_model()

    def build_model(self, *args: Any, **kwargs: Any) -> Any:
        """Build the model and register it with its optimizer and schedule; takes what `prepare_model` gives it."""
        raise NotImplementedError

    def finish(self) -> None:
        """What a method makes of its tensors when the training ends before OPTIM.MAX_EPOCH."""

    # ---- a run ----
    def train(self):  # type: ignore[override]  # in Dassl the base alone is given the epochs
        trains = self.max_epoch > self.start_epoch
        try:
            require_validation(self.cfg, trains, self.val_loader is not None)
            if trains and self.dm is not None:
                require_images(self.dm.dataset)
            with self._stop, self._budget.of_training(lambda: train_loaders(self)):
                super().train(self.start_epoch, self.max_epoch)
                self.stop_if_asked()  # during the last evaluation: what would come next must not run
        except BaseException:
            with contextlib.suppress(OSError):  # the disk may be what ended the run
                self.close_writer()
            raise
        finally:
            for loader in train_loaders(self):
                end_workers(loader)

    def before_train(self):
        self.start_epoch = self.resume_model_if_exist(self.output_dir)
        if self.cfg.RESUME and not (self.start_epoch or self.first_batch):
            self.start_epoch = self.resume_from(self.cfg.RESUME)
        if self.start_epoch > self.max_epoch:
            raise InputError(f"the checkpoint to go on from is of epoch {self.start_epoch}, OPTIM.MAX_EPOCH is "
                             f"{self.max_epoch}; give at least {self.start_epoch}, or start a new run without --resume")
        if len(set(all_gather((self.start_epoch, self.first_batch)))) > 1:
            raise InputError(f"the processes of this run find different checkpoints in {self.output_dir}; it must lie "
                             "on a disk that all machines see")
        if self.start_epoch < self.max_epoch and not self.first_batch and self.out_of_patience(self.start_epoch):
            self.epoch = self.start_epoch - 1
            self.end_early()
        self._checkpointer.note(self.output_dir, self.start_epoch)
        writer_dir = os.path.join(self.output_dir, "tensorboard")
        mkdir_if_missing(writer_dir)
        self.init_writer(writer_dir)
        self.time_start = time.time()

    def resume_from(self, directory: str) -> int:
        """Go on from another run's folder; its best model so far comes along. Returns the epoch (from 0) to start with.

        Raises InputError when it holds no checkpoint."""
        start_epoch = self.resume_model_if_exist(directory)
        if not (start_epoch or self.first_batch):
            raise InputError(f"--resume {directory}: there is no checkpoint in that folder")
        self._checkpointer.take_best(self.output_dir, directory)
        return start_epoch

    def after_train(self):
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        elapsed = round(time.time() - self.time_start)
        print(f"Elapsed: {datetime.timedelta(seconds=elapsed)}")
        self.close_writer()

    def after_epoch(self):
        self.validate()
        if self.checkpoint_due(self.epoch + 1):
            self.save_model(self.epoch, self.output_dir)
            self._checkpointer.forget_interruption(self.output_dir)

    def checkpoint_due(self, done: int) -> bool:
        """Whether a checkpoint is written after `done` epochs: after the last, and each TRAIN.CHECKPOINT_FREQ-th."""
        every = self.cfg.TRAIN.CHECKPOINT_FREQ
        return done == self.max_epoch or every > 0 and done % every == 0

    # ---- validation ----
    def validate(self) -> None:
        """Where the best epoch is asked for, or patience has an end: evaluate on the validation part, keep what is
        better than before, and end the training after TRAIN.PATIENCE epochs without that."""
        keeps_best = self.cfg.TEST.FINAL_MODEL == "best_val"
        if self.cfg.TEST.NO_TEST or not (keeps_best or self.cfg.TRAIN.PATIENCE):
            return
        result = self.test(split="val")
        if result > self.best_result:
            self.best_result, self.best_epoch = result, self.epoch + 1
            if keeps_best:
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=BEST)
        if self.epoch + 1 < self.max_epoch and self.out_of_patience(self.epoch + 1):
            self.end_early()

    def out_of_patience(self, done: int) -> bool:
        """Whether the last TRAIN.PATIENCE of `done` epochs were no better on validation than one before."""
        patience = self.cfg.TRAIN.PATIENCE
        return patience > 0 and self.best_epoch > 0 and done - self.best_epoch >= patience

    def end_early(self) -> None:
        """Let the current epoch be the last."""
        if not self.went_on_from_finished or self.epoch >= self.start_epoch:
            self.finish()
        self.max_epoch = self.epoch + 1
        self.stopped = {"epoch": self.max_epoch, "best_epoch": self.best_epoch, "patience": self.cfg.TRAIN.PATIENCE}
        print(f"No better validation accuracy in {self.cfg.TRAIN.PATIENCE} epochs: the training ends after epoch "
              f"{self.max_epoch}, the best was epoch {self.best_epoch}")

    # ---- evaluation ----
    @torch.no_grad()
    def test(self, split=None):
        """Evaluate on a part ("test", "val" or "train"; TEST.SPLIT by default). Returns the accuracy in percent.

        Raises:
            NonFiniteError: a logit, named with its image's file, or the accuracy is NaN or infinite.
        """
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = part_to_evaluate(self.cfg, split or self.cfg.TEST.SPLIT, self.val_loader is not None)
        loader = self.loader_to_evaluate(split)
        domains = split == "test" and len(self.cfg.DATASET.TARGET_DOMAINS) > 1
        with self._budget.paused():
            results = self._evaluation.over(split, loader, self.evaluator, self._answer, domains,
                                            functools.partial(self._progress.evaluated, split),
                                            self.divides_evaluation)
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return deciding(results)

    def loader_to_evaluate(self, split: str) -> Any:
        """The loader of a part, whose pictures are read as test pictures."""
        if split == "train":
            return self.dm.plain_train_loader()
        return self.val_loader if split == "val" else self.test_loader

    def _answer(self, batch: dict[str, Any]) -> tuple[Any, Any]:
        """(logits, labels) of a batch to evaluate on."""
        self.stop_if_asked()
        input, label = self.parse_batch_test(batch)
        return self.model_inference(input), label

    def model_inference(self, input):
        return self.model(input)

    def parse_batch_test(self, batch):
        self.evaluator.batch_files = batch.get("impath", ())  # a loop of a trainer's own may not hand them on
        return batch["img"].to(self.device), batch["label"].to(self.device)


class TrainerX(SimpleTrainer):
    """Epochs over labelled images: `forward_backward(batch)` makes the step and returns numbers to print."""

    def run_epoch(self):
        self.set_model_mode("train")
        self.num_batches, every = len(self.train_loader_x), self.cfg.TRAIN.PRINT_FREQ
        progress = self._progress
        progress.begin_epoch(self.epoch, self.max_epoch, self.num_batches)
        for self.batch_idx, batch in enumerate(self.train_loader_x, start=self.first_batch):
            progress.batch_loaded()
            self.batch, lr = batch, self.get_current_lr()
            summary = self.forward_backward(batch)
            self.batches_done = self.batch_idx + 1
            progress.step_made(summary)
            progress.show(self.batch_idx, lr, every)
            step = self.epoch * self.num_batches + self.batch_idx
            for name, value in progress.numbers():
                self.write_scalar(f"train/{name}", value, step)
            self.write_scalar("train/lr", lr, step)
            self.stop_if_asked()
            progress.step_over()

    def parse_batch_train(self, batch):
        """(images, labels, domains) on the device."""
        return batch["img"].to(self.device), batch["label"].to(self.device), batch["domain"].to(self.device)
