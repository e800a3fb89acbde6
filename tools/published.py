"""Published numbers beside measured ones; the numbers and their sources are in published.yaml."""
import os

import yaml

from tools.plans import BASE2NEW_DATASETS
from tools.run_folders import backbone_of
from tools.tables import Number, Table, average, base_new_h, xd_groups

BACKBONE = "ViT-B/16"  # of all published numbers in the file
FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "published.yaml")


def published():
    """{protocol, or other: {trainer: numbers}}; the file says what the numbers are."""
    return {part: numbers for part, numbers in _read().items() if part != "sources"}


def sources():
    """{key: {"document", "table", "version", "read"}} of the published numbers, all of them text."""
    return {key: {name: str(value) for name, value in source.items()} for key, source in _read()["sources"].items()}


def _read():
    with open(FILE, encoding="utf-8") as file:
        return yaml.safe_load(file)


def published_table(protocol, cells):
    """Measured and published averages of the methods that both have, a Table; None when there is nothing to compare.

    A measured average is compared only when it is over the same datasets as the published one: it is "-" otherwise.
    Under the table stands where each number was read."""
    make = {"base2new": _base2new, "dg": _dg, "xd": _xd}.get(protocol)
    known = published().get(protocol, {})
    rows = make(cells, known) if make else []
    if not rows:
        return None
    backbone = backbone_of(next(iter(cells.values())))
    read = {f"[{key}]": _cited(source) for key, source in sources().items()}
    return Table(f"measured ({backbone}) and published ({BACKBONE}) averages",
                 ["method", "measured on", "", "measured", "published", "source"], rows,
                 sources=tuple((key, read[key]) for key in dict.fromkeys(row[-1] for row in rows)))


def _cited(source):
    return f"{source['document']}, {source['table']}; {source['version']}, read {source['read']}"


def _number(value):
    return Number() if value is None else Number(float(value))


def _base2new(cells, known):
    names = cells.values("dataset")
    whole = set(BASE2NEW_DATASETS) <= set(names)
    rows = []
    for method, chosen in cells.methods():
        numbers = known.get(chosen.values("trainer")[0])
        if not numbers:
            continue
        over = BASE2NEW_DATASETS if whole else ()
        columns = [[chosen.where(dataset=name, part=part).by_seed() for part in ("train_base", "test_new")]
                   for name in over]
        measured = base_new_h(*zip(*columns)) if columns else (Number(),) * 3
        for what, number in zip(("base", "new", "H"), measured):
            rows.append([method, f"{sum(name in BASE2NEW_DATASETS for name in names)} of {len(BASE2NEW_DATASETS)} "
                                 "datasets", what, number, _number(numbers[what]), f"[{numbers['source']}]"])
    return rows


def _dg(cells, known):
    rows = []
    for method, chosen in cells.methods():
        shots = chosen.values("shots")[0]
        numbers = known.get(chosen.values("trainer")[0], {})
        numbers = numbers.get(f"{shots} shots") or numbers.get("any shots")
        for dataset in chosen.values("dataset"):
            if numbers and dataset in numbers:
                found = chosen.where(dataset=dataset)
                measured = average(found.where(part=part).by_seed()
                                   for part in cells.where(dataset=dataset).values("part"))
                rows.append([method, dataset, "average", measured, _number(numbers[dataset]), f"[{numbers['source']}]"])
    return rows


def _xd(cells, known):
    rows = []
    chosen_cells = cells.where(dataset="imagenet")
    for method, chosen in chosen_cells.methods():
        numbers = known.get(chosen.values("trainer")[0])
        groups = xd_groups("imagenet", chosen.values("part"))
        for what, size in (("average", 10), ("average of variants", 4)):
            if numbers and numbers.get(what) is not None:
                group = groups.get(what, [])
                whole = len(group) == size
                measured = average(chosen.where(part=name).by_seed() for name in group) if whole else Number()
                rows.append([method, f"{len(group)} of {size} datasets", what, measured, _number(numbers[what]),
                             f"[{numbers['source']}]"])
    return rows
