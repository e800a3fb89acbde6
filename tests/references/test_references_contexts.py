"""TaskRes, PLOT and PLOT++ against plain references: first these against the records of the authors' code, then our
trainers against records that the references make of settings without any."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_replay import difference, read

import tiny_clip
from references.reference_contexts import METHODS, STARTS, drawn, starting_words, varied
from references.replayed import require_replayed

GOLDEN = Path(tiny_clip.__file__).parent


def starts_of(record):
    return {key.removeprefix("init/"): value for key, value in record.items() if key.startswith("init/")}


@pytest.mark.parametrize("case", ["taskres", "plot", "plotpp", "plotpp_vision"])
def test_the_reference_is_the_authors_method(case, clip_model):
    record = read(GOLDEN / f"{case}.npz")
    made = METHODS[record["meta"]["method"]](clip_model, record["meta"], starts_of(record)).record()
    assert set(made) == set(record)
    for name in set(record) - {"meta"}:
        assert difference(made[name], record[name], name) <= 1e-5, name


def plot_imagenet(model):
    meta = varied(read(GOLDEN / "plot.npz")["meta"], "plot_imagenet", "ImageNet", N=3, N_CTX=6)
    return meta, {"prompt_learner.ctx": drawn("plot_imagenet", "ctx", 3, 6, 128)}


def taskres_imagenet(model):
    meta = varied(read(GOLDEN / "taskres.npz")["meta"], "taskres_imagenet", "ImageNet", RESIDUAL_SCALE=1.0)
    return meta, {"prompt_learner.text_feature_residuals": torch.zeros(10, 64)}


def plotpp_eurosat(model):
    meta = varied(read(GOLDEN / "plotpp.npz")["meta"], "plotpp_eurosat", "EuroSAT", N=4, M=3, N_CTX_V=3,
                  TRADE_OFF=True)
    assert [len(start.split()) for start in STARTS["EuroSAT"]] == [5, 5, 6, 6]  # longer ones than the first
    with torch.no_grad():
        return meta, {"prompt_learner.ctx": starting_words(model, "EuroSAT"),
                      "prompt_learner.ctx_vision": drawn("plotpp_eurosat", "ctx_vision", 3, 3, 128)}


@pytest.mark.parametrize("variant", [plot_imagenet, taskres_imagenet, plotpp_eurosat])
def test_settings_without_a_record(variant, clip_model, tmp_path):
    meta, starts = variant(clip_model)
    made = METHODS[meta["method"]](clip_model, meta, {k: np.asarray(v) for k, v in starts.items()}).record()
    assert json.loads(str(made["meta"])) == meta
    path = tmp_path / f"{meta['case']}.npz"
    np.savez(path, **made)
    told = require_replayed(path, clip_model, tmp_path)
    assert {"losses", "logits before training", "logits after training"} <= told
