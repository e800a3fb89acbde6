"""Every key of the engine with its default. Methods add their own nodes under TRAINER (`extend_cfg`)."""
import copy
import functools

from yacs.config import CfgNode as CN

ATOMS = frozenset((str, int, float, bool, type(None)))


def get_cfg_default():
    """A fresh config tree; change it freely."""
    return copied(_defaults())


def copied(node):
    """A deep copy of a config tree, in a tenth of the time of `CfgNode.clone`: a sweep makes thousands."""
    new = dict.__new__(type(node))
    attributes = new.__dict__
    for name, value in node.__dict__.items():  # yacs' own: flags, and keys that were renamed
        attributes[name] = value if type(value) in ATOMS else copy.deepcopy(value)
    for key, value in node.items():
        kind = type(value)
        if kind not in ATOMS:
            if kind is CN or isinstance(value, CN):
                value = copied(value)
            elif kind not in (tuple, list) or not all(type(entry) in ATOMS for entry in value):
                value = copy.deepcopy(value)
            elif kind is list:
                value = value[:]
        dict.__setitem__(new, key, value)
    return new


@functools.cache
def _defaults():
    cfg = CN()
    cfg.VERSION = 1
    cfg.OUTPUT_DIR = "./output"
    cfg.RESUME = ""  # a run folder to go on from, when it is not OUTPUT_DIR itself
    cfg.SEED = -1  # negative: not seeded (train.py then draws a seed and prints it)
    cfg.USE_CUDA = True
    cfg.VERBOSE = True

    cfg.INPUT = CN()
    cfg.INPUT.SIZE = (224, 224)
    cfg.INPUT.INTERPOLATION = "bilinear"
    cfg.INPUT.EXIF = False  # turn pictures upright as their EXIF says
    cfg.INPUT.TRANSFORMS = ()
    cfg.INPUT.NO_TRANSFORM = False
    cfg.INPUT.PIXEL_MEAN = [0.485, 0.456, 0.406]
    cfg.INPUT.PIXEL_STD = [0.229, 0.224, 0.225]
    cfg.INPUT.CROP_PADDING = 4
    cfg.INPUT.RRCROP_SCALE = (0.08, 1.0)
    cfg.INPUT.CUTOUT_N = 1
    cfg.INPUT.CUTOUT_LEN = 16
    cfg.INPUT.GN_MEAN = 0.0
    cfg.INPUT.GN_STD = 0.15
    cfg.INPUT.RANDAUGMENT_N = 2
    cfg.INPUT.RANDAUGMENT_M = 10
    cfg.INPUT.COLORJITTER_B = 0.4
    cfg.INPUT.COLORJITTER_C = 0.4
    cfg.INPUT.COLORJITTER_S = 0.4
    cfg.INPUT.COLORJITTER_H = 0.1
    cfg.INPUT.RGS_P = 0.2
    cfg.INPUT.GB_P = 0.5
    cfg.INPUT.GB_K = 21

    cfg.DATASET = CN()
    cfg.DATASET.ROOT = ""
    cfg.DATASET.NAME = ""
    cfg.DATASET.SOURCE_DOMAINS = ()
    cfg.DATASET.TARGET_DOMAINS = ()
    cfg.DATASET.TARGET_PART = ""  # test or all: what of a target domain is tested; empty: the dataset's own default
    cfg.DATASET.NUM_LABELED = -1
    cfg.DATASET.NUM_SHOTS = -1  # images per class (in DG: per class and domain); below 1: all
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # all, base or new
    cfg.DATASET.VAL_PERCENT = 0.1
    cfg.DATASET.STL10_FOLD = -1
    cfg.DATASET.CIFAR_C_TYPE = ""
    cfg.DATASET.CIFAR_C_LEVEL = 1
    cfg.DATASET.ALL_AS_UNLABELED = False
    cfg.DATASET.SKIP_BAD_IMAGES = False  # leave unreadable images out instead of stopping
    cfg.DATASET.ALLOW_OVERLAP = False  # measure on test images that are training images, with a warning
    cfg.DATASET.TEMPLATES = ()  # prompts such as "an X-ray of a {}." for all methods' frozen prompts; (): as published
    cfg.DATASET.CLASSNAMES = ""  # a file that gives classes other names: lines "folder or class = new name", or JSON

    cfg.DATALOADER = CN()
    cfg.DATALOADER.NUM_WORKERS = 4
    cfg.DATALOADER.CACHE_MB = 2048  # decoded training pictures kept in memory; 0: none
    cfg.DATALOADER.K_TRANSFORMS = 1
    cfg.DATALOADER.RETURN_IMG0 = False
    cfg.DATALOADER.TRAIN_X = CN()
    cfg.DATALOADER.TRAIN_X.SAMPLER = "RandomSampler"
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 32
    cfg.DATALOADER.TRAIN_X.N_DOMAIN = 0
    cfg.DATALOADER.TRAIN_X.N_INS = 16
    cfg.DATALOADER.TRAIN_U = CN()
    cfg.DATALOADER.TRAIN_U.SAME_AS_X = True
    cfg.DATALOADER.TRAIN_U.SAMPLER = "RandomSampler"
    cfg.DATALOADER.TRAIN_U.BATCH_SIZE = 32
    cfg.DATALOADER.TRAIN_U.N_DOMAIN = 0
    cfg.DATALOADER.TRAIN_U.N_INS = 16
    cfg.DATALOADER.TEST = CN()
    cfg.DATALOADER.TEST.SAMPLER = "SequentialSampler"
    cfg.DATALOADER.TEST.BATCH_SIZE = 32

    cfg.MODEL = CN()
    cfg.MODEL.INIT_WEIGHTS = ""
    cfg.MODEL.BACKBONE = CN()
    cfg.MODEL.BACKBONE.NAME = ""
    cfg.MODEL.BACKBONE.PRETRAINED = True
    cfg.MODEL.HEAD = CN()
    cfg.MODEL.HEAD.NAME = ""
    cfg.MODEL.HEAD.HIDDEN_LAYERS = ()
    cfg.MODEL.HEAD.ACTIVATION = "relu"
    cfg.MODEL.HEAD.BN = True
    cfg.MODEL.HEAD.DROPOUT = 0.0

    cfg.OPTIM = CN()
    cfg.OPTIM.NAME = "adam"
    cfg.OPTIM.LR = 0.0003
    cfg.OPTIM.WEIGHT_DECAY = 5e-4
    cfg.OPTIM.MOMENTUM = 0.9
    cfg.OPTIM.SGD_DAMPNING = 0
    cfg.OPTIM.SGD_NESTEROV = False
    cfg.OPTIM.RMSPROP_ALPHA = 0.99
    cfg.OPTIM.ADAM_BETA1 = 0.9
    cfg.OPTIM.ADAM_BETA2 = 0.999
    cfg.OPTIM.STAGED_LR = False
    cfg.OPTIM.NEW_LAYERS = ()
    cfg.OPTIM.BASE_LR_MULT = 0.1
    cfg.OPTIM.LR_SCHEDULER = "single_step"
    cfg.OPTIM.STEPSIZE = (-1,)
    cfg.OPTIM.GAMMA = 0.1
    cfg.OPTIM.MAX_EPOCH = 10
    cfg.OPTIM.WARMUP_EPOCH = -1
    cfg.OPTIM.WARMUP_TYPE = "linear"
    cfg.OPTIM.WARMUP_CONS_LR = 1e-5
    cfg.OPTIM.WARMUP_MIN_LR = 1e-5
    cfg.OPTIM.WARMUP_RECOUNT = True
    cfg.OPTIM.LABEL_SMOOTHING = 0.0  # share of the targets of a cross-entropy that is spread over all classes
    cfg.OPTIM.CLIP_GRAD_NORM = 0.0  # most length of the gradient of the tensors updated together; 0: any

    cfg.TRAIN = CN()
    cfg.TRAIN.CHECKPOINT_FREQ = 0  # also keep every Nth epoch's checkpoint
    cfg.TRAIN.PRINT_FREQ = 10
    cfg.TRAIN.COUNT_ITER = "train_x"
    # What the text tower may keep for a backward pass; where that is less than all classes need, they are run in chunks
    # and computed again on the way back. 0: half of the memory that is free when a run starts.
    cfg.TRAIN.TEXT_MEMORY_MB = 0
    cfg.TRAIN.PATIENCE = 0  # end after so many epochs without a better validation accuracy; 0: never

    cfg.TEST = CN()
    cfg.TEST.EVALUATOR = "Classification"
    cfg.TEST.PER_CLASS_RESULT = False
    cfg.TEST.COMPUTE_CMAT = False
    cfg.TEST.SAVE_LOGITS = False  # keep all class scores in logits.npz
    cfg.TEST.NO_TEST = False
    cfg.TEST.SPLIT = "test"  # or val, or train: the training images, as test images are read
    cfg.TEST.FINAL_MODEL = "last_step"  # or best_val
    # What may differ from what a model was trained with when it is evaluated: ("backbone", "INPUT.PIXEL_MEAN", ...).
    cfg.TEST.ALLOW_CHANGED = ()

    cfg.TRAINER = CN()
    cfg.TRAINER.NAME = ""
    return cfg
