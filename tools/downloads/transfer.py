"""One HTTP request that ends whatever the server does: its time and its redirects are limited."""
import io
import string
import time
import urllib.error
import urllib.request
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from urllib.parse import quote, urljoin, urlsplit

from dassl.utils import InputError, printable

ATTEMPTS = 4  # that bring no byte, before a download is given up
TIMEOUT = 60  # seconds without a byte
CHECK_EVERY = 300  # seconds in which CHECK_EVERY * SLOWEST bytes must have come
SLOWEST = 10_000  # bytes per second
REDIRECTS = 10


class Clock:
    """Says when a transfer must have come further. `done` is the largest size that it reached since its last start."""

    def __init__(self, what, size):
        self.what, self.done, self.starts = what, size, 0
        self.start()

    def start(self):
        self.goal, self.end = self.done + CHECK_EVERY * SLOWEST, time.monotonic() + CHECK_EVERY

    def start_over(self):
        """The server sends the file from its start. Raises InputError where it does so again and again."""
        self.starts += 1
        if self.starts > ATTEMPTS:
            raise self.stopped("the server starts over each time")
        self.done = 0
        self.start()

    def reached(self, size):
        self.done = max(self.done, size)
        if self.done >= self.goal:
            self.start()

    @property
    def over(self):
        return time.monotonic() >= self.end

    def left(self):
        """Seconds until it must have come further. Raises InputError where it should have by now."""
        if self.over:
            raise self.too_slow()
        return max(self.end - time.monotonic(), 0.001)

    def too_slow(self):
        return self.stopped(f"fewer than {CHECK_EVERY * SLOWEST:,} bytes in {CHECK_EVERY} seconds")

    def stopped(self, reason):
        return InputError(f"{self.what} stopped after {self.done:,} bytes ({reason}); run the same command again to go "
                          "on from there")


def ask(url, headers, clock):
    """The answer to a GET. Redirects are followed to http and https, their bodies are not read.

    Raises InputError where they lead elsewhere or do not end, and what urllib raises."""
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler(), *timed_handlers(clock), urllib.request.HTTPDefaultErrorHandler(),
                    urllib.request.HTTPErrorProcessor(), urllib.request.UnknownHandler()):
        opener.add_handler(handler)
    place = url
    for _ in range(REDIRECTS):
        try:
            if urlsplit(place).scheme not in ("http", "https"):
                raise ValueError("only http and https are followed")
            request = urllib.request.Request(place, headers=headers)
        except ValueError as error:
            raise InputError(f"{url} leads to {shown(place)} ({shown(error)})") from None
        try:
            return opener.open(request, timeout=min(TIMEOUT, clock.left()))
        except urllib.error.HTTPError as error:
            to = error.headers.get("Location")
            if error.code not in (301, 302, 303, 307, 308) or not to:
                raise
            error.close()
        try:
            place = urljoin(place, quote(to, encoding="iso-8859-1", safe=string.punctuation))
        except ValueError as error:
            raise InputError(f"{url} leads to {shown(to)} ({shown(error)})") from None
    raise InputError(f"{url} leads on more than {REDIRECTS} times, at last to {shown(place)}")


def timed_handlers(clock):
    """urllib's handlers of http and https, but every wait for a byte ends when the clock's time does. A time-out alone
    begins anew with each byte, of the headers, too."""

    class Timed(io.RawIOBase):
        def __init__(self, raw, sock):
            self.raw, self.sock = raw, sock

        def readable(self):
            return True

        def readinto(self, buffer):
            self.sock.settimeout(min(TIMEOUT, clock.left()))
            return self.raw.readinto(buffer)

        def close(self):
            self.raw.close()
            super().close()

    class Response(HTTPResponse):
        def __init__(self, sock, *args, **words):
            super().__init__(sock, *args, **words)
            self.fp = io.BufferedReader(Timed(self.fp.detach(), sock))

    class Plain(HTTPConnection):
        response_class = Response

    class Secure(HTTPSConnection):
        response_class = Response

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, request):
            return self.do_open(Plain, request)

    class SecureHandler(urllib.request.HTTPSHandler):
        def https_open(self, request):
            return self.do_open(Secure, request)

    return PlainHandler(), SecureHandler()


def shown(text, most=200):
    """The first part of what a server or an archive says, as it may be printed."""
    return printable(str(text)[:most])[:most]  # escaped it is longer
