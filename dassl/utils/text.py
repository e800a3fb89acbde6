"""Text that others chose: names of files and classes, values of configs, what a server answers.

It may hold what a terminal obeys (escape sequences, carriage returns, marks that turn the direction of reading) and
bytes that are no text at all, which Python keeps as lone surrogates. Where it is printed both are shown, as \\x1b.
"""
import contextlib
import csv
import io
import re
import sys

# All control characters but \n and \t, marks of direction, separators of lines, lone surrogates
UNSAFE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
IN_ONE_LINE = re.compile(f"[\t\n]|{UNSAFE.pattern}")
COLOURS = re.compile(r"(\x1b\[[0-9;]{0,20}m)")  # SGR: colours, bold and the like
BARS = re.compile(r"\n*(?:\x1b\[A)*\Z|\r?")  # with which tqdm begins a line anew, and moves between its bars


def _escape(found):
    return ascii(found[0])[1:-1]


def escaped(text):
    """A text of several lines, safe to print: characters that a terminal would obey are written out."""
    return UNSAFE.sub(_escape, text)


def printable(text):
    """A name, or any other text of one line, safe to print: line breaks are written out, too."""
    return IN_ONE_LINE.sub(_escape, str(text))


def is_text(name):
    """Whether a name can be written in UTF-8: a file's may be any bytes, and a JSON file may name half a character."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def write_escaped(stream, text):
    """Write a text to a stream, as `escaped` has it, also where the stream's encoding lacks its characters."""
    text = escaped(text)
    try:
        stream.write(text)
    except UnicodeEncodeError:  # which calls every encoding of one byte "charmap"
        stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))


class EscapedStream:
    """A stdout or stderr to which `write_escaped` writes. bars: a bar of progress may move the cursor. On a terminal
    colours are let through, which are no harm in a name."""

    def __init__(self, stream, bars=False):
        self.stream, self.bars, self.colours = stream, bars, stream.isatty()

    def __getattr__(self, name):
        return getattr(self.__dict__["stream"], name)

    def write(self, text):
        found = BARS.match(text) if self.bars else None
        moves = found[0] if found else ""
        if moves:
            self.stream.write(moves)
        for number, part in enumerate(COLOURS.split(text[len(moves):]) if self.colours else [text[len(moves):]]):
            if number % 2:
                self.stream.write(part)
            else:
                write_escaped(self.stream, part)
        return len(text)

    def writelines(self, lines):
        for line in lines:
            self.write(line)


def unescaped(stream):
    """The stream below an EscapedStream, for what moves the cursor; it must escape by itself what it did not write."""
    return stream.stream if isinstance(stream, EscapedStream) else stream


@contextlib.contextmanager
def escaped_streams():
    """Within it what is printed reaches the terminal escaped."""
    with contextlib.redirect_stdout(EscapedStream(sys.stdout, bars=sys.stdout.isatty())), \
            contextlib.redirect_stderr(EscapedStream(sys.stderr, bars=True)):
        yield


def csv_text(rows):
    """Rows as CSV in lines that end with \\n, from which every word is read back as it was. The module alone leaves a
    \\r without quotes, where a reader sees the end of a line."""
    text = io.StringIO(newline="")
    plain, quoted = (csv.writer(text, lineterminator="\n", quoting=kind) for kind in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    for row in rows:
        (quoted if any("\r" in str(word) for word in row) else plain).writerow(row)
    return text.getvalue()
