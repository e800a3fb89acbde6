"""The parts of prompting/ one by one, at their edges: names and digests of backbones, precisions, templates, episodes,
pieces of a text pass."""
import copy
import hashlib
import os
import pickle
import random
import time
import types
import warnings
from collections import Counter

import pytest
import torch
from clip import clip
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

import tiny_clip
from harness import stacked
from prompting import ClassPrompts, PromptingError, Towers, backbone, load_clip, memory, normalize, templates, text_rows
from prompting import weights as weight_files
from prompting.adapter import Adapter
from prompting.blocks import Block, differentiable_attention
from prompting.cache import CacheCLIP
from prompting.class_prompts import Prompts
from prompting.consistency import cosine_distance, diverse_text_features, l1_distance
from prompting.episodes import (
    halve_classes,
    meta_gradient,
    parts_of_domains,
    parts_of_halves,
    plain_gradient,
    splittable_order,
)
from prompting.model import Prompt, PromptedCLIP, random_vectors
from prompting.precision import GradientOverflow, Precision, all_finite
from prompting.text import TextTower
from prompting.text_chunks import KEPT_PER_KEY, KEPT_PER_TOKEN, chunks_of
from prompting.text_layout import buckets_of

OPENAI = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"  # of ViT-B/16
NOWHERE = "https://127.0.0.1:9"


# ---- backbones: names, digests, facts ----
def test_names_that_are_known():
    published = [name for name in clip.available_models() if not name.endswith(".pt")]  # other tests add files
    assert weight_files.known_names() == ["tiny", *published]


def test_a_digest_is_of_the_content(tmp_path, clip_file):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"x" * (2**20 + 5))
    assert weight_files.weights_digest(str(path)) == hashlib.sha256(b"x" * (2**20 + 5)).hexdigest()
    path.write_bytes(b"y" * (2**20 + 6))
    assert weight_files.weights_digest(str(path)) == hashlib.sha256(b"y" * (2**20 + 6)).hexdigest()
    shipped = weight_files.SHIPPED["tiny"]
    with open(shipped, "rb") as file:
        assert weight_files.weights_digest("tiny") == hashlib.sha256(file.read()).hexdigest()
    assert weight_files.weights_digest("ViT-B/16") == OPENAI
    assert weight_files.weights_digest("ViT-Z/99") is None
    assert load_clip(clip_file).weights_digest == weight_files.weights_digest(clip_file)


def test_files_of_one_size_and_time_have_digests_of_their_own(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, ns=(10**9, 10**9))
    assert weight_files.weights_digest(str(tmp_path / "a")) == hashlib.sha256(b"a").hexdigest()
    assert weight_files.weights_digest(str(tmp_path / "b")) == hashlib.sha256(b"b").hexdigest()
    time.sleep(0.01)  # a disk's clock has steps
    (tmp_path / "a").write_text("c")
    os.utime(tmp_path / "a", ns=(10**9, 10**9))  # set back; its time of change is not
    assert weight_files.weights_digest(str(tmp_path / "a")) == hashlib.sha256(b"c").hexdigest()


def test_a_digest_is_not_read_twice(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"x")
    first = weight_files.weights_digest(str(path))
    monkeypatch.setattr(weight_files.hashlib, "sha256", lambda: pytest.fail("read again"))
    assert weight_files.weights_digest(str(path)) == first
    monkeypatch.undo()
    os.utime(path, ns=(1, 1))  # as large as before, but changed
    path.write_bytes(b"z")
    assert weight_files.weights_digest(str(path)) == hashlib.sha256(b"z").hexdigest()


def test_what_is_known_of_a_vit_and_of_a_resnet(clip_file, clip_model, resnet_file):
    assert backbone.describe_backbone(clip_model, "mine") == {
        "name": "mine", "digest": weight_files.weights_digest(clip_file), "published": False, "activation": "QuickGELU",
        "heads": {"text": 2, "image": 2}}
    resnet = load_clip(resnet_file)  # its image tower has 32 * 16 channels
    assert backbone.describe_backbone(resnet)["heads"] == {"text": 1, "image": 8}
    resnet.weights_digest = OPENAI
    assert backbone.describe_backbone(resnet)["published"] and backbone.describe_backbone(resnet)["name"] == ""
    for name, model, image in ((clip_file, clip_model, 2), (resnet_file, load_clip(resnet_file), 8)):
        assert backbone.describe_weights(name) == backbone.describe_backbone(model, name)
        assert backbone.describe_weights(name)["heads"]["image"] == image
    assert backbone.describe_weights("tiny")["heads"] == {"text": 2, "image": 2}


def test_a_clip_without_a_digest_is_known_by_its_tensors(clip_model):
    model = copy.deepcopy(clip_model)
    del model.weights_digest
    digest = backbone.describe_backbone(model)["digest"]
    assert len(digest) == 64 and digest != clip_model.weights_digest
    changed = copy.deepcopy(model)
    changed.visual.proj.data[0, 0] += 1
    renamed = types.SimpleNamespace(state_dict=lambda: {f"x{k}": v for k, v in model.state_dict().items()})
    reshaped = types.SimpleNamespace(state_dict=lambda: {k: v[None] for k, v in model.state_dict().items()})
    digests = {backbone._tensors_digest(each) for each in (model, changed, renamed, reshaped)}
    assert len(digests) == 4 and digest in digests
    assert backbone._tensors_digest(types.SimpleNamespace(
        state_dict=lambda: dict(reversed(model.state_dict().items())))) == digest


