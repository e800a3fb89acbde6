"""Every key of the engine with its default. Methods add their own nodes under TRAINER (`extend_cfg`).

The comment at a key, behind its value or right above it, is what `train.py --config-keys` says of it. It is told
without its neighbours, so that it names what it is about.
"""
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
    cfg.VERSION = 1  # version of the config format
    cfg.OUTPUT_DIR = "./output"  # the run folder: checkpoints, log, results.json
    cfg.RESUME = ""  # a run folder to go on from, when it is not OUTPUT_DIR itself
    cfg.SEED = -1  # seed of every draw; negative: not seeded (train.py then draws a seed and prints it)
    cfg.USE_CUDA = True  # run on a GPU where torch sees one, the first of CUDA_VISIBLE_DEVICES
    cfg.VERBOSE = True  # print which transforms, dataset and trainer a run is made of

    cfg.INPUT = CN()
    # height and width of the images that the model sees, in pixels; where no config or option says it, its backbone's
    cfg.INPUT.SIZE = (224, 224)
    cfg.INPUT.INTERPOLATION = "bilinear"  # how pictures are resized: bilinear, bicubic or nearest
    cfg.INPUT.EXIF = False  # turn pictures upright as their EXIF says
    # augmentations of training images by name, such as random_flip, and normalize; their order is fixed
    cfg.INPUT.TRANSFORMS = ()
    cfg.INPUT.NO_TRANSFORM = False  # leave pictures as they are read: no resizing, no augmentation, no normalization
    cfg.INPUT.PIXEL_MEAN = [0.485, 0.456, 0.406]  # what normalize subtracts of each channel, RGB from 0 to 1
    cfg.INPUT.PIXEL_STD = [0.229, 0.224, 0.225]  # what normalize divides each channel by
    cfg.INPUT.CROP_PADDING = 4  # pixels that random_crop adds on each side before it crops
    cfg.INPUT.RRCROP_SCALE = (0.08, 1.0)  # least and most share of the picture that random_resized_crop takes
    cfg.INPUT.CUTOUT_N = 1  # number of squares that cutout blanks
    cfg.INPUT.CUTOUT_LEN = 16  # side of the squares of cutout, in pixels
    cfg.INPUT.GN_MEAN = 0.0  # mean of what gaussian_noise adds to half of the images
    cfg.INPUT.GN_STD = 0.15  # standard deviation of what gaussian_noise adds
    cfg.INPUT.RANDAUGMENT_N = 2  # number of operations that randaugment applies
    cfg.INPUT.RANDAUGMENT_M = 10  # strength of randaugment's operations, 0 to 30
    cfg.INPUT.COLORJITTER_B = 0.4  # most change of brightness by colorjitter, as a share
    cfg.INPUT.COLORJITTER_C = 0.4  # most change of contrast by colorjitter, as a share
    cfg.INPUT.COLORJITTER_S = 0.4  # most change of saturation by colorjitter, as a share
    cfg.INPUT.COLORJITTER_H = 0.1  # most change of hue by colorjitter, as a share of the colour circle
    cfg.INPUT.RGS_P = 0.2  # probability that randomgrayscale takes the colours out
    cfg.INPUT.GB_P = 0.5  # probability that gaussian_blur blurs
    cfg.INPUT.GB_K = 21  # side of gaussian_blur's kernel, in pixels; odd

    cfg.DATASET = CN()
    cfg.DATASET.ROOT = ""  # the folder that holds the folders of the datasets
    cfg.DATASET.NAME = ""  # registered name of the dataset
    cfg.DATASET.SOURCE_DOMAINS = ()  # domains to train on, of a dataset that has domains
    cfg.DATASET.TARGET_DOMAINS = ()  # domains to test on, of a dataset that has domains
    cfg.DATASET.TARGET_PART = ""  # test or all: what of a target domain is tested; empty: the dataset's own default
    cfg.DATASET.NUM_LABELED = -1  # number of labelled images, of semi-supervised datasets
    cfg.DATASET.NUM_SHOTS = -1  # images per class (in DG: per class and domain); below 1: all
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # classes to train and test on: all, base (the first half) or new (the other)
    cfg.DATASET.VAL_PERCENT = 0.1  # share of the training images to validate on, of datasets without a validation part
    cfg.DATASET.STL10_FOLD = -1  # fold of STL-10's training images; negative: all
    cfg.DATASET.CIFAR_C_TYPE = ""  # kind of corruption of CIFAR-10-C and CIFAR-100-C
    cfg.DATASET.CIFAR_C_LEVEL = 1  # strength of CIFAR_C_TYPE's corruption, 1 to 5
    cfg.DATASET.ALL_AS_UNLABELED = False  # use labelled images as unlabelled ones, too
    cfg.DATASET.SKIP_BAD_IMAGES = False  # leave unreadable images out instead of stopping
    cfg.DATASET.ALLOW_OVERLAP = False  # measure on test images that are training images, with a warning
    cfg.DATASET.TEMPLATES = ()  # prompts such as "an X-ray of a {}." for all methods' frozen prompts; (): as published
    cfg.DATASET.CLASSNAMES = ""  # a file that gives classes other names: lines "folder or class = new name", or JSON

    cfg.DATALOADER = CN()
    cfg.DATALOADER.NUM_WORKERS = 4  # processes that read pictures; 0: the run itself; the numbers do not depend on it
    cfg.DATALOADER.CACHE_MB = 2048  # megabytes of decoded training pictures that are kept in memory; 0: none
    cfg.DATALOADER.K_TRANSFORMS = 1  # augmented views of each training image
    cfg.DATALOADER.RETURN_IMG0 = False  # give the method each training image without augmentation, too, as img0
    cfg.DATALOADER.TRAIN_X = CN()
    # order of the training images, a registered sampler; a method may ask for its own
    cfg.DATALOADER.TRAIN_X.SAMPLER = "RandomSampler"
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 32  # images per step
    cfg.DATALOADER.TRAIN_X.N_DOMAIN = 0  # domains per batch, of the samplers that part batches by domain; 0: all
    cfg.DATALOADER.TRAIN_X.N_INS = 16  # images per class and batch, of RandomClassSampler
    cfg.DATALOADER.TRAIN_U = CN()
    # load unlabelled images as TRAIN_X says; False: as the other keys of TRAIN_U say
    cfg.DATALOADER.TRAIN_U.SAME_AS_X = True
    cfg.DATALOADER.TRAIN_U.SAMPLER = "RandomSampler"  # order of the unlabelled images, a registered sampler
    cfg.DATALOADER.TRAIN_U.BATCH_SIZE = 32  # unlabelled images per step
    cfg.DATALOADER.TRAIN_U.N_DOMAIN = 0  # as TRAIN_X.N_DOMAIN, of unlabelled images
    cfg.DATALOADER.TRAIN_U.N_INS = 16  # as TRAIN_X.N_INS, of unlabelled images
    cfg.DATALOADER.TEST = CN()
    cfg.DATALOADER.TEST.SAMPLER = "SequentialSampler"  # order of validation and test images, a registered sampler
    cfg.DATALOADER.TEST.BATCH_SIZE = 32  # images per step of an evaluation; the numbers do not depend on it

    cfg.MODEL = CN()
    cfg.MODEL.INIT_WEIGHTS = ""  # a file whose tensors training starts from; empty: the method's own start
    cfg.MODEL.BACKBONE = CN()
    cfg.MODEL.BACKBONE.NAME = ""  # a CLIP by name (ViT-B/16, RN50, tiny, ...) or a weights file
    cfg.MODEL.BACKBONE.PRETRAINED = True  # use the backbone's weights; a CLIP always does
    cfg.MODEL.HEAD = CN()
    cfg.MODEL.HEAD.NAME = ""  # a head behind the backbone, for methods that have one
    cfg.MODEL.HEAD.HIDDEN_LAYERS = ()  # widths of the head's hidden layers
    cfg.MODEL.HEAD.ACTIVATION = "relu"  # the head's activation function
    cfg.MODEL.HEAD.BN = True  # whether the head has batch normalization
    cfg.MODEL.HEAD.DROPOUT = 0.0  # share of the head's features that are dropped in training

    cfg.OPTIM = CN()
    cfg.OPTIM.NAME = "adam"  # the optimizer: adam, amsgrad, sgd, rmsprop, radam or adamw
    cfg.OPTIM.LR = 0.0003  # learning rate, at the start of its schedule
    cfg.OPTIM.WEIGHT_DECAY = 5e-4  # weight decay of the optimizer
    cfg.OPTIM.MOMENTUM = 0.9  # momentum of sgd and rmsprop
    cfg.OPTIM.SGD_DAMPNING = 0  # dampening of sgd's momentum
    cfg.OPTIM.SGD_NESTEROV = False  # Nesterov momentum of sgd
    cfg.OPTIM.RMSPROP_ALPHA = 0.99  # smoothing constant of rmsprop
    cfg.OPTIM.ADAM_BETA1 = 0.9  # decay of the mean of the gradients, of adam and its kin
    cfg.OPTIM.ADAM_BETA2 = 0.999  # decay of the mean of the squared gradients, of adam and its kin
    cfg.OPTIM.STAGED_LR = False  # train all layers but NEW_LAYERS with a smaller learning rate
    cfg.OPTIM.NEW_LAYERS = ()  # names of the layers with the whole learning rate
    cfg.OPTIM.BASE_LR_MULT = 0.1  # learning rate of the other layers, in OPTIM.LR
    cfg.OPTIM.LR_SCHEDULER = "single_step"  # schedule of the learning rate: single_step, multi_step or cosine
    cfg.OPTIM.STEPSIZE = (-1,)  # epochs between two steps (single_step; -1: none), or epochs of the steps (multi_step)
    cfg.OPTIM.GAMMA = 0.1  # what a step multiplies the learning rate by
    cfg.OPTIM.MAX_EPOCH = 10  # number of epochs
    cfg.OPTIM.STEPS = 0  # updates of a training, rounded up to whole epochs, in the place of MAX_EPOCH; 0: MAX_EPOCH
    cfg.OPTIM.STEPS_PER_SHOT = 0  # the same, times DATASET.NUM_SHOTS; 0: MAX_EPOCH or STEPS
    cfg.OPTIM.WARMUP_EPOCH = -1  # epochs of warm-up with smaller learning rates; below 1: none
    cfg.OPTIM.WARMUP_TYPE = "linear"  # kind of warm-up: linear or constant
    cfg.OPTIM.WARMUP_CONS_LR = 1e-5  # learning rate of a constant warm-up
    cfg.OPTIM.WARMUP_MIN_LR = 1e-5  # learning rate that a linear warm-up starts with
    cfg.OPTIM.WARMUP_RECOUNT = True  # begin the schedule after the warm-up; False: at the first epoch
    cfg.OPTIM.LABEL_SMOOTHING = 0.0  # share of the targets of a cross-entropy that is spread over all classes
    cfg.OPTIM.CLIP_GRAD_NORM = 0.0  # most length of the gradient of the tensors updated together; 0: any

    cfg.TRAIN = CN()
    cfg.TRAIN.CHECKPOINT_FREQ = 0  # also keep every Nth epoch's checkpoint; 0: only the last one
    cfg.TRAIN.PRINT_FREQ = 10  # steps between two lines of the log
    cfg.TRAIN.COUNT_ITER = "train_x"  # whose batches make an epoch, where there are unlabelled images, too
    # megabytes that the text tower may keep for a backward pass; where that is less than all classes need, they are run
    # in chunks and computed again on the way back; 0: half of the memory that is free when a run starts
    cfg.TRAIN.TEXT_MEMORY_MB = 0
    # auto: on a GPU the steps of methods that allow it are captured as graphs; off: never. In YAML it is written "off"
    cfg.TRAIN.GRAPHS = "auto"
    cfg.TRAIN.PATIENCE = 0  # end after so many epochs without a better validation accuracy; 0: never

    cfg.TEST = CN()
    cfg.TEST.EVALUATOR = "Classification"  # what turns scores into metrics, a registered evaluator
    cfg.TEST.PER_CLASS_RESULT = False  # print the accuracy of each class, and store its precision, recall and F1
    cfg.TEST.COMPUTE_CMAT = False  # store the confusion matrix in results.json
    cfg.TEST.SAVE_LOGITS = False  # keep all class scores in logits.npz
    cfg.TEST.NO_TEST = False  # end without a test
    cfg.TEST.SPLIT = "test"  # images to test on: test, val, or train (the training images, as test images are read)
    # prompts that are tested: last_step, or best_val (those of the best validation accuracy)
    cfg.TEST.FINAL_MODEL = "last_step"
    # what may differ from what a model was trained with when it is evaluated: ("backbone", "INPUT.PIXEL_MEAN", ...).
    cfg.TEST.ALLOW_CHANGED = ()

    cfg.STORE = CN()
    # take image features that no training changes from the feature store, which are computed once for all runs
    cfg.STORE.USE = True
    cfg.STORE.DIR = ""  # the folder of the feature store; empty: the folder features in the output folder
    cfg.STORE.MB = 4096  # megabytes that the feature store keeps; what was not used for longest goes first

    cfg.TRAINER = CN()
    cfg.TRAINER.NAME = ""  # registered name of the method
    return cfg
