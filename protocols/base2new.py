"""Base to new (CoCoOp, arXiv 2203.05557, section 4.1): train on the first half of the classes, test on both halves."""
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from protocols.base import Protocol, TestSet, by_dataset
from protocols.parts.base_new import BASE, NEW, base_new_h, columns_of
from protocols.parts.cells import Cells
from protocols.parts.drawing import Drawing, plane, radar_chart
from protocols.parts.numbers import Number
from protocols.parts.place import Place
from protocols.parts.plan import Run, RunMaker, class_bound
from protocols.parts.registry import PROTOCOL_REGISTRY
from protocols.parts.stored_run import StoredRun
from protocols.parts.tables import Table, seconds_per_seed

# Those of the papers' averages.
DATASETS = ("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft",
            "sun397", "dtd", "eurosat", "ucf101")


@PROTOCOL_REGISTRY.register()
class BaseToNew(Protocol):
    name = "base2new"
    words = "train on the first half of the classes, test on both halves"
    layout = "base2new/{part}/{dataset}/shots_{shots}/{trainer}/{config}/seed{seed}"
    own_config = False
    picks_classes = True
    kinds = ("base2new", "radar")

    def plan(self, make: RunMaker) -> Iterator[Run]:
        base = make.run(BASE, options=("DATASET.SUBSAMPLE_CLASSES", "base"))
        yield base
        if not class_bound(base):
            yield make.evaluation(base, NEW, options=("DATASET.SUBSAMPLE_CLASSES", "new"))

    def recognise(self, run: StoredRun) -> Place | None:
        if not run.tests_as_configured():
            return None
        if run.part == "base" and not run.eval_only:
            return run.place(self.name, BASE)
        untrained = run.eval_only and run.model is None  # such as zero-shot CLIP
        if run.part == "base" and untrained:
            return run.place(self.name, BASE)
        if run.part == "new" and (untrained or run.model and (run.model.dataset, run.model.part) ==
                                  (run.dataset, "base")):
            return run.place(self.name, NEW)
        return None

    def tested_classes(self, part: str, classnames: Sequence[str]) -> Sequence[str]:
        half = (len(classnames) + 1) // 2
        return classnames[:half] if part == BASE else classnames[half:]

    def part_words(self, part: str) -> str:
        return {BASE: "base", NEW: "new"}.get(part, part)

    def order(self, place: Place) -> tuple[Any, ...]:
        return place.part != BASE, place.part

    def one_class(self, names: str) -> str:
        return (f"each half of the classes has one class ({names}), and an accuracy among one class says nothing; "
                "base2new needs at least four classes for both halves")

    def title(self, dataset: str) -> str:
        return f"{dataset}, base to new"

    # ---- tables ----
    def seed_tables(self, cells: Cells) -> list[Table]:
        tables, found = [], by_dataset(cells)
        for name, own in found.items():
            base, new = columns_of(own)
            rows = [[f"seed {seed}", *base_new_h([base.at(seed)], [new.at(seed)])] for seed in own.values("seed")]
            tables.append(Table(self.title(name), ["", "base", "new", "H"],
                                [*rows, ["mean", *base_new_h([base], [new])]]))
        if len(tables) > 1:
            parts = {name: columns_of(own) for name, own in found.items()}
            rows = [[name, *base_new_h([base], [new])] for name, (base, new) in parts.items()]
            rows.append(["average", *base_new_h(*zip(*parts.values()))])
            tables.append(Table(f"base to new on {len(found)} datasets", ["dataset", "base", "new", "H"], rows))
        return tables

    def method_tables(self, cells: Cells, seconds: bool = False) -> list[Table]:
        names, tables = cells.values("dataset"), []
        parts = {method: {name: columns_of(chosen.where(dataset=name)) for name in names}
                 for method, chosen in cells.methods()}
        rows: list[list[Any]]
        if len(names) > 1:
            headers = [*names, "average"]
            for column, what in enumerate(("base", "new", "H")):
                rows = [[method, *(base_new_h([base], [new])[column] for base, new in found.values()),
                         base_new_h(*zip(*found.values()))[column]] for method, found in parts.items()]
                tables.append(Table(f"base to new, {what}", ["method", *headers], rows, headers))
        rows = [[method, *base_new_h(*zip(*found.values()))] for method, found in parts.items()]
        headers = ["method", "base", "new", "H"]
        if seconds:
            headers.append("seconds per seed")
            rows = [[*row, seconds_per_seed(chosen)] for row, (_, chosen) in zip(rows, cells.methods())]
        title = self.title(names[0]) if len(names) == 1 else f"base to new, average of {len(names)} datasets"
        return [*tables, Table(title, headers, rows, ("base", "new", "H"))]

    def test_sets(self, cells: Cells) -> list[TestSet]:
        return [TestSet(f"base to new, {self.part_words(part)} classes",
                        [{"dataset": name, "part": part} for name in cells.values("dataset")]) for part in (BASE, NEW)]

    def published(self, cells: Cells, known: Mapping[str, Any]) -> list[list[Any]]:
        """A measured average is compared only where it is over the papers' eleven datasets, with their 16 shots."""
        whole = set(DATASETS) <= set(cells.values("dataset")) and cells.values("shots") == [16]
        measured_on = set(cells.values("dataset")) & set(DATASETS)
        rows = []
        for method, chosen in cells.methods():
            numbers = known.get(chosen.values("trainer")[0])
            if not numbers:
                continue
            columns = [columns_of(chosen.where(dataset=name)) for name in DATASETS]
            measured = base_new_h(*zip(*columns)) if whole else (Number(),) * 3
            for what, number in zip(("base", "new", "H"), measured):
                rows.append([method, f"{len(measured_on)} of {len(DATASETS)} datasets", what, number,
                             Number.stated(numbers[what]), f"[{numbers['source']}]"])
        return rows

    # ---- figures ----
    def drawings(self, cells: Cells) -> Iterator[Drawing]:
        """Base against new accuracy of each dataset and of their average; a radar of H over datasets."""
        names = cells.values("dataset")
        yield from super().drawings(cells)
        if len(names) > 1:
            yield plane(self.name, "base2new_average", cells, f"average of {len(names)} datasets")
        yield radar_chart("radar", "base2new_radar", cells)

    def drawing(self, name: str, cells: Cells, title: str) -> Drawing:
        return plane(self.name, name, cells, title)

    def trainings(self, cells: Cells) -> list[tuple[str, str, Cells]]:
        return [("", self.name, cells.where(part=BASE))]
