"""prepare_data against a server on this machine: interrupted, wrong, cut off, hostile, and no room on the disk."""
import contextlib
import errno
import hashlib
import http.server
import json
import os
import shutil
import tarfile
import threading
from pathlib import Path

import drawn
import packed
import pytest
import torchvision.datasets as tv
from conftest import ROOT
from packed import link, member, tar, zip_member, zipped
from torchvision.datasets.imagenet import ARCHIVE_META

from dassl.utils import InputError
from tools import prepare_data
from tools.downloads import counting, disk, download, fetching, layouts, sources
from tools.downloads.sources import DRIVE, GROUPS, SOURCES, File, Source


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files` with ranges; `server.drops` cuts answers off, `server.log` keeps what was asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name = self.path.lstrip("/")
        asked = self.headers.get("Range")
        self.server.log.append((name, asked))
        if self.server.statuses:
            return self.send_error(self.server.statuses.pop(0))
        body = self.server.files.get(name)
        if body is None:
            return self.send_error(404)
        version = '"' + hashlib.md5(body).hexdigest() + '"'
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if self.headers.get("If-Range", version) != version:
            start = 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", version)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        send = self.server.drops.pop(0) if self.server.drops else len(body)
        self.close_connection = True
        with contextlib.suppress(ConnectionError):  # a client that ran out of room
            self.wfile.write(body[start:start + send])
        return None

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.drops, server.log, server.statuses, server.ranges = {}, [], [], [], True
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def source(monkeypatch):
    """Replace what `SOURCES` says of a dataset, but for its expected numbers."""

    def source(name, *files, **more):
        monkeypatch.setitem(SOURCES, name, Source(more.pop("expected", SOURCES[name].expected), files, **more))

    return source


def md5(body):
    return hashlib.md5(body).hexdigest()


BODY = bytes(range(256)) * 4000


# ---- downloads ----
def test_a_download_that_is_cut_off_goes_on(server, tmp_path):
    """As long as bytes arrive, in the same run; then with the next one."""
    server.files["a.bin"], server.drops = BODY, [1000, 50000]
    download.download(f"{server.url}/a.bin", str(tmp_path / "a.bin"), md5(BODY))
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert server.log == [("a.bin", None), ("a.bin", "bytes=1000-"), ("a.bin", "bytes=51000-")]
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_server_that_goes_away_leaves_what_came(server, tmp_path):
    server.files["a.bin"], server.drops = BODY, [70000] + [0] * download.ATTEMPTS
    with pytest.raises(InputError, match="stopped after 70,000 bytes .* run the same command again"):
        download.download(f"{server.url}/a.bin", str(tmp_path / "a.bin"), md5(BODY))
    assert not (tmp_path / "a.bin").exists() and len(server.log) == 1 + download.ATTEMPTS
    server.log.clear()
    download.download(f"{server.url}/a.bin", str(tmp_path / "a.bin"), md5(BODY))
    assert server.log == [("a.bin", "bytes=70000-")] and (tmp_path / "a.bin").read_bytes() == BODY


def test_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    with pytest.raises(InputError, match="stopped after 0 bytes .*refused"):
        download.download("http://127.0.0.1:9/a", str(tmp_path / "a"))


def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(server, tmp_path):
    server.files["a.bin"], server.statuses = BODY, [503, 429]
    download.download(f"{server.url}/a.bin", str(tmp_path / "a.bin"))
    assert (tmp_path / "a.bin").read_bytes() == BODY and len(server.log) == 3
    server.log.clear()
    with pytest.raises(InputError, match="answers 404"):
        download.download(f"{server.url}/gone.bin", str(tmp_path / "gone.bin"))
    assert len(server.log) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_changed_meanwhile_is_fetched_whole(ranges, server, tmp_path):
    server.files["a.bin"], server.drops = BODY[::-1], [70000] + [0] * download.ATTEMPTS
    with pytest.raises(InputError):
        download.download(f"{server.url}/a.bin", str(tmp_path / "a.bin"))
    server.files["a.bin"], server.ranges = BODY, ranges
    download.download(f"{server.url}/a.bin", str(tmp_path / "a.bin"))
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    server.files["a.bin"] = BODY
    (tmp_path / "a.bin.part").write_bytes(BODY + b"more")
    download.download(f"{server.url}/a.bin", str(tmp_path / "a.bin"), md5(BODY))
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_part_that_is_whole_is_taken(server, tmp_path):
    server.files["a.bin"] = BODY
    (tmp_path / "a.bin.part").write_bytes(BODY)
    download.download(f"{server.url}/a.bin", str(tmp_path / "a.bin"), md5(BODY))
    assert (tmp_path / "a.bin").read_bytes() == BODY and len(server.log) == 1


def test_wrong_checksum(server, tmp_path):
    server.files["a.bin"] = BODY
    with pytest.raises(InputError, match=f"MD5 {md5(BODY)}, {md5(b'x')} is published"):
        download.download(f"{server.url}/a.bin", str(tmp_path / "a.bin"), md5(b"x"))
    with pytest.raises(InputError, match="1,024,000 bytes, 7 are published"):
        download.download(f"{server.url}/a.bin", str(tmp_path / "a.bin"), size=7)
    assert not list(tmp_path.glob("a.bin*.part")) and not (tmp_path / "a.bin").exists()
    download.download(f"{server.url}/a.bin", str(tmp_path / "a.bin"), md5(BODY), len(BODY))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_fills_up(server, tmp_path, monkeypatch):
    server.files["a.bin"] = BODY
    monkeypatch.setattr(download, "open_own", lambda path, mode, **words: open("/dev/full", mode, **words))
    with pytest.raises(InputError, match=r"no space left on the disk of \S+a.bin.part .No space left on device."):
        download.download(f"{server.url}/a.bin", str(tmp_path / "a.bin"))


def test_a_disk_that_is_too_small_is_known_before(server, tmp_path, monkeypatch):
    server.files["a.bin"] = BODY
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(InputError, match="no space left in .* GB are free"):
        download.download(f"{server.url}/a.bin", str(tmp_path / "a.bin"))


# ---- archives ----
@pytest.mark.parametrize(("name", "body"), [
    ("up.tar.gz", tar({"images/a.jpg": b"a", "../evil": b"x"})),
    ("inner_up.tar", tar({"images/a.jpg": b"a", "images/../../evil": b"x"}, "w:")),
    ("absolute.tar.gz", tar({"images/a.jpg": b"a", "/tmp/prepare_data_evil": b"x"})),
    ("link.tar.gz", tar({"images/a.jpg": b"a", "images/l": link("images/l", "../../../evil")})),
    ("absolute_link.tar.gz", tar({"images/a.jpg": b"a", "images/l": link("images/l", "/etc")})),
    ("through.tar.gz", tar({"images/l": link("images/l", "../.."), "images/l/evil": b"x"})),
    ("hard.tar.gz", tar({"images/a.jpg": b"a", "images/h": link("images/h", "../../evil", tarfile.LNKTYPE)})),
    ("device.tar.gz", tar({"images/a.jpg": b"a", "images/d": member("images/d", tarfile.CHRTYPE)})),
    ("up.zip", zipped({"images/a.jpg": b"a", "../evil": b"x"})),
    ("absolute.zip", zipped({"images/a.jpg": b"a", "/tmp/prepare_data_evil": b"x"})),
    ("backslash.zip", zipped({"images/a.jpg": b"a", "..\\evil": b"x"})),
    ("drive.zip", zipped({"images/a.jpg": b"a", "C:/evil": b"x"})),
    ("link.zip", zipped({"images/a.jpg": b"a", zip_member("images/l", kind=0o120777): "/etc"})),
])
def test_hostile_archives(name, body, server, source, tmp_path, capsys):
    root = tmp_path / "deep" / "data"
    server.files[name] = body
    source("oxford_pets", File(f"{server.url}/{name}", {"images": "oxford_pets/images"}))
    assert prepare_data.main(["oxford_pets", "--root", str(root)]) is False
    said = capsys.readouterr().err
    assert "oxford_pets: " in said and f"{name} is refused" in said and "the archive was removed" in said
    everything = [path for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()]
    assert everything == [] and not os.path.exists("/tmp/prepare_data_evil")
    assert not (root / "oxford_pets").exists()


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar", "a.zip", "page.tar.gz", "page.zip", "flipped.zip"])
def test_archives_that_are_cut_off_or_none(name, server, source, tmp_path, capsys):
    entries = {f"images/{i}.jpg": os.urandom(3000) for i in range(9)}
    whole = zipped(entries) if name.endswith("zip") else tar(entries, "w:gz" if name.endswith("gz") else "w:")
    body = whole[:len(whole) // 2 + 100] if name.startswith("a.") else b"<html>please log in</html>"
    if name.startswith("flipped"):
        body = whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:]
    server.files[name] = body
    source("oxford_pets", File(f"{server.url}/{name}", {"images": "oxford_pets/images"}))
    assert prepare_data.main(["oxford_pets", "--root", str(tmp_path)]) is False
    assert f"{name} is cut off or damaged" in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    server.files[name] = whole  # the next run fetches it again
    prepare_data.main(["oxford_pets", "--root", str(tmp_path)])
    assert len(list((tmp_path / "oxford_pets" / "images").iterdir())) == 9


def test_an_archive_of_something_else(server, source, tmp_path, capsys):
    server.files["a.zip"] = zipped({"pictures/a.jpg": b"a"})
    source("oxford_pets", File(f"{server.url}/a.zip", {"images": "oxford_pets/images"}))
    prepare_data.main(["oxford_pets", "--root", str(tmp_path)])
    assert "a.zip does not hold images" in capsys.readouterr().err and not (tmp_path / "oxford_pets").exists()
    assert (tmp_path / ".downloads" / "a.zip").is_file()  # gigabytes that can still be laid out by hand


def test_a_disk_that_fills_up_while_unpacking_keeps_the_archive(server, source, tmp_path, capsys, monkeypatch):
    server.files["a.tar.gz"] = tar({"images/a.jpg": b"a" * 9000})
    source("oxford_pets", File(f"{server.url}/a.tar.gz", {"images": "oxford_pets/images"}))

    def no_room(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", no_room)
        assert prepare_data.main(["oxford_pets", "--root", str(tmp_path)]) is False
    assert "no space left on the disk of" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.tar.gz"]
    server.log.clear()
    prepare_data.main(["oxford_pets", "--root", str(tmp_path)])
    assert (tmp_path / "oxford_pets" / "images" / "a.jpg").is_file() and server.log == []


# ---- whole datasets ----
def folder_as(kind, folder):
    """Everything below a folder as an archive."""
    entries = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return zipped(entries) if kind == "zip" else tar(entries)


def test_a_dataset_from_download_to_check(server, source, tmp_path, capsys):
    """Caltech101's archive inside an archive and its split file, twice; nothing is fetched the second time."""
    drawn.write_caltech(tmp_path / "made")
    made = tmp_path / "made" / "caltech-101"
    split = (made / "split_zhou_Caltech101.json").read_bytes()
    (made / "split_zhou_Caltech101.json").unlink()
    inner = folder_as("tar", made)
    server.files["caltech-101.zip"] = zipped({"caltech-101/101_ObjectCategories.tar.gz": inner,
                                              "caltech-101/Annotations.tar": b"no matter"})
    server.files["split_zhou_Caltech101.json"] = split
    images, listing = SOURCES["caltech101"].files
    source("caltech101", File(f"{server.url}/caltech-101.zip", images.places, md5(server.files["caltech-101.zip"]),
                              inner=images.inner),
           File(f"{server.url}/split_zhou_Caltech101.json", listing.places),
           expected=sources.parts(6, 24, 30, 18))
    root = tmp_path / "data"
    assert prepare_data.main(["caltech101", "--root", str(root)]) is True
    assert "ok" in capsys.readouterr().out.splitlines()[-1]
    assert sorted(os.listdir(root)) == ["caltech-101"]
    assert sorted(os.listdir(root / "caltech-101")) == ["101_ObjectCategories", "split_zhou_Caltech101.json"]
    server.log.clear()
    assert prepare_data.main(["caltech101", "--root", str(root)]) is True and server.log == []
    shutil.rmtree(root / "caltech-101" / "101_ObjectCategories")  # only what is gone is fetched again
    assert prepare_data.main(["caltech101", "--root", str(root)]) is True
    assert [name for name, _ in server.log] == ["caltech-101.zip"]


def test_two_runs_at_once_and_what_a_killed_one_left(tmp_path, source):
    source("pacs")
    for left in (tmp_path / ".unfinished-a", tmp_path / "terra_incognita" / ".unfinished-b"):
        left.mkdir(parents=True)
    with fetching.alone(str(tmp_path)), pytest.raises(InputError, match="another `metaprompt data` is at work"):
        prepare_data.main(["pacs", "--root", str(tmp_path)])
    assert prepare_data.main(["pacs", "--root", str(tmp_path)]) is False
    assert not list(tmp_path.rglob(".*"))


def test_one_dataset_that_fails_does_not_keep_the_others(server, source, tmp_path, capsys):
    drawn.write_pacs(tmp_path / "made")
    server.files["pacs.zip"] = folder_as("zip", tmp_path / "made")
    source("vlcs", File(f"{server.url}/gone.zip", {"VLCS": "VLCS"}))
    source("pacs", File(f"{server.url}/pacs.zip", SOURCES["pacs"].files[0].places),
           expected={"classes": 4, "art_painting": 20, "cartoon": 20, "photo": 20, "sketch": 20})
    assert prepare_data.main(["vlcs", "pacs", "--root", str(tmp_path / "data")]) is False
    said = capsys.readouterr()
    assert "vlcs: " in said.err and "answers 404" in said.err
    lines = [line for line in said.out.splitlines() if line.startswith(("vlcs", "pacs"))]
    assert [line.split()[-1] for line in lines] == ["missing", "ok"]


def test_terra_incognita_is_chosen_as_domainbed_does(server, source, tmp_path):
    """Four places and ten animals of the listing; an image of two animals lies in both folders."""
    images, notes, entries = [], [], {}
    names = {1: "bird", 2: "dog", 3: "car"}
    for number, (place, animals) in enumerate([("38", [1]), ("43", [1, 2]), ("46", [2]), ("100", [1, 1]), ("7", [1]),
                                               ("38", [3]), ("38", [2])]):
        images.append({"id": f"i{number}", "location": place, "file_name": f"{number}.jpg"})
        notes += [{"image_id": f"i{number}", "category_id": animal} for animal in animals]
        if number != 6:  # the listing names more images than the archive has
            entries[f"eccv_18_all_images_sm/{number}.jpg"] = b"picture"
    listing = {"categories": [{"id": key, "name": name} for key, name in names.items()], "images": images,
               "annotations": notes}
    server.files["images.tar.gz"] = tar(entries)
    server.files["list.json.zip"] = zipped({"caltech_images_20210113.json": json.dumps(listing)})
    ours = SOURCES["terra_incognita"]
    source("terra_incognita", *(File(f"{server.url}/{name}", file.places) for name, file in
                                zip(("images.tar.gz", "list.json.zip"), ours.files)),
           expected={"classes": 2, "images": 5}, arrange=ours.arrange, complete=ours.complete)
    assert prepare_data.main(["terra_incognita", "--root", str(tmp_path)]) is True
    folder = tmp_path / "terra_incognita"
    found = sorted(str(path.relative_to(folder)) for path in tmp_path.rglob("*.*") if path.is_file())
    assert found == ["location_100/bird/3.jpg", "location_38/bird/0.jpg", "location_43/bird/1.jpg",
                     "location_43/dog/1.jpg", "location_46/dog/2.jpg"]
    server.log.clear()
    assert prepare_data.main(["terra_incognita", "--root", str(tmp_path)]) is True and server.log == []


def test_files_of_google_drive_go_through_gdown(source, tmp_path, monkeypatch, capsys):
    import gdown

    asked = []

    def give(id, output, resume, **words):
        asked.append((id, resume))
        if id == "private":
            raise gdown.exceptions.FileURLRetrievalError("Too many users have viewed or downloaded this file recently")
        Path(output).write_bytes(b"{}")

    monkeypatch.setattr(gdown, "download", give)
    source("oxford_pets", File(f"{DRIVE}abc", {"": "oxford_pets/split.json"}, name="split.json"))
    source("sun397", File(f"{DRIVE}private", {"": "sun397/split.json"}, name="split.json"))
    prepare_data.main(["oxford_pets", "sun397", "--root", str(tmp_path)])
    assert (tmp_path / "oxford_pets" / "split.json").read_bytes() == b"{}"
    assert asked == [("abc", True), ("private", True)]
    assert "https://drive.google.com/file/d/private/view in a browser" in capsys.readouterr().err


# ---- the table ----
def test_check_only_looks(tmp_path, capsys, monkeypatch):
    """Nothing is fetched and nothing is written, no split drawn either."""
    monkeypatch.setattr(prepare_data, "prepare", lambda *args: pytest.fail("--check must not fetch"))
    for write in drawn.LAYOUTS.values():
        write(tmp_path)
    (tmp_path / "food-101" / "split_zhou_Food101.json").unlink()
    shutil.rmtree(tmp_path / "oxford_pets")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert prepare_data.main(["all", "--check", "--root", str(tmp_path)]) is False
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    rows = {line.split()[0]: line for line in lines if line.split()[0] in SOURCES}
    assert set(rows) == set(SOURCES)
    assert rows["caltech101"].endswith("differs") and "classes 6" in rows["caltech101"]
    assert "no food-101/split_zhou_Food101.json" in rows["food101"] and rows["food101"].endswith("missing")
    assert "no folder oxford_pets" in rows["oxford_pets"]
    assert "classes 4, images 150" in rows["terra_incognita"] and "classes 4, train 28, test 12" in rows["imagenet"]


def test_the_real_caltech101_is_whole(real_data, capsys):
    assert prepare_data.main(["caltech101", "--check", "--root", str(real_data / "data")]) is True


def test_what_needs_a_hand_is_told(tmp_path, capsys, source):
    for name in ("imagenet", "stanford_cars"):
        source(name, by_hand=SOURCES[name].by_hand)
    assert prepare_data.main(["imagenet", "stanford_cars", "--root", str(tmp_path)]) is False
    said = capsys.readouterr().out
    assert "https://image-net.org" in said and f"{tmp_path}/imagenet/images/" in said and "images/{train,val}/" in said
    assert "issues/7545" in said and f"{tmp_path}/stanford_cars/" in said


def test_imagenets_own_archives_are_unpacked(tmp_path, source, monkeypatch, capsys):
    """To the folders of torchvision's ImageNet, which makes them from the same archives."""
    source("imagenet", arrange=layouts.arrange_imagenet)
    bodies = packed.imagenet({"n00000001": b"a", "n00000002": b"b"}, [2, 1, 2])
    folders = {root: tmp_path / root / "imagenet" / "images" for root in ("ours", "theirs")}
    for images in folders.values():
        images.mkdir(parents=True)
        for part, body in bodies.items():
            name = ARCHIVE_META[part][0]
            (images / name).write_bytes(body)
            monkeypatch.setitem(ARCHIVE_META, part, (name, md5(body)))
    prepare_data.main(["imagenet", "--root", str(tmp_path / "ours")])
    assert "imagenet: " not in capsys.readouterr().err
    for part in ("train", "val"):
        tv.ImageNet(folders["theirs"], split=part, loader=Path.read_bytes)
    found = {root: {str(path.relative_to(images)): path.read_bytes() for path in images.rglob("*.JPEG")}
             for root, images in folders.items()}
    assert found["ours"] == found["theirs"] and len(found["ours"]) == 2 + 3
    assert not list(tmp_path.rglob(".unfinished-*")) and (folders["ours"] / "ILSVRC2012_img_train.tar").is_file()
    before = sorted((tmp_path / "ours").rglob("*"))
    prepare_data.main(["imagenet", "--root", str(tmp_path / "ours")])
    assert sorted((tmp_path / "ours").rglob("*")) == before


@pytest.mark.parametrize(("words", "message"), [
    (["caltech"], "unknown dataset 'caltech' .did you mean 'caltech101'"), ([], "DATASET"),
    (["pacs", "--rot", "x"], "--rot")])
def test_wrong_words(words, message):
    with pytest.raises(InputError, match=message):
        prepare_data.main(words)


def test_groups_name_every_dataset_with_a_config():
    configs = {path.stem for path in (ROOT / "configs" / "datasets").glob("*.yaml")}
    assert set(SOURCES) == configs - {"shapes", "image_folder", "domain_folder"} == set(GROUPS["all"])
    assert len(GROUPS["base2new"]) == 11 and not set(GROUPS["base2new"]) & set(GROUPS["dg"])
    for name in SOURCES:
        assert counting.dataset_class(name)


def test_checksums_are_torchvisions():
    """Where torchvision has a dataset, its addresses and checksums are those of the table."""
    known = dict(tv.OxfordIIITPet._RESOURCES)
    known |= {tv.Flowers102._download_url_prefix + name: digest for name, digest in
              (tv.Flowers102._file_dict["image"], tv.Flowers102._file_dict["label"])}
    known |= {cls._URL: cls._MD5 for cls in (tv.Food101, tv.DTD)}
    known |= {tv.SUN397._DATASET_URL: tv.SUN397._DATASET_MD5, tv.FGVCAircraft._URL: ""}
    ours = {file.address: file.md5 for source in SOURCES.values() for file in source.files}
    assert {url: ours.get(url) for url in known} == known
