"""CLIP-LoRA and MMA beyond their records: which blocks, what is dropped, gradients, new classes, bad settings."""
import math

import golden_blocks
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import tiny_clip
import train
from dassl.utils import InputError
from harness import make_trainer
from prompting.low_rank import LowRankPaths, layers_at
from trainers.mma import Bottleneck, linear

NAMES = tiny_clip.CLASSNAMES
SMALL = {"CLIPLoRA": {}, "MMA": {"ADAPTER_START": 2, "ADAPTER_END": 4, "ADAPTER_SCALE": 0.1}}


def trainer_of(method, clip_model, names=NAMES, **options):
    return make_trainer(method, clip_model, names, {**SMALL[method], **options}, settings={"DATASET.NUM_SHOTS": 1})


def batch(size=8):
    return tiny_clip.batch("test", 0, size, len(NAMES))


@pytest.fixture
def run(arguments, clips):
    """(method, output, *words) -> the results of a run on base classes, of MMA with adapters that fit."""
    def run(method, output, *words):
        options = [word for key, value in SMALL[method].items() for word in (f"TRAINER.{method}.{key}", value)]
        return train.main(arguments(method, output, *words, *options), clips=clips)

    return run


# ---- CLIP-LoRA ----
@pytest.mark.parametrize(("position", "of_12", "of_4"), [
    ("all", range(12), range(4)), ("bottom", range(4), range(1)), ("mid", range(4, 8), range(1, 3)),
    ("up", range(8, 12), range(3, 4)), ("half-bottom", range(6), range(2)), ("half-up", range(6, 12), range(2, 4)),
    ("top3", range(9, 12), range(1, 4))])
def test_positions_are_the_authors_for_12_blocks_and_shares_of_others(position, of_12, of_4):
    assert layers_at(position, 12) == of_12 and layers_at(position, 4) == of_4
    assert layers_at("top3", 2) == range(2)


def test_only_the_named_projections_of_the_named_blocks_have_paths(clip_model):
    model = trainer_of("CLIPLoRA", clip_model, PARAMS="vo", POSITION="half-up", ENCODER="vision", RANK=3).model
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {
        f"visual_adapter.{layer}.{kind}.{part}": shape for layer in (2, 3) for part in "vo"
        for kind, shape in (("A", (3, 128)), ("B", (128, 3)))}
    assert all(paths.scale == 1 / math.sqrt(3) for paths in model.visual_adapter.values())


def test_a_path_starts_at_nothing_with_draws_of_its_own():
    torch.manual_seed(0)
    paths = LowRankPaths(256, "qk", 2, 0.5)
    assert not paths.B["q"].any() and not torch.equal(paths.A["q"], paths.A["k"])
    largest = paths.A["q"].abs().max().item()
    assert 0.98 / 16 < largest <= 1 / 16  # 1 / sqrt(256)


