"""CLIP made promptable: towers, class prompts, episodes, templates. No engine, no config objects."""
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # clip imports pkg_resources, which announces its end at each start
    import clip  # noqa: F401

from prompting.backbone import Towers, load_clip
from prompting.errors import PromptingError
from prompting.text import ClassPrompts

__all__ = ["ClassPrompts", "PromptingError", "Towers", "load_clip"]
