"""What a finished run says of itself, whatever its folder: enough to find its cell in a protocol's tables."""
from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dassl.config import get_cfg_default, merge_file
from dassl.engine import TRAINER_REGISTRY, learns
from dassl.engine.run_folder import settings_digest
from dassl.utils import InputError
from protocols.parts.cells import accuracy
from protocols.parts.place import Place
from protocols.parts.plan import Dataset, config_file

NOTHING: dict[str, Any] = {"dataset": "", "config": "", "part": "", "shots": -1}  # is known of a run


@dataclass(frozen=True)
class StoredRun:
    """The entry "run" of a results.json, with trainer and seed. `Protocol.recognise` is given one.

    Attributes:
        trainer: the registered name of the method.
        seed: of every draw.
        dataset, config: the names of the dataset's and the method's config files.
        part: DATASET.SUBSAMPLE_CLASSES: base, new or all.
        source_domains, target_domains: names; () for a dataset without domains.
        shots: DATASET.NUM_SHOTS; negative: all images.
        eval_only: whether nothing was trained.
        model: for an evaluation, the run whose prompts were tested; None where there was none. A field that is not
            known of it is empty.
        protocol: the name of the protocol that made it; "" for a run of train.py, and where that was not kept yet.
        settings: digest of what it was trained with (`settings_digest`), of an evaluation what its model was trained
            with; "" where that is not known.
        reason: why it stands in no protocol's table, in words.
    """

    trainer: str
    seed: int
    dataset: str
    config: str
    part: str
    source_domains: tuple[str, ...] = ()
    target_domains: tuple[str, ...] = ()
    shots: int = -1
    eval_only: bool = False
    model: StoredRun | None = None
    protocol: str = ""
    settings: str = ""
    reason: str = ""

    @classmethod
    def of(cls, results: Any) -> StoredRun | None:
        """The StoredRun of a results.json; None where that does not say, or what it says is no run's."""
        if not isinstance(results, Mapping) or not isinstance(results.get("run"), Mapping):
            return None
        try:
            trainer, seed = _name(results.get("trainer")), _number(results.get("seed"))
            model = results["run"].get("model")
            before = cls(trainer, _number(model.get("seed", -1)), **_fields(NOTHING | dict(model)),
                         settings=str(model.get("settings", ""))) if isinstance(model, Mapping) else None
            settings = before.settings if before else settings_digest(results.get("config") or {})
            found = cls(trainer, seed, **_fields(results["run"]), model=before, settings=settings,
                        protocol=_name(results["run"].get("protocol", "")))
        except ValueError:
            return None
        return found if found.dataset and found.part and (found.shots > 0 or found.shots == -1) else None

    def problem(self, results: Mapping[str, Any]) -> str:
        """Why the run stands in no protocol's table, whatever it trained on; "" where nothing is against it."""
        epoch = (results.get("evaluation") or {}).get("load_epoch")
        if accuracy(results) is None:
            return "it has no test accuracy"
        if epoch is not None:
            return f"epoch {epoch} of its training was evaluated"
        if self.model is not None and self.model.seed != self.seed:
            trained = f"with seed {self.model.seed}" if self.model.seed >= 0 else "with a seed that is not known"
            return f"evaluated with seed {self.seed}, trained {trained}"
        if self.model is not None and self.model.shots != self.shots:
            return f"evaluated with {_shots(self.shots)}, trained with {_shots(self.model.shots)}"
        return "" if self.settings else "what it was trained with is not known"

    def place(self, protocol: str, part: str = "all", shots: bool = True) -> Place:
        """Its Place in a protocol. part: as in Place. shots: whether the protocol trains on some."""
        return Place(protocol, self.dataset, self.trainer, self.config, part, self.shots if shots else None, self.seed)

    def tests_as_configured(self) -> bool:
        """Whether source and target domains are those of the dataset's own config, which for most are none."""
        domains = self.source_domains, self.target_domains
        return domains == ((), ()) or domains == self.configured_domains()

    def configured_domains(self) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """(source domains, target domains) that the dataset's own config names; None where it is not there."""
        with contextlib.suppress(InputError):
            config = get_cfg_default()
            merge_file(config, config_file("datasets", self.dataset))
            return tuple(config.DATASET.SOURCE_DOMAINS), tuple(config.DATASET.TARGET_DOMAINS)
        return None

    def all_domains(self, root: str = "") -> set[str]:
        """The names of the dataset's domains; {} where they are not known."""
        with contextlib.suppress(InputError, OSError):
            return set(Dataset.of(self.dataset).domains(root))
        return set()

    def told(self) -> str:
        """What was trained and tested, in words, and why it stands in no protocol's table."""
        return "; ".join(filter(None, [self._told(), self.reason]))

    def _told(self) -> str:
        targets = f" of {', '.join(self.target_domains)}" if self.target_domains else ""
        if self.model is None and self.eval_only or self.trainer in TRAINER_REGISTRY and not learns(
                TRAINER_REGISTRY.get(self.trainer)):
            return f"{self.part} classes{targets}: evaluated without a training"
        if not self.eval_only:
            sources = f" on {', '.join(self.source_domains)}" if self.source_domains else ""
            return f"{self.part} classes{targets}: tested after training{sources}"
        assert self.model is not None
        before = self.model
        sources = f", {', '.join(before.source_domains)}" if before.source_domains else ""
        return (f"{self.part} classes{targets}: tested with what was trained on {before.part or 'unknown'} classes of "
                f"{before.dataset or 'an unknown dataset'}{sources}")


def of_dataset(run: StoredRun, name: str, shots: int) -> StoredRun:
    """The same run as one of another dataset, with other shots: evaluations stand where their training does."""
    return replace(run, dataset=name, shots=shots)


def _shots(number: int) -> str:
    return f"{number} shot{'s' if number != 1 else ''}" if number > 0 else "all images"


def _fields(run: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a StoredRun. Raises ValueError for what no run has written."""
    return {"dataset": _name(run.get("dataset")), "config": _name(run.get("config")), "part": _name(run.get("part")),
            "source_domains": _names(run.get("source_domains")), "target_domains": _names(run.get("target_domains")),
            "shots": _number(run.get("shots")), "eval_only": run.get("eval_only") is True}


def _name(value: Any) -> str:
    """A word that may become a part of a path. Raises ValueError for another."""
    if not isinstance(value, str) or value in (".", "..") or any(mark in value for mark in "/\\\0"):
        raise ValueError("not a name")
    return value


def _names(value: Any) -> tuple[str, ...]:
    return tuple(_name(word) for word in value) if isinstance(value, (list, tuple)) else ()


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("not a number")
    return value
