"""The feature store: what is kept is given back bit by bit or not at all, whatever happens to its folder."""
import contextlib
import errno
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors.torch import load_file, save

import train
from dassl.data import contents
from dassl.data.overlap import File, ImageSet
from dassl.utils import InputError, open_regular, read_image
from tools import store as tool
from training.store import budget, files, locks, upkeep
from training.store import store as store_module
from training.store.entries import FORMAT, Entry, Space, digest_of
from training.store.pictures import Pictures
from training.store.store import Store

WIDTH = 6
FORK = multiprocessing.get_context("fork")
FACTS = {"weights": "ab" * 32, "precision": "fp32", "device": "cpu", "transform": ["Resize(size=32)", "ToTensor()"]}


def entry_of(name, pictures=70, space=None, **fields):
    return Entry(space or Space(FACTS, "tiny"), tuple(digest_of([name, number]) for number in range(pictures)),
                 about=f"data, {name}", **fields)


def pieces_of(entry, *numbers):
    """The pieces of these numbers, or all: what they hold is a function of the entry."""
    generator = torch.Generator().manual_seed(int(entry.key[:8], 16))
    whole = torch.randn(len(entry.pictures), entry.views, WIDTH, generator=generator)
    numbers = numbers or range(-(-len(entry.pictures) // entry.piece))
    return {number: whole[entry.rows(number)].clone() for number in numbers}


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[number], expected[number]) for number in expected)


def notes(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(("Note: ", "Warning: "))]


def path_of(folder, entry):
    return files.path_of(os.path.realpath(folder), entry)


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "features")


@pytest.fixture
def store(folder):
    return Store(folder, 100)


@pytest.fixture
def another_process(monkeypatch):
    """Call it, and this process knows nothing any more of the stores that it has used."""
    def forget():
        monkeypatch.setattr(budget, "_HERE", {})
        monkeypatch.setattr(contents, "_KNOWN", {})

    forget()
    return forget


# ---- what is kept ----
@pytest.mark.parametrize("fields", [{}, {"views": 3}, {"draw": (1, 0, 0)}, {"pictures": 5, "piece": 1},
                                    {"pictures": 64}, {"pictures": 1}])
def test_what_is_written_is_read(store, folder, fields):
    entry = entry_of("cat", **fields)
    assert store.read(entry) == {} and not os.path.exists(folder)
    store.write(entry, pieces_of(entry))
    for reader in (store, Store(folder, 100)):
        found = reader.read(entry)
        assert same(found, pieces_of(entry))
        assert all(piece.dtype == torch.float32 for piece in found.values())


def test_a_file_is_one_that_others_can_read(store, folder):
    entry = entry_of("cat")
    store.write(entry, pieces_of(entry))
    assert torch.equal(load_file(path_of(folder, entry))["features"], torch.cat(list(pieces_of(entry).values())))
    told = json.load(open(os.path.join(os.path.dirname(path_of(folder, entry)), "..", "space.json")))
    assert told == {"format": FORMAT, "digest": entry.space.digest, "name": "tiny", "facts": FACTS}


@given(st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=1, max_size=5))
@examples(max_examples=25, deadline=None)
def test_pieces_are_added_in_any_order(tmp_path_factory, parts):
    store, entry = Store(str(tmp_path_factory.mktemp("any") / "features"), 100), entry_of("cat", 130)
    for number, part in enumerate(parts):
        store.write(entry, pieces_of(entry, *part))
        assert same(store.read(entry), pieces_of(entry, *set().union(*parts[:number + 1])))


def test_what_makes_other_features_makes_other_entries(store):
    spaces = [Space({**FACTS, name: "another"}) for name in FACTS]
    entries = [entry_of("cat"), entry_of("dog"), entry_of("cat", 69), entry_of("cat", views=2),
               entry_of("cat", piece=1),
               *(entry_of("cat", draw=draw) for draw in ((1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1024))),
               *(entry_of("cat", space=space) for space in spaces)]
    assert len({entry.key for entry in entries}) == len(entries)
    assert entry_of("cat").key == entry_of("cat", space=Space(FACTS, "another name")).key
    for entry in entries:
        store.write(entry, pieces_of(entry))
    assert all(same(store.read(entry), pieces_of(entry)) for entry in entries)


def test_what_is_not_finite_is_not_kept(store):
    entry, pieces = entry_of("cat"), pieces_of(entry_of("cat"))
    pieces[1][3, 0, 2] = float("nan")
    store.write(entry, pieces)
    assert sorted(store.read(entry)) == [0, 2]


def test_a_piece_of_another_shape_is_a_bug(store):
    entry = entry_of("cat")
    for number, shape in ((0, (31, 1, WIDTH)), (0, (32, 2, WIDTH)), (2, (32, 1, WIDTH)), (3, (0, 1, WIDTH))):
        with pytest.raises(ValueError, match="has the shape"):
            store.write(entry, {number: torch.zeros(shape)})


def test_features_of_another_width_replace_those_there(store):
    entry = entry_of("cat")
    store.write(entry, {0: torch.zeros(32, 1, 3)})
    store.write(entry, pieces_of(entry, 1))
    assert same(store.read(entry), pieces_of(entry, 1))


