"""OpenAI's `clip`, imported where something is computed with it: with torchvision that takes two seconds and 200 MB,
and tools that only look at finished runs need none of it."""
import functools
import warnings


@functools.cache
def openai_clip():
    """The module `clip.clip`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports pkg_resources, which announces its end at each start
        from clip import clip
    return clip


class _Tokenizer:
    """CLIP's own, which is in its module."""

    def __getattr__(self, name):
        return getattr(openai_clip()._tokenizer, name)


tokenizer = _Tokenizer()
