"""Results of runs by their places, to choose from and to average."""
from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from dassl.utils import InputError
from protocols.parts.marks import among_one_class, marks_of
from protocols.parts.numbers import Column
from protocols.parts.place import MARK, Place

COMPARED = ("ZeroshotCLIP", "CoOp", "CoCoOp", "MetaPrompt")  # what `compare` takes by default
Look = dict[str, dict[str, Any]]  # {method: its colour, marker, hatch and line} in figures


def accuracy(results: Mapping[str, Any], metric: str = "accuracy") -> float | None:
    """Test accuracy in percent, None for a run without a test, or whose test images have one class.

    metric: another number of the run's metrics instead. Raises InputError for one that a tested run does not have."""
    tested = results["metrics"].get("test", {})
    if tested and metric not in tested and metric != "accuracy":
        raise InputError(f"a run has no metric '{metric}'; it has {', '.join(tested)}")
    if among_one_class(results):
        return None
    found: float | None = tested.get(metric)
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

    def by_seed(self, metric: str = "accuracy") -> Column:
        """The Column of the cells, which must differ in their seed only.

        metric: which number of a run's metrics (`results.json`), such as "macro_f1".
        Raises:
            InputError: the cells differ in more than their seed, or a run does not have the metric."""
        if len(self) > 1:
            for field in ("protocol", "dataset", "trainer", "config", "part", "shots"):
                if len(found := self.values(field)) > 1:
                    raise InputError(f"cells differ in {field}: {', '.join(map(str, found))}; choose with where(...)")
        return Column({place.seed: accuracy(results, metric) for place, results in self.items()},
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
