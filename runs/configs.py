"""The configs of the runs of one command: each is built once."""
import contextlib
import functools
import pickle
from collections.abc import Iterable
from dataclasses import replace

from yacs.config import CfgNode

from dassl.config.reading import read_config
from runs.build_config import BuiltConfig, build
from runs.run_spec import RunSpec

NONE = CfgNode()


class Configs:
    """What one command has built, and the config files that it has read, each once. It is made with the command and
    handed down, so that a file or a plugin that changes between two commands of one process is seen.

    A config is kept as bytes, which never leave this process. A part that many runs have in common (OPTIM, INPUT, ...)
    is kept once, so that a plan of 10,000 runs takes some 10 MB. A run whose seed is to be drawn is not kept. A copy
    that is sent to another process is empty.
    """

    def __init__(self) -> None:
        self._kept: dict[RunSpec, tuple[BuiltConfig, tuple[bytes, ...]]] = {}  # without its config, which is the bytes
        self._parts: dict[bytes, bytes] = {}
        self._read = functools.cache(read_config)

    def __reduce__(self):
        return Configs, ()

    def of(self, spec: RunSpec) -> CfgNode:
        """The frozen config of a run, a tree of its own. Raises InputError as `build_config` does."""
        return self.built(spec).cfg

    def built(self, spec: RunSpec) -> BuiltConfig:
        """As `of`, with the owner of the config file."""
        kept = self._kept.get(spec)
        if kept is not None:
            rest, parts = kept
            return replace(rest, cfg=_unpacked(parts))
        built = build(spec, self._read)
        if spec.seed >= 0:
            # a plugin may have set what is no plain value; such a config is built again
            with contextlib.suppress(pickle.PicklingError, AttributeError, TypeError):
                parts = tuple(self._parts.setdefault(part, part) for part in _packed(built.cfg))
                self._kept[spec] = replace(built, cfg=NONE), parts
        return built


def _packed(cfg: CfgNode) -> Iterable[bytes]:
    """A config's nodes one by one, each with its name, behind what is not a node."""
    rest = CfgNode.__new__(CfgNode)
    rest.__dict__.update(cfg.__dict__)
    nodes = {name: node for name, node in cfg.items() if isinstance(node, CfgNode)}
    dict.update(rest, {name: None if name in nodes else value for name, value in cfg.items()})
    yield pickle.dumps(rest)
    for entry in nodes.items():
        yield pickle.dumps(entry)


def _unpacked(parts: Iterable[bytes]) -> CfgNode:
    """The config of `_packed`."""
    cfg, *nodes = map(pickle.loads, parts)
    dict.update(cfg, dict(nodes))
    return cfg
