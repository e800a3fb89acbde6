"""A checkpoint: written whole or not at all, read without running code. Which one of a folder is meant,
`checkpoint_folder.py` says."""
import contextlib
import io
import os
import re
import secrets
import warnings
import zipfile
from typing import Any

import torch

from dassl.utils.errors import InputError
from dassl.utils.files import open_own, open_regular, require_own_folder
from dassl.utils.lock import require_still_held
from dassl.utils.stored import problem_of_state, problem_of_values, require, require_plain

BEST = "model-best.pth.tar"
MISFITS = (LookupError, TypeError, ValueError, RuntimeError, AttributeError)  # what a state that does not fit raises
INTERRUPTED = "model-interrupted.pth.tar"  # of the point within an epoch where a signal ended the run


def checkpoint_name(epoch: int) -> str:
    """The file name of the checkpoint of a finished epoch (from 1)."""
    return f"model.pth.tar-{epoch}"


def epoch_of(name: str) -> int | None:
    """The epoch (from 1) that the file name of a checkpoint says; None for another name."""
    found = re.fullmatch(r"model\.pth\.tar-(\d+)", name)
    return int(found[1]) if found else None


def write_atomically(fpath, write):
    """Call `write(file)` on a temporary file beside `fpath`, flush it to disk and rename it to `fpath`. What was there
    is replaced; where that was a link, what it led to stays as it is.

    Raises:
        InputError: `fpath` lies in a folder whose lock this process held and has lost.
    """
    require_still_held(fpath)
    os.makedirs(os.path.dirname(fpath) or ".", exist_ok=True)
    temporary = f"{fpath}.tmp{os.getpid()}{secrets.randbelow(10**9):09}"  # of this write alone, which none foresees
    with open_own(temporary, "xb") as file:
        try:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, fpath)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.remove(temporary)
            raise
    flush_folder(os.path.dirname(fpath) or ".")


def flush_folder(folder):
    """Make a rename in `folder` survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_torn_files(folder):
    """Remove what writers that were killed left in a run folder and in its models' folders, not in other runs' folders
    that may lie below, nor in what links lead to. Call it as the folder's one writer."""
    with os.scandir(folder) as found:
        entries = list(found)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            torn = [inner for inner in os.listdir(entry.path)
                    if re.fullmatch(r"(checkpoint|model.*\.tar.*|shot_.*\.json)\.tmp\d+", inner)]
            for inner in torn:
                os.remove(os.path.join(entry.path, inner))
        elif re.search(r"\.tmp\d+$", entry.name):
            os.remove(entry.path)


def save_checkpoint(state, save_dir, is_best=False, remove_module_from_keys=True, model_name=""):
    """Write `state` to `save_dir/<model_name or model.pth.tar-<epoch>>` and name that file in `save_dir/checkpoint`.

    Args:
        state: dict with "state_dict" and "epoch" (1-based); tensors, numbers, strings and containers of them.
        is_best: also write `model-best.pth.tar`.
        remove_module_from_keys: drop the "module." that DataParallel puts before each name.
        model_name: file name; the best and the interrupted model are not noted as the newest.
    Raises:
        InputError: `save_dir` is a link.
    """
    require_own_folder(save_dir)
    if remove_module_from_keys:
        state = dict(state, state_dict={k.removeprefix("module."): v for k, v in state["state_dict"].items()})
    name = model_name or checkpoint_name(state["epoch"])
    fpath = os.path.join(save_dir, name)
    whole = io.BytesIO()  # torch.save into a file hides what went wrong with the file
    torch.save(state, whole)
    write_atomically(fpath, lambda file: file.write(whole.getbuffer()))
    if name not in (BEST, INTERRUPTED):
        note_checkpoint(save_dir, name)
    if is_best:
        write_atomically(os.path.join(save_dir, BEST), lambda file: file.write(whole.getbuffer()))
    print(f"Checkpoint saved to {fpath}")


def load_checkpoint(fpath) -> dict[str, Any]:
    """The dict stored at `fpath`, its tensors on the CPU. Nothing pickled is executed.

    Raises:
        FileNotFoundError: no such file.
        InputError: not a checkpoint, damaged, or holding more than plain data; a field that a checkpoint of this
            project has is there and holds something else.
    """
    if fpath is None:
        raise InputError("no checkpoint path was given")
    if not os.path.exists(fpath):
        raise FileNotFoundError(f'File is not found at "{fpath}"')
    try:
        _require_unpacked(fpath)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch finds odd in a file is either refused or harmless
            with open_regular(fpath) as file:
                loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in the unpickler
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{fpath} is not a checkpoint that can be loaded safely ({reason[:120]}); "
                         "delete it or train again") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{fpath} is not a checkpoint: it holds a {type(loaded).__name__} instead of named tensors")
    require_plain(loaded, fpath, os.path.getsize(fpath))
    require("checkpoint", loaded, fpath, "delete it or train again")
    identity = loaded.get("made_for")
    if not (identity is None or identity == {}):  # of a time when they had none, or of a trainer without a config
        require("made_for", identity, fpath, "train again",
                "what it says of its training (made_for) cannot be read, ")
    _require_place(fpath, loaded)
    return loaded


