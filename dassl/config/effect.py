"""Options without effect: keys that differ from their default and act nowhere in this run.

EFFECTS says for every key of the engine when it acts. Enter each new key there. A trainer or dataset of a plugin may
read any key; with one, a key counts as without effect only if the plugin's source does not contain its name.
"""
import contextlib
import inspect
import re
import sys
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from yacs.config import CfgNode as CN

from dassl.config.tree import dotted
from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.samplers import SAMPLER_REGISTRY
from dassl.optim import EpochSchedule

OWN_PACKAGES = ("dassl", "datasets", "prompting", "runs", "trainers", "training")  # EFFECTS knows their use of keys
ADAMS = ("adam", "amsgrad", "radam", "adamw")


@dataclass
class RunFacts:
    """What decides whether a key acts.

    Args:
        cfg: the config of the run.
        trainer: the trainer, built.
        eval_only: whether it only evaluates.
        own_trainer: whether the trainer's base, which knows CLIP and its prompts, is this project's.
    """

    cfg: CN
    trainer: Any
    eval_only: bool = False
    own_trainer: bool = True

    @cached_property
    def dataset(self):
        """The dataset class."""
        return DATASET_REGISTRY.get(self.cfg.DATASET.NAME)

    @property
    def learned(self):
        """Whether what is evaluated was trained, in this run or before it."""
        return bool(getattr(self.trainer, "trains", True))

    @property
    def trains(self):
        return not self.eval_only and self.learned

    @property
    def optimizes(self):
        """Whether an optimizer of OPTIM makes updates: in a training, or of a method that learns of test images."""
        return self.trains or self.tests and bool(getattr(self.trainer, "adapts", False))

    @property
    def tests(self):
        return self.eval_only or not self.cfg.TEST.NO_TEST

    @property
    def domains(self):
        """Whether the dataset tells domains apart."""
        return bool(getattr(self.dataset, "domain_names", None) or getattr(self.dataset, "domains", ()))

    @property
    def frozen(self):
        """Whether the method asks for frozen image features, which a feature store may have."""
        return self.own_trainer and any(getattr(self.trainer, said, False)
                                        for said in ("frozen_images", "frozen_features"))

    @property
    def static(self):
        """Whether training steps can be captured as graphs."""
        return bool(self.trains and self.own_trainer and self.trainer.steps_are_static)

    @property
    def unlabelled(self):
        return bool(getattr(getattr(getattr(self.trainer, "dm", None), "dataset", None), "train_u", None))

    @property
    def scheduled(self):
        """Whether a learning rate of this run follows OPTIM's schedule."""
        pairs = getattr(self.trainer, "optimizers", None) or []
        schedules = [*getattr(self.trainer, "_scheds", {}).values(), *(schedule for _, schedule in pairs)]
        return self.trains and (any(isinstance(schedule, EpochSchedule) for schedule in schedules)
                                or self.plugin_mentions("build_lr_scheduler"))

    @property
    def warms_up(self):
        return self.scheduled and self.cfg.OPTIM.WARMUP_EPOCH > 0

    def sampled(self, node, argument):
        """Whether the sampler of a loader node has a use for `n_domain` or `n_ins`."""
        sampler = SAMPLER_REGISTRY.get(self.cfg.DATALOADER[node].SAMPLER)
        return argument in inspect.signature(sampler.__init__).parameters or bool(_of_plugins(sampler))

    def transforms(self, *names):
        """Whether one of these transforms is made on training pictures."""
        return not self.cfg.INPUT.NO_TRANSFORM and self.trains_on_pictures and bool({*names} & {
            *self.cfg.INPUT.TRANSFORMS})

    @property
    def trains_on_pictures(self):
        """Also without a training: what keeps features of the training images augments them, and views of test images
        are made in the same way."""
        return (self.trains or self.mentions("is_train=True", type(self.trainer))
                or self.tests and bool(getattr(self.trainer, "test_views", 0)))

    @cached_property
    def staged(self):
        """Whether an optimizer of this run may be made from a module, whose layers have names."""
        return self.trains and (not self.own_trainer or self.plugin_mentions("build_optimizer"))

    def mentions(self, word, cls):
        """Whether a word stands in the source of a class or of what it is made from, apart from the engine."""
        return any(_stands_in(word, _source(base)) for base in cls.__mro__
                   if base.__module__.partition(".")[0] in OWN_PACKAGES[1:]) or self.plugin_mentions(word)

    def plugin_mentions(self, word):
        """Whether a word stands in a loaded file of the plugins that bring the trainer or the dataset."""
        return any(_stands_in(word, text) for text in self._plugin_texts)

    @cached_property
    def _plugin_texts(self):
        packages = {base.__module__.partition(".")[0] for base in _of_plugins(type(self.trainer), self.dataset)}
        texts = []
        for name, module in sorted(sys.modules.items()):
            if name.partition(".")[0] in packages:
                with contextlib.suppress(OSError, TypeError):  # no file of Python
                    texts.append(inspect.getsource(module))
        return texts


