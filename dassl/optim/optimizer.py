"""Optimizers by name (`OPTIM.NAME`)."""
import torch
from torch import nn

from dassl.utils import InputError, check_availability, tolist_if_not

AVAI_OPTIMS = ("adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw")


def build_optimizer(model, optim_cfg, param_groups=None):
    """The optimizer that `optim_cfg` (the OPTIM node) describes.

    Args:
        model: a module, or an iterable of tensors or parameter groups.
        param_groups: used as they are when given; a group may carry its own "lr".
    Raises:
        InputError: unknown OPTIM.NAME, or a number that the optimizer refuses.
    """
    check_availability(optim_cfg.NAME, AVAI_OPTIMS, "OPTIM.NAME")
    if not optim_cfg.LR > 0:
        raise InputError(f"OPTIM.LR must be positive, not {optim_cfg.LR}")
    if param_groups is None:
        if optim_cfg.STAGED_LR and isinstance(model, nn.Module):
            param_groups = _staged_groups(model, optim_cfg)
        else:
            param_groups = model.parameters() if isinstance(model, nn.Module) else model
    param_groups = list(param_groups)
    if not param_groups:
        raise ValueError("nothing to optimize: the model has no parameters")
    try:
        return _named(param_groups, optim_cfg)
    except ValueError as error:  # a momentum below 0, a decay below 0, ...
        raise InputError(f"OPTIM: {error}") from None


def _named(param_groups, optim_cfg):
    lr, decay = optim_cfg.LR, optim_cfg.WEIGHT_DECAY
    if optim_cfg.NAME == "sgd":
        return torch.optim.SGD(param_groups, lr=lr, momentum=optim_cfg.MOMENTUM, weight_decay=decay,
                               dampening=optim_cfg.SGD_DAMPNING, nesterov=optim_cfg.SGD_NESTEROV)
    if optim_cfg.NAME == "rmsprop":
        return torch.optim.RMSprop(param_groups, lr=lr, momentum=optim_cfg.MOMENTUM, weight_decay=decay,
                                   alpha=optim_cfg.RMSPROP_ALPHA)
    betas = (optim_cfg.ADAM_BETA1, optim_cfg.ADAM_BETA2)
    kinds = {"adam": torch.optim.Adam, "amsgrad": torch.optim.Adam, "radam": torch.optim.RAdam,
             "adamw": torch.optim.AdamW}
    extra = {"amsgrad": True} if optim_cfg.NAME == "amsgrad" else {}
    return kinds[optim_cfg.NAME](param_groups, lr=lr, weight_decay=decay, betas=betas, **extra)


def _staged_groups(model, optim_cfg):
    """New layers at OPTIM.LR, everything else at BASE_LR_MULT of it."""
    new_layers = tolist_if_not(optim_cfg.NEW_LAYERS if isinstance(optim_cfg.NEW_LAYERS, str)
                               else list(optim_cfg.NEW_LAYERS))
    if not any(new_layers):
        raise InputError("OPTIM.STAGED_LR is on but OPTIM.NEW_LAYERS names no layer")
    base: list[torch.nn.Parameter] = []
    new: list[torch.nn.Parameter] = []
    for name, module in model.named_children():
        (new if name in new_layers else base).extend(module.parameters())
    return [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new}]
