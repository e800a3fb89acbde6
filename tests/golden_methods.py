"""Replaying the records of the methods that learn a context or something behind the towers, and of Tip-Adapter."""
import torch
from golden_case import Case

import tiny_clip
from harness import make_trainer


class ContextCase(Case):
    """A context that starts from the record's tensors: only its length matters, and what `numbers` names."""

    numbers: dict[str, str] = {}  # our key: the authors'

    def options(self):
        return {"N_CTX": int(self.theirs["N_CTX"]),
                **{key: float(self.theirs[name]) for key, name in self.numbers.items()}}


class KgCoOp(ContextCase):
    numbers = {"W": "W"}

    def options(self):
        return {**super().options(), "CTX_INIT": ""}

    def extras(self, trainer):
        return [("frozen text features", trainer.frozen_text_features, self.record["extra/frozen_text_features"])]


class TCP(ContextCase):
    """The class prompts come in at the authors' 8th of 12 layers, in the record's tower at the 2nd of 4. The W of their
    config has no effect."""

    def options(self):
        return {**super().options(), "LAYER": 2}

    def extras(self, trainer):
        return [("frozen text features", trainer.model.frozen_text_features, self.record["extra/frozen_text_features"])]


class ProGrad(ContextCase):
    numbers = {"LAMBDA": "LAMBDA", "T": "T"}

    def __init__(self, record, folder):
        super().__init__(record, folder)
        self.summaries = []

    def loss(self, trainer, summary):
        self.summaries.append(summary)
        return super().loss(trainer, summary)

    def extras(self, trainer):
        """`dots` holds the cosine of the two gradients of each step, and behind a negative one their scalar product."""
        dots, cosines = self.record["extra/dots"].tolist(), []
        while dots:
            cosines.append(dots.pop(0))
            if cosines[-1] < 0:
                dots.pop(0)
        return [("agreement", [summary["agreement"] for summary in self.summaries], cosines),
                ("divergence", [summary["divergence"] for summary in self.summaries],
                 [summary["kl_loss"] for summary in self.meta["summaries"]])]


class DePT(ContextCase):
    numbers = {"WEIGHT": "WEIGHT", "HEAD_LR": "LR_EXP"}


CASES = {"KgCoOp": KgCoOp, "TCP": TCP, "ProGrad": ProGrad, "DePT": DePT}


# ---- Tip-Adapter: not plain training steps, but a cache of 16 images of 4 classes, validation and test images ----
PASSES = 100  # the images of the recorded training epochs are the augmentations from this number on
LOGITS, TENSORS = 5e-5, 2e-5


def few_shot(number):
    """The 16 images in the augmentation `number`."""
    batch = tiny_clip.batch("tip_cache", 0, 16, 4)
    noise = torch.from_numpy(tiny_clip.normal(f"tip_cache/augment/{number}", *batch["img"].shape))
    return {**batch, "img": batch["img"] + 0.3 * noise}


def tip_trainer(record, clip_model, device):
    """The trainer of a record, with the recorded images in the place of files."""
    meta = record["meta"]
    cfg = meta["cfg"]
    options = {"BETA": cfg["init_beta"], "ALPHA": cfg["init_alpha"], "SEARCH_SCALE": tuple(cfg["search_scale"]),
               "SEARCH_STEP": tuple(cfg["search_step"]), "AUGMENT_EPOCH": cfg["augment_epoch"],
               "TEMPLATES": tuple(meta["template"])}
    settings = {"OPTIM.NAME": "adamw", "OPTIM.LR": cfg["lr"], "OPTIM.WEIGHT_DECAY": 0.01,
                "OPTIM.MAX_EPOCH": cfg["train_epoch"]}
    trainer = make_trainer(meta["method"], clip_model, meta["classnames"], options, settings=settings,
                           batch=meta["batch"], overrides={"few_shot_batches": lambda self, number: [few_shot(number)]},
                           labels=few_shot(0)["label"].tolist(), device=device)
    trainer.val_loader = [tiny_clip.batch("eval", 0, 16, 4)]
    trainer.dm.dataset.val = []  # the listed one is the test part, from which nothing may be chosen
    return trainer


@torch.no_grad()
def tip_logits(trainer, number):
    trainer.set_model_mode("eval")
    logits = trainer.model_inference(tiny_clip.batch("eval", number, 16, 4)["img"].to(trainer.device))
    trainer.set_model_mode("train")
    return logits


def keys(trainer):
    return trainer.model.adapter.weight.detach().clone()


def cache(trainer, record, recorded_keys):
    """The recorded cache and validation features."""
    features, labels = trainer.validation
    return [("keys", keys(trainer), recorded_keys, TENSORS),
            ("values", trainer.model.values, record["cache_values"], TENSORS),
            ("class features", trainer.model.encode_classes().T, record["clip_weights"], TENSORS),
            ("validation features", features / features.norm(dim=1, keepdim=True), record["val_features"], TENSORS),
            ("validation labels", labels, record["val_labels"], 0)]


def searched(trainer, record):
    return [("beta and alpha", [trainer.model.beta, trainer.model.alpha], record["meta"]["best_beta_alpha"], 1e-9)]


def tip_adapter(record, clip_model, device):
    """[(what, ours, theirs, tolerance)]"""
    trainer = tip_trainer(record, clip_model, device)
    trainer.fill_cache()
    found = [*cache(trainer, record, record["cache_keys"].T),
             ("logits before the search", tip_logits(trainer, 0), record["logits_before"], LOGITS)]
    trainer.search()
    return [*found, *searched(trainer, record),
            ("logits after the search", tip_logits(trainer, 1), record["logits_after"], LOGITS)]


def tip_adapter_f(record, clip_model, device):
    """[(what, ours, theirs, tolerance)]

    The authors choose the best epoch on test images, as the trainer never does: until the search it is handed their
    features as if they were validation's."""
    trainer = tip_trainer(record, clip_model, device)
    trainer.fill_cache()
    found = [*cache(trainer, record, record["init/adapter.weight"]),
             ("logits before training", tip_logits(trainer, 1), record["logits_before"], LOGITS)]
    validation = trainer.validation
    trainer.validation = tuple(torch.from_numpy(record[key]).to(trainer.device)
                               for key in ("test_features", "test_labels"))
    losses, logits = [], []
    for trainer.epoch in range(trainer.max_epoch):
        images = few_shot(PASSES + trainer.epoch)
        for trainer.batch_idx in range(2):
            batch = {key: value[8 * trainer.batch_idx:][:8] for key, value in images.items()}
            with torch.no_grad():
                logits.append(trainer.model_inference(batch["img"].to(trainer.device)))
            losses.append(trainer.forward_backward(batch)["loss"])
        found += [(f"keys of epoch {trainer.epoch}", keys(trainer), record["epoch_weights"][trainer.epoch], TENSORS),
                  (f"test logits of epoch {trainer.epoch}", tip_logits(trainer, 1),
                   record["epoch_test_logits"][trainer.epoch], LOGITS)]
        trainer.keep_best()
    found += [("losses", losses, record["loss"], LOGITS),
              ("training logits", torch.stack(logits), record["train_logits"], LOGITS),
              ("logits after training", tip_logits(trainer, 1), record["logits_after"], LOGITS)]
    trainer.validation = validation
    trainer.finish()
    return [*found, *searched(trainer, record), ("best keys", keys(trainer), record["final/adapter.weight"], TENSORS),
            ("searched logits", tip_logits(trainer, 1), record["searched_test_logits"], LOGITS)]


REPLAYS = {"TipAdapter": tip_adapter, "TipAdapterF": tip_adapter_f}
