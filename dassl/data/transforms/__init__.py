from dassl.data.transforms.steps import Steps
from dassl.data.transforms.transforms import INTERPOLATION_MODES, build_transform

__all__ = ["INTERPOLATION_MODES", "Steps", "build_transform"]
