"""What methods may put into the towers (adapters, inserted tokens, readers), against CLIP's own modules that are run
plainly over whole, untrimmed sequences."""
import copy

import pytest
import torch

import prompting.readers
from prompting import PromptingError
from prompting.block_adapters import AT_INPUT, BlockAdapter
from prompting.class_prompts import ClassPrompts
from prompting.readers import read_images, read_texts
from prompting.towers import Towers

NAMES = ["dog", "alarm clock", "Boeing 737-200", "house", "cat", "water lilly of the lake"]
CLOSE = 2e-5


class LowRank(BlockAdapter):
    """Something for each of the parts that an adapter may add to."""

    def __init__(self, width, seed, only=None):
        super().__init__()
        draw, parts = torch.Generator().manual_seed(seed), only or ("q", "k", "v", "o", "beside")
        self.matrices = torch.nn.ParameterDict({
            part: torch.nn.Parameter(0.05 * torch.randn(width, width, generator=draw)) for part in parts})

    def _of(self, part, x):
        return x @ self.matrices[part] if part in self.matrices else None

    def project(self, normed, part):
        return self._of(part, normed)

    def output(self, attended):
        return self._of("o", attended)

    def beside(self, x, norm):
        return self._of("beside", norm(x))


def attention(block, adapter, normed, mask, keys=None):
    """Multi-head attention as the formula says. normed (B, T, W); mask (T, T) additive, or (B, T, T)."""
    attn = block.attn
    q, k, v = (normed @ w.T + b for w, b in zip(attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3)))
    if adapter is not None:
        q, k, v = (t if (more := adapter.project(normed, part)) is None else t + more
                   for t, part in zip((q, k, v), "qkv"))
    heads = attn.num_heads
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores + (mask[:, None] if mask.dim() == 3 else mask)
    seen = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    y = seen @ attn.out_proj.weight.T + attn.out_proj.bias
    more = adapter.output(seen) if adapter is not None else None
    return y if more is None else y + more


def run(block, x, mask, adapter=None):
    y = x + attention(block, adapter, block.ln_1(x), mask)
    out = y + block.mlp(block.ln_2(y))
    more = adapter.beside(x, block.ln_1) if adapter is not None else None
    return out if more is None else out + more


def causal(length):
    return torch.full((length, length), float("-inf")).triu(1)


def sentences(towers, names=NAMES):
    tokens = towers.text.tokenize([f"a photo of a {name}." for name in names])
    return tokens, tokens.argmax(dim=1)


def embedded_texts(clip, tokens):
    padded = torch.zeros(len(tokens), 77, dtype=torch.long)
    padded[:, :tokens.shape[1]] = tokens
    return clip.token_embedding(padded) + clip.positional_embedding


def pictures():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def gradients(value, tensors):
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(9))
    return torch.autograd.grad((value * weights).sum(), tensors)


