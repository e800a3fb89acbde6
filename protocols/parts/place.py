"""Which cell of which table a run is, and the folder that says so."""
from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass

from protocols.parts.registry import PROTOCOL_REGISTRY, Naming, protocol_named

MARK = "+"  # between a config's name and a variant's in a run's folder


@functools.cache
def _pattern(layout: str, part: str) -> re.Pattern[str]:
    """What finds a layout's fields at the end of a path. part: what stands in its {part}."""
    patterns = {"shots": r"\d+", "seed": r"\d+", "part": part}
    fields = re.sub(r"\\{(\w+)\\}", lambda field: f"(?P<{field[1]}>{patterns.get(field[1], '[^/]+')})",
                    re.escape(layout))
    return re.compile(f"/{fields}$")


@dataclass(frozen=True)
class Place:
    """Which cell of which table a run is.

    Attributes:
        protocol: its registered name.
        dataset: the name of its config; for xd that of the source.
        trainer: the registered name of the method.
        config: the name of the method's config; of a variant "<config>+<variant>".
        part: what the protocol tells its runs apart by, such as a target domain; "all" where there is one run only.
        shots: images per class; None for a protocol that trains on none.
        seed: of every draw.
    """

    protocol: str
    dataset: str
    trainer: str
    config: str
    part: str
    shots: int | None
    seed: int

    @property
    def folder(self) -> str:
        """The run's folder below the output folder, with "/" between names."""
        naming: Naming = protocol_named(self.protocol)
        return naming.layout.format(**vars(self))

    @property
    def variant(self) -> str:
        """The name of the variant (--variant), "" for the method as its config has it."""
        return self.config.partition(MARK)[2]

    @classmethod
    def parse(cls, folder: str | os.PathLike[str], of: str = "") -> Place | None:
        """The Place of a run folder by its path; None for one that lies elsewhere. of: the one protocol that it may be
        of; default any."""
        path = os.path.abspath(folder).replace(os.sep, "/")
        for name, protocol in PROTOCOL_REGISTRY.items():
            if of not in ("", name):
                continue
            found = _pattern(protocol.layout, protocol.part_pattern).search(path)
            if found:
                words: dict[str, str] = {"part": "all", "shots": ""} | found.groupdict()
                return cls(name, words["dataset"], words["trainer"], words["config"], words["part"],
                           int(words["shots"]) if words["shots"] else None, int(words["seed"]))
        return None