# ---- damage ----
def rewritten(path, change):
    """Write a file anew whose header says what `change(facts, features)` gives, with the digest that belongs to it."""
    with files.Opened(path) as opened:
        head = files.Head(opened)
        features = head.features(opened)
    facts, features = change(dict(head.facts), features)
    words = json.dumps(facts, sort_keys=True)
    digest = hashlib.sha256(json.dumps([words, list(features.shape)]).encode() + features.numpy().tobytes()).hexdigest()
    open(path, "wb").write(save({"features": features}, {"facts": words, "sha256": digest}))


def flip(path, place):
    data = bytearray(open(path, "rb").read())
    data[place] ^= 0x10
    open(path, "wb").write(data)


def header(path, change):
    data = open(path, "rb").read()
    size = int.from_bytes(data[:8], "little")
    new = change(data[8:8 + size])
    open(path, "wb").write(len(new).to_bytes(8, "little") + new + data[8 + size:])


def in_its_place(make):
    def damage(path):
        os.remove(path)
        make(path)
    return damage


def link_to_the_file(path):
    os.rename(path, f"{path}.moved")
    os.symlink(f"{path}.moved", path)


def not_finite(value):
    def change(facts, features):
        features[1, 0, 1] = value
        return facts, features
    return lambda path: rewritten(path, change)


def said(**others):
    return lambda path: rewritten(path, lambda facts, features: ({**facts, **others}, features))


DAMAGES = {
    "empty": lambda path: open(path, "w").close(),
    "seven bytes": lambda path: os.truncate(path, 7),
    "torn header": lambda path: os.truncate(path, 100),
    "torn data": lambda path: os.truncate(path, os.path.getsize(path) - 1),
    "longer": lambda path: open(path, "ab").write(b"\0"),
    "zeros": lambda path: open(path, "r+b").write(bytes(os.path.getsize(path))),
    "noise": lambda path: open(path, "wb").write(random.Random(1).randbytes(5000)),
    "bit of the data": lambda path: flip(path, -5),
    "bit of the header": lambda path: flip(path, 60),
    "length of the header": lambda path: flip(path, 0),
    "huge header": lambda path: open(path, "r+b").write((2**62).to_bytes(8, "little")),
    "a header of 1 MB": lambda path: header(path, lambda words: words + b" " * 2**20),
    "no metadata": lambda path: header(path, lambda words: b'{"features":{"dtype":"F32","shape":[70,1,6],'
                                                           b'"data_offsets":[0,1680]}}'),
    "other metadata": lambda path: header(path, lambda words: words.replace(b'"sha256"', b'"sha512"')),
    "a list": lambda path: header(path, lambda words: b"[[]]"),
    "nested": lambda path: header(path, lambda words: b"[" * 30000),
    "another format": said(format=FORMAT + 1),
    "another key": said(key="0" * 64),
    "another space": said(space="0" * 64),
    "another number of views": said(views=2),
    "another piece size": said(piece=64),
    "pieces that follow each other": said(pieces=[[0, 0], [0, 2]]),
    "pieces without end": said(pieces=[[0, 10**9]]),
    "words for numbers": said(pictures="70"),
    "true for a number": said(pictures=True),
    "other rows": lambda path: rewritten(path, lambda facts, features: (facts, features[:69].clone())),
    "two dimensions": lambda path: rewritten(path, lambda facts, features: (facts, features[:, 0].clone())),
    "double precision": lambda path: rewritten(path, lambda facts, features: (facts, features.double())),
    "half precision": lambda path: rewritten(path, lambda facts, features: (facts, features.half())),
    "NaN": not_finite(float("nan")),
    "infinite": not_finite(float("inf")),
    "folder": in_its_place(os.mkdir),
    "pipe": in_its_place(os.mkfifo),
    "link to nothing": in_its_place(lambda path: os.symlink("nowhere", path)),
    "link to itself": in_its_place(lambda path: os.symlink(os.path.basename(path), path)),
    "link to the file": link_to_the_file,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_never_read_and_is_replaced(damage, store, folder, capsys):
    entry = entry_of("cat")
    store.write(entry, pieces_of(entry))
    assert same(store.read(entry), pieces_of(entry))
    damage(path_of(folder, entry))
    assert store.read(entry) == {} and store.read(entry) == {}
    told = notes(capsys)
    assert len(told) == 1 and path_of(folder, entry) in told[0] and "computed again" in told[0]
    store.write(entry, pieces_of(entry, 1))
    assert same(Store(folder, 100).read(entry), pieces_of(entry, 1))
    assert notes(capsys) == [] and list(upkeep.faults(os.path.realpath(folder))) in (
        [], [(f"{path_of(folder, entry)}.moved", "it is none of the store's")])


def test_one_note_for_all_damages(store, folder, capsys):
    entries = [entry_of(name) for name in DAMAGES]
    for entry, damage in zip(entries, DAMAGES.values()):
        store.write(entry, pieces_of(entry))
        damage(path_of(folder, entry))
    assert all(store.read(entry) == {} for entry in entries)
    assert len(notes(capsys)) == 1
    assert Store(folder, 100).read(entries[0]) == {} and len(notes(capsys)) == 1  # of the next run


def test_a_bit_flipped_anywhere_gives_the_same_or_nothing(store, folder):
    entry = entry_of("cat", 3)
    store.write(entry, pieces_of(entry))
    path, nothing = path_of(folder, entry), 0
    whole = open(path, "rb").read()
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        open(path, "wb").write(data)
        found = store.read(entry)
        nothing += found == {}
        assert found == {} or same(found, pieces_of(entry))
    assert nothing > 0.97 * len(whole)  # but spaces behind the header, which may be another kind of space


def test_every_torn_file_is_nothing(store, folder):
    entry = entry_of("cat", 3)
    store.write(entry, pieces_of(entry))
    path = path_of(folder, entry)
    for length in reversed(range(os.path.getsize(path))):
        os.truncate(path, length)
        assert store.read(entry) == {}


def test_a_folder_that_holds_something_stays(store, folder, capsys):
    entry, other = entry_of("cat"), entry_of("dog")
    os.makedirs(path_of(folder, entry))
    (open(os.path.join(path_of(folder, entry), "mine"), "w")).close()
    store.write(entry, pieces_of(entry))
    store.write(other, pieces_of(other))
    assert store.read(entry) == {} and same(store.read(other), pieces_of(other))
    assert os.listdir(path_of(folder, entry)) == ["mine"] and len(notes(capsys)) == 1


# ---- nothing can be written ----
def no_space(*words, **more):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def file_in_the_folders_place(folder, monkeypatch):
    open(folder, "w").close()


def full_disk(folder, monkeypatch):
    monkeypatch.setattr(os, "replace", no_space)


def quota(folder, monkeypatch):
    def refuse(*words, **more):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(files, "open_own", refuse)


def read_only(folder, monkeypatch):
    def refuse(*words, **more):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "makedirs", refuse)


