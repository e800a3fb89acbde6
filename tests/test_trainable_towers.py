"""Towers whose weights want gradients and whose modules are replaced compute what OpenAI's `clip` computes with the
same changes, and its gradients; nothing of it reaches the CLIP that was handed in."""
import copy

import clip
import pytest
import torch
from clip.model import CLIP, ResidualAttentionBlock
from test_ranks_in_threads import group  # noqa: F401  # a fixture
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from dassl.utils.distributed import Ranks
from prompting import ClassPrompts, PromptingError, Towers
from prompting.model import FrozenCLIP, Prompt, PromptedCLIP
from prompting.precision import Precision
from prompting.text_chunks import KEPT_PER_TOKEN_TRAINED, chunks_of

NAMES = ["cat", "a rather long name of a dog", "alarm clock"]
TEMPLATES = ["a photo of a {}.", "{}"]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def small():
    """A CLIP with other widths and numbers of heads in its towers than any that is published."""
    torch.manual_seed(0)
    model = CLIP(embed_dim=48, image_resolution=32, vision_layers=3, vision_width=64, vision_patch_size=8,
                 context_length=77, vocab_size=49408, transformer_width=128, transformer_heads=4, transformer_layers=3)
    return model.float().eval().requires_grad_(False)


# ---- what strangers change ----
class Wrapped(nn.Module):
    """A low-rank update beside a linear layer."""

    def __init__(self, base):
        super().__init__()
        self.base, self.dropout = base, nn.Dropout(0.2)
        self.down = nn.Parameter(torch.randn(2, base.in_features) / 8)
        self.up = nn.Parameter(torch.randn(base.out_features, 2) / 8)

    def forward(self, x):
        return self.base(x) + self.dropout(x) @ self.down.T @ self.up.T


