"""What is encoded together follows from the data, the seed and the epoch, and from nothing else."""
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dassl.config import get_cfg_default
from dassl.data.datasets import Datum
from dassl.data.samplers import EpochBatchSampler, RandomSampler, SequentialSampler
from dassl.data.transforms import FusedCompose, build_transform
from training.episodes import MetaEpisodeSampler
from training.store import source
from training.store.entries import PIECE, Entry, Space
from training.store.pieces import plan_of_pictures, plan_of_views
from training.store.source import Request, Source, Supply
from training.store.transforms import described, draws

SPACE = Space({"weights": "none"})


def items_of(labels, domains=1):
    return [Datum(f"{number}.png", label, number % domains, f"class{label}") for number, label in enumerate(labels)]


def digests(paths):
    return [f"digest of {path}" for path in paths]


def keys_of(sampler, batch_size, epoch, first_batch=0, drop_last=True):
    batches = EpochBatchSampler(sampler, batch_size, drop_last)
    batches.set_epoch(epoch, first_batch)
    return [key for batch in batches for key in batch]


def views(items, sampler, keys, seed=1):
    return plan_of_views(items, sampler, keys, seed, SPACE, 1, digests, "data")


def pieces(plan):
    """{(key of the entry, number of the piece): pictures, their places}"""
    return {(part.entry.key, piece): tuple(part.keys_of(piece)) for part in plan.parts for piece in part.wanted}


@settings(max_examples=30)
@given(st.integers(2, 150), st.integers(1, 40), st.integers(1, 40), st.integers(0, 3))
def test_batch_sizes_and_points_to_go_on_from_change_no_piece(count, one, other, epoch):
    items = items_of([number % 5 for number in range(count)])
    sampler = RandomSampler(items, seed=1)
    whole = pieces(views(items, sampler, keys_of(sampler, 1, epoch)))
    for size in (one, other):
        first = keys_of(sampler, size, epoch)
        assert pieces(views(items, sampler, first)).items() <= whole.items()
        later = keys_of(sampler, size, epoch, first_batch=1)
        if later:
            assert pieces(views(items, sampler, later)).items() <= whole.items()
    assert sorted(key for keys in whole.values() for key in keys) == sorted(keys_of(sampler, 1, epoch))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=40, max_size=90), st.integers(2, 3), st.integers(0, 2))
def test_a_repaired_order_shares_all_pieces_but_the_pictures_that_were_moved(labels, size, epoch):
    items, plain = items_of(labels), RandomSampler(items_of(labels), seed=1)
    try:
        repaired = MetaEpisodeSampler(items, size, "class", seed=1)
    except Exception:  # noqa: BLE001 - these labels have no such order
        return
    keys = keys_of(repaired, size, epoch)
    moved = [key for key in keys if key not in set(keys_of(plain, 1, epoch))]
    plan = views(items, repaired, keys)
    together, alone = ([part for part in plan.parts if part.entry.piece == piece] for piece in (PIECE, 1))
    assert pieces(plan).keys() >= pieces(views(items, plain, [key for key in keys if key not in moved])).keys()
    assert {part.entry.key for part in together} <= {part.entry.key for part in views(
        items, plain, keys_of(plain, 1, epoch)).parts}
    assert sorted(key for part in alone for piece in part.wanted for key in part.keys_of(piece)) == sorted(moved)
    table = {plan.by(key) for part in plan.parts for piece in part.wanted for key in part.keys_of(piece)}
    assert set(keys) <= table


def test_some_order_is_repaired():
    """Else the test above says nothing."""
    items = items_of([0] * 30 + [1] * 30 + [2, 3])
    repaired, plain = MetaEpisodeSampler(items, 2, "class", seed=1), RandomSampler(items, seed=1)
    assert keys_of(repaired, 2, 0) != keys_of(plain, 2, 0)
    alone = [part for part in views(items, repaired, keys_of(repaired, 2, 0)).parts if part.entry.piece == 1]
    assert len(alone) == 1
    assert 0 < len(alone[0].wanted) < len(items)


def test_views_of_another_seed_epoch_or_order_are_others():
    items = items_of([0, 1] * 20)
    sampler = RandomSampler(items, seed=1)
    found = [views(items, sampler, keys_of(sampler, 4, epoch), seed).parts[0].entry.key
             for epoch, seed in ((0, 1), (1, 1), (0, 2))]
    sampler = SequentialSampler(items, seed=1)
    found.append(views(items, sampler, keys_of(sampler, 4, 0)).parts[0].entry.key)
    assert len(set(found)) == 4


def test_lists_with_whole_classes_share_the_pictures_of_these():
    """All classes, half of them, in batches of any size, mixed or one class after another."""
    labels = [number % 6 for number in range(400)]
    items = items_of(labels)

    def plan(items):
        sampler = SequentialSampler(items)
        return pieces(plan_of_pictures(items, keys_of(sampler, 7, 0, drop_last=False), SPACE, 1, digests, "data"))

    everything = plan(items)
    assert sum(map(len, everything.values())) == 400
    assert {key for key, _ in plan([item for item in items if item.label < 3])} < {key for key, _ in everything}
    assert plan(sorted(items, key=lambda item: item.label)).keys() == everything.keys()
    assert not plan(items_of(labels, domains=4)).keys() & everything.keys()


