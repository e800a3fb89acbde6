"""Frozen sentences are encoded once per process and CLIP, and never taken from a CLIP that has changed."""
import gc

import pytest
import torch
from torch import nn

import train
from prompting import Towers, load_clip
from prompting.parallel import SingleProcess
from prompting.text import TextTower
from prompting.text_memory import TextMemory
from training import towers as towers_of_runs

SENTENCES = ["a photo of a cat", "a photo of a very small dog", "a drawing of a cat"]


@pytest.fixture
def encoded(monkeypatch):
    """How many sentences each pass of the text tower encodes, [number, ...]."""
    passes, encode = [], TextTower.encode_sentences

    def counting(self, tokens):
        passes.append(len(tokens))
        return encode(self, tokens)

    monkeypatch.setattr(TextTower, "encode_sentences", counting)
    return passes


@pytest.fixture
def clip(clip_file):
    return load_clip(clip_file)


def learned(folder):
    file, = folder.glob("prompt_learner/model.pth.tar-*")
    return torch.load(file, weights_only=True)["state_dict"]


@pytest.mark.parametrize("method", ["KgCoOp", "PromptSRC"])
def test_a_second_run_encodes_no_frozen_sentence_and_has_the_same_numbers(method, arguments, clip_file, tmp_path,
                                                                          encoded):
    def run(name, clips):
        words = ["OPTIM.MAX_EPOCH", 1]
        if method == "PromptSRC":
            words += ["TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", 2, "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", 2]
        before = len(encoded)
        results = train.main(arguments(method, tmp_path / name, *words), clips=clips)
        return results["metrics"], learned(tmp_path / name), len(encoded) - before

    clips = {clip_file: load_clip(clip_file)}
    (metrics, first, made), *others = (run("first", clips), run("second", clips),
                                       run("alone", {clip_file: load_clip(clip_file)}))
    assert made and [count for *_, count in others] == [0, made]
    for also, tensors, _ in others:
        assert also == metrics and tensors.keys() == first.keys()
        assert all(torch.equal(tensors[name], first[name]) for name in first)


