from dassl.engine.trainer import TrainerX
from dassl.utils import Registry

TRAINER_REGISTRY = Registry("TRAINER", "one of your own is named with --plugin FILE")


def build_trainer(cfg, **context):
    """The trainer named by TRAINER.NAME, with what `context` adds to its constructor.

    Raises InputError that lists the known trainers."""
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)(cfg, **context)
    if not hasattr(trainer, "trains"):  # a foreign one; what is kept of a run depends on it
        trainer.trains = learns(type(trainer))
    return trainer


def learns(trainer):
    """Whether a trainer class has something to train: what it says as `trains`; without that, whether it has a step or
    a loop of its own, as every file in the public Dassl style that trains does."""
    said = getattr(trainer, "trains", None)
    if said is not None:
        return bool(said)
    return any(getattr(trainer, name, None) is not getattr(TrainerX, name)
               for name in ("forward_backward", "run_epoch", "train"))
