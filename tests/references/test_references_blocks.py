"""CLIP-LoRA and MMA against a plain reference: it gives the recorded numbers, and with other settings, of which there
is no record, it gives the numbers that ours are compared with."""
import math

import numpy as np
import pytest
from golden_replay import FOLDER, read

import tiny_clip
from references import reference_blocks as reference
from references.replayed import require_replayed


def numbers(rng, *shape, within=None, deviation=None):
    drawn = rng.uniform(-within, within, shape) if within else rng.normal(0, deviation, shape)
    return drawn.astype(np.float32)


def low_rank_start(rank, params, layers, towers):
    rng = np.random.RandomState(3)
    start = {}
    for tower in towers:
        for layer in layers:
            for part in params:
                name = f"{reference.TOWERS[tower]}.resblocks.{layer}.{reference.PARTS[part]}.w_lora_"
                start[f"{name}A"] = numbers(rng, rank, 128, within=128 ** -0.5)
                start[f"{name}B"] = np.zeros((128, rank), np.float32)
    return start


def adapter_start(numbers_of_blocks, dim):
    rng, start = np.random.RandomState(4), {}

    def linear(name, inputs, outputs):
        start[f"adapter_learner.{name}.weight"] = numbers(rng, outputs, inputs, deviation=math.sqrt(2 / outputs))
        start[f"adapter_learner.{name}.bias"] = np.zeros(outputs, np.float32)

    for i in numbers_of_blocks:
        for tower in ("text", "visual"):
            linear(f"{tower}_adapter.{i}.down.0", 128, dim)
            linear(f"{tower}_adapter.{i}.up", dim, 128)
        linear(f"shared_adapter.{i}.0", dim, dim)
    return start


def lora_meta(case, lr, classes, **settings):
    names = {"r": 2, "alpha": 1, "params": "qkv", "position": "all", "encoder": "both", "dropout_rate": 0.0,
             "n_iters": 3, "shots": 2, "template": "a photo of a {}.", "logit_scale": 100, **settings}
    return {"case": case, "method": "CLIPLoRA", "steps": 4, "batch": 8, "classes": classes, "lr": lr,
            "dataset": "Caltech101", "authors_config": [f"{name}={value}" for name, value in names.items()],
            "classnames": tiny_clip.CLASSNAMES[:classes],
            "optimizer": {"name": "AdamW", "lr": lr, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}}


def mma_meta(case, dataset, **settings):
    names = {"PREC": "fp32", "TEXT_CTX_INIT": "a photo of a", **settings}
    return {"case": case, "method": "MMA", "steps": 4, "batch": 8, "classes": 10, "domains": 1, "lr": 0.01,
            "dataset": dataset, "classnames": tiny_clip.CLASSNAMES,
            "authors_config": [f"TRAINER.MMADAPTER.{name}={value}" for name, value in names.items()],
            "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}}


VARIANTS = {
    "clip_lora_variant": (
        lora_meta("clip_lora_variant", 0.002, 6, r=4, alpha=2, params="qvo", position="half-up", dropout_rate=0.1),
        low_rank_start(4, "qvo", (2, 3), ("visual", "text"))),
    "clip_lora_vision": (lora_meta("clip_lora_vision", 0.001, 10, params="qkvo", encoder="vision"),
                         low_rank_start(2, "qkvo", range(4), ("visual",))),
    "clip_lora_text": (lora_meta("clip_lora_text", 0.001, 10, params="vo", encoder="text", dropout_rate=0.25),
                       low_rank_start(2, "vo", range(4), ("text",))),
    "mma_embedding": (mma_meta("mma_embedding", "EuroSAT", ADAPTER_START=0, ADAPTER_END=3, ADAPTER_DIM=16,
                               ADAPTER_SCALE=0.03), adapter_start(range(4), 16)),
}


@pytest.mark.parametrize("case", ["clip_lora", "clip_lora_dropout", "mma"])
def test_the_reference_gives_the_recorded_numbers(case, clip_model):
    record = read(FOLDER / f"{case}.npz")
    start = {key[len("init/"):]: value for key, value in record.items() if key.startswith("init/")}
    made = reference.train(clip_model, record["meta"], start, made=3)  # which no unlike reference gives
    assert np.abs(made["logits_before"] - record["logits_before"]).max() < 5e-5
    assert np.abs(made["loss"] - record["loss"][:3]).max() < 5e-5


@pytest.mark.parametrize("case", VARIANTS)
def test_settings_of_which_there_is_no_record(case, clip_model, tmp_path):
    meta, start = VARIANTS[case]
    path = tmp_path / f"{case}.npz"
    made = reference.train(clip_model, meta, start)
    reference.write(path, made, meta)
    assert made["loss"][-1] != made["loss"][0]
    assert {"losses", "logits after training"} <= require_replayed(path, clip_model, tmp_path)
