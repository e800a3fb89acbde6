"""A protocol between dg and sdg, with a flag of its own: train on some domains, test on each of the others."""
from itertools import combinations

from dassl.utils import InputError
from protocols import PROTOCOL_REGISTRY, Protocol


@PROTOCOL_REGISTRY.register()
class SeveralSources(Protocol):
    name = "sources"
    words = "train on some domains, test on each of the others"
    layout = "sources/{dataset}/shots_{shots}/{trainer}/{config}/{part}/seed{seed}"
    part_pattern = "[^/]+/[^/]+"
    shots = (2,)
    seeds = (1,)

    def __init__(self, number=2):
        self.number = number

    @classmethod
    def add_arguments(cls, parser):
        parser.add_argument("--number", type=int, default=2, help="how many domains to train on (default 2)")

    def plan(self, make):
        domains = make.require_domains()
        if not 0 < self.number < len(domains):
            raise InputError(f"--number {self.number}: {make.dataset.name} has {len(domains)} domains")
        for sources in combinations(domains, self.number):
            trained = None
            for target in (domain for domain in domains if domain not in sources):
                part, fields = f"{'+'.join(sources)}/{target}", {"source_domains": sources, "target_domains": (target,)}
                run = make.evaluation(trained, part, **fields) if trained else make.run(part, **fields)
                trained = trained or run
                yield run