def test_each_projection_drops_entries_of_its_own_and_in_training_only(clip_model):
    trainer = trainer_of("CLIPLoRA", clip_model, DROPOUT=0.25)
    for paths in (*trainer.model.text_adapter.values(), *trainer.model.visual_adapter.values()):
        torch.nn.init.normal_(paths.B["q"], std=0.05)
    paths, x = trainer.model.text_adapter["0"], torch.ones(1, 50, 128)
    first, second = paths.dropped(x, "q"), paths.dropped(x, "k")
    assert not torch.equal(first, second)
    assert first.unique().tolist() == [0.0, pytest.approx(1 / 0.75)] and 0.2 < (first == 0).float().mean() < 0.3
    assert not torch.equal(trainer.model(batch()["img"]), trainer.model(batch()["img"]))
    logits = trainer.logits_of({"img": batch()["img"]})
    torch.testing.assert_close(logits, trainer.logits_of({"img": batch()["img"]}), rtol=0, atol=0)
    for module in trainer.model.modules():
        if isinstance(module, LowRankPaths):
            module.dropout = 0.0
    with torch.no_grad():  # as in training, but that nothing is dropped
        torch.testing.assert_close(logits, trainer.model.train()(batch()["img"]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("encoder", ["both", "vision"])
def test_a_class_is_the_mean_of_its_templates(encoder, clip_model):
    templates = ["a photo of a {}.", "a sketch of the {}, drawn by hand."]
    model = make_trainer("CLIPLoRA", clip_model, NAMES, {"ENCODER": encoder}, settings={
        "DATASET.TEMPLATES": templates}).model  # whose paths add nothing yet
    with torch.no_grad():
        features = F.normalize(model.eval().encode_classes(), dim=1)
    expected = model.towers.encode_classnames([name.replace("_", " ") for name in NAMES], templates)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)


def test_the_scale_of_the_logits(clip_model):
    by_100, by_clip = (trainer_of("CLIPLoRA", clip_model, LOGIT_SCALE=scale).logits_of({"img": batch()["img"]})
                       for scale in (100.0, 0.0))
    torch.testing.assert_close(by_100 * clip_model.logit_scale.exp().item() / 100, by_clip, rtol=1e-4, atol=1e-4)


def test_only_the_text_tower_of_a_resnet(arguments, resnet_file, tmp_path, one_line):
    argv = arguments("CLIPLoRA", tmp_path / "a", "OPTIM.MAX_EPOCH", 1, backbone=resnet_file)
    assert "CLIPLoRA adapts the image tower and needs a ViT" in one_line(lambda: train.main(argv))
    results = train.main([*argv, "TRAINER.CLIPLORA.ENCODER", "text"])
    assert 0 <= results["metrics"]["test"]["accuracy"] <= 100


@pytest.mark.parametrize(("options", "told"), [
    ({"PARAMS": "qkx"}, "PARAMS is 'qkx'"), ({"PARAMS": ""}, "PARAMS is ''"), ({"PARAMS": "qq"}, "PARAMS is 'qq'"),
    ({"POSITION": "top"}, "POSITION"), ({"ENCODER": "image"}, "ENCODER"), ({"RANK": 0}, "RANK"),
    ({"ALPHA": 0.0}, "ALPHA"), ({"DROPOUT": 1.0}, "DROPOUT"), ({"DROPOUT": math.nan}, "DROPOUT"),
    ({"LOGIT_SCALE": -1.0}, "LOGIT_SCALE")])
def test_settings_of_cliplora_without_a_meaning(options, told, clip_model):
    with pytest.raises(InputError, match=rf"^TRAINER\.CLIPLORA.*{told}"):
        trainer_of("CLIPLoRA", clip_model, **options)


def test_a_replay_lets_few_entries_be_off_and_no_more_than_their_first_gradients_say():
    """With Adam at a rate of 1e-3, and of tensors of 200 entries."""
    def off(gradient, by):
        case = golden_blocks.CLIPLoRA({"meta": {"lr": 1e-3}}, None)
        ours, theirs = torch.zeros(200), np.zeros(200, np.float32)
        first = torch.full((200,), 0.01)
        first[3], ours[3] = gradient, by
        case.first[id(ours)] = first
        mine, recorded = case.final("w_lora_B", ours, theirs)
        return (mine - recorded).abs().max().item() > case.tensors_within

    assert not off(0.01, 1.9e-5) and off(0.01, 2.1e-5) and off(1e-6, 2.1e-5) and off(0.0, 2.1e-5)
    assert not off(1e-7, 5e-4) and off(1e-7, 9e-4) and not off(1e-9, 9e-4) and off(1e-9, 1.1e-3)
    case = golden_blocks.CLIPLoRA({"meta": {"lr": 1e-3}}, None)
    ours = torch.zeros(200)
    case.first[id(ours)] = torch.full((200,), 1e-8)
    with pytest.raises(AssertionError, match="w_lora_B"):
        case.final("w_lora_B", ours, np.zeros(200, np.float32))


# ---- MMA ----
def test_an_adapters_own_gradient_lacks_its_scale_and_that_of_its_input_does_not():
    torch.manual_seed(0)
    shared, scale = linear(8, 8), 0.01
    adapter, norm = Bottleneck(16, shared, scale, at_input=False), torch.nn.LayerNorm(16)
    tensors = [torch.randn(5, 16, requires_grad=True), adapter.down.weight, adapter.up.bias, shared.weight]
    weights = torch.randn(5, 16)

    def gradients(added):
        return torch.autograd.grad((added * weights).sum(), tensors)

    true = gradients(scale * adapter.bottleneck(norm(tensors[0])))
    for which, ours, expected in zip(("input", "down", "up", "shared"), gradients(adapter.beside(tensors[0], norm)),
                                     true):
        torch.testing.assert_close(ours, expected if which == "input" else expected / scale, rtol=1e-4, atol=1e-6)
    adapter.at_input = True  # where all gradients are true ones, and there is no norm
    true = gradients(scale * adapter.bottleneck(tensors[0]))
    torch.testing.assert_close(gradients(adapter.beside(tensors[0], norm)), true)


def test_both_towers_share_one_middle_layer_that_is_kept_once(clip_model):
    model = trainer_of("MMA", clip_model).model
    names = [name for name in model.state_dict() if "shared" in name]
    assert names == [f"shared_adapter.{layer}.{kind}" for layer in (1, 2, 3) for kind in ("weight", "bias")]
    for layer in "123":
        towers = (model.text_adapter[layer], model.visual_adapter[layer])
        assert all(adapter.both == [model.shared_adapter[layer]] for adapter in towers)


def test_adapters_start_as_the_authors_do():
    torch.manual_seed(0)
    layer = linear(32, 768)
    assert not layer.bias.any() and layer.weight.std().item() == pytest.approx(math.sqrt(2 / 768), rel=0.05)


def test_half_precision_gives_nearly_the_gradients_of_full(clip_model):
    steps = []
    for precision in ("fp32", "amp"):
        trainer = trainer_of("MMA", clip_model, ADAPTER_SCALE=0.001, PREC=precision)
        with trainer.precision.autocast():
            loss, _ = trainer.compute_loss(batch())
        steps.append(torch.cat([g.flatten() for g in trainer.gradients(loss, trainer.trainables)]))
    assert all(gradient.dtype == torch.float32 for gradient in steps)
    assert F.cosine_similarity(*steps, dim=0) > 0.99 and 0.97 < steps[1].norm() / steps[0].norm() < 1.03


@pytest.mark.parametrize(("options", "told"), [
    ({"ADAPTER_START": 4, "ADAPTER_END": 3}, "ADAPTER_START 4 to ADAPTER_END 3"), ({"ADAPTER_START": -1}, "START -1"),
    ({"ADAPTER_DIM": 0}, "ADAPTER_DIM"), ({"ADAPTER_SCALE": 0.0}, "ADAPTER_SCALE"),
    ({"ADAPTER_END": 5}, "ADAPTER_END 5 is beyond the text tower, which has 4 blocks; set it to 4")])
def test_settings_of_mma_without_a_meaning(options, told, clip_model):
    with pytest.raises(InputError, match=rf"^TRAINER\.MMA.*{told}"):
        trainer_of("MMA", clip_model, **options)


def test_mma_needs_a_vit(arguments, resnet_file, tmp_path, one_line):
    argv = arguments("MMA", tmp_path / "a", backbone=resnet_file)
    assert "MMA adapts the image tower and needs a ViT" in one_line(lambda: train.main(argv))


# ---- both ----
@pytest.mark.parametrize("method", SMALL)
def test_what_is_trained_on_base_classes_scores_new_ones(method, run, tmp_path):
    run(method, tmp_path / "base", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 1)
    new = run(method, tmp_path / "new", "--eval-only", "--model-dir", tmp_path / "base", "DATASET.SUBSAMPLE_CLASSES",
              "new")
    assert 0 <= new["metrics"]["test"]["accuracy"] <= 100


def test_the_rate_of_cliplora_falls_to_its_lowest_over_the_planned_updates(clip_model):
    trainer = make_trainer("CLIPLoRA", clip_model, NAMES, settings={"OPTIM.MAX_EPOCH": 2, "OPTIM.LR": 0.01}, batch=40)
    assert trainer.planned_steps == 4  # 80 images
    rates = []
    for _ in range(5):
        rates.append(trainer.optim.param_groups[0]["lr"])
        trainer.forward_backward(batch(2))
    assert rates[0] == 0.01 and rates[4] == pytest.approx(1e-6) and rates[2] == pytest.approx((0.01 + 1e-6) / 2)
