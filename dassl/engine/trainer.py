"""The epoch loop. TrainerBase keeps models, optimizers and checkpoints; SimpleTrainer adds data and evaluation;
TrainerX runs epochs over labelled batches. A method is a subclass with `build_model` and `forward_backward`."""
import contextlib
import datetime
import inspect
import math
import os
import secrets
import shutil
import time
from collections import OrderedDict

import torch
from tqdm import tqdm

from dassl.data import DataManager
from dassl.data.pictures import require_readable
from dassl.data.samplers import EpochBatchSampler
from dassl.engine.budget import Budget
from dassl.engine.identity import check_resumed, made_for, same_training
from dassl.evaluation import build_evaluator
from dassl.metrics import deciding, require_finite
from dassl.optim import go_on, require_fits
from dassl.utils import (
    BEST,
    INTERRUPTED,
    MISFITS,
    AverageMeter,
    InputError,
    MetricMeter,
    NonFiniteError,
    StopRequest,
    all_gather,
    all_reduce_max,
    broadcast,
    check_availability,
    checkpoints_newest_first,
    does_not_fit,
    get_rng_state,
    load_checkpoint,
    load_tensors,
    main_process_first,
    mkdir_if_missing,
    note_checkpoint,
    open_regular,
    rank,
    require_own_folder,
    require_own_gpu,
    require_rng_state,
    save_checkpoint,
    set_rng_state,
    share_of,
    tolist_if_not,
    world_size,
    write_atomically,
)
from dassl.utils.stored import problem_of_state


