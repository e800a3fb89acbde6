"""Replaying the records of the methods that look at test images: TPT and DPL."""
import copy
import functools
import zlib

import numpy as np
import torch
from golden_case import Case, authors_options

import tiny_clip
from harness import make_trainer
from prompting.blocks import Blocks

TENSORS, LOGITS = 2e-5, 5e-5


# ---- TPT: nothing is trained; for each of a few test images, views that are the image and noise ----
def image_and_views(meta, theirs, number):
    """The batch of one test image, (1, 3, H, W), with its views, (1, V, 3, H, W)."""
    image = tiny_clip.batch(meta["case"], number, 1, meta["classes"])["img"]
    noise = [torch.from_numpy(tiny_clip.normal(f"{meta['case']}/view/{number}/{view}", *image.shape))
             for view in range(1, int(theirs["views"]))]
    return {"img": image, "views": torch.stack([image + float(theirs["noise"]) * one for one in noise], dim=1)}


def tpt_options(meta, theirs):
    """Our config keys for what a record's meta describes."""
    optimizer = meta["optimizer"]
    return {"VIEWS": int(theirs["views"]) - 1, "SELECTION": float(theirs["selection_p"]),
            "STEPS": int(theirs["tta_steps"]), "LR": optimizer["lr"], "WEIGHT_DECAY": optimizer["weight_decay"],
            "N_CTX": int(theirs["n_ctx"]), "CTX_INIT": words_of(theirs).replace("_", " ")}


def words_of(theirs):
    """The words that the context starts as; "" where it starts at random."""
    words = theirs.get("ctx_init", "")
    return "" if words in ("None", "False") else words


def tpt(record, clip_model, device):
    """[(what, ours, theirs, tolerance)]"""
    meta = record["meta"]
    theirs = authors_options(meta)
    trainer = make_trainer(meta["method"], clip_model, meta["classnames"], tpt_options(meta, theirs), device=device,
                           dataset=meta.get("dataset", "Caltech101"))
    ctx = trainer.model.prompt_learner.ctx
    start = torch.from_numpy(record["init/prompt_learner.ctx"])
    found = []
    if words_of(theirs):
        found.append(("start", ctx.detach().clone(), start, 0))
    ctx.data.copy_(start)

    losses, adapted, chosen, images = [], [], [], range(meta["images"])
    gradients, update, surest = trainer.gradients, trainer.apply_gradients, trainer.surest

    def watched_gradients(loss, *arguments):
        losses.append(loss.item())
        return gradients(loss, *arguments)

    def watched_update(*arguments):
        update(*arguments)
        adapted.append(ctx.detach().clone())

    def watched_choice(logits):
        chosen.append((logits, surest(logits)))
        return chosen[-1][1]

    trainer.gradients, trainer.apply_gradients = watched_gradients, watched_update
    trainer.surest = watched_choice
    batches = [image_and_views(meta, theirs, number) for number in images]
    after = torch.cat([trainer.logits_of(batch) for batch in batches])
    logits = torch.stack([logits for logits, _ in chosen])
    entropies = -(logits.softmax(dim=-1) * logits.log_softmax(dim=-1)).sum(dim=-1)
    steps = trainer.node.STEPS
    ended = torch.stack(adapted[steps - 1::steps])
    with torch.no_grad():
        before = torch.cat([trainer.model(batch["img"].to(trainer.device)) for batch in batches])
    own = {"extra/ctx_adapted": (ended, TENSORS), "extra/view_logits": (logits, LOGITS),
           "extra/view_entropies": (entropies, LOGITS),
           "extra/selected_views": (torch.stack([places for _, places in chosen]), 0)}
    return [*found, ("losses", np.reshape(losses, (len(images), -1)), record["loss"], LOGITS),
            ("logits before", before, record["logits_before"], LOGITS),
            ("logits after", after, record["logits_after"], LOGITS),
            ("last context", ended[-1], record["final/prompt_learner.ctx"], TENSORS),
            ("the context begins anew", ctx, start, 0),
            *((name, ours, record[name], allowed) for name, (ours, allowed) in own.items() if name in record)]


