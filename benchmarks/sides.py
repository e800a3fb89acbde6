"""The two sides of a measurement behind one interface: this project's trainer, and its plain twin.

A side has
    train_step()   one training step from the start -> (losses, gradients that were applied)
    evaluate()     one test batch -> logits; `new_evaluation()` forgets what an evaluation remembers
"""
import contextlib
from dataclasses import asdict, dataclass, replace

import torch

import train
from benchmarks.models import SEED, class_names, random_batch, random_clip
from benchmarks.plain import PlainCoCoOp, PlainCoOp, PlainMetaPrompt, to_prompts
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError

METHODS = ("CoOp", "CoCoOp", "MetaPrompt")
WITHOUT_TWIN = ("KgCoOp", "ProGrad", "TCP", "DePT")  # whose work can be counted, but not compared
LR = 0.002


@dataclass
class Work:
    """What is measured: one training step or one test batch of a method.

    n_ctx: context vectors (MetaPrompt: and visual prompts) a layer; domains: above 1, MetaPrompt splits by domain;
    layers: how deep MetaPrompt's prompts go; stage: train or eval.
    """

    method: str
    classes: int
    batch: int
    n_ctx: int = 4
    domains: int = 1
    layers: int = 0  # all of the backbone's
    stage: str = "train"
    backbone: str = "ViT-B/16"
    device: str = "cpu"
    prec: str = "fp32"

    def __post_init__(self):
        if self.method not in METHODS + WITHOUT_TWIN:
            raise InputError(f"the benchmark knows {', '.join(METHODS)}, not '{self.method}'")
        if min(self.batch, self.n_ctx, self.domains) < 1:
            raise InputError("batch, n_ctx and domains must be at least 1")
        if self.method == "MetaPrompt" and self.stage == "train" and (self.batch < 2 or self.classes < 4):
            raise InputError("a training step of MetaPrompt needs a batch of 2 and 4 classes at least")

    def smallest(self):
        """The same with few classes and images, to warm up with."""
        return replace(self, classes=min(self.classes, 4), batch=min(self.batch, max(2, self.domains)))

    def words(self):
        """The words of a command line that name this work."""
        return [word for key, value in asdict(self).items()
                for word in (f"--{key.replace('_', '-')}", str(value))]


class Ours:
    """The registered trainer, as train.py builds it, on a batch that is handed in."""

    def __init__(self, work, model):
        train.discover()
        cls = TRAINER_REGISTRY.get(work.method)
        names = class_names(work.classes)
        self.batch = random_batch(model.visual.input_resolution, work.classes, work.batch, work.domains, work.device)
        cfg = train.default_config()
        node = cfg.TRAINER[work.method.upper()]
        node.PREC = work.prec
        node.N_CTX = work.n_ctx
        if work.method == "MetaPrompt":
            node.N_PRO, node.SPLIT = work.n_ctx, "domain" if work.domains > 1 else "class"
            node.LAYERS = work.layers or len(model.visual.transformer.resblocks)
        elif work.method == "TCP":
            node.LAYER = min(node.LAYER, model.transformer.layers - 1)
        elif work.n_ctx == 4 and "CTX_INIT" in node:
            node.CTX_INIT = "a photo of a"
        cfg.TRAINER.NAME, cfg.SEED, cfg.VERBOSE = work.method, SEED, False
        cfg.USE_CUDA = work.device != "cpu"
        cfg.DATASET.NAME = "Caltech101"  # whose frozen template is 'a photo of a {}'
        cfg.DATASET.SOURCE_DOMAINS = tuple(f"domain{d}" for d in range(work.domains)) if work.domains > 1 else ()
        cfg.INPUT.SIZE = (model.visual.input_resolution,) * 2
        cfg.DATALOADER.TRAIN_X.BATCH_SIZE = max(work.batch, cls.min_batch)
        cfg.OPTIM.NAME, cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH = "sgd", LR, 10**6
        self.trainer = without_data(cls, names)(cfg, clip_model=model)
        self.trainer.num_batches = 10**9  # no step is the last of its epoch
        self.start = {name: p.detach().clone() for name, p in self.trainer.model.named_parameters()}
        self.losses, self.gradients = [], []

    def reset(self):
        for name, p in self.trainer.model.named_parameters():
            p.data.copy_(self.start[name])
        self.trainer.optim.state.clear()
        self.trainer.applied.clear()

    @contextlib.contextmanager
    def without_graphs(self):
        """Within it training steps are made one operation after the other."""
        graphs = self.trainer._graphs
        graphs.refused, before = "not now", graphs.refused
        try:
            yield
        finally:
            graphs.refused = before

    def train_step(self):
        self.reset()
        summary = self.trainer.forward_backward(self.batch)
        losses = [torch.tensor(summary["loss"]), *getattr(self.trainer, "held_out_losses", [])]
        return losses, list(self.trainer.applied)

    def new_evaluation(self):
        self.trainer.set_model_mode("eval")

    @torch.no_grad()
    def evaluate(self):
        if self.trainer.model.training:
            self.new_evaluation()
        return self.trainer.logits_of(self.batch)


def without_data(cls, classnames):
    """The trainer class with nothing to load, and a note of every gradient it applies."""

    class Data:
        dataset = type("Dataset", (), {"classnames": classnames})

    def build_data_loader(self):
        self.train_loader_x = self.train_loader_u = self.val_loader = self.test_loader = None
        self.num_classes, self.num_source_domains = len(classnames), len(self.cfg.DATASET.SOURCE_DOMAINS)
        self.lab2cname, self.dm, self.applied = dict(enumerate(classnames)), Data, []

    def all_gather_batch(self, batch):
        """Of several processes each has read its share of the images; here they have all, and exchange them alike."""
        share = self.ranks.share(len(batch["img"]))
        return {**batch, "img": self.ranks.all_gather(batch["img"][share], len(batch["img"]))}

    def make_update(self, gradients, *args):
        self.applied.extend(gradient.detach().clone() for gradient in gradients)
        return cls.make_update(self, gradients, *args)

    return type(cls.__name__, (cls,), {"build_data_loader": build_data_loader, "all_gather_batch": all_gather_batch,
                                       "make_update": make_update, "static_step": vars(cls).get("static_step", False)})


class Plain:
    """The twin, from the same start on the same batch."""

    def __init__(self, work, model, ours):
        names, self.batch, self.start = class_names(work.classes), ours.batch, ours.start
        self.state = to_prompts(ours.start)
        if work.method == "MetaPrompt":
            def halves(batch):
                order = torch.tensor(ours.trainer.class_order(batch["label"]), device=batch["label"].device)
                return order.split((len(order) + 1) // 2)

            self.method: PlainMetaPrompt | PlainCoOp = PlainMetaPrompt(
                model, names, self.state, ours.trainer.split, halves, ours.trainer.node.META_STEP)
        else:
            self.method = {"CoOp": PlainCoOp, "CoCoOp": PlainCoCoOp}[work.method](model, names, self.state)

    def train_step(self):
        for name, tensor in self.state.items():
            tensor.data.copy_(self.start[name])
        return self.method.train_step(self.batch, LR)

    def new_evaluation(self):
        """Nothing is remembered."""

    def evaluate(self):
        return self.method.evaluate(self.batch["img"])


def both_sides(work, model=None):
    """(Ours, Plain) on one CLIP, by default a new one."""
    model = random_clip(work.backbone).to(work.device) if model is None else model
    ours = Ours(work, model)
    return ours, Plain(work, model, ours)
