"""A RunSpec becomes a config: defaults, dataset file, method file with its entry for the dataset, flags, options, in
this order."""
import functools
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from yacs.config import CfgNode

from dassl.config import (
    check_config,
    clean_cfg,
    copied,
    get_cfg_default,
    merge_entry,
    merge_flag,
    merge_options,
    merge_text,
)
from dassl.config.belongs import methods_of_file
from dassl.config.per_dataset import Taken, datasets_named, entries_of, place_of, require_no_entries
from dassl.config.reading import ConfigFile, keys_of, read_config
from dassl.config.tree import dotted
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.identity import allowed_changes
from dassl.engine.run_folder import stored_config
from dassl.optim import require_length
from dassl.utils import InputError, broadcast
from prompting.image_size import image_size
from prompting.templates import check_templates
from runs.run_spec import RunSpec
from training.options import options_set
from training.prompt_trainer import PromptTrainer

CONFIGS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs")
FLAG_KEYS = {"root": "DATASET.ROOT", "output_dir": "OUTPUT_DIR", "resume": "RESUME", "trainer": "TRAINER.NAME",
             "backbone": "MODEL.BACKBONE.NAME", "head": "MODEL.HEAD.NAME", "source_domains": "DATASET.SOURCE_DOMAINS",
             "target_domains": "DATASET.TARGET_DOMAINS", "transforms": "INPUT.TRANSFORMS",
             "skip_bad_images": "DATASET.SKIP_BAD_IMAGES"}  # fields of a RunSpec that set a config key

Extension = Callable[[CfgNode], None]  # a trainer's extend_cfg


@dataclass(frozen=True)
class BuiltConfig:
    """A run's config, and what is known only while its files are read.

    Attributes:
        cfg: the frozen config.
        owner: the other method whose config file this run uses (`owner_of_config`), or "".
        taken: what it took from the config file for its dataset alone, or None.
    """

    cfg: CfgNode
    owner: str = ""
    taken: Taken | None = None


def build_config(spec: RunSpec, read: Callable[[str], ConfigFile] = read_config) -> CfgNode:
    """The frozen config of a run. Arguments and errors are those of `build`."""
    return build(spec, read).cfg


def build(spec: RunSpec, read: Callable[[str], ConfigFile] = read_config) -> BuiltConfig:
    """The config of a run, and which method's config file it is made from.

    A seed that is not given is drawn, the same on all processes.

    Args:
        read: path -> the config file there; `Configs` reads the files that many runs share once.
    Raises:
        InputError: no method is named, or a file, a flag or an option is not what the config takes.
    """
    trainer = _trainer_of(spec, read)
    owner = owner_of_config(spec.config_file, TRAINER_REGISTRY.name_of(trainer), read) if spec.config_file else ""
    cfg, taken = _merged(spec, trainer, read)
    check_config(cfg)
    if not spec.eval_only:
        require_length(cfg)
    check_templates(cfg.DATASET.TEMPLATES, "DATASET.TEMPLATES")
    if "USE_CUDA" in spec.options[::2] and cfg.USE_CUDA and not torch.cuda.is_available():
        raise InputError("option: USE_CUDA True asks for a GPU, but torch sees none; leave it out to run on the CPU")
    cfg.SEED = _seed(spec.seed if spec.seed >= 0 else cfg.SEED)
    if cfg.DATASET.CLASSNAMES:
        cfg.DATASET.CLASSNAMES = os.path.abspath(cfg.DATASET.CLASSNAMES)
    if os.path.isfile(cfg.MODEL.BACKBONE.NAME):
        cfg.MODEL.BACKBONE.NAME = os.path.abspath(cfg.MODEL.BACKBONE.NAME)
    if issubclass(trainer, PromptTrainer):
        _complete(cfg, trainer)
    else:
        _complete_foreign(cfg)
    allowed_changes(cfg)
    if spec.eval_only and issubclass(trainer, PromptTrainer) and trainer.trains and not spec.model_dir:
        raise InputError(f"--eval-only needs --model-dir, the run folder that holds what {cfg.TRAINER.NAME} trained")
    cfg.freeze()
    return BuiltConfig(cfg, owner, taken)


