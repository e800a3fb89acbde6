"""The engine: schedules, optimizers, samplers, loaders, transforms, evaluation, registries, checkpoints, configs."""
import importlib
import json
import os
import pickle
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, Normalize, RandomErasing, ToTensor

from dassl.config import clean_cfg, get_cfg_default, merge_file, merge_options
from dassl.data.data_manager import DatasetWrapper, SeededDataset, build_data_loader
from dassl.data.datasets import DatasetBase, Datum
from dassl.data.samplers import EpochBatchSampler, build_sampler
from dassl.data.transforms import FusedCompose, build_transform
from dassl.data.transforms.transforms import AVAI_CHOICES
from dassl.engine import TrainerBase
from dassl.evaluation import EVALUATOR_REGISTRY, build_evaluator
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    AverageMeter,
    InputError,
    MetricMeter,
    Registry,
    count_num_param,
    derive_seed,
    get_rng_state,
    isolated_rng,
    listdir_nohidden,
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
    set_random_seed,
    set_rng_state,
    setup_logger,
    tolist_if_not,
    write_json,
)

GOLDEN = Path(__file__).parent / "golden"
PUBLIC = {
    "dassl.engine": "TRAINER_REGISTRY TrainerBase SimpleTrainer TrainerX build_trainer",
    "dassl.data": "DataManager",
    "dassl.data.data_manager": "DatasetWrapper build_data_loader",
    "dassl.data.datasets": "DATASET_REGISTRY DatasetBase Datum build_dataset",
    "dassl.data.samplers": "build_sampler RandomDomainSampler SeqDomainSampler RandomClassSampler",
    "dassl.data.transforms": "build_transform INTERPOLATION_MODES",
    "dassl.evaluation": "EVALUATOR_REGISTRY build_evaluator EvaluatorBase Classification",
    "dassl.metrics": "compute_accuracy",
    "dassl.optim": "build_optimizer build_lr_scheduler",
    "dassl.config": "get_cfg_default clean_cfg",
    "dassl.utils": "Registry setup_logger set_random_seed collect_env_info MetricMeter AverageMeter load_checkpoint "
                   "save_checkpoint resume_from_checkpoint load_pretrained_weights mkdir_if_missing check_isfile "
                   "listdir_nohidden read_json write_json read_image count_num_param tolist_if_not",
}


@pytest.mark.parametrize("module", sorted(PUBLIC))
def test_public_names(module):
    found = importlib.import_module(module)
    assert [name for name in PUBLIC[module].split() if not hasattr(found, name)] == []


# ---- schedules and optimizers ----
def optim_cfg(**values):
    node = get_cfg_default().OPTIM
    for key, value in values.items():
        assert key in node, key
        node[key] = value
    return node


def schedule(node):
    optimizer = build_optimizer(nn.Linear(2, 1), node)
    return optimizer, build_lr_scheduler(optimizer, node)


@pytest.mark.parametrize("case", json.loads((GOLDEN / "lr_schedules.json").read_text()),
                         ids=lambda case: f"{case['LR_SCHEDULER']}-{case['MAX_EPOCH']}-{case.get('WARMUP_TYPE')}")
def test_the_rate_of_every_epoch(case, tmp_path):
    node = optim_cfg(NAME="sgd", **{k: tuple(v) if isinstance(v, list) else v for k, v in case.items()
                                    if k != "lr_of_epoch"})
    optimizer, sched = schedule(node)
    rates = []
    for epoch in range(len(case["lr_of_epoch"])):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        sched.step()
        if epoch == len(case["lr_of_epoch"]) // 2:  # stop here, go on with fresh objects
            torch.save({"o": optimizer.state_dict(), "s": sched.state_dict()}, tmp_path / "state")
            state = torch.load(tmp_path / "state", weights_only=True)
            optimizer, sched = schedule(node)
            optimizer.load_state_dict(state["o"])
            sched.load_state_dict(state["s"])
    assert rates == pytest.approx(case["lr_of_epoch"], rel=0, abs=1e-12)


def test_groups_keep_the_ratio_of_their_rates():
    node = optim_cfg(NAME="sgd", LR=0.1, LR_SCHEDULER="cosine", MAX_EPOCH=4)
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    optimizer = build_optimizer(model, node, [{"params": model[0].parameters(), "lr": 0.02},
                                              {"params": model[1].parameters()}])
    sched = build_lr_scheduler(optimizer, node)
    for _ in range(3):
        optimizer.step()
        sched.step()
        assert optimizer.param_groups[1]["lr"] == pytest.approx(5 * optimizer.param_groups[0]["lr"])
    assert optimizer.param_groups[1]["lr"] < 0.1


@pytest.mark.parametrize(("name", "cls"), [("sgd", "SGD"), ("adam", "Adam"), ("amsgrad", "Adam"), ("adamw", "AdamW"),
                                           ("rmsprop", "RMSprop"), ("radam", "RAdam")])
def test_optimizers_by_name(name, cls):
    model = nn.Linear(2, 1)
    optimizer = build_optimizer(model, optim_cfg(NAME=name, LR=0.1, WEIGHT_DECAY=0.01, ADAM_BETA1=0.8))
    assert type(optimizer).__name__ == cls
    group = optimizer.param_groups[0]
    assert group["lr"] == 0.1 and group["weight_decay"] == 0.01
    assert group.get("betas", (0.8, 0.999)) == (0.8, 0.999)
    assert group.get("amsgrad", name == "amsgrad") == (name == "amsgrad")
    before = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.weight)


