"""CLIP made promptable: towers, class prompts, episodes, templates. No engine, no config objects."""
from prompting.backbone import Towers, load_clip
from prompting.errors import PromptingError
from prompting.text import ClassPrompts

__all__ = ["ClassPrompts", "PromptingError", "Towers", "load_clip"]
