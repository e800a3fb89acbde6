"""Optimizers and schedules of a resumed run: their state comes from the checkpoint, their settings from the config."""
import warnings

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from dassl.optim.lr_scheduler import EpochSchedule, FormulaSchedule
from dassl.utils import InputError
from dassl.utils.stored import alike, shortened

OF_A_KIND = ("momentum", "nesterov", "alpha", "betas")  # settings that not every kind of optimizer has,
SWITCHES = ("amsgrad", "decoupled_weight_decay")  # and those that make another kind
SHAPED = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg")  # as their parameters
OF_OTHER_VERSIONS = ("_last_lr", "verbose")  # keys of a schedule that not each torch has
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "step")  # which are never negative
REMEMBERED = {"SGD": (), "RMSprop": ("step", "square_avg")} | dict.fromkeys(
    ("Adam", "AdamW", "RAdam"), ("step", "exp_avg", "exp_avg_sq"))  # what each must find of a parameter that it knows


def go_on(optimizer, schedule, optimizer_state, schedule_state, changed=(), epoch=None):
    """Bring an optimizer and its schedule, as a config builds them, to where a stored run is.

    The optimizer takes over what it remembers of the gradients. Rate, momentum, decay and the schedule stay those of
    the config: the rate is the one that the new settings give at this point, never a mixture. With the settings of the
    stored run everything is as it was, to the bit.

    Args:
        optimizer, schedule: freshly built; the schedule may be None.
        optimizer_state, schedule_state: their stored `state_dict()`s; the latter may be None.
        changed: keys of the config's settings that are not those of the stored run.
        epoch: how many epochs the stored run has done.
    Raises:
        InputError: the optimizer's state is another kind's, or of other parameters, or the schedule counts batches,
            which are now of another size.
    """
    require_same_kind(optimizer, optimizer_state)
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(optimizer_state)
    except ValueError as error:  # other groups, or other numbers of parameters in them
        raise InputError("the stored state of the optimizer does not fit the parameters that are trained now "
                         f"({error})") from None
    own = isinstance(schedule, FormulaSchedule)
    if changed or own:  # another kind of schedule may move more than the rate: unchanged, it is taken as it is stored
        for group, values in zip(optimizer.param_groups, settings):
            group.update(values)
    _require_momentum(optimizer)
    if schedule is None or schedule_state is None:
        return
    if isinstance(schedule, EpochSchedule) or not changed or not _follows_its_steps(schedule, schedule_state):
        schedule.load_state_dict(schedule_state)
        return
    steps = schedule_state["last_epoch"]
    if steps != (0 if own else epoch) and any(key.endswith("BATCH_SIZE") for key in changed):
        raise InputError("its learning rate follows the batches, of which an epoch has another number with this "
                         "DATALOADER.TRAIN_X.BATCH_SIZE; resume with that of the stored run")
    if own:
        schedule.load_state_dict(schedule_state)
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")  # the optimizer's steps came before
        for _ in range(steps):
            schedule.step()


# ---- whether a stored state can be resumed from ----
def require_fits(optimizer, schedule, optimizer_state, schedule_state, epoch, most_steps, same_kind=True):
    """Raise InputError unless stored states of an optimizer and its schedule are such as these would have.

    Args:
        schedule, schedule_state: may be None.
        epoch: how many epochs the stored run has done; most_steps: how many steps its schedule can have made by then.
        same_kind: whether it is known that the stored run had an optimizer of this kind; else `go_on` refuses another.
    """
    try:
        require_same_kind(optimizer, optimizer_state)
    except InputError:
        if same_kind:
            raise
        return
    groups, stored = optimizer.param_groups, optimizer_state["param_groups"]
    parameters = [parameter for group in groups for parameter in group["params"]]
    if [len(group["params"]) for group in groups] != [_count(group.get("params")) for group in stored] or \
            [number for group in stored for number in group["params"]] != list(range(len(parameters))):
        raise InputError("the stored state of the optimizer does not fit the parameters that are trained now (other "
                         "groups, or other numbers of parameters in them)")
    for own, group in zip(groups, stored):
        for key, value in group.items():
            if key != "params" and key in own and not (alike(own[key], value) and _not_negative(value)):
                raise InputError(f"the stored state of the optimizer has {key} {shortened(value)}")
        if "lr" not in group:
            raise InputError("the stored state of the optimizer has no lr")
    for number, found in optimizer_state["state"].items():
        if number not in range(len(parameters)):
            raise InputError(f"the stored state of the optimizer is of a parameter {number} of {len(parameters)}")
        _require_remembered(type(optimizer).__name__, found, parameters[number])
    if schedule is not None and schedule_state is not None:
        _require_steps(schedule, schedule_state, epoch, most_steps)