def link_below(folder, monkeypatch):
    os.makedirs(folder)
    os.mkdir(f"{folder}.elsewhere")
    os.symlink(f"{folder}.elsewhere", os.path.join(folder, entry_of("cat").space.digest[:16]))


@pytest.mark.parametrize("trouble", [file_in_the_folders_place, full_disk, quota, read_only, link_below])
def test_a_store_that_cannot_be_written_is_one_warning(trouble, folder, monkeypatch, capsys):
    trouble(folder, monkeypatch)
    store = Store(folder, 100)
    for name in ("cat", "dog"):
        entry = entry_of(name)
        assert store.read(entry) == {}
        with store.claim(entry) as own:
            assert own
            store.write(entry, pieces_of(entry))
        assert store.read(entry) == {} and store.wait(entry)
    told = notes(capsys)
    assert len(told) == 1 and told[0].startswith(f"Warning: the feature store {folder} cannot be written (")
    assert "features are computed anew by each run" in told[0] and "STORE.DIR" in told[0]
    left = [file for place in (folder, f"{folder}.elsewhere") for _, _, found in os.walk(place) for file in found]
    assert set(left) <= {"store.lock", "store.json"}


def test_a_disk_that_fills_keeps_what_is_there(store, folder, monkeypatch, capsys):
    first, second = entry_of("cat"), entry_of("dog")
    store.write(first, pieces_of(first, 0))
    monkeypatch.setattr(os, "replace", no_space)
    store.write(first, pieces_of(first, 1))
    store.write(second, pieces_of(second))
    assert same(store.read(first), pieces_of(first, 0)) and store.read(second) == {}
    assert len(notes(capsys)) == 1
    assert not [name for _, _, found in os.walk(folder) for name in found if ".tmp" in name]


def test_a_store_that_is_a_link_itself(tmp_path, folder):
    os.mkdir(tmp_path / "disk")
    os.symlink(tmp_path / "disk", folder)
    store, entry = Store(folder, 100), entry_of("cat")
    store.write(entry, pieces_of(entry))
    assert same(store.read(entry), pieces_of(entry)) and (tmp_path / "disk" / "store.json").is_file()


def test_the_folder_is_removed_meanwhile(store, folder, monkeypatch):
    entry = entry_of("cat")
    store.write(entry, pieces_of(entry))
    shutil.rmtree(folder)
    assert store.read(entry) == {}
    kept_makedirs, left = os.makedirs, [2]

    def removed_at_once(path, **words):
        kept_makedirs(path, **words)
        if left[0] and files.IS_PART.fullmatch(os.path.basename(path)):
            left[0] -= 1
            os.rmdir(path)

    monkeypatch.setattr(os, "makedirs", removed_at_once)
    store.write(entry, pieces_of(entry))
    assert same(store.read(entry), pieces_of(entry)) and left == [0]
    assert list(upkeep.faults(os.path.realpath(folder))) == []
    assert os.path.isfile(os.path.join(folder, "store.json"))


# ---- the budget ----
def sized(name):
    """An entry of about 300 KB."""
    return entry_of(name, 1024, views=12)


def age(folder, entry, seconds):
    when = time.time() - seconds
    os.utime(path_of(folder, entry), (when, when))


def bytes_in(folder):
    return sum(file.bytes for file in budget.kept(folder))


def test_what_was_not_used_for_longest_goes_first(folder, another_process):
    store, entries = Store(folder, 2), [sized(name) for name in "abcdefg"]
    for number, entry in enumerate(entries):
        store.write(entry, pieces_of(entry))
        age(folder, entry, 5000 - number)
    another_process()
    store = Store(folder, 2)
    assert store.read(entries[1])  # used again, so the second one is the last to go
    new = sized("new")
    store.write(new, pieces_of(new))
    there = [os.path.exists(path_of(folder, entry)) for entry in [*entries, new]]
    assert there == [False, True, False, *[True] * 5]
    assert bytes_in(folder) <= 2 * 2**20


