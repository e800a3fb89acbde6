"""Processes that end with the one that has started them. Imports the standard library only, so that a process can
begin with it: torch takes seconds."""
import contextlib
import functools
import os
import threading
import time

PARENT_POLL = 0.5  # seconds between two looks whether the parent lives


@functools.cache
def end_with_parent(parent):
    """From now on this process ends at once when its parent, the process `parent`, is gone, however that died.

    What it writes is written so that a kill at any moment leaves it whole. A thread looks, as no system but Linux sends
    a signal then, and Linux sends it when the thread ends that has started the process."""
    threading.Thread(target=_outlive_nobody, args=(parent,), daemon=True).start()


def _outlive_nobody(parent):
    while os.getppid() == parent:
        time.sleep(PARENT_POLL)
    with contextlib.suppress(OSError):
        os.write(2, f"process {os.getpid()} ends: the one that has started it, {parent}, is gone\n".encode())
    os._exit(1)


def orphaned(pid):
    """Whether a process of this machine has lost the one that started it, as far as can be seen (in /proc): it was
    handed on to a process of another session, and did not begin a session itself. Handed on to the first process of
    all, it is one in any case, also where it was meant to run alone. One that has ended is none."""
    with contextlib.suppress(OSError, ValueError):
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state, number = file.read().rpartition(")")[2].split()[:2]
        parent = int(number)
        return state != "Z" and (parent == 1 or os.getsid(parent) != os.getsid(pid) != pid)
    return False
