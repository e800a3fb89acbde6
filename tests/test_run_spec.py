"""A run as data: RunSpec, its words, and what train.main makes of it."""
from dataclasses import fields, replace

import pytest

import train
from dassl.utils import InputError
from training.run_spec import RunSpec

WHOLE = RunSpec(
    trainer="CoOp", dataset_config_file="d.yaml", config_file="c.yaml", output_dir="out", root="data",
    backbone="ViT-B/16", seed=3, source_domains=("a", "b"), target_domains=("c",), transforms=("normalize",),
    head="mlp", resume="before", eval_only=True, model_dir="trained", load_epoch=2, no_train=True, skip_bad_images=True,
    plugins=("p.py", "q"), options=("OPTIM.LR", "0.1", "DATASET.NUM_SHOTS", "4"))


def test_every_field_survives_its_words():
    assert all(getattr(WHOLE, field.name) != field.default for field in fields(RunSpec))
    assert train.parse_arguments(WHOLE.argv()) == WHOLE


@pytest.mark.parametrize("field", [field.name for field in fields(RunSpec)])
def test_a_field_that_is_not_given_is_no_word(field):
    without = replace(WHOLE, **{field: RunSpec.__dataclass_fields__[field].default})
    assert train.parse_arguments(without.argv()) == without
    assert len(without.argv()) < len(WHOLE.argv())


def test_the_options_of_a_run():
    assert RunSpec(options=("SEED", "1", "SEED", "2")).settings() == {"SEED": "2"}
    assert WHOLE.with_options("SEED", "5").options[-2:] == ("SEED", "5")
    assert WHOLE.identity() == {"dataset": "d", "config": "c"}


def test_a_run_spec_runs_as_its_words_do(tmp_path, tiny_config, drawn_root, clips):
    with pytest.raises(InputError, match="no method is named"):
        train.main(RunSpec(output_dir=str(tmp_path / "out")))
