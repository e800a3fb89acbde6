"""The CLIP of a run, loaded once, its towers set up for device and memory, and what a method may do with them."""
from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch

from dassl.utils import InputError, derive_seed, isolated_rng, local_world_size, main_process_first
from dassl.utils.distributed import Ranks
from prompting.backbone import load_clip, weights_digest
from prompting.memory import activation_budget
from prompting.passes import Passes
from prompting.precision import Precision
from prompting.text_memory import TextMemory
from prompting.towers import Towers

if TYPE_CHECKING:
    from training.prompt_trainer import PromptTrainer

# {loaded CLIP: {(rank, world size): memory of its frozen sentences}}: all runs of a process encode them once. Each rank
# has a memory of its own, so that all of them find the same in theirs and take part in the same passes.
_text_memories: weakref.WeakKeyDictionary[Any, dict[tuple[int, int], TextMemory]] = weakref.WeakKeyDictionary()


def text_memory(clip_model: Any, ranks: Ranks) -> TextMemory:
    """The memory of the frozen sentences of a loaded CLIP."""
    return _text_memories.setdefault(clip_model, {}).setdefault((ranks.rank, ranks.world_size), TextMemory())


def loaded_clip(name: str, clips: dict[str, Any]) -> Any:
    """The CLIP of a name or file, from `clips`, {name: loaded CLIP}, or loaded into it."""
    known = getattr(clips.get(name), "weights_digest", None)
    if name not in clips or known and known != weights_digest(name):  # the file may be another by now
        with isolated_rng(0):  # loading draws numbers, and a run that is handed a loaded CLIP does not load
            clips[name] = main_process_first(lambda: load_clip(name))
    return clips[name]


def build_towers(clip_model: Any, cfg: Any, device: torch.device, precision: Precision, ranks: Ranks,
                 trainable: bool = False, passes: Passes | None = None) -> Towers:
    """The promptable towers of a CLIP, over a copy of it where they are trainable.

    Raises InputError where they take images of another size than INPUT.SIZE."""
    towers = Towers(clip_model, device, half=precision.half, ranks=ranks, trainable=trainable, passes=passes,
                    text_memory=text_memory(clip_model, ranks))
    towers.text.activation_bytes = cfg.TRAIN.TEXT_MEMORY_MB * 2**20 or activation_budget(device, local_world_size())
    size = towers.resolution
    if tuple(cfg.INPUT.SIZE) != (size, size):
        raise InputError(f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)}, but the backbone {cfg.MODEL.BACKBONE.NAME} takes "
                         f"images of {size} x {size}; set INPUT.SIZE \"({size},{size})\", or leave it out")
    return towers


Modules = dict[str, tuple[Any, ...]]


def modules_of(clip_model: torch.nn.Module) -> Modules:
    """{name: what tells whether it has changed}: of a module its class, which is another one where it is parametrised,
    and its number of hooks; of a tensor how often its values were changed in place."""
    modules = {name: (id(module), type(module), len(module._forward_hooks) + len(module._forward_pre_hooks))
               for name, module in clip_model.named_modules()}
    return modules | {name: (id(tensor), tensor._version) for named in (
        clip_model.named_parameters(), clip_model.named_buffers()) for name, tensor in named}


def built_model(trainer: PromptTrainer) -> torch.nn.Module:
    """The module that a method's `build_model` gives, on the device. What is computed there has draws of its own and no
    gradients.

    Raises InputError as `require_shared_clip` and `require_registered`."""
    modules = modules_of(trainer.towers.model)
    try:
        with isolated_rng(derive_seed("init", trainer.cfg.SEED)), torch.no_grad():
            model = trainer.build_model(trainer.towers, trainer.dm.dataset.classnames).to(trainer.device)
    finally:
        require_shared_clip(trainer, modules)
    require_registered(trainer, model)
    return model


def require_trained(trainer: PromptTrainer) -> None:
    """Raises InputError for a trainer that is to be trained and whose module has no parameter that wants a gradient."""
    if not trainer.trainables:
        how = ("call requires_grad_(True) on what it trains of towers.model" if trainer.trains_towers else
               "make what is learned an nn.Parameter of that module, as prompting.model.Prompt does")
        raise InputError(f"{type(trainer).__name__} trains nothing: no parameter of the module that build_model gives "
                         f"wants a gradient; {how}, or say trains = False")


def require_shared_clip(trainer: PromptTrainer, modules: Modules) -> None:
    """Raise InputError where a method without `trains_towers` has changed the CLIP that all runs share.

    modules: `modules_of` the CLIP before the method's model was built."""
    clip = trainer.towers.model
    if trainer.trains_towers:
        return
    now = modules_of(clip)
    changed = [*(name for name, p in clip.named_parameters() if p.requires_grad),
               *sorted(name for name in {*modules, *now} if modules.get(name) != now.get(name))]
    if not changed:
        return
    for name in [name for name, known in trainer.clips.items() if known is trainer.clip_model or known is clip]:
        del trainer.clips[name]  # other runs must not get it
    raise InputError(f"{type(trainer).__name__} changes {changed[0]} of the CLIP that all runs share; with "
                     "trains_towers = True build_model gets towers over a copy that it may change")


def require_registered(trainer: PromptTrainer, model: torch.nn.Module) -> None:
    """Raise InputError where a tensor of trainable towers wants a gradient and is no part of the method's module."""
    trained = set(map(id, model.parameters()))
    missing = [name for name, p in trainer.towers.model.named_parameters() if p.requires_grad and id(p) not in trained]
    if missing:
        raise InputError(f"{type(trainer).__name__}: {missing[0]} of the CLIP wants to be trained and is no parameter "
                         "of the module that build_model returns; register towers.model in it, as PromptedCLIP does")
