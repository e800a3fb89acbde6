"""Downloads that go on where they stopped, and that end: in time, in bytes, in requests."""
import contextlib
import errno
import glob
import io
import os
import re
import shutil
import ssl
import stat
import string
import sys
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import quote, urljoin, urlsplit

from torchvision.datasets.utils import calculate_md5
from tqdm import tqdm

from dassl.utils import InputError, open_own, open_regular, printable

ATTEMPTS = 4  # that bring no byte, before a download is given up
REQUESTS = 50  # in a row that bring less than CHUNK each, before it is given up
PAUSE = 2  # seconds between two attempts
TIMEOUT = 60  # seconds without a byte
PATIENCE, SLOWEST = 300, 10_000  # in so many seconds so many bytes a second must have come
REDIRECTS = 10
BUSY = (408, 429)  # answers of a server that wants to be asked again, as it does with 500 and above
CHUNK = 1 << 20
AGAIN = "run the same command again, and if it stays so the file at its source changed"
SPARE = 100 << 20  # bytes of a disk that are never filled


# ---- download ----------------------------------------------------------------------------------------------------


def download(url, path, md5="", size=0, most=sys.maxsize):
    """Fetch `url` to `path`. What arrived of an earlier try lies in `path.part` and is gone on from.

    size: its bytes, where they are published; else no more than `most` bytes are taken.

    It ends: every PATIENCE seconds PATIENCE * SLOWEST bytes more must have come, so it takes at most size / SLOWEST +
    PATIENCE seconds, whatever the server does, and so long again for each of ATTEMPTS new starts.

    Raises:
        InputError: the server does not answer, stops answering or is too slow, it leads to something else than http,
            the file has another checksum or size than was published (it is removed), the disk is full (the part is
            kept), or what lies at `path.part` is no file of this program.
    """
    part = f"{path}.part"
    reached, idle, small = size_of(part), 0, 0
    clock = Clock(f"the download of {url}", reached)
    while True:
        try:
            if fetch_rest(url, part, size, size or most, clock):
                break
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"{error.code} {error.reason}"
            if error.code == 416 and size_of(part):  # nothing is behind the part: it is whole, or of another file
                if error.headers.get("Content-Range") == f"bytes */{size_of(part)}":
                    break
                os.remove(part)
                clock.start_over()
            elif error.code < 500 and error.code not in BUSY:
                raise InputError(f"{url} answers {shown(reason)}; its place may have changed, see "
                                 "docs/DATASETS.md") from None
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            reason = getattr(error, "reason", None) or error
        grown = size_of(part) - reached
        idle = 0 if grown > 0 else idle + 1
        small = 0 if grown >= CHUNK else small + 1
        reached += max(grown, 0)
        if idle == ATTEMPTS or small == REQUESTS:
            raise clock.stopped(shown(reason, 400))
        time.sleep(PAUSE * idle)
    check_file(part, md5, size, url)
    os.replace(part, path)
    forget(part)