def test_what_is_not_known_of_weights_is_none(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    (tmp_path / "broken.pt").write_text("broken")
    for name in ("other.pt", "broken.pt"):
        facts = backbone.describe_weights(str(tmp_path / name))
        assert facts["activation"] is None and facts["heads"] is None and not facts["published"]
    facts = backbone.describe_weights("ViT-B/16")
    assert facts == {"name": "ViT-B/16", "digest": OPENAI, "published": True, "activation": None, "heads": None}


def test_heads_of_another_width_are_refused(tmp_path, clip_file):
    weights = tiny_clip.state_dict()
    assert backbone.tower_widths(weights) == {"text": 128, "image": 128}
    for content in ({}, [], {"ln_final.weight": torch.zeros(64)}, {"ln_final.weight": "x", "visual.proj": 1},
                    {**weights, "ln_final.weight": torch.tensor(3.0)}):
        assert backbone.tower_widths(content) == {}
    narrow = {"ln_final.weight": torch.zeros(96), "visual.proj": torch.zeros(1, 1),
              "visual.conv1.weight": torch.zeros(128, 1)}
    torch.save(narrow, tmp_path / "narrow.pt")
    message = "narrow.pt: its text tower is 96 wide, which cannot be divided into heads of 64.*multiple of 64$"
    with pytest.raises(PromptingError, match=message):
        backbone.describe_weights(str(tmp_path / "narrow.pt"))
    wide = tiny_clip.state_dict()
    wide["visual.conv1.weight"] = torch.zeros(100, 3, 8, 8)
    torch.save(wide, tmp_path / "wide.pt")
    with pytest.raises(PromptingError, match=r"wide.pt: its image tower is 100 wide"):
        load_clip(str(tmp_path / "wide.pt"))


def test_the_note_on_weights_is_for_files_that_are_not_published(tmp_path, clip_file, clip_model):
    facts = backbone.describe_backbone(clip_model, clip_file)
    assert backbone.unpublished_note(facts) == (
        f"Backbone {clip_file} is not one of OpenAI's: computed with QuickGELU, 2 text and 2 image heads (64 wide); "
        "weights that were trained with another activation or other heads give wrong numbers")
    for other in ({"published": True}, {"heads": None}, {"name": "tiny"}, {"name": "as given"}):
        assert backbone.unpublished_note({**facts, **other}) == ""


# ---- backbones: loading ----
def test_the_shipped_clip_has_every_token():
    stored = load_file(weight_files.SHIPPED["tiny"])
    rows, values = stored["token_embedding.rows"], stored["token_embedding.values"].float()
    weight = load_clip("tiny").token_embedding.weight
    assert weight.shape == (49408, values.shape[1]) and torch.equal(weight[rows], values)
    other = torch.ones(len(weight), dtype=torch.bool)
    other[rows] = False
    assert weight[other].abs().max() <= 0.035 and weight[other].std().item() == pytest.approx(0.035 / 3 ** 0.5, 0.01)
    whole = weight_files.whole_vocabulary({**stored, "counter": torch.tensor(3), "half": torch.ones(2).half()})
    assert torch.equal(whole["token_embedding.weight"], weight)  # drawn with a fixed seed,
    drawn = hashlib.sha256(weight[other].detach().numpy().tobytes()).hexdigest()
    assert drawn == "742e54da293dc9421dc06574f38cd9c3ffe7729065451d78cd39dd8a24c8c025"  # and the same for ever
    assert whole["counter"].dtype == torch.int64 and whole["half"].dtype == torch.float32
    assert "token_embedding.rows" not in whole and "token_embedding.values" not in whole


def test_no_name_and_no_file_are_told_with_what_there_is():
    with pytest.raises(PromptingError, match="no backbone is named; give --backbone.* one of tiny, RN50, .* or a wei"):
        load_clip("")
    with pytest.raises(PromptingError, match="'gone.pt' is neither a file nor one of tiny, RN50, "):
        load_clip("gone.pt")


def test_damaged_files_are_named(tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"damaged")
    with pytest.raises(PromptingError, match=r"damaged.safetensors is not a whole safetensors file \("):
        load_clip(str(damaged))
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(PromptingError, match="cannot|without running code") as error:
        load_clip(str(tmp_path / "text.pt"))
    assert "\n" not in str(error.value)
    for content, message in (([torch.zeros(1)], "does not hold a state dict of tensors"),
                             ({"a": torch.zeros(1), "b": "text"}, "does not hold a state dict of tensors"),
                             ({"text_projection": torch.zeros(1, 1)}, r"it lacks positional_embedding")):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(PromptingError, match=message):
            load_clip(str(tmp_path / "other.pt"))
    weights = tiny_clip.state_dict()
    del weights["transformer.resblocks.1.ln_1.weight"]
    torch.save(weights, tmp_path / "lacking.pt")
    with pytest.raises(PromptingError, match=r"of a size this program knows \(") as error:
        load_clip(str(tmp_path / "lacking.pt"))
    assert "\n" not in str(error.value) and len(str(error.value)) < 120 + len(str(tmp_path)) + 120


def test_the_first_line_of_an_error_is_short():
    assert weight_files.first_line(ValueError(" \n first \n second")) == "first "
    assert weight_files.first_line(ValueError("x" * 200)) == "x" * 120
    assert weight_files.first_line(KeyError()) == "KeyError"


def test_sizes_beside_the_tensors_are_no_tensors_of_the_model(tmp_path, clip_model):
    sizes = {name: torch.tensor(value) for name, value in (("input_resolution", 32), ("context_length", 77),
                                                           ("vocab_size", 49408))}
    save_file({**tiny_clip.state_dict(), **sizes}, tmp_path / "sizes.safetensors")
    loaded = load_clip(str(tmp_path / "sizes.safetensors"))
    assert loaded.state_dict().keys() == clip_model.state_dict().keys()
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert all(p.dtype == torch.float32 for p in loaded.parameters())


@pytest.mark.filterwarnings("ignore")
def test_a_folder_that_cannot_be_written_is_no_fault(tmp_path, monkeypatch):
    weights = {"a": torch.ones(2, 3).t()}

    def load(path, map_location):
        warnings.warn("on its way out", FutureWarning, stacklevel=1)  # which nobody can do anything about
        warnings.warn("look here", UserWarning, stacklevel=1)
        return types.SimpleNamespace(state_dict=lambda: weights)

    monkeypatch.setattr(torch.jit, "load", load)
    (tmp_path / "file").write_text("")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert weight_files._read_archive("x.pt", "0" * 64, str(tmp_path / "file" / "cache")) is weights
    assert [str(warning.message) for warning in shown] == ["look here"]
    assert weight_files._read_archive("x.pt", "0" * 64, str(tmp_path / "new" / "cache")) is weights
    kept = list((tmp_path / "new" / "cache").iterdir())
    assert [path.name for path in kept] == ["0" * 64 + ".safetensors"]
    assert torch.equal(load_file(kept[0])["a"], weights["a"])


def test_what_torch_says_of_an_archive_is_not_shown(tmp_path, monkeypatch):
    (tmp_path / "x.pt").write_text("")
    monkeypatch.setattr(torch, "load", lambda path, **words: warnings.warn("an archive", stacklevel=1) or {"a": words})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = weight_files.read_file(str(tmp_path / "x.pt"), "/cache")
    assert loaded == {"a": {"map_location": "cpu", "weights_only": True}}


def test_a_published_archive_is_known_by_its_content(tmp_path, monkeypatch):
    path = tmp_path / "any name.pt"
    path.write_text("an archive")
    digest = hashlib.sha256(b"an archive").hexdigest()
    monkeypatch.setitem(clip._MODELS, "mine", f"{NOWHERE}/{digest}/mine.pt")
    monkeypatch.setattr(weight_files, "_read_archive", lambda *words: words)
    assert weight_files.read_file(str(path), "/cache") == (str(path), digest, "/cache")


def test_the_cache_of_downloads_is_a_folder_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = []
    monkeypatch.setattr(clip, "_download", lambda url, root: asked.append((url, root)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_clip("RN50")
    assert asked == [(clip._MODELS["RN50"], str(tmp_path / ".cache" / "clip"))]


def test_a_file_of_a_published_name_is_the_file(tmp_path, monkeypatch, clip_model):
    monkeypatch.chdir(tmp_path)
    save_file(tiny_clip.state_dict(), "RN50")
    with pytest.raises(PromptingError, match="RN50 is not a CLIP state dict that can be loaded"):
        load_clip("RN50")  # neither a saved state dict nor .safetensors, and not downloaded
    torch.save(tiny_clip.state_dict(), "RN50")
    assert torch.equal(load_clip("RN50").visual.proj, clip_model.visual.proj)


def test_foreign_code_finds_the_weights_by_name(tmp_path, monkeypatch, clip_file):
    asked = []
    monkeypatch.setattr(clip, "_MODELS", dict(clip._MODELS))
    monkeypatch.setattr(clip, "_download", lambda url, root: asked.append((url, root)) or f"{root}/file")
    backbone.serve_foreign_code(cache="/cache")
    assert clip._download("https://x/y") == "/cache/file" and clip._download("https://x/z", "/own") == "/own/file"
    assert asked == [("https://x/y", "/cache"), ("https://x/z", "/own")]
    backbone.serve_foreign_code(clip_file, cache="/other")
    assert clip._MODELS[clip_file] == clip_file and clip._download(clip._MODELS[clip_file]) == clip_file
    assert clip._download("https://x/y") == "/other/file"
    backbone.serve_foreign_code("tiny", cache=str(tmp_path / "cache"))
    path = clip._download(clip._MODELS["tiny"], "/anywhere")
    assert path == str(tmp_path / "cache" / f"{weight_files.weights_digest('tiny')}.pt")
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [os.path.basename(path)]
    assert torch.equal(torch.load(path, weights_only=True)["visual.proj"], load_clip("tiny").visual.proj)
    changed = os.stat(path).st_mtime_ns
    backbone.serve_foreign_code("tiny", cache=str(tmp_path / "cache"))
    assert os.stat(path).st_mtime_ns == changed  # made once
    assert clip._download(clip_file) == clip_file  # still there
    before = dict(clip._MODELS)
    backbone.serve_foreign_code("ViT-Z/99")
    assert before == clip._MODELS and len(asked) == 3


# ---- towers ----
def test_another_activation_is_refused(clip_model, resnet_file):
    for tower in ("transformer", "visual"):
        model = copy.deepcopy(clip_model)
        blocks = model.transformer.resblocks if tower == "transformer" else model.visual.transformer.resblocks
        blocks[1].mlp[1] = nn.GELU()
        with pytest.raises(PromptingError, match="has GELU in its blocks, which are computed with QuickGELU here"):
            Towers(model)
    assert Towers(load_clip(resnet_file)).image is None


def test_a_clip_is_copied_when_it_is_not_as_needed(clip_model):
    assert Towers(clip_model).model is clip_model
    for change in (lambda m: m.train(), lambda m: m.requires_grad_(True), lambda m: m.half()):
        other = change(copy.deepcopy(clip_model))
        towers = Towers(other)
        assert towers.model is not other and not towers.model.training and towers.model.dtype == torch.float32
        assert not any(p.requires_grad for p in towers.model.parameters())
    halved = Towers(clip_model, half=True)
    assert Towers(halved.model, half=True).model is halved.model
    assert (halved.resolution, halved.embed_dim, halved.device.type) == (32, 64, "cpu")
    assert halved.logit_scale == pytest.approx(clip_model.logit_scale.exp().item())


def test_features_of_frozen_text_and_logits_by_hand(towers, clip_model):
    names, sentences = ["dog", "cat"], ["a photo of a {}.", "the {}"]
    with torch.no_grad():
        parts = [F.normalize(clip_model.encode_text(clip.tokenize([s.replace("{}", n) for n in names])), dim=-1)
                 for s in sentences]
    torch.testing.assert_close(towers.encode_classnames(names, sentences), F.normalize(parts[0] + parts[1], dim=-1))
    assert not towers.encode_classnames(names, sentences).requires_grad
    images, text = torch.randn(3, 64).half(), torch.randn(2, 64)
    expected = clip_model.logit_scale.exp() * F.normalize(images.float(), dim=1) @ F.normalize(text, dim=1).T
    torch.testing.assert_close(towers.cosine_logits(images, text), expected)
    assert normalize(images).dtype == torch.float32


def test_a_block_taken_apart_is_the_block(clip_model):
    """-> what OpenAI's block gives, and its gradient, in place and out of place."""
    theirs = clip_model.visual.transformer.resblocks[1]
    ours = Block(theirs)
    torch.manual_seed(0)
    x = torch.randn(3, 5, 128)
    kept = x.clone()
    plain = theirs(x.transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(ours(x), plain, rtol=1e-4, atol=1e-5)
    assert torch.equal(x, kept)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    with differentiable_attention():
        first, = torch.autograd.grad(ours(one).square().sum(), one, create_graph=True)
        again, = torch.autograd.grad(first.sum(), one)
    expected, = torch.autograd.grad(theirs(other.transpose(0, 1)).square().sum(), other)
    torch.testing.assert_close(first, expected, rtol=1e-3, atol=1e-3)
    assert again.isfinite().all()
    qkv, kv, query = ours.query_key_value(x), ours.key_value(x), ours.query(x)
    assert torch.equal(qkv[..., :128], query) and torch.equal(qkv[..., 128:], kv)


def test_attention_looks_where_the_mask_says(clip_model):
    block = Block(clip_model.transformer.resblocks[0])
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 4, 128), torch.randn(2, 3, 6, 128), torch.randn(2, 3, 6, 128)
    mask = torch.rand(4, 6) < 0.7
    mask[:, 0] = True

    def by_hand(q, k, v, allowed):
        heads = [t.unflatten(-1, (2, 64)).transpose(-2, -3) for t in (q, k, v)]
        weights = heads[0] @ heads[1].transpose(-1, -2) / 8
        if allowed is not None:
            weights = weights.masked_fill(~allowed, float("-inf"))
        return (weights.softmax(-1) @ heads[2]).transpose(-2, -3).flatten(-2)

    torch.testing.assert_close(block.attend(q, k, v), by_hand(q, k, v, None), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(block.attend(q, k, v, mask=mask), by_hand(q, k, v, mask), rtol=1e-4, atol=1e-5)
    k, v = k[..., :4, :], v[..., :4, :]
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    torch.testing.assert_close(block.attend(q, k, v, causal=True), by_hand(q, k, v, causal), rtol=1e-4, atol=1e-5)


def test_the_adapter_is_two_layers_with_relu():
    adapter = Adapter(8)
    assert [tuple(p.shape) for p in adapter.parameters()] == [(2, 8), (8, 2)]
    assert [tuple(p.shape) for p in Adapter(9, 2).parameters()] == [(4, 9), (9, 4)]
    first, second = adapter.parameters()
    x = torch.randn(5, 8)
    torch.testing.assert_close(adapter(x), ((x @ first.T).relu() @ second.T).relu())


def test_a_cache_without_images_of_the_last_class(towers):
    cache = CacheCLIP(towers, ["dog", "cat", "house"], ["a {}."], [1, 0, 1], 5.5, 1.0)
    assert cache.values.tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0]] and cache.adapter.weight.shape == (3, 64)


def test_distances_by_hand(towers):
    a, b = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[4.0, 3.0], [0.0, 5.0]])
    assert cosine_distance(a, b).item() == pytest.approx(1 - (0.96 + 1) / 2)
    assert l1_distance(a, b).item() == pytest.approx((0.2 + 0.2 + 0 + 0) / 4)
    names, two = ["alarm_clock", "dog", "cat"], ["a {}.", "the {}"]
    texts = [[t.replace("{}", n.replace("_", " ")) for n in names] for t in two]
    mean = (towers.text.encode_texts(texts[0]) + towers.text.encode_texts(texts[1])) / 2
    torch.testing.assert_close(diverse_text_features(towers, names, two), mean)
    sixty = diverse_text_features(towers, names)
    torch.testing.assert_close(sixty, diverse_text_features(towers, names, list(templates.IMAGENET_ALL[:60])))


