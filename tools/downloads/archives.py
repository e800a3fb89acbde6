"""Archives that unpack into their folder only, and no further than a dataset can reach.

Files and folders are all that a dataset needs, so links and everything else are refused. Names, kinds and sizes of
members are read by the standard library; what is written is written here, into a new folder, under names that were
checked: of a member nothing but its name and its bytes is taken, no link, owner, mode or time.
"""
import contextlib
import gzip
import io
import os
import re
import shutil
import stat
import struct
import sys
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import dataclass

from tqdm import tqdm

from dassl.utils import InputError, open_regular
from tools.downloads.disk import full_disk, need_space
from tools.downloads.download import CHUNK
from tools.downloads.transfer import shown

DEPTH, LONGEST = 32, 1024  # folders in a name, bytes of it
HEADER = 8192  # bytes that tell of one member of a tar: its name and, by macOS, where the picture came from
KEYS = 100  # of a tar's extended headers
UNREADABLE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, struct.error, ValueError, OverflowError,
              LookupError, RuntimeError)  # what the libraries raise on damaged files; NotImplementedError among them


class Refused(InputError):
    """What an archive holds is nothing that a dataset needs. The message says what."""


@dataclass
class Bounds:
    """How much may still come out of an archive and of the archives in it: files and folders, and bytes."""

    members: int
    size: int

    def take(self, size):
        """Count one member. Raises Refused where it is one too many or too large."""
        self.members, self.size = self.members - 1, self.size - size
        if size < 0:
            raise Refused("it says that a file has fewer than 0 bytes")
        if self.members < 0:
            raise Refused("it holds more files than this dataset can have")
        if self.size < 0:
            raise Refused("it unpacks to more bytes than this dataset can have")


def unpack(archive, folder, bounds):
    """Unpack a .zip, or a .tar with or without gzip, into `folder`, into which nobody else writes.

    Raises:
        Refused: the archive holds something that is no file and no folder, that would lie outside `folder`, or that
            exceeds the bounds.
        InputError: it is damaged or cut off. In both cases nothing it held is to be used.
    """
    name = os.path.basename(archive)
    try:
        with full_disk(folder), open_regular(archive) as file, tqdm(
                desc=f"unpacking {name}", unit=" files", disable=None) as bar:
            (unpack_zip if name.endswith(".zip") else unpack_tar)(file, folder, bounds, bar)
    except Refused as error:
        raise Refused(f"{archive} is refused: {error}") from None
    except InputError:
        raise
    except UNREADABLE as error:
        raise damaged(archive, error) from None
    except OSError as error:
        if error.errno is None:  # what gzip raises
            raise damaged(archive, error) from None
        raise


def damaged(archive, error):
    return InputError(f"{archive} is cut off or damaged ({shown(error)})")


# ---- members -----------------------------------------------------------------------------------------------------


def inside(name):
    """The name of a member as a path below the folder that it is unpacked into; "" is that folder.

    Raises Refused where it would lie elsewhere, and for names that no disk or terminal takes as they are."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or "\\" in name or ".." in parts or any(":" in part for part in parts[:1]):
        raise Refused(f"'{shown(name)}' would lie outside the folder")
    if not name.isprintable():  # control characters, and bytes that are not UTF-8
        raise Refused(f"the name '{shown(name)}' holds characters that cannot be printed")
    lengths = [len(part.encode()) for part in parts]
    if len(parts) > DEPTH or sum(lengths) > LONGEST or max(lengths, default=0) > 255:
        raise Refused(f"the name '{shown(name, 80)}...' is too long or too deep")
    return "/".join(parts)


def is_folder_icon(name):
    """Whether a member is one of macOS's, whose name nothing else could have; it is left out."""
    return name.rpartition("/")[2] == "Icon\r"


def put(folder, name, source=None):
    """Write a member: the bytes of the open file `source`, or a folder where there is none."""
    path = inside(name)
    target = os.path.join(folder, path)
    try:
        if source is None:
            os.makedirs(target, exist_ok=True)
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "xb") as file:
            shutil.copyfileobj(source, file, CHUNK)
    except (FileExistsError, IsADirectoryError, NotADirectoryError):
        raise Refused(f"it holds '{shown(name)}' twice, or below a file") from None


