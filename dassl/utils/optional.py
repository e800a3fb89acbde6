"""Modules that not every installation has."""
import importlib
from types import ModuleType

from dassl.utils.errors import InputError


def optional_module(name: str) -> ModuleType | None:
    """The module of a name; None where this system has none: `fcntl` and `resource` are for POSIX systems."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def module_of_extra(name: str, extra: str, purpose: str) -> ModuleType:
    """The module of a name, which the package's extra `extra` installs.

    Args:
        purpose: what it is needed for, the beginning of the message.
    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise InputError(f"{purpose} needs {name}, which is not installed here: pip install {name}, or "
                         f"pip install -e '.[{extra}]' in the toolkit's folder") from None