def _of_plugins(*classes):
    """What classes are made from that is neither of this project nor of Python."""
    return [base for cls in classes for base in cls.__mro__
            if base.__module__.partition(".")[0] not in (*OWN_PACKAGES, *sys.stdlib_module_names, "torch")]


@lru_cache(maxsize=256)  # which is read anew for every run otherwise
def _source(cls):
    return inspect.getsource(cls)


def _stands_in(word, text):
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def _always(run):
    return True


def _trained(run):
    return run.trains


def _tested(run):
    return run.tests


def _transform(*names):
    return f"without {' or '.join(names)} among INPUT.TRANSFORMS", lambda run: run.transforms(*names)


def _optimizer(*names):
    return "of another optimizer than OPTIM.NAME", lambda run: run.optimizes and run.cfg.OPTIM.NAME in names


def _warm_up(kind):
    return "without such a warm-up", lambda run: run.warms_up and run.cfg.OPTIM.WARMUP_TYPE == kind


def _unlabelled(acts):
    return "there are no unlabelled images to train on", lambda run: run.trains and run.unlabelled and acts(run)


def _own_u(argument=None):
    def acts(run):
        return not run.cfg.DATALOADER.TRAIN_U.SAME_AS_X and (argument is None or run.sampled("TRAIN_U", argument))

    return acts


ACTS = ("", _always)
TRAINING = ("nothing is trained", _trained)
UPDATES = ("nothing is trained", lambda run: run.optimizes)
TESTING = ("nothing is tested", _tested)
NOTHING = ("read by nothing", lambda run: False)
NO_HEAD = ("methods here have no such head", lambda run: False)
SCHEDULE = ("no learning rate follows OPTIM's schedule", lambda run: run.scheduled)
STEPS = ("of another schedule than OPTIM.LR_SCHEDULER",
         lambda run: run.scheduled and run.cfg.OPTIM.LR_SCHEDULER in ("single_step", "multi_step"))
DOMAINS = ("the dataset has no domains", lambda run: run.domains)
STAGES = "the optimizer is made from tensors, not from named layers"