def _merged(spec: RunSpec, trainer: type, read: Callable[[str], ConfigFile]) -> tuple[CfgNode, Taken | None]:
    """The defaults with the files, the flags and the options of a run merged into them, and what was taken for its
    dataset."""
    # A plugin that declares no keys of its own may bring any under TRAINER.
    open_trainer = not declares_config(trainer)
    data = read(spec.dataset_config_file).layers() if spec.dataset_config_file else ()
    require_no_entries(data)
    own = read(spec.config_file).layers() if spec.config_file else ()
    files = (*data, *own)
    cfg = copied(_with_files(_extensions(), files, open_trainer))
    named = datasets_named(own)
    _require_entries(named, files, open_trainer)
    dataset = _dataset_of(spec, cfg, read) if named else ""
    keys = [key for told, text in own for key in merge_entry(cfg, text, told, dataset, open_trainer)]
    said = dotted(cfg)
    for flag, key, value in flag_settings(spec):
        merge_flag(cfg, key, value, flag)
    merge_options(cfg, spec.options, open_trainer)
    given = {*spec.options[::2], *(key for _, key, _ in flag_settings(spec))}
    taken = Taken(dataset, spec.config_file, tuple((key, said[key], key in given) for key in dict.fromkeys(keys)))
    cfg.STORE.DIR = cfg.STORE.DIR or spec.store_dir
    if not names_size(spec, files, keys) and (size := image_size(cfg.MODEL.BACKBONE.NAME)):
        cfg.INPUT.SIZE = (size, size)
    return cfg, taken if keys else None


def names_size(spec: RunSpec, files: tuple[tuple[str, str], ...], keys: Sequence[str] = ()) -> bool:
    """Whether an option or a config file of a run says INPUT.SIZE; else it is that of the backbone.

    files: (name for messages, text) of each, as `ConfigFile.layers` gives them. keys: those taken for the dataset."""
    if "INPUT.SIZE" in (*spec.options[::2], *keys):
        return True
    inputs = [keys_of(text, path).get("INPUT") for path, text in files]
    return any(isinstance(keys, dict) and "SIZE" in keys for keys in inputs)


# ---- settings for single datasets ----
def _dataset_of(spec: RunSpec, cfg: CfgNode, read: Callable[[str], ConfigFile]) -> str:
    """The DATASET.NAME whose entry of PER_DATASET a run takes: of what it learns from, so that what was trained on one
    dataset is evaluated on another with the settings that it was trained with.

    cfg: with the config files merged into it."""
    if spec.eval_only and spec.trained_on:
        return _named_in(read(spec.trained_on))
    if spec.eval_only and spec.model_dir:
        trained = stored_config(spec.model_dir).get("DATASET")
        if isinstance(trained, dict) and isinstance(trained.get("NAME"), str):
            return trained["NAME"]
    return spec.settings().get("DATASET.NAME", cfg.DATASET.NAME)


def _named_in(file: ConfigFile) -> str:
    """The DATASET.NAME that a dataset's config file says."""
    peek = get_cfg_default()
    for told, text in file.layers():
        merge_text(peek, text, told)
    return peek.DATASET.NAME


def _require_entries(named: dict[str, str], files: tuple, open_trainer: bool) -> None:
    """Raise InputError for an entry of PER_DATASET that no run could take.

    Args:
        named: what `datasets_named` gives.
        files: the layers of all config files of a run.
    """
    for name, told in named.items():
        try:
            DATASET_REGISTRY.get(name)
        except InputError as error:
            raise InputError(f"{place_of(told, name)}: {error}") from None
    if named:
        _try_entries(_extensions(), files, open_trainer)


@functools.lru_cache(maxsize=64)
def _try_entries(extensions: tuple[Extension, ...], files: tuple, open_trainer: bool) -> None:
    """Merge each entry once, for the errors of one that this run does not take. Arguments as of `_with_files`."""
    cfg = copied(_with_files(extensions, files, open_trainer))
    for told, text in files:
        for name in entries_of(text, told):
            merge_entry(cfg, text, told, name, open_trainer)


def _seed(seed: int) -> int:
    """The seed of a run; a negative one is drawn. Raises InputError for one that is too large."""
    if seed >= 2**63:
        raise InputError(f"the seed must be below 2^63, not {seed}")
    return seed if seed >= 0 else broadcast(lambda: random.SystemRandom().randrange(2**31))


def _complete(cfg: CfgNode, trainer: type[PromptTrainer]) -> None:
    """Leave of TRAINER the method's own node, and fill in what follows from the rest. Raises InputError for templates
    that are none."""
    name = cfg.TRAINER.NAME
    clean_cfg(cfg, name)
    trainer.complete_cfg(cfg)
    own = cfg.TRAINER.get(name.upper(), {}).get("TEMPLATES", ())
    if not isinstance(own, str):  # which would be the name of a list
        check_templates(own, f"TRAINER.{name.upper()}.TEMPLATES")


def _complete_foreign(cfg: CfgNode) -> None:
    """Resolve the precision. Raises InputError for settings that only a PromptTrainer acts on."""
    resolve_precision(cfg)
    if options := options_set(cfg):
        raise InputError(f"{', '.join(options)}: {cfg.TRAINER.NAME} is no PromptTrainer and makes its training steps "
                         "itself, so that nothing would come of it; leave it out")


