"""Finding finished runs on disk, and refusing to mix what cannot be compared."""
import contextlib
import gc
import os
import sys
from dataclasses import dataclass, replace

from dassl.engine.identity import same_backbone, shown
from dassl.engine.run_folder import read_results, settings_digest
from dassl.utils import InputError
from protocols import PROTOCOL_REGISTRY, Cells, Place, protocol_named
from protocols.parts.stored_run import StoredRun
from training.store.folder import without_features

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
    outside: list[tuple] = []  # of protocols' folders
    unknown: dict[str, list[str]] = {}  # protocol that is not known here -> run folders
    shared: dict = {}
    for folder in folders:
        if not os.path.isdir(folder):
            raise InputError(f"no folder at {folder}; give the output folder of a protocol")
        for path, names, files in os.walk(folder, onerror=unread.append):
            names[:] = without_features(names, files)
            if "results.json" not in files:
                if "config.yaml" in files and Place.parse(path) is not None:
                    unfinished.append(path)
                continue
            place = Place.parse(path)
            results = read_results(path) if place else results_or_none(path)
            if place:
                _require_own_path(path, place, results)
                _add(found, place, path, for_tables(results, shared))
                continue
            run = StoredRun.of(results)
            if run and run.protocol not in ("", *PROTOCOL_REGISTRY.registered_names()):
                unknown.setdefault(run.protocol, []).append(path)
                continue
            if run:
                outside.append(_outside(path, run, results, shared))
            else:
                elsewhere += 1
    _find_places(found, outside)
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


def _require_own_path(path, place, results):
    """Raise InputError where a protocol's folder was renamed: its path says something else than its results do."""
    run = results.get("run")
    if not run:  # made before runs said which they are
        return
    for what, says, found in (("trainer", place.trainer, results.get("trainer")), ("seed", place.seed,
                              results.get("seed")), ("shots", place.shots, run.get("shots"))):
        if None not in (says, found) and says != found:
            raise InputError(f"{path} says {what} {says}, and the results in it are of {what} {found}; give the folder "
                             "its former name back, or move it away")


def _outside(path, run, results, shared):
    """(run folder, StoredRun with the reason why it stands in no table, its Place or None, what tables need of it)"""
    reason = run.problem(results)
    place = None if reason else _planned(run, results) if run.protocol else recognised(run)
    return path, replace(run, reason=reason), place, for_tables(results, shared)


def _find_places(found, outside):
    """Put each run outside of protocols' folders into its protocol's table, where it is what stands there; else among
    the single runs, with the reason. outside: what `_outside` gave of each."""
    common, rows = Comparable(), {}  # rows: {row: (the folder of its first run, what that was trained with)}
    for place, results in found.cells.items() if outside else ():
        with contextlib.suppress(InputError):  # told when the tables are made, if these runs are asked for
            common.add(place, results, found.where[place])
        if _row(place) not in rows:
            rows[_row(place)] = found.where[place], settings_in(found.where[place])
    for path, run, place, results in sorted(outside, key=lambda each: each[0]):
        reason = run.reason if place is None else _misfit(found, place, path, run, rows)
        if place is not None and not reason:
            try:
                common.add(place, results, path)
            except InputError as error:
                reason = str(error).partition("; ")[0]
        if place is None or reason:
            found.single.append((path, replace(run, reason=reason), results))
        else:
            rows.setdefault(_row(place), (path, run.settings))
            _add(found, place, path, results)


def _misfit(found, place, path, run, rows):
    """Why a run cannot stand in its place, whatever it is compared with; "" where it can."""
    if place in found.where:
        return "" if os.path.samefile(found.where[place], path) else f"the same run as {found.where[place]}"
    first, settings = rows.get(_row(place), (path, run.settings))
    return "" if settings == run.settings else f"trained with other settings than {first}"


def _row(place):
    """The row of a table: runs in it differ in data, part, shots and seed only."""
    return place.protocol, place.trainer, place.config