class TrainerBase:
    """Registered models with their optimizers and schedules, the epoch loop with its hooks, checkpoints, scalars."""

    def __init__(self):
        self._models = OrderedDict()
        self._optims = OrderedDict()
        self._scheds = OrderedDict()
        self._writer = None
        self.epoch = self.start_epoch = 0
        self.batch_idx = 0
        self.first_batch = 0  # batches of the starting epoch that an interrupted run has consumed
        self.batches_done = 0  # batches of the current epoch that are trained on, 0 once its checkpoint is due
        self.stop = None  # the StopRequest of a training that can be ended by a signal
        self.results = OrderedDict()  # split -> the numbers of its last evaluation
        self._budget = Budget()
        self.backbone_facts = None  # {"name", "digest", ...} of its frozen weights, by whoever loads them
        self.changed = {}  # {setting: [trained with, evaluated with]} of a model that is evaluated under others

    # ---- models ----
    def register_model(self, name="model", model=None, optim=None, sched=None):
        """Make a model known for saving, loading and stepping. `optim` and `sched` may be None."""
        if "_models" not in self.__dict__:
            raise RuntimeError("call super().__init__() before register_model()")
        if name in self._models:
            raise KeyError(f'a model named "{name}" is registered already')
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def get_model_names(self, names=None):
        if names is None:
            return list(self._models)
        names = tolist_if_not(names)
        for name in names:
            if name not in self._models:
                raise KeyError(f'no model "{name}" is registered; known: {", ".join(self._models)}')
        return names

    def set_model_mode(self, mode="train", names=None):
        """mode: train, or eval (or test)."""
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    # ---- checkpoints ----
    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        """Write a checkpoint of each registered model to `directory/<name>/`; `epoch` counts from 0.

        Of a run's processes the first writes; all call it, and go on when it is written."""
        broadcast(lambda: self._write_models(epoch, directory, is_best, val_result, model_name))

    def _write_models(self, epoch, directory, is_best, val_result, model_name):
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "step": self.batches_done if model_name == INTERRUPTED else 0,
                "optimizer": optim.state_dict() if optim is not None else None,
                "scheduler": sched.state_dict() if sched is not None else None,
                "val_result": val_result,
                "rng": get_rng_state(),
                "best_result": float(getattr(self, "best_result", -math.inf)),
                "budget": self._budget.counts(),
                "made_for": made_for(self),
            }
            save_checkpoint(state, os.path.join(directory, name), is_best=is_best, model_name=model_name)

    def resume_model_if_exist(self, directory):
        """Load the checkpoint that is furthest on and whole for every model, if there is one.

        Returns the epoch (from 0) to start with; `first_batch` says how many of its batches are done.
        Raises InputError where it was trained for something else (`dassl.engine.identity`)."""
        names = self.get_model_names()
        found = self._common_states(directory, names) if names else None
        if found is None:
            return 0
        changed = check_resumed(self, *found[0])
        print(f"Found a checkpoint in {directory} (training goes on from it)")
        states = [state for _, state in found]
        for name, (path, state) in zip(names, found):
            load_tensors(self._models[name], state["state_dict"], path)
            optim, sched = self._optims[name], self._scheds[name]
            try:
                if optim is not None and state.get("optimizer") is not None:
                    go_on(optim, sched, state["optimizer"], state.get("scheduler"), changed, state["epoch"])
                elif sched is not None and state.get("scheduler") is not None:
                    sched.load_state_dict(state["scheduler"])
            except InputError as error:
                raise InputError(f"{path}: {error}") from None
            except MISFITS as error:
                raise does_not_fit(path, error) from None
        self.best_result = states[-1].get("best_result", -math.inf)
        self._budget.go_on(states[-1].get("budget"))
        self.first_batch = states[-1].get("step", 0)
        if "rng" in states[-1]:
            set_rng_state(states[-1]["rng"])
        return states[-1]["epoch"]

    def _common_states(self, directory, names):
        """(path, contents) of the checkpoints, one for each model, of the furthest point that every model has: a run
        may be killed between two models' checkpoints. None if there is no such point."""
        def newest_first(name):
            return checkpoints_newest_first(os.path.join(directory, name),
                                            lambda path, state: self._require_whole(name, path, state))

        for path, first in newest_first(names[0]):
            states = [(path, first)]
            for name in names[1:]:
                found = ((other, state) for other, state in newest_first(name)
                         if os.path.basename(other) == os.path.basename(path)
                         and (state["epoch"], state.get("step", 0)) == (first["epoch"], first.get("step", 0)))
                states.append(next(found, None))
            if all(state is not None for state in states):
                return states
        return None

    def _require_whole(self, name, path, state):
        """Raise InputError for a checkpoint of this training that the model `name` cannot go on from: the one before
        may be whole. What is of another training is refused by `check_resumed`."""
        if not same_training(self, state):
            return
        if problem := problem_of_state(self._models[name], state["state_dict"]):
            raise InputError(f"{path} is damaged: {problem}; delete it")
        optim, sched, epoch = self._optims[name], self._scheds[name], state["epoch"]
        batches = max(map(len, train_loaders(self)), default=0)
        try:
            if batches and state.get("step", 0) > batches:
                raise InputError(f"it says batch {state['step']} of {batches}")
            if optim is not None and state.get("optimizer") is not None:
                require_fits(optim, sched, state["optimizer"], state.get("scheduler"), epoch,
                             (epoch + 1) * max(batches, 1), same_kind=bool(state.get("made_for")))
            if "rng" in state:
                require_rng_state(state["rng"])
        except InputError as error:
            raise InputError(f"{path} is damaged: {error}; delete it") from None
        except MISFITS as error:
            raise does_not_fit(path, error) from None

    def load_model(self, directory, epoch=None):
        """Load `model-best.pth.tar`, or the checkpoint of `epoch` (from 1), for evaluation.

        Raises:
            FileNotFoundError: there is none.
        """
        if not directory:
            print("Note: load_model() is skipped, no folder was given")
            return
        model_file = f"model.pth.tar-{epoch}" if epoch is not None else BEST
        for name in self.get_model_names():
            path = os.path.join(directory, name, model_file)
            checkpoint = load_checkpoint(path)
            print(f'Loading weights to {name} from "{path}" (epoch = {checkpoint.get("epoch", "?")})')
            load_tensors(self._models[name], checkpoint.get("state_dict"), path)

    # ---- TensorBoard ----
    def init_writer(self, log_dir):
        if self._writer is None and rank() == 0:
            from torch.utils.tensorboard import SummaryWriter  # slow to import; tools that only read need none

            require_own_folder(log_dir)
            # A name that nobody foresees: TensorBoard would write through a link that lies there.
            self._writer = SummaryWriter(log_dir=log_dir, filename_suffix=f".{secrets.token_hex(4)}")

    def close_writer(self):
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_scalar(self, tag, scalar_value, global_step=None):
        if self._writer is not None:
            try:
                self._writer.add_scalar(tag, scalar_value, global_step)
            except FileNotFoundError:
                raise InputError(f"{self._writer.log_dir} was removed while the run was writing to it; let nobody "
                                 "touch it, and start the same command again: it goes on from the last checkpoint that "
                                 "is left") from None

    # ---- the loop ----
    def train(self, start_epoch, max_epoch):
        self.start_epoch, self.max_epoch = start_epoch, max_epoch
        self.before_train()
        self._budget.require_all(resumed=bool(self.start_epoch or self.first_batch))
        for self.epoch in range(self.start_epoch, self.max_epoch):
            for loader in train_loaders(self):
                if hasattr(getattr(loader, "batch_sampler", None), "set_epoch"):
                    loader.batch_sampler.set_epoch(self.epoch, self.first_batch)
            self.before_epoch()
            self.batches_done = self.first_batch
            self.run_epoch()
            self.first_batch = 0
            self.after_epoch()
            self.batches_done = 0
            if self.epoch + 1 >= self.max_epoch:  # which may have come nearer
                break
        self.after_train()

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

    # ---- ending early ----
    def stop_if_asked(self):
        """If a signal has asked for it, write a checkpoint of this point and end the run.

        Raises:
            KeyboardInterrupt, Terminated: SIGINT or SIGTERM came.
        """
        number = all_reduce_max(self.stop.number or 0) if self.stop is not None else 0  # of any rank
        if not number:  # and may come just now, to be seen next time
            return
        if self.stop.number is None:
            self.stop.take(number)
        place = "the training is done"
        if self.batches_done:
            self.save_model(self.epoch - 1, self.output_dir, model_name=INTERRUPTED)
            place = f"epoch {self.epoch + 1}, {self.batches_done} batches done"
        print(f"Stopped by {self.stop.name}: {place}; the same command goes on from there")
        self.stop.end()

    def forget_interruption(self):
        """Remove the checkpoint of a point within an epoch, once an epoch's own is further on."""
        for name in self.get_model_names() if rank() == 0 else ():
            path = os.path.join(self.output_dir, name, INTERRUPTED)
            require_own_folder(os.path.dirname(path))
            if os.path.lexists(path):
                os.remove(path)

    # ---- steps ----
    def update_lr(self, names=None):
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def get_current_lr(self, names=None):
        """The rate of the first parameter group of the first model that has an optimizer."""
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                return self._optims[name].param_groups[0]["lr"]
        return 0.0

    def detect_anomaly(self, loss):
        """Raise NonFiniteError, with step and rate, unless the loss is finite."""
        if not torch.isfinite(loss).all():
            raise NonFiniteError(f"the loss is {loss.detach().mean().item()} in epoch {self.epoch + 1}, batch "
                                 f"{self.batch_idx + 1}, at learning rate {self.get_current_lr():.3g}"
                                 f"{self._batch_files()}; lower OPTIM.LR, use PREC fp32, or look at these images")

    def _batch_files(self):
        batch = getattr(self, "batch", None)
        files = list(batch.get("impath", ())) if isinstance(batch, dict) else []
        if not files:
            return ""
        return f", on {', '.join(files[:16])}" + (f" and {len(files) - 16} more" if len(files) > 16 else "")

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


