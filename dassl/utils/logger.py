"""What is printed also goes to `log.txt` of the run folder."""
import os
import sys

from dassl.utils.text import escaped, write_escaped


class Logger:
    """A stdout that also writes to a file. `close()` puts the former stdout back."""

    def __init__(self, fpath):
        os.makedirs(os.path.dirname(fpath) or ".", exist_ok=True)
        self.console = sys.stdout
        self.file = open(fpath, "a", encoding="utf-8", buffering=1)

    def __getattr__(self, name):
        return getattr(self.__dict__["console"], name)

    def write(self, text):
        write_escaped(self.console, text)
        self.file.write(escaped(text))
        return len(text)

    def flush(self):
        self.console.flush()
        self.file.flush()

    def close(self):
        if sys.stdout is self:
            sys.stdout = self.console
        self.file.close()


def setup_logger(output=None):
    """Copy stdout to `output`: a folder (then `log.txt` in it) or a .txt or .log file, appended to.

    Returns the Logger; None without `output`."""
    if output is None:
        return None
    fpath = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    sys.stdout = Logger(fpath)
    return sys.stdout