def test_reading_counts_as_use_for_other_processes(folder, another_process):
    store, entry = Store(folder, 100), entry_of("cat")
    store.write(entry, pieces_of(entry))
    for aged, touched in ((1000, True), (100, False), (-10**6, True)):
        age(folder, entry, aged)
        before = os.path.getmtime(path_of(folder, entry))
        store.read(entry)
        after = os.path.getmtime(path_of(folder, entry))
        assert (after != before) == touched and (not touched or abs(after - time.time()) < 60)


def test_a_budget_holds_whatever_is_written(folder, another_process):
    store = Store(folder, 1)
    for number in range(12):
        store.write(sized(number), pieces_of(sized(number)))
        assert bytes_in(folder) <= 2**20
        assert same(store.read(sized(number)), pieces_of(sized(number)))


def test_what_this_process_uses_goes_last(folder, another_process):
    own = sized("own")
    store = Store(folder, 1)
    store.write(own, pieces_of(own))
    age(folder, own, 9000)  # for others it is the oldest
    budget._HERE.clear()
    for number in range(3):
        Store(folder, 100).write(sized(number), pieces_of(sized(number)))
    another_process()
    store = Store(folder, 1)
    age(folder, own, 9000)
    assert store.read(own)
    age(folder, own, 9000)
    store.write(sized("new"), pieces_of(sized("new")))
    assert store.read(own) and store.read(sized("new")) and bytes_in(folder) <= 2**20


def test_the_folder_is_not_listed_at_each_write(folder, another_process, monkeypatch):
    looks = []
    listed = budget.kept
    monkeypatch.setattr(budget, "kept", lambda folder: looks.append(folder) or listed(folder))
    store = Store(folder, 1000)
    for number in range(40):
        store.write(entry_of(number), pieces_of(entry_of(number)))
        store.read(entry_of(number))
    assert len(looks) == 1
    monkeypatch.setattr(budget, "LOOK_AGAIN", 0)
    store.write(entry_of("late"), pieces_of(entry_of("late")))
    assert len(looks) == 2


def test_other_processes_that_write_too_are_seen(folder, another_process):
    """Each knows only what it has written since it looked; together they stay within the budget and what they write
    between two looks."""
    known = [{} for _ in range(4)]
    for number in range(40):
        budget._HERE = known[number % 4]
        Store(folder, 3).write(sized(number), pieces_of(sized(number)))
        assert bytes_in(folder) <= 3 * 2**20 * (1 + 4 / budget.SHARE) + 4 * 2**19
    budget._HERE = {}


def test_a_file_larger_than_the_budget_is_not_kept(folder, capsys):
    store, large = Store(folder, 1), entry_of("large", 1024, views=60)
    for _ in range(2):
        store.write(large, pieces_of(large))
    store.write(entry_of("small"), pieces_of(entry_of("small")))
    assert store.read(large) == {} and store.read(entry_of("small"))
    told = notes(capsys)
    assert len(told) == 1 and "STORE.MB" in told[0]


def test_nothing_is_kept_with_a_budget_of_nothing(folder, store):
    entry = entry_of("cat")
    none = Store(folder, 0)
    with none.claim(entry) as own:
        assert own
        none.write(entry, pieces_of(entry))
    assert none.wait(entry) and none.read(entry) == {} and not os.path.exists(folder)
    store.write(entry, pieces_of(entry))
    assert none.read(entry) == {} and store.read(entry)  # and nothing of others' is deleted


def test_unfinished_files_of_writers_that_are_gone_are_removed(folder, another_process):
    store, entry = Store(folder, 1), entry_of("cat")
    store.write(entry, pieces_of(entry))
    gone = FORK.Process(target=int)
    gone.start()
    gone.join()
    here = files._machine(os.getpid())
    names = {"gone": (f"{here}-{gone.pid}-", 0), "old": (f"{'0' * 12}-1-", 4000),
             "lives": (f"{here}-{os.getpid()}-", 0), "elsewhere": (f"{'0' * 12}-1-", 10)}
    paths = {name: f"{path_of(folder, entry)}.tmp{middle}{number:012x}"
             for number, (name, (middle, _)) in enumerate(names.items())}
    for name, (_, seconds) in names.items():
        open(paths[name], "wb").write(bytes(300_000))
        os.utime(paths[name], (time.time() - seconds,) * 2)
    another_process()
    store.write(sized("new"), pieces_of(sized("new")))
    assert [os.path.exists(path) for path in paths.values()] == [False, False, True, True]
    assert bytes_in(folder) > 600_000  # they count


# ---- several processes ----
def in_process(function, *words):
    process = FORK.Process(target=function, args=words)
    process.start()
    return process


def write_pieces(folder, numbers, start):
    store = Store(folder, 100)
    start.wait()
    for name, number in itertools.product("abcdef", numbers):
        store.write(entry_of(name, 130), pieces_of(entry_of(name, 130), number))


def test_processes_that_write_the_same_entries_at_once(folder, capsys):
    start = FORK.Event()
    writers = [in_process(write_pieces, folder, numbers, start) for numbers in ((0, 1, 2), (2, 3, 4), (0, 4))]
    start.set()
    store, expected = Store(folder, 100), {name: pieces_of(entry_of(name, 130)) for name in "abcdef"}
    while any(writer.is_alive() for writer in writers):
        for name, whole in expected.items():
            found = store.read(entry_of(name, 130))
            assert same(found, {number: whole[number] for number in found})
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert all(same(store.read(entry_of(name, 130)), whole) for name, whole in expected.items())
    assert notes(capsys) == []