class Added(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.down = nn.Parameter(torch.randn(2, weight.shape[1]) / 8)
        self.up = nn.Parameter(torch.randn(len(weight), 2) / 8)

    def forward(self, weight):
        return weight + self.up @ self.down


class Scaled(nn.Module):
    """An attention with the signature of torch's."""

    def __init__(self, attn):
        super().__init__()
        self.attn, self.scale = attn, nn.Parameter(torch.tensor(1.2))

    def forward(self, query, key, value, need_weights=False, attn_mask=None):
        return self.attn(query * self.scale, key * self.scale, value, need_weights=False, attn_mask=attn_mask)


class Beside(nn.Module):
    """An adapter beside a whole block."""

    def __init__(self, block, width):
        super().__init__()
        self.block, self.adapter = block, nn.Linear(width, width)

    def forward(self, x):
        return self.block(x) + self.adapter(x)


def towers_of(model):
    return model.transformer, model.visual.transformer


def blocks_of(model):
    return [block for tower in towers_of(model) for block in tower.resblocks]


def all_weights(model):
    model.requires_grad_(True)


def layer_norms(model):
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.requires_grad_(True)


def wrapped_layers(model):
    for block in blocks_of(model):
        block.mlp.c_fc, block.mlp.c_proj = Wrapped(block.mlp.c_fc), Wrapped(block.mlp.c_proj)


def parametrised_weights(model):
    for block in blocks_of(model):
        parametrize.register_parametrization(block.attn, "in_proj_weight", Added(block.attn.in_proj_weight))
        parametrize.register_parametrization(block.mlp.c_fc, "weight", Added(block.mlp.c_fc.weight))


def another_attention(model):
    for tower in towers_of(model):
        tower.resblocks[1].attn = Scaled(tower.resblocks[1].attn.requires_grad_(True))


def another_mlp(model):
    for tower in towers_of(model):
        width = tower.resblocks[0].ln_2.weight.shape[0]
        tower.resblocks[0].mlp = nn.Sequential(nn.Linear(width, 7), nn.GELU(), nn.Linear(7, width)).requires_grad_(True)


def another_activation(model):
    for block in blocks_of(model):
        block.mlp.gelu = nn.GELU()
        block.mlp.c_fc.requires_grad_(True)


def another_block(model):
    for tower in towers_of(model):
        tower.resblocks[1] = Beside(tower.resblocks[1], tower.resblocks[1].ln_2.weight.shape[0])


def a_hook(model):
    for block in blocks_of(model):
        block.ln_1.requires_grad_(True)
        block.mlp.c_fc.register_forward_hook(lambda module, args, output: 1.3 * output)
        block.register_forward_hook(lambda module, args, output: 0.9 * output)


class Halved(ResidualAttentionBlock):
    def attention(self, x):
        return 0.5 * super().attention(x)


def an_attention_of_the_block(model):
    for text, image in zip(*(tower.resblocks for tower in towers_of(model))):
        text.__class__ = Halved
        image.attention = lambda x, attention=image.attention: 0.5 * attention(x)
    model.ln_final.requires_grad_(True)
    model.visual.ln_post.requires_grad_(True)


def layers_without_bias(model):
    for block in blocks_of(model):
        linear = block.mlp.c_fc
        block.mlp.c_fc = nn.Linear(linear.in_features, linear.out_features, bias=False)


def a_block_less(model):
    for tower in towers_of(model):
        tower.resblocks = tower.resblocks[:2].requires_grad_(True)


def a_block_more(model):
    for tower in towers_of(model):
        tower.resblocks.append(copy.deepcopy(tower.resblocks[0]).requires_grad_(True))


def other_masks(model):
    for text, image in zip(*(tower.resblocks for tower in towers_of(model))):
        text.attn_mask, image.attn_mask = None, torch.full((17, 17), float("-inf")).triu_(1)
        text.mlp.requires_grad_(True)
        image.mlp.requires_grad_(True)


CHANGES = (an_attention_of_the_block, layers_without_bias, a_block_less, a_block_more, other_masks,
           all_weights, layer_norms, wrapped_layers, parametrised_weights, another_attention, another_mlp,
           another_activation, another_block, a_hook)


def changed(change, model, trainable=True):
    """(towers over a copy, and a plain copy, both changed alike)."""
    torch.manual_seed(1)
    towers = Towers(model, trainable=trainable)
    change(towers.model)
    torch.manual_seed(1)
    plain = copy.deepcopy(model)
    change(plain)
    towers.model.eval()
    return towers, plain.eval()


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def plain_logits(model, images):
    total = 0
    for template in TEMPLATES:
        total = total + F.normalize(model.encode_text(clip.tokenize([template.format(name) for name in NAMES])), dim=-1)
    return model.logit_scale.exp() * F.normalize(model.encode_image(images), dim=-1) @ F.normalize(total, dim=-1).T


def assert_same_gradients(ours, plain, ours_of, plain_of):
    assert list(ours_of) == list(plain_of) and ours_of
    torch.testing.assert_close(ours, plain, rtol=TOLERANCE, atol=TOLERANCE)
    found, expected = (torch.autograd.grad(loss, list(named.values()))
                       for loss, named in ((ours, ours_of), (plain, plain_of)))
    largest = max(gradient.norm() for gradient in expected)
    for name, one, other in zip(ours_of, found, expected):
        # some are small sums of large numbers; those of key biases are 0 but for rounding
        assert (one - other).norm() <= TOLERANCE * max(other.norm(), 0.1 * largest), name


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_features_and_gradients_are_those_of_openais_model(change, small):
    before = copy.deepcopy(small.state_dict())
    towers, plain = changed(change, small)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    text = towers.encode_classnames(NAMES, TEMPLATES)
    ours = F.cross_entropy(towers.cosine_logits(towers.encode_image(images), text), labels)
    assert_same_gradients(ours, F.cross_entropy(plain_logits(plain, images), labels), trained(towers.model),
                          trained(plain))
    with torch.no_grad():
        assert not torch.allclose(ours, F.cross_entropy(plain_logits(small, images), labels)) or change in (
            all_weights, layer_norms)
    assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())
    assert not any(p.requires_grad for p in small.parameters())


