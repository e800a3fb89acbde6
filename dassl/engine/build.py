from dassl.utils import Registry

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg, **context):
    """The trainer named by TRAINER.NAME, with what `context` adds to its constructor.

    Raises InputError that lists the known trainers."""
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    return TRAINER_REGISTRY.get(cfg.TRAINER.NAME)(cfg, **context)
