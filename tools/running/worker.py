"""A process of --jobs: it is given runs and makes them, one at a time. tools/running/side_by_side.py starts it, with
its own process id and the handle of a pipe. Through it come the settings, then RunSpecs; how far a run is, what a user
must see of what it prints, and its results go back.
"""
import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def work(pipe: Connection) -> None:
    """The life of the process. Its prints are in the runs' log.txt."""
    settings = pipe.recv()
    sys.path[:] = settings["path"]

    import torch

    import train
    from runs.listener import Noticing

    def tell(kind: str, content: Any) -> None:
        with contextlib.suppress(OSError):  # the parent listens no more, and will end this process
            pipe.send((kind, content))

    torch.set_num_threads(settings["threads"])
    multiprocessing.set_start_method(settings["start_method"], force=True)  # of loader workers
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")
    clips: dict[str, Any] = {}
    seen: dict[str, Any] = {}
    while True:
        spec = pipe.recv()
        listener = Noticing(lambda point: tell("reached", point), lambda line: tell("noticed", line))
        try:
            with listener.heard():
                results = train.main(spec, clips=clips, seen=seen, listener=listener)
            answer: tuple[str, Any] = ("made" if listener.made else "before", results)
        except Exception as error:
            reason = train.mendable(error)
            answer = ("broken", traceback.format_exc()) if reason is None else ("failed", reason)
        pipe.send(answer)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers itself
    # Before anything that takes long: the parent may be killed meanwhile.
    runpy.run_path(os.path.join(ROOT, "dassl", "utils", "processes.py"))["end_with_parent"](int(sys.argv[1]))
    with contextlib.suppress(EOFError):
        work(Connection(int(sys.argv[2])))
