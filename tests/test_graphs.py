"""Training steps as graphs, on a recorder that stands in for a GPU's."""

import pytest
import torch
from tape import Tape
from test_training_options import METHODS, SMALL

import tiny_clip
from harness import make_trainer
from training import graphs

NAMES = ["cat", "dog", "alarm clock", "big red car", "cow", "ape", "ant", "mouse trap"]
STEPS = 7


@pytest.fixture
def tapes(monkeypatch):
    """The recorders that are made."""
    made = []
    monkeypatch.setattr(graphs, "recorder_for", lambda device: made.append(Tape()) or made[-1])
    return made


def made_steps(method, clip_model, static, options=None, steps=STEPS, **more):
    """(losses, what is trained, the trainer) after some steps as on a GPU, in graphs or not."""
    settings = {"TRAIN.GRAPHS": "auto" if static else "off", **more.pop("settings", {})}
    trainer = make_trainer(method, clip_model, NAMES, {**SMALL.get(method, {}), **(options or {})}, settings=settings,
                           **more)
    trainer.towers.text.run_as_on_gpu()
    trainer.num_batches = 5
    found = []
    torch.manual_seed(0)
    for number in range(steps):
        trainer.epoch, trainer.batch_idx = divmod(number, 5)
        found.append(trainer.forward_backward(tiny_clip.batch("graphs", number, 8, len(NAMES), more.get("domains", 1))))
    return found, trainer.trained_state(), trainer


@pytest.mark.parametrize("method", METHODS)
def test_explore(method, clip_model, tapes, monkeypatch):
    from dassl.engine import TRAINER_REGISTRY
    cls = TRAINER_REGISTRY.get(method)
    monkeypatch.setattr(cls, "static_step", True, raising=False)
    with_graphs, learned, trainer = made_steps(method, clip_model, True)
    print(method, repr(trainer._graphs.refused), tapes[-1].pieces if tapes else None)
    without, expected, _ = made_steps(method, clip_model, False)
    same = with_graphs == without and all(torch.equal(learned[k], expected[k]) for k in expected)
    print("SAME" if same else "DIFFERENT", max((learned[k] - expected[k]).abs().max().item() for k in expected))
    if trainer._graphs.refused:
        pytest.fail(trainer._graphs.refused)
    assert same
