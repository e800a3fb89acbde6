"""What a measurement runs on: a CLIP of random weights, ImageNet's class names, drawn batches."""
import torch
from clip.model import CLIP
from torchvision.models import ResNet50_Weights

from prompting import PromptingError, load_clip

SEED = 0
VIT_B16 = {"embed_dim": 512, "image_resolution": 224, "vision_layers": 12, "vision_width": 768, "vision_patch_size": 16,
           "context_length": 77, "vocab_size": 49408, "transformer_width": 512, "transformer_heads": 8,
           "transformer_layers": 12}


def random_clip(name):
    """A frozen `clip.model.CLIP` in float32: "ViT-B/16" with random weights (time does not depend on their values),
    "tiny" as it is shipped.

    Raises:
        PromptingError: another name.
    """
    if name == "tiny":
        return load_clip(name)
    if name != "ViT-B/16":
        raise PromptingError(f"the benchmark's backbones are ViT-B/16 and tiny, not '{name}'")
    torch.manual_seed(SEED)
    return CLIP(**VIT_B16).eval().requires_grad_(False)


def class_names(number):
    """The first `number` of ImageNet's class names, as torchvision lists them.

    Raises:
        PromptingError: fewer than 1 or more than 1000.
    """
    names = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    if not 1 <= number <= len(names):
        raise PromptingError(f"there are 1 to {len(names)} classes to measure with, not {number}")
    return names[:number]


def random_batch(resolution, n_cls, size, domains, device):
    """Images (size, 3, resolution, resolution), labels spread over the classes, domains in turn."""
    generator = torch.Generator().manual_seed(SEED)
    return {
        "img": torch.randn(size, 3, resolution, resolution, generator=generator).to(device),
        "label": torch.linspace(0, n_cls - 1, size).round().long().to(device),
        "domain": (torch.arange(size) % domains).to(device),
    }