def write_without_end(folder, started):
    store = Store(folder, 3)
    for number in itertools.count():
        entry = entry_of(number % 7, 300, views=9)
        with store.claim(entry):
            store.write(entry, pieces_of(entry, number % 10))
        started.set()
        if number % 5 == 0:
            with contextlib.suppress(OSError):
                os.remove(path_of(folder, entry))


def kill_writers(folder, kills):
    wait = random.Random(kills)
    for _ in range(kills):
        started = FORK.Event()
        writer = in_process(write_without_end, folder, started)
        assert started.wait(60)
        time.sleep(wait.uniform(0, 0.05))
        writer.kill()
        writer.join()
        store = Store(folder, 3)
        for number in range(7):
            entry = entry_of(number, 300, views=9)
            found = store.read(entry)
            assert same(found, {piece: pieces_of(entry)[piece] for piece in found})
            with store.claim(entry) as own:
                assert own
    assert list(upkeep.faults(os.path.realpath(folder))) == []


def test_a_killed_writer_leaves_nothing_that_is_read(folder, capsys):
    kill_writers(folder, 4)
    assert notes(capsys) == []


@pytest.mark.slow
def test_twenty_killed_writers_leave_nothing_that_is_read(folder, capsys):
    kill_writers(folder, 20)
    assert notes(capsys) == []


def hold(folder, names, held, leave):
    store = Store(folder, 100)
    with contextlib.ExitStack() as claims:
        assert all(claims.enter_context(store.claim(entry_of(name))) for name in names)
        held.set()
        leave.wait(60)
        for name in names:
            store.write(entry_of(name), pieces_of(entry_of(name)))


@pytest.fixture
def holder(folder):
    """(names) -> a process that has claimed these entries; its `leave` lets it write them and end."""
    processes = []

    def begin(*names):
        held, leave = FORK.Event(), FORK.Event()
        processes.append(in_process(hold, folder, names, held, leave))
        processes[-1].leave = leave
        assert held.wait(60)
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.join()


def claimed(store, name):
    with store.claim(entry_of(name)) as own:
        return own


def test_an_entry_is_claimed_by_one_process(store, holder):
    other = holder("cat", "dog")
    assert not claimed(store, "cat") and not claimed(store, "dog") and claimed(store, "cow")
    assert store.busy(entry_of("cat")) and not store.busy(entry_of("cow"))
    looks = []

    def meanwhile():
        looks.append(store.read(entry_of("cat")))
        if len(looks) == 2:
            other.leave.set()

    assert store.wait(entry_of("cat"), meanwhile) and looks[0] == {}
    assert same(store.read(entry_of("cat")), pieces_of(entry_of("cat")))
    other.join()
    assert claimed(store, "cat") and claimed(store, "dog")


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_the_claims_of_a_process_end_with_it(store, holder, end):
    other = holder("cat")
    assert not claimed(store, "cat")
    getattr(other, end)()
    other.join()
    assert claimed(store, "cat")


def test_threads_claim_apart(folder):
    """Also those that have stores of their own: the kernel tells only processes apart."""
    first, second = Store(folder, 100), Store(folder, 100)
    with first.claim(entry_of("cat")) as own:
        assert own and not claimed(second, "cat") and not claimed(first, "cat") and claimed(second, "dog")
        found = []
        thread = threading.Thread(target=lambda: found.append(claimed(second, "cat")))
        thread.start()
        thread.join()
        assert found == [False]
    assert claimed(second, "cat")


def test_a_claim_given_back_keeps_the_others(folder, store):
    """Whatever else this process opens and closes of the store."""
    def look(answers):
        answers.put([claimed(Store(folder, 100), name) for name in ("cat", "dog")])

    with store.claim(entry_of("cat")):
        with Store(folder, 100).claim(entry_of("dog")):
            store.write(entry_of("dog"), pieces_of(entry_of("dog")))
        store.busy(entry_of("cow"))
        list(upkeep.faults(os.path.realpath(folder)))
        answers = FORK.SimpleQueue()
        in_process(look, answers).join()
        assert answers.get() == [False, True]


def test_waiting_ends_with_a_signal(store, holder):
    holder("cat")

    def meanwhile():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.wait(entry_of("cat"), meanwhile)


def test_waiting_has_an_end(store, holder, monkeypatch):
    monkeypatch.setattr(store_module, "LONGEST_WAIT", 0.2)
    holder("cat", "dog")
    assert not claimed(store, "cat")
    began = time.monotonic()
    assert not store.wait(entry_of("cat")) and time.monotonic() - began < 30
    began = time.monotonic()
    assert not store.wait(entry_of("dog")) and time.monotonic() - began < 0.2
    assert claimed(store, "cat") and claimed(store, "dog")  # who has waited computes it itself
    store.write(entry_of("cat"), pieces_of(entry_of("cat")))
    assert same(store.read(entry_of("cat")), pieces_of(entry_of("cat")))