def train_loaders(trainer):
    """A trainer's loaders of training images, labelled and unlabelled, that there are."""
    loaders = getattr(trainer, "train_loader_x", None), getattr(trainer, "train_loader_u", None)
    return [loader for loader in loaders if loader is not None]


def end_workers(loader):
    """End the workers that a loader keeps between epochs; its next pass starts new ones. Left to the garbage collector
    they are waited for in vain, five seconds each."""
    iterator = getattr(loader, "_iterator", None)
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
        loader._iterator = None


@contextlib.contextmanager
def divided(loader):
    """Within it a rank's pass over a loader for evaluation gives it batches of its own, of the loader's size; yields
    number of such a step -> how many images all ranks have in it. A loader with batches of another kind gives all of
    them to every rank."""
    batches = loader.batch_sampler
    if world_size() == 1 or not isinstance(batches, EpochBatchSampler):
        yield lambda number: None
        return
    size = batches.batch_size
    batches.batch_size = size * world_size()
    batches.divide(rank(), world_size())
    try:
        yield batches.size_of
    finally:
        batches.batch_size = size
        batches.divide(0, 1)


def gathered_outputs(output, label, more, size):
    """A step's (logits, labels, more about the images) of each rank in turn, which is the order of the images.

    size: how many images all ranks have in the step; None: what is given already is all."""
    if size is None:
        return [(output, label, more)]
    share = share_of(size, rank(), world_size())
    own = share.stop - share.start  # a rank without images has computed one, which does not count
    return [part for part in all_gather((output[:own].cpu(), label[:own].cpu(), {k: v[:own] for k, v in more.items()}))
            if len(part[1])]


