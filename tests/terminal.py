"""A terminal of a test: a command that believes to be in one, and the screen that its reader sees."""
import fcntl
import os
import pty
import re
import struct
import sys
import termios
import traceback

SEQUENCE = re.compile(r"\x1b\[(\?25|\d*)([A-Za-z])|\x1b\[[\d;]*m|\r|\n|[^\x1b\r\n]+|\x1b")


def screen(written):
    """([the lines on the screen and above it], whether the cursor is shown) after a text was written to a terminal that
    is high enough for all. Raises ValueError for a sequence that rich's live lines do not need."""
    lines, row, column, shown = [""], 0, 0, True
    for found in SEQUENCE.finditer(written):
        text, number, letter = found[0], found[1], found[2]
        if text == "\r":
            column = 0
        elif text == "\n":
            row, column = row + 1, 0  # the terminal's driver adds the \r
            lines += [""] * (row + 1 - len(lines))
        elif letter == "A":
            row -= int(number or 1)
        elif letter == "K":
            lines[row] = ""
        elif letter in ("h", "l") and number == "?25":
            shown = letter == "h"
        elif letter == "m" or text.endswith("m") and text.startswith("\x1b"):
            continue
        elif text.startswith("\x1b"):
            raise ValueError(f"a sequence that moves something: {text!r}")
        else:
            lines[row] = lines[row].ljust(column)[:column] + text + lines[row][column + len(text):]
            column += len(text)
    return [line.rstrip() for line in lines], shown


def in_terminal(function, columns=100, rows=40, environment=None):
    """(what was written to a terminal, the exit status) of `function()` in a fork of this process whose streams are
    that terminal."""
    pid, leader = pty.fork()
    if pid == 0:
        status = 70
        try:
            os.environ.update({"TERM": "xterm-256color", "COLUMNS": "", "LINES": "", **(environment or {})})
            for name in ("COLUMNS", "LINES"):
                if not os.environ[name]:
                    del os.environ[name]
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in
                                                 enumerate(("r", "w", "w")))
            status = function()
            sys.stdout.flush()
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    written = b""
    while True:
        try:
            read = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not read:
            break
        written += read
    os.close(leader)
    return written.decode().replace("\r\n", "\n"), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
