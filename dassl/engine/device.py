"""Where a run computes: on the first GPU that torch sees, else on the CPU; and what to say where a GPU was meant."""
import glob
import os

import torch

from dassl.utils import require_own_gpu

NONE_MEANT = ("", "NoDevFiles")  # in CUDA_VISIBLE_DEVICES; Slurm says the second to jobs without a GPU
MEANT = "or say USE_CUDA False, if the CPU is meant"


def device_of_run(use_cuda: bool) -> torch.device:
    """The device of a run: "cuda", which is the first of CUDA_VISIBLE_DEVICES and in a process of torchrun that of its
    number, else the CPU, with a line where that may not be what was meant.

    Raises InputError where this machine has more processes of the run than GPUs."""
    if use_cuda and torch.cuda.is_available():
        require_own_gpu()
        return torch.device("cuda")
    if use_cuda and (line := no_gpu()):
        print(line)
    return torch.device("cpu")


def no_gpu() -> str:
    """A line on GPUs that were asked for, or are there, and that torch does not see; "" where there is nothing to say.
    """
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    files = sorted(glob.glob("/dev/nvidia[0-9]*"))
    if asked is not None and (asked.strip() in NONE_MEANT or asked.strip().startswith("-")):
        return ""  # CUDA takes the numbers before the first that is none
    if asked is not None or files:
        found = f"CUDA_VISIBLE_DEVICES={asked} asks for a GPU" if asked is not None else f"there is a GPU ({files[0]})"
        return f"Warning: {found}, but torch sees none, and the run is on the CPU; {_cause(asked)}, {MEANT}"
    if torch.backends.mps.is_available():
        return "Note: the run is on the CPU; Apple's GPU (MPS) is not supported"
    return ""


def _cause(asked: str | None) -> str:
    """What to look at where torch sees no GPU."""
    if not torch.backends.cuda.is_built():
        return f"this torch ({torch.__version__}) is built without CUDA: install one that has it (pytorch.org)"
    numbers = "" if asked is None else " has GPUs of these numbers and"
    return f"look whether nvidia-smi{numbers} shows a driver that is new enough for CUDA {torch.version.cuda}"
