"""WiSE-FT, CLIPood and 2SFS written out on OpenAI's own modules, with nothing of this project but the tiny CLIP and the
list of templates. Each function makes the arrays that a golden record of the method holds."""
import copy
import math

import clip
import torch
from torch.nn import functional as F

import tiny_clip
from prompting.templates import IMAGENET_ALL

# Tensors whose values a record keeps, beside the checks of all.
KEPT = ("class_embedding", "positional_embedding", "proj", "ln_pre.weight", "ln_post.bias",
        "transformer.resblocks.0.ln_1.weight", "transformer.resblocks.3.mlp.c_proj.bias")
SIMPLE = ("a photo of a {}.",)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def texts_of(model, names, templates=SIMPLE):
    rows = []
    for name in names:
        features = unit(model.encode_text(clip.tokenize([template.format(name) for template in templates])))
        rows.append(unit(features.mean(dim=0)))
    return torch.stack(rows)


def spaced(names):
    return [name.replace("_", " ") for name in names]


def settings_of(meta):
    return dict(line.split("=", 1) for line in meta["authors_config"])


def cosine(lr, step, steps, least=0.0):
    return least + (lr - least) * (1 + math.cos(math.pi * step / steps)) / 2


def adamw(parameters, meta):
    return torch.optim.AdamW(parameters, lr=meta["lr"], weight_decay=meta["optimizer"]["weight_decay"])


def checks(names, now, start):
    rows = []
    for name in names:
        value, change = now[name].double(), now[name].double() - start[name].double()
        draw = torch.from_numpy(tiny_clip.normal(f"check/{name}", *value.shape)).double()
        rows.append([float(value.norm()), float(change.norm()), float(change.sum()), float((change * draw).sum())])
    return torch.tensor(rows, dtype=torch.float64)


def values(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def evaluation(meta):
    return tiny_clip.batch("eval", 0, 16, meta["classes"])["img"]


def wiseft(model, meta):
    model = copy.deepcopy(model).requires_grad_(False)
    config, steps = settings_of(meta), meta["steps"]
    templates = {"simple_template": SIMPLE, "openai_imagenet_template": IMAGENET_ALL}[config["template"]]
    scale, images = model.logit_scale.exp(), evaluation(meta)
    weight, bias = scale * texts_of(model, meta["classnames"], templates), torch.zeros(meta["classes"])
    weight.requires_grad_(True), bias.requires_grad_(True)
    model.visual.requires_grad_(True)
    own = {f"image_encoder.model.visual.{name}": p for name, p in model.visual.named_parameters()}
    own |= {"classification_head.weight": weight, "classification_head.bias": bias}
    start, warmup = values(own), int(config["warmup_length"])
    optimizer, seen = adamw(list(own.values()), meta), {"loss": [], "logits": [], "rates": [], "norms": []}

    def logits(images):
        return unit(model.encode_image(images)) @ weight.T + bias

    for step in range(steps):
        batch = tiny_clip.batch(meta["case"], step, meta["batch"], meta["classes"])
        rate = (meta["lr"] * (step + 1) / warmup if step < warmup else
                cosine(meta["lr"], step - warmup, steps - warmup))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        made = logits(batch["img"])
        loss = F.cross_entropy(made, batch["label"], label_smoothing=float(config["ls"]))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(own.values()), float(config["clip_grad_norm"]))
        optimizer.step()
        for key, value in zip(seen, (loss.item(), made.detach(), rate, norm)):
            seen[key].append(value)
    tuned = values(own)

    @torch.no_grad()
    def at(alpha):
        for name, tensor in own.items():
            tensor.copy_((1 - alpha) * start[name] + alpha * tuned[name])
        return logits(images)

    alphas = [0, 0.25, 0.5, 0.75, 1]
    interpolated = torch.stack([at(alpha) for alpha in alphas])
    half = at(float(config["alpha"]))
    mixed, names = values(own), list(own)
    kept = [*(f"image_encoder.model.visual.{name}" for name in KEPT), *names[-2:]]
    return {"loss": seen["loss"], "logits_before": interpolated[0], "logits_after": half,
            "logits_finetuned": interpolated[-1], "extra/alphas": alphas, "extra/interpolated_logits": interpolated,
            "extra/train_logits": torch.stack(seen["logits"]), "extra/learning_rates": seen["rates"],
            "extra/gradient_norms": torch.stack(seen["norms"]),
            "check_finetuned": checks(names, tuned, start), "check_half": checks(names, mixed, start),
            **{f"{part}/{name}": where[name] for name in kept
               for part, where in (("init", start), ("final", mixed), ("finetuned", tuned))}}, {"check_names": names}


def beta_pdf(x, shape):
    return torch.distributions.Beta(torch.tensor(shape).double(), torch.tensor(shape).double()).log_prob(
        torch.tensor(x).double()).exp().item()