def test_an_entry_is_known_by_all_that_determines_it():
    entry = Entry(SPACE, ("a", "b"), 1, (1, 0, 0), PIECE, "words")
    others = [Entry(Space({"weights": "others"}), ("a", "b"), 1, (1, 0, 0)), Entry(SPACE, ("b", "a"), 1, (1, 0, 0)),
              Entry(SPACE, ("a", "b"), 2, (1, 0, 0)), Entry(SPACE, ("a", "b"), 1, (1, 1, 0)),
              Entry(SPACE, ("a", "b")), Entry(SPACE, ("a", "b"), 1, (1, 0, 0), 1)]
    assert len({each.key for each in [entry, *others]}) == 7
    assert Entry(Space({"weights": "none"}, "a name"), ("a", "b"), 1, (1, 0, 0), about="other words").key == entry.key


@pytest.mark.parametrize(("key", "value", "train"), [
    ("INPUT.SIZE", (32, 32), False), ("INPUT.INTERPOLATION", "bicubic", False),
    ("INPUT.PIXEL_MEAN", [0.485, 0.456, 0.4060001], False), ("INPUT.PIXEL_STD", [0.229, 0.224, 0.2250001], False),
    ("INPUT.RRCROP_SCALE", (0.0800001, 1.0), True), ("INPUT.CUTOUT_LEN", 17, True), ("INPUT.CUTOUT_N", 2, True),
    ("INPUT.GN_STD", 0.15000001, True), ("INPUT.GN_MEAN", 1e-9, True), ("INPUT.RANDAUGMENT_M", 9, True),
    ("INPUT.RANDAUGMENT_N", 1, True), ("INPUT.COLORJITTER_B", 0.3, True), ("INPUT.COLORJITTER_H", 0.2, True),
    ("INPUT.RGS_P", 0.1, True), ("INPUT.GB_P", 0.4, True), ("INPUT.GB_K", 19, True), ("INPUT.CROP_PADDING", 3, True),
    ("INPUT.TRANSFORMS", ("normalize", "instance_norm"), False)])
def test_each_parameter_of_a_transform_is_told(key, value, train):
    cfg = get_cfg_default()
    cfg.VERBOSE = False
    cfg.INPUT.TRANSFORMS = ("random_crop", "random_resized_crop", "randaugment", "colorjitter", "randomgrayscale",
                            "gaussian_blur", "cutout", "gaussian_noise", "normalize")
    before = described(build_transform(cfg, is_train=train))
    cfg.merge_from_list([key, value])
    after = described(build_transform(cfg, is_train=train))
    assert before is not None
    assert after is not None
    assert before != after
    assert draws(before) == train


def test_steps_have_the_words_of_a_compose():
    """Of the same bits: what was stored before there were FusedCompose is found."""
    from torchvision.transforms import Compose, Normalize, RandomApply, Resize, ToTensor

    steps = [Resize(32), ToTensor(), Normalize([0.5] * 3, [0.2] * 3)]
    assert described(FusedCompose(steps)) == described(Compose(steps)) is not None
    inner = [RandomApply([Resize(9)]), Compose(steps)]
    assert described(Compose([*inner[:1], FusedCompose(steps)])) == described(Compose(inner)) is not None


def test_a_transform_that_cannot_be_told_from_others_has_no_words():
    from torch import nn
    from torchvision.transforms import ColorJitter, Compose, Lambda, RandomApply, Resize, ToTensor

    class Own(Resize):
        pass

    for step in (Lambda(lambda image: image), Own(32), RandomApply([Lambda(abs)]), lambda image: image,
                 RandomApply(nn.ModuleList([ColorJitter(0.1)]))):
        assert described(Compose([step, ToTensor()])) is None
        assert described(step) is None


def test_what_other_ranks_have_computed_is_not_taken_from_the_store(monkeypatch):
    """Two ranks, each in a thread, with an empty store, and then once more."""
    items, ranks, barrier = items_of([0] * 70), threading.local(), threading.Barrier(2)
    shared = {}

    def all_gather(value):
        shared[ranks.number] = value
        barrier.wait(60)
        values = [shared[0], shared[1]]
        barrier.wait(60)
        return values

    monkeypatch.setattr(source, "world_size", lambda: 2)
    monkeypatch.setattr(source, "rank", lambda: ranks.number)
    monkeypatch.setattr(source, "all_gather", all_gather)
    kept = {}
    store = types.SimpleNamespace(read=lambda entry: kept.get(entry.key, {}),
                                  write=lambda entry, pieces: kept.setdefault(entry.key, {}).update(pieces))
    pictures = types.SimpleNamespace(digests=digests)

    def one(number):
        ranks.number = number
        supply = Supply(lambda images: images, torch.float32, store, pictures, lambda: None, lambda done, of: None,
                        lambda: None, 1)
        filled = Source.__new__(Source)
        filled.request, filled.supply = Request(1, [0], False, False, SPACE, "data"), supply
        filled.data = types.SimpleNamespace(data_source=items)

        def encoded(pieces):
            for keys in pieces:
                supply.computed += len(keys)
                yield torch.tensor([[[float(index)]] for index, _, _ in keys])

        filled._encoded, filled._held, told = encoded, None, []
        for _ in range(2):
            filled._held = None
            table = filled._table([(index, 0, index) for index in range(70)])
            assert table.of([(index, 0, index) for index in range(70)]).flatten().tolist() == list(range(70))
            told.append((supply.taken, supply.computed))
            barrier.wait(60)
        return told

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(one, range(2))) == [[(0, 38), (70, 38)], [(0, 32), (70, 32)]]