@pytest.mark.parametrize("change", [all_weights, another_block], ids=lambda change: change.__name__)
def test_prompts_within_changed_towers(change, small):
    """Context, deep text prompts and visual prompts, written plainly around the same blocks."""
    towers, plain = changed(change, small)
    ctx, deep, visual = (nn.Parameter(torch.randn(*shape) / 8) for shape in ((2, 128), (2, 128), (2, 3, 64)))
    images = torch.randn(2, 3, 32, 32)
    prompts = ClassPrompts(towers.text, NAMES, 2)(ctx)
    ours = (towers.text.encode(prompts, {1: deep})[0].square().sum()
            + towers.image.encode(towers.image.embed(images), visual).square().sum())

    tokens = clip.tokenize([f"x x {name}." for name in NAMES])
    x = plain.token_embedding(tokens)
    x = torch.cat([x[:, :1], ctx.expand(3, -1, -1), x[:, 3:]], dim=1) + plain.positional_embedding
    for layer, block in enumerate(plain.transformer.resblocks):
        if layer == 1:
            x = torch.cat([x[:, :1], deep.expand(3, -1, -1), x[:, 3:]], dim=1)
        x = block(x.transpose(0, 1)).transpose(0, 1)
    text = plain.ln_final(x)[torch.arange(3), tokens.argmax(dim=1)] @ plain.text_projection
    y = plain.visual.conv1(images).flatten(2).transpose(1, 2)
    y = torch.cat([plain.visual.class_embedding.expand(2, 1, -1), y], dim=1) + plain.visual.positional_embedding
    y = plain.visual.ln_pre(torch.cat([y, visual[0].expand(2, -1, -1)], dim=1))
    for layer, block in enumerate(plain.visual.transformer.resblocks):
        if layer == 1:
            y = torch.cat([y[:, :-3], visual[1].expand(2, -1, -1)], dim=1)
        y = block(y.transpose(0, 1)).transpose(0, 1)
    image = plain.visual.ln_post(y[:, 0]) @ plain.visual.proj

    learned = {"ctx": ctx, "deep": deep, "visual": visual}
    assert_same_gradients(ours, text.square().sum() + image.square().sum(),
                          learned | {n: p for n, p in trained(towers.model).items() if n != "logit_scale"},
                          learned | {n: p for n, p in trained(plain).items() if n != "logit_scale"})


@pytest.mark.parametrize("change", [wrapped_layers, another_block], ids=lambda change: change.__name__)
def test_classes_in_chunks_give_the_same_also_with_dropout(change, small):
    """A pass that runs its classes in chunks computes them again in the backward pass, with the same dropout."""
    towers, _ = changed(change, small)
    prompts = ClassPrompts(towers.text, [f"thing {'of ' * (n % 3)}{n}" for n in range(9)], 2)
    ctx = torch.randn(2, 128)
    gradients = []
    for limit in (None, 400_000 if change is wrapped_layers else 20_000_000):
        towers.text.activation_bytes = limit
        lengths = [77] * 9 if change is another_block else [4] * 9
        chunks = chunks_of(towers.text, list(range(9)), lengths, 1, 0, KEPT_PER_TOKEN_TRAINED)
        assert (len(chunks) > 1) == (limit is not None)
        loss = towers.text.encode(prompts(ctx)).square().sum()
        gradients.append(torch.autograd.grad(loss, [p for n, p in trained(towers.model).items() if "visual" not in n]))
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    if change is wrapped_layers:
        towers.model.train()  # dropout: backward through a second, other draw would be another function's gradient
        towers.text.activation_bytes = 400_000
        weight = towers.model.transformer.resblocks[0].mlp.c_fc.up
        step = torch.randn_like(weight)

        def loss_at(size):
            torch.manual_seed(5)
            with torch.no_grad():
                weight.add_(size * step)
            value = towers.text.encode(prompts(ctx)).double().square().sum()
            with torch.no_grad():
                weight.sub_(size * step)
            return value

        slope, = torch.autograd.grad(loss_at(0), weight)
        with torch.enable_grad():
            numeric = (loss_at(1e-3) - loss_at(-1e-3)) / 2e-3
        assert (slope * step).sum().item() == pytest.approx(numeric.item(), rel=2e-2)


