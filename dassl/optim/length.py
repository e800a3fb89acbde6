"""How long a training is: OPTIM.MAX_EPOCH epochs, or as many as give so many updates."""
from dassl.utils import InputError


def steps_asked(cfg):
    """The updates that OPTIM.STEPS or OPTIM.STEPS_PER_SHOT asks for; 0 where OPTIM.MAX_EPOCH counts."""
    return cfg.OPTIM.STEPS or cfg.OPTIM.STEPS_PER_SHOT * max(0, cfg.DATASET.NUM_SHOTS)


def epochs_of(cfg, batches):
    """Epochs of a training whose epochs have so many batches: whole ones, of at least the updates asked for."""
    steps = steps_asked(cfg)
    return -(-steps // max(1, batches)) if steps else cfg.OPTIM.MAX_EPOCH


def require_length(cfg):
    """Raise InputError for a config that says twice how long the training is, or counts by shots and has none."""
    optim, shots = cfg.OPTIM, cfg.DATASET.NUM_SHOTS
    if optim.STEPS and optim.STEPS_PER_SHOT:
        raise InputError(f"OPTIM.STEPS {optim.STEPS} and OPTIM.STEPS_PER_SHOT {optim.STEPS_PER_SHOT} both say how long "
                         "the training is; set one of them to 0")
    if optim.STEPS_PER_SHOT and shots < 1:
        raise InputError(f"OPTIM.STEPS_PER_SHOT {optim.STEPS_PER_SHOT} counts by the images of a class, and "
                         f"DATASET.NUM_SHOTS {shots} takes all there are; set OPTIM.STEPS_PER_SHOT to 0 and say "
                         "OPTIM.STEPS or OPTIM.MAX_EPOCH")
