"""What the golden records of TPT and DPL do not cover: the views and AugMix, CoOp's context as a start, what a test
image costs, domains in any number and order, bad settings."""
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomHorizontalFlip, RandomResizedCrop, ToTensor

import tiny_clip
import train
from dassl.config import get_cfg_default
from dassl.data.samplers import RandomSampler, SeqDomainSampler
from dassl.data.transforms import augmix
from dassl.data.views import build_views
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError, isolated_rng
from harness import make_trainer

NAMES = tiny_clip.CLASSNAMES


def picture(seed=0, size=(48, 40)):
    """Coloured stripes with noise, so that every operation changes something."""
    rng = np.random.default_rng(seed)
    shades = np.linspace(40, 190, size[0])[None, :, None] * np.array([1.0, 0.8, 0.6])
    return Image.fromarray((shades + rng.integers(0, 30, (size[1], size[0], 3))).astype(np.uint8))


# ---- AugMix ----
def test_augmix_mixes_what_finish_gives():
    """Weights of the picture and of its three chains sum to 1, whatever is drawn."""
    given = []

    def ones(image):
        given.append(image)
        return torch.ones(3, 4, 4)

    mix = augmix.AugMix(ones)
    for seed in range(5):
        with isolated_rng(seed):
            torch.testing.assert_close(mix(picture()), torch.ones(3, 4, 4))
    assert len(given) == 5 * 4


def test_augmix_has_the_shares_of_its_distributions():
    """The mean of Beta(1, 1) is a half; those of Dirichlet(1, 1, 1), of what is left, a third."""
    kinds = iter(range(4000))
    mix = augmix.AugMix(lambda image: torch.eye(4)[next(kinds) % 4])  # the picture, then the three chains
    mix.chain = lambda image: image
    with isolated_rng(3):
        shares = torch.stack([mix(None) for _ in range(1000)])
    torch.testing.assert_close(shares.mean(dim=0), torch.tensor([1 / 2, 1 / 6, 1 / 6, 1 / 6]), atol=0.03, rtol=0)
    assert shares[:, 0].std() == pytest.approx(12**-0.5, abs=0.02)  # of a uniform share
    # a third has the variance 1/18 and the mean 1/3, the rest the mean of squares 1/3
    assert shares[:, 1].var() == pytest.approx((1 / 18 + 1 / 9) / 3 - 1 / 36, abs=0.005)


def test_chains_have_one_to_three_operations(monkeypatch):
    levels, lengths = [], []
    monkeypatch.setattr(augmix, "OPERATIONS", (lambda image, share: levels.append(share) or image,))
    mix = augmix.AugMix(ToTensor())
    with isolated_rng(0):
        for _ in range(60):
            before = len(levels)
            mix.chain(picture())
            lengths.append(len(levels) - before)
    assert set(lengths) == {1, 2, 3} and min(map(lengths.count, (1, 2, 3))) > 10
    assert 0.01 <= min(levels) < 0.02 and 0.09 < max(levels) <= 0.1  # severity 1 of 10


@pytest.mark.parametrize("operation", augmix.OPERATIONS, ids=lambda operation: operation.__name__)
def test_every_operation_changes_a_picture_and_keeps_its_size(operation):
    before = picture()
    with isolated_rng(0):
        after = operation(before, 0.5)
    assert after.size == before.size and after.mode == "RGB" and after.tobytes() != before.tobytes()


def test_there_are_nine_operations_and_they_grow_with_their_share():
    assert len({operation.__name__ for operation in augmix.OPERATIONS}) == 9

    def change(operation, share):
        with isolated_rng(1):
            return np.abs(np.asarray(operation(picture(), share), float) - np.asarray(picture(), float)).mean()

    for operation in augmix.OPERATIONS[2:]:  # the first two have no strength
        assert change(operation, 0.9) > change(operation, 0.3), operation.__name__


def test_both_signs_are_drawn():
    with isolated_rng(0):
        drawn = {augmix.shear_x(picture(), 0.5).tobytes() for _ in range(20)}
    assert len(drawn) == 2


# ---- TPT: its views ----
def tpt_cfg(*words, dataset="Caltech101"):
    cfg = get_cfg_default()
    TRAINER_REGISTRY.get("TPT").extend_cfg(cfg)
    cfg.DATASET.NAME, cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = dataset, (32, 32), "bicubic"
    cfg.INPUT.TRANSFORMS, cfg.VERBOSE = ("random_resized_crop", "random_flip", "normalize"), False
    cfg.merge_from_list(list(words))
    return cfg