def test_the_parts_of_a_prompted_clip(towers):
    model = PromptedCLIP(towers)
    with pytest.raises(NotImplementedError):
        model.encode_classes()
    torch.manual_seed(0)
    values = random_vectors(400, 50)
    assert values.shape == (400, 50) and values.std().item() == pytest.approx(0.02, rel=0.05)
    assert random_vectors(400, 50, std=1.0).std().item() == pytest.approx(1, rel=0.05)
    assert Prompt.random(400, 50, std=0.5).ctx.std().item() == pytest.approx(0.5, rel=0.05)
    assert Prompt.random(400, 50).ctx.std().item() == pytest.approx(0.02, rel=0.05)
    start = torch.ones(2, dtype=torch.float64, requires_grad=True)
    prompt = Prompt(start)
    prompt.ctx.data += 1
    assert start.tolist() == [1, 1] and prompt.ctx.dtype == torch.float32 and prompt.ctx.is_leaf


def test_class_features_are_kept_only_while_evaluating(towers):
    model, calls = PromptedCLIP(towers), []
    model.encode_classes = lambda: calls.append(1) or torch.ones(2, 64)
    model.eval()
    model.class_features()
    model.class_features()
    assert len(calls) == 2  # with gradients each is made anew
    with torch.no_grad():
        model.class_features()
        model.class_features()
        assert len(calls) == 3
        model.train()
        model.class_features()
        model.class_features()
        assert len(calls) == 5
        assert model.eval() is model and not model.training
        model.class_features()
        model.class_features()
    assert len(calls) == 6


