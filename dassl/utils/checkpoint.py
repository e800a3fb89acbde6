"""Checkpoints: written whole or not at all, read without running code."""
import os
import pickle

import torch

from dassl.utils.errors import InputError


def write_atomically(fpath, write):
    """Call `write(file)` on a temporary file beside `fpath`, flush it to disk and rename it to `fpath`."""
    os.makedirs(os.path.dirname(fpath) or ".", exist_ok=True)
    temporary = f"{fpath}.tmp{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, fpath)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def save_checkpoint(state, save_dir, is_best=False, remove_module_from_keys=True, model_name=""):
    """Write `state` to `save_dir/<model_name or model.pth.tar-<epoch>>` and name that file in `save_dir/checkpoint`.

    Args:
        state: dict with "state_dict" and "epoch" (1-based); tensors, numbers, strings and containers of them.
        is_best: also write `model-best.pth.tar`.
        remove_module_from_keys: drop the "module." that DataParallel puts before each name.
        model_name: file name; `model-best.pth.tar` is not noted as the newest.
    """
    if remove_module_from_keys:
        state = dict(state, state_dict={k.removeprefix("module."): v for k, v in state["state_dict"].items()})
    name = model_name or f"model.pth.tar-{state['epoch']}"
    fpath = os.path.join(save_dir, name)
    write_atomically(fpath, lambda file: torch.save(state, file))
    if name != "model-best.pth.tar":
        write_atomically(os.path.join(save_dir, "checkpoint"), lambda file: file.write(f"{name}\n".encode()))
    if is_best:
        write_atomically(os.path.join(save_dir, "model-best.pth.tar"), lambda file: torch.save(state, file))
    print(f"Checkpoint saved to {fpath}")


def load_checkpoint(fpath):
    """The dict stored at `fpath`, its tensors on the CPU. Nothing pickled is executed.

    Raises:
        FileNotFoundError: no such file.
        InputError: not a checkpoint, damaged, or holding more than plain data.
    """
    if fpath is None:
        raise InputError("no checkpoint path was given")
    if not os.path.exists(fpath):
        raise FileNotFoundError(f'File is not found at "{fpath}"')
    try:
        loaded = torch.load(fpath, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{fpath} is not a checkpoint that can be loaded safely ({reason[:120]}); "
                         "delete it or train again") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{fpath} is not a checkpoint: it holds a {type(loaded).__name__} instead of named tensors")
    return loaded


def resume_from_checkpoint(fdir, model, optimizer=None, scheduler=None):
    """Load the newest checkpoint of `fdir` into model, optimizer and scheduler; returns the epoch to go on with."""
    with open(os.path.join(fdir, "checkpoint"), encoding="utf-8") as file:
        fpath = os.path.join(fdir, os.path.basename(file.readline().strip()))
    print(f'Loading checkpoint from "{fpath}"')
    checkpoint = load_checkpoint(fpath)
    model.load_state_dict(checkpoint["state_dict"])
    if optimizer is not None and checkpoint.get("optimizer") is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])
    if scheduler is not None and checkpoint.get("scheduler") is not None:
        scheduler.load_state_dict(checkpoint["scheduler"])
    print(f"Previous epoch: {checkpoint['epoch']}")
    return checkpoint["epoch"]


def load_pretrained_weights(model, weight_path):
    """Copy the tensors of a checkpoint whose name and shape fit into `model`; the others are listed."""
    checkpoint = load_checkpoint(weight_path)
    state_dict = checkpoint.get("state_dict", checkpoint)
    state_dict = {k.removeprefix("module."): v for k, v in state_dict.items()}
    own = model.state_dict()
    matched = {k: v for k, v in state_dict.items() if k in own and own[k].shape == v.shape}
    if not matched:
        raise InputError(f"no tensor of {weight_path} fits the model (its tensors: {', '.join(list(own)[:4])} ...)")
    own.update(matched)
    model.load_state_dict(own)
    left = sorted(set(state_dict) - set(matched))
    print(f"Loaded {len(matched)} tensors from {weight_path}" + (f"; left out: {', '.join(left)}" if left else ""))
