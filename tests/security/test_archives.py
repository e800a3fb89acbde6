"""Hostile archives, lists and folders for prepare_data: a line for the dataset, nothing outside its folder, and the
other datasets go on."""
import contextlib
import errno
import gzip
import hashlib
import json
import os
import struct
import subprocess
import tarfile
import zipfile

import packed
import pytest
from packed import link, member, plant, tar, zip_member, zipped
from torchvision.datasets.imagenet import ARCHIVE_META

from dassl.utils import InputError
from tools import prepare_data
from tools.downloads import archives, disk, layouts
from tools.downloads.archives import Bounds, inside, unpack
from tools.downloads.sources import SOURCES, File, Source

GOOD = {"images/a.jpg": b"a"}
NUMBERS = {"classes": 1, "test": 1}


@pytest.fixture
def victim(tmp_path):
    """A file beside the data folder that nothing may change."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "kept").write_bytes(b"worth more")
    return folder / "kept"


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys, victim):
    """(file name, bytes, inner) -> what is said of a dataset whose archive that is, and the data folder. A second
    dataset is asked for behind it, and must be there afterwards."""
    root = tmp_path / "deep" / "data"

    def prepare(name, body=None, inner=""):
        downloads = root / ".downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        if body is not None:
            (downloads / name).write_bytes(body)
        (downloads / "good.zip").write_bytes(zipped(GOOD))
        files = {"oxford_pets": File(f"http://127.0.0.1:9/{name}", {"images": "oxford_pets/images"}, inner=inner),
                 "dtd": File("http://127.0.0.1:9/good.zip", {"images": "dtd/images"})}
        for dataset, file in files.items():
            monkeypatch.setitem(SOURCES, dataset, Source(NUMBERS, (file,)))
        assert prepare_data.main([*files, "--root", str(root)]) is False
        said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("unpacking")]
        assert (root / "dtd" / "images" / "a.jpg").read_bytes() == b"a"
        assert victim.read_bytes() == b"worth more" and os.listdir(victim.parent) == ["kept"]
        assert not [line for line in said if line.startswith("dtd: ")]
        return said, root

    return prepare


def require_refused(said, root, name, reason):
    assert len(said) == 1 and said[0].startswith("oxford_pets: ") and said[0].isprintable(), said
    assert len(said[0]) < 1000 and name in said[0] and reason in said[0], said
    assert "the archive was removed" in said[0] and not (root / ".downloads").exists()
    assert not (root / "oxford_pets").exists() and not list(root.rglob(".unfinished-*"))


# ---- what a tar may hold ----
def long_links():
    """Links whose target is longer than a path may be: tarfile resolves it no further and takes it for one inside
    (CVE-2025-4517); the file is then written through them."""
    entries, steps, path = [("images/a.jpg", b"a")], "abcdefghijklmnop", ""
    for step in steps:
        folder = os.path.join(path, "d" * 247)
        entries += [(folder, member(folder, tarfile.DIRTYPE, mode=0o755)),
                    (step, link(os.path.join(path, step), "d" * 247))]
        path = folder
    far = os.path.join("/".join(steps), "l" * 254)
    entries += [("far", link(far, "../" * len(steps))), ("out", link("out", f"{far}/../../../../home")),
                ("flag", link("flag", "out/kept", tarfile.LNKTYPE)), ("flag", b"overwritten")]
    return tar(entries)


def sparse():
    """A file of a terabyte that takes a block: GNU tar's first form of holes."""
    info = tarfile.TarInfo("images/s")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"%011o\0%011o\0" % (0, 512)
    block[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
    return bytes(block) + bytes(512 + 1024)


def pax(keys, name="images/b.jpg"):
    return tar({**GOOD, name: member(name, pax_headers=keys)}, format=tarfile.PAX_FORMAT)


def sized(size, kind=tarfile.REGTYPE):
    """A tar whose second member says that it has so many bytes, in the form for numbers that are large or negative."""
    block = bytearray(member("images/b.jpg", kind).tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (b"\xff" if size < 0 else b"\x80") + size.to_bytes(11, "big", signed=True)
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
    return tar(GOOD, "w:")[:1024] + bytes(block) + NEXT


def raw(kind, content):
    """A header that belongs to the next one, with its content."""
    info = member("././@LongLink", kind, size=len(content))
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


NEXT = tarfile.TarInfo("images/b.jpg").tobuf(tarfile.GNU_FORMAT) + bytes(1024)
KEYS = b"".join(b"10 k%03d=1\n" % i for i in range(600))
TARS = {
    "links_longer_than_a_path": (long_links(), "is a link"),
    "link_out": (tar({**GOOD, "l": link("images/l", "../../../home/kept")}), "is a link"),
    "link_to_a_place_inside": (tar({**GOOD, "l": link("images/l", "a.jpg")}), "is a link"),
    "link_absolute": (tar({**GOOD, "l": link("images/l", "/etc/passwd")}), "is a link"),
    "file_through_a_link": (tar([("l", link("images", "../../home")), ("images/kept", b"x")]), "is a link"),
    "file_through_its_own_link": (tar([("l", link("images/l", "../../../home/kept")), ("images/l", b"x")]),
                                  "is a link"),
    "hard_link_out": (tar({**GOOD, "l": link("images/l", "../../../home/kept", tarfile.LNKTYPE)}), "is a link"),
    "hard_link_inside": (tar({**GOOD, "l": link("images/l", "images/a.jpg", tarfile.LNKTYPE)}), "is a link"),
    "pipe": (tar({**GOOD, "p": member("images/p", tarfile.FIFOTYPE)}), "neither a file nor a folder"),
    "character_device": (tar({**GOOD, "p": member("images/p", tarfile.CHRTYPE, devmajor=1, devminor=5)}),
                         "neither a file nor a folder"),
    "block_device": (tar({**GOOD, "p": member("images/p", tarfile.BLKTYPE)}), "neither a file nor a folder"),
    "unknown_kind": (tar({**GOOD, "p": member("images/p", b"Z")}), "neither a file nor a folder"),
    "holes": (sparse(), "neither a file nor a folder"),
    "holes_by_pax": (pax({"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 50)}), "neither a file nor a folder"),
    "up": (tar({**GOOD, "../../../home/kept": b"x"}), "outside"),
    "up_within": (tar({**GOOD, "images/../../../../home/kept": b"x"}), "outside"),
    "absolute": (tar({**GOOD, "/tmp/prepare_data_evil": b"x"}), "outside"),
    "drive": (tar({**GOOD, "C:/evil": b"x"}), "outside"),
    "backslash": (tar({**GOOD, "..\\evil": b"x"}), "outside"),
    "name_of_10000_letters": (tar({**GOOD, "i" * 10000: b"x"}, format=tarfile.GNU_FORMAT), "too long"),
    "name_of_4000_letters": (tar({**GOOD, "i" * 4000: b"x"}, format=tarfile.GNU_FORMAT), "too long"),
    "name_of_4000_letters_by_pax": (pax({"path": "i" * 4000}), "too long"),
    "part_of_256_letters": (tar({**GOOD, "images/" + "i" * 256: b"x"}), "too long"),
    "depth_2000": (tar({**GOOD, "d/" * 2000 + "x": b"x"}, format=tarfile.GNU_FORMAT), "too long or too deep"),
    "depth_33": (tar({**GOOD, "d/" * 32 + "x": b"x"}), "too deep"),
    "nul_by_pax": (pax({"path": "images/b\0.jpg"}), "cannot be printed"),
    "not_utf8": (tar({**GOOD, "images/\udce9.jpg": b"x"}, format=tarfile.GNU_FORMAT), "cannot be printed"),
    "terminal_codes": (tar({**GOOD, "images/\x1b[2J\x1b]0;x\x07": b"x"}), "cannot be printed"),
    "line_break": (tar({**GOOD, "images/a\nerror: all is well": b"x"}), "cannot be printed"),
    "right_to_left": (tar({**GOOD, "images/\u202egpj.exe": b"x"}), "cannot be printed"),
    "twice": (tar([*GOOD.items(), *GOOD.items()]), "twice"),
    "file_then_folder": (tar([*GOOD.items(), ("d", member("images/a.jpg", tarfile.DIRTYPE))]), "twice"),
    "folder_then_file": (tar([("images/d/x", b"x"), ("images/d", b"x")]), "twice"),
    "below_a_file": (tar([*GOOD.items(), ("images/a.jpg/b/c.jpg", b"x")]), "below a file"),
    "a_file_without_a_name": (tar([*GOOD.items(), ("./", b"x"), (".", member("."))]), "twice"),
    "size_below_0": (sized(-512), "fewer than 0"),
    "size_below_0_by_pax": (pax({"size": "-512"}), "fewer than 0"),
    "size_of_an_exabyte": (sized(1 << 60), "more bytes than this dataset"),
    "size_of_an_exabyte_by_pax": (pax({"size": str(1 << 60)}), "more bytes than this dataset"),
    "long_name_of_a_gigabyte": (sized(1 << 30, tarfile.GNUTYPE_LONGNAME), "header that is too long"),
    "long_name_below_0": (sized(-1024, tarfile.GNUTYPE_LONGNAME), "header that is too long"),
    "pax_header_below_0": (sized(-1024, tarfile.XHDTYPE), "header that is too long"),
    "pax_header_of_20_megabytes": (gzip.compress(raw(b"x", b"20000000 comment=" + b"x" * 20_000_000) + NEXT, 1),
                                   "header that is too long"),
    "pax_number_of_7000_digits": (raw(b"x", b"1" * 7000) + NEXT, "number of 200 digits"),
    "pax_600_keys": (raw(b"x", KEYS) + NEXT, "more than 100 keys"),
    "pax_600_keys_for_all": (raw(b"g", KEYS) + NEXT, "more than 100 keys"),
    "chain_of_3000_headers": (gzip.compress(raw(b"x", b"") * 3000 + NEXT), ""),
    "another_programs_archive": (b"Rar!\x1a\x07" + bytes(2000), "cut off or damaged"),
    "cut_at_a_member": (tar({**GOOD, "images/b.jpg": b"b"}, "w:")[:1024], "ends without its end mark"),
    "cut_in_a_header": (tar({**GOOD, "images/b.jpg": b"b"}, "w:")[:1100], "cut off or damaged"),
    "rubbish_between_members": (tar(GOOD, "w:")[:1024] + b"x" * 512 + tar({"images/b.jpg": b"b"}, "w:"),
                                "ends without its end mark"),
    "gzip_twice": (gzip.compress(tar(GOOD)), "cut off or damaged"),
}


@pytest.mark.parametrize("name", TARS)
def test_tars(name, prepare):
    body, reason = TARS[name]
    require_refused(*prepare(f"{name}.tar.gz", body), name, reason)


@pytest.mark.parametrize("entries", [
    {"images/b.jpg": member("images/b.jpg", pax_headers={"mtime": "1e30"})},
    {"images/b.jpg": member("images/b.jpg", pax_headers={"mtime": "-1e30", "atime": "nan"})},
    {"images": member("images", tarfile.DIRTYPE, mtime=-1)},
    {"images": member("images", tarfile.DIRTYPE, mode=0)},
    {"images/b.jpg": member("images/b.jpg", mode=0o6777, uid=12345, gid=12345)},
    {"./": member("./", tarfile.DIRTYPE), "./images/./b.jpg": b"b"},
    {"__MACOSX/images/._a.jpg": b"\0", "images/._a.jpg": b"\0", "images/.DS_Store": b"\0"},
], ids=["time_1e30", "time_-1e30", "time_-1", "folder_without_rights", "setuid", "dots", "macos"])
def test_members_that_are_odd_and_do_no_harm(entries, prepare):
    """Times, owners and rights are not taken over."""
    said, root = prepare("odd.tar.gz", tar({**entries, **GOOD}, format=tarfile.PAX_FORMAT))
    assert said == []
    for path in (root / "oxford_pets").rglob("*"):
        found = path.stat()
        assert found.st_uid == os.getuid() and not found.st_mode & 0o7022 and found.st_mtime < 1e10


# ---- what a zip may hold ----
def patched(body, find, write, at=0):
    """A zip whose headers (`find` is the mark of one kind of them) say something else at an offset."""
    body, place = bytearray(body), -1
    while (place := body.find(find, place + 1)) >= 0:
        body[place + at:place + at + len(write)] = write
    return bytes(body)


CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"


def with_both(body, write, at):
    """`at`: the offset in the entry of the list; in a member's own header it is 2 less."""
    return patched(patched(body, CENTRAL, write, at), LOCAL, write, at - 2)


ZIPPED = zipped({**GOOD, "images/b.jpg": b"b" * 1000}, zipfile.ZIP_DEFLATED)
ZIPS = {
    "link": (zipped({**GOOD, zip_member("images/l", 0o120777): "../../../home/kept"}), "is a link"),
    "pipe": (zipped({**GOOD, zip_member("images/l", 0o010644): ""}), "neither a file nor a folder"),
    "device": (zipped({**GOOD, zip_member("images/l", 0o020644): ""}), "neither a file nor a folder"),
    "up": (zipped({**GOOD, "../../../home/kept": b"x"}), "outside"),
    "absolute": (zipped({**GOOD, "/tmp/prepare_data_evil": b"x"}), "outside"),
    "drive": (zipped({**GOOD, "c:evil": b"x"}), "outside"),
    "backslash": (zipped({**GOOD, "images\\..\\..\\evil": b"x"}), "outside"),
    "nul": (zipped({**GOOD, "images/b0.jpg": b"x"}).replace(b"b0.jpg", b"b\0.jpg"), "cannot be printed"),
    "not_utf8": (zipped({**GOOD, "images/é.jpg": b"x"}).replace("é".encode(), b"\xff\xfe"), "cut off or damaged"),
    "terminal_codes": (zipped({**GOOD, "images/\x1b[2J": b"x"}), "cannot be printed"),
    "name_of_10000_letters": (zipped({**GOOD, "images/" + "i" * 10000: b"x"}), "too long"),
    "depth_2000": (zipped({**GOOD, "d/" * 2000 + "x": b"x"}), "too long or too deep"),
    "twice": (zipped([*GOOD.items(), *GOOD.items()]), "twice"),
    "file_then_folder": (zipped([*GOOD.items(), ("images/a.jpg/", b"")]), "twice"),
    "below_a_file": (zipped([*GOOD.items(), ("images/a.jpg/b.jpg", b"x")]), "below a file"),
    "encrypted": (with_both(ZIPPED, b"\x01\x00", 8), "is encrypted"),
    "method_99": (with_both(ZIPPED, b"\x63\x00", 10), "method 99"),
    "method_9": (with_both(ZIPPED, b"\x09\x00", 10), "method 9"),
    "method_bzip2": (zipped(GOOD, zipfile.ZIP_BZIP2), "method 12"),
    "size_of_4_gigabytes": (patched(ZIPPED, CENTRAL, b"\xfe\xff\xff\xff", 24), "more bytes than this dataset"),
    "size_smaller_than_its_content": (with_both(ZIPPED, struct.pack("<L", 10), 24), "cut off or damaged"),
    "member_behind_the_end": (patched(ZIPPED, CENTRAL, b"\xf0\xff\xff\x7f", 42), "cut off or damaged"),
    "list_before_the_start": (patched(ZIPPED, b"PK\x05\x06", b"\xff\xff\xff\x00", 16), "before its start"),
    "list_of_2_gigabytes": (patched(ZIPPED, b"PK\x05\x06", b"\xf0\xff\xff\x7f", 12), ""),
    "another_name_in_the_list": (patched(ZIPPED, CENTRAL, b"images/c.jpg", 46), "cut off or damaged"),
    "extra_field_cut": (patched(ZIPPED, CENTRAL, b"\xff\xff", 30), "cut off or damaged"),
    "none": (b"PK\x05\x06" + bytes(18), "does not hold images"),
}


@pytest.mark.parametrize("name", ZIPS)
def test_zips(name, prepare):
    body, reason = ZIPS[name]
    said, root = prepare(f"{name}.zip", body)
    if name == "none":  # whole, but of something else: kept
        assert reason in said[0] and (root / ".downloads" / "none.zip").is_file()
    else:
        require_refused(said, root, name, reason)


# ---- how much comes out ----
@pytest.fixture
def small(monkeypatch):
    """Datasets may have 20 members and 100,000 bytes."""
    monkeypatch.setattr(Source, "bounds", lambda self, size: Bounds(20, 100_000))


MANY = {f"images/{i}.jpg": b"" for i in range(21)}
LARGE = {"images/large.jpg": bytes(99_000), "images/more.jpg": bytes(2000)}


@pytest.mark.parametrize(("name", "body", "inner", "reason"), [
    ("many.tar.gz", tar(MANY), "", "more files"),
    ("many.zip", zipped(MANY), "", "more files"),
    ("folders.tar", tar({f"d{i}": member(f"d{i}", tarfile.DIRTYPE) for i in range(21)}), "", "more files"),
    ("folders.zip", zipped({f"d{i}/": b"" for i in range(21)}), "", "more files"),
    ("listed.zip", zipped({f"{i}": b"" for i in range(8000)}), "", "header that is too long"),
    ("large.tar.gz", tar(LARGE), "", "more bytes"),
    ("large.zip", zipped(LARGE, zipfile.ZIP_DEFLATED), "", "more bytes"),
    ("inner.zip", zipped({"in.tar.gz": tar(LARGE)}), "in.tar.gz", "more bytes"),
    ("inner.tar", tar({"in.zip": zipped(MANY)}), "in.zip", "more files"),
    ("inner_up.zip", zipped({"in.tar": tar({**GOOD, "../../../home/kept": b"x"})}), "in.tar", "outside"),
    ("inner_link.zip", zipped({"in.tar": tar({**GOOD, "l": link("images/l", "/etc")})}), "in.tar", "is a link"),
    ("inner_over.zip", zipped({"in.tar": tar(GOOD), "images/a.jpg": b"x"}), "in.tar", "twice"),
    ("inner_99.zip", zipped({"in.zip": ZIPS["method_99"][0]}), "in.zip", "method 99"),
])
def test_bombs(name, body, inner, reason, prepare, small, monkeypatch):
    written = []
    copy = archives.shutil.copyfileobj
    monkeypatch.setattr(archives.shutil, "copyfileobj", lambda source, file, size: written.append(
        copy(source, file, size) or file.tell()))
    said, root = prepare(name, body, inner)
    require_refused(said, root, "", reason)
    assert sum(written) < 100_000  # it is refused before it is written


def test_bounds_come_from_the_table():
    """And leave room for what is published: 2.7 times the files that are used, 1 MB for each, 39 GB."""
    sun = SOURCES["sun397"]
    assert sun.images == 39700 and 39e9 < sun.most_bytes < 100e9
    bounds = sun.bounds(39_000_000_000)
    assert 150_000 < bounds.members < 400_000 and 39e9 < bounds.size <= sun.most_bytes
    assert SOURCES["oxford_pets"].bounds(19_000_000).size < 2e9  # what is small stays small
    for source in SOURCES.values():
        assert all(file.size < source.most_bytes for file in source.files)


@pytest.mark.parametrize("name", ["room.tar.gz", "room.zip"])
def test_no_room_is_known_before_and_keeps_the_archive(name, prepare, monkeypatch):
    body = (zipped if name.endswith("zip") else tar)({"images/a.jpg": bytes(500_000)})
    usage = disk.shutil.disk_usage("/")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage._replace(free=disk.SPARE + 300_000))
    said, root = prepare(name, body)
    assert "no space left in" in said[0] and (root / ".downloads" / name).read_bytes() == body
    assert not (root / "oxford_pets").exists() and not list(root.rglob(".unfinished-*"))


def test_an_archive_is_read_in_pieces(tmp_path):
    """Nothing reads a header as long as it says it is, whatever the memory has."""
    with open(tmp_path / "a", "wb") as file:
        file.write(bytes(100))
    stream = archives.Limited(open(tmp_path / "a", "rb", buffering=0))
    stream.left = 50
    with pytest.raises(archives.Refused):
        stream.read(1 << 40)
    with pytest.raises(archives.Refused):
        stream.read(-512)
    assert len(stream.read()) == 50
    with pytest.raises(archives.Refused):
        stream.read(1)


# ---- places ----
def test_a_place_that_is_a_link_to_nowhere_is_not_written_through(prepare, victim):
    root = victim.parent.parent / "deep" / "data"
    (root / "oxford_pets").mkdir(parents=True)
    (root / "oxford_pets" / "images").symlink_to(victim.parent / "new")
    said, root = prepare("a.zip", zipped(GOOD))
    assert "oxford_pets/images is a link" in said[0] and (root / ".downloads" / "a.zip").is_file()


def test_a_link_below_the_datasets_folder_is_not_written_through(tmp_path, monkeypatch, capsys, victim):
    monkeypatch.setitem(SOURCES, "domainnet", Source(NUMBERS, (
        File("http://127.0.0.1:9/a.txt", {"": "domainnet/splits/a.txt"}),)))
    (tmp_path / "domainnet").mkdir()
    (tmp_path / ".downloads").mkdir()
    (tmp_path / ".downloads" / "a.txt").write_bytes(b"a")
    (tmp_path / "domainnet" / "splits").symlink_to(victim.parent)
    prepare_data.main(["domainnet", "--root", str(tmp_path)])
    assert "domainnet/splits is a link" in capsys.readouterr().err and os.listdir(victim.parent) == ["kept"]


@pytest.mark.parametrize("disk", ["same", "other"])
def test_the_datasets_folder_may_be_the_users_link(disk, prepare, tmp_path, monkeypatch):
    """Also to another disk, where a rename fails; the place is still filled at once."""
    root, elsewhere = tmp_path / "deep" / "data", tmp_path / "elsewhere"
    elsewhere.mkdir()
    root.mkdir(parents=True)
    (root / "oxford_pets").symlink_to(elsewhere)
    rename = os.rename

    def other_disk(source, target):
        if ("oxford_pets" in str(target)) != ("oxford_pets" in str(source)):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    if disk == "other":
        monkeypatch.setattr(os, "rename", other_disk)
    said, root = prepare("a.zip", zipped(GOOD))
    assert said == [] and os.listdir(elsewhere) == ["images"]
    assert (elsewhere / "images" / "a.jpg").read_bytes() == b"a"


@pytest.mark.parametrize("kind", ["link", "hard_link", "pipe", "folder"])
def test_what_lies_in_the_locks_place(kind, tmp_path, victim, one_line, monkeypatch):
    monkeypatch.setitem(SOURCES, "pacs", Source(NUMBERS))
    lock = tmp_path / "data" / ".downloads" / "lock"
    lock.parent.mkdir(parents=True)
    plant(kind, lock, victim)
    said = one_line(lambda: prepare_data.main(["pacs", "--root", str(tmp_path / "data")]))
    assert str(lock) in said and "remove it" in said and victim.read_bytes() == b"worth more"


def test_downloads_that_are_a_link(tmp_path, victim, one_line):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".downloads").symlink_to(victim.parent)
    said = one_line(lambda: prepare_data.main(["pacs", "--root", str(tmp_path / "data")]))
    assert ".downloads is a link" in said and os.listdir(victim.parent) == ["kept"]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_lies_in_the_archives_place(kind, prepare, victim):
    archive = victim.parent.parent / "deep" / "data" / ".downloads" / "a.zip"
    archive.parent.mkdir(parents=True)
    plant(kind, archive, victim)
    said, _ = prepare("a.zip")
    assert len(said) == 1 and "a.zip is a link or not a regular file" in said[0]


def test_what_a_killed_run_left_may_be_a_link_or_very_deep(tmp_path, victim, monkeypatch):
    monkeypatch.setitem(SOURCES, "pacs", Source(NUMBERS))
    root = tmp_path / "data"
    root.mkdir()
    (root / ".unfinished-link").symlink_to(victim.parent)
    here = os.open(root, os.O_RDONLY)
    for name in (".unfinished-deep", *["d"] * 1500):
        os.mkdir(name, dir_fd=here)
        here, before = os.open(name, os.O_RDONLY, dir_fd=here), here
        os.close(before)
    os.close(here)
    assert prepare_data.main(["pacs", "--root", str(root)]) is False
    assert victim.read_bytes() == b"worth more"
    subprocess.run(["rm", "-rf", root], check=True)  # pytest's own removal is recursive


# ---- TerraIncognita's list ----
def listing(**changes):
    table = {"categories": [{"id": 1, "name": "bird"}], "annotations": [], "images": []}
    for i, place in enumerate(("38", "43", 46, 100)):
        table["images"].append({"id": f"i{i}", "location": place, "file_name": f"{i}.jpg"})
        table["annotations"].append({"image_id": f"i{i}", "category_id": 1})
    for path, value in changes.items():
        *most, last = path.split("__")
        part = table
        for key in most:
            part = part[int(key) if key.isdigit() else key]
        last = int(last) if last.isdigit() else last
        if value is None:
            del part[last]
        else:
            part[last] = value
    return json.dumps(table).encode()


LISTS = {
    "up": (listing(images__0__file_name="../../../../home/x/0.jpg"), "outside"),
    "absolute": (listing(images__0__file_name="/etc/passwd"), "outside"),
    "backslash": (listing(images__0__file_name="..\\x"), "outside"),
    "nul": (listing(images__0__file_name="0\0.jpg"), "cannot be printed"),
    "lone_surrogate": (listing(images__0__file_name="\ud800"), "no list of images"),
    "depth_2000": (listing(images__0__file_name="d/" * 2000), "too deep"),
    "no_images": (listing(images=None), "images: Field required"),
    "no_name": (listing(images__0__file_name=None), "images.0.file_name: Field required"),
    "no_location": (listing(images__0__location=None), "images.0.location"),
    "name_is_a_list": (listing(images__0__file_name=["0.jpg"]), "images.0.file_name"),
    "id_is_null": (listing().replace(b'"i0"', b"null"), "id"),
    "location_is_a_list": (listing(images__0__location=[38]), "images.0.location"),
    "category_is_text": (listing(annotations__0__category_id="bird"), "annotations.0.category_id"),
    "number_of_10000_digits": (listing().replace(b'"id": 1', b'"id": ' + b"1" * 10000), "no list of images"),
    "categories_are_a_number": (listing(categories=7), "categories"),
    "a_list": (b"[1, 2]", "no list of images"),
    "nothing": (b"", "no list of images"),
    "not_json": (b"<html>", "no list of images"),
    "not_utf8": (listing().replace(b"0.jpg", b"\xff.jpg"), "no list of images"),
    "depth_100000": (b'{"images": ' + b"[" * 100_000, "no list of images"),
    "a_million_errors": (b'{"images": [' + b"0," * 1_000_000 + b"0]}", "no list of images"),
    "no_known_animal": (listing(categories__0__name="yeti"), "names no image of location_"),
    "unknown_category": (listing(annotations__0__category_id=9), "names no image of location_38"),
    "no_such_image": (listing(images__0__file_name="gone.jpg"), "names no image of location_38"),
}


@pytest.fixture
def terra(tmp_path, monkeypatch, capsys, victim):
    """(the list's bytes) -> what is said of TerraIncognita, and its folder."""
    folder = tmp_path / "deep" / "data" / "terra_incognita"
    (folder / layouts.TERRA_IMAGES).mkdir(parents=True)
    for i in range(4):
        (folder / layouts.TERRA_IMAGES / f"{i}.jpg").write_bytes(b"picture")
    ours = SOURCES["terra_incognita"]
    monkeypatch.setitem(SOURCES, "terra_incognita", Source(NUMBERS, (), arrange=ours.arrange, complete=ours.complete))

    def terra(body):
        if body is not None:
            (folder / "caltech_images_20210113.json").write_bytes(body)
        prepare_data.main(["terra_incognita", "--root", str(folder.parent)])
        assert os.listdir(victim.parent) == ["kept"] and not list(folder.parent.rglob(".unfinished-*"))
        said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Split: drawn")]
        return said, folder

    return terra


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_images(name, terra):
    body, reason = LISTS[name]
    said, folder = terra(body)
    assert len(said) == 1 and said[0].startswith("terra_incognita: ") and reason in said[0] and len(said[0]) < 1000
    assert len(list((folder / layouts.TERRA_IMAGES).iterdir())) == 4  # nothing is lost
    assert not list(folder.glob("location_*"))


@pytest.mark.parametrize("case", ["plain", "twice", "image_is_a_link", "folder_is_a_link", "stopped_before", "bom"])
def test_lists_of_images_that_do_no_harm(case, terra, tmp_path, victim):
    folder = tmp_path / "deep" / "data" / "terra_incognita"
    images, body = folder / layouts.TERRA_IMAGES, listing()
    if case == "twice":
        table = json.loads(body)
        body = json.dumps({**table, "images": table["images"] * 2}).encode()
    elif case == "image_is_a_link":
        (images / "0.jpg").unlink()
        (images / "0.jpg").symlink_to(victim)
    elif case == "folder_is_a_link":
        images.rename(tmp_path / "mine")
        images.symlink_to(tmp_path / "mine")
    elif case == "stopped_before":
        (folder / "location_38" / "bird").mkdir(parents=True)
        (folder / "location_38" / "bird" / "0.jpg").write_bytes(b"picture")
    elif case == "bom":
        body = b"\xef\xbb\xbf" + body
    said, folder = terra(body)
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    assert said == [] and found == [f"location_{place}/bird/{i}.jpg" for i, place in
                                    ((3, 100), (0, 38), (1, 43), (2, 46))]
    assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in folder.rglob("*.jpg")) or \
        case == "folder_is_a_link"
    if case == "folder_is_a_link":
        assert len(os.listdir(tmp_path / "mine")) == 4


def test_a_pipe_for_a_list_of_images(terra, tmp_path):
    os.mkfifo(tmp_path / "deep" / "data" / "terra_incognita" / "caltech_images_20210113.json")
    said, _ = terra(None)
    assert len(said) == 1 and "not a regular file" in said[0]


# ---- ImageNet's own archives ----
def imagenet_case(name):
    bodies = packed.imagenet({"n00000001": b"a", "n00000002": b"b"}, [2, 1])
    evil = {"l": link("l", "../../../../../home/kept")}
    changes = {
        "train_link": ("train", tar({"n00000001.tar": b"", **evil}), "is a link"),
        "class_link": ("train", tar({"n00000001.tar": tar(evil)}), "is a link"),
        "class_up": ("train", tar({"n00000001.tar": tar({"../../../../../../home/kept": b"x"})}), "outside"),
        "class_damaged": ("train", tar({"n00000001.tar": b"x" * 2000}), "cut off or damaged"),
        "class_is_no_archive": ("train", tar({"n00000001.jpg": b"x"}), "no archive of a class"),
        "val_up": ("val", tar({"../x": b"x"}), "outside"),
        "val_of_another_number": ("val", tar({"a.JPEG": b"x"}), "holds 1 images"),
        "devkit_link": ("devkit", tar(evil), "is a link"),
        "devkit_out": ("devkit", packed.imagenet({"../../../../home/a": b"a", "n00000002": b"b"}, [2, 1])["devkit"],
                       "lists"),
        "devkit_empty": ("devkit", tar({"a": b""}), "No such file"),
        "md5": ("train", None, "is published"),
    }
    part, body, reason = changes[name]
    return {**bodies, part: body or b"another file"}, reason, part


@pytest.mark.parametrize("name", ["train_link", "class_link", "class_up", "class_damaged", "class_is_no_archive", "md5",
                                  "val_up", "val_of_another_number", "devkit_link", "devkit_out", "devkit_empty"])
def test_imagenets_archives(name, tmp_path, monkeypatch, capsys, victim):
    """Though their checksums are known: whoever can make two files of one MD5 has gained nothing."""
    bodies, reason, wrong = imagenet_case(name)
    images = tmp_path / "deep" / "data" / "imagenet" / "images"
    images.mkdir(parents=True)
    for part, body in bodies.items():
        file = ARCHIVE_META[part][0]
        (images / file).write_bytes(body)
        if name != "md5":
            monkeypatch.setitem(ARCHIVE_META, part, (file, hashlib.md5(body).hexdigest()))
    monkeypatch.setitem(SOURCES, "imagenet", Source(NUMBERS, (), arrange=layouts.arrange_imagenet))
    prepare_data.main(["imagenet", "--root", str(tmp_path / "deep" / "data")])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("imagenet: ") and reason in said[0], said
    assert os.listdir(victim.parent) == ["kept"] and not list(images.glob(".unfinished-*"))
    assert not (images / ("train" if wrong == "train" else "val")).exists()
    assert all((images / ARCHIVE_META[part][0]).is_file() for part in bodies)  # 144 GB that are the user's


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])  # a link is read, as it may lead to another disk
def test_what_lies_in_place_of_imagenets_archive(kind, tmp_path, monkeypatch, capsys, victim):
    images = tmp_path / "imagenet" / "images"
    images.mkdir(parents=True)
    plant(kind, images / "ILSVRC2012_img_train.tar", victim)
    monkeypatch.setitem(SOURCES, "imagenet", Source(NUMBERS, (), arrange=layouts.arrange_imagenet))
    prepare_data.main(["imagenet", "--root", str(tmp_path)])
    said = "has the MD5" if kind == "link" else "is not a regular file"
    assert f"ILSVRC2012_img_train.tar {said}" in capsys.readouterr().err
    assert victim.read_bytes() == b"worth more"


