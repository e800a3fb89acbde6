"""Replays a golden record: our trainer from the record's start on the record's batches, on any device."""
import json
import os
from pathlib import Path

import golden_blocks
import golden_contexts
import golden_deep
import golden_methods
import golden_test_time
import golden_tokens
import golden_tuned
import numpy as np
import torch
from golden_case import Case, authors_options

import tiny_clip
from harness import make_trainer

FOLDER = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "golden")
RECORDS = sorted(FOLDER.glob("*.npz"))
MODULES = (golden_deep, golden_methods, golden_blocks, golden_contexts, golden_test_time, golden_tokens, golden_tuned)
# Methods whose records need more than `Case`'s defaults, and those that are replayed otherwise than step by step.
CASES = {key: case for module in MODULES for key, case in module.CASES.items()}
REPLAYS = {key: replay for module in MODULES for key, replay in getattr(module, "REPLAYS", {}).items()}


def read(path):
    with np.load(path, allow_pickle=False) as stored:
        record = {key: stored[key] for key in stored.files}
    record["meta"] = json.loads(str(record["meta"]))
    return record


def options_of(meta):
    """Our config keys for what a record's meta describes."""
    theirs = authors_options(meta)
    if meta["method"] == "CoOp":
        return {"N_CTX": int(theirs["N_CTX"]), "CSC": theirs.get("CSC") == "True",
                "CTX_INIT": theirs.get("CTX_INIT", ""), "CLASS_TOKEN_POSITION": theirs["CLASS_TOKEN_POSITION"]}
    if meta["method"] == "CoCoOp":
        return {"N_CTX": int(theirs["N_CTX"]), "CTX_INIT": theirs.get("CTX_INIT", "")}
    if meta["method"] == "MetaPrompt":
        number = {key.upper(): meta[key] for key in ("n_ctx", "n_pro", "layers", "meta_step") if key in meta}
        number = number or {key: float(theirs[key]) if key == "META_STEP" else int(theirs[key])
                            for key in ("N_CTX", "N_PRO", "LAYERS", "META_STEP")}
        return {**number, "VARIANT": meta["variant"], "SPLIT": meta["split"], "ORDER": meta["order"]}
    if meta["method"] == "ZeroshotCLIP2":
        return {"TEMPLATES": "all" if "full" in meta["case"] else "selected"}
    return {}


def difference(ours, theirs, what):
    """The largest difference of two arrays, tensors on any device, or lists of numbers."""
    ours, theirs = (np.asarray(torch.as_tensor(value).detach().cpu(), dtype=np.float64) if torch.is_tensor(value) else
                    np.asarray(value, dtype=np.float64) for value in (ours, theirs))
    assert ours.shape == theirs.shape, what
    return float(np.abs(ours - theirs).max())


def replay(path, clip_model, folder, device="cpu"):
    """[(what, largest difference, allowed)] of the record in `path`; `folder`: for files that a method reads or writes.
    """
    record = read(path)
    method = record["meta"]["method"]
    if method in REPLAYS:
        compared = REPLAYS[method](record, clip_model, device)
        return [(what, difference(ours, theirs, what), allowed) for what, ours, theirs, allowed in compared]
    case = CASES.get(method, Case)
    return [row for each in (case, *case.again) for row in replayed(each(record, folder), clip_model, device)]


def replayed(case, clip_model, device):
    """What `replay` gives of one case, in which every step is made."""
    record, meta = case.record, case.meta
    steps, size, classes, domains = meta["steps"], meta.get("batch", 8), meta["classes"], meta.get("domains", 1)
    orders = record.get("class_order", record.get("shuffles"))
    overrides = {"class_order": lambda self, label: orders[self.batch_idx].tolist()} if orders is not None else {}
    trainer = make_trainer(meta["method"], clip_model, meta["classnames"], {**options_of(meta), **case.options()},
                           batch=max(size, 2), dataset=meta.get("dataset", "Caltech101"), domains=domains,
                           overrides={**overrides, **case.overrides()}, settings=case.settings(), device=device)
    case.prepare(trainer)

    parameters = case.tensors(trainer)
    starts = {key[len("init/"):]: value for key, value in record.items() if key.startswith("init/")}
    assert set(parameters) == set(starts)
    for name, value in starts.items():
        assert parameters[name].shape == value.shape, name
        parameters[name].data.copy_(torch.from_numpy(value))

    evaluation = tiny_clip.batch("eval", 0, 16, classes)["img"].to(trainer.device)

    def logits():
        return trainer.logits_of({"img": evaluation})

    found = []

    def compare(ours, theirs, allowed, what):
        found.append((what, difference(ours, theirs, what), allowed))

    if "logits_before" in record:
        compare(logits(), record["logits_before"], case.logits_within, "logits before training")
    losses, held_out = [], []
    for trainer.batch_idx in range(steps):
        batch = case.batch(tiny_clip.batch(meta["case"], trainer.batch_idx, size, classes, domains))
        losses.append(case.loss(trainer, trainer.forward_backward(batch)))
        case.after_step(trainer)
        held_out.append([loss.item() for loss in getattr(trainer, "held_out_losses", [])])
    if meta.get("variant") == "released":
        losses = [step[-1] for step in held_out]  # the authors' code reports its last held-out loss
    if steps:
        compare(losses, record["loss"], case.losses_within, "losses")
    if "held_out_loss" in record:
        compare(held_out, record["held_out_loss"], case.losses_within, "held-out losses")
    if "logits_after" in record:
        compare(logits(), record["logits_after"], case.logits_within, "logits after training")
    with trainer.predicting():  # the authors put what is evaluated in the place of what was trained
        for name in starts:
            ours, theirs = case.final(name, parameters[name], record[f"final/{name}"])
            compare(ours, theirs, case.tensors_within, f"final {name}")
    for what, ours, theirs, *own in case.extras(trainer):
        compare(ours, theirs, own[0] if own else case.logits_within, what)
    if "extra/text_features" in record:
        compare(trainer.model.encode_classes(), record["extra/text_features"], case.logits_within, "text features")
    return found
