"""The registry of protocols, by their names."""
from __future__ import annotations

import string
from typing import Any, ClassVar

from dassl.utils import InputError
from dassl.utils.registry import Registry

FIELDS = {"dataset", "trainer", "config", "part", "shots", "seed"}  # what a layout may name
NEEDED = {"dataset", "trainer", "config", "seed"}


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
        """As Registry.register. Raises InputError for a protocol whose folders could not be told from others'."""
        if obj is not None:
            require_layout(obj)
        return super().register(obj, force)


def require_layout(protocol: type[Naming]) -> None:
    """Raise InputError unless a protocol's name and layout can be a run's folder, and be read back from it."""
    if not protocol.name.isidentifier():
        raise InputError(f"protocol {protocol.__name__}: its name is '{protocol.name}'; give letters, digits and '_'")
    names = {field for _, field, _, _ in string.Formatter().parse(protocol.layout) if field is not None}
    wrong = names - FIELDS or NEEDED - names
    if wrong or not protocol.layout.startswith(f"{protocol.name}/"):
        raise InputError(f"protocol {protocol.name}: its layout '{protocol.layout}' must begin with {protocol.name}/ "
                         f"and name {{{'}, {'.join(sorted(NEEDED))}}}, also {{part}} and {{shots}} where they differ")


PROTOCOL_REGISTRY = ProtocolRegistry()


def protocol_named(name: str) -> Any:
    """A Protocol as it is without flags of its own. Raises InputError that lists the known names."""
    return PROTOCOL_REGISTRY.get(name)()