def test_sgd_takes_momentum_dampening_and_nesterov():
    group = build_optimizer(nn.Linear(1, 1), optim_cfg(NAME="sgd", MOMENTUM=0.7, SGD_DAMPNING=0.1)).param_groups[0]
    assert (group["momentum"], group["dampening"], group["nesterov"]) == (0.7, 0.1, False)
    assert build_optimizer(nn.Linear(1, 1), optim_cfg(NAME="sgd", SGD_NESTEROV=True)).param_groups[0]["nesterov"]


def test_staged_rates():
    model = nn.Sequential()
    model.add_module("body", nn.Linear(1, 1))
    model.add_module("head", nn.Linear(1, 1))
    optimizer = build_optimizer(model, optim_cfg(LR=0.1, STAGED_LR=True, NEW_LAYERS=("head",), BASE_LR_MULT=0.5))
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rate[id(model.head.weight)] == 0.1 and rate[id(model.body.weight)] == 0.05


@pytest.mark.parametrize("values", [{"NAME": "sdg"}, {"LR": 0.0}, {"LR": -1.0}, {"LR_SCHEDULER": "cosin"},
                                    {"WARMUP_EPOCH": 1, "WARMUP_TYPE": "log"}, {"MAX_EPOCH": 0},
                                    {"STAGED_LR": True}, {"NAME": "sgd", "MOMENTUM": -1.0},
                                    {"NAME": "sgd", "MOMENTUM": 0.0, "SGD_NESTEROV": True}, {"STEPSIZE": ()}],
                         ids=str)
def test_optim_mistakes_are_input_errors(values):
    with pytest.raises(InputError):
        schedule(optim_cfg(**values))


# ---- samplers ----
def items(groups):
    """Datums of (domain, label) pairs."""
    return [Datum(f"{i}.png", label, domain, str(label)) for i, (domain, label) in enumerate(groups)]


def sampler_of(name, source, batch_size, seed=1, **kwargs):
    cfg = get_cfg_default()
    cfg.SEED = seed
    return build_sampler(name, cfg=cfg, data_source=source, batch_size=batch_size, **kwargs)


