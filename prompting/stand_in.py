"""A small CLIP of random weights in the place of a published one, to find out what a method can do with that."""
from __future__ import annotations

from typing import TYPE_CHECKING

from prompting.published import PUBLISHED, TEXT_BLOCKS
from prompting.weights import VOCABULARY

if TYPE_CHECKING:
    from clip.model import CLIP

HEAD = 64
SHARE = 4  # of the published widths


def small_width(width: int) -> int:
    """The width of a stand-in's tower: a quarter, in whole heads."""
    return HEAD * -(-width // (SHARE * HEAD))


def stand_in(name: str) -> CLIP:
    """A CLIP with the kind, the image size and, for a ViT, the number of blocks of a published one, about a quarter as
    wide. Its features mean nothing.

    Args:
        name: a key of PUBLISHED.
    """
    from clip.model import CLIP

    known, text = PUBLISHED[name], small_width(PUBLISHED[name].text_width)
    vit = bool(known.patch)
    model = CLIP(
        embed_dim=known.embed_dim // SHARE, image_resolution=known.resolution,
        vision_layers=known.blocks if vit else (1, 1, 1, 1),  # a ResNet's are no matter
        vision_width=small_width(known.image_width) if vit else known.image_width // SHARE,
        vision_patch_size=known.patch if vit else None, context_length=77, vocab_size=VOCABULARY,
        transformer_width=text, transformer_heads=text // HEAD, transformer_layers=TEXT_BLOCKS)
    model.weights_digest = "stand-in"  # where load_clip says what file it is
    return model.float().eval().requires_grad_(False)


def full_dimension(small: int, name: str) -> int:
    """What a dimension of a tensor made for a stand-in is for the published CLIP: a width, or 2, 3, 4 or 8 times or a
    half or a quarter of one, becomes that of the published width; any other number stays."""
    known = PUBLISHED[name]
    widths = {small_width(known.text_width): known.text_width, known.embed_dim // SHARE: known.embed_dim,
              small_width(known.image_width) if known.patch else 0: known.image_width}
    widths.pop(0, None)
    for times, parts in ((1, 1), (1, 2), (1, 4), (2, 1), (3, 1), (4, 1), (8, 1)):
        for width, full in widths.items():
            if small * parts == width * times:
                return full * times // parts
    return small
