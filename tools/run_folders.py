"""Finding finished runs on disk, and refusing to mix what cannot be compared."""
import contextlib
import gc
import itertools
import os
import sys
from dataclasses import dataclass, replace

from dassl.engine.identity import same_backbone, shown
from dassl.engine.run_folder import read_results, settings_digest
from dassl.utils import InputError
from protocols import PROTOCOL_REGISTRY, Cells, Place, protocol_named
from protocols.parts.stored_run import StoredRun

NOT_IN_TABLES = ("confusion", "domains", "skipped_images", "untested_classes", "versions", "without_effect")


@contextlib.contextmanager
def uncollected():
    """Within it Python does not look for garbage in circles. What is read of thousands of runs makes none, and looking
    through all of it again and again takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass
class Found:
    """Finished runs below some folders.

    Attributes:
        cells: Cells of those that are a protocol's.
        where: {Place: run folder}
        single: [(run folder, StoredRun, results)] of those that no protocol would make.
    """

    cells: Cells
    where: dict[Place, str]
    single: list[tuple[str, StoredRun, dict]]


def find_runs(folders):
    """(cells, {Place: run folder}) of all finished protocol runs below `folders`; see `collect`.

    Raises:
        InputError: as `collect`, and where no run is a protocol's."""
    found = collect(folders)
    if not found.cells:
        raise InputError(f"no finished run of a protocol in {', '.join(folders)}; see docs/PROTOCOLS.md")
    return found.cells, found.where


@uncollected()
def collect(folders):
    """All finished runs below `folders`, Found.

    The path of a protocol's folder says which run it is; else results.json does (`StoredRun`), and the protocol
    that would make this very run has it. Those that say neither are passed over. Folders that cannot be read, runs that
    are not finished, and those of a protocol that is not known here, are named on stderr.

    Raises:
        InputError: a folder is not there, nothing is found, two folders hold the same run, or an accuracy is not one.
    """
    found, elsewhere = Found(Cells(), {}, []), 0
    unread: list[OSError] = []
    unfinished: list[str] = []
    outside: list[tuple[str, StoredRun, dict]] = []  # of protocols' folders
    unknown: dict[str, list[str]] = {}  # protocol that is not known here -> run folders
    shared: dict = {}
    for folder in folders:
        if not os.path.isdir(folder):
            raise InputError(f"no folder at {folder}; give the output folder of a protocol")
        for path, names, files in os.walk(folder, onerror=unread.append):
            names.sort()
            if "results.json" not in files:
                if "config.yaml" in files and Place.parse(path) is not None:
                    unfinished.append(path)
                continue
            place = Place.parse(path)
            results = read_results(path) if place else results_or_none(path)
            run = StoredRun.of(results)
            if place:
                _require_own_path(path, place, run)
                _add(found, place, path, for_tables(results, shared))
                continue
            if run and run.protocol not in ("", *PROTOCOL_REGISTRY.registered_names()):
                unknown.setdefault(run.protocol, []).append(path)
                continue
            if run:
                outside.append((path, run, results))
            else:
                elsewhere += 1
    for path, run, results in sorted(outside, key=lambda each: each[0]):
        _find_place(found, path, run, results, shared)
    told = [f"{error.filename} ({error.strerror})" for error in unread]
    for what, left in (("left out, they cannot be read", told), ("not finished, without a results.json", unfinished)):
        if left:
            print(f"Note: {len(left)} folder{'s' if len(left) > 1 else ''} {what}, first {left[0]}", file=sys.stderr)
    passed = "; ".join(f"{len(paths)} of {name}, first {paths[0]}" for name, paths in unknown.items())
    if unknown:
        print(f"Note: runs of protocols that are not known here are passed over ({passed}); --plugin FILE makes their "
              "protocol known", file=sys.stderr)
    if not found.cells and not found.single:
        hint = f" ({elsewhere} runs there are outside of a protocol's folders)" if elsewhere else ""
        hint += f" (passed over: {passed}; --plugin FILE makes their protocol known)" if unknown else ""
        raise InputError(f"no finished run of a protocol in {', '.join(folders)}{hint}; see docs/PROTOCOLS.md")
    found.cells = Cells(sorted(found.cells.items(), key=lambda item: sort_key(item[0])))
    return found


