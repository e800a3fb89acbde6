"""What a trainer is made of at one moment, as {name: tensor or number}, to be compared with another moment."""
import copy
from collections import defaultdict

import torch
from torch import nn

from training import PromptTrainer

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def leaves(tree, name=""):
    """(path, tensor or plain value) of all that nested dicts and lists hold; tensors are copied to the CPU."""
    if torch.is_tensor(tree):
        yield name, tree.detach().cpu().clone()
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, (list, tuple)):
        for number, value in enumerate(tree):
            yield from leaves(value, f"{name}[{number}]")
    else:
        yield name, tree


def tensors_in(tree, name=""):
    """(path, tensor) of all tensors in nested dicts and lists."""
    return ((path, value) for path, value in leaves(tree, name) if torch.is_tensor(value))


def differing(first, second):
    """Names under which two states differ, bit by bit."""
    def alike(one, other):
        return torch.equal(one, other) if torch.is_tensor(one) and torch.is_tensor(other) else one is other or (
            type(one) is type(other) and not torch.is_tensor(one) and one == other)

    return sorted(name for name in {*first, *second}
                  if name not in first or name not in second or not alike(first[name], second[name]))


def registered(trainer):
    """(name, module) of the registered models."""
    return [(name, module) for name, module in trainer._models.items() if module is not None]


def module_tensors(trainer):
    """({name: tensor}, names of those that want gradients) of the registered models, buffers included."""
    found, wanted = {}, set()
    for key, module in registered(trainer):
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            found[f"{key}.{name}"] = tensor.detach().clone()
            if tensor.requires_grad:
                wanted.add(f"{key}.{name}")
    return found, wanted


def trained_tensors(trainer):
    """{name: tensor} of everything that requires grad in the registered models, and of tensors in `extra_state`."""
    tensors, wanted = module_tensors(trainer)
    found = {name: tensors[name] for name in sorted(wanted)}
    if isinstance(trainer, PromptTrainer):
        found |= {f"extra_state.{name}": tensor for name, tensor in tensors_in(trainer.extra_state())}
    return found


def state_of(trainer):
    """{name: value} of all that an evaluation must leave as it was."""
    found, wanted = module_tensors(trainer)
    found["the tensors that want gradients"] = sorted(wanted)
    native = isinstance(trainer, PromptTrainer)
    optimizers = ([optimizer for optimizer, _ in trainer.optimizers] if native else
                  [optimizer for optimizer in trainer._optims.values() if optimizer is not None])
    for number, optimizer in enumerate(optimizers):
        found |= leaves(optimizer.state_dict(), f"optimizer {number}")
    if native:
        found["self.optim"] = id(trainer.optim)
        found |= leaves(trainer.extra_state(), "extra_state")
        found |= leaves(trainer.precision.state_dict(), "loss scale")
    return found


# ---- the frozen CLIP ----
def clip_tensors(clip):
    """{name: tensor} of a CLIP."""
    return {f"CLIP's {name}": tensor.clone() for name, tensor in clip.state_dict().items()}


def clip_modules(clip):
    """{name: what tells whether a module was replaced, wrapped, parametrised or hooked}."""
    return {name or "the CLIP itself": (id(module), type(module), "forward" in vars(module),
                                        [len(getattr(module, hooks, None) or ()) for hooks in HOOKS])
            for name, module in clip.named_modules()}


def clip_inside(trainer, pristine):
    """{name: parameter} of a foreign trainer, which loads its own CLIP: those that have the values of `pristine` and
    want no gradient. What else a method keeps without a gradient, it may change."""
    known = defaultdict(list)
    for tensor in pristine.state_dict().values():
        known[tensor.shape].append(tensor)
    modules = {**{k: v for k, v in vars(trainer).items() if isinstance(v, nn.Module)}, **trainer._models}
    return {f"{key}.{name}": parameter.detach() for key, module in modules.items() if module is not None
            for name, parameter in module.named_parameters()
            if not parameter.requires_grad and any(torch.equal(parameter, t) for t in known[parameter.shape])}


class FrozenClip:
    """The frozen CLIP of a run as it is now: the one that the trainer is handed, or what it has loaded itself."""

    def __init__(self, clip=None, trainer=None, pristine=None):
        self.clip = clip
        self.own = {} if clip is not None else clip_inside(trainer, pristine)
        self.tensors = copy.deepcopy(self.own) if clip is None else clip_tensors(clip)
        self.modules = {} if clip is None else clip_modules(clip)

    def changed(self):
        """(names of tensors whose values are others by now, names of modules that are others)."""
        now = self.own if self.clip is None else clip_tensors(self.clip)
        tensors = [name for name in differing(self.tensors, now) if name in self.tensors and name in now]
        return tensors, [] if self.clip is None else differing(self.modules, clip_modules(self.clip))
