"""What is known of a plan before its first run: what is done, what cannot be made and why, what the rest will take.

Nothing is written and no run is started. What several runs have in common is looked at once: the lists of a dataset,
the backbone, whether the method can be built. docs/PROTOCOLS.md says what is looked at.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.samplers import build_sampler
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.run_folder import Listings
from dassl.utils import InputError, broadcast, isolated_rng, printable, quiet
from dassl.utils.registry import nearest
from prompting.backbone import known_names
from protocols import Run
from runs.command_line import mendable
from tools.running.before_run import finished, only_class
from tools.running.trials import Trial, Trials
from training.prompt_trainer import PromptTrainer

MOST_LINES = 20  # of problems; what comes from one cause is one line
UNKNOWN = Trial()
SOME = 3  # classes that a method is built for
TAKE_ANY = ("RandomSampler", "SequentialSampler")  # samplers that refuse no images
WAYS = "metaprompt data"  # in the advice on a dataset that is not there


@dataclass(frozen=True)
class Parts:
    """The size of a dataset as a run reads it: images to train on, to validate on and to test, and its classes.

    names: of all classes, the longest last."""

    train: int
    val: int
    test: int
    names: tuple[str, ...]

    @property
    def classes(self) -> int:
        return len(self.names)


@dataclass
class Lacking:
    """What could not be fetched: {file of a dataset's config: why, and the steps by hand}, {backbone: why}."""

    data: dict[str, str] = field(default_factory=dict)
    backbones: dict[str, str] = field(default_factory=dict)


NOTHING_LACKS = Lacking()


@dataclass(frozen=True)
class Problem:
    """A reason why runs cannot be made, and their folders."""

    text: str
    folders: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.text} ({len(self.folders)} run{'s' if len(self.folders) > 1 else ''})"


@dataclass
class Looked:
    """What was found of a run.

    Attributes:
        word: "done", "to do", "refused" or "no number" (an accuracy among one class says nothing).
        reasons: why it is refused; of "no number" the name of the class.
        parts: its data, None where they could not be listed.
        trial: what came of building its method.
    """

    word: str = "to do"
    reasons: list[str] = field(default_factory=list)
    parts: Parts | None = None
    trial: Trial = UNKNOWN

    def refuse(self, reason: str) -> None:
        self.word = "refused"
        self.reasons.append(reason)


@dataclass
class Preflight:
    """What was found of a plan: its runs, and {run folder: Looked}."""

    runs: Sequence[Run]
    looked: dict[str, Looked]

    def having(self, word: str) -> list[Run]:
        """The runs of a word."""
        return [run for run in self.runs if self.looked[run.folder].word == word]

    @property
    def refused(self) -> dict[str, str]:
        """{run folder: why} of what cannot be made."""
        return {run.folder: "; ".join(self.looked[run.folder].reasons) for run in self.having("refused")}

    def problems(self) -> list[Problem]:
        """Each cause once. Lines that differ in the run's own folder only are one."""
        found: dict[str, tuple[str, list[str]]] = {}
        for run in self.having("refused"):
            for reason in self.looked[run.folder].reasons:
                alike = reason
                for name in (run.folder, ascii(run.folder)[1:-1]):
                    alike = alike.replace(name, "")
                found.setdefault(alike, (reason, []))[1].append(run.folder)
        return [Problem(text, tuple(folders)) for text, folders in found.values()]

    def counts(self) -> str:
        """How many runs are there, are done, and cannot be made, in words."""
        numbers = {word: len(self.having(word)) for word in ("done", "refused")}
        more = f", {numbers['refused']} refused" if numbers["refused"] else ""
        return f"{len(self.runs)} run{'s' if len(self.runs) != 1 else ''}, {numbers['done']} done{more}"

    def listed(self) -> list[str]:
        """The lines of the problems."""
        problems = [f"  - {printable(str(problem))}" for problem in self.problems()]
        left = len(problems) - MOST_LINES
        return problems if left <= 0 else [*problems[:MOST_LINES], f"  - and {left} problems more"]

    def require(self, prepared: bool = False) -> None:
        """Raise InputError where a run cannot be made. Several causes are printed before, as a list.

        prepared: whether what can be fetched was."""
        problems = self.problems()
        if not problems:
            return
        fetch = not prepared and any(WAYS in problem.text for problem in problems)
        otherwise = "; --prepare (PREPARE=1) gets what can be fetched" if fetch else ""
        if len(self.refused) < len(self.runs):
            otherwise += "; --keep-going (KEEP_GOING=1) goes on without them"
        hit = f"{len(self.refused)} of {len(self.runs)} runs"
        if len(problems) == 1:
            raise InputError(f"{problems[0].text} (nothing was run: {hit} cannot be made{otherwise})")
        broadcast(lambda: print("\n".join([f"{hit} cannot be made:", *self.listed()]), flush=True))
        raise InputError(f"nothing was run: {len(problems)} problems, see the list above{otherwise}")