class Limited(io.BufferedReader):
    """A file of which no more than `left` bytes can be read before that is set anew: the libraries read headers as long
    as the headers say they are. `last` is what was read last."""

    left, last, in_header = 0, b"", True

    def read(self, size=-1):
        if size < -1 or size > self.left:
            raise Refused("it has a header that is too long")
        self.last = super().read(min(self.left, CHUNK) if size == -1 else size)
        self.left -= len(self.last)
        if self.in_header and re.search(rb"[0-9]{200}", self.last):  # tarfile's patterns take hours for long numbers
            raise Refused("it has a header with a number of 200 digits")
        return self.last

    def seek(self, place, whence=os.SEEK_SET):
        if whence == os.SEEK_SET and place < 0:
            raise Refused("it has a header that leads before its start")
        return super().seek(place, whence)


# ---- tar ---------------------------------------------------------------------------------------------------------


def unpack_tar(file, folder, bounds, bar):
    need_space(folder, os.fstat(file.fileno()).st_size)  # a tar does not say what it unpacks to, but hardly to less
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream = Limited(gzip.GzipFile(fileobj=file) if packed else file)
    stream.left = HEADER
    with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8") as tar:
        while (member := next_member(tar, stream)) is not None:
            if is_folder_icon(member.name):
                continue
            if not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)) or member.sparse is not None:
                kind = "a link" if member.issym() or member.islnk() else "neither a file nor a folder"
                raise Refused(f"'{shown(member.name)}' is {kind}")
            size = 0 if member.isdir() else member.size
            bounds.take(size)
            if member.isdir():
                put(folder, member.name)
            else:
                need_space(folder, size)
                stream.left, stream.in_header = size, False
                put(folder, member.name, tar.extractfile(member))
            bar.update()
        if len(stream.last) < tarfile.BLOCKSIZE or any(stream.last):  # tarfile takes whatever is no header for the end
            raise tarfile.ReadError("it ends without its end mark")


def next_member(tar, stream):
    """The next member of a tar, of which no more than HEADER bytes are read; None at its end."""
    stream.left, stream.in_header = HEADER, True
    member = tar.next()
    tar.members.clear()  # or all that their headers hold is kept
    if member and len(member.pax_headers) > KEYS:  # its own and those for all
        raise Refused(f"it has a header with more than {KEYS} keys")
    return member


# ---- zip ---------------------------------------------------------------------------------------------------------


def unpack_zip(file, folder, bounds, bar):
    """As `unpack_tar`; a zip lists its members first, so that nothing is written where one is refused."""
    stream = Limited(file)
    stream.left, stream.in_header = 300_000 + 128 * bounds.members, False  # a comment, and a list of the members
    with zipfile.ZipFile(stream) as archive:
        members = [member for member in archive.infolist() if not is_folder_icon(member.filename)]
        for member in members:
            check_zipped(member)
            bounds.take(member.file_size)
        need_space(folder, sum(member.file_size for member in members))
        stream.left = sys.maxsize  # no file gives more than its `file_size`
        for member in members:
            if member.is_dir():
                put(folder, member.filename)
            else:
                with archive.open(member) as source:
                    put(folder, member.filename, source)
            bar.update()


def check_zipped(member):
    inside(member.orig_filename)  # zipfile cuts `filename` off at a NUL
    name, kind = shown(member.filename), stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Refused(f"'{name}' is {'a link' if kind == stat.S_IFLNK else 'neither a file nor a folder'}")
    if member.flag_bits & 1:
        raise Refused(f"'{name}' is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(f"'{name}' is packed by method {member.compress_type}, which is neither 0 nor 8 (deflate)")


# ---- where it is unpacked ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def unfinished_folder(folder):
    """A folder in `folder` that is removed at the end, whatever happens."""
    os.makedirs(folder, exist_ok=True)
    path = tempfile.mkdtemp(prefix=".unfinished-", dir=folder)
    os.chmod(path, 0o755)
    try:
        yield path
    finally:
        remove_folder(path)


def remove_folder(path):
    """Remove a folder as far as that goes; a link is left alone."""
    with contextlib.suppress(RecursionError):  # of folders a thousand deep
        shutil.rmtree(path, ignore_errors=True)
