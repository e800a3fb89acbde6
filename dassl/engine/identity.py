"""What a checkpoint was trained for: the backbone's weights by their digest, the settings that its numbers depend on,
the lists of images it was trained on. Tensors that fit are not enough for numbers that mean something."""
import os

from dassl.config.near import meant_key
from dassl.config.tree import dotted
from dassl.data.datasets import dataset_digest
from dassl.utils import InputError, load_checkpoint

BACKBONE = "backbone"  # its name among the settings
SETTINGS = ("INPUT.SIZE", "INPUT.INTERPOLATION", "INPUT.TRANSFORMS", "INPUT.PIXEL_MEAN",
            "INPUT.PIXEL_STD", "DATASET.TEMPLATES")
NORMALIZERS = ("normalize", "instance_norm")  # of INPUT.TRANSFORMS: what test images go through, too
TRAINING = ("SEED", "OPTIM", "INPUT", "DATALOADER.TRAIN_X", "DATALOADER.K_TRANSFORMS", "TRAIN.PATIENCE")
BATCH_SIZE = "DATALOADER.TRAIN_X.BATCH_SIZE"
RATES = ("OPTIM.", BATCH_SIZE)  # of these, what a schedule may depend on
ORDER = ("SEED", "DATALOADER.TRAIN_X.")  # and which images are in which batch
PARTS = {"train": "training", "val": "validation", "test": "test"}


