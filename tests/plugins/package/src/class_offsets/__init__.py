"""A method and a dataset; importing the package registers both. The entry-point group `dassl.plugins` names it."""
from .discs import Discs
from .method import ClassOffsets

__all__ = ["Discs", "ClassOffsets"]