# ---- precision and memory ----
@pytest.mark.parametrize(("name", "device", "known_as", "dtype", "scaled"), [
    ("auto", "cpu", "fp32", torch.float32, False), ("auto", "cuda", "amp", torch.float16, True),
    ("fp32", "cuda", "fp32", torch.float32, False), ("fp32", "cpu", "fp32", torch.float32, False),
    ("amp", "cpu", "amp", torch.bfloat16, False), ("amp", "cuda", "amp", torch.float16, True),
    ("bf16", "cpu", "bf16", torch.bfloat16, False), ("bf16", "cuda", "bf16", torch.bfloat16, False),
    ("fp16", "cpu", "fp16", torch.float16, True), ("fp16", "cuda", "fp16", torch.float16, True)])
def test_precisions(name, device, known_as, dtype, scaled, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    precision = Precision(name, torch.device(device))
    assert (precision.name, precision.dtype, precision.scaled) == (known_as, dtype, scaled)
    assert precision.scale == (65536.0 if scaled else 1.0) and precision.half is (name == "fp16")
    assert precision.ranks.world_size == 1
    if device == "cpu":
        with precision.autocast():
            assert torch.is_autocast_enabled("cpu") is (name in ("amp", "bf16"))
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if name in ("amp", "bf16") else torch.float32)


def test_an_unknown_precision_is_told_with_the_known_ones():
    with pytest.raises(PromptingError, match="PREC is one of auto, fp32, amp, bf16, fp16, not 'fp64'"):
        Precision("fp64", torch.device("cpu"))


def test_a_gpu_without_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(PromptingError, match="PREC bf16: this GPU has no bfloat16; use PREC amp or fp32"):
        Precision("bf16", torch.device("cuda"))
    assert Precision("bf16", torch.device("cpu")).dtype == torch.bfloat16
    assert Precision("amp", torch.device("cuda")).dtype == torch.float16


