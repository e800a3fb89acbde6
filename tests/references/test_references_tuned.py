"""The methods that train the towers' weights, with other settings than those of their records: against a reference that
is written out and gives the records' numbers."""
import json

import numpy as np
import pytest
import torch
from golden_replay import FOLDER, difference, read

import tiny_clip
from references import reference_tuned as reference
from references.replayed import require_replayed

OF = {"wiseft": reference.wiseft, "clipood": reference.clipood, "twosfs": reference.twosfs}
# {case: what of the recorded sibling's meta is another, KEY=VALUE lines of its config}
VARIANTS = {
    "wiseft_variant": ({"classes": 7, "lr": 2e-4}, {
        "template": "openai_imagenet_template", "wd": "0.02", "ls": "0.1", "warmup_length": "1", "epochs": "1",
        "batches_per_epoch": "6"}),
    "clipood_variant": ({"classes": 7, "domains": 3, "batch": 12, "steps": 7, "lr": 5e-5}, {
        "lam": "0.1", "beta": "0.1", "temperature": "50", "wd": "0.05", "epochs": "1", "iters_per_epoch": "7",
        "task": "domain_shift"}),
    "twosfs_variant": ({"classes": 6, "steps": 8, "lr": 0.004, "new_classnames": tiny_clip.CLASSNAMES[6:]}, {
        "n_iters": "4", "n_iters_frac": "0.4", "wd": "0.05", "setting": "base2new"}),
    "wiseft_alone": ({"classes": 4, "steps": 4}, {"warmup_length": "0", "ls": "0.05", "alpha": "0.75"}),
    "twosfs_long": ({"steps": 7, "classes": 3, "batch": 5}, {"n_iters_frac": "0.9"}),
}


def meta_of(case, changes, lines):
    """The meta of a variant, from that of the recorded sibling."""
    meta = read(reference_file(case))["meta"]
    config = {**reference.settings_of(meta), **lines}
    meta |= {"case": case, **changes, "authors_config": [f"{key}={value}" for key, value in config.items()]}
    meta["classnames"] = tiny_clip.CLASSNAMES[:meta["classes"]]
    meta["optimizer"] |= {"lr": meta["lr"], "weight_decay": float(config["wd"])}
    return meta


def reference_file(case):
    return FOLDER / f"{case.partition('_')[0]}.npz"


@pytest.mark.parametrize("case", OF)
def test_the_reference_gives_the_recorded_numbers(case, clip_model):
    record = read(reference_file(case))
    arrays, _ = OF[case](clip_model, record["meta"])
    for key in ("loss", "logits_before", "logits_after"):
        assert difference(arrays[key], record[key], key) <= 5e-5, key


LONGER = ("wiseft_alone", "twosfs_long")


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow) if case in LONGER else case
                                  for case in VARIANTS])
def test_other_settings_give_the_references_numbers(case, clip_model, tmp_path):
    meta = meta_of(case, *VARIANTS[case])
    arrays, more = OF[case.partition("_")[0]](clip_model, meta)
    path = tmp_path / f"{case}.npz"
    np.savez(path, meta=json.dumps(meta | more), **{
        key: value.detach().numpy() if torch.is_tensor(value) else np.array(value) for key, value in arrays.items()})
    told = require_replayed(path, clip_model, tmp_path)
    assert "losses" in told and ("logits_all" in told) == bool(meta.get("new_classnames"))
