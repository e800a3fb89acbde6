"""The registry of protocols, by their names."""
from __future__ import annotations

import re
import string
from typing import Any, ClassVar

from dassl.utils import InputError
from dassl.utils.registry import Registry

FIELDS = {"dataset", "trainer", "config", "part", "shots", "seed"}  # what a layout may name
NEEDED = {"dataset", "trainer", "config", "seed"}
RESERVED = ("compare",)  # words of metaprompt protocol that are no protocols


class Naming:
    """How the runs of a protocol are told apart, in folders and in words; the part of `protocols.base.Protocol` that
    finding a run's place needs."""

    name: ClassVar[str] = ""
    layout: ClassVar[str] = ""
    part_pattern: ClassVar[str] = "[^/]+"
    several_shots: ClassVar[bool] = False

    def part_words(self, part: str) -> str:
        """A part in words; "" where there is nothing to say."""
        return "" if part == "all" else part


class ProtocolRegistry(Registry):
    """Protocol classes by their `name`. A class of the same name from another file replaces the one before with a
    notice: plugins come by train.py, too, which knows of no protocols."""

    def __init__(self) -> None:
        super().__init__("PROTOCOL")
        self._replacing = True

    def name_of(self, obj: type[Naming]) -> str:
        return obj.name

    def register(self, obj: Any = None, force: bool = False) -> Any:
        """As Registry.register. Raises InputError for a protocol whose folders could not be told from others', or whose
        attributes do not go together."""
        if obj is not None:
            require_layout(obj)
            require_attributes(obj)
        return super().register(obj, force)


def require_layout(protocol: type[Naming]) -> None:
    """Raise InputError unless a protocol's name and layout can be a run's folder, and be read back from it."""
    if not re.fullmatch("[a-z][a-z0-9_]*", str(protocol.name)) or protocol.name in RESERVED:
        taken = "is a command of its own" if protocol.name in RESERVED else "is no word"
        raise InputError(f"protocol {protocol.__name__}: its name is '{protocol.name}', which {taken}; give another "
                         "one of small letters, digits and '_'")
    names = {field for _, field, _, _ in string.Formatter().parse(protocol.layout) if field is not None}
    wrong = names - FIELDS or NEEDED - names
    if wrong or not protocol.layout.startswith(f"{protocol.name}/"):
        raise InputError(f"protocol {protocol.name}: its layout '{protocol.layout}' must begin with {protocol.name}/ "
                         f"and name {{{'}, {'.join(sorted(NEEDED))}}}, also {{part}} and {{shots}} where they differ")


def require_attributes(protocol: Any) -> None:
    """Raise InputError unless a protocol says which runs it makes, and its defaults are such as the flags take."""
    said = f"protocol {protocol.name}: "
    if not callable(getattr(protocol, "plan", None)) or getattr(protocol.plan, "missing", False):
        raise InputError(f"{said}it has no method `plan`, which yields its runs")
    for name, least in (("shots", 1), ("seeds", 0)):
        value = getattr(protocol, name, ())
        whole = isinstance(value, (tuple, list)) and all(type(number) is int and number >= least for number in value)
        if not whole or (name == "seeds" and hasattr(protocol, name) and not value):
            raise InputError(f"{said}`{name}` is {value!r}; give a tuple of whole numbers from {least} on, such as "
                             f"{name} = (4,)")
    for name in ("methods", "kinds"):
        value = getattr(protocol, name, ())
        if not isinstance(value, (tuple, list)) or not all(isinstance(word, str) for word in value):
            raise InputError(f"{said}`{name}` is {value!r}; give a tuple of words, such as {name} = ('One',)")
    shots = getattr(protocol, "shots", ())
    if len(shots) > 1 and not protocol.several_shots:
        raise InputError(f"{said}`shots` has {len(shots)} numbers; also say several_shots = True, or give one")
    if protocol.several_shots and "{shots}" not in protocol.layout:
        raise InputError(f"{said}it takes several shots, so its layout '{protocol.layout}' must name {{shots}}")


PROTOCOL_REGISTRY = ProtocolRegistry()


def protocol_named(name: str) -> Any:
    """A Protocol as it is without flags of its own. Raises InputError that lists the known names."""
    return PROTOCOL_REGISTRY.get(name)()
