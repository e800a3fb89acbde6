"""Which keys of the engine a method reads: those that act in some run of it, as dassl/config/effect.py says."""
import functools
import inspect
from collections.abc import Iterator
from typing import Any

from yacs.config import CfgNode

from dassl.config import copied, get_cfg_default
from dassl.config.effect import EFFECTS, RunFacts
from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.samplers import SAMPLER_REGISTRY
from dassl.optim.lr_scheduler import AVAI_SCHEDS, AVAI_WARMUPS
from dassl.optim.optimizer import AVAI_OPTIMS
from training.prompt_trainer import PromptTrainer

# What lets as many keys act as can act together.
OPEN = {"OPTIM.WARMUP_EPOCH": 1, "OPTIM.STAGED_LR": True, "DATASET.SOURCE_DOMAINS": ("any",),
        "DATALOADER.TRAIN_U.SAME_AS_X": False}


class AnyRun(RunFacts):
    """The facts of a run that nobody makes: of a method, on any dataset, with whatever its config leaves open."""

    dataset = object  # stands for any
    domains = True

    def __init__(self, cfg: CfgNode, method: type, eval_only: bool, mentioned: dict[tuple[str, type], bool]) -> None:
        super().__init__(cfg, object.__new__(method), eval_only, issubclass(method, PromptTrainer))
        self._mentioned = mentioned  # what `mentions` has answered, shared: Python takes its time to find a source

    @property
    def unlabelled(self) -> bool:
        return not self.own_trainer

    @property
    def scheduled(self) -> bool:
        """Whether the method's optimizers follow OPTIM's schedule: it is taken from the source that builds them."""
        builder = next((base for base in type(self.trainer).__mro__ if "build_optimizers" in vars(base)), None)
        return self.trains and (builder is None or "build_lr_scheduler" in _source(builder))

    def mentions(self, word: str, cls: type) -> bool:
        if (word, cls) not in self._mentioned:
            known = [registered for _, registered in DATASET_REGISTRY.items()] if cls is object else [cls]
            self._mentioned[word, cls] = any(super(AnyRun, self).mentions(word, each) for each in known)
        return self._mentioned[word, cls]


def read_keys(method: type) -> list[str]:
    """The engine's keys that a method reads.

    Args:
        method: a trainer class.
    """
    mentioned: dict[tuple[str, type], bool] = {}
    runs = [AnyRun(cfg, method, eval_only, mentioned) for cfg in _configs(method) for eval_only in (False, True)]
    return [key for key, (_, acts) in EFFECTS.items()
            if any(acts(run) for run in runs) or runs[0].plugin_mentions(key.split(".")[-1])]


@functools.cache
def _source(cls: type) -> str:
    return inspect.getsource(cls)


def _configs(method: type) -> Iterator[CfgNode]:
    """Configs in which, taken together, every key acts that can act with a method."""
    from dassl.data.transforms.transforms import AVAI_CHOICES  # torchvision takes a second to import

    needed = getattr(method, "sampler", None)
    kinds: dict[str, Any] = {
        "OPTIM.NAME": AVAI_OPTIMS, "OPTIM.LR_SCHEDULER": AVAI_SCHEDS, "OPTIM.WARMUP_TYPE": AVAI_WARMUPS,
        "INPUT.TRANSFORMS": ((), tuple(AVAI_CHOICES)),
        "DATALOADER.TRAIN_X.SAMPLER": [needed] if needed else SAMPLER_REGISTRY.registered_names(),
        "DATALOADER.TRAIN_U.SAMPLER": SAMPLER_REGISTRY.registered_names(),
    }
    for key, values in kinds.items():
        for value in values:
            cfg = copied(get_cfg_default())
            for name, given in (OPEN | {"DATALOADER.TRAIN_X.SAMPLER": needed or "RandomSampler", key: value}).items():
                *nodes, leaf = name.split(".")
                node = cfg
                for each in nodes:
                    node = node[each]
                node[leaf] = given
            yield cfg
