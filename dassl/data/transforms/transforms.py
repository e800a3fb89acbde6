"""Image transforms by name (`INPUT.TRANSFORMS`), all of them torchvision's."""
import torch
from torchvision.transforms import (
    AutoAugment,
    AutoAugmentPolicy,
    CenterCrop,
    ColorJitter,
    GaussianBlur,
    InterpolationMode,
    Lambda,
    Normalize,
    RandAugment,
    RandomApply,
    RandomCrop,
    RandomErasing,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToTensor,
)

from dassl.data.transforms.fused import FusedCompose
from dassl.utils import InputError, check_availability

# The shorter side of a picture is resized to INPUT.SIZE, the longer grows up to images.MOST_ASPECT times as long.
MOST_PIXELS_A_SIDE = 1024
AVAI_CHOICES = (
    "random_flip", "random_resized_crop", "normalize", "instance_norm", "random_crop", "random_translation",
    "center_crop", "cutout", "imagenet_policy", "cifar10_policy", "svhn_policy", "randaugment", "gaussian_noise",
    "colorjitter", "randomgrayscale", "gaussian_blur",
)
INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}
POLICIES = {
    "imagenet_policy": AutoAugmentPolicy.IMAGENET,
    "cifar10_policy": AutoAugmentPolicy.CIFAR10,
    "svhn_policy": AutoAugmentPolicy.SVHN,
}


def build_transform(cfg, is_train=True, choices=None):
    """The transform of training or test images, PIL image -> (3, H, W) float tensor.

    Training: the geometric choices in the order crop, flip, then augmentations; without a crop the image is resized to
    INPUT.SIZE. Test: shorter side to the larger of INPUT.SIZE, center crop. INPUT.NO_TRANSFORM returns None.

    Raises:
        InputError: unknown transform or interpolation, or a size that is none.
    """
    if cfg.INPUT.NO_TRANSFORM:
        return None
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    for choice in choices:
        check_availability(choice, AVAI_CHOICES, "INPUT.TRANSFORMS")
    check_availability(cfg.INPUT.INTERPOLATION, INTERPOLATION_MODES, "INPUT.INTERPOLATION")
    size = cfg.INPUT.SIZE
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise InputError(f"INPUT.SIZE must be two whole numbers such as \"(224,224)\", not {tuple(size)}")
    if max(size) > MOST_PIXELS_A_SIDE:
        raise InputError(f"INPUT.SIZE must be at most {MOST_PIXELS_A_SIDE} a side, not {tuple(size)}")
    mean, std = cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise InputError("INPUT.PIXEL_MEAN and INPUT.PIXEL_STD must be three numbers each, those of PIXEL_STD above 0, "
                         f"not {list(mean)} and {list(std)}")
    try:
        steps = (_train if is_train else _test)(cfg, choices, INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION])
    except (ValueError, TypeError, IndexError) as error:
        raise InputError(f"INPUT: a transform refuses its settings ({error})") from None
    if cfg.VERBOSE:
        print(f"Transforms of {'training' if is_train else 'test'} images: "
              + ", ".join(type(step).__name__ for step in steps))
    return FusedCompose(steps)


def _test(cfg, choices, mode):
    size = tuple(cfg.INPUT.SIZE)
    return [Resize(max(size), interpolation=mode), CenterCrop(size), ToTensor(), *_normal(cfg, choices)]


def _normal(cfg, choices):
    steps = []
    if "normalize" in choices:
        steps.append(Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    if "instance_norm" in choices:
        steps.append(Lambda(instance_norm))
    return steps


def _train(cfg, choices, mode):
    """PIL steps, ToTensor, tensor steps."""
    node, size = cfg.INPUT, tuple(cfg.INPUT.SIZE)
    steps = []
    if "random_crop" in choices:
        steps += [Resize(size, interpolation=mode), RandomCrop(size, padding=node.CROP_PADDING)]
    if "random_resized_crop" in choices:
        steps.append(RandomResizedCrop(size, scale=tuple(node.RRCROP_SCALE), interpolation=mode))
    if "random_translation" in choices:
        # Half of the time: enlarge by an eighth, then crop somewhere.
        larger = [round(side * 1.125) for side in size]
        steps += [Resize(size, interpolation=mode),
                  RandomApply([Resize(larger, interpolation=mode), RandomCrop(size)], p=0.5)]
    if "center_crop" in choices:
        steps += [Resize(max(size), interpolation=mode), CenterCrop(size)]
    if not steps:
        steps.append(Resize(size, interpolation=mode))
    if "random_flip" in choices:
        steps.append(RandomHorizontalFlip())
    steps += [AutoAugment(policy) for name, policy in POLICIES.items() if name in choices]
    if "randaugment" in choices:
        steps.append(RandAugment(node.RANDAUGMENT_N, node.RANDAUGMENT_M))
    if "colorjitter" in choices:
        steps.append(ColorJitter(node.COLORJITTER_B, node.COLORJITTER_C, node.COLORJITTER_S, node.COLORJITTER_H))
    if "randomgrayscale" in choices:
        steps.append(RandomGrayscale(p=node.RGS_P))
    if "gaussian_blur" in choices:
        steps.append(RandomApply([GaussianBlur(kernel_size=node.GB_K)], p=node.GB_P))
    steps.append(ToTensor())
    if "cutout" in choices:
        area = node.CUTOUT_LEN ** 2 / (size[0] * size[1])
        steps += [RandomErasing(p=1.0, scale=(area, area), ratio=(1.0, 1.0)) for _ in range(node.CUTOUT_N)]
    steps += _normal(cfg, choices)
    if "gaussian_noise" in choices:
        steps.append(GaussianNoise(node.GN_MEAN, node.GN_STD))
    return steps


def instance_norm(image):
    """Each channel of one image (C, H, W) to mean 0 and deviation 1."""
    return (image - image.mean((1, 2), keepdim=True)) / (image.std((1, 2), keepdim=True) + 1e-8)


class GaussianNoise:
    """Adds noise to half of the images (C, H, W)."""

    def __init__(self, mean, std):
        self.mean, self.std = mean, std

    def __call__(self, image):
        if torch.rand(()) < 0.5:
            return image
        return image + torch.randn_like(image) * self.std + self.mean
