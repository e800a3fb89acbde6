"""Protocols: which runs are made, where they lie, and how their numbers are shown; one protocol a file.

Every file here is imported and registers its protocol, so that adding a file is all there is to do; what they share is
in protocols/parts.
"""
import sys

from dassl.utils import import_package_modules
from protocols.base import Protocol, TestSet, by_dataset
from protocols.parts.cells import Cells
from protocols.parts.drawing import Drawing, bar_chart, shot_curves
from protocols.parts.numbers import Column, Number, average, difference, harmonic
from protocols.parts.place import Place
from protocols.parts.plan import Dataset, Run, RunMaker, class_bound
from protocols.parts.registry import PROTOCOL_REGISTRY, protocol_named
from protocols.parts.stored_run import StoredRun
from protocols.parts.tables import Table, by_method, by_seed, seconds_per_seed, seeds_across

# All that a protocol needs.
__all__ = ["PROTOCOL_REGISTRY", "Cells", "Column", "Dataset", "Drawing", "Number", "Place", "Protocol", "Run",
           "RunMaker", "StoredRun", "Table", "TestSet", "average", "bar_chart", "by_dataset", "by_method", "by_seed",
           "class_bound", "difference", "harmonic", "protocol_named", "seconds_per_seed", "seeds_across", "shot_curves"]

import_package_modules(sys.modules[__name__])