@pytest.mark.parametrize("what", ["written", "read"])
def test_a_slow_process_that_keeps_what_it_has_is_waited_for(what, store, holder, folder, monkeypatch):
    """Until nothing more comes of it. What others do with the file, such as to note that they have read it, is no news
    of it."""
    monkeypatch.setattr(store_module, "LONGEST_WAIT", 0.5)
    monkeypatch.setattr(store_module, "POLLS", (0.05, 0.1))
    holder("cat")
    entry = entry_of("cat")
    store.write(entry, pieces_of(entry, 0))
    began, numbers = time.monotonic(), [1, 2]

    def meanwhile():
        assert time.monotonic() - began < 30
        if what == "read":
            os.utime(path_of(folder, entry), ns=(time.time_ns(), time.time_ns()))
        elif numbers and time.monotonic() - began > 0.35 * (3 - len(numbers)):
            store.write(entry, pieces_of(entry, numbers.pop(0)))

    assert not store.wait(entry, meanwhile)
    assert what == "read" or time.monotonic() - began > 1.1


@pytest.mark.parametrize("without", ["module", "ENOLCK", "ENOTSUP"])
def test_without_locks_everybody_computes(without, store, folder, holder, monkeypatch):
    holder("cat")
    if without == "module":
        monkeypatch.setattr(locks, "fcntl", None)
    else:
        def refuse(*words):
            raise OSError(getattr(errno, without), "no locks here")

        monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    assert claimed(store, "cat") and store.wait(entry_of("cat"))
    store.write(entry_of("cat"), pieces_of(entry_of("cat")))
    assert same(store.read(entry_of("cat")), pieces_of(entry_of("cat")))


def test_a_lock_file_that_is_a_link_is_not_followed(folder, store, tmp_path):
    os.mkdir(folder)
    os.symlink(tmp_path / "made", os.path.join(folder, "store.lock"))
    assert claimed(store, "cat") and not (tmp_path / "made").exists()


# ---- pictures ----
@pytest.fixture
def drawn_pictures(tmp_path, monkeypatch):
    """Paths of files in two folders, whose times are settled."""
    monkeypatch.setattr(contents, "UNSETTLED", 0)
    paths = [tmp_path / "images" / kind / f"{number}.jpg" for kind in ("cat", "dog") for number in range(50)]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"picture {number}".encode())
    return list(map(str, paths))


@pytest.fixture
def opened(monkeypatch):
    """Paths of the pictures that were opened."""
    found = []
    monkeypatch.setattr(contents, "open_regular", lambda path, *words: found.append(path) or open_regular(path, *words))
    return found


def sums(paths):
    return [hashlib.sha256(open(path, "rb").read()).hexdigest() for path in paths]


def test_a_warm_run_opens_no_picture(folder, drawn_pictures, another_process, opened):
    assert Pictures(folder).digests(drawn_pictures) == sums(drawn_pictures)
    assert sorted(opened) == sorted(drawn_pictures)
    assert Pictures(folder).digests(drawn_pictures[::-1]) == sums(drawn_pictures)[::-1]
    another_process()
    assert Pictures(folder).digests(drawn_pictures) == sums(drawn_pictures)
    assert Pictures(folder).digests(drawn_pictures[25:75]) == sums(drawn_pictures)[25:75]  # another list
    assert len(opened) == 100
    # what a run notes of its training images is known, too
    assert len(ImageSet(drawn_pictures[:50]).common(drawn_pictures[50:]).__dict__) and len(opened) == 100
    assert File.at(drawn_pictures[3]).digest() == sums(drawn_pictures)[3][:16] and len(opened) == 100


def test_digests_without_a_folder(drawn_pictures, another_process, tmp_path, opened):
    pictures = Pictures(None)
    assert pictures.digests(drawn_pictures) == pictures.digests(drawn_pictures) == sums(drawn_pictures)
    assert len(opened) == 100 and pictures.digests([]) == []
    assert os.listdir(tmp_path) == ["images"]


def test_a_changed_picture_is_read_again(folder, drawn_pictures, another_process, opened):
    Pictures(folder).digests(drawn_pictures)
    found = os.stat(drawn_pictures[7])
    open(drawn_pictures[7], "wb").write(b"PICTURE 7")  # of the same size
    os.utime(drawn_pictures[7], ns=(found.st_atime_ns, found.st_mtime_ns))
    opened.clear()
    for _ in range(2):
        assert Pictures(folder).digests(drawn_pictures) == sums(drawn_pictures)
        another_process()
    assert opened == [drawn_pictures[7]]


def test_a_picture_that_was_written_just_now_is_not_noted(folder, drawn_pictures, another_process, opened, monkeypatch):
    monkeypatch.setattr(contents, "UNSETTLED", 2 * 10**9)
    for _ in range(2):
        assert Pictures(folder).digests(drawn_pictures[:3]) == sums(drawn_pictures[:3])
    assert len(opened) == 6 and not os.path.exists(folder)


def test_a_picture_that_changes_while_it_is_read_is_not_noted(drawn_pictures, another_process, monkeypatch):
    path = drawn_pictures[0]

    class Changing(io.FileIO):
        def read(self, size):
            with open(path, "ab") as writer:
                writer.write(b"more" * (os.path.getsize(path) < 100))
            return super().read(size)

    monkeypatch.setattr(contents, "open_regular", Changing)
    Pictures(None).digests([path])
    assert contents._KNOWN == {}


def damaged_notes(folder, change):
    (name,) = os.listdir(os.path.join(folder, "pictures"))
    path = os.path.join(folder, "pictures", name)
    change(path)
    return path