def test_a_scale_is_taken_over_where_there_is_one(monkeypatch):
    """A run may go on in another precision: the scale of one without loss scaling is none."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    for name, stored, scale, good_steps in (
            ("amp", {"scale": 64.0, "good_steps": 3, "scaled": True}, 64.0, 3),
            ("amp", {"scale": 1.0, "good_steps": 3, "scaled": True}, 1.0, 3),
            ("amp", {"scale": 1.0, "good_steps": 5000, "scaled": False}, 65536.0, 0),
            ("amp", {"scale": 1.0, "good_steps": 5000}, 65536.0, 0), ("amp", {"scale": 8.0, "good_steps": 3}, 8.0, 3),
            ("bf16", {"scale": 64.0, "good_steps": 3, "scaled": True}, 1.0, 3),
            ("fp32", {"scale": 1.0, "good_steps": 3, "scaled": False}, 1.0, 3)):
        precision = Precision(name, torch.device("cuda"))
        precision.load_state_dict(stored)
        assert precision.state_dict() == {"scale": scale, "good_steps": good_steps, "scaled": name == "amp"}


def test_gradients_are_unscaled_and_of_unused_tensors_zero():
    precision = Precision("fp16", torch.device("cpu"))
    x, unused = torch.tensor([2.0, 3.0], requires_grad=True), torch.ones(2, requires_grad=True)
    loss = (x ** 3).sum()
    first, zero = precision.gradients(loss, [x, unused], create_graph=True)
    assert first.tolist() == [12, 27] and zero.tolist() == [0, 0]
    assert torch.autograd.grad(first.sum(), x)[0].tolist() == [12, 18]
    kept = (x ** 2).sum()
    precision.gradients(kept, [x], retain_graph=True)
    assert precision.gradients(kept, [x])[0].tolist() == [4, 6]
    with pytest.raises(RuntimeError, match="second time"):
        precision.gradients(kept, [x])


def test_the_scale_halves_at_an_overflow_and_doubles_after_2000_updates():
    precision, x = Precision("fp16", torch.device("cpu")), torch.ones(1, requires_grad=True)
    for _ in range(5):
        precision.good_step()
    with pytest.raises(GradientOverflow):
        precision.gradients((x * float("inf")).sum(), [x])
    assert precision.state_dict() == {"scale": 32768.0, "good_steps": 0, "scaled": True}
    for _ in range(1999):
        precision.good_step()
    assert precision.state_dict() == {"scale": 32768.0, "good_steps": 1999, "scaled": True}
    precision.good_step()
    assert precision.state_dict() == {"scale": 65536.0, "good_steps": 0, "scaled": True}
    other = Precision("fp16", torch.device("cpu"))
    other.load_state_dict({"scale": 8.0, "good_steps": 3})
    assert other.state_dict() == {"scale": 8.0, "good_steps": 3, "scaled": True}
    other.scale = 2.0
    with pytest.raises(GradientOverflow):
        other.gradients((x * float("nan")).sum(), [x])
    assert other.scale == 1.0
    assert not all_finite(other.gradients((x * float("inf")).sum(), [x]))  # nothing is left to lower: it is passed on


def test_without_scaling_there_is_no_overflow_and_no_scale():
    precision, x = Precision("fp32", torch.device("cpu")), torch.ones(1, requires_grad=True)
    assert not all_finite(precision.gradients((x * float("inf")).sum(), [x]))
    for _ in range(2000):
        precision.good_step()
    assert precision.state_dict() == {"scale": 1.0, "good_steps": 2000, "scaled": False}
    assert all_finite([torch.ones(2), torch.zeros(3)]) is True
    assert all_finite([torch.ones(2), torch.tensor([1.0, float("nan")])]) is False


@pytest.mark.parametrize(("free", "processes", "budget"), [(4096, 1, 2048), (4095, 1, 1024), (4096, 2, 1024), (2, 1, 1),
                                                           (0, 1, 1), (12 << 30, 3, 2 << 30)])
def test_half_of_the_free_memory_down_to_a_power_of_two(free, processes, budget, monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3000, free))
    assert memory.activation_budget(torch.device("cpu"), processes) == budget
    assert memory.activation_budget(torch.device("cuda"), 5) == 1024
    if processes == 1:
        assert memory.activation_budget(torch.device("cpu")) == budget


# ---- templates ----
@pytest.mark.parametrize(("given", "message"), [
    ("a {}.", r"HERE must be a list of templates, not 'a \{\}.'"), ([3], r"HERE: 3 is not a text"),
    (["a dog"], r"HERE: the template 'a dog' lacks \{\}"), (["{} {x}"], "has more braces than"),
    (["{} }"], "has more braces than"), (["{} {"], "has more braces than"),
    (["a {}., the {}."], "looks like several templates in one text"),
    (["a {}.", "the {}.", "a {}."], r"HERE gives the template 'a \{\}.' twice"),
])
def test_templates_of_another_form_are_refused(given, message):
    with pytest.raises(PromptingError, match=message):
        templates.check_templates(given, "HERE")


def test_templates_of_the_right_form_pass():
    templates.check_templates([], "HERE")
    templates.check_templates(("a {}, a pet.", "small, a {} and a {}, here", "{}"), "HERE")


def test_every_dataset_s_templates():
    assert templates.template_of("Caltech101") == "a photo of a {}."
    assert templates.ensemble_of("OxfordPets") == [*templates.IMAGENET_SELECT, "a photo of a {}, a type of pet."]
    assert templates.ensemble_of("ImageNet") == list(templates.IMAGENET_SELECT)
    assert templates.ensemble_of("ImageNet", everything=True) == list(templates.IMAGENET_ALL)
    own = ["mine {}.", templates.IMAGENET_SELECT[2]]
    assert templates.ensemble_of("EuroSAT", own=own) == [*templates.IMAGENET_SELECT, "mine {}."]
    assert templates.frozen_templates_of("Food101") == ["a photo of a {}, a type of food"]
    assert templates.frozen_templates_of("ImageNetSketch") == [
        *(t[:-1] for t in templates.IMAGENET_SELECT), "a photo of a {}"]
    assert templates.cache_templates_of("ImageNet") == list(templates.IMAGENET_SELECT)
    assert templates.cache_templates_of("EuroSAT") == ["a centered satellite photo of {}."]
    assert templates.kgcoop_template_of("EuroSAT") == templates.tcp_template_of("EuroSAT") == (
        templates.leading_template_of("EuroSAT")) == "a centered satellite photo of {}."
    assert templates.tcp_words_of("EuroSAT") == ("", ".")
    assert templates.tcp_words_of("UCF101") == ("person doing", ".")
    assert templates.tcp_words_of("UCF101", ["a {}, a {} move.", "{} x"]) == ("", " move.")
    assert templates.leading_words("the  {} .") == "the" and templates.leading_words("a {}, b") is None
    assert templates.leading_words("the {} X") is None
    assert templates.fill("a {} or {}", "dog") == "a dog or dog" and len(templates.IMAGENET_FIRST_60) == 60


PLAIN_TEMPLATES = {
    "OxfordPets": "a photo of a {}, a type of pet.", "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.", "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.", "Food101": "a photo of {}, a type of food.",
    "UCF101": "a photo of a person doing {}.", "StanfordCars": "a photo of a {}.", "SUN397": "a photo of a {}."}
OTHER_TEMPLATES = {
    templates.template_of: {}, templates.kgcoop_template_of: {
        "DescribableTextures": "a photo of a {}, a type of texture."},
    templates.tcp_template_of: {
        "FGVCAircraft": "a photo of an aircraft {}.", "DescribableTextures": "a photo of a {}, a type of texture.",
        "Food101": "a photo of a {}, a type of food."},
    templates.leading_template_of: {
        "OxfordPets": "a type of pet, a photo of a {}.", "OxfordFlowers": "a type of flower, a photo of a {}.",
        "FGVCAircraft": "a type of aircraft, a photo of a {}.", "DescribableTextures": "a texture of {}.",
        "Food101": "a type of food, a photo of {}."},
    templates.tcp_words_of: {
        "EuroSAT": ("", "."), "SUN397": ("", "."), "OxfordPets": ("", ", a type of pet."),
        "OxfordFlowers": ("", ", a type of flower."), "FGVCAircraft": ("", ", a type of aircraft."),
        "DescribableTextures": ("", " texture."), "StanfordCars": ("", ", a type of car"),
        "Food101": ("", ", a type of food."), "UCF101": ("person doing", ".")},
}


def test_published_words_are_those_published():
    """Word for word: a dataset's template is CoOp's, other authors' where theirs differ."""
    for template_of, others in OTHER_TEMPLATES.items():
        found = {dataset: template_of(dataset) for dataset in PLAIN_TEMPLATES}
        assert found == {**PLAIN_TEMPLATES, **others}, template_of
    assert templates.cache_templates_of("ImageNet") == list(templates.IMAGENET_SELECT)
    assert templates.IMAGENET_SELECT == (
        "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.",
        "a {} in a video game.", "art of the {}.", "a photo of the small {}.")
    assert set(templates.IMAGENET_SELECT) < set(templates.IMAGENET_ALL)
    words = hashlib.sha256("\n".join(templates.ensemble_of("ImageNet", True)).encode()).hexdigest()
    assert words == "4f976686fb651bb5803d4689dcd849f75efe0ef19a3c801355bc9a6f03c8a5af"


