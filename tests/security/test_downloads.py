"""Servers that send what no server should, or send it for ever: a download ends in time with one line, and writes
nothing but its own files."""
import contextlib
import gzip
import itertools
import os
import socket
import threading
import time

import pytest
from packed import plant

from dassl.utils import InputError
from tools import prepare_data
from tools.downloads import download, fetching, transfer
from tools.downloads.drive import download_from_drive
from tools.downloads.sources import DRIVE, SOURCES, File, Source

BODY = bytes(range(256)) * 40
SECONDS = 1  # that a download may wait for progress in these tests


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setattr(transfer, "TIMEOUT", 0.5)
    monkeypatch.setattr("tools.downloads.drive.TIMEOUT", 0.5)
    monkeypatch.setattr(transfer, "CHECK_EVERY", SECONDS)


class Server:
    """Answers each connection with what `answer(number, request)` yields, piece by piece, then closes it."""

    def __init__(self):
        self.answer, self.asked = None, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/a.bin"
        self.ended = threading.Event()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with contextlib.suppress(OSError):  # closed at the end
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self.talk, args=(connection,), daemon=True).start()

    def talk(self, connection):
        with connection, contextlib.suppress(OSError):
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(65536)
            self.asked.append(request.decode())
            for piece in self.answer(len(self.asked), self.asked[-1]):
                connection.sendall(piece)
                if self.ended.is_set():
                    return


@pytest.fixture
def server():
    server = Server()
    yield server
    server.ended.set()
    server.listener.close()


def head(*lines, status="200 OK"):
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


def slowly(body, pause=0.05):
    for byte in body:
        time.sleep(pause)
        yield bytes([byte])


def endless(piece, pause=0.0):
    while True:
        yield piece
        time.sleep(pause)


def start_of(request):
    """The first byte that is asked for."""
    lines = [line for line in request.splitlines() if line.startswith("Range:")]
    return int(lines[0].split("=")[1].rstrip("-")) if lines else 0


def part_of(request, length):
    start = start_of(request)
    piece = BODY[start:start + length]
    if not start:
        return [head(WHOLE), piece]
    return [head(f"Content-Range: bytes {start}-{start + len(piece) - 1}/{len(BODY)}", f"Content-Length: {len(piece)}",
                 status="206 Partial Content"), piece]


