"""Single-domain generalisation: train on one domain of a dataset, test on each of the others.

No number is of the source itself: PACS and others test a domain on all of its images, those that were trained on among
them. So the training run tests the first of the other domains, and one evaluation tests each further one.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence

from protocols.base import Protocol, TestSet, by_dataset
from protocols.parts.cells import Cells
from protocols.parts.drawing import Drawing, bar_chart
from protocols.parts.numbers import Number, average
from protocols.parts.place import Place
from protocols.parts.plan import Run, RunMaker
from protocols.parts.registry import PROTOCOL_REGISTRY
from protocols.parts.stored_run import StoredRun
from protocols.parts.tables import Table, by_method, by_seed


@PROTOCOL_REGISTRY.register()
class SingleDomain(Protocol):
    name = "sdg"
    words = "train on one domain of a dataset, test on each of the others"
    layout = "sdg/{dataset}/shots_{shots}/{trainer}/{config}/{part}/seed{seed}"  # part: source/target
    part_pattern = "[^/]+/[^/]+"
    shots = (1,)

    def plan(self, make: RunMaker) -> Iterator[Run]:
        domains = make.require_domains()
        for source in domains:
            first, *others = [domain for domain in domains if domain != source]
            trained = make.run(f"{source}/{first}", source_domains=(source,), target_domains=(first,))
            yield trained
            for target in others:
                yield make.evaluation(trained, f"{source}/{target}", source_domains=(source,), target_domains=(target,))

    def recognise(self, run: StoredRun) -> Place | None:
        pair = run.source_domains, run.target_domains
        if run.part != "all" or list(map(len, pair)) != [1, 1] or pair[0] == pair[1]:
            return None
        learned = (run.model.dataset, run.model.part, run.model.source_domains) if run.model else None
        if run.eval_only and learned not in (None, (run.dataset, "all", run.source_domains)):
            return None
        return run.place(self.name, f"{run.source_domains[0]}/{run.target_domains[0]}")

    def part_words(self, part: str) -> str:
        return part.replace("/", " to ")

    def title(self, dataset: str) -> str:
        return f"{dataset}, trained on one domain, tested on another"

    def seed_tables(self, cells: Cells) -> list[Table]:
        """Of each dataset: a row per seed with each source's average, then sources by targets over the seeds."""
        tables = []
        for name, own in by_dataset(cells).items():
            tables += [by_seed(own, f"{name}, trained on", groups=by_source(own)),
                       source_by_target(own, self.title(name), own.values("part"))]
        return tables

    def method_tables(self, cells: Cells, seconds: bool = False) -> list[Table]:
        """Of each dataset: sources by targets of each method, then a row per method with each source's average."""
        tables = []
        for name, own in by_dataset(cells).items():
            tables += [source_by_target(chosen, f"{method}: {self.title(name)}", own.values("part"))
                       for method, chosen in own.methods()]
            tables.append(by_method(own, f"{name}, trained on one domain, averages over the others",
                                    groups=by_source(own)))
        return tables

    def test_sets(self, cells: Cells) -> list[TestSet]:
        """One per source. Over several sources the same images would count several times."""
        return [TestSet(f"{name}, trained on {source}", [{"dataset": name, "part": part} for part in parts], True)
                for name, own in by_dataset(cells).items() for source, parts in by_source(own).items()]

    def drawing(self, name: str, cells: Cells, title: str) -> Drawing:
        """Bars, a group per source: the average over its targets."""
        return bar_chart(self.name, name, cells, title, by_source(cells))

    def trainings(self, cells: Cells) -> list[tuple[str, str, Cells]]:
        """A figure per source."""
        found = [(source, Cells({place: results for place, results in cells.items() if place.part in parts}))
                 for source, parts in by_source(cells).items()]
        return [(f"_{source}", f"trained on {source.replace('_', ' ')}", own) for source, own in found if own]


def domains_of(parts: Sequence[str]) -> list[str]:
    """The domains that parts name, sources first, in their order."""
    return list(dict.fromkeys([*(part.split("/")[0] for part in parts), *(part.split("/")[1] for part in parts)]))


def by_source(cells: Cells) -> dict[str, list[str]]:
    """{source domain: the parts that are trained on it, one per other domain}; a part without a run is among them, and
    an average that would need it is none."""
    parts = cells.values("part")
    return {source: [f"{source}/{target}" for target in domains_of(parts) if target != source]
            for source in domains_of(parts)}


def source_by_target(cells: Cells, title: str, parts: list[str]) -> Table:
    """One method's accuracies: a row per source, a column per target, and their averages, over the seeds.

    parts: those that all methods are averaged over."""
    domains = domains_of(parts)
    parts = [f"{source}/{target}" for source in domains for target in domains if source != target]
    columns = {part: cells.where(part=part).by_seed() for part in parts}

    def over(source: str, target: str) -> Number:
        """The average over the parts from a source to a target, "" for any."""
        pairs = {part: part.split("/") for part in parts}
        return average(columns[part] for part, pair in pairs.items() if source in ("", pair[0])
                       and target in ("", pair[1]))

    rows = [[source or "average", *(over(source, target) for target in (*domains, ""))] for source in (*domains, "")]
    return Table(title, ["source", *domains, "average"], rows)
