"""Published numbers beside measured ones; the numbers and their sources are in published.yaml."""
import os

import yaml

from protocols import Table, protocol_named
from tools.results.run_folders import backbone_of

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
    rows = protocol_named(protocol).published(cells, published().get(protocol, {}))
    if not rows:
        return None
    backbone = backbone_of(next(iter(cells.values())))
    read = {f"[{key}]": _cited(source) for key, source in sources().items()}
    return Table(f"measured ({backbone}) and published ({BACKBONE}) averages",
                 ["method", "measured on", "", "measured", "published", "source"], rows,
                 sources=tuple((key, read[key]) for key in dict.fromkeys(row[-1] for row in rows) if key in read))


def _cited(source):
    return f"{source['document']}, {source['table']}; {source['version']}, read {source['read']}"