def resolve_precision(cfg: CfgNode) -> None:
    """PREC auto is this project's word; a foreign trainer gets the precision that it stands for."""
    for node in cfg.TRAINER.values():
        if isinstance(node, CfgNode) and node.get("PREC") == "auto":
            node.PREC = "amp" if torch.cuda.is_available() and cfg.USE_CUDA else "fp32"


def flag_settings(spec: RunSpec) -> list[tuple[str, str, Any]]:
    """[(flag, key, value)] of the flags that were given and stand for a config key."""
    return [(f"--{name.replace('_', '-')}", key, value)
            for name, key in FLAG_KEYS.items() if (value := getattr(spec, name))]


# ---- defaults ----
def default_config(run: CfgNode | None = None) -> CfgNode:
    """The engine's defaults and those of every known method; those that a run's own config began from where that is
    given (`resolve_precision`)."""
    cfg = copied(_extended(_extensions()))
    if run is not None and not issubclass(TRAINER_REGISTRY.get(run.TRAINER.NAME), PromptTrainer):
        cfg.USE_CUDA = run.USE_CUDA
        resolve_precision(cfg)
        cfg.USE_CUDA = True
    return cfg


def declares_config(trainer: type) -> bool:
    """Whether a trainer class has an `extend_cfg` of its own."""
    return getattr(trainer, "extend_cfg", PromptTrainer.extend_cfg) is not PromptTrainer.extend_cfg


def _extensions() -> tuple[Extension, ...]:
    """What each known method adds to the config, in order."""
    trainers = (*TRAINER_REGISTRY.replaced.values(), *(trainer for _, trainer in TRAINER_REGISTRY.items()))
    return tuple(trainer.extend_cfg for trainer in trainers if declares_config(trainer))


@functools.lru_cache(maxsize=4)  # a plugin makes another one
def _extended(extensions: tuple[Extension, ...]) -> CfgNode:
    """The defaults with what methods add to them, not to be changed."""
    cfg = get_cfg_default()
    for extend in extensions:
        extend(cfg)
    return cfg


@functools.lru_cache(maxsize=64)
def _with_files(extensions: tuple[Extension, ...], files: tuple, open_trainer: bool) -> CfgNode:
    """The defaults with config files merged into them, not to be changed: runs of a sweep share them, and a file that
    changes is another text. files: the layers of each."""
    cfg = copied(_extended(extensions))
    for path, text in files:
        merge_text(cfg, text, path, open_trainer)
    return cfg


# ---- which method ----
def _trainer_of(spec: RunSpec, read: Callable[[str], ConfigFile]) -> type:
    """The class of a run's method. Raises InputError where none is named."""
    name = named_trainer(spec, read)
    if not name:
        raise InputError(f"no method is named; give --trainer, one of {', '.join(TRAINER_REGISTRY.registered_names())}")
    return TRAINER_REGISTRY.get(name)


def named_trainer(spec: RunSpec, read: Callable[[str], ConfigFile]) -> str:
    """The method's name: an option, the flag, or what a config file says."""
    name = spec.settings().get("TRAINER.NAME") or spec.trainer
    for path in (spec.config_file, spec.dataset_config_file):
        if path and not name:
            peek = get_cfg_default()
            for told, text in read(path).layers():
                merge_text(peek, text, told, open_trainer=True)
            name = peek.TRAINER.NAME
    return name


def registered_name(method: str) -> str:
    """The registered name of a method that is written in capitals; as it is where there is none."""
    return next((name for name in TRAINER_REGISTRY.registered_names() if name.upper() == method), method)


def owner_of_config(path: str, name: str, read: Callable[[str], ConfigFile] = read_config) -> str:
    """The one other method that a config file is for where the method `name`, which has no folder of configs, may run
    with it all the same; else "".

    Raises:
        InputError: the file is another method's, and `name` has configs of its own."""
    owners = methods_of_file(read(path))
    if len(owners) != 1 or name.upper() in owners:
        return ""
    owner = registered_name(*owners)
    # The folder of configs is that of our method, not of a plugin's that has its name.
    if os.path.isdir(os.path.join(CONFIGS, "trainers", name)) and name not in TRAINER_REGISTRY.replaced:
        raise InputError(f"config {path} is for {owner}, not for {name}, which would run with {owner}'s settings and "
                         f"its own defaults; give one of {os.path.join('configs', 'trainers', name)}, or a file that "
                         f"sets TRAINER.{name.upper()}")
    return owner