WHOLE = f"Content-Length: {len(BODY)}"
CHUNKED = head("Transfer-Encoding: chunked")
ENDLESS = {  # what a server sends, and what is said
    "a_byte_before_each_time_out": (lambda *_: itertools.chain([head(WHOLE)], slowly(BODY)), "fewer than"),
    "a_header_byte_by_byte": (lambda *_: itertools.chain([b"HTTP/1.1 200 OK\r\nX: "], endless(b"x", 0.05)),
                              "fewer than"),
    "a_status_byte_by_byte": (lambda *_: endless(b"H", 0.05), "fewer than"),
    "to_be_continued": (lambda *_: endless(head(status="100 Continue")), "fewer than"),
    "a_chunk_length_byte_by_byte": (lambda *_: itertools.chain([CHUNKED], endless(b"0", 0.05)), "fewer than"),
    "trailers": (lambda *_: itertools.chain([CHUNKED, b"1\r\nx\r\n0\r\n"], endless(b"X: y\r\n")), "fewer than"),
    "nothing": (lambda *_: endless(b"", 0.05), "fewer than"),
    "nothing_behind_the_headers": (lambda *_: itertools.chain([head(WHOLE)], endless(b"", 0.05)), "fewer than"),
    "a_byte_an_answer": (lambda number, request: part_of(request, 1), "the connection ended early"),
    "the_first_byte_again": (lambda number, request: [head(WHOLE), BODY[:1]], "the connection ended early"),
    "half_of_it_again": (lambda number, request: [head(WHOLE), BODY[:5000]], "the connection ended early"),
    "more_each_time_from_the_start": (lambda number, request: [head(WHOLE), BODY[:100 * number]], "starts over"),
    "headers": (lambda *_: itertools.chain([b"HTTP/1.1 200 OK\r\n"], endless(b"X: y\r\n")), "headers"),
    "a_long_header": (lambda *_: [b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000], "header line"),
    "busy": (lambda *_: [head("Content-Length: 0", status="503 Busy")], "503"),
    "nothing_behind_the_part": (lambda number, request: [head(WHOLE), BODY[:10]] if not start_of(request) else
                                [head("Content-Range: bytes */7", "Content-Length: 0", status="416 No")], ""),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_servers_that_do_not_come_to_an_end(name, server, tmp_path):
    server.answer, reason = ENDLESS[name]
    began = time.monotonic()
    with pytest.raises(InputError, match=f"stopped after [0-9,]+ bytes .*{reason}.* run the same command again"):
        download.download(server.url, str(tmp_path / "a.bin"))
    assert time.monotonic() - began < 10 * SECONDS and len(server.asked) <= download.REQUESTS
    assert not (tmp_path / "a.bin").exists()


def test_many_small_answers_that_get_on_are_taken(server, tmp_path):
    server.answer = lambda number, request: part_of(request, 300)
    download.download(server.url, str(tmp_path / "a.bin"))
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_slow_server_that_gets_on_has_more_time_than_one_wait(server, tmp_path, monkeypatch):
    """The time is a rate: whoever keeps it may take as long as the file is."""
    monkeypatch.setattr(transfer, "SLOWEST", 500)
    server.answer = lambda *_: itertools.chain([head("Content-Length: 2500")], endless(b"x" * 100, 0.1))
    began = time.monotonic()
    download.download(server.url, str(tmp_path / "a.bin"))
    assert time.monotonic() - began > 1.5 * SECONDS and (tmp_path / "a.bin").stat().st_size == 2500


def test_a_server_that_knows_no_ranges_has_its_time_again(server, tmp_path, monkeypatch):
    """A part is there, and to come as far takes longer than one wait."""
    monkeypatch.setattr(transfer, "SLOWEST", 500)
    (tmp_path / "a.bin.part").write_bytes(BODY[:2000])
    server.answer = lambda *_: itertools.chain([head("Content-Length: 2100")], endless(b"x" * 100, 0.1))
    download.download(server.url, str(tmp_path / "a.bin"))
    assert (tmp_path / "a.bin").read_bytes() == b"x" * 2100


# ---- too much, or what contradicts itself ----
@pytest.mark.parametrize(("lines", "pieces"), [
    ([], endless(b"x" * 10000)), (["Transfer-Encoding: chunked"], endless(b"2710\r\n" + b"x" * 10000 + b"\r\n")),
    (["Transfer-Encoding: chunked"], endless(b"-1\r\n" + b"x" * 10000)), (["Content-Length: 100001"], []),
    (["Content-Length: 999999999999999999"], []),
], ids=["without_a_length", "chunks", "chunks_below_0", "a_length", "a_huge_length"])
def test_more_than_a_file_can_have_is_cut_off(lines, pieces, server, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "SLOWEST", 1)
    server.answer = lambda *_: itertools.chain([head(*lines)], pieces)
    with pytest.raises(InputError, match="100,000 are the most"):
        download.download(server.url, str(tmp_path / "a.bin"), most=100_000)
    assert os.listdir(tmp_path) == [] and len(server.asked) == 1


@pytest.mark.parametrize("lines", [[], ["Content-Length: 20000"], ["Transfer-Encoding: chunked"]],
                         ids=["without_a_length", "another_length", "chunks"])
def test_more_than_was_published_is_cut_off(lines, server, tmp_path):
    piece = b"2710\r\n" + b"x" * 10000 + b"\r\n" if "chunked" in "".join(lines) else b"x" * 10000
    server.answer = lambda *_: itertools.chain([head(*lines)], endless(piece))
    with pytest.raises(InputError, match=f"{len(BODY):,} are published; run the same"):
        download.download(server.url, str(tmp_path / "a.bin"), size=len(BODY))
    assert os.listdir(tmp_path) == [] and len(server.asked) == 1


@pytest.mark.parametrize("length", ["abc", "-5", "1e9", "", "0x10", "１２", "1" * 5000, "10, 10", "+7"])
def test_lengths_that_are_no_numbers(length, server, tmp_path):
    server.answer = lambda *_: [head(f"Content-Length: {length}"), BODY]
    with pytest.raises(InputError, match="it says 'Content-Length: "):
        download.download(server.url, str(tmp_path / "a.bin"))
    assert os.listdir(tmp_path) == [] and len(server.asked) == download.ATTEMPTS


@pytest.mark.parametrize("said", [
    "bytes 0-10239/10240", "bytes 2000-10239/10240", "bytes 999-10239/10240", "bytes 1000-5/10240", "bytes=1000-10239",
    "bytes 1000-10239", "bytes */10240", "", "bytes -1000-10239/10240", "bytes 1000-99999/10240", "words 1000-10239/1",
])
def test_ranges_that_were_not_asked_for(said, server, tmp_path):
    """The part stays as it is, which took its time."""
    server.answer = lambda *_: [head(f"Content-Range: {said}", f"Content-Length: {len(BODY) - 1000}",
                                     status="206 Partial Content"), b"x" * (len(BODY) - 1000)]
    (tmp_path / "a.bin.part").write_bytes(BODY[:1000])
    with pytest.raises(InputError, match="bytes from 1,000 on .* delete .* to start over"):
        download.download(server.url, str(tmp_path / "a.bin"))
    assert (tmp_path / "a.bin.part").read_bytes() == BODY[:1000] and os.listdir(tmp_path) == ["a.bin.part"]


def test_a_page_in_place_of_the_rest_loses_no_part(server, tmp_path):
    """As a network sends that wants a login first."""
    (tmp_path / "a.bin.part").write_bytes(BODY[:1000])
    server.answer = lambda *_: [head("Content-Length: 10"), b"<html>" + b" " * 4]
    with pytest.raises(InputError, match="has 10 bytes, 10,240 are published"):
        download.download(server.url, str(tmp_path / "a.bin"), size=len(BODY))
    assert (tmp_path / "a.bin.part").read_bytes() == BODY[:1000]


def test_a_range_where_none_was_asked_for(server, tmp_path):
    server.answer = lambda *_: [head("Content-Range: bytes 0-99/100", "Content-Length: 100", status="206 Partial"),
                                b"x" * 100]
    with pytest.raises(InputError, match="Content-Range"):
        download.download(server.url, str(tmp_path / "a.bin"))


def test_a_packed_answer_is_not_unpacked_on_the_way(server, tmp_path):
    """A gigabyte of zeros in a megabyte; some servers say that of a .tar.gz, which is to stay packed."""
    packed = gzip.compress(bytes(5_000_000))
    server.answer = lambda *_: [head("Content-Encoding: gzip", f"Content-Length: {len(packed)}"), packed]
    download.download(server.url, str(tmp_path / "a.bin"), most=100_000)
    assert (tmp_path / "a.bin").read_bytes() == packed and "Accept-Encoding: identity" in server.asked[0]


@pytest.mark.parametrize("answer", [b"", b"\0" * 5000, b"HTTP/9.9 abc\r\n\r\n", b"SSH-2.0-x\r\n", b"<html>\r\n\r\n",
                                    b"HTTP/1.1 99999 \x1b[2J\r\n\r\n", b"HTTP/1.1 500 \x1b[2J\x07\r\n\r\n",
                                    head("Transfer-Encoding: chunked") + b"zz\r\n"],
                         ids=["empty", "nul", "version", "ssh", "page", "status", "terminal_codes", "chunk"])
def test_what_is_no_http(answer, server, tmp_path):
    server.answer = lambda *_: [answer]
    with pytest.raises(InputError, match="stopped after 0 bytes") as raised:
        download.download(server.url, str(tmp_path / "a.bin"))
    assert str(raised.value).isprintable() and len(str(raised.value)) < 800


def test_what_a_server_calls_its_refusal_moves_no_cursor(server, tmp_path):
    server.answer = lambda *_: [head("Content-Length: 0", status="404 \x1b[2J\x1b]0;all is well\x07" + "x" * 5000)]
    with pytest.raises(InputError, match="answers 404") as raised:
        download.download(server.url, str(tmp_path / "a.bin"))
    assert str(raised.value).isprintable() and len(str(raised.value)) < 500


# ---- redirects ----
@pytest.mark.parametrize("place", [
    "file:///etc/passwd", "ftp://127.0.0.1/a", "FILE:///etc/passwd", "data:text/plain,x", "gopher://127.0.0.1/",
    "javascript:alert(1)", "jar:file:/a!b", "http://[", "//[::", "local-file:///etc/passwd",
])
def test_redirects_to_something_else_than_http(place, server, tmp_path):
    server.answer = lambda *_: [head(f"Location: {place}", "Content-Length: 0", status="302 Found")]
    with pytest.raises(InputError, match="leads to"):
        download.download(server.url, str(tmp_path / "a.bin"))
    assert os.listdir(tmp_path) == [] and len(server.asked) == 1


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/a", "/etc/passwd", "data:,x", ""])
def test_addresses_that_are_no_http(url, tmp_path):
    with pytest.raises(InputError, match="only http and https"):
        download.download(url, str(tmp_path / "a.bin"))


@pytest.mark.parametrize("place", ["/a.bin", "?{}", "/\x1b[2J{}", "/ä {}"], ids=["ring", "new", "codes", "letters"])
def test_redirects_without_end(place, server, tmp_path):
    server.answer = lambda number, _: [
        head(f"Location: {place.format(number)}", status="301 Moved").replace("ä".encode(), b"\xe4")]
    with pytest.raises(InputError) as raised:
        download.download(server.url, str(tmp_path / "a.bin"))
    assert len(server.asked) <= transfer.REDIRECTS and str(raised.value).isprintable()


def test_a_redirect_without_a_place(server, tmp_path):
    server.answer = lambda *_: [head("Content-Length: 0", status="302 Found")]
    with pytest.raises(InputError, match="answers 302"):
        download.download(server.url, str(tmp_path / "a.bin"))


def test_the_body_of_a_redirect_is_not_read(server, tmp_path):
    """It may be endless; where it leads is followed."""
    server.answer = lambda number, _: [head(WHOLE), BODY] if number > 1 else itertools.chain(
        [head("Location: /b", status="307 Go")], endless(b"x" * 100_000))
    download.download(server.url, str(tmp_path / "a.bin"))
    assert (tmp_path / "a.bin").read_bytes() == BODY


# ---- what lies in the place of a download's files ----
@pytest.mark.parametrize("kind", ["link", "hard_link", "device", "pipe", "folder"])
@pytest.mark.parametrize("name", ["a.bin.part", "a.bin.part.version"])
def test_planted_files(kind, name, server, tmp_path):
    victim = tmp_path / "kept"
    victim.write_bytes(b"worth more")
    plant(kind, tmp_path / name, victim)
    server.answer = lambda number, request: [head(WHOLE, 'ETag: "1"'), BODY] if not start_of(request) else part_of(
        request, len(BODY))
    with pytest.raises(InputError, match="remove it"):
        download.download(server.url, str(tmp_path / "a.bin"))
    assert victim.read_bytes() == b"worth more" and not (tmp_path / "a.bin").exists()


@pytest.mark.parametrize("version", [b'"1"\r\nX: y', b"\xff\xfe", b"\0", b"x" * 100_000, b""],
                         ids=["line_break", "not_ascii", "nul", "long", "empty"])
def test_versions_that_no_server_gave(version, server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY[:1000])
    (tmp_path / "a.bin.part.version").write_bytes(version)
    server.answer = lambda number, request: part_of(request, len(BODY))
    download.download(server.url, str(tmp_path / "a.bin"))
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert "If-Range" not in server.asked[0] and "X: y" not in server.asked[0]


@pytest.mark.parametrize("version", ["\x1b[2J", "ä" * 200, "x" * 60_000], ids=["codes", "letters", "long"])
def test_versions_that_a_server_gives(version, server, tmp_path):
    """They are sent back as they came, or not at all."""
    server.answer = lambda number, request: [head(WHOLE, f"ETag: {version}"), BODY[:1000]] if number == 1 else part_of(
        request, len(BODY))
    download.download(server.url, str(tmp_path / "a.bin"))
    assert (tmp_path / "a.bin").read_bytes() == BODY and os.listdir(tmp_path) == ["a.bin"]
    assert "If-Range" not in server.asked[1]


# ---- Google Drive ----
@pytest.fixture
def drive(server, monkeypatch):
    """gdown, which asks the server of these tests instead."""
    import gdown

    whole = gdown.download
    monkeypatch.setattr(gdown, "download", lambda id, **words: whole(server.url, use_cookies=False, **words))
    return server


DRIVES = {
    "a_byte_before_each_time_out": (lambda *_: itertools.chain([head(WHOLE)], slowly(BODY)), "fewer than"),
    "a_header_byte_by_byte": (lambda *_: itertools.chain([b"HTTP/1.1 200 OK\r\nX: "], endless(b"x", 0.05)),
                              "fewer than"),
    "without_an_end": (lambda *_: itertools.chain([head()], endless(b"x" * 600_000)), "100,000 are the most"),
    "a_huge_length": (lambda *_: [head("Content-Length: 999999999999"), bytes(600_000)], "100,000 are the most"),
    "nothing": (lambda *_: endless(b"", 0.05), "timed out"),
    "no_http": (lambda *_: [b"\0" * 100], "in a browser"),
    "an_odd_time": (lambda *_: [head("Last-Modified: x", "Content-Length: 5"), b"x"], "in a browser"),
    "a_refusal": (lambda *_: [head("Content-Length: 0", status="500 \x1b[2J")], "in a browser"),
}


@pytest.mark.parametrize("name", DRIVES)
def test_google_drive(name, drive, tmp_path):
    drive.answer, reason = DRIVES[name]
    began = time.monotonic()
    with pytest.raises(InputError, match=reason) as raised:
        download_from_drive("abc", str(tmp_path / "a.zip"), most=100_000)
    assert time.monotonic() - began < 10 * SECONDS and str(raised.value).isprintable()
    assert not (tmp_path / "a.zip").exists()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 100_000


@pytest.mark.parametrize("kind", ["link", "hard_link", "device", "pipe", "folder"])
def test_planted_parts_of_google_drive(kind, drive, tmp_path):
    victim = tmp_path / "kept"
    victim.write_bytes(b"worth more")
    plant(kind, tmp_path / "a.zip12345678.part", victim)
    drive.answer = lambda *_: [head(WHOLE), BODY]
    with pytest.raises(InputError, match="remove it"):
        download_from_drive("abc", str(tmp_path / "a.zip"))
    assert victim.read_bytes() == b"worth more" and drive.asked == []


def test_google_drive_goes_on_where_it_stopped(drive, tmp_path):
    (tmp_path / "a.zip12345678.part").write_bytes(BODY[:1000])
    drive.answer = lambda number, request: part_of(request, len(BODY)) if start_of(request) else [head(WHOLE), BODY]
    download_from_drive("abc", str(tmp_path / "a.zip"), most=100_000)
    assert (tmp_path / "a.zip").read_bytes() == BODY


# ---- the whole command ----
def test_a_hostile_server_ends_one_dataset_in_one_line(server, tmp_path, monkeypatch, capsys):
    """And the bounds of a dataset reach its downloads."""
    server.answer = lambda *_: itertools.chain([head("Content-Length: 102000001")], endless(b"x"))
    monkeypatch.setitem(SOURCES, "dtd", Source({"classes": 1, "test": 1}, (File(server.url, {"": "dtd/a"}),)))
    monkeypatch.setitem(SOURCES, "pacs", Source({"classes": 1, "test": 1}, (File(f"{DRIVE}x", {"": "pacs/a"}),)))
    drive = []
    monkeypatch.setattr(fetching, "download_from_drive", lambda *words: drive.append(words) or (
        tmp_path / ".downloads" / "drive:x").write_bytes(b"a"))
    assert prepare_data.main(["dtd", "pacs", "--root", str(tmp_path)]) is False
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("dtd: ") and "102,000,000 are the most" in said[0]
    assert (tmp_path / "pacs" / "a").read_bytes() == b"a" and drive[0][-1] == 102_000_000
