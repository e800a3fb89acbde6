"""Hand-written prompts.

Sources. The template of each dataset is CoOp's (Zhou et al., arXiv 2109.01134, its zero-shot baseline). The 80 ImageNet
templates, and the 7 selected of them, are CLIP's (Radford et al., arXiv 2103.00020, the authors' prompt notebook).
MetaPrompt's frozen prompts (arXiv 2212.04196) are these without the period, with "a photo of a {}" for Food101. Where
the authors of KgCoOp (arXiv 2303.13283), TCP (2311.18231) and ProGrad (2205.14865) use other templates, theirs are
below, from their repositories htyao89/KgCoOp, htyao89/Textual-based_Class-aware_prompt_tuning and
BeierZhu/Prompt-align.
"""
from __future__ import annotations

from collections.abc import Sequence

from prompting.errors import PromptingError

DEFAULT = "a photo of a {}."

DATASET_TEMPLATES = {
    "OxfordPets": "a photo of a {}, a type of pet.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "Food101": "a photo of {}, a type of food.",
    "UCF101": "a photo of a person doing {}.",
}

# Only what differs from the templates above.
KGCOOP_TEMPLATES = {"DescribableTextures": "a photo of a {}, a type of texture."}
TCP_TEMPLATES = {
    "FGVCAircraft": "a photo of an aircraft {}.",
    "DescribableTextures": "a photo of a {}, a type of texture.",
    "Food101": "a photo of a {}, a type of food.",
}
LEADING_TEMPLATES = {  # ProGrad's, whose words all stand before the name
    "OxfordPets": "a type of pet, a photo of a {}.",
    "OxfordFlowers": "a type of flower, a photo of a {}.",
    "FGVCAircraft": "a type of aircraft, a photo of a {}.",
    "DescribableTextures": "a texture of {}.",
    "Food101": "a type of food, a photo of {}.",
}
TCP_WORDS = {  # (before, after) the name in TCP's learned prompt, behind the context
    "OxfordPets": ("", ", a type of pet."),
    "OxfordFlowers": ("", ", a type of flower."),
    "FGVCAircraft": ("", ", a type of aircraft."),
    "DescribableTextures": ("", " texture."),
    "StanfordCars": ("", ", a type of car"),
    "Food101": ("", ", a type of food."),
    "UCF101": ("person doing", "."),
}

IMAGENET_SELECT = (
    "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.", "a {} in a video game.",
    "art of the {}.", "a photo of the small {}.",
)

IMAGENET_ALL = (
    "a bad photo of a {}.", "a photo of many {}.", "a sculpture of a {}.", "a photo of the hard to see {}.",
    "a low resolution photo of the {}.", "a rendering of a {}.", "graffiti of a {}.", "a bad photo of the {}.",
    "a cropped photo of the {}.", "a tattoo of a {}.", "the embroidered {}.", "a photo of a hard to see {}.",
    "a bright photo of a {}.", "a photo of a clean {}.", "a photo of a dirty {}.", "a dark photo of the {}.",
    "a drawing of a {}.", "a photo of my {}.", "the plastic {}.", "a photo of the cool {}.",
    "a close-up photo of a {}.", "a black and white photo of the {}.", "a painting of the {}.", "a painting of a {}.",
    "a pixelated photo of the {}.", "a sculpture of the {}.", "a bright photo of the {}.", "a cropped photo of a {}.",
    "a plastic {}.", "a photo of the dirty {}.", "a jpeg corrupted photo of a {}.", "a blurry photo of the {}.",
    "a photo of the {}.", "a good photo of the {}.", "a rendering of the {}.", "a {} in a video game.",
    "a photo of one {}.", "a doodle of a {}.", "a close-up photo of the {}.", "a photo of a {}.", "the origami {}.",
    "the {} in a video game.", "a sketch of a {}.", "a doodle of the {}.", "a origami {}.",
    "a low resolution photo of a {}.", "the toy {}.", "a rendition of the {}.", "a photo of the clean {}.",
    "a photo of a large {}.", "a rendition of a {}.", "a photo of a nice {}.", "a photo of a weird {}.",
    "a blurry photo of a {}.", "a cartoon {}.", "art of a {}.", "a sketch of the {}.", "a embroidered {}.",
    "a pixelated photo of a {}.", "itap of the {}.", "a jpeg corrupted photo of the {}.", "a good photo of a {}.",
    "a plushie {}.", "a photo of the nice {}.", "a photo of the small {}.", "a photo of the weird {}.",
    "the cartoon {}.", "art of the {}.", "a drawing of the {}.", "a photo of the large {}.",
    "a black and white photo of a {}.", "the plushie {}.", "a dark photo of a {}.", "itap of a {}.",
    "graffiti of the {}.", "a toy {}.", "itap of my {}.", "a photo of a cool {}.", "a photo of a small {}.",
    "a tattoo of the {}.",
)

