"""Bounds of the engine's numbers: a typing error ends a run before it starts."""
from dassl.utils.errors import InputError
from dassl.utils.text import printable
from dassl.utils.tools import check_availability

MOST = 10**6
# key: (least, most), both allowed
BOUNDS = {
    "INPUT.CROP_PADDING": (0, 4096), "INPUT.CUTOUT_N": (0, 1000), "INPUT.CUTOUT_LEN": (0, 4096),
    "INPUT.GN_STD": (0, MOST), "INPUT.RANDAUGMENT_N": (0, 100), "INPUT.RANDAUGMENT_M": (0, 30),
    "INPUT.RGS_P": (0, 1), "INPUT.GB_P": (0, 1),
    "DATASET.VAL_PERCENT": (0, 1), "DATASET.CIFAR_C_LEVEL": (1, 5),
    "DATALOADER.NUM_WORKERS": (0, MOST), "DATALOADER.K_TRANSFORMS": (1, 1000),
    "DATALOADER.TRAIN_X.BATCH_SIZE": (1, MOST), "DATALOADER.TRAIN_X.N_DOMAIN": (0, MOST),
    "DATALOADER.TRAIN_X.N_INS": (1, MOST),
    "DATALOADER.TRAIN_U.BATCH_SIZE": (1, MOST), "DATALOADER.TRAIN_U.N_DOMAIN": (0, MOST),
    "DATALOADER.TRAIN_U.N_INS": (1, MOST),
    "DATALOADER.TEST.BATCH_SIZE": (1, MOST), "MODEL.HEAD.DROPOUT": (0, 1),
    "OPTIM.WEIGHT_DECAY": (0, MOST), "OPTIM.MOMENTUM": (0, 1), "OPTIM.SGD_DAMPNING": (0, 1),
    "OPTIM.RMSPROP_ALPHA": (0, 1), "OPTIM.ADAM_BETA1": (0, 1), "OPTIM.ADAM_BETA2": (0, 1),
    "OPTIM.BASE_LR_MULT": (0, MOST), "OPTIM.GAMMA": (0, MOST), "OPTIM.MAX_EPOCH": (1, MOST),
    "OPTIM.STEPS": (0, MOST), "OPTIM.STEPS_PER_SHOT": (0, MOST),
    "OPTIM.WARMUP_EPOCH": (-1, MOST), "OPTIM.WARMUP_CONS_LR": (0, MOST), "OPTIM.WARMUP_MIN_LR": (0, MOST),
    "OPTIM.LABEL_SMOOTHING": (0, 0.999), "OPTIM.CLIP_GRAD_NORM": (0, MOST), "TRAIN.PATIENCE": (0, MOST),
    "TRAIN.CHECKPOINT_FREQ": (0, MOST), "TRAIN.PRINT_FREQ": (0, MOST), "STORE.MB": (0, 10**9),
}


def check_config(cfg):
    """Raise InputError for a number of the engine's config that is out of bounds, an OUTPUT_DIR that is empty, and
    one or a STORE.DIR that cannot be printed: lines of a log, of a table and of a batch script name them."""
    for key, (least, most) in BOUNDS.items():
        node = cfg
        *nodes, leaf = key.split(".")
        for name in nodes:
            node = node[name]
        if not least <= node[leaf] <= most:
            raise InputError(f"{key} must be between {least} and {most}, not {node[leaf]}")
    check_availability(cfg.TRAIN.GRAPHS, ("auto", "off"), "TRAIN.GRAPHS")
    if not cfg.OUTPUT_DIR.strip():
        raise InputError("OUTPUT_DIR is empty; give --output-dir, the folder of the run")
    for key, folder, instead in (("OUTPUT_DIR", cfg.OUTPUT_DIR, "--output-dir (--output, for the scripts OUTPUT)"),
                                 ("STORE.DIR", cfg.STORE.DIR, "folder")):
        if printable(folder) != folder:
            raise InputError(f"{key} {ascii(folder)} has control characters, marks of direction or bytes that are not "
                             f"UTF-8; choose another {instead}")
