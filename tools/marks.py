"""What a number in a table must not be read without: a mark beside it and a line under the table.

    *  the run was trained on some of its test images (results.json: "overlap")
    !  it was evaluated under other settings than it was trained with ("changed")
    -  its test images have one class: there is no accuracy to speak of ("classes")
"""
from dataclasses import dataclass

SHOWN = 4  # groups of runs that a line names
SIGNS = ("*", "!", "-")  # in the order of their lines
IN_LATEX = {"*": "$^{*}$", "!": r"$^{\dagger}$", "-": "-"}
IN_MARKDOWN = {"*": r"\*"}


@dataclass(frozen=True)
class Mark:
    """sign: what stands beside the number; said: the sentence; place: the run it is true of."""

    sign: str
    said: str
    place: object


def among_one_class(results):
    """Whether a run's test images have one class, among which every method is right."""
    return len((results.get("classes") or {}).get("name") or "..") == 1


def marks_of(place, results):
    """The Marks of a run, a frozenset."""
    found, overlap = set(), results.get("overlap") or {}
    if overlap.get("test"):
        found.add(Mark("*", f"trained on {overlap['test']} of its {overlap.get('of', '?')} test images", place))
    if results.get("changed"):
        said = ", ".join(f"{key} {_word(now)} instead of {_word(trained)}"
                         for key, (trained, now) in sorted(results["changed"].items()))
        found.add(Mark("!", f"evaluated with {said} of the training", place))
    if among_one_class(results):
        [name] = results["classes"]["name"]
        found.add(Mark("-", f"an accuracy among one class ('{name}') says nothing", place))
    return frozenset(found)


def _word(value):
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def signs(marks):
    """The signs to set beside a number, each once; a number that is not there needs none."""
    return "".join(sign for sign in SIGNS[:2] if any(mark.sign == sign for mark in marks))


def lines(marks):
    """[(sign, line)] under a table whose numbers have these Marks: a line for each sign, which names the runs."""
    found = []
    for sign in SIGNS:
        groups = {}  # (sentence, runs but for their seeds) -> seeds
        for mark in marks:
            if mark.sign == sign:
                groups.setdefault((mark.said, _runs(mark.place)), set()).add(mark.place.seed)
        if not groups:
            continue
        by_sentence = {}
        for (said, runs), seeds in sorted(groups.items()):
            number = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, sorted(seeds)))}"
            by_sentence.setdefault(said, []).append(f"{runs}, {number}")
        told, left = [], SHOWN
        for said, runs in by_sentence.items():
            if left > 0:
                told.append(f"{said} ({'; '.join(runs[:left])})")
            left -= len(runs)
        more = f"; and {-left} more" if left < 0 else ""
        found.append((sign, "; ".join(told) + more))
    return found


def _runs(place):
    """A run in words, but for its seed."""
    method = place.trainer + (f" ({place.variant})" if place.variant else "")
    part = {"train_base": "base", "test_new": "new", "all": ""}.get(place.part, place.part)
    shots = f"{place.shots} shots" if place.protocol == "fewshot" else ""
    return ", ".join(word for word in (method, place.dataset, part if part != place.dataset else "", shots) if word)
