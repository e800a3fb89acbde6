"""CLIP made promptable: towers, class prompts, episodes, templates. No engine, no config objects."""
import warnings

from prompting.backbone import load_clip
from prompting.class_prompts import ClassPrompts, readable
from prompting.errors import PromptingError
from prompting.towers import Towers, normalize

# A method's file may import clip, which imports pkg_resources, which announces its end at each start.
warnings.filterwarnings("ignore", message="pkg_resources is deprecated", module="clip")

__all__ = ["ClassPrompts", "PromptingError", "Towers", "load_clip", "normalize", "readable"]
