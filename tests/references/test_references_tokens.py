"""MMRL and RPO against plain references: first these against the records of the authors' code, then our trainers
against records that the references make of settings without any."""
from pathlib import Path

import numpy as np
import pytest
from golden_replay import difference, read

import tiny_clip
from references.reference_tokens import METHODS, MMRL, drawn, varied
from references.replayed import require_replayed

GOLDEN = Path(tiny_clip.__file__).parent


def starts_of(record):
    return {key.removeprefix("init/"): value for key, value in record.items() if key.startswith("init/")}


@pytest.mark.parametrize("case", ["mmrl", "rpo"])
def test_the_reference_is_the_authors_method(case, clip_model):
    record = read(GOLDEN / f"{case}.npz")
    made = METHODS[record["meta"]["method"]](clip_model, record["meta"], starts_of(record)).record()
    assert set(made) == set(record)
    for name in set(record) - {"meta"}:
        allowed = 2e-4 if case == "mmrl" and "logits" in name else 2e-5
        assert difference(made[name], record[name], name) <= allowed, name


def mmrl(case, dataset, layers, tokens, width, alpha, weight):
    meta = varied(read(GOLDEN / "mmrl.npz")["meta"], case, {
        "REP_LAYERS": str(layers), "N_REP_TOKENS": tokens, "REP_DIM": width, "ALPHA": alpha, "REG_WEIGHT": weight},
        dataset=dataset)
    starts = {MMRL.learner: 0.02 * drawn(case, "tokens", tokens, width),
              "image_encoder.proj_rep": drawn(case, "projection", 128, 64) / 128 ** 0.5}
    for tower in "vt":  # the layers of a tower start alike
        linear = {"weight": drawn(case, f"{tower} weight", 128, width) / width ** 0.5 / 2,
                  "bias": drawn(case, f"{tower} bias", 128) / width ** 0.5 / 2}
        starts |= {f"{MMRL.learner}_r2{tower}proj.{j}.{part}": value
                   for j in range(len(layers)) for part, value in linear.items()}
    return meta, starts


def mmrl_flowers():
    """The last block is not listed: it carries the tokens on."""
    return mmrl("mmrl_flowers", "OxfordFlowers", [2, 3], 3, 80, 0.4, 3)


def mmrl_first_block():
    """Tokens come in behind ln_pre; in front of the second block nothing takes their place."""
    return mmrl("mmrl_first_block", "EuroSAT", [1, 3, 4], 2, 32, 0.5, 1.0)


def rpo_k7():
    record = read(GOLDEN / "rpo.npz")
    starts = {name: np.concatenate([value, value[:3] + 0.05 * drawn("rpo_k7", name, 3, 128)])
              for name, value in starts_of(record).items()}
    return varied(record["meta"], "rpo_k7", {"K": 7}, batch=4), starts


@pytest.mark.parametrize("variant", [mmrl_flowers, mmrl_first_block, rpo_k7])
def test_settings_without_a_record(variant, clip_model, tmp_path):
    meta, starts = variant()
    made = METHODS[meta["method"]](clip_model, meta, starts).record()
    path = tmp_path / f"{meta['case']}.npz"
    np.savez(path, **made)
    told = require_replayed(path, clip_model, tmp_path)
    assert {"losses", "logits before training", "logits after training"} <= told