@pytest.mark.parametrize("change", [all_weights, another_block], ids=lambda change: change.__name__)
@pytest.mark.parametrize("number", [1, 3])
def test_ranks_divide_towers_that_are_trained(change, number, small, group, monkeypatch):  # noqa: F811
    monkeypatch.setattr("prompting.text.WORTH_DIVIDING", {"cpu": 0})
    images = torch.randn(number, 3, 32, 32)

    _, plain = changed(change, small)

    def gradients(ranks):
        towers = Towers(plain, trainable=True, ranks=ranks)  # a copy, which wants no gradients yet
        for p, source in zip(towers.model.parameters(), plain.parameters()):
            p.requires_grad_(source.requires_grad)
        text = towers.encode_classnames(NAMES, TEMPLATES)
        loss = towers.cosine_logits(towers.encode_image(images), text).square().mean()
        return Precision("fp32", torch.device("cpu"), ranks).gradients(loss, list(trained(towers.model).values()))

    expected = gradients(Ranks())
    found = group.run(lambda rank: gradients(Ranks(rank, group.size)))
    assert len(expected) > 2 and max(gradient.abs().max() for gradient in expected) > 0.1
    for of_rank in found:
        for one, other in zip(of_rank, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


class OneOf:
    """A rank of three, which computes its own rows alone."""

    world_size = 3

    def __init__(self, rank):
        self.rank = rank

    def divide(self, n, compute, dim=0):
        return compute(slice(self.rank, self.rank + 1))

    def all_reduce_mean(self, tensors):
        return tensors


def test_dropout_differs_between_ranks_and_leaves_their_generators_alike(small, monkeypatch):
    """A method may draw numbers by itself, which must be those of all ranks: every rank computes the same loss."""
    monkeypatch.setattr("prompting.text.WORTH_DIVIDING", {"cpu": 0})
    image = torch.randn(1, 3, 32, 32).expand(3, -1, -1, -1)

    def rank_of(number, training):
        towers, _ = changed(wrapped_layers, small)
        towers.text.ranks = towers.image.ranks = OneOf(number)
        towers.model.train(training)
        torch.manual_seed(5)
        with torch.no_grad():
            features = [towers.encode_image(image), towers.encode_image(image), towers.text.encode_texts(["cat"] * 3)]
        return features, torch.rand(1)

    found = [rank_of(number, True) for number in range(3)]
    assert found[0][1] == found[1][1] == found[2][1]  # what comes next of each rank's generator
    for part in range(3):
        assert not any(torch.allclose(found[0][0][part], found[rank][0][part]) for rank in (1, 2))
    assert not torch.allclose(found[0][0][0], found[0][0][1])  # another draw at each pass
    torch.manual_seed(5)
    untouched = torch.rand(1)
    for rank in range(3):
        features, after = rank_of(rank, False)
        assert after == untouched and torch.allclose(features[0], features[1])


# ---- what a module makes of them ----
class Prompted(PromptedCLIP):
    def __init__(self, towers):
        super().__init__(towers)
        self.prompt, self.calls = Prompt(torch.randn(2, towers.text.width) / 8), 0
        self.register_buffer("shift", torch.zeros(towers.embed_dim))
        self.class_prompts = ClassPrompts(towers.text, NAMES, 2)

    def encode_classes(self):
        self.calls += 1
        return self.towers.text.encode(self.class_prompts(self.prompt.ctx))[0] + self.shift


def test_trainable_towers_are_a_part_of_the_module_and_frozen_ones_are_not(small):
    frozen, own = Prompted(Towers(small)), Prompted(Towers(small, trainable=True))
    assert [name for name, _ in frozen.named_parameters()] == ["prompt.ctx"]
    assert own.clip is own.towers.model is not small
    own.clip.visual.ln_post.requires_grad_(True)
    assert list(trained(own)) == ["clip.visual.ln_post.weight", "clip.visual.ln_post.bias", "prompt.ctx"]
    assert not small.visual.ln_post.weight.requires_grad
    with pytest.raises(PromptingError, match="cannot be in half precision; use PREC amp, bf16 or fp32"):
        Towers(small, half=True, trainable=True)


@pytest.mark.parametrize("change", [
    lambda model: model.prompt.ctx.add_(1.0), lambda model: model.clip.transformer.resblocks[0].ln_1.weight.mul_(1.5),
    lambda model: model.clip.token_embedding.weight.mul_(0.5),
    lambda model: setattr(model, "shift", torch.full((48,), 0.5)),  # another tensor in a buffer's place
    lambda model: setattr(model.prompt, "ctx", nn.Parameter(torch.randn(2, 128)))])
def test_class_features_are_kept_until_something_changes(change, small):
    model = Prompted(Towers(small, trainable=True)).eval()
    with torch.no_grad():
        first = model.class_features()
        assert model.class_features() is first and model.calls == 1
        change(model)
        second = model.class_features()
        assert model.calls == 2 and not torch.allclose(first, second)
        torch.testing.assert_close(second, model.encode_classes())
        model.forget_class_features()
        model.class_features()
        assert model.calls == 4
    model.class_features()  # with gradients nothing is kept
    assert model.calls == 5


def test_frozen_text_is_live_where_the_text_tower_is_trained(small):
    towers = Towers(small, trainable=True)
    model = FrozenCLIP(towers, NAMES, TEMPLATES)
    assert model.encode_classes() is model.frozen_text_features and not model.encode_classes().requires_grad
    towers.model.visual.requires_grad_(True)
    assert model.encode_classes() is model.frozen_text_features  # of the image tower the text is not
    towers.model.ln_final.requires_grad_(True)
    assert model.encode_classes().requires_grad
    torch.testing.assert_close(model.encode_classes(), model.frozen_text_features)
    with torch.no_grad():
        towers.model.ln_final.weight.mul_(torch.linspace(0.5, 1.5, 128))
        assert not torch.allclose(model.encode_classes(), model.frozen_text_features, atol=1e-3)
        assert not towers.encode_classnames(NAMES, TEMPLATES).requires_grad
    torch.testing.assert_close(FrozenCLIP(Towers(small), NAMES, TEMPLATES).encode_classes(), model.frozen_text_features)


def test_frozen_text_is_live_where_a_hook_brings_in_what_is_trained(small):
    towers = Towers(small, trainable=True)
    model = FrozenCLIP(towers, NAMES, TEMPLATES)
    model.adapter = nn.Linear(128, 128)  # no part of the CLIP
    towers.model.transformer.resblocks[1].register_forward_hook(lambda module, args, out: out + model.adapter(out))
    features = model.encode_classes()
    assert not torch.allclose(features, model.frozen_text_features)
    assert torch.autograd.grad(features.square().sum() + features.sum(), model.adapter.weight)[0].abs().max() > 0


def around(model):
    old = model.visual.forward
    model.visual.forward = lambda images: 0.5 * old(images)


@pytest.mark.parametrize(("change", "message"), [
    (lambda model: setattr(model, "transformer", nn.Sequential(model.transformer)), "the transformer of the CLIP was"),
    (lambda model: setattr(model, "visual", nn.Sequential(model.visual)), "the visual or visual.transformer of the"),
    (lambda model: setattr(model.visual, "transformer", copy.deepcopy(model.visual.transformer)), "the visual or"),
    (around, "a VisionTransformer of the CLIP has hooks or a forward of its own")])
def test_a_module_that_would_never_be_called_is_refused(change, message, small):
    towers = Towers(small, trainable=True)
    change(towers.model)

    def features():
        towers.encode_image(torch.randn(1, 3, 32, 32))
        towers.encode_classnames(NAMES, TEMPLATES)

    with pytest.raises(PromptingError, match=f"{message}.*would never be called"):
        features()


@pytest.mark.parametrize("place", ["", "visual", "transformer", "visual.transformer", "visual.transformer.resblocks"])
def test_a_hook_that_would_never_be_called_is_refused(place, small):
    towers = Towers(small, trainable=True)
    towers.model.get_submodule(place).register_forward_hook(lambda module, args, output: output)
    with pytest.raises(PromptingError, match="hooks or a forward of its own, which would never be called; put them on"):
        (towers.encode_image(torch.randn(1, 3, 32, 32)) if place.startswith("visual") else
         towers.encode_classnames(NAMES, TEMPLATES))


def test_a_clip_with_replaced_modules_may_be_handed_in(small):
    model = copy.deepcopy(small)
    wrapped_layers(model)
    model.eval().requires_grad_(False)
    images = torch.randn(2, 3, 32, 32)
    towers = Towers(model)
    assert towers.model is model
    torch.testing.assert_close(towers.cosine_logits(towers.encode_image(images),
                                                    towers.encode_classnames(NAMES, TEMPLATES)),
                               plain_logits(model, images), rtol=1e-5, atol=1e-5)


# ---- patch tokens ----
@pytest.mark.parametrize("change", [all_weights, another_block], ids=lambda change: change.__name__)
def test_features_of_all_tokens(change, small):
    towers, plain = changed(change, small)
    images = torch.randn(3, 3, 32, 32)
    tokens = towers.encode_image_tokens(images)
    visual = plain.visual
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(3, 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.transformer(visual.ln_pre(x).transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(tokens, visual.ln_post(x) @ visual.proj, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens[:, 0], towers.encode_image(images), rtol=1e-5, atol=1e-5)
    prompted = towers.image.encode_tokens(towers.image.embed(images), torch.randn(2, 3, 64))
    assert prompted.shape == tokens.shape == (3, 17, 48) and not torch.allclose(prompted, tokens, atol=1e-3)