def look_at(runs: Sequence[Run], trials: Trials, silent: bool = True, lacking: Lacking = NOTHING_LACKS) -> Preflight:
    """Look at the runs of a plan. Every rank of a run of several processes calls it and gets the same.

    Args:
        silent: whether notes on finished runs are left out.
        lacking: what could not be fetched.
    """
    looks = Looks(silent, lacking)
    looked = broadcast(lambda: [looks.at(run) for run in runs])
    found = Preflight(runs, {run.folder: each for run, each in zip(runs, looked)})
    _try_methods(found, trials)
    return found


class Looks:
    """Looks at one run after another. Those of a plan share datasets and backbones."""

    def __init__(self, silent: bool = True, lacking: Lacking = NOTHING_LACKS) -> None:
        self._seen = Listings()
        self._silent, self._lacking = silent, lacking
        self._checked: dict[tuple, Any] = {}  # what was looked at: what was found, or the error

    def at(self, run: Run) -> Looked:
        """What is found of a run, but for its method."""
        looked = Looked()
        try:
            with quiet() if self._silent else contextlib.nullcontext():
                results = finished(run, self._seen)
            if results is not None:
                return Looked("done")
            cfg = run.check()
        except Exception as error:
            refuse(looked, error)
            return self._without_number(run, looked)
        try:
            self._once(("backbone", cfg.MODEL.BACKBONE.NAME, cfg.TRAINER.NAME),
                       lambda: require_backbone(cfg, self._lacking.backbones))
        except InputError as error:
            refuse(looked, error)
        try:
            looked.parts = self.parts_of(run)
        except Exception as error:
            refuse(looked, error, self._lacking.data.get(run.spec.dataset_config_file, ""))
            return self._without_number(run, looked)
        return looked

    def parts_of(self, run: Run) -> Parts | None:
        """The data of a run, None for what is drawn at first use. Raises as `build_dataset` and, where batches are put
        together by domain or class, `build_sampler` do."""
        cfg = run.configs.of(run.spec)
        trains_by = None if cfg.DATALOADER.TRAIN_X.SAMPLER in TAKE_ANY else cfg.DATALOADER.TRAIN_X
        # a seed draws from the same lists
        what = ("data", repr(cfg.DATASET), trains_by and repr((cfg.TRAINER.NAME, trains_by)))
        return self._once(what, lambda: self._parts(cfg, trains_by))

    def _once(self, what: tuple, look: Callable[[], Any]) -> Any:
        """`look()`, called once for `what`. Raises what that raised, again."""
        if what not in self._checked:
            try:
                self._checked[what] = look()
            except Exception as error:
                self._checked[what] = error
        found = self._checked[what]
        if isinstance(found, Exception):
            raise found
        return found

    def _parts(self, cfg: CfgNode, trains_by: CfgNode | None) -> Parts | None:
        """The Parts of a config's dataset. What is drawn at first use need not be there: None.

        trains_by: the node of the sampler that its training images must suffice for."""
        registered = DATASET_REGISTRY.get(cfg.DATASET.NAME)
        folder = os.path.join(os.path.expanduser(cfg.DATASET.ROOT), getattr(registered, "dataset_dir", ""))
        if getattr(registered, "drawn_at_first_use", False) and not os.path.isdir(folder):
            return None
        with quiet(), isolated_rng(cfg.SEED):
            dataset = self._seen.dataset(cfg)
            if trains_by is not None:
                build_sampler(trains_by.SAMPLER, cfg, dataset.train_x, trains_by.BATCH_SIZE, trains_by.N_DOMAIN,
                              trains_by.N_INS)
        names = [str(name) for name in dataset.classnames]
        train, val, test = (len(getattr(dataset, part, None) or ()) for part in ("train_x", "val", "test"))
        return Parts(train, val, test, tuple(sorted(names, key=len)))

    def _without_number(self, run: Run, looked: Looked) -> Looked:
        """As `looked`, or "no number" where the run would be tested on one class only."""
        if looked.word != "refused":
            return looked
        cfg_key = run.place.protocol, run.place.part, run.spec.dataset_config_file, run.spec.root, run.spec.options
        name = self._once(("one class", *cfg_key), lambda: only_class(run))
        return Looked("no number", [name]) if name else looked