@given(n=st.integers(1, 60), seed=st.integers(0, 2**31), epoch=st.integers(0, 500), batch=st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_an_epoch_visits_each_image_once(n, seed, epoch, batch):
    source = items([(0, 0)] * n)
    sampler = sampler_of("RandomSampler", source, batch, seed)
    batches = EpochBatchSampler(sampler, batch, drop_last=True)
    batches.set_epoch(epoch)
    keys = [key for chunk in batches for key in chunk]
    indices = [index for index, *_ in keys]
    assert len(set(indices)) == len(indices) == (n if n < batch else n - n % batch)
    assert [(e, p) for _, e, p in keys] == [(epoch, p) for p in range(len(keys))]
    assert len(list(batches)) == len(batches)
    assert all(len(chunk) == min(n, batch) for chunk in batches)
    for start in range(len(batches)):
        batches.set_epoch(epoch, start)
        assert [k for chunk in batches for k in chunk] == keys[start * min(n, batch):]


def test_evaluation_visits_every_image_in_order():
    sampler = sampler_of("SequentialSampler", items([(0, 0)] * 7), 3)
    assert [[index for index, *_ in chunk] for chunk in EpochBatchSampler(sampler, 3, drop_last=False)] == [
        [0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("name", ["RandomSampler", "RandomDomainSampler", "SeqDomainSampler", "RandomClassSampler"])
def test_orders_are_functions_of_seed_and_epoch(name):
    source = items([(i % 3, i % 5) for i in range(60)])

    def order(seed, epoch, history=()):
        sampler = sampler_of(name, source, 6, seed, n_domain=2, n_ins=3)
        for e in history:
            sampler.set_epoch(e)
            list(sampler)
        sampler.set_epoch(epoch)
        random.seed(len(history))
        return list(sampler)

    assert order(1, 3) == order(1, 3, history=(0, 1, 2))
    assert order(1, 3) != order(1, 2)
    assert order(1, 3) != order(2, 3)


@given(sizes=st.lists(st.integers(4, 12), min_size=2, max_size=4), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_domain_samplers(sizes, seed):
    source = items([(domain, 0) for domain, size in enumerate(sizes) for _ in range(size)])
    for name, n_domain in (("RandomDomainSampler", 2), ("SeqDomainSampler", len(sizes))):
        sampler = sampler_of(name, source, 2 * n_domain, seed, n_domain=2)
        order = list(sampler)
        assert len(order) == len(set(order)) == len(sampler)
        assert len(order) % (2 * n_domain) == 0
        batches = [order[i:i + 2 * n_domain] for i in range(0, len(order), 2 * n_domain)]
        for batch in batches:
            counts = Counter(source[i].domain for i in batch)
            assert len(counts) == n_domain and set(counts.values()) == {2}
            if name == "SeqDomainSampler":
                assert [source[i].domain for i in batch] == [d for d in range(len(sizes)) for _ in range(2)]
        left = Counter(source[i].domain for i in set(range(len(source))) - set(order))
        assert min(left.get(domain, 0) for domain in range(len(sizes))) < 2  # it stops when a domain runs dry


@given(sizes=st.lists(st.integers(1, 9), min_size=3, max_size=6), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_class_sampler(sizes, seed):
    source = items([(0, label) for label, size in enumerate(sizes) for _ in range(size)])
    sampler = sampler_of("RandomClassSampler", source, 6, seed, n_ins=2)
    order = list(sampler)
    assert len(order) == len(sampler) >= 6 and len(order) % 6 == 0
    for i in range(0, len(order), 6):
        counts = Counter(source[index].label for index in order[i:i + 6])
        assert len(counts) == 3 and set(counts.values()) == {2}
    for index, times in Counter(order).items():
        assert times == 1 or sizes[source[index].label] < 2


@pytest.mark.parametrize(("name", "batch", "kwargs"), [
    ("RandomSampel", 4, {}), ("RandomDomainSampler", 4, {"n_domain": 9}), ("RandomDomainSampler", 5, {"n_domain": 2}),
    ("SeqDomainSampler", 400, {}), ("RandomClassSampler", 4, {"n_ins": 8}), ("RandomClassSampler", 40, {"n_ins": 2}),
    ("RandomClassSampler", 7, {"n_ins": 2})])
def test_samplers_that_do_not_fit_are_input_errors(name, batch, kwargs):
    with pytest.raises(InputError):
        sampler_of(name, items([(i % 2, i % 3) for i in range(12)]), batch, **kwargs)


def test_of_a_domain_that_is_too_small_the_largest_batch_is_told():
    small = items([(domain, 0) for domain in (0, 0, 0, 1, 1, 1, 1)])
    with pytest.raises(InputError, match="one has 3; make the batch .* smaller, 6 at most"):
        sampler_of("SeqDomainSampler", small, 8)
    assert sampler_of("SeqDomainSampler", small, 6)


# ---- loaders ----
@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    source = []
    for i in range(11):
        path = folder / f"{i}.png"
        pixels = np.random.RandomState(i).randint(0, 256, (20 + i, 30, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
        source.append(Datum(str(path), i % 3, i % 2, str(i % 3)))
    return source


def loader_of(source, batch_size=4, workers=0, seed=1, is_train=True, **values):
    cfg = get_cfg_default()
    cfg.SEED, cfg.VERBOSE, cfg.USE_CUDA = seed, False, False
    cfg.INPUT.SIZE = (16, 16)
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "colorjitter", "randaugment", "normalize",
                            "gaussian_noise")
    cfg.DATALOADER.NUM_WORKERS = workers
    for key, value in values.items():
        cfg.DATALOADER[key] = value
    return build_data_loader(cfg, "RandomSampler" if is_train else "SequentialSampler", source, batch_size,
                             tfm=build_transform(cfg, is_train=is_train), is_train=is_train)


def epoch_of(loader, epoch, first_batch=0):
    loader.batch_sampler.set_epoch(epoch, first_batch)
    return [{key: value.numpy().tobytes() if torch.is_tensor(value) else value for key, value in batch.items()}
            for batch in loader]


def test_a_worker_that_is_not_forked_reads_the_same(pictures):
    dataset = loader_of(pictures).dataset
    sent = pickle.loads(pickle.dumps(dataset))
    for key in ((0, 0, 0), (3, 2, 1)):
        first, second = dataset[key], sent[key]
        assert torch.equal(first.pop("img"), second.pop("img")) and first == second


def test_batches_do_not_depend_on_workers_or_history(pictures):
    alone, helped = loader_of(pictures), loader_of(pictures, workers=2)
    first = epoch_of(alone, 0)
    assert len(first) == 2
    assert first == epoch_of(helped, 0)
    torch.rand(7)
    random.random()
    assert epoch_of(helped, 3) == epoch_of(alone, 3) != first
    assert epoch_of(alone, 0) == first
    assert epoch_of(loader_of(pictures, seed=2), 0) != first


def test_an_augmentation_is_a_function_of_epoch_and_position(pictures):
    data = loader_of(pictures).dataset
    first = data[0, 1, 2]["img"]
    assert torch.equal(first, data[0, 1, 2]["img"])
    assert not torch.equal(first, data[0, 2, 2]["img"]) and not torch.equal(first, data[0, 1, 3]["img"])


def test_two_batch_sizes_see_one_stream(pictures):
    def stream(size):
        loader = loader_of(pictures[:8], size)
        loader.batch_sampler.set_epoch(2)
        return [image.numpy().tobytes() for batch in loader for image in batch["img"]]

    assert stream(4) == stream(1) == stream(8)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_in_its_middle(pictures, workers):
    loader = loader_of(pictures, 3, workers)
    whole = epoch_of(loader, 5)
    assert len(whole) == 3
    assert epoch_of(loader, 5, first_batch=1) == whole[1:]
    assert epoch_of(loader, 6) != whole


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_generators_alone(pictures, workers):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    epoch_of(loader_of(pictures, workers=workers), 0)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_a_set_smaller_than_a_batch_keeps_its_short_batch(pictures):
    loader = loader_of(pictures[:3], 8)
    loader.batch_sampler.set_epoch(0)
    assert [len(batch["label"]) for batch in loader] == [3] and len(loader) == 1
    assert [len(batch["label"]) for batch in loader_of(pictures, 4)] == [4, 4]
    assert [len(batch["label"]) for batch in loader_of(pictures, 4, is_train=False)] == [4, 4, 3]


def test_an_item(pictures):
    batch = next(iter(loader_of(pictures, 4, K_TRANSFORMS=2, RETURN_IMG0=True)))
    assert set(batch) == {"img", "img0", "label", "domain", "impath", "index"}
    first, second = batch["img"]  # Dassl's form: a list of views
    assert first.shape == second.shape == batch["img0"].shape == (4, 3, 16, 16)
    assert not torch.equal(first, second)
    for index, path, label, domain in zip(batch["index"], batch["impath"], batch["label"], batch["domain"]):
        item = pictures[index]
        assert (item.impath, item.label, item.domain) == (path, label, domain)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_does_not_decode_is_named(pictures, tmp_path, workers):
    (tmp_path / "torn.png").write_bytes(Path(pictures[0].impath).read_bytes()[:200])
    source = [*pictures[:3], Datum(str(tmp_path / "torn.png"), 0, 0, "0")]
    loader = loader_of(source, 4, workers)
    with pytest.raises(InputError, match="torn.png") as caught:
        epoch_of(loader, 0)
    if workers:
        loader._iterator._shutdown_workers()
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


def test_isolated_rng_is_a_function_of_its_seed():
    def draw(seed):
        with isolated_rng(seed):
            return random.random(), np.random.rand(), torch.rand(1).item()

    before = random.getstate()
    assert draw(3) == draw(3) != draw(4)
    assert random.getstate() == before
    assert derive_seed("order", 1, 2) != derive_seed("order", 12) and 0 <= derive_seed(1) < 2**63


def test_generators_come_back_from_a_checkpoint(tmp_path):
    set_random_seed(5)
    np.random.randn()  # leaves a second normal number in store
    torch.save(get_rng_state(), tmp_path / "rng")
    expected = random.random(), np.random.randn(), torch.rand(1).item()
    set_random_seed(6)
    set_rng_state(torch.load(tmp_path / "rng", weights_only=True))
    assert expected == (random.random(), np.random.randn(), torch.rand(1).item())


class Whole(DatasetWrapper):
    """A plugin's, with a batch's items of its own, for keys that are indices."""

    def __getitems__(self, indices):
        raise AssertionError("asked for keys that it does not know")


@pytest.mark.parametrize("wrapper", [DatasetWrapper, Whole])
def test_the_generators_are_kept_once_for_a_batch(pictures, wrapper, monkeypatch):
    """What costs most of making an item a function of its key; each has its own draws all the same."""
    kept, isolated = [], isolated_rng
    monkeypatch.setattr("dassl.data.data_manager.isolated_rng", lambda seed: kept.append(seed) or isolated(seed))
    dataset = SeededDataset(wrapper(loader_of(pictures).dataset.cfg, pictures, drawing), seed=1)
    keys, before = [(0, 0, 0), (0, 0, 1), (1, 0, 2)], (random.getstate(), torch.get_rng_state(), np.random.get_state())
    together = dataset.__getitems__(keys)
    assert len(kept) == 1
    assert [item["img"] for item in together] == [dataset[key]["img"] for key in keys]
    assert len({item["img"] for item in together}) == 3
    after = random.getstate(), torch.get_rng_state(), np.random.get_state()
    assert before[0] == after[0] and torch.equal(before[1], after[1]) and str(before[2]) == str(after[2])
    batch, = DataLoader(dataset, batch_sampler=[keys], collate_fn=list)
    assert batch == together and len(kept) == 5  # and one for each item that was asked for alone


def drawing(image):
    return random.random(), torch.rand(()).item(), np.random.rand()


# ---- transforms ----
def transform_cfg(*choices, size=(24, 24)):
    cfg = get_cfg_default()
    cfg.VERBOSE = False
    cfg.INPUT.SIZE, cfg.INPUT.TRANSFORMS = size, choices
    cfg.INPUT.CUTOUT_LEN = 8
    return cfg


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 60, 3)).astype(np.uint8))


@pytest.mark.parametrize("name", AVAI_CHOICES)
def test_every_transform_does_something(name, picture):
    plain = build_transform(transform_cfg())(picture)
    transform = build_transform(transform_cfg(name))
    torch.manual_seed(0)
    random.seed(0)
    images = [transform(picture) for _ in range(12)]
    assert all(image.shape == (3, 24, 24) and image.dtype == torch.float32 for image in images)
    assert any(not torch.equal(image, plain) for image in images)


def test_unknown_transform_names_the_nearest(picture):
    with pytest.raises(InputError, match="did you mean 'random_flip'"):
        build_transform(transform_cfg("random_flop"))
    cfg = transform_cfg()
    cfg.INPUT.INTERPOLATION = "cubic"
    with pytest.raises(InputError, match="bicubic"):
        build_transform(cfg)


@pytest.mark.parametrize("size", [(24,), (24, 24, 3), (0, 24), ("a", 24)], ids=str)
def test_a_size_is_two_numbers(size):
    with pytest.raises(InputError, match="INPUT.SIZE"):
        build_transform(transform_cfg(size=size))


def test_test_images_are_resized_by_the_shorter_side_and_cropped_in_the_middle():
    wide = np.zeros((24, 72, 3), np.uint8)
    wide[:, 24:48] = 255  # only the middle third is white
    image = build_transform(transform_cfg("random_flip", "random_resized_crop"), is_train=False)(Image.fromarray(wide))
    assert image.shape == (3, 24, 24) and bool((image == 1).all())
    large = Image.fromarray(wide).resize((144, 48), Image.NEAREST)
    image = build_transform(transform_cfg(), is_train=False)(large)
    assert image.shape == (3, 24, 24) and image[:, :, 2:-2].min() > 0.99


def test_normalize(picture):
    cfg = transform_cfg("normalize")
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = [0.5, 0.4, 0.3], [0.2, 0.1, 0.5]
    plain = build_transform(transform_cfg(), is_train=False)(picture)
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.1, 0.5]).view(3, 1, 1)
    assert torch.allclose(build_transform(cfg, is_train=False)(picture), (plain - mean) / std)


MODES = {"L": 1, "RGB": 3, "RGBA": 4, "P": 1, "CMYK": 4, "1": 1, "LA": 2, "YCbCr": 3, "I;16": 1}  # and their channels


def as_torchvision(steps, image):
    """Whether FusedCompose and Compose give the same bits."""
    ours, plain = FusedCompose(steps)(image), Compose(steps)(image)
    return ours.dtype == plain.dtype and ours.is_contiguous() and torch.equal(ours, plain)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (256, 3), (61, 40)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_pixels_become_the_same_numbers_as_torchvisions(mode, size):
    pixels = np.random.RandomState(1).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    pixels.reshape(-1)[:256] = np.arange(256)[:pixels.size]
    image = Image.fromarray(pixels)
    image = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
    normal = Normalize((0.48145466, 0.4578275, 0.40821073, 0.1)[:MODES[mode]],
                       (0.26862954, 0.26130258, 3, 1e-3)[:MODES[mode]])
    assert as_torchvision([ToTensor()], image)
    if mode != "I;16":  # of which ToTensor makes whole numbers
        assert as_torchvision([ToTensor(), normal], image)
        assert as_torchvision([ToTensor(), RandomErasing(p=0), normal, normal], image)


def test_every_brightness_becomes_the_same_number_with_every_normalisation(picture):
    ramp = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2))
    random.seed(0)
    for _ in range(50):
        normal = Normalize([random.random() for _ in range(3)], [random.uniform(0.01, 2) for _ in range(3)])
        assert as_torchvision([ToTensor(), normal], ramp)
    for mean, std in ((0.5, 0.2), (torch.rand(3), torch.rand(3)), ([0.5], [0.2]), ([1, 2, 3], [1, 2, 1e-40])):
        assert as_torchvision([ToTensor(), Normalize(mean, std)], picture)
    for kind in (FusedCompose, Compose):
        with pytest.raises(ValueError, match="zero"):
            kind([ToTensor(), Normalize([0, 0, 0], [1, 1, 1e-60])])(picture)
    torch.set_default_dtype(torch.float64)
    try:
        assert as_torchvision([ToTensor(), Normalize([0.5] * 3, [0.2] * 3)], picture)
    finally:
        torch.set_default_dtype(torch.float32)


