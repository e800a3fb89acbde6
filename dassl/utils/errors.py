"""Errors that are the user's to mend. Everything else that is raised is a bug and keeps its traceback."""
import errno

GOES_ON = "the same command then goes on from the last checkpoint"
ADVICE = {
    errno.ENOSPC: f"free some space; {GOES_ON}",
    errno.EDQUOT: f"free some of your quota; {GOES_ON}",
    errno.EACCES: "check owner and permissions, or choose another folder",
    errno.EPERM: "check owner and permissions, or choose another folder",
    errno.EROFS: "choose a folder that can be written",
    errno.EMFILE: "raise the limit of open files (ulimit -n) or lower DATALOADER.NUM_WORKERS",
    errno.ELOOP: "a symbolic link leads to itself; mend or remove it",
    errno.ENAMETOOLONG: "choose a shorter name",
}


# What torch and multiprocessing say where a worker could not hand its batch over.
OUT_OF_FILES = ("items of ancdata", "Too many open files", "shared memory object")
# What CUDA and its libraries say where torch could not ask for the memory itself.
OUT_OF_GPU = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
LONGEST = 4000  # letters of a line that names what was given, which may have any length


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: what, where, what to do about it."""

    def __init__(self, message):
        # A loader worker hands an exception on by calling its class with the worker's whole traceback as the
        # message; only its last line is meant for the user.
        if "Original Traceback" in message:
            message = message.rstrip().rsplit("InputError: ", 1)[-1]
        line = " ".join(message.split())
        super().__init__(line if len(line) <= LONGEST else f"{line[:LONGEST - 1000]} [...] {line[-900:]}")


class NonFiniteError(InputError, FloatingPointError):
    """A loss, a gradient or a logit is infinite or NaN."""


def surroundings(error):
    """One line for an error that comes from the machine and not from the code: its disk, its memory, its workers.
    None for any other."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        advice = ADVICE.get(error.errno or 0)
        return f"{text}; {advice}" if advice else text
    if type(error).__name__ == "OutOfMemoryError" or (
            isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_GPU)):
        return (f"the GPU is out of memory ({text.split('. ')[0][:160]}); lower DATALOADER.TRAIN_X.BATCH_SIZE (in a "
                "test DATALOADER.TEST.BATCH_SIZE) or, with many classes, TRAIN.TEXT_MEMORY_MB, use PREC amp or bf16, "
                f"or end what else runs on the GPU (nvidia-smi lists it); {GOES_ON}")
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return ("out of memory; lower the batch sizes or whatever number of this run is very large "
                f"({text[-160:] or 'MemoryError'})")
    died = "DataLoader worker" in text and "Original Traceback" not in text  # else it hands on an error of the code
    if isinstance(error, RuntimeError) and (died or any(words in text for words in OUT_OF_FILES)):
        told = text[:120] if died else text[-120:]
        return (f"a loader worker died ({told}); it may have run out of memory or files: lower "
                f"DATALOADER.NUM_WORKERS; {GOES_ON}")
    return None


def last_line(text, most=120):
    """The last line of a text that is not empty, cut to `most` characters; "" if there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:most] if lines else ""
