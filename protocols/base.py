"""What a protocol is: a class that says which runs it makes, where they lie, and how their numbers are shown.

A new protocol is a file with one class, in protocols/ or anywhere with --plugin. It gives `name`, `words`, `layout` and
`plan`; all else has a default that suits a protocol with one table per dataset. docs/PROTOCOLS.md has an example.
"""
from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dassl.utils import printable
from protocols.parts.cells import Cells
from protocols.parts.drawing import Drawing, bar_chart
from protocols.parts.place import Place
from protocols.parts.plan import Run, RunMaker
from protocols.parts.registry import Naming
from protocols.parts.stored_run import StoredRun
from protocols.parts.tables import Table, by_method, by_seed


@dataclass
class TestSet:
    """What is averaged before two methods are compared.

    Attributes:
        title: of the table of differences.
        members: fields of Places, a dict per set of test images.
        together: whether one training is tested on all of them, or trainings that share images of their seed.

    Members of one dataset that have test images in common are compared each by itself
    (tools/results/comparisons.py): averaged, these images would count several times.
    """

    __test__ = False  # pytest is not to collect it

    title: str
    members: list[dict[str, Any]]
    together: bool = False


class Protocol(Naming):
    """What every protocol says. An object is made of the class with the values of its own flags, if it has any; for
    tables of finished runs without them.

    Attributes:
        name: the word for `metaprompt protocol`, also the first folder of `layout`.
        words: what it does, one line.
        layout: the run folder below the output folder, of {dataset}, {trainer}, {config}, {seed}, and {part} and
            {shots} where these differ (`protocols.parts.place.Place`).
        part_pattern: regular expression of a part, where that may hold "/".
        seeds, shots: the defaults of --seeds and --shots; no shots: nothing is drawn to train on.
        several_shots: whether runs of different shots stand in one table, so that --shots takes several.
        per: what the shots are per, in words.
        methods: the default of --trainer.
        several_methods: whether --trainer takes several, each a row; else `compare` puts methods side by side.
        several_datasets: whether --dataset takes several.
        draws: whether a seed chooses anything. If not, one seed is as good as many, also for comparisons.
        own_config: whether a method may have a config of its own for it, configs/trainers/<method>/<name>_<protocol>.
        picks_classes: whether runs are tested on a part of the classes (`tested_classes`).
        kinds: the words for `metaprompt plot --only`; () stands for the protocol's name.
    """

    words: ClassVar[str] = ""
    seeds: ClassVar[tuple[int, ...]] = (1, 2, 3)
    shots: ClassVar[tuple[int, ...]] = (16,)
    per: ClassVar[str] = "per class"
    methods: ClassVar[tuple[str, ...]] = ()
    several_methods: ClassVar[bool] = False
    several_datasets: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    own_config: ClassVar[bool] = True
    picks_classes: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...]] = ()

    # ---- the runs ----
    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add flags of its own; the class is called with their values, by keyword."""

    def plan(self, make: RunMaker) -> Iterator[Run]:
        """The runs of one method on one dataset with one number of shots and one seed, each behind those that it needs.

        Raises:
            InputError: the dataset or the method does not fit.
        """
        raise NotImplementedError

    plan.missing = True  # type: ignore[attr-defined]  # a protocol without one of its own is refused

    def recognise(self, run: StoredRun) -> Place | None:
        """The place of a run that was made outside of the protocol's folders, by train.py; None for one that is not
        exactly what `plan` would make. Protocols are asked in the order of the registry, and the first one has it."""
        return None

    def tested_classes(self, part: str, classnames: Sequence[str]) -> Sequence[str]:
        """Those of all classes that runs of a part are tested on."""
        return classnames

    # ---- words ----
    def order(self, place: Place) -> tuple[Any, ...]:
        """What the runs of a method on a dataset are sorted by, before their seed."""
        return (place.part,)

    def notes(self, method: str, cells: Cells) -> list[str]:
        """Lines on what is run otherwise than it may seem. cells: the places of one method's runs."""
        return []

    def one_class(self, names: str) -> str:
        """What is said where no run was made, because each would be tested among one class. names: of these classes."""
        return (f"each part of the classes that is tested has one class ({names}), and an accuracy among one class "
                f"says nothing; {self.name} needs a dataset of more classes")

    # ---- tables ----
    def title(self, dataset: str) -> str:
        """The title of what is shown of a dataset."""
        return f"{dataset}, {self.name}"

    def seed_tables(self, cells: Cells) -> list[Table]:
        """The tables of one method's runs, the last one sums up."""
        return [by_seed(own, self.title(name), averages=None if "{part}" in self.layout else {})
                for name, own in by_dataset(cells).items()]

    def method_tables(self, cells: Cells, seconds: bool = False) -> list[Table]:
        """The tables of several methods' runs, a row per method.

        seconds: whether the time that a seed took may be added: the runs are of one dataset and were made together."""
        return [by_method(own, self.title(name), averages=None if "{part}" in self.layout else {})
                for name, own in by_dataset(cells).items()]

    def test_sets(self, cells: Cells) -> list[TestSet]:
        """What methods are compared on."""
        return [TestSet(self.title(name), [{"dataset": name, "part": part} for part in own.values("part")], True)
                for name, own in by_dataset(cells).items()]

    def published(self, cells: Cells, known: Mapping[str, Any]) -> list[list[Any]]:
        """Rows of measured and published averages: [method, over what, name, measured, published, "[source]"].

        known: what tools/results/published.yaml holds under the protocol's name."""
        return []

    # ---- figures ----
    def drawings(self, cells: Cells) -> Iterator[Drawing]:
        """The figures of finished runs: bars per dataset, a group per part."""
        for name, own in by_dataset(cells).items():
            yield self.drawing(f"{self.name}_{name}", own, printable(self.title(name)))

    def comparison_drawings(self, cells: Cells) -> Iterator[Drawing]:
        """The figures that `compare` draws beside its tables: one per dataset and number of shots."""
        for name, own in by_dataset(cells).items():
            for number in own.values("shots"):
                yield self.compared(name, own.where(shots=number))

    def compared(self, dataset: str, cells: Cells) -> Drawing:
        """`drawing` of a comparison on one dataset, with its shots and seeds below the title."""
        shots, seeds = sorted(number for number in cells.values("shots") if number), len(cells.values("seed"))
        numbers = ", ".join(map(str, shots))
        more = [f"{numbers} shot{'s' if shots != [1] else ''} {self.per}"] if shots else []
        more.append(f"{seeds} seed{'s' if seeds > 1 else ''}")
        file = "_".join([dataset, "shots", *map(str, shots)]) if shots else dataset
        return self.drawing(file, cells, f"{printable(self.title(dataset))}\n{', '.join(more)}")

    def drawing(self, name: str, cells: Cells, title: str) -> Drawing:
        """The figure of the cells of one dataset. name: of its file, without the ending."""
        return bar_chart(self.name, name, cells, title)

    def trainings(self, cells: Cells) -> list[tuple[str, str, Cells]]:
        """[(end of the file's name, title, cells)] of the trainings on one dataset whose losses go into one figure."""
        return [("" if part == "all" else f"_{part}", f"{self.name} {self.part_words(part)}".rstrip(),
                 cells.where(part=part)) for part in cells.values("part")]


def by_dataset(cells: Cells) -> dict[str, Cells]:
    """{dataset: its cells}"""
    return {name: cells.where(dataset=name) for name in cells.values("dataset")}
