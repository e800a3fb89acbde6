"""What a number in a table must not be read without: a mark beside it and a line under the table.

    *  the run was trained on some of its test images (results.json: "overlap")
    !  it was evaluated under other settings than it was trained with ("changed")
    -  its test images have one class: there is no accuracy to speak of ("classes")
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from protocols.parts.place import Place
from protocols.parts.registry import Naming, protocol_named

SHOWN = 4  # groups of runs that a line names
SIGNS = ("*", "!", "-")  # in the order of their lines


@dataclass(frozen=True)
class Mark:
    """sign: what stands beside the number; said: the sentence; place: the run it is true of."""

    sign: str
    said: str
    place: Place


def among_one_class(results: Mapping[str, Any]) -> bool:
    """Whether a run's test images have one class, among which every method is right."""
    return len((results.get("classes") or {}).get("name") or "..") == 1


def marks_of(place: Place, results: Mapping[str, Any]) -> frozenset[Mark]:
    """The Marks of a run."""
    return frozenset(Mark(sign, said, place) for sign, said in said_of(results).items())


def said_of(results: Mapping[str, Any]) -> dict[str, str]:
    """{sign: sentence} of what a run's number must not be read without."""
    found, overlap = {}, results.get("overlap") or {}
    if overlap.get("test"):
        found["*"] = f"trained on {overlap['test']} of its {overlap.get('of', '?')} test images"
    if results.get("changed"):
        said = ", ".join(f"{key} {_word(now)} instead of {_word(trained)}"
                         for key, (trained, now) in sorted(results["changed"].items()))
        found["!"] = f"evaluated with {said} of the training"
    if among_one_class(results):
        [name] = results["classes"]["name"]
        found["-"] = f"an accuracy among one class ('{name}') says nothing"
    return found


def _word(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def signs(marks: Iterable[Mark]) -> str:
    """The signs to set beside a number, each once; a number that is not there needs none."""
    there = {mark.sign for mark in marks}
    return "".join(sign for sign in SIGNS[:2] if sign in there)


def lines(marks: Iterable[Mark]) -> list[tuple[str, str]]:
    """[(sign, line)] under a table whose numbers have these Marks: a line for each sign, which names the runs."""
    marks, found = list(marks), []
    for sign in SIGNS:
        groups: dict[tuple[str, str], set[int]] = {}  # (sentence, runs but for their seeds) -> seeds
        for mark in marks:
            if mark.sign == sign:
                groups.setdefault((mark.said, _runs(mark.place)), set()).add(mark.place.seed)
        if not groups:
            continue
        by_sentence: dict[str, list[str]] = {}
        for (said, runs), seeds in sorted(groups.items()):
            number = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, sorted(seeds)))}"
            by_sentence.setdefault(said, []).append(f"{runs}, {number}")
        told, left = [], SHOWN
        for said, named in by_sentence.items():
            if left > 0:
                told.append(f"{said} ({'; '.join(named[:left])})")
            left -= len(named)
        more = f"; and {-left} more" if left < 0 else ""
        found.append((sign, "; ".join(told) + more))
    return found


def _runs(place: Place) -> str:
    """A run in words, but for its seed."""
    naming: Naming = protocol_named(place.protocol)
    method = place.trainer + (f" ({place.variant})" if place.variant else "")
    part = naming.part_words(place.part)
    shots = f"{place.shots} shots" if naming.several_shots else ""
    return ", ".join(word for word in (method, place.dataset, part if part != place.dataset else "", shots) if word)