class SimpleTrainer(TrainerBase):
    """A trainer with a dataset, an evaluator and one kind of run: train, then test."""

    def __init__(self, cfg):
        super().__init__()
        check_availability(cfg.TEST.FINAL_MODEL, ("last_step", "best_val"), "TEST.FINAL_MODEL")
        check_availability(cfg.TEST.SPLIT, ("train", "val", "test"), "TEST.SPLIT")
        self.check_cfg(cfg)
        self.device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        if self.device.type == "cuda":
            require_own_gpu()
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.build_data_loader()
        self.prepare_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result, self.best_epoch = -math.inf, 0  # on validation; the epoch counts from 1
        self.went_on_from_finished = False  # whether the run goes on from a training that had come to its end
        self.stopped = None  # {"epoch", "best_epoch", "patience"} of a training that TRAIN.PATIENCE has ended

    def check_cfg(self, cfg):
        """Raise for a config the method cannot run with."""

    def build_data_loader(self):
        dm = main_process_first(lambda: DataManager(self.cfg))
        self.train_loader_x, self.train_loader_u = dm.train_loader_x, dm.train_loader_u
        self.val_loader, self.test_loader = dm.val_loader, dm.test_loader
        self.num_classes, self.num_source_domains = dm.num_classes, dm.num_source_domains
        self.lab2cname, self.dm = dm.lab2cname, dm

    def prepare_model(self):
        """Called once the data is there; a kind of trainer whose `build_model` takes arguments overrides it."""
        self.build_model()

    def build_model(self):
        """Build the model and register it with its optimizer and schedule."""
        raise NotImplementedError

    def train(self):
        try:
            self.check_validation()
            self.check_images()
            with StopRequest() as self.stop, self._budget.of_training(lambda: train_loaders(self)):
                super().train(self.start_epoch, self.max_epoch)
                self.stop_if_asked()  # during the last evaluation: what would come next must not run
        except BaseException:
            with contextlib.suppress(OSError):  # the disk may be what ended the run
                self.close_writer()
            raise
        finally:
            for loader in train_loaders(self):
                end_workers(loader)

    def check_validation(self):
        """Raise InputError where something is to be chosen on a validation part that is not there."""
        cfg, wanted = self.cfg, []
        if cfg.TEST.FINAL_MODEL == "best_val" and not cfg.TEST.NO_TEST:
            wanted.append("TEST.FINAL_MODEL best_val")
        if cfg.TRAIN.get("PATIENCE", 0) > 0:
            wanted.append("TRAIN.PATIENCE")
        if self.max_epoch == self.start_epoch:
            wanted = []  # nothing is trained
        if "TRAIN.PATIENCE" in wanted and cfg.TEST.NO_TEST:
            raise InputError("TRAIN.PATIENCE ends a training by its validation accuracy, which TEST.NO_TEST leaves "
                             "out; give one of them")
        if cfg.TEST.SPLIT == "val" and not cfg.TEST.NO_TEST:
            wanted.append("TEST.SPLIT val")
        if wanted and getattr(self, "val_loader", None) is None:
            raise InputError(f"{' and '.join(wanted)} need{'s' if len(wanted) == 1 else ''} validation images, but "
                             f"{cfg.DATASET.NAME} has no validation part here; leave it out, or set DATASET.NUM_SHOTS, "
                             "with which a dataset without one draws it from the images that are left")

    def check_images(self):
        """Raise InputError for an image to train or validate on that cannot be read, before hours are spent."""
        dm = getattr(self, "dm", None)
        if dm is not None and self.max_epoch > self.start_epoch:
            broadcast(lambda: require_readable([*dm.dataset.train_x, *(dm.dataset.val or ())]))

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
        for name in self.get_model_names():  # a kill may have come between a checkpoint and the note of it
            if rank() == 0:
                note_checkpoint(os.path.join(self.output_dir, name), f"model.pth.tar-{self.start_epoch}")
        writer_dir = os.path.join(self.output_dir, "tensorboard")
        mkdir_if_missing(writer_dir)
        self.init_writer(writer_dir)
        self.time_start = time.time()

    def resume_from(self, directory):
        """Go on from another run's folder; its best model so far comes along.

        Raises InputError when it holds no checkpoint."""
        start_epoch = self.resume_model_if_exist(directory)
        if not (start_epoch or self.first_batch):
            raise InputError(f"--resume {directory}: there is no checkpoint in that folder")
        for name in self.get_model_names():
            best = os.path.join(directory, name, BEST)
            if rank() == 0 and os.path.isfile(best):
                require_own_folder(os.path.join(self.output_dir, name))
                with open_regular(best) as stored:
                    write_atomically(os.path.join(self.output_dir, name, BEST),
                                     lambda file, stored=stored: shutil.copyfileobj(stored, file))
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
        last_epoch = (self.epoch + 1) == self.max_epoch
        freq = self.cfg.TRAIN.CHECKPOINT_FREQ
        if last_epoch or (freq > 0 and (self.epoch + 1) % freq == 0):
            self.save_model(self.epoch, self.output_dir)
            self.forget_interruption()

    def validate(self):
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

    def out_of_patience(self, done):
        """Whether the last TRAIN.PATIENCE of `done` epochs were no better on validation than one before."""
        patience = self.cfg.TRAIN.PATIENCE
        return patience > 0 and self.best_epoch > 0 and done - self.best_epoch >= patience

    def end_early(self):
        """Let the current epoch be the last."""
        if not self.went_on_from_finished or self.epoch >= self.start_epoch:
            self.finish()
        self.max_epoch = self.epoch + 1
        self.stopped = {"epoch": self.max_epoch, "best_epoch": self.best_epoch, "patience": self.cfg.TRAIN.PATIENCE}
        print(f"No better validation accuracy in {self.cfg.TRAIN.PATIENCE} epochs: the training ends after epoch "
              f"{self.max_epoch}, the best was epoch {self.best_epoch}")

    def finish(self):
        """What a method makes of its tensors when the training ends before OPTIM.MAX_EPOCH."""

    @torch.no_grad()
    def test(self, split=None):
        """Evaluate on a part ("test", "val" or "train"; TEST.SPLIT by default). Returns the accuracy in percent.

        Raises:
            NonFiniteError: a logit, named with its image's file, or the accuracy is NaN or infinite.
        """
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        if split == "val" and self.val_loader is None:
            for key, value in (("FINAL_MODEL", "best_val"), ("SPLIT", "val")):
                if self.cfg.TEST[key] == value:
                    raise InputError(f"TEST.{key} is {value}, but {self.cfg.DATASET.NAME} has no validation part")
            split = "test"
        check_availability(split, ("train", "val", "test"), "split")
        if split == "train":
            loader = self.dm.plain_train_loader()
        else:
            loader = self.val_loader if split == "val" else self.test_loader
        # What an evaluator's `process` can take besides logits and labels; a foreign one takes these two.
        known = {"impath"} | ({"domain"} if len(self.cfg.DATASET.TARGET_DOMAINS) > 1 and split == "test" else set())
        wanted = known & set(inspect.signature(self.evaluator.process).parameters)
        print(f"Evaluate on the *{split}* set")
        with divided(loader) as size_of, self._budget.apart():
            for number, batch in enumerate(tqdm(loader, desc=split, leave=False, disable=True if rank() else None)):
                self.stop_if_asked()
                input, label = self.parse_batch_test(batch)
                output = self.model_inference(input)
                more = {name: batch[name] for name in known if name in batch}
                for logits, labels, about in gathered_outputs(output, label, more, size_of(number)):
                    if torch.is_tensor(logits):  # a foreign evaluator may take other things
                        require_finite(logits, about.get("impath", ()))
                    self.evaluator.process(logits, labels, **{name: about[name] for name in wanted & set(about)})
        results = self.evaluator.evaluate()
        accuracy = deciding(results)
        self.results[split] = results
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return accuracy

    def model_inference(self, input):
        return self.model(input)

    def parse_batch_test(self, batch):
        self.evaluator.batch_files = batch.get("impath", ())  # a loop of a trainer's own may not hand them on
        return batch["img"].to(self.device), batch["label"].to(self.device)