def _require_place(path, state):
    """Raise InputError where a checkpoint is not of the epoch that its name says, or further than its training was to
    go: what was not trained must not count as finished."""
    epoch, step, training = state.get("epoch"), state.get("step", 0), (state.get("made_for") or {}).get("training", {})
    named = epoch_of(os.path.basename(path))
    if None not in (named, epoch) and named != epoch:
        raise InputError(f"{path} is damaged: it says that it is of epoch {epoch}; delete it or train again")
    last, finished = training.get("OPTIM.MAX_EPOCH"), state.get("finished")
    if finished is None or epoch is None or not isinstance(last, int):
        return  # of a foreign trainer, or of a former version
    if epoch > last or epoch == last and (step or not finished):
        raise InputError(f"{path} is damaged: it says that {epoch} of {last} epochs and {step} batches are done and "
                         f"that the training is{'' if finished else ' not'} finished; delete it or train again")


def _require_unpacked(fpath):
    """Raise ValueError for an archive with compressed parts: torch writes none, and a few bytes may stand for more than
    memory holds."""
    with open_regular(fpath) as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                    raise ValueError("it is compressed")


def note_checkpoint(folder: str, name: str) -> None:
    """Let the folder's file `checkpoint` name its newest one, if there is such a checkpoint."""
    require_own_folder(folder)
    if os.path.isfile(os.path.join(folder, name)) and noted_checkpoint(folder) != name:
        write_atomically(os.path.join(folder, "checkpoint"), lambda file: file.write(f"{name}\n".encode()))


def noted_checkpoint(folder: str) -> str | None:
    """The file name that the folder's file `checkpoint` holds, None if there is none."""
    with contextlib.suppress(OSError, UnicodeDecodeError), \
            open_regular(os.path.join(folder, "checkpoint"), "r", encoding="utf-8") as file:
        return os.path.basename(file.readline(1000).strip()) or None
    return None


def load_tensors(model, state_dict, path):
    """`model.load_state_dict(state_dict)` of a checkpoint's. Raises InputError where it does not fit or has values that
    no training leaves."""
    if not isinstance(state_dict, dict):
        raise InputError(f"{path} is not a checkpoint of a model: its state_dict does not hold named tensors")
    if problem := problem_of_state(model, state_dict):
        raise InputError(f"{path}: {problem}; use the config it was trained with, or train again")
    try:
        model.load_state_dict(state_dict)
    except MISFITS as error:
        raise InputError(f"{path} does not fit the model ({' '.join(str(error).split())[:300]}); use the config it was "
                         "trained with, or train again") from None


def does_not_fit(path, error):
    """The InputError for a checkpoint whose contents raised `error`, one of MISFITS."""
    return InputError(f"{path} lacks what a run needs to go on ({type(error).__name__}: {str(error)[:300]}); delete it")


@contextlib.contextmanager
def refusing(path, words="{path}: {error}"):
    """Within it what the contents of the checkpoint `path` raise becomes an InputError in one line: an InputError in
    these `words`, one of MISFITS as `does_not_fit` says it."""
    try:
        yield
    except InputError as error:
        raise InputError(words.format(path=path, error=error)) from None
    except MISFITS as error:
        raise does_not_fit(path, error) from None


def load_pretrained_weights(model, weight_path, but=()):
    """Copy the tensors of a checkpoint whose name and shape fit into `model`, those that its method evaluates in the
    place of the trained ones; the others are listed. `but`: names of tensors that stay as they are."""
    checkpoint = load_checkpoint(weight_path)
    state_dict = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state_dict, dict):
        raise InputError(f"{weight_path}: its state_dict does not hold named tensors")
    if "state_dict" in checkpoint:
        state_dict = {**state_dict, **checkpoint.get("evaluated", {})}
    state_dict = {str(k).removeprefix("module."): v for k, v in state_dict.items()}
    own = model.state_dict()
    matched = {k: v for k, v in state_dict.items()
               if k in own and k not in but and torch.is_tensor(v) and own[k].shape == v.shape}
    if not matched:
        raise InputError(f"no tensor of {weight_path} fits the model (its tensors: {', '.join(list(own)[:4])} ...)")
    for name, tensor in matched.items():
        if problem := problem_of_values(tensor, own[name]):
            raise InputError(f"{weight_path}: {name} {problem}; a model cannot begin with that")
    own.update(matched)
    model.load_state_dict(own)
    left = sorted(set(state_dict) - set(matched))
    print(f"Loaded {len(matched)} tensors from {weight_path}" + (f"; left out: {', '.join(left)}" if left else ""))
