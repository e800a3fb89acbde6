"""OpenAI's CLIPs by name: how they are built and how large their files are, known without a download."""
from __future__ import annotations

import os
from dataclasses import dataclass

from prompting.weights import CACHE, converted, published_urls


@dataclass(frozen=True)
class Published:
    """A published CLIP.

    Attributes:
        resolution: pixels per side of its images.
        embed_dim, text_width, image_width: channels of the features and of each tower.
        blocks: blocks of the image tower, one number per stage for a ResNet.
        patch: pixels per side of a patch; 0 for a ResNet.
        megabytes: of the file, about.
    """

    resolution: int
    embed_dim: int
    text_width: int
    image_width: int
    blocks: int | tuple[int, ...]
    patch: int
    megabytes: int


TEXT_BLOCKS = 12
# Written out, with no look into OpenAI's module: that takes seconds to import, and every config is built with this.
PUBLISHED = {
    "RN50": Published(224, 1024, 512, 64, (3, 4, 6, 3), 0, 244),
    "RN101": Published(224, 512, 512, 64, (3, 4, 23, 3), 0, 278),
    "RN50x4": Published(288, 640, 640, 80, (4, 6, 10, 6), 0, 402),
    "RN50x16": Published(384, 768, 768, 96, (6, 8, 18, 8), 0, 630),
    "RN50x64": Published(448, 1024, 1024, 128, (3, 15, 36, 10), 0, 1260),
    "ViT-B/32": Published(224, 512, 512, 768, 12, 32, 338),
    "ViT-B/16": Published(224, 512, 512, 768, 12, 16, 335),
    "ViT-L/14": Published(224, 768, 768, 1024, 24, 14, 890),
    "ViT-L/14@336px": Published(336, 768, 768, 1024, 24, 14, 891),
}


def at_hand(name: str, cache: str = CACHE) -> bool:
    """Whether the weights of a published name lie in the cache, as they were downloaded or as tensors."""
    url = published_urls()[name]
    folder = os.path.expanduser(cache)
    return any(os.path.isfile(path) for path in (converted(url.split("/")[-2], folder),
                                                 os.path.join(folder, os.path.basename(url))))