def plain(value):
    """A config, or a value of one, as nested dicts and lists of plain values, as it reads back from a file."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value


def settings_of(cfg):
    """{key: value} of the settings, besides the backbone, that the numbers of a trained model depend on: how images
    become pixels, the user's own templates, and what the config has below TRAINER: the method's own node, and, as they
    may be read by a foreign trainer, those of others. Precision is not among them."""
    every = dotted(plain(cfg))
    normal = [name for name in NORMALIZERS if name in cfg.INPUT.TRANSFORMS]
    found = {key: every[key] for key in SETTINGS if key in every} | {"INPUT.TRANSFORMS": normal}
    if "normalize" not in normal:  # then nothing reads these
        del found["INPUT.PIXEL_MEAN"], found["INPUT.PIXEL_STD"]
    return found | {key: value for key, value in every.items()
                    if key.startswith("TRAINER.") and key != "TRAINER.NAME" and not key.endswith(".PREC")}


def training_settings(cfg):
    """{key: value} of the settings that a training depends on besides those of `settings_of`."""
    every, others = dotted(plain(cfg)), settings_of(cfg)
    return {key: value for key, value in every.items()
            if (key in TRAINING or key.startswith(tuple(f"{name}." for name in TRAINING)))
            and (key not in others or key == "INPUT.TRANSFORMS")}


def made_for(trainer):
    """What a trainer's checkpoints say of it: plain data.

    Returns:
        {"backbone": {"name", "digest"}, "settings", "training": {key: value}, "data": {part: digest}, "dataset": its
        name}; {} for a trainer without a config.
    """
    cfg = getattr(trainer, "cfg", None)
    if cfg is None:
        return {}
    facts = trainer.backbone_facts or {"name": cfg.MODEL.BACKBONE.NAME, "digest": None}
    settings = settings_of(cfg)
    if not getattr(trainer, "templates_taken", False):  # then nothing follows from them
        settings.pop("DATASET.TEMPLATES", None)
    return {"backbone": {key: facts[key] for key in ("name", "digest")}, "settings": settings,
            "training": training_settings(cfg), "data": read_data(trainer), "dataset": cfg.DATASET.NAME}


def read_data(trainer):
    """{part: digest} of the lists a trainer reads, unreadable images among them; {} where it has none."""
    if getattr(trainer, "predicts_only", False):
        return {}
    dm = getattr(trainer, "dm", None)
    if listed := getattr(dm, "listed_digest", None):
        return dict(listed)
    dataset = getattr(dm, "dataset", None)
    return dataset_digest(dataset, trainer.cfg.DATASET.ROOT) if dataset is not None else {}


# ---- comparing ----
def same_backbone(one, other):
    """Whether two {"name", "digest"} are the same weights; by the names where a digest is missing."""
    if one.get("digest") and other.get("digest"):
        return one["digest"] == other["digest"]
    return one.get("name") == other.get("name")


def shown(backbone):
    """A backbone in words: its name and the first digits of its digest."""
    digest = backbone.get("digest")
    return f"{backbone.get('name') or 'as given'}{f' (SHA-256 {digest[:12]})' if digest else ''}"


def differences(then, now):
    """{setting: [trained with, now]} of two `made_for`, in which "backbone" is one. A setting that one of them does not
    know is not compared: it came into being between them. Nor are the templates of two datasets."""
    found = {}
    if not same_backbone(then["backbone"], now["backbone"]):
        found[BACKBONE] = [shown(then["backbone"]), shown(now["backbone"])]
    for key, value in now["settings"].items():
        if key == "DATASET.TEMPLATES" and then.get("dataset") != now["dataset"]:
            continue
        if key in then["settings"] and then["settings"][key] != value:
            found[key] = [then["settings"][key], value]
    return found


def told(found):
    return "; ".join(f"{key}: trained with {then}, now {now}" for key, (then, now) in found.items())


def stored_identity(path, state):
    """The `made_for` of a checkpoint. None, with a warning, for one of a time when they had none.

    Raises InputError for one that is damaged."""
    found = state.get("made_for")
    if not found and found != []:
        print(f"Warning: {path} does not say which backbone and settings it was trained with (it is older than these "
              "notes), so that they cannot be compared with this run's")
        return None
    parts = ("backbone", "settings", "training", "data")
    if not isinstance(found, dict) or not all(isinstance(found.get(part), dict) for part in parts):
        raise InputError(f"{path} is damaged: what it says of its training (made_for) cannot be read; train again")
    return found


def check_evaluated(trainer, path, state):
    """Compare what a checkpoint was trained for with the run that evaluates it.

    Returns:
        {setting: [trained with, evaluated with]} of what TEST.ALLOW_CHANGED permits to differ.
    Raises:
        InputError: something else differs, or TEST.ALLOW_CHANGED names what is no such setting.
    """
    now = made_for(trainer)
    allowed = allowed_changes(trainer.cfg) if now else ()
    then = stored_identity(path, state) if now else None
    if then is None:
        return {}
    found = differences(then, now)
    refused = {key: values for key, values in found.items() if key not in allowed}
    if refused:
        or_else = "" if getattr(trainer, "predicts_only", False) else \
            f", or, to evaluate it as it is now, TEST.ALLOW_CHANGED \"{','.join(found)}\""
        raise InputError(f"{path} was trained for something else, {told(refused)}; give {_advice(refused, then)} to "
                         f"evaluate what was trained{or_else}")
    if found:
        print(f"Note: evaluated under other settings than it was trained with, as TEST.ALLOW_CHANGED permits: "
              f"{told(found)}")
    return found


def same_training(trainer, state):
    """Whether a checkpoint says that it is of this very training, so that what does not fit in it is damage. What is of
    another one is refused by `check_resumed`, in words of its own."""
    now, then = made_for(trainer), state.get("made_for")
    if not now or not then:
        return True
    kept = [key for key in now["training"] if key == "OPTIM.NAME" or key.startswith(ORDER)]
    return not differences(then, now) and then["data"].get("train") == now["data"].get("train") and all(
        then["training"].get(key, now["training"][key]) == now["training"][key] for key in kept)


def require_own_backbone(path, state, now):
    """Raise InputError where a checkpoint was trained on other weights than the backbone `now` ({"name", "digest"})."""
    then = stored_identity(path, state)
    if then is not None and not same_backbone(then["backbone"], now):
        raise InputError(f"{path} was trained for something else, {BACKBONE}: trained with {shown(then['backbone'])}, "
                         f"now {shown(now)}; give {_advice([BACKBONE], then)}")


def allowed_changes(cfg):
    """TEST.ALLOW_CHANGED. Raises InputError for a name that is none of the settings that are compared."""
    if not cfg.TEST.ALLOW_CHANGED:
        return ()
    known = [BACKBONE, *SETTINGS, *settings_of(cfg)]
    for name in cfg.TEST.ALLOW_CHANGED:
        if name not in known:
            raise InputError(f"TEST.ALLOW_CHANGED: '{name}' is no setting that a checkpoint is compared by"
                             f"{meant_key(name, known)}; known: {', '.join(dict.fromkeys(known))}")
    return tuple(cfg.TEST.ALLOW_CHANGED)


def _advice(names, then):
    """The words of a command line that bring back the settings of these names."""
    return " ".join(f"--backbone {then['backbone'].get('name') or 'the former one'}" if name == BACKBONE else
                    f'{name} "{then["settings"][name]}"' for name in names)


def check_resumed(trainer, path, state):
    """Compare what a checkpoint was trained for with the run that goes on from it, and say what changes.

    Returns:
        the settings that the learning rate depends on and that have changed, a tuple of keys.
    Raises:
        InputError: it was trained for something else, on other images, or stopped within an epoch of other batches.
    """
    now = made_for(trainer)
    then = stored_identity(path, state) if now else None
    if then is None:
        return ()
    found = differences(then, now)
    if found:
        raise InputError(f"{path} was trained for something else, {told(found)}; give {_advice(found, then)} to go on, "
                         "or start a new run without --resume")
    cfg = trainer.cfg
    own = os.path.abspath(path).startswith(os.path.join(os.path.abspath(trainer.output_dir), ""))
    compared = ["train", *(["val"] if cfg.TEST.FINAL_MODEL == "best_val" or cfg.TRAIN.PATIENCE else [])]
    require_same_data(path, then["data"], now["data"], cfg, list(PARTS) if own else compared)
    before, after = then["training"], now["training"]
    changed = {key: [before[key], after[key]] for key in after if key in before and before[key] != after[key]}
    if "OPTIM.NAME" in changed:
        one, other = changed["OPTIM.NAME"]
        raise InputError(f"{path} was trained with OPTIM.NAME {one}, this run has {other}: what one optimizer has "
                         f"learned of the gradients means nothing to another; resume with OPTIM.NAME {one}, or start "
                         "a new run without --resume")
    order = next((key for key in changed if key.startswith(ORDER)), None)
    if order and state.get("step"):
        one, other = changed[order]
        raise InputError(f"{path} is of a point within an epoch, after {state['step']} batches with {order} {one}; "
                         f"with {other} the batches are other ones and that point does not exist; resume with {order} "
                         f"{one}")
    if changed:
        print("Note: " + ", ".join(f"{key} {one} -> {other}" for key, (one, other) in changed.items())
              + f" from epoch {state['epoch'] + 1} on")
    return tuple(key for key in changed if key.startswith(RATES))


def note_other_origin(trainer, path):
    """Say so where weights to begin with (MODEL.INIT_WEIGHTS) were trained for something else."""
    then = load_checkpoint(path).get("made_for")
    whole = isinstance(then, dict) and {"backbone", "settings"} <= set(then)
    if found := whole and differences(then, made_for(trainer)):
        print(f"Note: {path}, which this run begins with, was trained for something else, {told(found)}")


def require_same_data(where, then, now, cfg, parts=tuple(PARTS)):
    """Raise InputError where a part of the data that was read then is another now.

    Args:
        where: a checkpoint or a run folder.
        then, now: {part: digest}; a part that `then` does not know is not compared.
    """
    for part in parts:
        if part in then and then[part] != now.get(part):
            raise InputError(f"{where} is of other data: the {PARTS[part]} part of {cfg.DATASET.NAME} is another list "
                             f"of images now (digest {_digits(then[part])} then, {_digits(now.get(part))} now, in "
                             f"{cfg.DATASET.ROOT or 'DATASET.ROOT'}); bring the former data back, or choose another "
                             "--output-dir (--output, for the scripts OUTPUT), or delete that folder")


def _digits(digest):
    return digest[:12] if digest else "none"