# ---- any name ----
@pytest.mark.parametrize("name", ["..", "a/..", "a/../../b", "/", "//a", "C:", "\\", "a\\b", "a\0", "\x7f", "\ud800",
                                  "a" * 256, "a/" * 33 + "b", ("a" * 200 + "/") * 6, "é" * 128, "\u2028", "\u200f"])
def test_names_that_no_member_may_have(name):
    with pytest.raises(InputError):
        inside(name)


@pytest.mark.parametrize(("name", "path"), [("", ""), (".", ""), ("./a//b/", "a/b"), ("a b/é.jpg", "a b/é.jpg"),
                                            ("a:b".join(["x/", ""]), "x/a:b"), ("..a/b..", "..a/b.."),
                                            ("a" * 255, "a" * 255)])
def test_names_that_a_member_may_have(name, path):
    assert inside(name) == path


def test_a_pipe_is_not_unpacked(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(OSError, match="not a regular file"):
        unpack(str(tmp_path / "a.tar"), str(tmp_path), Bounds(1, 1))


def test_every_single_byte_of_a_small_archive_may_be_wrong(tmp_path):
    """Whatever it is, unpacking ends in an InputError or in files inside the folder."""
    whole = {"a.tar": tar({"images/a": b"a"}, "w:")[:2048], "a.zip": zipped({"images/a": b"a"})}
    for name, body in whole.items():
        for place in range(0, min(len(body), 1024), 7):
            folder = tmp_path / f"{name}-{place}"
            folder.mkdir()
            (tmp_path / name).write_bytes(body[:place] + bytes([body[place] ^ 0xff]) + body[place + 1:])
            with contextlib.suppress(InputError):
                unpack(str(tmp_path / name), str(folder), Bounds(10, 1000))
            assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == {"a.tar", "a.zip"}


def test_the_size_that_a_tar_says_is_the_size_that_is_written(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar({"images/a": bytes(3_000_000), "images/b": b""}))
    (tmp_path / "out").mkdir()
    unpack(str(tmp_path / "a.tar"), str(tmp_path / "out"), Bounds(2, 3_000_000))
    assert (tmp_path / "out" / "images" / "a").stat().st_size == 3_000_000
    assert (tmp_path / "out" / "images" / "b").read_bytes() == b""


@pytest.mark.parametrize("published", [True, False])
def test_a_refused_archive_is_kept_where_it_would_come_again(published, tmp_path, monkeypatch, capsys):
    archive = tmp_path / ".downloads" / "images.tar"
    archive.parent.mkdir()
    archive.write_bytes(tar({**GOOD, "../x": b"x"}))
    md5 = hashlib.md5(archive.read_bytes()).hexdigest() if published else "0" * 32
    file = File("http://nowhere.invalid/images.tar", {"images": "oxford_pets/images"}, md5)
    monkeypatch.setitem(SOURCES, "oxford_pets", Source(NUMBERS, (file,)))
    prepare_data.main(["oxford_pets", "--root", str(tmp_path)])
    assert ("is kept" in capsys.readouterr().err) == archive.exists() == published