@pytest.mark.parametrize(("dataset", "said", "mixed"), [
    ("Caltech101", "auto", True), ("EuroSAT", "auto", True), ("ImageNet", "auto", False), ("ImageNetA", "auto", False),
    ("ImageNetSketch", "auto", False), ("ImageNet", "always", True), ("Caltech101", "never", False)])
def test_which_views_go_through_augmix(dataset, said, mixed):
    cfg = tpt_cfg("TRAINER.TPT.AUGMIX", said, dataset=dataset)
    steps = TRAINER_REGISTRY.get("TPT").view_transform(cfg).transforms
    assert any(isinstance(step, augmix.AugMix) for step in steps) == mixed
    crop = steps[0]
    assert isinstance(crop, RandomResizedCrop) and tuple(crop.scale) == (0.08, 1.0)
    assert crop.interpolation == InterpolationMode.BILINEAR and isinstance(steps[1], RandomHorizontalFlip)
    assert cfg.INPUT.INTERPOLATION == "bicubic"  # the image itself is read as it was


def test_views_with_augmix_are_a_function_of_seed_and_picture():
    cls = TRAINER_REGISTRY.get("TPT")
    shown_four = types.SimpleNamespace(test_views=4, view_transform=cls.view_transform)
    first, again, other = (build_views(shown_four, tpt_cfg("SEED", seed))(picture()) for seed in (1, 1, 2))
    assert first.shape == (4, 3, 32, 32) and torch.equal(first, again) and not torch.equal(first, other)
    plain = build_views(shown_four, tpt_cfg("SEED", 1, "TRAINER.TPT.AUGMIX", "never"))(picture())
    assert not torch.isclose(first, plain).all(dim=(1, 2, 3)).any()


# ---- TPT: its predictions ----
def shown(views=7, number=0):
    image = tiny_clip.batch("test_time", number, 1, 10)["img"]
    noise = torch.from_numpy(tiny_clip.normal(f"test_time/views/{number}", 1, views, 3, 32, 32))
    return {"img": image, "views": image[:, None] + 0.5 * noise}


def tpt(clip_model, options=None, **more):
    return make_trainer("TPT", clip_model, NAMES, {"VIEWS": 7, "SELECTION": 0.5, **(options or {})}, **more)


@pytest.mark.parametrize("steps", [1, 2])
def test_views_are_encoded_once_and_texts_once_a_step(steps, clip_model):
    trainer = tpt(clip_model, {"STEPS": steps})
    trainer.towers.passes.counting = True
    trainer.logits_of(shown())
    assert trainer.towers.passes.images == 8
    assert trainer.towers.passes.texts == (steps + 1) * len(NAMES)


def test_the_entropy_of_the_mean_falls(clip_model):
    trainer, seen = tpt(clip_model, {"STEPS": 5}), []
    gradients = trainer.gradients
    trainer.gradients = lambda loss, tensors: seen.append(loss.item()) or gradients(loss, tensors)
    trainer.logits_of(shown())
    assert len(seen) == 5 and seen[-1] < seen[0]


def coop_run(arguments, clips, folder, *words):
    train.main(arguments("CoOp", folder, "OPTIM.LR", 0.05, *words), clips=clips)
    return folder / "prompt_learner" / "model.pth.tar-2"


def test_the_context_of_a_coop_run_is_a_start(arguments, clips, tmp_path, capsys):
    """With a rate of almost nothing the answers are CoOp's. The number of views is that of the config."""
    start = coop_run(arguments, clips, tmp_path / "coop", "TRAINER.COOP.CTX_INIT", "a photo of a",
                     "TEST.SAVE_LOGITS", True)
    results = train.main(arguments(
        "TPT", tmp_path / "tpt", "TRAINER.TPT.VIEWS", 3, "TRAINER.TPT.SELECTION", 0.5, "TRAINER.TPT.LR", 1e-9,
        "TEST.SAVE_LOGITS", True, "MODEL.INIT_WEIGHTS", start), clips=clips)
    assert results["test_time"]["views"] == 3 and results["test_time"]["adapts"]
    assert f"Loaded 1 tensors from {start}\n" in capsys.readouterr().out
    ours, theirs = (np.load(tmp_path / name / "logits.npz")["logits"] for name in ("tpt", "coop"))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    untrained = torch.load(start.with_name("model.pth.tar-1"), weights_only=True)["state_dict"]["prompt_learner.ctx"]
    trained = torch.load(start, weights_only=True)["state_dict"]["prompt_learner.ctx"]
    assert (trained - untrained).abs().max() > 1e-3  # so CoOp's answers are not those of the words


