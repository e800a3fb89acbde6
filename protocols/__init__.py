"""Protocols: which runs are made, where they lie, and how their numbers are shown; one protocol a file.

Every file here is imported and registers its protocol, so that adding a file is all there is to do; what they share is
in protocols/parts.
"""
import sys

from dassl.utils import import_package_modules
from protocols.base import Protocol, TestSet
from protocols.parts.cells import Cells
from protocols.parts.drawing import Drawing
from protocols.parts.numbers import Number, average
from protocols.parts.place import Place
from protocols.parts.plan import Dataset, Run, RunMaker, class_bound
from protocols.parts.registry import PROTOCOL_REGISTRY, protocol_named
from protocols.parts.tables import Table, by_method, by_seed

__all__ = ["PROTOCOL_REGISTRY", "Cells", "Dataset", "Drawing", "Number", "Place", "Protocol", "Run", "RunMaker",
           "Table", "TestSet", "average", "by_method", "by_seed", "class_bound", "protocol_named"]

import_package_modules(sys.modules[__name__])
