"""OpenAI's `clip`, imported only where it is needed: with torchvision that takes two seconds and 200 MB, and tools that
only look at finished runs do without it."""
from __future__ import annotations

import functools
import warnings
from types import ModuleType
from typing import Any


@functools.cache
def openai_clip() -> ModuleType:
    """The module `clip.clip`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports pkg_resources, which announces its end at each start
        from clip import clip
    module: ModuleType = clip
    return module


class _Tokenizer:
    """CLIP's own tokenizer, taken from its module at the first use."""

    def encode(self, text: str) -> list[int]:
        """The token numbers of a text, without start and end."""
        tokens: list[int] = openai_clip()._tokenizer.encode(text)
        return tokens

    def decode(self, tokens: list[int]) -> str:
        text: str = openai_clip()._tokenizer.decode(tokens)
        return text

    def __getattr__(self, name: str) -> Any:
        return getattr(openai_clip()._tokenizer, name)


tokenizer = _Tokenizer()