def test_steps_of_a_plugin_are_called_as_they_are(picture):
    class Own(ToTensor):
        def __call__(self, image):
            return super().__call__(image) + 1

    class OwnNormalize(Normalize):
        def forward(self, tensor):
            return super().forward(tensor) + 1

    normal = Normalize([0.5] * 3, [0.2] * 3)
    for steps in ([Own(), normal], [ToTensor(), OwnNormalize([0.5] * 3, [0.2] * 3)], [ToTensor(), torch.exp, normal]):
        assert as_torchvision(steps, picture)
    assert as_torchvision([ToTensor(), normal], np.array(picture))
    assert as_torchvision([ToTensor(), normal], Image.new("RGB", (0, 4)))
    transform = build_transform(transform_cfg("normalize"))
    before = transform(picture)
    transform.transforms.append(torch.exp)  # what a plugin adds later
    assert torch.equal(transform(picture), before.exp())


@pytest.mark.parametrize("train", [True, False])
def test_a_transform_gives_torchvisions_numbers_at_less_cost(train, picture, monkeypatch):
    """Without ToTensor and Normalize being called."""
    transform = build_transform(transform_cfg("random_resized_crop", "random_flip", "normalize"), is_train=train)
    torch.manual_seed(3)
    plain = Compose(transform.transforms)(picture)
    for kind in (ToTensor, Normalize):
        monkeypatch.delattr(kind, "__call__" if kind is ToTensor else "forward")
    torch.manual_seed(3)
    assert torch.equal(transform(picture), plain)


