"""TPT and DPL against plain references: these give the recorded numbers, and then the numbers of settings of which
there is no record here, which our trainers must give, too."""
import json

import golden_test_time
import numpy as np
import pytest
import torch
from golden_case import authors_options
from golden_replay import FOLDER, difference, read, replay

import tiny_clip

from . import reference_test_time as reference

# Two runs in float32 may differ by as much in the logits of DPL after its six steps, whose rate is high.
WITHIN = {"TPT": 5e-5, "DPL": 2e-4}


def start_of(record):
    return {name.removeprefix("init/"): torch.from_numpy(value) for name, value in record.items()
            if name.startswith("init/")}


def numbers(meta):
    """The record's settings as numbers, where they are some."""
    found = authors_options(meta)
    return {key: json.loads(value) for key, value in found.items() if value.replace(".", "", 1).isdigit()}


def computed(model, record):
    """The arrays of a record as the reference computes them, and the masks that it drew."""
    meta, start = record["meta"], start_of(record)
    if meta["method"] == "TPT":
        return reference.tpt(model, start["prompt_learner.ctx"], meta, numbers(meta)), []
    return reference.dpl(model, start, meta, numbers(meta))


def replayed(folder, record, clip_model):
    """[(what, difference, allowed)] of a record that is written to a folder first."""
    path = folder / f"{record['meta']['case']}.npz"
    np.savez(path, **{key: value for key, value in record.items() if key != "meta"}, meta=json.dumps(record["meta"]))
    return replay(path, clip_model, folder)


def variant(base, clip_model, start, config, **changed):
    """A record in the layout of `base`, computed by the reference."""
    meta = {**base["meta"], **changed, "authors_config": [f"{key}={value}" for key, value in {
        **authors_options(base["meta"]), **config}.items()]}
    meta["classnames"] = tiny_clip.CLASSNAMES[:meta["classes"]]
    record = {"meta": meta, **{f"init/{name}": value.numpy() for name, value in start.items()}}
    arrays, masks = computed(clip_model, record)
    if masks:
        meta["dropout_masks"] = masks[:4]
    return {**record, **arrays}


@pytest.mark.parametrize("case", ["tpt", "dpl"])
def test_the_reference_gives_the_recorded_numbers(case, clip_model):
    record = read(FOLDER / f"{case}.npz")
    ours, _ = computed(clip_model, record)
    assert set(ours) == {key for key in record if key != "meta" and not key.startswith("init/")}
    for name, value in ours.items():
        within = 2e-5 if name.startswith("final/") else WITHIN[record["meta"]["method"]]
        allowed = 0 if value.dtype == np.int64 else within
        assert difference(value, record[name], name) <= allowed, name


def check(found):
    for what, found_difference, allowed in found:
        assert found_difference <= allowed, what


def test_tpt_in_two_steps_from_random_vectors(clip_model, tmp_path):
    """The views that the first step chose are those of the second; the names stand behind "X X X X"."""
    base = read(FOLDER / "tpt.npz")
    start = {"prompt_learner.ctx": torch.from_numpy(0.02 * tiny_clip.normal("tpt_variant/start", 4, 128))}
    optimizer = {**base["meta"]["optimizer"], "lr": 0.02}
    record = variant(base, clip_model, start, {"views": 8, "selection_p": 0.5, "tta_steps": 2, "ctx_init": "None",
                                               "chosen": 4},
                     case="tpt_variant", steps=2, batch=8, lr=0.02, optimizer=optimizer)
    assert record["loss"].shape == (4, 2) and record["extra/selected_views"].shape == (4, 4)
    found = replayed(tmp_path, record, clip_model)
    assert {"losses", "extra/ctx_adapted", "extra/selected_views"} <= {what for what, *_ in found}
    check(found)


@pytest.mark.parametrize("empty", ["", "False"])
def test_a_record_without_words_says_so_in_any_way(empty):
    meta = read(FOLDER / "tpt.npz")["meta"]
    assert golden_test_time.tpt_options(meta, {**authors_options(meta), "ctx_init": empty})["CTX_INIT"] == ""


def dpl_variant(clip_model, **changed):
    base = read(FOLDER / "dpl.npz")
    start = reference.dpl_start(64, 2 * 128, 24, 4)
    optimizer = {**base["meta"]["optimizer"], "lr": 0.02, "momentum": 0.2}
    return variant(base, clip_model, start, {"num_domain_tokens": 2, "mlp_width": 24, "mlp_depth": 4,
                                             "mlp_dropout": 0.1, "momentum": 0.2},
                   case="dpl_variant", batch=8, domains=2, classes=10, lr=0.02, optimizer=optimizer, **changed)


def test_dpl_with_two_domains_a_deeper_network_and_dropout(clip_model, tmp_path):
    record = dpl_variant(clip_model)
    assert len(record["meta"]["dropout_masks"]) == 4 and record["extra/train_logits"].shape == (6, 8, 20)
    found = replayed(tmp_path, record, clip_model)
    assert {"losses", "training logits", "logits after training", "final network.hiddens.1.weight"} <= {
        what for what, *_ in found}
    check(found)


def test_dpl_with_dropout_of_another_name_gives_other_numbers(clip_model, tmp_path):
    """So the masks do come in."""
    record = dpl_variant(clip_model, steps=1)
    record["meta"]["case"] = "dpl_other"
    record["loss"] = reference.dpl(clip_model, start_of(record), record["meta"], numbers(record["meta"]))[0]["loss"]
    check(row for row in replayed(tmp_path, record, clip_model) if row[0] == "losses")
    assert any(found > allowed for what, found, allowed in replayed(tmp_path, record, clip_model)
               if what == "training logits")


def test_dpl_scored_against_own_prompts(clip_model, tmp_path):
    """Its option TARGETS own."""
    base = read(FOLDER / "dpl.npz")
    meta = base["meta"]
    arrays, _ = reference.dpl(clip_model, start_of(base), meta, numbers(meta), own=True)
    record = {**{key: value for key, value in base.items() if key == "meta" or key.startswith("init/")}, **arrays}
    assert record["extra/train_logits"].shape == (6, 12, 7)
    assert difference(record["loss"], base["loss"], "") > 0.01
    meta["authors_config"].append("targets=own")
    check(replayed(tmp_path, record, clip_model))
