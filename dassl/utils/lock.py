"""One writer per folder."""
import contextlib
import errno
import json
import os
import re
import socket
from typing import TextIO

from dassl.utils.errors import InputError
from dassl.utils.files import open_own, open_regular
from dassl.utils.optional import optional_module

fcntl = optional_module("fcntl")  # None: what the file says decides alone
LOCK_NAME = ".lock"
TRIES = 100  # to lock a file that others remove meanwhile
# (process, real path of a folder) -> its lock: the kernel's lock is one for all threads of a process
_HELD_HERE: "dict[tuple[int, str], FolderLock]" = {}
HELD = (errno.EACCES, errno.EAGAIN)


class FolderLock:
    """`with FolderLock(folder):` this process is the only one that writes there.

    The lock is the kernel's on the file `.lock` (a POSIX record lock): it ends with its process, however that dies, it
    is not inherited by a loader's workers, and it holds across machines on NFS. It does not tell the threads of a
    process apart, for which the process remembers what it holds. The file says who holds it, for the message, and
    decides where a file system has no locks and between machines that may not see each other's. The file is removed at
    the end.

    A Slurm job that is requeued after a kill or the loss of its node may start again on another machine. The file names
    the job, too: Slurm has ended a job before it starts it again, so a holder that was an earlier start of this very
    job is gone.

    Raises:
        InputError: another process or thread holds it, the folder cannot be written, or its `.lock` is a link.
    """

    def __init__(self, folder):
        self.folder, self.path = folder, os.path.join(folder, LOCK_NAME)
        self.file: TextIO | None = None

    def __enter__(self):
        self.place = _place(self.folder)
        if _HELD_HERE.setdefault(self.place, self) is not self:  # before its file is opened: closing it would unlock it
            raise InputError(self._complaint(_signature()))
        try:
            os.makedirs(self.folder, exist_ok=True)
            self.file = self._open()
        except OSError as error:
            raise InputError(f"cannot write to the run folder {self.folder} ({error.strerror}); mend that or choose "
                             "another --output-dir (--output, for the scripts OUTPUT)") from None
        finally:
            if self.file is None:
                del _HELD_HERE[self.place]
        return self

    def __exit__(self, *exception):
        if self.file is not None:
            if self._still_there(self.file):  # not another one's that has come in its place
                with contextlib.suppress(OSError):
                    os.remove(self.path)
            self.file.close()
        del _HELD_HERE[self.place]

    def require_still_held(self):
        """Raise InputError where the file or its folder was removed or replaced: others may write there by now."""
        if self.file is not None and not self._still_there(self.file):
            raise InputError(f"{self.path} was removed or replaced while this run was writing to the folder, which "
                             "another may do by now; let nobody touch it, and start the same command again: it goes on "
                             "from the last checkpoint that is left")

    def _open(self):
        for _ in range(TRIES):
            file = open_own(self.path, "a+", encoding="utf-8")
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
        raise InputError(f"{self.path} is removed or replaced all the time; choose another "
                         "--output-dir (--output, for the scripts OUTPUT)")

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
            if isinstance(holder, dict) and _is_holder(holder):
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
        line = (f"{self.folder} is in use by {who}; wait for it or choose another --output-dir (--output, for the "
                "scripts OUTPUT)")
        if holder and holder.get("host") != socket.gethostname():
            line += f" (if that process is gone, which cannot be seen from this machine, delete {self.path})"
        return line

    def _still_there(self, file):
        with contextlib.suppress(OSError):
            return os.path.samestat(os.lstat(self.path), os.fstat(file.fileno()))
        return False

    @staticmethod
    def _sign(file):
        file.truncate(0)
        file.write(json.dumps(_signature()))
        file.flush()


def require_still_held(path):
    """Raise InputError where a file to be written lies in a folder that this process has locked, and whose lock it has
    lost. Call it before writing."""
    folder = os.path.realpath(os.path.dirname(path)) if _HELD_HERE else ""
    while folder:
        if lock := _HELD_HERE.get((os.getpid(), folder)):
            lock.require_still_held()
        folder = os.path.dirname(folder) if os.path.dirname(folder) != folder else ""


def lock_holder(folder):
    """Who holds, or held when it was killed, the lock of a folder: {"pid", "host"}, for a Slurm job also {"job",
    "starts"}. {} if nobody does."""
    if _place(folder) in _HELD_HERE:
        return _signature()
    with contextlib.suppress(OSError, UnicodeDecodeError), \
            open_regular(os.path.join(folder, LOCK_NAME), "r", encoding="utf-8") as file:
        return FolderLock._holder(file)
    return {}


def _place(folder):
    return os.getpid(), os.path.realpath(folder)


def _signature():
    """What this process writes into the file."""
    return {"pid": os.getpid(), "host": socket.gethostname(), **slurm_job()}


def _is_holder(found):
    """Whether a dict from a file may be such a signature: its words go into messages, commands and names of files."""
    pid, host, job = found.get("pid"), found.get("host"), found.get("job", "1")
    return (type(pid) is int and 0 < pid < 2**31 and isinstance(host, str) and host.isprintable()
            and isinstance(job, str) and re.fullmatch(r"\w+", job) is not None)


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