def test_cutout_is_a_hole_of_its_length(picture):
    image = build_transform(transform_cfg("cutout"))(Image.fromarray(np.full((24, 24, 3), 255, np.uint8)))
    assert int((image == 0).all(0).sum()) == 64


# ---- evaluation ----
def evaluate(cfg, predictions, labels, domains=None, n_cls=4, lab2cname=None):
    evaluator = build_evaluator(cfg, lab2cname=lab2cname)
    logits = torch.nn.functional.one_hot(torch.tensor(predictions), n_cls).float()
    for part in (slice(0, 2), slice(2, None)):
        evaluator.process(logits[part], torch.tensor(labels)[part],
                          *([torch.tensor(domains)[part]] if domains else []))
    return evaluator, evaluator.evaluate()


def test_evaluator_by_hand(capsys):
    # class 0: 2 of 3 right; class 1: 2 of 2; class 2: 0 of 1; class 3 does not occur but is predicted once
    cfg = get_cfg_default()
    cfg.TEST.PER_CLASS_RESULT = True
    evaluator, results = evaluate(cfg, [0, 0, 1, 1, 1, 3], [0, 0, 0, 1, 1, 2],
                                  lab2cname={0: "dog", 1: "horse", 2: "house", 3: "ant"})
    f1 = [2 * 1 * (2 / 3) / (1 + 2 / 3), 2 * (2 / 3) * 1 / (2 / 3 + 1), 0]
    assert results["accuracy"] == pytest.approx(400 / 6)
    assert results["error_rate"] == pytest.approx(200 / 6)
    assert results["macro_f1"] == pytest.approx(100 * sum(f1) / 3)
    assert results["perclass_accuracy"] == pytest.approx((200 / 3 + 100 + 0) / 3)
    assert results["macro_recall"] == pytest.approx(results["perclass_accuracy"])
    assert results["macro_precision"] == pytest.approx((100 + 200 / 3 + 0) / 3)  # class 2 is never predicted
    classes = evaluator.breakdown()["classes"]
    assert classes["precision"] == [100, pytest.approx(200 / 3), None, 0] and "confusion" not in evaluator.breakdown()
    assert classes["recall"] == [pytest.approx(200 / 3), 100, 0, None]
    assert classes["f1"] == [pytest.approx(100 * f1[0]), pytest.approx(100 * f1[1]), 0, None]
    assert next(iter(results)) == "accuracy"
    assert evaluator.confusion.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    printed = capsys.readouterr().out
    assert printed.startswith("=> result\n* total: 6\n* correct: 4\n* accuracy: 66.67%\n* error: 33.33%\n"
                              "* macro_f1: 53.33%\n")
    assert "=> per-class result" in printed and "* average: 55.56%\n" in printed
    row = next(line for line in printed.splitlines() if "dog" in line)
    assert row.split() == ["0", "dog", "3", "2", "66.67%"]
    assert "ant" not in printed
    evaluator.reset()
    evaluator.process(torch.eye(4), torch.arange(4))
    assert evaluator.evaluate()["accuracy"] == 100