def test_a_context_of_another_length_is_no_start(arguments, clips, tmp_path, one_line):
    start = coop_run(arguments, clips, tmp_path / "coop", "TRAINER.COOP.N_CTX", 3, "OPTIM.MAX_EPOCH", 2)
    line = one_line(lambda: train.main(arguments(
        "TPT", tmp_path / "tpt", "TRAINER.TPT.VIEWS", 3, "TRAINER.TPT.SELECTION", 0.5, "MODEL.INIT_WEIGHTS", start),
        clips=clips))
    assert f"no tensor of {start} fits the model" in line and "prompt_learner.ctx" in line


# ---- DPL ----
def dpl(clip_model, options=None, domains=3, **more):
    small = {"N_DOMAIN_TOKENS": 2, "MLP_WIDTH": 16, "MLP_DROPOUT": 0.0, **(options or {})}
    return make_trainer("DPL", clip_model, NAMES, small, domains=domains, batch=12, **more)


def training(domains=3, step=0):
    return tiny_clip.batch("dpl_tests", step, 12, 10, domains)


def loss_and_logits(trainer, batch):
    with torch.no_grad():
        loss, logits = trainer.compute_loss(batch)
    return loss, logits


@pytest.mark.parametrize("targets", ["released", "own"])
def test_the_order_of_a_batch_changes_nothing(targets, clip_model):
    """The domain of the smallest number is the target, whichever image comes first."""
    trainer, batch = dpl(clip_model, {"TARGETS": targets}), training()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    loss, logits = loss_and_logits(trainer, batch)
    other, turned = loss_and_logits(trainer, {key: value[order] for key, value in batch.items()})
    torch.testing.assert_close(other, loss)
    torch.testing.assert_close(turned, logits[order], atol=1e-4, rtol=0)
    assert logits.shape == (12, 30 if targets == "released" else 10)


def test_own_targets_are_columns_of_the_released_logits(clip_model):
    batch = training()
    _, whole = loss_and_logits(dpl(clip_model), batch)
    _, own = loss_and_logits(dpl(clip_model, {"TARGETS": "own"}), batch)
    for row, domain in enumerate(batch["domain"].tolist()):
        torch.testing.assert_close(own[row], whole[row, 10 * domain:10 * domain + 10])


def test_domains_may_have_any_numbers_and_sizes(clip_model):
    """Two domains with the numbers 5 and 9, one of them with a single image, give two prompts."""
    batch = training(1)
    batch["domain"] = torch.tensor([9] + [5] * 11)
    trainer = dpl(clip_model)
    _, logits = loss_and_logits(trainer, batch)
    assert logits.shape == (12, 20)
    _, alone = loss_and_logits(trainer, {key: value[1:] for key, value in batch.items()})
    torch.testing.assert_close(logits[1:, :10], alone, atol=1e-4, rtol=0)


def test_with_one_domain_all_readings_are_alike(clip_model):
    losses = [loss_and_logits(dpl(clip_model, {"TARGETS": targets}, domains=1), training(1))[0]
              for targets in ("released", "own")]
    assert torch.equal(*losses)


def test_an_answer_depends_on_the_batch(clip_model):
    trainer, images = dpl(clip_model), tiny_clip.batch("eval", 0, 16, 10)["img"]
    together, few = trainer.logits_of({"img": images}), trainer.logits_of({"img": images[:4]})
    assert (together[:4] - few).abs().max() > 1e-4
    features = trainer.towers.encode_image(images)  # the mean of what the network gives, not what it gives of the mean
    with torch.no_grad():
        of_each = torch.stack([trainer.model.network(feature[None])[0] for feature in features])
        prompts = trainer.model.class_prompts(of_each.mean(dim=0).view(2, -1))
        text = trainer.towers.text.encode(prompts)[0]
    torch.testing.assert_close(together, trainer.towers.cosine_logits(features, text), atol=1e-4, rtol=0)