# ---- DPL ----
class NamedDropout(torch.nn.Module):
    """Dropout of the rate p whose masks come from names: call n of the record is layer n mod `layers` of domain
    n div `layers` mod `domains`; ours takes the domains together.

    Args:
        case: of the record; each: images of a domain.
    """

    def __init__(self, case, p, layers, domains, each):
        super().__init__()
        self.case, self.p, self.layers, self.domains, self.each, self.calls = case, p, layers, domains, each, 0

    def forward(self, x):
        if not self.training or not self.p:
            return x
        step, layer = divmod(self.calls, self.layers)
        self.calls += 1
        numbers = [(step * self.domains + domain) * self.layers + layer for domain in range(self.domains)]
        kept = np.concatenate([mask(f"{self.case}/dropout/{n}/mlp", (self.each, x.shape[1]), self.p) for n in numbers])
        return x * torch.from_numpy(kept).to(x) / (1 - self.p)


def in_float64(towers):
    """Let frozen towers of a ViT compute in float64, with a copy of their CLIP."""
    towers.model = towers.text.model = copy.deepcopy(towers.model).double()
    towers.image.visual = towers.model.visual
    for module in towers.model.modules():
        if isinstance(module, torch.nn.LayerNorm):  # CLIP's own goes through float32
            module.forward = functools.partial(torch.nn.LayerNorm.forward, module)
    for tower in (towers.text, towers.image):
        tower.dtype, tower.stack = torch.float64, Blocks(towers.model, text=tower is towers.text, changing=False)


def mask(name, shape, p):
    """What a dropout of that name keeps."""
    return np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).random_sample(shape) >= p


class DPL(Case):
    """As we train, in float32. The rate is so high that what float32 rounds grows from step to step: OpenAI's own
    modules, in float32 from the same start, end with logits that are 8.6e-5 from the record's. Other orders of
    summation here (a domain at a time, the mean before the last layer, the network in float64) gave 1.9e-5 to 6.9e-5:
    which of them is nearest is chance. So losses and tensors are held to the usual limits, and logits to those that two
    runs in float32 keep."""

    logits_within = 2e-4

    def options(self):
        theirs = self.theirs
        return {"N_DOMAIN_TOKENS": int(theirs["num_domain_tokens"]), "MLP_WIDTH": int(theirs["mlp_width"]),
                "MLP_DEPTH": int(theirs["mlp_depth"]), "MLP_DROPOUT": float(theirs["mlp_dropout"]),
                "TARGETS": theirs.get("targets", "released")}

    def prepare(self, trainer):
        network, domains = trainer.model.network, self.meta.get("domains", 1)
        network.dropout = NamedDropout(self.meta["case"], float(self.theirs["mlp_dropout"]), len(network.hiddens) + 1,
                                       domains, self.meta["batch"] // domains)
        self.logits, compute_loss = [], trainer.compute_loss

        def watched(batch):
            loss, logits = compute_loss(batch)
            self.logits.append(logits[batch["domain"].sort(stable=True).indices].detach())
            return loss, logits

        trainer.compute_loss = watched

    def extras(self, trainer):
        if "extra/train_logits" in self.record:  # rows domain by domain
            yield "training logits", torch.stack(self.logits), self.record["extra/train_logits"]


class DPLInFloat64(DPL):
    """The towers in float64, with which all is held to the usual limits: the record's last logits are 1.5e-5 from
    those of a float64, and what is compared is the method and not two roundings."""

    logits_within, again = Case.logits_within, ()

    def prepare(self, trainer):
        in_float64(trainer.towers)
        super().prepare(trainer)


DPL.again = (DPLInFloat64,)


CASES = {"DPL": DPL}
REPLAYS = {"TPT": tpt}
