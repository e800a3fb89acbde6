"""Results of runs by their places, to choose from and to average."""
from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from protocols.parts.marks import among_one_class, marks_of
from protocols.parts.numbers import Column
from protocols.parts.place import MARK, Place

COMPARED = ("ZeroshotCLIP", "CoOp", "CoCoOp", "MetaPrompt")  # what `compare` takes by default
Look = dict[str, dict[str, str]]  # {method: its colour, marker, hatch and line} in figures


def accuracy(results: Mapping[str, Any]) -> float | None:
    """Test accuracy in percent, None for a run without a test, or whose test images have one class."""
    if among_one_class(results):
        return None
    found: float | None = results["metrics"].get("test", {}).get("accuracy")
    return found


class Cells(dict[Place, "dict[str, Any]"]):
    """{Place: results}, to choose from by the fields of a Place."""

    def where(self, **fields: Any) -> Cells:
        """The cells whose Place has these values: `cells.where(dataset="pacs", part="sketch")`."""
        if not fields:
            return Cells(self)
        asked = operator.attrgetter(*fields)  # a value, of several fields a tuple
        wanted = tuple(fields.values()) if len(fields) > 1 else next(iter(fields.values()))
        return Cells({place: results for place, results in self.items() if asked(place) == wanted})

    def values(self, field: str | None = None) -> Any:
        """The values of a field of the places, each once, in order: a list. Without a field, the results."""
        return super().values() if field is None else list(dict.fromkeys(getattr(place, field) for place in self))

    def by_seed(self) -> Column:
        """The Column of the cells, which must differ in their seed only."""
        return Column({place.seed: accuracy(results) for place, results in self.items()},
                      {place.seed: marks_of(place, results) for place, results in self.items()})

    def methods(self) -> list[tuple[str, Cells]]:
        """[(name, its cells)]; a trainer that was run with several configs is named with each, a variant with its name.
        """
        trainers: dict[str, dict[str, str]] = {}
        for place in self:
            trainers.setdefault(place.trainer, {})[place.config] = place.variant
        named = []
        for trainer, configs in trainers.items():
            alone = len({config.removesuffix(f"{MARK}{variant}") for config, variant in configs.items()}) == 1
            for config, variant in configs.items():
                name = variant if alone else config
                named.append((f"{trainer} ({name})" if name else trainer, self.where(trainer=trainer, config=config)))
        return named
