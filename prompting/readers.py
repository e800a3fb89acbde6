"""Read-only tokens: learned vectors that see the tokens of a frozen tower and are seen by none.

So all other tokens are what they are without them. They are computed once, without gradients, and the learned tokens
take their keys and values from them: one pass, in which only the few learned tokens need a backward pass.
"""
from __future__ import annotations

import torch
from torch import Tensor

from prompting.blocks import Block, Tower
from prompting.class_prompts import Prompts
from prompting.errors import PromptingError
from prompting.image import ImageTower
from prompting.parallel import divide
from prompting.text import TextTower
from prompting.text_chunks import KEPT_PER_TOKEN, in_chunks
from prompting.text_layout import Bucket, behind, buckets_of, take_apart


def read_images(tower: ImageTower, embedded: Tensor, readers: Tensor) -> Tensor:
    """What learned tokens read in images.

    Args:
        embedded: what `tower.embed` gave, (B, T, W).
        readers: the learned tokens (K, W), which come in before ln_pre. Each sees the tokens of the image, neither the
            others nor itself.
    Returns:
        (B, K, E), not normalised, read out as the class token is.
    """
    def share(rows: slice) -> Tensor:
        x: Tensor = tower.visual.ln_pre(embedded[rows])
        read: Tensor = tower.visual.ln_pre(readers.to(x.dtype)).expand(len(x), -1, -1)
        blocks = _plain_blocks(tower)
        for layer, block in enumerate(blocks):
            qkv = block.query_key_value(x)
            q, k, v = qkv.chunk(3, dim=-1)
            read = block.finish(read, block.attend(block.query(read), k, v))
            if layer < len(blocks) - 1:
                x = block.finish(x, block.attend(q, k, v))
        return tower.project(read)

    tower.passes.add(images=len(embedded))
    return divide(tower.ranks, len(embedded), share)


def read_texts(tower: TextTower, prompts: Prompts, readers: Tensor) -> Tensor:
    """What learned tokens read in the prompts of classes.

    Args:
        prompts: of C classes and one group.
        readers: the learned tokens (K, W), without positions. Each sees the tokens of a class from the start to the
            end-of-text token, neither the others nor itself.
    Returns:
        (C, K, E), not normalised, read out as the end-of-text token is.
    """
    shared = prompts.prefix.shape[1]

    def share(rows: slice) -> Tensor:
        own = Prompts(prompts.prefix, prompts.suffix[:, rows], prompts.eot[rows],
                      None if prompts.ends is None else prompts.ends[rows])
        lengths = own.own_lengths()
        blocks = _plain_blocks(tower)

        def run(chunk: list[int]) -> Tensor:
            buckets = buckets_of(tuple(chunk), tuple(lengths[index] for index in chunk), tower.padding, tower.device)
            return _read_texts(tower, own, readers, buckets, blocks)

        # Of the frozen tokens only what the readers take from them is kept.
        return in_chunks(tower, run, lengths, 1, shared, per_token=0, per_class=KEPT_PER_TOKEN * len(readers))[0]

    tower.passes.add(texts=len(prompts.eot))
    return divide(tower.ranks, len(prompts.eot), share)


def _read_texts(tower: TextTower, prompts: Prompts, readers: Tensor, buckets: list[Bucket],
                blocks: list[Block]) -> Tensor:
    """-> (1, C', K, E), the classes of the buckets in turn."""
    x, shared, sizes = tower.lay_out(prompts, buckets), prompts.prefix.shape[1], [len(bucket) for bucket in buckets]
    read = readers.to(x.dtype).expand(sum(sizes), -1, -1)
    for layer, block in enumerate(blocks):
        qkv = block.query_key_value(x)
        prefix, parts = take_apart(qkv[..., tower.width:], shared, buckets)
        seen = []
        for bucket, query, key_value in zip(buckets, block.query(read).split_with_sizes(sizes), parts):
            keys, values = behind(prefix, key_value)
            seen.append(block.attend(query, keys[0], values[0], mask=bucket.up_to_end(shared, 1, query.dtype)))
        read = block.finish(read, torch.cat(seen))
        if layer < len(blocks) - 1:
            x = tower.run_block(block, x, shared, buckets, qkv)
    return tower.project(read)[None]


def _plain_blocks(tower: Tower) -> list[Block]:
    blocks = tower.blocks
    if any(block.whole for block in blocks):
        raise PromptingError("read-only tokens look into CLIP's own blocks; a block of this CLIP is another one, or "
                             "has hooks")
    return blocks
