"""Few-shot curves (CoOp, arXiv 2109.01134, section 4.1): all classes, with more and more images to train on."""
from collections.abc import Iterator

from protocols.base import Protocol, TestSet, by_dataset
from protocols.parts.cells import Cells
from protocols.parts.drawing import Drawing, shot_curves
from protocols.parts.numbers import average
from protocols.parts.place import Place
from protocols.parts.plan import Run, RunMaker
from protocols.parts.registry import PROTOCOL_REGISTRY
from protocols.parts.stored_run import StoredRun
from protocols.parts.tables import Table, by_method, seeds_across


@PROTOCOL_REGISTRY.register()
class FewShot(Protocol):
    name = "fewshot"
    words = "train and test on all classes with more and more shots"
    layout = "fewshot/{dataset}/shots_{shots}/{trainer}/{config}/seed{seed}"
    shots = (1, 2, 4, 8, 16)
    several_shots = True

    def plan(self, make: RunMaker) -> Iterator[Run]:
        yield make.run()

    def recognise(self, run: StoredRun) -> Place | None:
        trained = not run.eval_only and run.part == "all" and run.shots > 0
        return run.place(self.name) if trained and run.tests_as_configured() else None

    def title(self, dataset: str) -> str:
        return f"{dataset}, all classes"

    def seed_tables(self, cells: Cells) -> list[Table]:
        return [seeds_across(own, f"{name}, all classes", "shots", first="shots")
                for name, own in by_dataset(cells).items()]

    def method_tables(self, cells: Cells, seconds: bool = False) -> list[Table]:
        names = cells.values("dataset")
        tables = [by_method(own, f"{name}, all classes, by shots", "shots", averages={})
                  for name, own in by_dataset(cells).items()]
        if len(names) > 1:
            shots = cells.values("shots")
            rows = [[method, *(average(chosen.where(dataset=name, shots=number).by_seed() for name in names)
                               for number in shots)] for method, chosen in cells.methods()]
            headers = [str(number) for number in shots]
            tables.append(Table(f"average of {len(names)} datasets, by shots", ["method", *headers], rows, headers))
        return tables

    def test_sets(self, cells: Cells) -> list[TestSet]:
        return [TestSet(f"{_shots(number)}, all classes",
                        [{"dataset": name, "shots": number} for name in cells.values("dataset")])
                for number in cells.values("shots")]

    def drawings(self, cells: Cells) -> Iterator[Drawing]:
        """Each dataset, and their average."""
        yield from super().drawings(cells)
        if (number := len(cells.values("dataset"))) > 1:
            yield self.drawing("fewshot_average", cells, f"average of {number} datasets")

    def comparison_drawings(self, cells: Cells) -> Iterator[Drawing]:
        for name, own in by_dataset(cells).items():
            yield self.compared(name, own)

    def drawing(self, name: str, cells: Cells, title: str) -> Drawing:
        """Accuracy by shots, a line per method."""
        return shot_curves(self.name, name, cells, title)

    def trainings(self, cells: Cells) -> list[tuple[str, str, Cells]]:
        """Those of the most shots."""
        most = max(cells.values("shots"))
        return [("", f"fewshot, {_shots(most)}", cells.where(shots=most))]


def _shots(number: int) -> str:
    return f"{number} shot{'s' if number > 1 else ''}"