# ---- episodes ----
class FirstAndLast:
    """Chooses the first of what it is offered, and keeps it in mind."""

    def __init__(self):
        self.offered = []

    def choice(self, values):
        self.offered.append(list(values))
        return values[0]


def test_an_order_is_repaired_from_the_tail_and_from_batches_that_can_spare_it():
    # Batches of 3: the first is all of group 0; the second can spare one of 1, the third cannot spare its only 1.
    groups, rng = [0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0], FirstAndLast()
    found = splittable_order(list(range(11)), groups, 3, rng)
    assert rng.offered == [[9, 3, 4], [0, 1, 2]]
    assert found == [9, 1, 2, 3, 4, 5, 6, 7, 8, 0, 10]


def test_orders_that_cannot_be_are_told_why():
    for order, groups, size, message in (
            ([], [], 4, "no order of the 0 training images .* 4 at least two domains: a batch needs two images"),
            ([0, 1], [0, 1], 1, "a batch needs two images; raise DATALOADER.TRAIN_X.BATCH_SIZE"),
            (range(6), [0, 0, 0, 0, 0, 1], 2, "only 1 of them are not of the most frequent one, and there are 3 ")):
        with pytest.raises(PromptingError, match=message):
            splittable_order(order, groups, size, random.Random(0))
    with pytest.raises(PromptingError, match="at least two classes: "):
        splittable_order([0, 1], [0, 0], 2, random.Random(0), what="classes")
    assert sorted(splittable_order([0, 1], [0, 1], 5, random.Random(0))) == [0, 1]


def test_halves_are_drawn_until_both_have_images():
    class Draws:
        def __init__(self, *orders):
            self.orders = list(orders)

        def sample(self, population, k):
            assert list(population) == [0, 1, 2, 3, 4] and k == 5
            return self.orders.pop(0) if len(self.orders) > 1 else self.orders[0]

    one_sided, fine = [0, 1, 2, 3, 4], [0, 2, 3, 1, 4]  # the first half has three classes
    assert halve_classes([0, 1], 5, Draws(one_sided, [2, 3, 4, 0, 1], fine)) == fine
    with pytest.raises(AssertionError):
        halve_classes([0, 1], 5, Draws(one_sided))
    with pytest.raises(PromptingError, match="all of one class"):
        halve_classes([3, 3], 5, random.Random(0))


def test_parts_of_domains():
    found = parts_of_domains([7, 2, 7, 7], 3)
    assert found["part"].tolist() == [1, 0, 1, 1] and found["counts"].tolist() == [1, 3, 0]
    third = pytest.approx(1 / 3)
    assert found["shares"].tolist() == [[0, 1, 0, 0], [third, 0, third, third], [0, 0, 0, 0]]
    assert len(parts_of_domains([0, 1, 2], 2)["counts"]) == 3  # more than were said
    with pytest.raises(PromptingError, match="all of one domain .* set DATALOADER.TRAIN_X.SAMPLER to MetaEpisode"):
        parts_of_domains([4, 4], 3)


def test_parts_of_halves():
    found = parts_of_halves(torch.tensor([3, 0, 3, 4]), [3, 1, 0, 4, 2])  # 3, 1 and 0 are the first half
    assert found["classes"].tolist() == [3, 1, 0, 4, 2] and found["targets"].tolist() == [[0, 2, 0, 0], [0, 0, 0, 0]]
    assert found["counts"].tolist() == [3, 1]
    third = pytest.approx(1 / 3)
    assert found["shares"].tolist() == [[third, third, third, 0], [0, 0, 0, 1]]
    assert parts_of_halves(torch.tensor([2]), [3, 1, 0, 4, 2])["targets"].tolist() == [[0], [1]]


def test_the_meta_gradient_is_of_first_order_unless_asked():
    phi = torch.tensor(2.0, requires_grad=True)
    losses = [lambda p: p ** 3, lambda p: 2 * p ** 2]
    first, held_out = meta_gradient(phi, stacked(losses), torch.tensor([1, 1]), 0.1)
    moved = 2.0 - 0.1 * 8, 2.0 - 0.1 * 12  # the inner steps on the second and on the first
    assert first.item() == pytest.approx(3 * moved[0] ** 2 + 4 * moved[1])
    assert [loss.item() for loss in held_out] == pytest.approx([moved[0] ** 3, 2 * moved[1] ** 2])
    second, _ = meta_gradient(phi, stacked(losses), torch.tensor([1, 1]), 0.1, order=2)
    assert second.item() == pytest.approx(3 * moved[0] ** 2 * (1 - 0.4) + 4 * moved[1] * (1 - 1.2))


def test_a_plain_gradient_keeps_its_graph_when_asked():
    x = torch.tensor(3.0, requires_grad=True)
    first = plain_gradient(x ** 3, x, create_graph=True)
    assert first.item() == 27 and plain_gradient(first, x).item() == 18
    loss = x ** 2
    plain_gradient(loss, x, retain_graph=True)
    assert plain_gradient(loss, x).item() == 6


