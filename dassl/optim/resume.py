"""Optimizers and schedules of a run that goes on: what they have learned stays, their settings are the config's."""
import warnings

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from dassl.optim.lr_scheduler import EpochSchedule
from dassl.utils import InputError

OF_A_KIND = ("momentum", "nesterov", "alpha", "betas")  # settings that not every kind of optimizer has,
SWITCHES = ("amsgrad", "decoupled_weight_decay")  # and those that make another kind


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
    own = isinstance(schedule, EpochSchedule)
    if changed or own:  # another kind of schedule may move more than the rate: unchanged, it is taken as it is stored
        for group, values in zip(optimizer.param_groups, settings):
            group.update(values)
    _require_momentum(optimizer)
    if schedule is None or schedule_state is None:
        return
    if own or not changed or not _follows_its_steps(schedule, schedule_state):
        schedule.load_state_dict(schedule_state)
        return
    steps = schedule_state["last_epoch"]
    if steps != epoch and any(key.endswith("BATCH_SIZE") for key in changed):
        raise InputError("its learning rate follows the batches, of which an epoch has another number with this "
                         "DATALOADER.TRAIN_X.BATCH_SIZE; resume with that of the stored run")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")  # the optimizer's steps came before
        for _ in range(steps):
            schedule.step()


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
