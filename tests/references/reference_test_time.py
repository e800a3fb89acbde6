"""TPT and DPL as the text of their records describes them, straight on the modules of OpenAI's `clip.model`: whole
passes of 77 tokens, one domain and one step after the other, no code shared with the trainers."""
import zlib

import clip
import numpy as np
import torch
from torch.nn import functional as F

import tiny_clip


def text_features(model, ctx, classnames):
    """Class features (n_cls, E) of `[SOS] ctx name . [EOS]`."""
    texts = [" ".join(["X"] * len(ctx)) + f" {name.replace('_', ' ')}." for name in classnames]
    tokens = clip.tokenize(texts)
    x = model.token_embedding(tokens)
    x = torch.cat([x[:, :1], ctx.expand(len(x), -1, -1), x[:, 1 + len(ctx):]], dim=1) + model.positional_embedding
    x = model.ln_final(model.transformer(x.permute(1, 0, 2)).permute(1, 0, 2))
    return x[torch.arange(len(x)), tokens.argmax(dim=1)] @ model.text_projection


def cosines(model, images, texts):
    return model.logit_scale.exp() * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).t()


# ---- TPT ----
def tpt(model, start, meta, settings):
    """The arrays of a record, but for its start.

    settings: views, selection_p, tta_steps, noise.
    """
    found = {"loss": [], "logits_before": [], "logits_after": [], "extra/ctx_adapted": [], "extra/selected_views": [],
             "extra/view_logits": [], "extra/view_entropies": [], "extra/labels": []}
    for number in range(meta["images"]):
        batch = tiny_clip.batch(meta["case"], number, 1, meta["classes"])
        views = torch.cat([batch["img"], *(
            batch["img"] + settings["noise"] * torch.from_numpy(
                tiny_clip.normal(f"{meta['case']}/view/{number}/{view}", 1, 3, 32, 32))
            for view in range(1, settings["views"]))])
        ctx = start.clone().requires_grad_(True)
        optimizer = torch.optim.AdamW([ctx], lr=meta["lr"])
        with torch.no_grad():
            images = model.encode_image(views)
        losses, chosen = [], None
        for _ in range(settings["tta_steps"]):
            logits = cosines(model, images, text_features(model, ctx, meta["classnames"]))
            if chosen is None:
                entropies = torch.distributions.Categorical(logits=logits).entropy()
                chosen = entropies.argsort()[:int(settings["views"] * settings["selection_p"])]
                first = logits.detach(), entropies.detach()
            loss = torch.distributions.Categorical(probs=logits[chosen].softmax(dim=1).mean(dim=0)).entropy()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        found["loss"].append(losses)
        found["logits_before"].append(first[0][0])
        with torch.no_grad():
            found["logits_after"].append(cosines(model, images[:1], text_features(model, ctx, meta["classnames"]))[0])
        for name, value in (("ctx_adapted", ctx.detach()), ("selected_views", chosen), ("view_logits", first[0]),
                            ("view_entropies", first[1]), ("labels", batch["label"][0])):
            found[f"extra/{name}"].append(value)
    arrays = {name: np.stack([np.asarray(value) for value in values]) for name, values in found.items()}
    return {**arrays, "final/prompt_learner.ctx": arrays["extra/ctx_adapted"][-1]}


# ---- DPL ----
class Masks:
    """Dropout whose n-th call keeps what a name says; `names` holds (name, kept, shape) of each."""

    def __init__(self, case, p):
        self.case, self.p, self.names = case, p, []

    def __call__(self, x):
        name = f"{self.case}/dropout/{len(self.names)}/mlp"
        drawn = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).random_sample(tuple(x.shape))
        kept = torch.from_numpy(drawn >= self.p)
        self.names.append((name, int(kept.sum()), list(x.shape)))
        return torch.where(kept, x / (1 - self.p), torch.zeros_like(x))


def dpl_start(inputs, outputs, width, depth):
    """{name: tensor} of the network of a variant: as drawn, biases 0.01."""
    def layer(name, out, into):
        bound = (6 / (out + into)) ** 0.5
        rng = np.random.RandomState(zlib.crc32(f"start/{name}".encode()) & 0x7FFFFFFF)
        drawn = rng.uniform(-bound, bound, (out, into))
        return {f"network.{name}.weight": torch.from_numpy(drawn).float(),
                f"network.{name}.bias": torch.full((out,), 0.01)}

    hiddens = [layer(f"hiddens.{number}", width, width) for number in range(depth - 2)]
    return {key: value for part in (layer("input", width, inputs), *hiddens, layer("output", outputs, width))
            for key, value in part.items()}


def mlp(tensors, x, dropout):
    layers = ["input", *(f"hiddens.{number}" for number in range(len(tensors) // 2 - 2))]
    for name in layers:
        x = torch.relu(dropout(F.linear(x, tensors[f"network.{name}.weight"], tensors[f"network.{name}.bias"])))
    return F.linear(x, tensors["network.output.weight"], tensors["network.output.bias"])


def dpl(model, start, meta, settings, own=False):
    """The arrays of a record, but for its start, and the masks of its dropout.

    settings: num_domain_tokens, mlp_dropout, momentum; own: each domain is scored against its own prompts.
    """
    tensors = {name: value.clone().requires_grad_(True) for name, value in start.items()}
    optimizer = torch.optim.SGD(list(tensors.values()), lr=meta["lr"], momentum=settings["momentum"])
    masks = Masks(meta["case"], settings["mlp_dropout"])

    def prompted(images, dropout):
        prompt = mlp(tensors, images, dropout).mean(dim=0).view(settings["num_domain_tokens"], -1)
        return text_features(model, prompt, meta["classnames"])

    @torch.no_grad()
    def evaluated():
        images = model.encode_image(tiny_clip.batch("eval", 0, 16, meta["classes"])["img"])
        return cosines(model, images, prompted(images, lambda x: x)).numpy()

    arrays, losses, train_logits = {"logits_before": evaluated()}, [], []
    for step in range(meta["steps"]):
        batch = tiny_clip.batch(meta["case"], step, meta["batch"], meta["classes"], meta["domains"])
        domains = [batch["domain"] == domain for domain in range(meta["domains"])]
        with torch.no_grad():
            images = [model.encode_image(batch["img"][of]) for of in domains]
        texts = [prompted(part, masks) for part in images]
        labels = torch.cat([batch["label"][of] for of in domains])
        if own:
            logits = torch.cat([cosines(model, *pair) for pair in zip(images, texts)])
        else:
            logits = cosines(model, torch.cat(images), torch.cat(texts))
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        train_logits.append(logits.detach().numpy())
    arrays |= {f"final/{name}": value.detach().numpy() for name, value in tensors.items()}
    return {**arrays, "loss": np.array(losses), "extra/train_logits": np.stack(train_logits),
            "logits_after": evaluated()}, masks.names