def test_accuracy_of_each_domain(capsys):
    cfg = get_cfg_default()
    cfg.DATASET.TARGET_DOMAINS = ("sketch", "photo")
    _, results = evaluate(cfg, [0, 1, 1, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 1, 1])
    assert results["accuracy_sketch"] == pytest.approx(200 / 3) and results["accuracy_photo"] == 50
    assert "perclass_accuracy" not in results
    printed = capsys.readouterr().out
    assert "=> domain-wise result" in printed and "* domain: photo\ttotal: 2\tacc: 50.00%" in printed


def test_confusion_matrix_on_request(tmp_path, capsys):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.TEST.COMPUTE_CMAT = True
    evaluator, _ = evaluate(cfg, [0, 1, 1, 1], [0, 0, 1, 1], n_cls=2)
    assert evaluator.breakdown()["confusion"] == [[1, 1], [0, 2]] and evaluator.scores() is None
    stored = torch.load(tmp_path / "cmat.pt", weights_only=True)
    assert stored.tolist() == [[0.5, 0.5], [0.0, 1.0]]
    assert "cmat.pt" in capsys.readouterr().out


def test_compute_accuracy():
    logits = torch.tensor([[3.0, 2, 1, 0], [0, 1, 2, 3], [3, 2, 1, 0]])
    target = torch.tensor([0, 2, 3])
    top1, top2 = compute_accuracy(logits, target, topk=(1, 2))
    assert top1.item() == pytest.approx(100 / 3) and top2.item() == pytest.approx(200 / 3)
    assert compute_accuracy((logits, None), target)[0].item() == top1.item()
    assert compute_accuracy(logits, target, topk=(9,))[0].item() == 100


# ---- registry ----
def test_registry(capsys):
    registry = Registry("ANIMAL")

    @registry.register()
    class Horse:
        pass

    assert registry.get("Horse") is Horse and "Horse" in registry and registry.registered_names() == ["Horse"]
    with pytest.raises(KeyError, match="already registered"):
        registry.register(type("Horse", (), {}))
    with pytest.raises(InputError, match=r"unknown animal 'Hors' \(did you mean 'Horse'\?\); known: Horse"):
        registry.get("Hors")
    other = type("Horse", (), {"__module__": "stable"})
    with registry.replacing():
        registry.register(other)
    assert registry.get("Horse") is other and registry.replaced["Horse"] is Horse
    assert capsys.readouterr().out == f"Note: Horse of stable replaces {__name__}.Horse\n"
    with pytest.raises(KeyError):
        registry.register(type("Horse", (), {}))
    registry.register(Horse, force=True)
    assert registry.get("Horse") is Horse
    assert capsys.readouterr().out == ""


def test_project_registries_know_their_own():
    assert "Classification" in EVALUATOR_REGISTRY


# ---- checkpoints ----
def state(value, epoch=1):
    return {"state_dict": {"module.weight": torch.full((2,), float(value))}, "epoch": epoch}


def test_checkpoints(tmp_path):
    save_checkpoint(state(1), str(tmp_path), is_best=True)
    save_checkpoint(state(2, 2), str(tmp_path))
    save_checkpoint(state(3, 3), str(tmp_path), model_name="model-best.pth.tar")
    assert sorted(listdir_nohidden(tmp_path)) == ["checkpoint", "model-best.pth.tar", "model.pth.tar-1",
                                                  "model.pth.tar-2"]
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(2))
    assert resume_from_checkpoint(str(tmp_path), model) == 2
    assert model.weight.tolist() == [2, 2]
    load_pretrained_weights(model, str(tmp_path / "model-best.pth.tar"))
    assert model.weight.tolist() == [3, 3]


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    save_checkpoint(state(1), str(tmp_path))
    write_json({"a": 1}, str(tmp_path / "a.json"))

    def torn(obj, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(state(2), str(tmp_path))
    with pytest.raises(TypeError):
        write_json({"a": object()}, str(tmp_path / "a.json"))
    assert load_checkpoint(str(tmp_path / "model.pth.tar-1"))["state_dict"]["weight"].tolist() == [1, 1]
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert sorted(os.listdir(tmp_path)) == ["a.json", "checkpoint", "model.pth.tar-1"]


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj, 2))])
def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path, write):
    write({"state_dict": Trap(str(tmp_path / "sprung")), "epoch": 1}, tmp_path / "trap")
    with pytest.raises(InputError, match="trap"):
        load_checkpoint(str(tmp_path / "trap"))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 torn"])
def test_what_is_no_checkpoint_is_an_input_error(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match="file"):
        load_checkpoint(str(tmp_path / "file"))