# key: (why it may act nowhere, whether it acts in a run)
EFFECTS = {
    "VERSION": NOTHING, "OUTPUT_DIR": ACTS, "RESUME": TRAINING, "SEED": ACTS, "USE_CUDA": ACTS, "VERBOSE": ACTS,
    "INPUT.SIZE": ACTS, "INPUT.INTERPOLATION": ACTS, "INPUT.EXIF": ACTS, "INPUT.NO_TRANSFORM": ACTS,
    "INPUT.TRANSFORMS": ("no picture is augmented, and test pictures are read in one way", lambda run: (
        not run.cfg.INPUT.NO_TRANSFORM and (run.trains_on_pictures or "normalize" not in run.cfg.INPUT.TRANSFORMS))),
    **dict.fromkeys(("INPUT.PIXEL_MEAN", "INPUT.PIXEL_STD"), (
        "without normalize among INPUT.TRANSFORMS",
        lambda run: not run.cfg.INPUT.NO_TRANSFORM and "normalize" in run.cfg.INPUT.TRANSFORMS)),
    "INPUT.CROP_PADDING": _transform("random_crop"), "INPUT.RRCROP_SCALE": _transform("random_resized_crop"),
    **dict.fromkeys(("INPUT.CUTOUT_N", "INPUT.CUTOUT_LEN"), _transform("cutout")),
    **dict.fromkeys(("INPUT.GN_MEAN", "INPUT.GN_STD"), _transform("gaussian_noise")),
    **dict.fromkeys(("INPUT.RANDAUGMENT_N", "INPUT.RANDAUGMENT_M"), _transform("randaugment")),
    **dict.fromkeys((f"INPUT.COLORJITTER_{part}" for part in "BCSH"), _transform("colorjitter")),
    "INPUT.RGS_P": _transform("randomgrayscale"),
    **dict.fromkeys(("INPUT.GB_P", "INPUT.GB_K"), _transform("gaussian_blur")),
    "STORE.USE": ("the method asks for no frozen image features", lambda run: run.frozen),
    **dict.fromkeys(("STORE.DIR", "STORE.MB"), (
        "no feature store is used", lambda run: run.frozen and run.cfg.STORE.USE)),
    "DATASET.ROOT": ACTS, "DATASET.NAME": ACTS,
    "DATASET.SOURCE_DOMAINS": DOMAINS, "DATASET.TARGET_DOMAINS": DOMAINS,
    "DATASET.TARGET_PART": ("no target domains are tested", lambda run: run.domains and bool(
        run.cfg.DATASET.SOURCE_DOMAINS or run.cfg.DATASET.TARGET_DOMAINS)),
    # Protocols give the shots of their training runs to the evaluations, too.
    "DATASET.NUM_SHOTS": ("the dataset draws no few-shot part",
                          lambda run: run.eval_only or run.mentions("cfg.DATASET.NUM_SHOTS", run.dataset)),
    "DATASET.SUBSAMPLE_CLASSES": ("the dataset does not part its classes",
                                  lambda run: run.mentions("cfg.DATASET.SUBSAMPLE_CLASSES", run.dataset)),
    **dict.fromkeys(("DATASET.NUM_LABELED", "DATASET.VAL_PERCENT", "DATASET.STL10_FOLD", "DATASET.CIFAR_C_TYPE",
                     "DATASET.CIFAR_C_LEVEL", "DATASET.ALL_AS_UNLABELED"), NOTHING),
    "DATASET.SKIP_BAD_IMAGES": ACTS, "DATASET.ALLOW_OVERLAP": ACTS, "DATASET.CLASSNAMES": ACTS,
    "DATASET.TEMPLATES": ("the trainer makes its prompts without it", lambda run: run.own_trainer),
    "DATALOADER.NUM_WORKERS": ACTS, "DATALOADER.CACHE_MB": TRAINING, "DATALOADER.K_TRANSFORMS": TRAINING,
    "DATALOADER.RETURN_IMG0": ("the method does not look at img0", lambda run: run.mentions("img0", type(run.trainer))),
    "DATALOADER.TRAIN_X.SAMPLER": TRAINING, "DATALOADER.TRAIN_X.BATCH_SIZE": TRAINING,
    "DATALOADER.TRAIN_X.N_DOMAIN": ("of another sampler than DATALOADER.TRAIN_X.SAMPLER",
                                    lambda run: run.trains and run.sampled("TRAIN_X", "n_domain")),
    "DATALOADER.TRAIN_X.N_INS": ("of another sampler than DATALOADER.TRAIN_X.SAMPLER",
                                 lambda run: run.trains and run.sampled("TRAIN_X", "n_ins")),
    "DATALOADER.TRAIN_U.SAME_AS_X": _unlabelled(_always), "DATALOADER.TRAIN_U.SAMPLER": _unlabelled(_own_u()),
    "DATALOADER.TRAIN_U.BATCH_SIZE": _unlabelled(_own_u()),
    "DATALOADER.TRAIN_U.N_DOMAIN": _unlabelled(_own_u("n_domain")),
    "DATALOADER.TRAIN_U.N_INS": _unlabelled(_own_u("n_ins")),
    "DATALOADER.TEST.SAMPLER": ACTS, "DATALOADER.TEST.BATCH_SIZE": ACTS,
    "MODEL.INIT_WEIGHTS": ("the method does not load them", lambda run: run.own_trainer),
    "MODEL.BACKBONE.NAME": ACTS,
    "MODEL.BACKBONE.PRETRAINED": ("a CLIP is always used with its weights", lambda run: False),
    **dict.fromkeys((f"MODEL.HEAD.{part}" for part in ("NAME", "HIDDEN_LAYERS", "ACTIVATION", "BN", "DROPOUT")),
                    NO_HEAD),
    "OPTIM.NAME": UPDATES, "OPTIM.LR": UPDATES, "OPTIM.WEIGHT_DECAY": UPDATES,
    "OPTIM.MOMENTUM": _optimizer("sgd", "rmsprop"),
    "OPTIM.SGD_DAMPNING": _optimizer("sgd"), "OPTIM.SGD_NESTEROV": _optimizer("sgd"),
    "OPTIM.RMSPROP_ALPHA": _optimizer("rmsprop"),
    "OPTIM.ADAM_BETA1": _optimizer(*ADAMS), "OPTIM.ADAM_BETA2": _optimizer(*ADAMS),
    "OPTIM.STAGED_LR": (STAGES, lambda run: run.staged),
    **dict.fromkeys(("OPTIM.NEW_LAYERS", "OPTIM.BASE_LR_MULT"), (
        "without OPTIM.STAGED_LR on named layers",
        lambda run: run.staged and run.cfg.OPTIM.STAGED_LR)),
    "OPTIM.LR_SCHEDULER": SCHEDULE, "OPTIM.STEPSIZE": STEPS, "OPTIM.GAMMA": STEPS, "OPTIM.MAX_EPOCH": TRAINING,
    "OPTIM.STEPS": TRAINING, "OPTIM.STEPS_PER_SHOT": TRAINING,
    "OPTIM.LABEL_SMOOTHING": TRAINING, "OPTIM.CLIP_GRAD_NORM": UPDATES,
    "OPTIM.WARMUP_EPOCH": SCHEDULE,
    "OPTIM.WARMUP_TYPE": ("without a warm-up", lambda run: run.warms_up),
    "OPTIM.WARMUP_RECOUNT": ("without a warm-up", lambda run: run.warms_up),
    "OPTIM.WARMUP_CONS_LR": _warm_up("constant"), "OPTIM.WARMUP_MIN_LR": _warm_up("linear"),
    "TRAIN.CHECKPOINT_FREQ": TRAINING, "TRAIN.PRINT_FREQ": TRAINING, "TRAIN.PATIENCE": TRAINING,
    "TRAIN.COUNT_ITER": NOTHING,
    "TRAIN.GRAPHS": ("the steps of the method are not the same for each batch", lambda run: run.static),
    "TRAIN.TEXT_MEMORY_MB": ("the method's text tower is not of this project", lambda run: run.own_trainer),
    "TEST.EVALUATOR": TESTING, "TEST.PER_CLASS_RESULT": TESTING, "TEST.COMPUTE_CMAT": TESTING,
    "TEST.SAVE_LOGITS": TESTING, "TEST.SPLIT": TESTING,
    "TEST.ALLOW_CHANGED": ("only --eval-only compares with a training", lambda run: run.eval_only),
    "TEST.NO_TEST": ("--eval-only tests", lambda run: not run.eval_only),
    "TEST.FINAL_MODEL": ("nothing is trained and tested", lambda run: run.tests and run.learned),
    "TRAINER.NAME": ACTS,
}
NEVER = {NOTHING[0], NO_HEAD[0], EFFECTS["MODEL.BACKBONE.PRETRAINED"][0]}  # why keys act in no run at all
# What is told of a config file also where nothing is trained: it acts in no other run with that dataset, either.
ALWAYS_TOLD = NEVER | {DOMAINS[0]}


