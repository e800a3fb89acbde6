"""Walks through nested dicts, such as a config and what a YAML file holds."""
from collections.abc import Iterator, Mapping
from typing import Any


def leaves(tree: Mapping[Any, Any], above: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """((name, name, ...), value) of everything in nested dicts that is not itself a dict, in order.

    above: the names of the dicts that `tree` lies in; the yielded names begin with them.
    """
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*above, name))
        else:
            yield (*above, name), value


def dotted(tree: Mapping[Any, Any], above: tuple[Any, ...] = ()) -> dict[str, Any]:
    """Nested dicts -> {dotted key: value}. Arguments as of `leaves`."""
    return {".".join(map(str, names)): value for names, value in leaves(tree, above)}
