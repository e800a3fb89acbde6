"""AugMix: Hendrycks et al., "AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty", arXiv
1912.02781, section 3, in the form in which test-time prompt tuning makes its views.

torchvision's AugMix mixes whole numbers from 0 to 255; here pictures are mixed behind the normalisation. Its strengths
are steps of a table, too, of which severity 1 only has the first, where most operations change nothing.
"""
import random

from PIL import Image, ImageOps

MOST = 10  # an operation is at its strongest at this level
WIDTH, DEPTHS = 3, (1, 2, 3)  # chains, and operations of a chain


def _either(amount):
    return amount if random.random() < 0.5 else -amount


def _affine(picture, matrix):
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)


def autocontrast(picture, share):
    return ImageOps.autocontrast(picture)


def equalize(picture, share):
    return ImageOps.equalize(picture)


def posterize(picture, share):
    return ImageOps.posterize(picture, 4 - int(4 * share))


def rotate(picture, share):
    return picture.rotate(_either(int(30 * share)), resample=Image.Resampling.BILINEAR)


def solarize(picture, share):
    return ImageOps.solarize(picture, 256 - int(256 * share))


def shear_x(picture, share):
    return _affine(picture, (1, _either(0.3 * share), 0, 0, 1, 0))


def shear_y(picture, share):
    return _affine(picture, (1, 0, 0, _either(0.3 * share), 1, 0))


def translate_x(picture, share):
    return _affine(picture, (1, 0, _either(int(picture.width / 3 * share)), 0, 1, 0))


def translate_y(picture, share):
    return _affine(picture, (1, 0, 0, 0, 1, _either(int(picture.height / 3 * share))))


OPERATIONS = (autocontrast, equalize, posterize, rotate, solarize, shear_x, shear_y, translate_x, translate_y)


class AugMix:
    """m x + (1 - m) sum_k w_k x_k: x the picture, x_k what a chain of one to three operations makes of it; w from
    Dirichlet(1, 1, 1), m from Beta(1, 1), an operation's level from U(0.1, severity) of 10.

    Draws from the generator of `random`.

    Args:
        finish: PIL image -> (3, H, W), such as ToTensor and Normalize; what it gives is mixed.
        severity: 0.1 to 10.
    """

    def __init__(self, finish, severity=1.0):
        self.finish, self.severity = finish, severity

    def __call__(self, picture):
        """PIL image -> (3, H, W)."""
        shares = [random.expovariate(1) for _ in range(WIDTH)]  # in proportion: Dirichlet(1, ..., 1)
        kept = random.betavariate(1, 1)
        mixed = kept * self.finish(picture)
        for share in shares:
            mixed = mixed + (1 - kept) * share / sum(shares) * self.finish(self.chain(picture))
        return mixed

    def chain(self, picture):
        """The picture after one to three operations, drawn one by one."""
        for _ in range(random.choice(DEPTHS)):
            operation = random.choice(OPERATIONS)
            picture = operation(picture, random.uniform(0.1, self.severity) / MOST)
        return picture
