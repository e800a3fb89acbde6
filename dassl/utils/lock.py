"""One writer a folder."""
import contextlib
import errno
import json
import os
import socket

try:
    import fcntl
except ImportError:  # not a POSIX system: what the file says decides alone
    fcntl = None

from dassl.utils.errors import InputError

LOCK_NAME = ".lock"
HELD = (errno.EACCES, errno.EAGAIN)


class FolderLock:
    """`with FolderLock(folder):` this process is the only one that writes there.

    The lock is the kernel's on the file `.lock` (a POSIX record lock): it ends with its process, however that dies, it
    is not inherited by a loader's workers, and it holds across machines on NFS. The file says who holds it, for the
    message, and decides where a file system has no locks and between machines that may not see each other's. The file
    is removed at the end.

    A Slurm job that is requeued after a kill or the loss of its node may start again on another machine. The file names
    the job, too: Slurm has ended a job before it starts it again, so a holder that was an earlier start of this very
    job is gone.

    Raises:
        InputError: another process holds it, or the folder cannot be written.
    """

    def __init__(self, folder):
        self.folder, self.path = folder, os.path.join(folder, LOCK_NAME)

    def __enter__(self):
        try:
            os.makedirs(self.folder, exist_ok=True)
            self.file = self._open()
        except OSError as error:
            raise InputError(f"cannot write to the run folder {self.folder} ({error.strerror}); mend that or choose "
                             "another --output-dir") from None
        return self

    def __exit__(self, *exception):
        with contextlib.suppress(OSError):
            os.remove(self.path)
        self.file.close()

    def _open(self):
        while True:
            file = open(self.path, "a+", encoding="utf-8")
            try:
                locked = self._lock(file)
                holder = self._holder(file)
                if self._refused(holder, locked):
                    raise InputError(self._complaint(holder))
                if not self._still_there(file):  # the holder before removed it between our opening and locking
                    file.close()
                    continue
                self._sign(file)
                return file
            except BaseException:
                file.close()
                raise

    def _lock(self, file):
        """Whether the kernel gave the lock; None on a file system that has none."""
        if fcntl is None:
            return None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return False if error.errno in HELD else None
        return True

    @staticmethod
    def _holder(file):
        """{"pid", "host"} that the file names, for a Slurm job also {"job", "starts"}; {} for a fresh or a torn one."""
        file.seek(0)
        with contextlib.suppress(ValueError, RecursionError):
            holder = json.loads(file.read(1000))
            if isinstance(holder, dict) and isinstance(holder.get("pid"), int):
                return holder
        return {}

    @staticmethod
    def _refused(holder, locked):
        if locked is False:
            return True
        if not holder or _former_start(holder):
            return False
        if holder.get("host") != socket.gethostname():
            return True  # whether that process lives cannot be seen from here
        return locked is None and holder["pid"] != os.getpid() and _alive(holder["pid"])

    def _complaint(self, holder):
        who = f"process {holder['pid']} on {holder.get('host')}" if holder else "another process"
        line = f"{self.folder} is in use by {who}; wait for it or choose another --output-dir"
        if holder and holder.get("host") != socket.gethostname():
            line += f" (if that process is gone, which cannot be seen from this machine, delete {self.path})"
        return line

    def _still_there(self, file):
        with contextlib.suppress(OSError):
            return os.path.samestat(os.stat(self.path), os.fstat(file.fileno()))
        return False

    @staticmethod
    def _sign(file):
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), **slurm_job()}))
        file.flush()


def lock_holder(folder):
    """Who holds, or held when it was killed, the lock of a folder: {"pid", "host"}, for a Slurm job also {"job",
    "starts"}. {} if nobody does."""
    with contextlib.suppress(OSError, UnicodeDecodeError), \
            open(os.path.join(folder, LOCK_NAME), encoding="utf-8") as file:
        return FolderLock._holder(file)
    return {}


def lives_here(holder):
    """Whether a lock's holder is a living process of this machine."""
    return bool(holder) and holder.get("host") == socket.gethostname() and _alive(holder["pid"])


def slurm_job():
    """{"job", "starts"} inside a Slurm job: its id as squeue prints it (123, or 123_4 for a task of an array) and how
    often it was requeued; {} elsewhere."""
    array, task, job = (os.environ.get(f"SLURM_{name}") for name in ("ARRAY_JOB_ID", "ARRAY_TASK_ID", "JOB_ID"))
    starts = os.environ.get("SLURM_RESTART_COUNT", "0")
    if not job or not starts.isdecimal():
        return {}
    return {"job": f"{array}_{task}" if array and task else job, "starts": int(starts)}


def _former_start(holder):
    """Whether a lock's holder was an earlier start of this Slurm job. Of the same start it may be a process beside us.
    """
    ours = slurm_job()
    starts = holder.get("starts")
    return bool(ours) and holder.get("job") == ours["job"] and isinstance(starts, int) and starts < ours["starts"]


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
