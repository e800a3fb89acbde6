"""Downloads that go on where they stopped, and archives that unpack into their folder only."""
import contextlib
import errno
import os
import shutil
import ssl
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from http.client import HTTPException

from torchvision.datasets.utils import calculate_md5
from tqdm import tqdm

from dassl.utils import InputError

ATTEMPTS = 4  # that bring no byte, before a download is given up
PAUSE = 2  # seconds between two of them
TIMEOUT = 60  # seconds without a byte
BUSY = (408, 429)  # answers of a server that wants to be asked again, as it does with 500 and above
CHUNK = 1 << 20


# ---- download ----------------------------------------------------------------------------------------------------


def download(url, path, md5="", size=0):
    """Fetch `url` to `path`. What arrived of an earlier try lies in `path.part` and is gone on from.

    Raises:
        InputError: the server does not answer or stops answering, the file has another checksum or size than was
            published (it is removed), or the disk is full (the part is kept).
    """
    part = f"{path}.part"
    most, failures = size_of(part), 0
    while True:
        try:
            if fetch_rest(url, part):
                break
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            reason = f"{error.code} {error.reason}"
            if error.code == 416:  # there is nothing behind the part: it is whole, or too long to be of this file
                if error.headers.get("Content-Range") == f"bytes */{size_of(part)}":
                    break
                os.remove(part)
            elif error.code < 500 and error.code not in BUSY:
                raise InputError(f"{url} answers {reason}; its place may have changed, see docs/DATASETS.md") from None
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            reason = getattr(error, "reason", None) or error
        failures = 0 if size_of(part) > most else failures + 1
        most = max(most, size_of(part))
        if failures == ATTEMPTS:
            raise InputError(f"the download of {url} stopped after {size_of(part):,} bytes ({reason}); run the same "
                             "command again to go on from there")
        time.sleep(PAUSE * failures)
    check_file(part, md5, size, url)
    os.replace(part, path)
    with contextlib.suppress(FileNotFoundError):
        os.remove(f"{part}.version")


def fetch_rest(url, part):
    """Append to `part` what it lacks. Returns whether it is complete now, as far as the server tells a length."""
    have, version_file = size_of(part), f"{part}.version"
    headers = {"User-Agent": "Mozilla/5.0 (prepare_data)"}
    if have:
        headers["Range"] = f"bytes={have}-"
        with contextlib.suppress(OSError), open(version_file, encoding="utf-8") as file:
            headers["If-Range"] = file.read()  # a file that changed since is sent from its start
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        goes_on = response.status == 206
        have = have if goes_on else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        need_space(os.path.dirname(part), (total or 0) - have)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if version and not version.startswith("W/"):
            with open(version_file, "w", encoding="utf-8") as file:
                file.write(version)
        with full_disk(part), open(part, "ab" if goes_on else "wb") as file, tqdm(
                total=total, initial=have, unit="B", unit_scale=True, desc=os.path.basename(part)[:-5], disable=None,
        ) as bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return total is None or size_of(part) == total


def download_from_drive(file_id, path, md5="", size=0):
    """Fetch a file from Google Drive, whose pages of warnings gdown knows. Raises InputError as `download` does."""
    import gdown

    try:
        with full_disk(path):
            gdown.download(id=file_id, output=path, resume=True, quiet=not sys.stderr.isatty())
    except (gdown.exceptions.DownloadError, OSError) as error:  # requests' errors are OSErrors
        raise InputError(f"Google Drive does not give the file {file_id}: {str(error).strip()[:200]}; open "
                         f"https://drive.google.com/file/d/{file_id}/view in a browser and save it as {path}") from None
    check_file(path, md5, size, f"https://drive.google.com/file/d/{file_id}")


class FullDisk(InputError):
    """There is no room; what was fetched is kept."""


def check_file(path, md5, size, source):
    """Remove a file of another checksum or size than was published and raise InputError."""
    found = [f"{size_of(path):,} bytes, {size:,} are"] if size and size_of(path) != size else []
    if md5 and not found:
        digest = calculate_md5(path)
        found = [f"the MD5 {digest}, {md5} is"] if digest != md5 else []
    if found:
        os.remove(path)
        raise InputError(f"{source} has {found[0]} published; it was removed: run the same command again, and if it "
                         "stays so the file at its source changed")


def size_of(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


def need_space(folder, size):
    free = shutil.disk_usage(folder).free
    if size > free:
        raise FullDisk(f"no space left in {folder}: {size / 1e9:.1f} GB are to come, {free / 1e9:.1f} GB are free")


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


# ---- archives ----------------------------------------------------------------------------------------------------


def unpack(archive, folder):
    """Unpack a .zip or a .tar.* into `folder`.

    Raises:
        InputError: the archive is damaged or cut off, or it holds something that would lie, or a link that would
            lead, outside `folder`; then nothing it held is to be used.
    """
    name = os.path.basename(archive)
    try:
        with full_disk(folder):
            if name.endswith(".zip"):
                unpack_zip(archive, folder)
            else:
                with tarfile.open(archive) as tar:
                    bar = tqdm(tar, desc=f"unpacking {name}", unit=" files", disable=None)
                    tar.extractall(folder, members=bar, filter=inside_only)
    except tarfile.FilterError as error:
        raise InputError(f"{archive} is refused: {error}") from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise damaged(archive, error) from None
    except OSError as error:
        if error.errno is None:  # what gzip, bz2 and lzma raise
            raise damaged(archive, error) from None
        raise


def damaged(archive, error):
    return InputError(f"{archive} is cut off or damaged ({error})")


def inside_only(member, folder):
    """Tar's own check, which takes an absolute path for a relative one, made stricter."""
    if member.name.startswith(("/", os.sep)):
        raise tarfile.AbsolutePathError(member)
    return tarfile.data_filter(member, folder)


def unpack_zip(archive, folder):
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            path = member.filename.replace("\\", "/")
            link = (member.external_attr >> 16) & 0o170000 == 0o120000
            if link or path.startswith("/") or ".." in path.split("/") or ":" in path.split("/")[0]:
                raise InputError(f"{archive} is refused: '{member.filename}' "
                                 f"{'is a link' if link else 'would lie outside the folder'}")
        for member in tqdm(file.infolist(), desc=f"unpacking {os.path.basename(archive)}", unit=" files", disable=None):
            file.extract(member, folder)


@contextlib.contextmanager
def unfinished_folder(folder):
    """A folder in `folder` that is removed at the end, whatever happens."""
    os.makedirs(folder, exist_ok=True)
    path = tempfile.mkdtemp(prefix=".unfinished-", dir=folder)
    os.chmod(path, 0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
