from dassl.data.transforms.fused import FusedCompose
from dassl.data.transforms.transforms import INTERPOLATION_MODES, build_transform

__all__ = ["INTERPOLATION_MODES", "FusedCompose", "build_transform"]
