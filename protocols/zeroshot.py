"""Zero-shot: methods that use no training image, tested on all classes of any datasets."""
from collections.abc import Iterator

from dassl.engine import TRAINER_REGISTRY, learns
from dassl.utils import InputError
from protocols.base import Protocol, TestSet
from protocols.parts.cells import Cells
from protocols.parts.drawing import Drawing
from protocols.parts.place import Place
from protocols.parts.plan import Run, RunMaker, class_bound
from protocols.parts.registry import PROTOCOL_REGISTRY
from protocols.parts.stored_run import StoredRun
from protocols.parts.tables import Table, by_method


@PROTOCOL_REGISTRY.register()
class ZeroShot(Protocol):
    name = "zeroshot"
    words = "test methods that need no training on any datasets"
    layout = "zeroshot/{dataset}/{trainer}/{config}/seed{seed}"
    seeds = (1,)
    shots = ()
    methods = ("ZeroshotCLIP",)
    several_methods = True
    draws = False
    own_config = False

    def plan(self, make: RunMaker) -> Iterator[Run]:
        run = make.run(eval_only=True, **make.all_domains())
        registered = TRAINER_REGISTRY.get(make.trainer)
        if not learns(registered) and not class_bound(run):
            yield run
            return
        if hasattr(registered, "trains") or class_bound(run):
            raise InputError(f"{make.trainer} learns from the training images; zeroshot is for methods that do not, "
                             "such as ZeroshotCLIP")
        raise InputError(f"{make.trainer} has a training step, and zeroshot is for methods that use no training image; "
                         "if it uses none, say `trains = False` in its class")

    def recognise(self, run: StoredRun) -> Place | None:
        untrained = run.eval_only and run.model is None and run.part == "all"
        everything = set(run.target_domains) == run.all_domains()
        return run.place(self.name, shots=False) if untrained and everything else None

    def seed_tables(self, cells: Cells) -> list[Table]:
        return self.method_tables(cells)

    def method_tables(self, cells: Cells, seconds: bool = False) -> list[Table]:
        """A row per method, a column per dataset."""
        return [by_method(cells, "without training", "dataset")]

    def test_sets(self, cells: Cells) -> list[TestSet]:
        return [TestSet("without training", [{"dataset": name} for name in cells.values("dataset")])]

    def drawings(self, cells: Cells) -> Iterator[Drawing]:
        """None: there is one number per dataset."""
        return iter(())

    comparison_drawings = drawings

    def trainings(self, cells: Cells) -> list[tuple[str, str, Cells]]:
        return []