CHANGES = {
    "in place": lambda clip: clip.text_projection.mul_(1.5),
    "through .data": lambda clip: clip.ln_final.weight.data.mul_(1.5),
    "one number through .data": lambda clip: clip.transformer.resblocks[1].mlp.c_fc.weight.data[3, 5].add_(1),
    "another tensor": lambda clip: setattr(clip, "positional_embedding", nn.Parameter(clip.positional_embedding * 1.5)),
    "another module": lambda clip: setattr(clip.transformer.resblocks[0].mlp, "c_fc",
                                           nn.Linear(clip.ln_final.weight.numel(),
                                                     4 * clip.ln_final.weight.numel())),
    "a hook": lambda clip: clip.ln_final.register_forward_hook(lambda module, given, found: 1.5 * found),
    "a forward of its own": lambda clip: setattr(clip.token_embedding, "forward", lambda tokens: 1.5 * (
        nn.functional.embedding(tokens, clip.token_embedding.weight))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_clip_gets_no_features_of_before(change, clip):
    memory = TextMemory()
    towers = Towers(clip, text_memory=memory)
    before = towers.text.encode_texts(SENTENCES)
    assert torch.equal(Towers(clip, text_memory=memory).text.encode_texts(SENTENCES), before) and memory.bytes
    with torch.no_grad():
        CHANGES[change](clip)
    right = Towers(clip).text.encode_texts(SENTENCES)
    assert not torch.allclose(right, before)
    torch.testing.assert_close(Towers(clip, text_memory=memory).text.encode_texts(SENTENCES), right, rtol=0, atol=0)
    # Towers that are frozen know the modules that they were made with, and look at all numbers when they are made.
    if change != "another module" and ".data" not in change:
        torch.testing.assert_close(towers.text.encode_texts(SENTENCES), right, rtol=0, atol=0)


def test_a_copy_in_half_precision_knows_what_it_was_copied_from(clip, encoded):
    memory = TextMemory()

    def features(half=True):
        return Towers(clip, half=half, text_memory=memory).text.encode_texts(SENTENCES)

    first, again = features(), features()
    assert encoded == [3] and torch.equal(first, again)
    assert not torch.equal(features(half=False), first) and encoded == [3, 3]
    clip.ln_final.weight.data.mul_(1.5)
    assert not torch.allclose(features(), first) and encoded == [3, 3, 3]

    towers = Towers(clip, half=True, text_memory=memory)
    kept = towers.text.encode_texts(SENTENCES)
    with torch.no_grad():
        towers.model.ln_final.weight.mul_(2)  # of the copy
    assert not torch.allclose(towers.text.encode_texts(SENTENCES), kept)
    assert torch.equal(features(), kept)


def test_autocast_other_sentences_and_their_order_are_others(clip, encoded):
    text = Towers(clip, text_memory=TextMemory()).text
    full = text.encode_texts(SENTENCES)
    with torch.autocast("cpu", torch.bfloat16):
        half = text.encode_texts(SENTENCES)
        assert torch.equal(text.encode_texts(SENTENCES), half)
    assert not torch.equal(full, half) and encoded == [3, 3]
    torch.testing.assert_close(text.encode_texts(SENTENCES[::-1]).flip(0), full)
    text.encode_texts(SENTENCES[:2])
    assert encoded == [3, 3, 3, 2]
    text.encode_texts(SENTENCES)
    assert encoded == [3, 3, 3, 2]


def test_what_is_given_may_be_changed_in_place(clip):
    text = Towers(clip, text_memory=TextMemory()).text
    first = text.encode_texts(SENTENCES)
    kept = first.clone()
    for _ in range(2):
        given = text.encode_texts(SENTENCES)
        assert torch.equal(given, kept)
        given.zero_()
        first.zero_()


def test_trainable_towers_remember_nothing(clip, encoded):
    memory = TextMemory()
    for _ in range(2):
        Towers(clip, trainable=True, text_memory=memory).text.encode_texts(SENTENCES)
    assert encoded == [3, 3] and not memory.bytes


def test_ranks_that_compute_alone_for_a_while_remember_nothing(clip, encoded):
    class Two(SingleProcess):
        world_size = 2

    memory, ranks = TextMemory(), Two()
    text = Towers(clip, ranks=ranks, text_memory=memory).text
    ranks.world_size = 1
    text.encode_texts(SENTENCES)
    assert encoded == [3] and not memory.bytes
    ranks.world_size = 2
    for _ in range(2):
        text.encode_texts(SENTENCES)
    assert encoded == [3, 3] and memory.bytes


def test_the_memory_is_bounded_and_forgets_what_was_not_used_for_longest(clip, encoded):
    one = Towers(clip).text.encode_texts(["a cat"])
    del encoded[:]
    memory = TextMemory(limit=2 * one.nbytes)
    text = Towers(clip, text_memory=memory).text
    for name in ("a cat", "a dog", "a cat", "a bird", "a cat", "a dog"):
        text.encode_texts([name])
        assert memory.bytes <= memory.limit
    assert len(encoded) == 4  # the second cat and the third were known; the dog had gone
    text.encode_texts(SENTENCES)  # three do not fit
    assert memory.bytes == memory.limit


def test_a_memory_goes_with_its_clip(clip_file):
    from dassl.utils.distributed import Ranks

    clip = load_clip(clip_file)
    memory = towers_of_runs.text_memory(clip, Ranks())
    assert towers_of_runs.text_memory(clip, Ranks()) is memory
    assert towers_of_runs.text_memory(clip, Ranks(1, 2)) is not memory
    assert towers_of_runs.text_memory(load_clip(clip_file), Ranks()) is not memory
    before = len(towers_of_runs._text_memories)
    del clip
    gc.collect()
    assert len(towers_of_runs._text_memories) < before