def _count(values):
    return len(values) if isinstance(values, (list, tuple)) else None


def _not_negative(value):
    return not isinstance(value, (int, float)) or value >= 0


def _require_remembered(kind, found, parameter):
    """What an optimizer remembers of one parameter."""
    lacking = [key for key in REMEMBERED.get(kind, ()) if key not in found] if found else []
    if lacking:
        raise InputError(f"the stored state of the optimizer lacks {lacking[0]}")
    for key, value in found.items():
        shaped = key in SHAPED and value is not None
        if shaped and not (torch.is_tensor(value) and value.shape == parameter.shape and value.is_floating_point()):
            raise InputError(f"the stored state of the optimizer has no {key} of shape {tuple(parameter.shape)}")
        tensor = value if torch.is_tensor(value) else torch.tensor(value if isinstance(value, (int, float)) else 0.0)
        if not tensor.isfinite().all() or key in SQUARES and (tensor < 0).any():
            raise InputError(f"the stored state of the optimizer holds numbers in {key} that it cannot have")
        if key == "step" and (tensor.numel() != 1 or not isinstance(value, (int, float, torch.Tensor))):
            raise InputError("the stored state of the optimizer counts no steps")


def _require_steps(schedule, state, epoch, most_steps):
    """The stored state of a schedule."""
    steps = state.get("last_epoch")
    if isinstance(schedule, FormulaSchedule):  # takes nothing else
        count, per_epoch = state.get("_step_count", 0), isinstance(schedule, EpochSchedule)
        most = epoch + 1 if per_epoch else most_steps
        if type(steps) is not int or not 0 <= steps <= most or type(count) is not int or count < 0:
            raise InputError(f"the stored state of the schedule says {'epoch' if per_epoch else 'update'} "
                             f"{shortened(steps)}, step {shortened(count)}, after {epoch} epochs")
        return
    own = schedule.state_dict()
    for key, value in state.items():
        unknown = key not in own and key not in OF_OTHER_VERSIONS  # it would become an attribute of the schedule
        if unknown or key in own and not alike(own[key], value):
            raise InputError(f"the stored state of the schedule has {key} {shortened(value)}")
    if "last_epoch" in own and not (type(steps) is int and -1 <= steps <= most_steps):
        raise InputError(f"the stored state of the schedule says step {shortened(steps)}, after {epoch} epochs")


def _follows_its_steps(schedule, state):
    """Whether a schedule's rate is a function of how many steps it made."""
    return (isinstance(schedule, LRScheduler) and not isinstance(schedule, ReduceLROnPlateau)
            and isinstance(state.get("last_epoch"), int))


def require_same_kind(optimizer, state):
    """Raise InputError where a stored state is that of another kind of optimizer."""
    for own, stored in zip(optimizer.param_groups, state.get("param_groups", ())):
        kinds = [tuple(key for key in OF_A_KIND if key in group) for group in (own, stored)]
        switched = [key for key in SWITCHES if own.get(key, False) != stored.get(key, own.get(key, False))]
        if kinds[0] != kinds[1] or switched:
            raise InputError(f"the stored optimizer is of another kind than {type(optimizer).__name__}"
                             f"{f' ({switched[0]})' if switched else ''}, and what one has learned of the gradients "
                             "means nothing to the other; resume with the OPTIM.NAME of the stored run, or start a "
                             "new run without --resume")


def _require_momentum(optimizer):
    """RMSprop keeps a momentum only where it has one from the start."""
    for group in optimizer.param_groups:
        states = [optimizer.state.get(parameter) for parameter in group["params"]]
        if "alpha" in group and group["momentum"] > 0 and any(s and "momentum_buffer" not in s for s in states):
            raise InputError("rmsprop was stored without momentum and cannot begin with it later; resume with "
                             "OPTIM.MOMENTUM 0, or start a new run without --resume")