def clipood(model, meta):
    model = copy.deepcopy(model).requires_grad_(False)
    config, steps, images = settings_of(meta), meta["steps"], evaluation(meta)
    scale, texts = model.logit_scale.exp(), texts_of(model, spaced(meta["classnames"]))
    factor = scale if config["temperature"] == "CLIP's" else float(config["temperature"])
    model.visual.requires_grad_(True)
    own = {f"visual.{name}": p for name, p in model.visual.named_parameters()}
    start, average = values(own), values(own)
    optimizer = adamw(list(own.values()), meta)
    weights = [beta_pdf((i + 0.5) / (steps + 1), float(config["beta"])) for i in range(steps + 1)]
    seen = {"loss": [], "logits": [], "rates": [], "average": []}

    @torch.no_grad()
    def logits_with(tensors):
        now = values(own)
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        made = scale * unit(model.encode_image(images)) @ texts.T
        for name, tensor in own.items():
            tensor.copy_(now[name])
        return made

    before = logits_with(start)
    for step in range(steps):
        rate = optimizer.param_groups[0]["lr"] = cosine(meta["lr"], step, steps)
        batch = tiny_clip.batch(meta["case"], step, meta["batch"], meta["classes"], meta["domains"])
        order = [i for d in range(meta["domains"]) for i in range(meta["batch"]) if i % meta["domains"] == d]
        pictures, labels = batch["img"][order], batch["label"][order]
        made = factor * (unit(model.encode_image(pictures)) @ texts.T
                         - float(config["lam"]) * texts[labels] @ texts.T)
        loss = F.cross_entropy(made, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ratio = weights[step + 1] / sum(weights[:step + 1])
        average = {name: (average[name] + ratio * tensor.detach()) / (1 + ratio) for name, tensor in own.items()}
        for key, value in zip(seen, (loss.item(), made.detach(), rate, logits_with(average))):
            seen[key].append(value)
    tuned, names = values(own), list(own)
    return {"loss": seen["loss"], "logits_before": before, "logits_after": seen["average"][-1],
            "logits_finetuned": logits_with(tuned), "extra/text_features": texts, "extra/average_weights": weights,
            "extra/train_logits": torch.stack(seen["logits"]), "extra/learning_rates": seen["rates"],
            "extra/average_logits": torch.stack(seen["average"]),
            "check_finetuned": checks(names, tuned, start), "check_average": checks(names, average, start),
            **{f"{part}/visual.{name}": where[f"visual.{name}"] for name in KEPT
               for part, where in (("init", start), ("final", average), ("finetuned", tuned))}}, {"check_names": names}


def twosfs(model, meta):
    model = copy.deepcopy(model).requires_grad_(False)
    config, steps, images = settings_of(meta), meta["steps"], evaluation(meta)
    names, new = spaced(meta["classnames"]), spaced(meta["new_classnames"])
    first, scale = int(steps * float(config["n_iters_frac"])), model.logit_scale.exp()
    own = {name: p for name, p in model.named_parameters() if ".resblocks." in name and ".ln_" in name}
    start, logits, losses = values(own), [], []

    @torch.no_grad()
    def scored(rows):
        return scale * unit(model.encode_image(images)) @ unit(rows).T

    before = scored(texts_of(model, names).detach())

    def stage(numbers, tensors, rows):
        optimizer = adamw(tensors, meta)
        for tensor in tensors:
            tensor.requires_grad_(True)
        for step in numbers:
            optimizer.param_groups[0]["lr"] = cosine(meta["lr"], step - numbers[0], len(numbers), 1e-6)
            batch = tiny_clip.batch(meta["case"], step, meta["batch"], meta["classes"])
            made = scale * unit(model.encode_image(batch["img"])) @ unit(rows()).T
            loss = F.cross_entropy(made, batch["label"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            logits.append(made.detach())
        for tensor in tensors:
            tensor.requires_grad_(False)

    stage(range(first), list(own.values()), lambda: texts_of(model, names))
    classifier = texts_of(model, names)
    begun, after_first = classifier.clone(), scored(classifier)
    stage(range(first, steps), [classifier], lambda: classifier)
    tuned, others = values(own), texts_of(model, new) if new else None
    more = {} if others is None else {"logits_new": scored(others),
                                      "logits_all": scored(torch.cat([classifier, others]))}
    return {"loss": losses, "logits_before": before, "logits_stage1": after_first, "logits_after": scored(classifier),
            "extra/train_logits_stage1": torch.stack(logits[:first]),
            "extra/train_logits_stage2": torch.stack(logits[first:]), **more,
            "init/classifier": begun, "final/classifier": classifier,
            **{f"{part}/{name}": where[name] for name in own
               for part, where in (("init", start), ("final", tuned))}}, {"stage1_steps": first}