@pytest.mark.parametrize("damage", [
    lambda path: os.truncate(path, os.path.getsize(path) - 3), lambda path: os.truncate(path, 0),
    lambda path: flip(path, -40), lambda path: flip(path, 12), lambda path: open(path, "wb").write(b"[]\n[]"),
    in_its_place(os.mkdir), in_its_place(os.mkfifo), in_its_place(lambda path: os.symlink("/dev/zero", path))])
def test_damaged_notes_are_made_anew(damage, folder, drawn_pictures, another_process, opened):
    Pictures(folder).digests(drawn_pictures)
    damaged_notes(folder, damage)
    for reads in (100, 0):
        another_process()
        opened.clear()
        assert Pictures(folder).digests(drawn_pictures) == sums(drawn_pictures)
        assert len(opened) == reads


def test_notes_of_several_processes(folder, drawn_pictures, another_process, opened):
    """Each adds to what the others have noted; what is lost where two write at once is read again."""
    for part in (drawn_pictures[:60:2], drawn_pictures[1:60:2]):
        another_process()
        Pictures(folder).digests([*part, *drawn_pictures[98:]])
    another_process()
    opened.clear()
    Pictures(folder).digests([*drawn_pictures[:60], *drawn_pictures[98:]])
    assert opened == [] and len(os.listdir(os.path.join(folder, "pictures"))) == 1
    another_process()
    Pictures(folder, notes=False).digests(drawn_pictures)
    another_process()
    Pictures(folder).digests(drawn_pictures)
    assert len(opened) == 2 * 38  # who notes nothing knows what is noted


def test_names_that_are_no_text(folder, tmp_path, another_process, opened, monkeypatch):
    monkeypatch.setattr(contents, "UNSETTLED", 0)
    paths = [os.fsencode(tmp_path) + name for name in (b"/\xff.jpg", b"/a\nb.jpg", b"/\xc3\xa4 .jpg")]
    for path in paths:
        open(path, "wb").write(path)
    paths = list(map(os.fsdecode, paths))
    for _ in range(2):
        assert Pictures(folder).digests(paths) == sums(paths)
        another_process()
    assert len(opened) == 3


@pytest.mark.parametrize("make", [lambda path: None, os.mkdir, os.mkfifo, lambda path: os.symlink(path, path),
                                  lambda path: os.symlink(f"{path}/x", path)])
def test_a_picture_that_cannot_be_read_is_told_as_ever(make, folder, tmp_path, drawn_pictures, another_process):
    path = str(tmp_path / "images" / "cat" / "odd.jpg")
    make(path)
    with pytest.raises(InputError) as expected:
        read_image(path)
    with pytest.raises(InputError) as found:
        Pictures(folder).digests([*drawn_pictures, path])
    assert str(found.value) == str(expected.value)


def test_a_disk_that_takes_no_notes(folder, drawn_pictures, another_process, monkeypatch):
    open(folder, "w").close()
    assert Pictures(folder).digests(drawn_pictures) == sums(drawn_pictures)


# ---- metaprompt store ----
@pytest.fixture
def filled(folder, drawn_pictures, another_process):
    """A store of two backbones, with pictures and training views."""
    store, other = Store(folder, 100), Space({**FACTS, "weights": "cd" * 32}, "ViT-B/16")
    entries = [entry_of("cat"), entry_of("dog", draw=(1, 0, 0)), entry_of("cat", space=other),
               entry_of("cow", 10, space=other, views=3, draw=(1, 2, 0))]
    for entry in entries:
        store.write(entry, pieces_of(entry))
    Pictures(folder).digests(drawn_pictures)
    return store, entries


def call(capsys, *words):
    """(status, lines) of `metaprompt store`."""
    capsys.readouterr()
    ended = []
    status = train.command_line(lambda: ended.append(tool.main(list(map(str, words)))))
    told = capsys.readouterr()
    return status or int(not ended[0]), (told.out + told.err).splitlines()


def test_list_says_what_there_is(filled, folder, capsys, tmp_path):
    names = [entry.space.digest[:8] for entry in filled[1]]
    for place in (folder, tmp_path):
        status, lines = call(capsys, "list", place)
        rows = [" ".join(line.split()) for line in lines]
        assert status == 0
        assert any(row.startswith(f"tiny abababab fp32 cpu Resize, ToTensor {names[0]} 2 70 70 0.0 20") for row in rows)
        assert any(row.startswith(f"ViT-B/16 cdcdcdcd fp32 cpu Resize, ToTensor {names[2]} 2 70 30 0.0 20")
                   for row in rows)
        assert rows[-1] == f"{os.path.realpath(folder)}: 0.0 MB of 100 MB (STORE.MB of the last run)"


def test_verify_says_what_is_damaged(filled, folder, capsys):
    store, entries = filled
    assert call(capsys, "verify", folder) == (0, [f"{os.path.realpath(folder)}: 5 files read, all are as they were "
                                                  "written"])
    flip(path_of(folder, entries[0]), -5)
    os.makedirs(os.path.join(folder, "mine"))
    status, lines = call(capsys, "verify", folder)
    assert status == 1
    assert lines[-1].endswith("5 files read, 2 cannot be used; a run that needs them computes them again")
    assert sorted(lines[:-1]) == sorted([f"{path_of(folder, entries[0])}: its bytes have changed",
                                         f"{os.path.realpath(folder)}/mine: it is none of the store's"])
    os.truncate(path_of(folder, entries[1]), 50)
    assert "1 file cannot be used" in "\n".join(call(capsys, "list", folder)[1])