def test_dropout_is_of_the_training_alone(clip_model):
    trainer, images = dpl(clip_model, {"MLP_DROPOUT": 0.5}), tiny_clip.batch("eval", 0, 16, 10)["img"]
    before = torch.get_rng_state()
    assert torch.equal(trainer.logits_of({"img": images}), trainer.logits_of({"img": images}))
    assert torch.equal(torch.get_rng_state(), before)
    first, second = (loss_and_logits(trainer, training())[0] for _ in range(2))
    assert first != second


def test_batches_hold_as_many_images_of_each_source_domain(clip_model):
    trainer = dpl(clip_model)
    sampler = trainer.train_loader_x.batch_sampler.sampler
    assert isinstance(sampler, SeqDomainSampler) and isinstance(
        dpl(clip_model, domains=1).train_loader_x.batch_sampler.sampler, RandomSampler)
    items = trainer.dm.dataset.train_x
    order = [items[index].domain for index in sampler]
    assert order[:12] == [0] * 4 + [1] * 4 + [2] * 4 and len(order) == 240


def test_test_images_are_shuffled(clip_model):
    """A batch of one class would tell it by its prompt."""
    sampler = dpl(clip_model).test_loader.batch_sampler.sampler
    assert isinstance(sampler, RandomSampler) and sorted(sampler) == list(range(240)) != list(sampler)


def test_a_batch_that_does_not_divide_by_the_domains_is_refused(clip_model):
    with pytest.raises(InputError, match="the batch size 10 does not divide by 3 domains"):
        make_trainer("DPL", clip_model, NAMES, domains=3, batch=10)


# ---- what is refused ----
@pytest.mark.parametrize(("method", "options", "line"), [
    ("TPT", {"AUGMIX": "sometimes"}, "TRAINER.TPT.AUGMIX: 'sometimes' is not known"),
    ("TPT", {"VIEWS": 0}, "VIEWS and STEPS must be at least 1, they are 0 and 1"),
    ("TPT", {"STEPS": 0}, "VIEWS and STEPS must be at least 1, they are 63 and 0"),
    ("TPT", {"LR": 0.0}, "LR must be above 0 and WEIGHT_DECAY at least 0, they are 0.0 and 0.01"),
    ("TPT", {"WEIGHT_DECAY": -0.1}, "LR must be above 0 and WEIGHT_DECAY at least 0, they are 0.005 and -0.1"),
    ("TPT", {"VIEWS": 7}, r"TRAINER.TPT.SELECTION 0.1 keeps none of an image and its 7 views.*; give 0.125 to 1"),
    ("TPT", {"SELECTION": 1.5}, "TRAINER.TPT.SELECTION 1.5 keeps none of an image and its 63 views, or more than all"),
    ("DPL", {"TARGETS": "first"}, "TRAINER.DPL.TARGETS: 'first' is not known"),
    ("DPL", {"MLP_DEPTH": 1}, "MLP_DEPTH at least 2, they are 16, 512 and 1"),
    ("DPL", {"N_DOMAIN_TOKENS": 0}, "must be at least 1 and MLP_DEPTH at least 2, they are 0, 512 and 3"),
    ("DPL", {"MLP_DROPOUT": 1.0}, "TRAINER.DPL.MLP_DROPOUT must be 0 or more and below 1, not 1.0")])
def test_settings_without_a_meaning_are_refused_in_one_line(method, options, line, clip_model):
    with pytest.raises(InputError, match=line):
        make_trainer(method, clip_model, NAMES, options)


def test_settings_at_the_edge_are_taken(clip_model):
    trainer = tpt(clip_model, {"VIEWS": 1, "SELECTION": 1.0})
    assert trainer.logits_of(shown(1)).shape == (1, 10)
    deep = dpl(clip_model, {"MLP_DEPTH": 2, "N_DOMAIN_TOKENS": 1, "MLP_WIDTH": 1})
    assert len(deep.model.network.hiddens) == 0 and np.isfinite(deep.forward_backward(training())["loss"])


def test_the_network_starts_as_published(clip_model):
    network = dpl(clip_model, {"MLP_WIDTH": 64, "MLP_DEPTH": 4}).model.network
    for layer in (network.input, *network.hiddens, network.output):
        bound = (6 / sum(layer.weight.shape)) ** 0.5
        assert 0.97 * bound < layer.weight.abs().max() <= bound and (layer.bias == 0.01).all()
    assert [tuple(layer.weight.shape) for layer in (network.input, *network.hiddens, network.output)] == [
        (64, 64), (64, 64), (64, 64), (256, 64)]