def refuse(looked: Looked, error: Exception, more: str = "") -> None:
    """Note an error that the user can mend. The run itself tells of a bug, with its traceback. more: is told, too."""
    reason = mendable(error)
    if reason is not None:
        looked.refuse(f"{reason}; {more}" if more else reason)


def require_backbone(cfg: CfgNode, lacking: Mapping[str, str]) -> None:
    """Raise InputError for a backbone that is neither a known name nor a file, or that could not be fetched. What a
    trainer in Dassl's own style calls its backbone is its own affair: it may be no CLIP.

    lacking: {name: why}."""
    name = cfg.MODEL.BACKBONE.NAME
    if name in lacking:
        raise InputError(lacking[name])
    loads_itself = not issubclass(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), PromptTrainer)
    if name not in known_names() and not os.path.isfile(name) and not loads_itself:
        raise InputError(f"backbone '{name}' is neither a file nor one of {', '.join(known_names())}"
                         f"{nearest(name, known_names())}")


# ---- methods ----
def _try_methods(found: Preflight, trials: Trials) -> None:
    """Build each method once for each backbone, config and dataset of the runs that are to be made, and note what comes
    of it. On several ranks all build, in the same order."""
    tried: dict[tuple, Trial] = {}
    for run in found.runs:
        looked = found.looked[run.folder]
        usable = looked.word == "to do" or looked.word == "refused" and _has_config(run)
        if not usable or not _is_there(run):
            continue
        key = _kind(run, looked)
        if key not in tried:
            tried[key] = _try_method(run.configs.of(run.spec), trials, looked.parts.names if looked.parts else ())
        looked.trial = tried[key]
        if looked.trial.problem:
            looked.refuse(looked.trial.problem)


def _try_method(cfg: CfgNode, trials: Trials, names: Sequence[str]) -> Trial:
    """What comes of building a method for three classes; for all where these do not suffice it. What is too long for a
    prompt is among the three, the longest names. names: those of all classes, the longest last; () where none are
    known."""
    trial = trials.of(cfg, names[-SOME:], len(names) or SOME)
    return trials.of(cfg, names, len(names)) if trial.problem and len(names) > SOME else trial


def _has_config(run: Run) -> bool:
    try:
        run.check()
    except InputError:
        return False
    return True


def _is_there(run: Run) -> bool:
    """Whether the backbone is one that can be tried."""
    name = run.configs.of(run.spec).MODEL.BACKBONE.NAME
    return os.path.isfile(name) or name in known_names()


def _kind(run: Run, looked: Looked) -> tuple:
    """What the building of a run's method depends on."""
    spec = run.spec
    options = tuple(pair for pair in zip(spec.options[::2], spec.options[1::2]) if not pair[0].startswith("DATASET."))
    return (spec.trainer, spec.config_file, spec.dataset_config_file, spec.backbone, spec.transforms, spec.head,
            options, looked.parts and looked.parts.names)