# ---- text: words, pieces, chunks ----
def test_a_context_of_words_has_1_to_75_tokens(towers):
    text = towers.text
    assert text.embed_words("a").shape == (1, 128)
    assert torch.equal(text.embed_words("a_photo"), text.embed_words("a photo"))
    assert len(text.embed_words("a " * 75)) == 75
    for words, number in (("a " * 76, 76), ("", 0)):
        with pytest.raises(PromptingError, match=f"has {number} tokens; 1 to 75 fit"):
            text.embed_words(words)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_a_prompt_may_be_as_long_as_the_context(towers, position):
    # SOS, 4 context vectors, the name, the full stop, EOS
    longest = ClassPrompts(towers.text, ["a " * 69 + "a", "b"], 4, position)
    assert longest.eot.tolist() == [76, 7] and longest.embedded.shape[1] == 77
    with pytest.raises(PromptingError, match=r"with 4 context tokens its prompt has 78 tokens, CLIP reads 77"):
        ClassPrompts(towers.text, ["b", "a " * 70 + "a"], 4, position)
    with pytest.raises(PromptingError, match="'" + "a " * 40 + "' is too long"):  # 80 letters of it
        ClassPrompts(towers.text, ["a " * 90], 4, position)
    with pytest.raises(PromptingError, match="end, middle or front, not 'behind'"):
        ClassPrompts(towers.text, ["a"], 4, "behind")


def test_sentences_are_tokenised_as_clip_does(towers):
    texts = ["a dog", "a photo of a very small house.", "x"]
    tokens = towers.text.tokenize(texts)
    theirs = clip.tokenize(texts)
    assert torch.equal(tokens, theirs[:, :tokens.shape[1]].to(tokens.dtype)) and not theirs[:, tokens.shape[1]:].any()
    longest = "a " * 75
    assert towers.text.tokenize([longest]).shape == (1, 77)
    with pytest.raises(PromptingError, match="'" + "b " * 40 + "' has 78 tokens, more than the 77 that CLIP reads"):
        towers.text.tokenize(["a", "b " * 76, longest])
    whole = towers.text.encode_texts(texts)
    for chunk in (1, 2, 3):
        torch.testing.assert_close(towers.text.encode_texts(texts, chunk=chunk), whole, rtol=1e-4, atol=1e-5)
    assert whole.dtype == torch.float32 and not whole.requires_grad


def test_a_pass_of_many_sentences_is_made_of_256_at_a_time(towers, monkeypatch):
    sizes, graphs, encode = [], [], towers.text._encode

    def watched(prompts):
        sizes.append(len(prompts.eot))
        graphs.append(torch.is_grad_enabled())
        return encode(prompts)

    monkeypatch.setattr(towers.text, "_encode", watched)
    assert len(towers.text.encode_texts(["a"] * 257)) == 257
    assert sizes == [256, 1] and graphs == [False, False]


def test_classes_are_run_in_as_few_chunks_as_the_memory_allows(clip_model):
    text = Towers(clip_model).text
    lengths, order, shared, groups = [3, 5, 4, 3], [0, 3, 2, 1], 6, 2
    vector = 128 * text.layers * 4 * groups  # bytes of a vector of each layer and group
    kept = [KEPT_PER_TOKEN * n + KEPT_PER_KEY * (shared + n) for n in (3, 3, 4, 5)]
    prefix = (KEPT_PER_TOKEN + KEPT_PER_KEY) * shared

    def chunks(vectors):
        text.activation_bytes = vectors * vector
        return chunks_of(text, order, lengths, groups, shared)

    assert chunks(prefix + sum(kept)) == [[0, 3, 2, 1]]
    assert chunks(prefix + sum(kept) - 1) == [[0, 3, 2], [1]]
    assert chunks(prefix + kept[0] + kept[1]) == [[0, 3], [2], [1]]
    assert chunks(1) == [[0], [3], [2], [1]]
    with torch.no_grad():
        assert chunks(1) == [order]
    text.activation_bytes = None
    assert chunks_of(text, order, lengths, groups, shared) == [order]
    assert KEPT_PER_TOKEN == 10 and KEPT_PER_KEY == 2


def test_classes_of_about_one_length_share_a_piece(clip_model):
    text = Towers(clip_model).text
    lengths = [5, 3, 5, 4, 2]
    order = [4, 1, 3, 0, 2]

    def pieces(padding):
        text.padding = padding
        return [(bucket.classes.tolist(), bucket.length, bucket.ends if bucket.ends is None else bucket.ends.tolist())
                for bucket in buckets_of(tuple(order), tuple(lengths[i] for i in order), text.padding, text.device)]

    assert pieces(0) == [([4], 2, None), ([1], 3, None), ([3], 4, None), ([0, 2], 5, None)]
    assert pieces(1) == [([4, 1], 3, [1, 2]), ([3, 0, 2], 5, [3, 4, 4])]
    assert pieces(3) == [([4], 2, None), ([1, 3, 0, 2], 5, [2, 3, 4, 4])]
    assert pieces(6) == [([4, 1, 3, 0, 2], 5, [1, 2, 3, 4, 4])]