def _add(found, place, path, results):
    """Raises InputError where another folder holds the same run."""
    if place in found.where and not os.path.samefile(found.where[place], path):
        raise InputError(f"{found.where[place]} and {path} hold the same run of two outputs; give one of them")
    found.where[place] = path
    found.cells[place] = results


def _require_own_path(path, place, run):
    """Raise InputError where a protocol's folder was renamed: its path says something else than its results do."""
    if run is None:
        return
    for what, says, is_ in (("trainer", place.trainer, run.trainer), ("seed", place.seed, run.seed),
                            ("shots", place.shots, run.shots)):
        if says is not None and says != is_:
            raise InputError(f"{path} says {what} {says}, and the results in it are of {what} {is_}; give the folder "
                             "its former name back, or move it away")


def _find_place(found, path, run, results, shared):
    """Put a run outside of protocols' folders into its protocol's table, where it is what stands there; else among the
    single runs, with the reason."""
    kept, reason = for_tables(results, shared), run.problem(results)
    place = None if reason else _planned(run, results) if run.protocol else recognised(run)
    if place is not None:
        reason = _misfit(found, place, path, run, kept)
        if not reason:
            _add(found, place, path, kept)
            return
    found.single.append((path, replace(run, reason=reason), kept))


def _planned(run, results):
    """The Place of a run that a protocol made and somebody moved: where it was made."""
    place = Place.parse(str((results.get("config") or {}).get("OUTPUT_DIR", "")))
    return place if place is not None and (place.protocol, place.seed) == (run.protocol, run.seed) else None


def _misfit(found, place, path, run, results):
    """Why a run of train.py cannot stand beside the others of its table; "" where it can."""
    if place in found.where:
        return "" if os.path.samefile(found.where[place], path) else f"the same run as {found.where[place]}"
    row = [each for each in found.cells if (each.protocol, each.trainer, each.config) ==
           (place.protocol, place.trainer, place.config)]
    for other in row[:1]:
        if settings_in(found.where[other]) != run.settings:
            return f"trained with other settings than {found.where[other]}"
    try:
        require_comparable(Cells({**found.cells.where(protocol=place.protocol), place: results}),
                           {**found.where, place: path})
    except InputError as error:
        return str(error).partition("; ")[0]
    return ""


def settings_in(folder):
    """The digest of what the run in a folder was trained with; "" where that is not known."""
    results = read_results(folder)
    run = results.get("run") or {}
    if run.get("eval_only") and run.get("model"):
        return run["model"].get("settings", "")
    return settings_digest(results["config"])


def results_or_none(path):
    """The results in a folder that no protocol has made, None where they are no run's."""
    with contextlib.suppress(InputError):
        return read_results(path)
    return None


def recognised(run):
    """The Place of a StoredRun: that of the first protocol that would make this very run, else None. The protocol that
    has made it is asked first."""
    for _, protocol in sorted(PROTOCOL_REGISTRY.items(), key=lambda item: item[0] != run.protocol):
        place = protocol().recognise(run)
        if place is not None and (place.shots is None or place.shots > 0):
            return place
    return None


def places_below(folder):
    """The Places of all finished runs below a folder; their results are not read."""
    return [place for path, _, files in os.walk(folder) if "results.json" in files
            for place in [Place.parse(path)] if place]


def sort_key(place):
    """Runs of a protocol stand in its tables in this order."""
    return (place.protocol, place.dataset, place.trainer, place.config, place.shots or 0,
            *protocol_named(place.protocol).order(place), place.seed)


