"""--prepare: the data and the CLIP of a plan that are not there are fetched, where they can be."""
from __future__ import annotations

import os
from collections.abc import Sequence

from dassl.utils import InputError
from prompting import PromptingError
from prompting.weights import CACHE, read_weights
from protocols import Run
from protocols.parts.plan import config_path
from runs.command_line import mendable
from runs.run_spec import stem
from tools.running.estimates import missing_weights
from tools.running.preflight import Lacking, Looks


def prepare(runs: Sequence[Run]) -> Lacking:
    """Fetch what the runs of a plan need and have not. Returns what could not be fetched."""
    from tools.downloads.sources import SOURCES  # it takes torchvision, and that two seconds, of every protocol's start

    found, looks = Lacking(), Looks()
    first: dict[tuple[str, str], Run] = {}
    for run in runs:
        first.setdefault((run.spec.dataset_config_file, run.configs.of(run.spec).DATASET.ROOT), run)
    for (file, root), run in first.items():
        name = stem(file)
        if name not in SOURCES or file != config_path("datasets", name) or _is_there(run, looks):
            continue
        if why := _fetch(name, os.path.abspath(os.path.expanduser(root))):
            found.data[file] = why
    for name in missing_weights(runs):
        print(f"fetching {name}", flush=True)
        try:
            read_weights(name, os.path.expanduser(CACHE))
        except PromptingError as error:
            found.backbones[name] = str(error)
    return found


def _is_there(run: Run, looks: Looks) -> bool:
    try:
        looks.parts_of(run)
    except InputError:
        return False
    return True


def _fetch(name: str, root: str) -> str:
    """Fetch a dataset. Returns why it is not whole after that, with what to do by hand; "" where nothing is missing."""
    from tools.downloads import counting, fetching  # as above
    from tools.downloads.sources import SOURCES

    said = ""
    try:
        with fetching.alone(root):
            fetching.prepare(name, root)
    except (InputError, OSError) as error:
        said = f"{mendable(error) or error}"
    if counting.is_there(name, root):
        return ""
    steps = " ".join(SOURCES[name].by_hand.format(root=root).split())
    return "; ".join(filter(None, [said and f"fetching it failed: {said}", steps and f"by hand: {steps}"]))
