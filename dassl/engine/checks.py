"""What a run asks of its data, checked before a training begins rather than after hours of it."""
from typing import Any

from dassl.data.pictures import require_readable
from dassl.utils import InputError, broadcast, check_availability


def require_validation(cfg: Any, trains: bool, has_validation: bool) -> None:
    """Raise InputError where something is to be chosen on validation images that are not there.

    Args:
        trains: whether there is an epoch to train.
        has_validation: whether the dataset has a validation part.
    """
    wanted, patience = [], trains and cfg.TRAIN.get("PATIENCE", 0) > 0
    if trains and cfg.TEST.FINAL_MODEL == "best_val" and not cfg.TEST.NO_TEST:
        wanted.append("TEST.FINAL_MODEL best_val")
    if patience:
        wanted.append("TRAIN.PATIENCE")
    if patience and cfg.TEST.NO_TEST:
        raise InputError("TRAIN.PATIENCE ends a training by its validation accuracy, which TEST.NO_TEST leaves "
                         "out; give one of them")
    if cfg.TEST.SPLIT == "val" and not cfg.TEST.NO_TEST:
        wanted.append("TEST.SPLIT val")
    if wanted and not has_validation:
        raise InputError(f"{' and '.join(wanted)} need{'s' if len(wanted) == 1 else ''} validation images, but "
                         f"{cfg.DATASET.NAME} has no validation part here; leave it out, or set DATASET.NUM_SHOTS, "
                         "with which a dataset without one draws it from the images that are left")


def part_to_evaluate(cfg: Any, asked: str, has_validation: bool) -> str:
    """The part of the data that is evaluated where `asked` (train, val or test) is asked for: test for val where there
    are no validation images, unless the config asks for them.

    Raises InputError for another word, and where the config asks for validation images that are not there."""
    if asked == "val" and not has_validation:
        for key, value in (("FINAL_MODEL", "best_val"), ("SPLIT", "val")):
            if cfg.TEST[key] == value:
                raise InputError(f"TEST.{key} is {value}, but {cfg.DATASET.NAME} has no validation part")
        return "test"
    check_availability(asked, ("train", "val", "test"), "split")
    return asked


def require_images(dataset: Any) -> None:
    """Raise InputError for an image to train or validate on that cannot be read. Rank 0 looks for all."""
    broadcast(lambda: require_readable([*dataset.train_x, *(dataset.val or ())]))
