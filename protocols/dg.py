"""Domain generalisation (MetaPrompt, arXiv 2212.04196): each domain of a dataset is left out once and tested."""
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from protocols.base import Protocol, TestSet, by_dataset
from protocols.parts.cells import Cells
from protocols.parts.numbers import Number, average
from protocols.parts.place import Place
from protocols.parts.plan import Run, RunMaker
from protocols.parts.registry import PROTOCOL_REGISTRY
from protocols.parts.stored_run import StoredRun
from protocols.parts.tables import Table


@PROTOCOL_REGISTRY.register()
class DomainGeneralisation(Protocol):
    name = "dg"
    words = "train on all domains of a dataset but one, test on that one"
    layout = "dg/{dataset}/shots_{shots}/{trainer}/{config}/{part}/seed{seed}"  # part: the target domain
    shots = (1,)
    per = "per class and domain"

    def plan(self, make: RunMaker) -> Iterator[Run]:
        domains = make.require_domains()
        for target in domains:
            sources = tuple(domain for domain in domains if domain != target)
            yield make.run(target, source_domains=sources, target_domains=(target,))

    def recognise(self, run: StoredRun) -> Place | None:
        if run.eval_only or run.part != "all" or len(run.target_domains) != 1 or len(run.source_domains) < 2:
            return None
        [target] = run.target_domains
        others = run.all_domains() - {target}
        return run.place(self.name, target) if set(run.source_domains) == others else None

    def title(self, dataset: str) -> str:
        return f"{dataset}, each domain left out in turn"

    def seed_tables(self, cells: Cells) -> list[Table]:
        tables = [*super().seed_tables(cells)]
        if len(tables) > 1:
            rows = [[name, average(own.where(part=part).by_seed() for part in own.values("part"))]
                    for name, own in by_dataset(cells).items()]
            tables.append(Table(f"leave one domain out on {len(rows)} datasets", ["dataset", "average"], rows))
        return tables

    def method_tables(self, cells: Cells, seconds: bool = False) -> list[Table]:
        tables, names = super().method_tables(cells, seconds), cells.values("dataset")
        if len(names) > 1:
            rows = []
            for method, chosen in cells.methods():
                columns = [average(chosen.where(dataset=name, part=part).by_seed() for part in own.values("part"))
                           for name, own in by_dataset(cells).items()]
                rows.append([method, *columns, over_datasets(columns)])
            headers = [*names, "average"]
            tables.append(Table("leave one domain out, average over the domains", ["method", *headers], rows, headers))
        return tables

    def test_sets(self, cells: Cells) -> list[TestSet]:
        return [TestSet(f"{name}, average over the domains",
                        [{"dataset": name, "part": part} for part in own.values("part")], together=True)
                for name, own in by_dataset(cells).items()]

    def published(self, cells: Cells, known: Mapping[str, Any]) -> list[list[Any]]:
        """A measured average is compared only where every domain was left out once."""
        rows = []
        for method, chosen in cells.methods():
            shots = chosen.values("shots")[0]
            numbers = known.get(chosen.values("trainer")[0], {})
            numbers = numbers.get(f"{shots} shots") or numbers.get("any shots")
            for dataset, found in by_dataset(chosen).items():
                if numbers and dataset in numbers:
                    domains = sorted({*cells.where(dataset=dataset).values("part"), *domains_of(found)})
                    measured = average(found.where(part=part).by_seed() for part in domains)
                    rows.append([method, dataset, "average", measured, Number.stated(numbers[dataset]),
                                 f"[{numbers['source']}]"])
        return rows

    def trainings(self, cells: Cells) -> list[tuple[str, str, Cells]]:
        """A figure per target domain."""
        return [(f"_{part}", f"trained for the target {part.replace('_', ' ')}", cells.where(part=part))
                for part in cells.values("part")]


def domains_of(cells: Cells) -> set[str]:
    """The domains that runs on a dataset were trained and tested on, as their results say."""
    named = [results.get("config", {}).get("DATASET", {}) for results in cells.values()]
    return {domain for data in named for key in ("SOURCE_DOMAINS", "TARGET_DOMAINS") for domain in data.get(key) or ()}


def over_datasets(columns: list[Number]) -> Number:
    """The mean over datasets, whose seeds have nothing in common: without a deviation."""
    known = [column.mean for column in columns if column.mean is not None]
    marks = frozenset(mark for column in columns for mark in column.marks)
    return Number(statistics.mean(known) if len(known) == len(columns) else None, marks=marks)
