"""Cross-dataset transfer (CoCoOp, arXiv 2203.05557, sections 4.2 and 4.3): train on one dataset, test on others."""
import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dassl.utils import InputError
from protocols.base import Protocol, TestSet, by_dataset
from protocols.base2new import DATASETS
from protocols.parts.cells import Cells
from protocols.parts.drawing import Drawing, bar_chart
from protocols.parts.numbers import Number, average
from protocols.parts.place import Place
from protocols.parts.plan import Dataset, Run, RunMaker, class_bound
from protocols.parts.registry import PROTOCOL_REGISTRY
from protocols.parts.stored_run import StoredRun, of_dataset
from protocols.parts.tables import Table, by_method, seeds_across

IMAGENET_VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
TARGETS = {"imagenet": (*DATASETS[1:], *IMAGENET_VARIANTS)}  # of a source


@PROTOCOL_REGISTRY.register()
class CrossDataset(Protocol):
    """targets: names of datasets to test on; default those of TARGETS."""

    name = "xd"
    words = "train on one dataset, test on others"
    layout = "xd/{dataset}/shots_{shots}/{trainer}/{config}/{part}/seed{seed}"  # part: the tested dataset
    several_datasets = False

    def __init__(self, targets: Sequence[str] | None = None) -> None:
        self.targets = targets
        self._datasets: dict[str, list[Dataset]] = {}

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--targets", nargs="+", help="xd: datasets to test on; default for imagenet: the ten "
                                                         "others and its four variants")

    def targets_of(self, source: Dataset) -> list[Dataset]:
        """The datasets that a source is tested on besides itself."""
        if source.name not in self._datasets:
            names = self.targets or TARGETS.get(source.name)
            if not names:
                raise InputError(f"xd from {source.name}: give --targets (TARGETS for the scripts), datasets to test "
                                 "on")
            chosen = Dataset.all_of(dict.fromkeys(names))
            if source.name in {target.name for target in chosen}:
                raise InputError(f"xd from {source.name}: the source is tested anyway; leave it out of --targets")
            self._datasets[source.name] = chosen
        return self._datasets[source.name]

    def plan(self, make: RunMaker) -> Iterator[Run]:
        targets = self.targets_of(make.dataset)
        trained = make.run(make.dataset.name)
        yield trained
        if not class_bound(trained):
            for target in targets:
                yield make.evaluation(trained, target.name, target, **make.all_domains(target))

    def recognise(self, run: StoredRun) -> Place | None:
        """The evaluations; a training on all classes of a dataset is taken for one of few-shot curves."""
        if not run.eval_only or run.part != "all" or run.model is None or run.model.part != "all":
            return None
        trained_on = of_dataset(run.model, run.model.dataset, run.model.shots).configured_domains() or ((), ())
        if run.model.source_domains != trained_on[0]:
            return None
        if run.model.dataset in ("", run.dataset) or set(run.target_domains) != set(run.all_domains()):
            return None
        shots = run.model.shots if run.model.shots > 0 else run.shots
        return of_dataset(run, run.model.dataset, shots).place(self.name, run.dataset)

    def title(self, dataset: str) -> str:
        return f"trained on {dataset}"

    def notes(self, method: str, cells: Cells) -> list[str]:
        if cells.values("part") != cells.values("dataset"):
            return []
        return [f"Note: {method} belongs to its training classes with this config: it is tested on the source only"]

    def seed_tables(self, cells: Cells) -> list[Table]:
        return [seeds_across(own, f"trained on {source}, tested on", averages=groups(source, own.values("part")))
                for source, own in by_dataset(cells).items()]

    def method_tables(self, cells: Cells, seconds: bool = False) -> list[Table]:
        tables = []
        for source, own in by_dataset(cells).items():
            own = Cells(sorted(own.items(), key=lambda cell: cell[0].part != source))
            tables.append(by_method(own, f"trained on {source}", averages=groups(source, own.values("part"))))
        return tables

    def test_sets(self, cells: Cells) -> list[TestSet]:
        return [TestSet(f"trained on {name}, {group}", [{"dataset": name, "part": part} for part in parts], True)
                for name, own in by_dataset(cells).items()
                for group, parts in groups(name, own.values("part")).items()]

    def published(self, cells: Cells, known: Mapping[str, Any]) -> list[list[Any]]:
        rows = []
        for method, chosen in cells.where(dataset="imagenet").methods():
            numbers = known.get(chosen.values("trainer")[0])
            found = groups("imagenet", chosen.values("part"))
            for what, size in (("average", 10), ("average of variants", 4)):
                if numbers and numbers.get(what) is not None:
                    group = found.get(what, [])
                    whole = len(group) == size and chosen.values("shots") == [16]  # as published
                    measured = average(chosen.where(part=name).by_seed() for name in group) if whole else Number()
                    rows.append([method, f"{len(group)} of {size} datasets", what, measured,
                                 Number.stated(numbers[what]), f"[{numbers['source']}]"])
        return rows

    def drawing(self, name: str, cells: Cells, title: str) -> Drawing:
        """Bars, a group per target."""
        own = Cells({place: results for place, results in cells.items() if place.part != place.dataset})
        [source] = cells.values("dataset")
        return bar_chart(self.name, name, own, title, averages=groups(source, own.values("part")))

    def trainings(self, cells: Cells) -> list[tuple[str, str, Cells]]:
        return [("", self.name, cells.where(part=cells.values("dataset")[0]))]


def groups(source: str, tested: Sequence[str]) -> dict[str, list[str]]:
    """{name: datasets} whose averages stand under a cross-dataset table: the other datasets, and ImageNet's variants,
    which have its classes, apart."""
    targets = [name for name in tested if name != source]
    variants = [name for name in targets if name in IMAGENET_VARIANTS]
    others = [name for name in targets if name not in variants]
    found = {"average": others} if others else {}
    return found | ({"average of variants": variants} if variants else {})