def leaf_of(cfg, key):
    """The value of a dotted key; None where the config has no such key."""
    for name in key.split("."):
        cfg = cfg.get(name) if isinstance(cfg, dict) else None
    return cfg


def without_effect(run, defaults, given):
    """{key: why} of the keys that differ from their default and act nowhere in a run.

    Where nothing is trained, training settings of a config file are left out, because the same file also serves
    trainings. Those given on the command line are named, and so are settings of other methods.

    Args:
        run: RunFacts.
        defaults: the config tree before anything was merged, with the nodes of all methods.
        given: the keys that were given on the command line.
    """
    silent = {}
    for key, (why, acts) in EFFECTS.items():
        value = leaf_of(run.cfg, key)
        if value is None or value == leaf_of(defaults, key) or acts(run):
            continue
        told = run.trains or why in ALWAYS_TOLD or key in given
        name = key.split(".")[-2 if key.startswith("MODEL.HEAD.") else -1]
        if told and not run.plugin_mentions(name):
            silent[key] = why
    for key in dotted(run.cfg.TRAINER, ("TRAINER",)):  # a plugin that declares no keys may be given any
        if leaf_of(defaults, key) is None and not run.mentions(key.split(".")[-1], type(run.trainer)):
            silent[key] = "its name is nowhere in the plugin"
    for key, why in getattr(run.trainer, "overruled", {}).items():
        if leaf_of(run.cfg, key) != leaf_of(defaults, key):
            silent[key] = why
    for key in given:
        method = key.split(".")[1] if key.startswith("TRAINER.") and key.count(".") > 1 else None
        if run.own_trainer and method and method != run.cfg.TRAINER.NAME.upper() and method in defaults.TRAINER:
            silent[key] = "of another method"
    return silent


def note_of(silent):
    """The one line about what `without_effect` found."""
    reasons: dict[str, list[str]] = {}
    for key, why in silent.items():
        reasons.setdefault(why, []).append(key)
    return "Note: without effect in this run: " + "; ".join(f"{', '.join(keys)} ({why})"
                                                            for why, keys in reasons.items())
