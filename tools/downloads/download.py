"""Downloads that go on where they stopped, and that end: in time, in bytes, in requests."""
import contextlib
import os
import re
import ssl
import sys
import time
import urllib.error
from http.client import HTTPException

from tqdm import tqdm

from dassl.utils import InputError, open_own, open_regular
from tools.downloads.disk import check_file, check_size, forget, full_disk, need_space, size_of
from tools.downloads.transfer import ATTEMPTS, Clock, ask, shown

REQUESTS = 50  # in a row that bring less than CHUNK each, before it is given up
PAUSE = 2  # seconds between two attempts
BUSY = (408, 429)  # answers of a server that wants to be asked again, as it does with 500 and above
CHUNK = 1 << 20


def download(url, path, md5="", size=0, most=sys.maxsize):
    """Fetch `url` to `path`. What arrived of an earlier try lies in `path.part` and is gone on from.

    size: its bytes, where they are published; else no more than `most` bytes are taken.

    It ends: in every CHECK_EVERY seconds another CHECK_EVERY * SLOWEST bytes must have come. So it takes at most
    size / SLOWEST + CHECK_EVERY seconds, whatever the server does, and as long again for each of ATTEMPTS new starts.

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
            reason = str(getattr(error, "reason", None) or error)
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