@pytest.mark.parametrize("padding", [0, 1, 512, "rows of 256", "rows of 12"])
@pytest.mark.parametrize("activation_bytes", [None, 1])
@pytest.mark.parametrize("form", ["shared", "deep", "a class's own", "a class's own deep", "an image's own"])
def test_pieces_rows_and_chunks_change_no_number(form, padding, activation_bytes, clip_model, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(text_rows, "ROW", 12 if padding == "rows of 12" else text_rows.ROW)
    text_rows.rows_of.cache_clear()
    names = ["dog", "alarm clock", "Boeing 737-200", "a", "water lilly house"]
    ctx = torch.randn({"an image's own": (3, 2, 128), "shared": (2, 128), "deep": (2, 128)}.get(form, (5, 1, 2, 128)))
    deep = {"deep": {1: torch.randn(2, 128)}, "a class's own deep": {2: torch.randn(5, 2, 128)}}.get(form, {})

    def run(padding, activation_bytes):
        text = Towers(clip_model).text
        text.packed = str(padding).startswith("rows")
        text.padding, text.activation_bytes = 0 if text.packed else padding, activation_bytes
        learned = [0.1 * tensor.clone() for tensor in (ctx, *deep.values())]
        for tensor in learned:
            tensor.requires_grad_()
        features = text.encode(ClassPrompts(text, names, 2)(learned[0]), dict(zip(deep, learned[1:])) or None)
        loss = (features * torch.linspace(-1, 1, 64)).square().sum()
        return features.detach(), torch.autograd.grad(loss, learned)

    features, gradients = run(0, None)
    found, own = run(padding, activation_bytes)
    torch.testing.assert_close(found, features, rtol=1e-4, atol=1e-5)
    for one, other in zip(gradients, own, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * one.abs().max().item())


def test_chosen_classes_keep_contexts_of_their_own(clip_model):
    text = Towers(clip_model).text
    prompts, own = ClassPrompts(text, ["dog", "alarm clock", "a"], 2), 0.1 * torch.randn(3, 1, 2, text.width)
    chosen = torch.tensor([2, 0])
    torch.testing.assert_close(text.encode(prompts(own, chosen)), text.encode(prompts(own))[:, chosen],
                               rtol=1e-4, atol=1e-5)


def test_chunks_are_computed_again_on_the_way_back(clip_model, monkeypatch):
    text, runs = Towers(clip_model).text, []
    encode = text._encode_chunk
    monkeypatch.setattr(text, "_encode_chunk", lambda *args: runs.append(1) or encode(*args))
    ctx = torch.zeros(2, 128, requires_grad=True)
    text.encode(ClassPrompts(text, ["dog", "cat"], 2)(ctx)).sum().backward()
    assert len(runs) == 1
    text.activation_bytes = 1
    text.encode(ClassPrompts(text, ["dog", "cat"], 2)(ctx)).sum().backward()
    assert len(runs) == 1 + 2 * 2


def test_a_gpu_packs_classes_and_pads_up_to_512_tokens(clip_model):
    class Elsewhere(TextTower):
        device = torch.device("cuda")

    there, here = Elsewhere(clip_model), TextTower(clip_model)
    assert (there.packed, there.padding, here.packed, here.padding) == (True, 512, False, 0)


@pytest.mark.parametrize("activation_bytes", [None, 1])
def test_some_classes_whose_lengths_only_the_device_knows(activation_bytes, clip_model, monkeypatch):
    """They are all as long as the longest may be, and each is read at its own end; in one pass or in several."""
    names = ["dog", "a b c d e f", "red car", "x y z", "cat"]
    ctx, wanted = torch.randn(2, 128, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 0, 1])
    found = []
    for on_gpu in (False, True):
        text = Towers(clip_model).text
        text.activation_bytes = activation_bytes
        if on_gpu:
            text.run_as_on_gpu()
            monkeypatch.setattr(Prompts, "own_lengths", None)  # nobody asks the device
        learned = ctx.clone().requires_grad_()
        features = text.encode(ClassPrompts(text, names, 2)(learned, wanted))
        found.append((features.detach(), *torch.autograd.grad((features * features.detach()).sum(), learned)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


def test_classes_are_packed_into_rows_of_about_one_length(monkeypatch):
    monkeypatch.setattr(text_rows, "ROW", 24)
    lengths, shared, stride = (3, 7, 4, 9, 3, 5), 4, 9
    order = (5, 0, 2, 1, 4, 3)  # places of the classes
    rows = text_rows.rows_of(order, lengths, shared, stride, torch.device("cpu"))
    assert rows.owners.shape == (2, 32)  # 4 + 16 and 4 + 15 tokens, up to the next multiple of 16
    own = [[owner for owner in row if owner > 0] for row in rows.owners.tolist()]
    assert [len(row) for row in own] == [16, 15] and (rows.owners[:, :shared] == text_rows.SHARED).all()
    tokens = rows.tokens.view(2, -1)
    for index, (place, length) in enumerate(zip(order, lengths)):
        end = rows.ends[rows.places[index]].item()
        row, last = divmod(end, 32)
        here = slice(last - length + 1, last + 1)
        assert len(set(rows.owners[row, here].tolist())) == 1
        assert tokens[row, here.start - shared:here.stop - shared].tolist() == list(
            range(place * stride, place * stride + length))
        seen = rows.masks(torch.float32)[1].flatten(0, 2)[rows.places[index]] == 0
        assert seen.nonzero()[:, 0].tolist() == [*range(shared), *range(here.start, here.stop)]
    mask, _ = rows.masks(torch.float16)
    assert mask.shape == (2, 1, 32, 32) and mask.dtype == torch.float16 and (mask == 0).any(dim=-1).all()
    assert set(mask.unique().tolist()) == {0.0, -torch.inf}


def test_what_is_kept_of_rows_serves_training_after_inference(clip_model, monkeypatch):
    monkeypatch.setattr(text_rows, "ROW", 11)
    text_rows.rows_of.cache_clear()
    text = pickle.loads(pickle.dumps(TextTower(clip_model)))
    text.run_as_on_gpu()
    prompts, ctx = ClassPrompts(text, ["dog", "alarm clock", "a"], 2), torch.zeros(2, 128, requires_grad=True)
    with torch.inference_mode():
        before = text.encode(prompts(ctx)).clone()
    after = text.encode(prompts(ctx))
    after.sum().backward()
    assert torch.equal(before, after) and ctx.grad.abs().sum() > 0
    text_rows.rows_of.cache_clear()


def test_a_class_longer_than_a_row_has_a_row(monkeypatch):
    monkeypatch.setattr(text_rows, "ROW", 8)
    rows = text_rows.rows_of((0, 1, 2), (20, 2, 3), 4, 20, torch.device("cpu"))
    assert rows.owners.shape == (2, 32) and sorted((rows.owners > 0).sum(dim=1).tolist()) == [5, 20]


def test_the_text_tower_knows_its_clip(clip_model):
    text = Towers(clip_model).text
    assert (text.layers, text.width, text.embed_dim, text.context_length) == (4, 128, 64, 77)
    assert text.activation_bytes is None and text.padding == 0 and text.device.type == "cpu"
    assert torch.equal(text.positions(3, 2), clip_model.positional_embedding[3:5])
    tokens = torch.tensor([[320, 1929]])
    assert torch.equal(text.embed_tokens(tokens), clip_model.token_embedding(tokens))
    assert isinstance(ClassPrompts(text, ["a"], 1)(torch.zeros(1, 128)), Prompts)


def test_fixed_words_and_their_places(towers, clip_model):
    """`between` and `after` at each position of the name, against whole sentences."""
    for between, after, sentence in (("of a", ".", "a photo of a {}."), ("", " texture.", "a photo {} texture."),
                                     ("of", ", a pet", "a photo of {}, a pet")):
        ctx = towers.text.embed_words("a photo")
        prompts = ClassPrompts(towers.text, ["alarm_clock", "St."], 2, between=between, after=after)
        sentences = [sentence.replace("{}", name) for name in ("alarm clock", "St.")]
        torch.testing.assert_close(towers.text.encode(prompts(ctx))[0], towers.text.encode_texts(sentences),
                                   rtol=1e-4, atol=1e-5)
    counts = Counter(len(ClassPrompts(towers.text, ["x"], n, "middle").places[0]) for n in (1, 2, 3, 4))
    assert counts == {1: 2, 2: 2}  # the second half of 1, 2, 3, 4 vectors: 1, 1, 2, 2
