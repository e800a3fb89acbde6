"""The promptable towers against the plain formulation, the backbone loader, episodes and meta-gradients."""
import copy
import hashlib
import random
from collections import Counter

import clip as clip_package
import pytest
import torch
from clip import clip
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn import functional as F

import tiny_clip
from harness import stacked
from prompting import ClassPrompts, PromptingError, Towers, load_clip, templates
from prompting.blocks import differentiable_attention
from prompting.episodes import halve_classes, meta_gradient, splittable_order
from prompting.templates import IMAGENET_ALL, ensemble_of, frozen_templates_of, template_of

NAMES = ["dog", "alarm_clock", "Boeing 737-200", "a"]


# ---- plain formulations, written down once more ----
def plain_text(model, ctx, names, position, deep=None):
    """77 tokens per class through OpenAI's own blocks; ctx (C, n, W)."""
    n, rows, eots = ctx.shape[1], [], []
    for context, name in zip(ctx, names):
        name = name.replace("_", " ")
        tokens = clip.tokenize(" ".join(["X"] * n) + f" {name}.")[0]
        embedded = model.token_embedding(tokens)
        length = len(clip._tokenizer.encode(name))
        sos, words, rest = embedded[:1], embedded[1 + n:1 + n + length], embedded[1 + n + length:]
        half = {"end": n, "middle": n // 2, "front": 0}[position]
        rows.append(torch.cat([sos, context[:half], words, context[half:], rest]))
        eots.append(tokens.argmax())
    x = torch.stack(rows) + model.positional_embedding
    for layer, block in enumerate(model.transformer.resblocks):
        if deep and layer in deep:
            x = torch.cat([x[:, :1], deep[layer].expand(len(x), -1, -1), x[:, 1 + n:]], dim=1)
        x = block(x.permute(1, 0, 2)).permute(1, 0, 2)
    x = model.ln_final(x)
    return x[torch.arange(len(x)), torch.stack(eots)] @ model.text_projection


def plain_image(model, images, prompts):
    visual = model.visual
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    patches = x.shape[1]
    if len(prompts):
        x = torch.cat([x, prompts[0].expand(len(x), -1, -1)], dim=1)
    x = visual.ln_pre(x)
    for layer, block in enumerate(visual.transformer.resblocks):
        if 1 <= layer < len(prompts):
            x = torch.cat([x[:, :patches], prompts[layer].expand(len(x), -1, -1)], dim=1)
        x = block(x.permute(1, 0, 2)).permute(1, 0, 2)
    return visual.ln_post(x[:, 0]) @ visual.proj


def same(ours, theirs, tolerance=1e-4):
    scale = theirs.abs().max()
    assert (ours - theirs).abs().max() <= tolerance * scale


# ---- text tower ----
@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("kind", ["shared", "class-specific", "per image"])
@pytest.mark.parametrize("n_ctx", [1, 3])
def test_text_features_and_gradients_equal_the_plain_tower(towers, clip_model, position, kind, n_ctx):
    torch.manual_seed(0)
    shape = {"shared": (n_ctx, 128), "class-specific": (len(NAMES), 1, n_ctx, 128), "per image": (3, n_ctx, 128)}[kind]
    ctx = (torch.randn(shape) * 0.1).requires_grad_()
    ours = towers.text.encode(ClassPrompts(towers.text, NAMES, n_ctx, position)(ctx))
    if kind == "per image":
        plain = torch.stack([plain_text(clip_model, c.expand(len(NAMES), -1, -1), NAMES, position) for c in ctx])
    else:
        own = ctx[:, 0] if kind == "class-specific" else ctx.expand(len(NAMES), -1, -1)
        plain = plain_text(clip_model, own, NAMES, position)[None]
    same(ours, plain)
    weights = torch.randn_like(plain)
    same(torch.autograd.grad((ours * weights).sum(), ctx)[0], torch.autograd.grad((plain * weights).sum(), ctx)[0])


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_deep_text_prompts(towers, clip_model, depth):
    torch.manual_seed(0)
    ctx = torch.randn(depth, 2, 128) * 0.1
    deep = {layer: ctx[layer] for layer in range(1, depth)}
    plain = plain_text(clip_model, ctx[0].expand(len(NAMES), -1, -1), NAMES, "end", deep)
    prompts = ClassPrompts(towers.text, NAMES, 2)
    same(towers.text.encode(prompts(ctx[0]), deep)[0], plain)
    some = torch.tensor([3, 1])
    same(towers.text.encode(prompts(ctx[0], some), deep)[0], plain[some])


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_punctuation_at_the_end_of_a_name_is_tokenised_with_the_full_stop(towers, clip_model, position):
    names, ctx = ["foo (bar)", "St.", "C++"], torch.randn(2, 128) * 0.1
    ours = towers.text.encode(ClassPrompts(towers.text, names, 2, position)(ctx))[0]
    same(ours, plain_text(clip_model, ctx.expand(3, -1, -1), names, position))


def test_fixed_words_between_context_and_name(towers, clip_model):
    ctx = towers.text.embed_words("a photo")
    ours = towers.text.encode(ClassPrompts(towers.text, ["dog"], 2, between="of a")(ctx))[0]
    same(ours, clip_model.encode_text(clip.tokenize("a photo of a dog.")))


def test_no_token_behind_the_longest_end_of_text_is_computed(towers):
    prompts = ClassPrompts(towers.text, ["dog", "water lilly"], 4)(torch.zeros(4, 128))
    assert prompts.prefix.shape[1] == 5
    assert prompts.suffix.shape[2] == max(prompts.eot) + 1 - 5


def test_a_class_name_beyond_the_context_is_an_error(towers):
    with pytest.raises(PromptingError, match="too long"):
        ClassPrompts(towers.text, ["dog", "very " * 80 + "long"], 4)
    with pytest.raises(PromptingError, match="77"):
        towers.encode_classnames(["very " * 80 + "long"], ["a photo of a {}."])


# ---- image tower ----
@pytest.mark.parametrize("depth", [0, 1, 3, 4])
def test_image_features_and_gradients_equal_the_plain_tower(towers, clip_model, depth):
    torch.manual_seed(0)
    images, prompts = torch.randn(3, 3, 32, 32), (torch.randn(depth, 2, 128) * 0.1).requires_grad_()
    ours, plain = towers.image.encode(towers.image.embed(images), prompts), plain_image(clip_model, images, prompts)
    same(ours, plain)
    if depth:
        weights = torch.randn_like(plain)
        same(torch.autograd.grad((ours * weights).sum(), prompts)[0],
             torch.autograd.grad((plain * weights).sum(), prompts)[0])


# ---- backbones ----
def test_files_of_either_kind_give_the_same_model(tmp_path, clip_file, clip_model):
    save_file(tiny_clip.state_dict(), tmp_path / "tiny.safetensors")
    torch.save({"state_dict": tiny_clip.state_dict()}, tmp_path / "wrapped.pt")
    for name in ("tiny.safetensors", "wrapped.pt"):
        loaded = load_clip(str(tmp_path / name)).state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in clip_model.state_dict().items())