@pytest.mark.parametrize("damage", ["notes", "space", "mark", "moved", "space missing"])
def test_verify_reads_everything(damage, filled, folder, capsys):
    _, entries = filled
    space = os.path.join(folder, entries[0].space.digest[:16])
    if damage == "notes":
        damaged_notes(folder, lambda path: flip(path, -40))
    elif damage == "space":
        flip(os.path.join(space, "space.json"), -20)
    elif damage == "mark":
        open(os.path.join(folder, "store.json"), "w").write("{")
    elif damage == "moved":
        shutil.move(path_of(folder, entries[0]), path_of(folder, entries[1]))
    else:
        os.remove(os.path.join(space, "space.json"))
    status, lines = call(capsys, "verify", folder)
    assert (status, len(lines)) == (1, 2), lines


def test_trim_deletes_what_was_not_used_for_longest(filled, folder, capsys):
    store, entries = filled
    for number, entry in enumerate(entries):
        age(folder, entry, 1000 * number)
    status, lines = call(capsys, "trim", folder, "--mb", (bytes_in(folder) - 2 * budget.BLOCK) / 2**20)
    assert status == 0 and lines[-1].endswith("MB are left")
    assert [bool(store.read(entry)) for entry in entries] == [True, True, False, False]
    assert call(capsys, "trim", folder, "--mb", 0)[0] == 0 and not any(map(store.read, entries))


def test_delete_deletes_nothing_but_the_stores_own(filled, folder, capsys):
    store, entries = filled
    mine = [os.path.join(folder, *names) for names in (
        ["mine.safetensors"], ["pictures", "mine.jpg"], [entries[0].space.digest[:16], "notes.txt"],
        [entries[0].space.digest[:16], entries[0].key[:2], "mine.safetensors"])]
    for path in mine:
        open(path, "w").close()
    os.symlink(os.path.dirname(mine[3]), os.path.join(folder, "0" * 16))
    status, lines = call(capsys, "delete", folder)
    assert status == 0 and "5 files deleted" in lines[-1]
    assert all(map(os.path.exists, mine)) and os.path.islink(os.path.join(folder, "0" * 16))
    assert not any(map(store.read, entries)) and os.path.exists(os.path.join(folder, "store.lock"))
    assert not os.path.exists(os.path.join(folder, entries[2].space.digest[:16]))
    store.write(entries[2], pieces_of(entries[2]))  # by a run that goes on
    assert same(store.read(entries[2]), pieces_of(entries[2]))
    told = os.path.join(folder, entries[2].space.digest[:16], "space.json")
    assert json.load(open(told))["name"] == "ViT-B/16"


@pytest.mark.parametrize(("words", "left"), [
    (["--backbone", "ViT-B/16"], [True, True, False, False]), (["--backbone", "cdcdcd"], [True, True, False, False]),
    (["--unused-for", "2"], [True, False, True, False]), (["--unused-for", "2", "--backbone", "tiny"],
                                                          [True, False, True, True])])
def test_delete_what_the_flags_say(words, left, filled, folder, capsys):
    store, entries = filled
    for entry in entries[1::2]:
        age(folder, entry, 3 * 24 * 3600)
    assert call(capsys, "delete", folder, *words)[0] == 0
    assert [bool(store.read(entry)) for entry in entries] == left


@pytest.mark.parametrize("words", [
    ["delete", "FOLDER", "--backbone", "ViT-B/61"], ["delete", "FOLDER", "--backbone", ""],
    ["delete", "FOLDER", "--backbone", "cd"], ["delete", "FOLDER", "--unused-for", "-1"],
    ["delete", "FOLDER", "--unused-for", "nan"], ["trim", "FOLDER"], ["trim", "FOLDER", "--mb", "x"], ["list"],
    ["delete", "ELSEWHERE"], ["trim", "ELSEWHERE", "--mb", "0"], ["list", "ELSEWHERE/none"],
    ["verify", "FOLDER/store.json"], ["empty", "FOLDER"], []])
def test_mistakes_are_one_line(words, filled, folder, capsys, tmp_path):
    store, entries = filled
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "store.json").write_text("{}")
    words = [word.replace("FOLDER", folder).replace("ELSEWHERE", str(tmp_path / "elsewhere")) for word in words]
    status, lines = call(capsys, *words)
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    assert all(map(store.read, entries))


def test_a_store_is_deleted_while_runs_write(folder, capsys):
    start = FORK.Event()
    writers = [in_process(write_pieces, folder, (0, 1, 2, 3, 4), start) for _ in range(2)]
    Store(folder, 100).write(entry_of("first"), pieces_of(entry_of("first")))
    start.set()
    while any(writer.is_alive() for writer in writers):
        upkeep.delete(os.path.realpath(folder))
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert list(upkeep.faults(os.path.realpath(folder))) == []
    assert "Warning" not in capsys.readouterr().out


def test_signals_are_not_noted_as_damage(store, folder, monkeypatch):
    """What interrupts a write leaves no file behind."""
    def interrupted(*words):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.write(entry_of("cat"), pieces_of(entry_of("cat")))
    assert not [name for _, _, found in os.walk(folder) for name in found if ".tmp" in name]
    assert signal.getsignal(signal.SIGINT) is not None