def _planned(run, results):
    """The Place of a run that a protocol made and somebody moved: where it was made."""
    place = Place.parse(str((results.get("config") or {}).get("OUTPUT_DIR", "")))
    return place if place is not None and (place.protocol, place.seed) == (run.protocol, run.seed) else None


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
    """The Place of a StoredRun: that of the first protocol that would make this very run, else None."""
    for _, protocol in PROTOCOL_REGISTRY.items():
        place = protocol().recognise(run)
        if place is not None and (place.shots is None or place.shots > 0):
            return place
    return None


def places_below(folder):
    """The Places of all finished runs below a folder; their results are not read."""
    found = []
    for path, names, files in os.walk(folder):
        names[:] = without_features(names, files)
        if "results.json" in files and (place := Place.parse(path)):
            found.append(place)
    return found


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


class Comparable:
    """What the runs of a table have in common so far; each further run is compared with that, not with every run.

    Within a protocol all runs must have one backbone, known by the digest of its weights where that was kept, and one
    number of shots, unless it shows several (`several_shots`). Runs that are tested on the same part of a dataset must
    have the same test images, and those of one seed the same training images. Runs of a transductive method must have
    test batches of one size.
    """

    def __init__(self):
        self._known = {}  # what must be one -> (value, run folder)
        self._backbones = {}  # protocol -> {backbone: run folder}

    def add(self, place, results, folder):
        """Take a run in. Raises InputError, naming two runs, where it has not what the others have in common."""
        backbone, backbones = known_backbone(results), self._backbones.setdefault(place.protocol, {})
        for other, first in backbones.items():
            if not same_backbone(dict(other), backbone):
                raise InputError(f"these runs cannot be averaged or compared, they differ in {place.protocol}: "
                                 f"backbone: {shown(dict(other))} in {first}, {shown(backbone)} in {folder}; choose "
                                 "one with --backbone, or run one of them anew")
        found = list(_in_common(place, results))
        for what, value, flag in found:
            known, first = self._known.get(what, (value, folder))
            if value != known:
                hint = f"choose one with {flag}" if flag else "run one of them anew, or report them apart"
                raise InputError(f"these runs cannot be averaged or compared, they differ in {what}: {known} in "
                                 f"{first}, {value} in {folder}; {hint}")
        backbones.setdefault(tuple(backbone.items()), folder)
        for what, value, _ in found:
            self._known.setdefault(what, (value, folder))


def _in_common(place, results):
    """(what a run must have in common with others, its value, the flag that chooses one of several)"""
    if not protocol_named(place.protocol).several_shots:
        shots = results["config"].get("DATASET", {}).get("NUM_SHOTS")
        yield f"{place.protocol}: number of shots", shots, "--shots"
    if size := (results.get("test_time") or {}).get("batch_size"):
        yield f"{place.trainer}: images per test batch, on which its answers depend", size, ""
    what = f"{place.protocol} on {place.dataset}" + ("" if place.part == "all" else f", {place.part}")
    yield f"{what}: digest of the test images", digest(results, "test"), ""
    shots = f", {place.shots} shots" if place.shots is not None else ""
    yield f"{what}{shots}, seed {place.seed}: digest of the training images", digest(results, "train"), ""


def require_comparable(cells, where):
    """Raise InputError unless the runs may stand in one table (`Comparable`)."""
    common = Comparable()
    for place, results in cells.items():
        common.add(place, results, where[place])


def known_backbone(results):
    """{"name", "digest"} of a run's backbone; the digest is None for a run that was made before it was kept."""
    return {"name": backbone_of(results), "digest": (results.get("backbone") or {}).get("digest")}


def digest(results, part):
    """The first digits of a part's digest, "none kept" for a run that was made before digests were."""
    found = (results.get("dataset_digest") or {}).get(part)
    return found[:12] if found else "none kept"
