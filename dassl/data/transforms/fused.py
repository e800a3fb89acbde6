"""torchvision's Compose, at less cost where pixels become numbers."""
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import Compose, Normalize, ToTensor

LEAST_STD = 1e-6  # below it a quotient may overflow, of which numpy warns and torch does not


class FusedCompose(Compose):
    """A Compose that gives the same bits: of an RGB picture ToTensor, and Normalize behind it, are one pass over each
    colour, in place. What is no torchvision step of exactly these classes is called as it is."""

    def __call__(self, image):
        steps = list(self.transforms)
        while steps:
            step = steps.pop(0)
            if type(step) is ToTensor and _is_rgb(image) and torch.get_default_dtype() is torch.float32:
                image = _tensor_of(image, steps.pop(0) if steps and _is_of_three(steps[0]) else None)
            else:
                image = step(image)
        return image


def _is_rgb(image):
    return isinstance(image, Image.Image) and image.mode == "RGB"


def _is_of_three(step):
    return (type(step) is Normalize and all(isinstance(part, (list, tuple)) and len(part) == 3
                                            for part in (step.mean, step.std)) and min(step.std) > LEAST_STD)


def _tensor_of(image, normal):
    """(3, H, W) float32, from 0 to 1, or as the Normalize `normal` makes it. Rounds as torch does, step by step."""
    tensor = torch.empty(3, image.height, image.width)
    for number, (colour, values) in enumerate(zip(image.split(), tensor.numpy())):
        values[...] = np.frombuffer(colour.tobytes(), np.uint8).reshape(values.shape)
        values /= np.float32(255)
        if normal is not None:
            values -= np.float32(normal.mean[number])
            values /= np.float32(normal.std[number])
    return tensor