# What the text prompts of PLOT++ (CHENGY12/PLOT, plot-pp) start from.
TRANSPORT_STARTS = {
    "ImageNet": ("a photo of a", "this is a photo", "this is a", "one picture of a"),
    "DescribableTextures": ("a photo of a texture", "this is a photo texture", "this is a picture texture",
                            "one picture of a texture"),
    "EuroSAT": ("a centered satellite photo of", "a centered satellite picture of",
                "this is centered satellite photo of", "one centered satellite photo of a"),
    "FGVCAircraft": ("a photo of an aircraft", "a picture of an aircraft", "this is aircraft picture of",
                     "one picture of an aircraft"),
    "Food101": ("a photo of a food", "this is a food photo", "this is food picture of", "one picture of a food"),
    "OxfordFlowers": ("a photo of a flower", "one picture of a flower", "this is flower picture of",
                      "one picture of a flower"),
    "OxfordPets": ("a photo of a pet", "one picture of a pet", "this is pet picture of", "one picture of a pet"),
    "UCF101": ("a photo of a person doing", "this is a photo people doing", "this is picture of people doing",
               "one picture of a person doing"),
}
DEFAULT_STARTS = ("a photo of a", "this is a photo", "this is picture of", "one picture of a")  # Caltech101's

IMAGENET_FIRST_60 = IMAGENET_ALL[:60]  # PromptSRC's (arXiv 2307.06948), from the authors' code


def fill(template: str, name: str) -> str:
    """The prompt of a class: the template with `name` in the place of each `{}`."""
    return template.replace("{}", name)


def check_templates(templates: object, where: str) -> None:
    """Raise PromptingError, which names the setting `where`, unless `templates` is a list of texts, each with `{}` for
    the class name, with no other braces, and given once. Two templates in one text, with a comma between them, are
    refused, too."""
    if not isinstance(templates, (list, tuple)):
        raise PromptingError(f"{where} must be a list of templates, not {templates!r}")
    for template in templates:
        if not isinstance(template, str):
            raise PromptingError(f"{where}: {template!r} is not a text; write templates such as \"{DEFAULT}\"")
        rest = template.replace("{}", "")
        if rest == template:
            raise PromptingError(f"{where}: the template '{template}' lacks {{}}, which stands for the class name; "
                                 f"write it such as \"{DEFAULT}\"")
        if "{" in rest or "}" in rest:
            raise PromptingError(f"{where}: the template '{template}' has more braces than those of {{}}, which stands "
                                 "for the class name")
        if any("," in between for between in template.split("{}")[1:-1]):
            raise PromptingError(f"{where}: '{template}' looks like several templates in one text; give them as a list "
                                 "such as \"['a photo of a {}.', 'a sketch of a {}.']\"")
    twice = next((template for i, template in enumerate(templates) if template in templates[:i]), None)
    if twice is not None:
        raise PromptingError(f"{where} gives the template '{twice}' twice")


def template_of(dataset: str) -> str:
    """The one template of a dataset; "a photo of a {}." where none was published."""
    return DATASET_TEMPLATES.get(dataset, DEFAULT)


def ensemble_of(dataset: str, everything: bool = False, own: Sequence[str] = ()) -> list[str]:
    """The 7 selected ImageNet templates and the dataset's own (unless it is ImageNet), or all 80. The user's `own`
    templates take the place of the dataset's."""
    if everything:
        return list(IMAGENET_ALL)
    if own:
        return list(dict.fromkeys([*IMAGENET_SELECT, *own]))
    return [*IMAGENET_SELECT] + ([] if dataset == "ImageNet" else [template_of(dataset)])


def frozen_templates_of(dataset: str) -> list[str]:
    """MetaPrompt's frozen prompts: the dataset's template without its period; 8 templates for ImageNet and its kin."""
    if "ImageNet" in dataset:
        return [t.rstrip(".") for t in (*IMAGENET_SELECT, DEFAULT)]
    if dataset == "Food101":
        return ["a photo of a {}, a type of food"]
    return [template_of(dataset).rstrip(".")]


def cache_templates_of(dataset: str) -> list[str]:
    """Tip-Adapter's (arXiv 2207.09519): the dataset's template; the 7 selected ones for ImageNet."""
    return list(IMAGENET_SELECT) if dataset == "ImageNet" else [template_of(dataset)]


def residual_templates_of(dataset: str) -> list[str]:
    """TaskRes's (arXiv 2211.10277): the dataset's template; for ImageNet the 7 selected ones beside it."""
    return [*IMAGENET_SELECT, DEFAULT] if dataset == "ImageNet" else [template_of(dataset)]


def transport_starts_of(dataset: str) -> tuple[str, ...]:
    """The words that the four text prompts of PLOT++ start from; those of Caltech101 where none were published."""
    return TRANSPORT_STARTS.get(dataset, DEFAULT_STARTS)


def kgcoop_template_of(dataset: str) -> str:
    """The template whose features KgCoOp holds the learned ones near."""
    return KGCOOP_TEMPLATES.get(dataset, template_of(dataset))


def tcp_template_of(dataset: str) -> str:
    """The template of TCP's frozen class features."""
    return TCP_TEMPLATES.get(dataset, template_of(dataset))


def tcp_words_of(dataset: str, own: Sequence[str] = ()) -> tuple[str, str]:
    """(before, after): the fixed words around the class name in TCP's learned prompt. Where the user has templates of
    their `own`, nothing stands before the name, and what the first of them has behind it stands after."""
    if own:
        return "", own[0].rpartition("{}")[2]
    return TCP_WORDS.get(dataset, ("", "."))


def leading_template_of(dataset: str) -> str:
    """A template with all its words before the class name, so that a context can start from them (ProGrad)."""
    return LEADING_TEMPLATES.get(dataset, template_of(dataset))


def leading_words(template: str) -> str | None:
    """The words before the class name; None for a template with words behind it."""
    before, _, after = template.partition("{}")
    return before.strip() if not after.strip(" .") else None