def test_a_checkpoint_is_a_dict(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "file")
    with pytest.raises(InputError, match="file"):
        load_checkpoint(str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_checkpoint(str(tmp_path / "nowhere"))


def test_pretrained_weights_that_fit_are_taken(tmp_path, capsys):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    torch.save({"state_dict": {"module.0.weight": torch.ones(2, 2), "1.weight": torch.ones(5, 5), "x": torch.ones(1)}},
               tmp_path / "w")
    load_pretrained_weights(model, str(tmp_path / "w"))
    assert bool((model[0].weight == 1).all())
    assert "left out: 1.weight, x" in capsys.readouterr().out
    torch.save({"y": torch.ones(1)}, tmp_path / "none")
    with pytest.raises(InputError, match="fits"):
        load_pretrained_weights(model, str(tmp_path / "none"))


# ---- config ----
def merged(tmp_path, text, name="a.yaml"):
    (tmp_path / name).write_text(text)
    cfg = get_cfg_default()
    merge_file(cfg, str(tmp_path / name))
    return cfg


def test_yaml_values_take_the_type_of_their_default(tmp_path):
    cfg = merged(tmp_path, """
OPTIM: {LR: 1e-3, WEIGHT_DECAY: 1, STEPSIZE: 5, MAX_EPOCH: 3}
INPUT: {SIZE: [32, 32], TRANSFORMS: [random_flip], RRCROP_SCALE: [0.5, 1]}
DATASET: {NAME: PACS, SOURCE_DOMAINS: "a,b"}
""")
    assert cfg.OPTIM.LR == 0.001 and isinstance(cfg.OPTIM.WEIGHT_DECAY, float)
    assert cfg.OPTIM.STEPSIZE == (5,) and cfg.INPUT.SIZE == (32, 32) and cfg.INPUT.RRCROP_SCALE == (0.5, 1.0)
    assert cfg.DATASET.SOURCE_DOMAINS == ("a", "b")
    assert get_cfg_default().OPTIM.LR == 0.0003


def test_options_take_the_type_of_their_default():
    cfg = get_cfg_default()
    merge_options(cfg, ["OPTIM.LR", "1e-3", "OPTIM.WEIGHT_DECAY", "1", "INPUT.SIZE", "(64,64)", "VERBOSE", "False",
                        "DATASET.NAME", "123", "DATASET.TARGET_DOMAINS", "['x', 'y']", "OUTPUT_DIR", "None here"])
    assert (cfg.OPTIM.LR, cfg.INPUT.SIZE, cfg.VERBOSE) == (0.001, (64, 64), False)
    assert cfg.DATASET.NAME == "123" and cfg.DATASET.TARGET_DOMAINS == ("x", "y") and cfg.OUTPUT_DIR == "None here"


@pytest.mark.parametrize(("options", "message"), [
    (["OPTIM.LRR", "1"], r"unknown key OPTIM.LRR \(did you mean 'OPTIM.LR'\?\)"),
    (["OPTIN.MAX_EPOCH", "1"], "did you mean 'OPTIM.MAX_EPOCH'"),
    (["OPTIM.LR.X", "1"], "unknown key OPTIM.LR.X"),
    (["OPTIM.LR"], "no value"),
    (["OPTIM", "1"], "group of keys"),
    (["OPTIM.MAX_EPOCH", "1.5"], "type int"),
    (["OPTIM.MAX_EPOCH", "True"], "type int"),
    (["OPTIM.LR", "fast"], "type float"),
    (["VERBOSE", "1"], "type bool"),
    (["INPUT.SIZE", "big"], "INPUT.SIZE"),
    (["INPUT.PIXEL_MEAN", "[0.5,'a',0.5]"], "INPUT.PIXEL_MEAN"),
    (["TRAINER.NEW.KEY", "1"], "unknown key TRAINER.NEW.KEY"),
])
def test_wrong_options(options, message):
    with pytest.raises(InputError, match=message):
        merge_options(get_cfg_default(), options)


@pytest.mark.parametrize(("text", "name", "message"), [
    ("cfg.OPTIM.LR = 1", "a.py", "YAML"), ("{}", "a.json", "YAML"),
    ("OPTIM: [", "a.yaml", "not valid YAML"), ("OPTIM: !!python/object/apply:os.getcwd []", "a.yaml", "not valid YAML"),
    ("just words", "a.yaml", "holds no keys"), ("OPTIM: {LRR: 1}", "a.yaml", "a.yaml: unknown key OPTIM.LRR"),
    ("1: 2", "a.yaml", "not a name"), ("OPTIM: 3", "a.yaml", "group of keys"),
])
def test_wrong_config_files(tmp_path, text, name, message):
    with pytest.raises(InputError, match=message):
        merged(tmp_path, text, name)


def test_missing_and_empty_config_files(tmp_path):
    with pytest.raises(InputError, match=r"gone\.yaml"):
        merge_file(get_cfg_default(), str(tmp_path / "gone.yaml"))
    assert merged(tmp_path, "# nothing\n") == get_cfg_default()


def test_an_open_trainer_brings_its_own_keys():
    cfg = get_cfg_default()
    merge_options(cfg, ["TRAINER.MINE.DEEP.RATE", "0.5"], open_trainer=True)
    assert cfg.TRAINER.MINE.DEEP.RATE == 0.5
    with pytest.raises(InputError, match="unknown key"):
        merge_options(cfg, ["OPTIM.MINE", "1"], open_trainer=True)
    clean_cfg(cfg, "Other")
    assert list(cfg.TRAINER) == ["NAME"]


# ---- datasets and small tools ----
def test_dataset_base():
    train = [Datum("a", 1, 0, "dog"), Datum("b", 0, 1, "cat"), Datum("c", 1, 1, "dog")]
    dataset = DatasetBase(train, test=train)
    assert dataset.classnames == ["cat", "dog"] and dataset.num_classes == 2
    assert dataset.lab2cname == {0: "cat", 1: "dog"}
    assert list(dataset.split_dataset_by_label(train)) == [1, 0]
    assert list(dataset.split_dataset_by_domain(train)) == [0, 1]
    assert DatasetBase.get_num_classes(train) == 2
    assert DatasetBase.get_lab2cname(train) == ({0: "cat", 1: "dog"}, ["cat", "dog"])
    with pytest.raises(InputError, match="label 0"):
        DatasetBase([Datum("a", 1, 0, "dog")], test=train)
    with pytest.raises(InputError, match="training part is empty"):
        DatasetBase([], test=train)


def test_fewshot_draws():
    source = [Datum(str(i), i % 2, 0, "x") for i in range(9)]
    dataset = DatasetBase(source, test=source)
    drawn = dataset.generate_fewshot_dataset(source, num_shots=2, rng=random.Random(0))
    assert [item.label for item in drawn] == [0, 0, 1, 1]
    assert len(dataset.generate_fewshot_dataset(source, num_shots=5)) == 9
    assert len(dataset.generate_fewshot_dataset(source, num_shots=6, repeat=True)) == 12
    assert dataset.generate_fewshot_dataset(source, num_shots=0) is source
    assert [len(part) for part in dataset.generate_fewshot_dataset(source, source, num_shots=1)] == [2, 2]


def test_meters():
    meter = AverageMeter()
    meter.update(1.0)
    meter.update(torch.tensor(4.0), n=2)
    assert (meter.val, meter.avg) == (4.0, 3.0)
    ema = AverageMeter(ema=True)
    ema.update(1.0)
    ema.update(2.0)
    assert ema.avg == pytest.approx(1.1)
    meters = MetricMeter()
    meters.update({"loss": 1.0, "acc": torch.tensor(50.0)})
    meters.update({"loss": 3.0})
    assert str(meters) == "loss 3.0000 (2.0000) acc 50.0000 (50.0000)"
    with pytest.raises(TypeError):
        meters.update([1])


def test_logger_copies_what_is_printed(tmp_path, capsys):
    logger = setup_logger(str(tmp_path))
    print("to both")
    logger.close()
    print("to one")
    assert (tmp_path / "log.txt").read_text() == "to both\n"
    assert capsys.readouterr().out == "to both\nto one\n"


def test_small_tools(tmp_path):
    assert tolist_if_not(1) == [1] and tolist_if_not([1]) == [1]
    assert count_num_param(nn.Linear(3, 2)) == 8
    assert count_num_param(params=[{"params": [torch.zeros(3)]}, torch.zeros(2)]) == 5
    for name in ("b", "a", ".hidden"):
        (tmp_path / name).touch()
    assert listdir_nohidden(tmp_path) == ["a", "b"]


# ---- the epoch loop ----
def test_hooks_run_in_order_and_epochs_are_set():
    seen = []

    class Loop(TrainerBase):
        before_train, after_train, before_epoch, run_epoch, after_epoch = (
            lambda self, name=name: seen.append(name)
            for name in ("before_train", "after_train", "before_epoch", "run_epoch", "after_epoch"))

    loop = Loop()
    loop.train_loader_x = SimpleNamespace(batch_sampler=SimpleNamespace(
        set_epoch=lambda epoch, first: seen.append((epoch, first))))
    loop.first_batch = 3
    loop.train(1, 3)
    epoch = ["before_epoch", "run_epoch", "after_epoch"]
    assert seen == ["before_train", (1, 3), *epoch, (2, 0), *epoch, "after_train"]


def test_registered_models():
    trainer, model = TrainerBase(), nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    trainer.register_model("learner", model, optimizer)
    trainer.register_model("frozen", nn.Linear(1, 1))
    assert trainer.get_model_names() == ["learner", "frozen"] and trainer.get_current_lr() == 0.5
    with pytest.raises(KeyError, match="already"):
        trainer.register_model("learner", model)
    with pytest.raises(KeyError, match="learner, frozen"):
        trainer.get_model_names("lerner")
    trainer.set_model_mode("eval", "learner")
    assert not model.training and trainer._models["frozen"].training
    before = model.weight.item()
    trainer.model_backward_and_update(3 * model.weight.sum())
    assert model.weight.item() == pytest.approx(before - 1.5)
    with pytest.raises(InputError, match="learning rate 0.5"):
        trainer.model_backward_and_update(model.weight.sum() * float("nan"))
    assert model.weight.item() == pytest.approx(before - 1.5)


def test_models_are_stored_and_loaded(tmp_path):
    def built():
        trainer, model = TrainerBase(), nn.Linear(2, 1)
        optimizer = build_optimizer(model, optim_cfg(NAME="sgd", LR=0.1, LR_SCHEDULER="cosine"))
        trainer.register_model("m", model, optimizer, build_lr_scheduler(optimizer, optim_cfg(LR_SCHEDULER="cosine")))
        return trainer, model

    trainer, model = built()
    trainer.model_backward_and_update(model(torch.ones(1, 2)).sum())
    trainer.update_lr()
    trainer.best_result = 42.0
    trainer.save_model(0, str(tmp_path), model_name="model-best.pth.tar")
    trainer.save_model(4, str(tmp_path))
    expected = torch.rand(1)
    other, copy = built()
    assert other.resume_model_if_exist(str(tmp_path / "nowhere")) == 0
    assert other.resume_model_if_exist(str(tmp_path)) == 5
    assert torch.equal(torch.rand(1), expected) and other.best_result == 42
    assert torch.equal(copy.weight, model.weight) and other.get_current_lr() == trainer.get_current_lr() < 0.1
    for load in ({}, {"epoch": 5}):
        other, copy = built()
        other.load_model(str(tmp_path), **load)
        assert torch.equal(copy.weight, model.weight)
    with pytest.raises(FileNotFoundError):
        other.load_model(str(tmp_path), epoch=3)