def for_tables(results, shared):
    """What tables and figures are made of in a run's results, a dict: of thousands of runs the rest, such as confusion
    matrices, would fill the memory. shared: {}, filled: class names, which many runs have in common."""
    kept = {key: value for key, value in results.items() if key not in NOT_IN_TABLES}
    for key, parts in (("classes", ("name",)), ("config", ("DATASET", "MODEL"))):
        if isinstance(kept.get(key), dict):
            kept[key] = {part: kept[key][part] for part in parts if part in kept[key]}
    if kept.get("classes"):
        names = kept["classes"]["name"]
        kept["classes"]["name"] = shared.setdefault(tuple(names), names)
    return kept


def backbone_of(results):
    """The CLIP's name; of a weights file its name without the folder, which differs between machines."""
    return without_folder(results["config"]["MODEL"]["BACKBONE"]["NAME"])


def without_folder(backbone):
    """A weights file's name; a CLIP's name, such as ViT-B/16, as it is."""
    return os.path.basename(backbone) if backbone.endswith((".pt", ".pth", ".safetensors")) else backbone


def require_comparable(cells, where):
    """Raise InputError unless the runs may stand in one table.

    Within a protocol all runs must have one backbone, known by the digest of its weights where that was kept, and one
    number of shots, unless it shows several (`several_shots`). Runs that are tested on the same part of a dataset must
    have the same test images, and those of one seed the same training images.
    """
    for protocol in cells.values("protocol"):
        chosen = cells.where(protocol=protocol)
        _require_one_backbone(chosen, where, protocol)
        if not protocol_named(protocol).several_shots:
            _require_one(chosen, where, lambda results: results["config"].get("DATASET", {}).get("NUM_SHOTS"),
                         f"{protocol}: number of shots", "--shots")
        for dataset in chosen.values("dataset"):
            for part in chosen.where(dataset=dataset).values("part"):
                same = chosen.where(dataset=dataset, part=part)
                what = f"{protocol} on {dataset}" + ("" if part == "all" else f", {part}")
                _require_one(same, where, lambda results: digest(results, "test"), f"{what}: digest of the test images")
                for shots in same.values("shots"):
                    for seed in same.values("seed"):
                        _require_one(same.where(shots=shots, seed=seed), where,
                                     lambda results: digest(results, "train"),
                                     f"{what}, seed {seed}: digest of the training images")


def known_backbone(results):
    """{"name", "digest"} of a run's backbone; the digest is None for a run that was made before it was kept."""
    return {"name": backbone_of(results), "digest": (results.get("backbone") or {}).get("digest")}


def _require_one_backbone(cells, where, protocol):
    """Raise InputError, naming two runs, unless every two have the same weights."""
    kinds: dict[tuple, Place] = {}
    for place, results in cells.items():
        kinds.setdefault(tuple(known_backbone(results).items()), place)
    for (one, first), (other, second) in itertools.combinations(kinds.items(), 2):
        if not same_backbone(dict(one), dict(other)):
            raise InputError(f"these runs cannot be averaged or compared, they differ in {protocol}: backbone: "
                             f"{shown(dict(one))} in {where[first]}, {shown(dict(other))} in {where[second]}; choose "
                             "one with --backbone, or run one of them anew")


def digest(results, part):
    """The first digits of a part's digest, "none kept" for a run that was made before digests were."""
    found = (results.get("dataset_digest") or {}).get(part)
    return found[:12] if found else "none kept"


def _require_one(cells, where, value_of, what, flag=""):
    """Raise InputError, naming two runs, if `value_of(results)` is not the same for all."""
    first = None
    for place, results in cells.items():
        value = value_of(results)
        if first is None:
            first = place, value
        elif value != first[1]:
            hint = (f"choose one with {flag}" if flag else "run one of them anew, or report them apart")
            raise InputError(f"these runs cannot be averaged or compared, they differ in {what}: {first[1]} in "
                             f"{where[first[0]]}, {value} in {where[place]}; {hint}")
