"""What is printed also goes to `log.txt` of the run folder."""
import os
import sys

from dassl.utils.files import open_own
from dassl.utils.text import escaped, write_escaped


class Logger:
    """A stdout that also writes to a file. `close()` puts the former stdout back.

    console: the stream that is written to beside the file; default the stdout of now.
    Raises InputError for a file that is a link or has another name (`open_own`)."""

    def __init__(self, fpath, console=None):
        os.makedirs(os.path.dirname(fpath) or ".", exist_ok=True)
        self.former = sys.stdout
        self.console = sys.stdout if console is None else console
        self.file = open_own(fpath, "a", encoding="utf-8", buffering=1)

    def __getattr__(self, name):
        return getattr(self.__dict__["console"], name)

    def write(self, text):
        self.file.write(escaped(text))
        if self.console is not None:  # a program may have none
            write_escaped(self.console, text)
        return len(text)

    def flush(self):
        self.file.flush()
        if self.console is not None:
            self.console.flush()

    def close(self):
        if sys.stdout is self:
            sys.stdout = self.former
        self.file.close()


def setup_logger(output=None, console=None):
    """Copy stdout to `output`: a folder (then `log.txt` in it) or a .txt or .log file, appended to. A folder that is
    there may have any name. console: a stream in the place of stdout, which is then not written to.

    Returns the Logger; None without `output`."""
    if output is None:
        return None
    is_file = output.endswith((".txt", ".log")) and not os.path.isdir(output)
    fpath = output if is_file else os.path.join(output, "log.txt")
    sys.stdout = Logger(fpath, console)
    return sys.stdout
