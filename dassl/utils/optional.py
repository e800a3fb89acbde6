"""Modules of Python that not every system has."""
import importlib
from types import ModuleType


def optional_module(name: str) -> ModuleType | None:
    """The module of a name; None where this system has none: `fcntl` and `resource` are for POSIX systems."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