class TrainerX(SimpleTrainer):
    """Epochs over labelled images: `forward_backward(batch)` makes the step and returns numbers to print."""

    def run_epoch(self):
        self.set_model_mode("train")
        losses, batch_time, data_time = MetricMeter(), AverageMeter(), AverageMeter()
        self.num_batches = len(self.train_loader_x)
        end = time.time()
        for self.batch_idx, batch in enumerate(self.train_loader_x, start=self.first_batch):
            data_time.update(time.time() - end)
            self.batch, lr = batch, self.get_current_lr()
            summary = self.forward_backward(batch)
            self.batches_done = self.batch_idx + 1
            batch_time.update(time.time() - end)
            losses.update(summary)

            step = self.epoch * self.num_batches + self.batch_idx
            last = self.batch_idx + 1 == self.num_batches
            freq = self.cfg.TRAIN.PRINT_FREQ
            if last or (freq > 0 and (self.batch_idx + 1) % freq == 0):
                left = self.num_batches - self.batch_idx - 1 + (self.max_epoch - self.epoch - 1) * self.num_batches
                eta = datetime.timedelta(seconds=int(batch_time.avg * left))
                print(f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{self.batch_idx + 1}/{self.num_batches}] "
                      f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) data {data_time.val:.3f} "
                      f"({data_time.avg:.3f}) {losses} lr {lr:.4e} eta {eta}")
            for name, meter in losses.meters.items():
                self.write_scalar(f"train/{name}", meter.val, step)
            self.write_scalar("train/lr", lr, step)
            self.stop_if_asked()
            end = time.time()

    def parse_batch_train(self, batch):
        """(images, labels, domains) on the device."""
        return batch["img"].to(self.device), batch["label"].to(self.device), batch["domain"].to(self.device)
