"""A neighbour of coop_style.py."""
from clip import clip


def prompts_of(names, context):
    return clip.tokenize([f"{context} {name.replace('_', ' ')}." for name in names])
