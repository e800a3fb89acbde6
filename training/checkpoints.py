"""Checkpoints of what is trained, and of what a resumed run needs to give the same numbers."""
import os
import re

import psutil
import torch

from dassl.engine import TrainerX
from dassl.engine.identity import check_evaluated, check_resumed, made_for, same_training
from dassl.optim import go_on, require_fits
from dassl.utils import (
    BEST,
    INTERRUPTED,
    MISFITS,
    InputError,
    broadcast,
    checkpoints_newest_first,
    does_not_fit,
    get_rng_state,
    load_checkpoint,
    noted_checkpoint,
    require_own_folder,
    require_rng_state,
    save_checkpoint,
    set_rng_state,
    world_size,
)
from dassl.utils.stored import problem_of_values

CHECKPOINTS_KEPT = 2
NEEDED = ("precision", "optimizers", "schedules", "threads", "activation_bytes", "best_result", "step", "rng")


class PromptCheckpoints(TrainerX):
    """The part of PromptTrainer that stores and restores: trained tensors only, with optimizers, schedules, loss scale,
    generators and position."""

    def after_epoch(self):
        super().after_epoch()
        done, freq = self.epoch + 1, self.cfg.TRAIN.CHECKPOINT_FREQ
        if done != self.max_epoch and not (freq > 0 and done % freq == 0):
            self.save_model(self.epoch, self.output_dir)
            self.forget_interruption()
        self.prune_checkpoints(done)

    def before_train(self):
        super().before_train()
        if self.start_epoch:  # a kill may have come between a checkpoint and the removal of what it makes useless
            self.prune_checkpoints(self.start_epoch)
            if not self.first_batch:
                self.forget_interruption()

    def prune_checkpoints(self, done):
        """Keep the checkpoints of the last two of `done` epochs, and every CHECKPOINT_FREQ-th."""
        freq = self.cfg.TRAIN.CHECKPOINT_FREQ
        for name in self.get_model_names() if self.ranks.rank == 0 else ():
            folder = os.path.join(self.output_dir, name)
            require_own_folder(folder)
            for file in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
                found = re.fullmatch(r"model\.pth\.tar-(\d+)", file)
                epoch = int(found[1]) if found else done
                if epoch <= done - CHECKPOINTS_KEPT and not (freq > 0 and epoch % freq == 0):
                    os.remove(os.path.join(folder, file))

    def trained_state(self):
        """{name: tensor} of what is trained, on the CPU."""
        return {n: p.detach().cpu().clone() for n, p in self.model.named_parameters() if p.requires_grad}

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        if self.trains:
            broadcast(lambda: self._write_model(epoch, directory, is_best, val_result, model_name))

    def _write_model(self, epoch, directory, is_best, val_result, model_name):
        state = {
            "trainer": type(self).__name__,
            "classnames": list(self.dm.dataset.classnames),
            "state_dict": self.trained_state(),
            "epoch": epoch + 1,
            "step": self.batches_done if model_name == INTERRUPTED else 0,
            "optimizers": [optim.state_dict() for optim, _ in self.optimizers],
            "schedules": [sched.state_dict() for _, sched in self.optimizers],
            "precision": self.precision.state_dict(),
            "ranks": world_size(),
            "threads": torch.get_num_threads(),
            "activation_bytes": self.towers.text.activation_bytes,
            "rng": get_rng_state(),
            "extra": self.extra_state(),
            "best_result": float(self.best_result),
            "best_epoch": self.best_epoch,
            "budget": self._budget.counts(),
            "finished": epoch + 1 == self.max_epoch,
            "val_result": val_result,
            "made_for": made_for(self),
        }
        save_checkpoint(state, os.path.join(directory, "prompt_learner"), is_best=is_best, model_name=model_name,
                        remove_module_from_keys=False)

    def resume_model_if_exist(self, directory):
        folder = os.path.join(directory, "prompt_learner")
        found = checkpoints_newest_first(folder, self._require_whole) if self.trains else iter(())
        path, state = next(found, (None, None))
        if state is None:
            return 0
        _, changed = self._load_state(path, check_resumed)
        try:
            self._go_on_from(state, changed)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except MISFITS as error:
            raise does_not_fit(path, error) from None
        step = f", batch {state['step']}" if state["step"] else ""
        print(f"Resuming from {folder} after epoch {state['epoch']}{step}")
        return state["epoch"]

    def _require_whole(self, path, state):
        """Raise InputError for a checkpoint of this training that the run cannot go on from: the one before may be
        whole. What is of another training is refused where it is loaded."""
        if state.get("trainer") != type(self).__name__ or not same_training(self, state):
            return
        self._fitting(path, state)
        try:
            lacking = [key for key in NEEDED if key not in state]
            if lacking:
                raise KeyError(lacking[0])
            epoch, step, batches = state["epoch"], state["step"], self._batches()
            if batches and step > batches or state.get("best_epoch", 0) > epoch:
                raise InputError(f"it says batch {step} of {batches}, best epoch {state.get('best_epoch', 0)} of "
                                 f"{epoch}")
            for (optim, sched), optim_state, sched_state in zip(self.optimizers, state["optimizers"],
                                                                state["schedules"], strict=True):
                require_fits(optim, sched, optim_state, sched_state, epoch, (epoch + 1) * max(batches, 1),
                             same_kind=bool(state.get("made_for")))
            require_rng_state(state["rng"])
            self.load_extra_state(state.get("extra", {}))  # another checkpoint's takes its place
        except InputError as error:
            raise InputError(f"{path} is damaged: {error}; delete it") from None
        except MISFITS as error:
            raise does_not_fit(path, error) from None

    def _batches(self):
        """How many batches an epoch has; 0 where there is no loader."""
        return len(self.train_loader_x) if self.train_loader_x is not None else 0

    def _go_on_from(self, state, changed):
        """Optimizers, schedules, loss scale, threads, generators and position as a checkpoint holds them; where
        settings of the training have changed, rates as the new ones give them at that position."""
        for (optim, sched), optim_state, sched_state in zip(self.optimizers, state["optimizers"], state["schedules"],
                                                            strict=True):
            go_on(optim, sched, optim_state, sched_state, changed, state["epoch"])
        self.precision.load_state_dict(state["precision"])
        if state.get("ranks", 1) == world_size():  # with another number all is rounded differently anyway
            self._compute_as(state["threads"], state["activation_bytes"])
        self.best_result, self.best_epoch = state["best_result"], state.get("best_epoch", 0)
        self.went_on_from_finished = state.get("finished", False)
        self._budget.go_on(state.get("budget"))
        self.first_batch = state["step"]
        set_rng_state(state["rng"])

    def _compute_as(self, threads, activation_bytes):
        """Take the number of threads and the size of chunks that the run began with, as other ones round differently;
        those of a larger machine are said and left."""
        now, own = torch.get_num_threads(), self.towers.text.activation_bytes
        memory = (torch.cuda.get_device_properties(self.device).total_memory if self.device.type == "cuda" else
                  psutil.virtual_memory().total)
        for name, before, here, most in (("threads", threads, now, os.cpu_count() or 1),
                                         ("bytes at a time", activation_bytes, own, memory)):
            if before > most and before != here:
                print(f"Warning: the run was computed with {before:,} {name}, more than this machine has ({most:,}); "
                      f"it goes on with {here:,}, and its numbers may be rounded otherwise")
        if threads <= (os.cpu_count() or 1) and threads != now:
            print(f"Note: computed with {threads} threads, as the run began, not with {now}")
            torch.set_num_threads(threads)
        if activation_bytes <= memory:
            self.towers.text.activation_bytes = activation_bytes

    def load_model(self, directory, epoch=None):
        """Take the prompts of a trained run: of `epoch` (from 1), else the best on validation if kept, else the last.

        Raises:
            InputError: there is no such checkpoint, or it is another method's, or was trained with another backbone or
                other settings (`dassl.engine.identity`), or is of another shape.
        """
        if not directory or not self.trains:
            return
        folder = os.path.join(directory, "prompt_learner")
        best = os.path.join(folder, BEST)
        if epoch is not None:
            path = os.path.join(folder, f"model.pth.tar-{epoch}")
        elif os.path.isfile(best) or self.cfg.TEST.FINAL_MODEL == "best_val":
            path = best
        else:
            path = self._newest(folder)
        if not os.path.isfile(path):
            raise InputError(f"no checkpoint at {path}; check --model-dir and --load-epoch")
        state, self.changed = self._load_state(path, check_evaluated)
        self.note(f"Loaded {path} (epoch {state.get('epoch', '?')})")

    @staticmethod
    def _newest(folder):
        name = noted_checkpoint(folder)
        if name is None:
            raise InputError(f"no trained prompts in {folder}; check --model-dir")
        return os.path.join(folder, name)

    def _load_state(self, path, check):
        """Put a checkpoint's trained tensors in their places. Returns its other contents, and what
        `check(self, path, contents)` gives, which compares what it was trained for."""
        state = load_checkpoint(path)
        self._named(path, state)
        answer = check(self, path, state) if state.get("trainer") == type(self).__name__ else None
        tensors, own = self._fitting(path, state)
        trained_on = list(state.get("classnames", []))
        if self.class_bound and trained_on != list(self.dm.dataset.classnames):
            raise InputError(f"{path} was trained on other classes ({', '.join(trained_on[:3])}, ...), and "
                             f"what {type(self).__name__} learns with this config belongs to its classes")
        for name, tensor in tensors.items():
            own[name].data.copy_(tensor)
        try:
            self.load_extra_state(state.get("extra", {}))
        except InputError as error:
            raise InputError(f"{path} is damaged: {error}; train again") from None
        except MISFITS as error:
            raise does_not_fit(path, error) from None
        return state, answer

    @staticmethod
    def _named(path, state):
        """The state_dict of a checkpoint. Raises InputError where it holds no named tensors."""
        tensors = state.get("state_dict", {})
        if not isinstance(tensors, dict) or not all(torch.is_tensor(tensor) for tensor in tensors.values()):
            raise InputError(f"{path} is not a checkpoint of prompts: its state_dict does not hold named tensors")
        return tensors

    def _fitting(self, path, state):
        """({name: stored tensor}, {name: parameter}) of what is trained and belongs to these classes.

        Raises InputError where they are not of each other."""
        tensors = self._named(path, state)
        own = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if self.class_tensors and list(state.get("classnames", ())) != list(self.dm.dataset.classnames):
            own, tensors = ({n: t for n, t in named.items() if not n.startswith(self.class_tensors)}
                            for named in (own, tensors))
        if state.get("trainer") != type(self).__name__ or set(tensors) != set(own):
            raise InputError(f"{path} holds {state.get('trainer', 'another kind of trainer')} with "
                             f"{', '.join(sorted(map(str, tensors)))[:300]}; {type(self).__name__} needs "
                             f"{', '.join(sorted(own))}")
        for name, tensor in tensors.items():
            if tensor.shape != own[name].shape:
                hint = ("it belongs to the classes it was trained on" if self.class_bound else
                        "use the config it was trained with")
                raise InputError(f"{path}: {name} has shape {tuple(tensor.shape)}, this run needs "
                                 f"{tuple(own[name].shape)}; {hint}")
            if problem := problem_of_values(tensor, own[name]):
                raise InputError(f"{path}: {name} {problem}; train again")
        return tensors, own