def test_weights_are_not_rounded(tmp_path):
    weights = tiny_clip.state_dict()
    weights["visual.proj"] += 1e-6
    save_file(weights, tmp_path / "exact.safetensors")
    assert torch.equal(load_clip(str(tmp_path / "exact.safetensors")).visual.proj, weights["visual.proj"])


def archive(model, path):
    """A TorchScript archive as OpenAI publishes them."""
    traced = torch.jit.trace(model, (torch.zeros(1, 3, 32, 32), clip.tokenize("a")), check_trace=False)
    torch.jit.save(traced, str(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.filterwarnings("ignore")
def test_published_archives_load_once_and_others_never(tmp_path, monkeypatch, clip_model):
    path = tmp_path / "ViT-tiny.pt"
    digest = archive(copy.deepcopy(clip_model), path)
    with pytest.raises(PromptingError, match="without running code"):
        load_clip(str(path))
    monkeypatch.setitem(clip._MODELS, "ViT-tiny", f"https://127.0.0.1:9/{digest}/ViT-tiny.pt")
    loaded = load_clip("ViT-tiny", cache=str(tmp_path))
    assert torch.equal(loaded.visual.proj, clip_model.visual.proj)
    assert (tmp_path / f"{digest}.safetensors").is_file()
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: pytest.fail("loaded a second time"))
    assert torch.equal(load_clip(str(path), cache=str(tmp_path)).visual.proj, clip_model.visual.proj)
    path.unlink()
    assert torch.equal(load_clip("ViT-tiny", cache=str(tmp_path)).visual.proj, clip_model.visual.proj)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return open, (str(marker), "w")

    torch.save({"text_projection": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(PromptingError, match="without running code"):
        load_clip(str(tmp_path / "evil.pt"))
    assert not marker.exists()


@pytest.mark.parametrize("content", [{}, {"weight": torch.zeros(3)}, [1, 2], "broken"])
def test_what_is_not_a_clip_is_said_so(tmp_path, content):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(PromptingError, match="other.pt"):
        load_clip(str(path))


def test_unknown_backbone_and_failed_download(tmp_path, monkeypatch):
    with pytest.raises(PromptingError, match="ViT-B/16"):
        load_clip("ViT-Z/99")
    monkeypatch.setitem(clip._MODELS, "ViT-B/16", "http://127.0.0.1:9/0/ViT-B-16.pt")
    with pytest.raises(PromptingError, match="download"):
        load_clip("ViT-B/16", cache=str(tmp_path))


def test_the_given_model_is_never_changed(clip_model):
    model = copy.deepcopy(clip_model).requires_grad_(True).train()
    before = copy.deepcopy(model.state_dict())
    towers = Towers(model, half=True)
    assert towers.model is not model and towers.model.dtype == torch.float16
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) and v.dtype == before[k].dtype for k, v in model.state_dict().items())
    assert Towers(clip_model).model is clip_model  # one copy serves many runs


def test_resnets_serve_what_does_not_prompt_images():
    torch.manual_seed(0)
    model = clip_package.model.CLIP(64, 64, (1, 1, 1, 1), 16, None, 77, 49408, 128, 2, 2)
    loaded = clip_package.model.build_model(model.state_dict()).float()
    towers = Towers(loaded)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        same(towers.encode_image(images), towers.model.encode_image(images))
    with pytest.raises(PromptingError, match="ResNet"):
        towers.promptable_image("MetaPrompt")


# ---- templates ----
def test_templates():
    assert len(set(IMAGENET_ALL)) == 80 and len(ensemble_of("ImageNet")) == 7 and len(ensemble_of("EuroSAT")) == 8
    assert template_of("EuroSAT") == "a centered satellite photo of {}."
    assert frozen_templates_of("PACS") == ["a photo of a {}"] and len(frozen_templates_of("ImageNetA")) == 8
    assert all(t.count("{}") == 1 for t in IMAGENET_ALL)
    published = [value for name, value in vars(templates).items() if name.endswith("TEMPLATES")]
    for each in (*published, IMAGENET_ALL, templates.IMAGENET_SELECT):
        templates.check_templates(list(each.values() if isinstance(each, dict) else each), "published")
    assert templates.fill("a {} and a {}.", "{cat}") == "a {cat} and a {cat}."
    assert [templates.leading_words(t) for t in ("a type of {}.", "{} texture.", "{}", "the {} ")] == [
        "a type of", None, "", "the"]
    assert templates.tcp_words_of("UCF101", ["a {} on an X-ray."]) == ("", " on an X-ray.")
    with pytest.raises(PromptingError, match="must be a list"):
        templates.check_templates("a {}.", "here")


def test_frozen_text_of_several_templates(towers, clip_model):
    names, templates = ["dog", "cat"], ["a photo of a {}.", "art of the {}."]
    texts = [clip.tokenize([t.format(n) for n in names]) for t in templates]
    parts = [F.normalize(clip_model.encode_text(text), dim=-1) for text in texts]
    same(towers.encode_classnames(names, templates), F.normalize(sum(parts) / 2, dim=-1))


# ---- episodes ----
@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.integers(2, 9), st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_every_batch_can_be_split_or_the_data_is_refused(groups, batch_size, seed):
    rng = random.Random(seed)
    order = rng.sample(range(len(groups)), len(groups))
    size = min(batch_size, len(groups))
    batches = len(groups) // size
    possible = len(groups) - Counter(groups).most_common(1)[0][1] >= batches
    if not possible:
        with pytest.raises(PromptingError, match="at least two"):
            splittable_order(order, groups, batch_size, rng)
        return
    repaired = splittable_order(order, groups, batch_size, rng)
    assert sorted(repaired) == sorted(order)
    for b in range(batches):
        before, after = order[b * size:(b + 1) * size], repaired[b * size:(b + 1) * size]
        assert len({groups[i] for i in after}) >= 2
        if all(len({groups[i] for i in order[k * size:(k + 1) * size]}) >= 2 for k in range(batches)):
            assert before == after  # nothing moves without need


@given(st.integers(4, 30), st.data())
@settings(max_examples=60, deadline=None)
def test_halves_have_images_on_both_sides(n_cls, data):
    labels = data.draw(st.lists(st.integers(0, n_cls - 1), min_size=2, max_size=12).filter(lambda x: len(set(x)) > 1))
    order = halve_classes(labels, n_cls, random.Random(data.draw(st.integers(0, 99))))
    half = (n_cls + 1) // 2
    assert sorted(order) == list(range(n_cls))
    assert set(order[:half]) & set(labels) and set(order[half:]) & set(labels)


@pytest.mark.parametrize("order", [1, 2])
def test_meta_gradient_against_explicit_copies(order):
    """Three parts of unequal size of a small nonlinear regression, in float64."""
    torch.manual_seed(0)
    counts, lr = [2, 5, 3], 0.1
    data = [(torch.randn(n, 4, dtype=torch.float64), torch.randn(n, dtype=torch.float64)) for n in counts]
    start = torch.randn(4, dtype=torch.float64)

    def loss(phi, parts):
        x, y = (torch.cat(t) for t in zip(*(data[i] for i in parts)))
        return ((x @ phi).tanh() - y).square().mean()

    expected, held = torch.zeros(4, dtype=torch.float64), []
    for i in range(3):
        rest = [j for j in range(3) if j != i]

        def through(phi, i=i, rest=rest):
            inner = torch.autograd.functional.jacobian(lambda p: loss(p, rest), phi, create_graph=True)
            return loss(phi - lr * inner, [i])

        if order == 2:
            expected += torch.autograd.functional.jacobian(through, start)
        else:
            moved = start - lr * torch.autograd.functional.jacobian(lambda p: loss(p, rest), start)
            expected += torch.autograd.functional.jacobian(lambda p: loss(p, [i]), moved)
        held.append(through(start.clone()))
    phi = start.clone().requires_grad_()
    parts = stacked([lambda p, i=i: loss(p, [i]) for i in range(3)])
    total, held_out = meta_gradient(phi, parts, torch.tensor(counts), lr, order)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(held_out, torch.stack(held))
    assert phi.grad is None and torch.equal(phi.detach(), start)


def test_second_order_goes_through_both_towers(towers):
    """The meta-gradient of order 2 by finite differences of the first-order quantity it differentiates."""
    torch.manual_seed(0)
    embedded = towers.image.embed(torch.randn(4, 3, 32, 32))
    text = towers.encode_classnames(["dog", "cat"], ["a photo of a {}"])
    label = torch.tensor([0, 1, 0, 1])
    phi = (torch.randn(2, 2, 128) * 0.02).requires_grad_()

    def part(rows):
        def loss(p):
            logits = towers.cosine_logits(towers.image.encode(embedded[rows], p), text)
            return F.cross_entropy(logits, label[rows])
        return loss

    parts = [part(slice(0, 2)), part(slice(2, 4))]
    with differentiable_attention():
        total, _ = meta_gradient(phi, stacked(parts), torch.tensor([2, 2]), 0.05, order=2)

    def objective(p):
        p = p.detach().requires_grad_()
        inner = [torch.autograd.grad(q(p), p)[0] for q in parts]
        return (parts[0](p - 0.05 * inner[1]) + parts[1](p - 0.05 * inner[0])).item()

    direction = total / total.norm()
    step = 0.02
    slope = (objective(phi + step * direction) - objective(phi - step * direction)) / (2 * step)
    assert slope == pytest.approx(total.norm().item(), rel=2e-2)
    first = meta_gradient(phi, stacked(parts), torch.tensor([2, 2]), 0.05, order=1)[0]
    assert (first - total).norm() > 1e-3 * total.norm()  # the second-order term is there
