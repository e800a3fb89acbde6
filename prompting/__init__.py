"""CLIP made promptable: towers, class prompts, episodes, templates. No engine, no config objects."""
import warnings

from prompting.backbone import Towers, load_clip
from prompting.errors import PromptingError
from prompting.text import ClassPrompts

# A method's file may import clip, and that pkg_resources, which announces its end at each start.
warnings.filterwarnings("ignore", message="pkg_resources is deprecated", module="clip")

__all__ = ["ClassPrompts", "PromptingError", "Towers", "load_clip"]