def require_same(ours, plain, tensors):
    assert (ours - plain).abs().max() < CLOSE * plain.abs().max()
    for mine, theirs in zip(gradients(ours, tensors), gradients(plain, tensors)):
        assert (mine - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.fixture(params=[(False, 0), (False, 512), (True, 0)], ids=["no padding", "padding", "rows"])
def towers(request, clip_model):
    towers = Towers(clip_model)
    towers.text.packed, towers.text.padding = request.param
    return towers


@pytest.mark.parametrize("share", [True, False])
def test_adapters_of_the_text_tower(towers, share):
    clip, adapters = towers.model, {layer: LowRank(128, layer) for layer in (1, 3)}
    tokens, eot = sentences(towers)
    ours = towers.text.encode(towers.text.sentences(tokens, share), adapters=adapters)[0]
    x = embedded_texts(clip, tokens)
    for layer, block in enumerate(clip.transformer.resblocks):
        x = run(block, x, causal(77), adapters.get(layer))
    plain = clip.ln_final(x)[torch.arange(len(x)), eot] @ clip.text_projection
    require_same(ours, plain, [p for adapter in adapters.values() for p in adapter.parameters()])


def test_adapters_of_the_image_tower(towers):
    clip, adapters = towers.model, {layer: LowRank(128, layer + 1) for layer in (0, 3)}
    adapters[AT_INPUT] = LowRank(128, 9, only=("beside",))
    visual, images = clip.visual, pictures()
    ours = towers.image.encode(towers.image.embed(images), adapters=adapters)
    x = visual.ln_pre(towers.image.embed(images))
    x = x + adapters[AT_INPUT].beside(x, lambda tokens: tokens)
    for layer, block in enumerate(visual.transformer.resblocks):
        x = run(block, x, None, adapters.get(layer))
    require_same(ours, visual.ln_post(x[:, 0]) @ visual.proj,
                 [p for adapter in adapters.values() for p in adapter.parameters()])


def test_tokens_that_are_inserted_in_the_text_tower(towers):
    """In front of the blocks 1 and 2: first inserted, then replaced; block 3 carries them on."""
    clip, own = towers.model, {layer: torch.randn(3, 128, requires_grad=True) for layer in (1, 2)}
    tokens, eot = sentences(towers)
    ours = towers.text.encode(towers.text.sentences(tokens), own, inserted=True)[0]
    x = embedded_texts(clip, tokens)
    for layer, block in enumerate(clip.transformer.resblocks):
        if layer == 1:
            x = torch.cat([x[:, :1], own[1].expand(len(x), -1, -1), x[:, 1:]], dim=1)
        if layer == 2:
            x = torch.cat([x[:, :1], own[2].expand(len(x), -1, -1), x[:, 4:]], dim=1)
        x = run(block, x, causal(x.shape[1]))
    plain = clip.ln_final(x)[torch.arange(len(x)), eot + 3] @ clip.text_projection
    require_same(ours, plain, list(own.values()))


def test_tokens_that_come_in_within_the_image_tower(towers):
    visual, images = towers.model.visual, pictures()
    own = {layer: torch.randn(3, 128, requires_grad=True) for layer in (1, 3)}
    ours = towers.image.encode_with_prompts(towers.image.embed(images), own)
    x = visual.ln_pre(towers.image.embed(images))
    for layer, block in enumerate(visual.transformer.resblocks):
        if layer == 1:
            x = torch.cat([x[:, :1], own[1].expand(len(x), -1, -1), x[:, 1:]], dim=1)
        if layer == 3:
            x = torch.cat([x[:, :1], own[3].expand(len(x), -1, -1), x[:, 4:]], dim=1)
        x = run(block, x, None)
    require_same(ours, visual.ln_post(x[:, :4]), list(own.values()))
    alone = towers.image.encode(towers.image.embed(images), own)
    assert torch.allclose(alone, ours[:, 0] @ visual.proj, atol=1e-5)


def test_read_only_tokens_of_texts(towers):
    clip, readers = towers.model, torch.randn(4, 128, requires_grad=True)
    tokens, eot = sentences(towers)
    ours = read_texts(towers.text, towers.text.sentences(tokens), readers)
    x = embedded_texts(clip, tokens)
    masks = causal(77).repeat(len(x), 1, 1)
    rows = []
    for row, end in enumerate(eot.tolist()):
        rows.append(torch.cat([x[row, :end + 1], readers, x[row, end + 5:]]))
        masks[row, :, end + 1:] = float("-inf")  # nothing sees what stands behind the end-of-text token
    x = torch.stack(rows)
    for block in clip.transformer.resblocks:
        x = run(block, x, masks)
    plain = torch.stack([clip.ln_final(x[row, end + 1:end + 5]) @ clip.text_projection
                         for row, end in enumerate(eot.tolist())])
    require_same(ours, plain, [readers])


@pytest.mark.parametrize("limit", [1, 400_000])
def test_read_only_tokens_of_texts_in_chunks(towers, limit, monkeypatch):
    """As many classes at a time as have room for what their readers keep, computed again on the way back."""
    readers, weights = torch.randn(24, 128, requires_grad=True), {p.data_ptr() for p in towers.model.parameters()}
    names, kept, sizes = [f"{name} {n}" for n in range(4) for name in NAMES], {}, []
    prompts = towers.text.sentences(sentences(towers, names)[0])
    part = prompting.readers._read_texts

    def watched(tower, prompts, readers, buckets, blocks):
        sizes.append(sum(map(len, buckets)))
        return part(tower, prompts, readers, buckets, blocks)

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    monkeypatch.setattr(prompting.readers, "_read_texts", watched)

    def run(limit):
        sizes.clear()
        towers.text.activation_bytes = limit
        return read_texts(towers.text, prompts, readers)

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        whole = run(None)
    assert sizes == [24]
    needed = sum(kept.values())
    run(int(1.3 * needed))
    assert sizes == [24]
    run(int(0.9 * needed))
    assert len(sizes) == 2
    ours = run(limit)
    assert len(sizes) > 1 and sum(sizes) == 24 and (limit > 1 or len(sizes) == 24)
    require_same(ours, whole, [readers])
    with torch.no_grad():
        run(limit)
    assert sizes == [24]  # nothing is kept


def test_read_only_tokens_of_images(towers):
    visual, images, readers = towers.model.visual, pictures(), torch.randn(4, 128, requires_grad=True)
    ours = read_images(towers.image, towers.image.embed(images), readers)
    x = torch.cat([towers.image.embed(images), readers.expand(3, -1, -1)], dim=1)
    x, mask = visual.ln_pre(x), torch.zeros(x.shape[1], x.shape[1])
    mask[:, -4:] = float("-inf")
    for block in visual.transformer.resblocks:
        x = run(block, x, mask)
    require_same(ours, visual.ln_post(x[:, -4:]) @ visual.proj, [readers])


class Noisy(BlockAdapter):
    """Adds noise to the values: each token of each class its own."""

    draws = True

    def project(self, normed, part):
        return torch.randn_like(normed) if part == "v" else None


def test_classes_draw_for_the_tokens_that_they_share(towers):
    """Two classes of one name differ where an adapter draws numbers, and are one where it draws none."""
    prompts = ClassPrompts(towers.text, ["dog", "dog"], 4)
    ctx = towers.text.embed_words("a photo of a")
    noisy = towers.text.encode(prompts(ctx), adapters={0: Noisy()})[0]
    assert (noisy[0] - noisy[1]).abs().max() > 1e-3
    same = towers.text.encode(prompts(ctx), adapters={0: BlockAdapter()})[0]
    for other in (same.flip(0), towers.text.encode(prompts(ctx))[0]):
        if towers.text.packed:  # another place in a row, another rounding
            torch.testing.assert_close(same, other, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(same, other)


def test_adapters_of_blocks_that_are_not_there_are_refused(towers):
    prompts = ClassPrompts(towers.text, ["dog"], 4)(towers.text.embed_words("a photo of a"))
    with pytest.raises(PromptingError, match="adapter for block 4; this tower has the blocks 0 to 3"):
        towers.text.encode(prompts, adapters={4: BlockAdapter()})


def test_what_does_not_go_together_is_refused(towers):
    prompts = towers.text.sentences(sentences(towers)[0])
    two, three = torch.zeros(2, 128), torch.zeros(3, 128)
    with pytest.raises(PromptingError, match="beside an adapter that draws"):
        towers.text.encode(prompts, {1: two}, {0: Noisy()}, inserted=True)
    for deep in ({1: two, 2: three}, {1: torch.zeros(len(NAMES), 2, 128)}):
        with pytest.raises(PromptingError, match="tokens that are inserted must be the same for all classes"):
            towers.text.encode(prompts, deep, inserted=True)
    with pytest.raises(PromptingError, match="the text tower has its input from the prompts"):
        towers.text.encode(prompts, adapters={AT_INPUT: BlockAdapter()})


@pytest.mark.parametrize("hooked", [1, 3])
def test_no_adapter_is_passed_over_where_a_block_is_called_as_a_whole(clip_model, hooked):
    """Wherever that block is: the tower then calls all of them so."""
    model = copy.deepcopy(clip_model)
    for tower in (model, model.visual):
        tower.transformer.resblocks[hooked].register_forward_hook(lambda *parts: None)
    towers, own = Towers(model), {3: LowRank(128, 1)}
    prompts, embedded = towers.text.sentences(sentences(towers)[0]), towers.image.embed(pictures())
    for encode in (lambda: towers.text.encode(prompts, adapters=own), lambda: towers.image.encode(embedded, (), own)):
        with pytest.raises(PromptingError, match="a block of this CLIP is another one, or has hooks"):
            encode()
    for call in (lambda: towers.text.encode(prompts, {1: torch.zeros(2, 128)}, inserted=True),
                 lambda: read_texts(towers.text, prompts, torch.zeros(2, 128)),
                 lambda: read_images(towers.image, embedded, torch.zeros(2, 128))):
        with pytest.raises(PromptingError, match="a block of this CLIP is another one, or has hooks"):
            call()
    first = {AT_INPUT: LowRank(128, 9, only=("beside",))}  # which needs none of the blocks' parts
    plain = Towers(clip_model).image
    torch.testing.assert_close(towers.image.encode(embedded, (), first), plain.encode(embedded, (), first))