def fetch_rest(url, part, size, most, clock):
    """Append to `part` what it lacks. Returns whether it is complete now, as far as the server tells a length."""
    have, version_file = size_of(part), f"{part}.version"
    headers = {"User-Agent": "Mozilla/5.0 (prepare_data)"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if version := read_version(version_file):
            headers["If-Range"] = version  # a file that changed since is sent from its start
    with ask(url, headers, clock) as response:
        goes_on = response.status == 206
        if have and not goes_on:
            clock.start_over()
            have = 0
        total = whole_size(response, have, part)
        if total is not None:
            check_size(total, size, most, url)  # before anything of the part is lost
        need_space(os.path.dirname(part), (total or have) - have)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if version and not version.startswith("W/"):
            with full_disk(part), open_own(version_file, "w", encoding="utf-8", errors="replace") as file:
                file.write(version)
        with full_disk(part), open_own(part, "ab" if goes_on else "wb") as file, tqdm(
                total=total, initial=have, unit="B", unit_scale=True, desc=os.path.basename(part)[:-5], disable=None,
        ) as bar:
            while chunk := response.read1(CHUNK):  # what is there; `read` would wait for all of it
                have += len(chunk)
                if have > most:
                    forget(part)
                    check_size(have, size, most, url)
                file.write(chunk)
                bar.update(len(chunk))
                clock.reached(have)
    return total is None or have == total


def whole_size(response, have, part):
    """The size of the whole file as an answer tells it, None where it does not. `have` bytes of it are there.

    Raises HTTPException for an answer that contradicts itself or the question."""
    said = response.headers.get("Content-Length")
    if said is not None and not re.fullmatch(r"[0-9]{1,18}", said.strip()):
        raise HTTPException(f"it says 'Content-Length: {said[:60]}'")
    length = None if response.length is None else have + response.length
    if response.status != 206:
        return length
    said = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", said)
    if not found or int(found[1]) != have or not have or length not in (None, int(found[2]) + 1):
        raise HTTPException(f"asked for the bytes from {have:,} on it says 'Content-Range: {said[:60]}'; delete {part} "
                            "to start over")
    return int(found[2]) + 1 if found[3] == "*" else int(found[3])


def read_version(path):
    """What the server called the file that a part is of; "" where that is not known."""
    with contextlib.suppress(OSError, ValueError), open_regular(path, "r", encoding="ascii") as file:
        version = file.read(300)
        return version if version.isprintable() and len(version) < 300 else ""
    return ""


class Clock:
    """Says when a transfer must have come further. `done` is the largest size that it reached since its last start."""

    def __init__(self, what, size):
        self.what, self.done, self.starts = what, size, 0
        self.start()

    def start(self):
        self.goal, self.end = self.done + PATIENCE * SLOWEST, time.monotonic() + PATIENCE

    def start_over(self):
        """The server sends the file from its beginning. Raises InputError where it does so again and again."""
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
            raise self.stopped(f"fewer than {PATIENCE * SLOWEST:,} bytes in {PATIENCE} seconds")
        return max(self.end - time.monotonic(), 0.001)

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


def download_from_drive(file_id, path, md5="", size=0, most=sys.maxsize):
    """Fetch a file from Google Drive, whose pages of warnings gdown knows. Ends and raises InputError as `download`
    does."""
    import gdown

    url = f"https://drive.google.com/file/d/{file_id}"
    parts = f"{glob.escape(path)}????????.part"  # what gdown goes on from
    for part in glob.glob(parts):
        open_own(part, "ab").close()
    clock = Clock(f"the download of {url}", sum(map(size_of, glob.glob(parts))))
    ended, cancel = threading.Event(), threading.Event()

    def told(have, total):
        clock.reached(have)
        if max(have, total or 0) > (size or most):
            for part in glob.glob(parts):
                forget(part)
            check_size(max(have, total or 0), size, most, url)
        need_space(os.path.dirname(path), (total or have) - have)

    def watch():
        while not ended.wait(0.5):
            if clock.over:
                cancel.set()

    threading.Thread(target=watch, daemon=True).start()
    try:
        with full_disk(path):
            gdown.download(id=file_id, output=path, resume=True, quiet=not sys.stderr.isatty(), timeout=TIMEOUT,
                           progress=told, cancel=cancel)
    except InputError:
        raise
    except gdown.exceptions.DownloadCancelled:
        raise clock.stopped(f"fewer than {PATIENCE * SLOWEST:,} bytes in {PATIENCE} seconds") from None
    except Exception as error:  # pages that it does not expect end in whatever its reading of them raises
        raise InputError(f"Google Drive does not give the file {file_id}: {shown(str(error).strip() or repr(error))}; "
                         f"open {url}/view in a browser and save it as {path}") from None
    finally:
        ended.set()
    check_file(path, md5, size, url)


class FullDisk(InputError):
    """There is no room; what was fetched is kept."""


def check_file(path, md5, size, source):
    """Remove a file of another checksum or size than was published and raise InputError."""
    found = size_of(path)
    if size and found != size:
        forget(path)
    check_size(found, size, sys.maxsize, source)
    if md5 and (digest := calculate_md5(path)) != md5:
        forget(path)
        raise InputError(f"{source} has the MD5 {digest}, {md5} is published; it was removed: {AGAIN}")


def check_size(found, size, most, source):
    """Raise InputError where `found`, the (least) bytes of a file, is not its published size, or is above `most`."""
    if size and found != size:
        raise InputError(f"{source} has {found:,} bytes, {size:,} are published; {AGAIN}")
    if found > most:
        raise InputError(f"{source} has {found:,} bytes or more, {most:,} are the most that it can have; {AGAIN}")


def forget(path):
    """Remove a file and what is known of its version."""
    for name in (path, f"{path}.version"):
        with contextlib.suppress(FileNotFoundError):
            os.remove(name)


def size_of(path):
    """Bytes of a file that lies at `path`, 0 where nothing does. Raises InputError for what is no regular file: a link,
    a pipe, a device."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return 0
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is a link or not a regular file; remove it, or put the file itself there")
    return found.st_size


def need_space(folder, size):
    """Raise FullDisk where `size` bytes more would leave less than SPARE of the folder's disk."""
    free = shutil.disk_usage(folder).free
    if size + SPARE > free:
        raise FullDisk(f"no space left in {folder}: {size / 1e9:.1f} GB are to come, {free / 1e9:.1f} GB are free")


def shown(text, most=200):
    """The beginning of what a server or an archive says, as it may be printed."""
    return printable(str(text)[:most])[:most]  # escaped it is longer


@contextlib.contextmanager
def full_disk(path):
    """Turn the disk's being full into FullDisk."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise FullDisk(f"no space left on the disk of {path} ({error.strerror}); free some and run the same command "
                       "again, it goes on where it stopped") from None
