"""Trainers on shapes, positions, depths and precisions that no golden record has; batches are handed in."""
import copy

import pytest
import torch

import tiny_clip
from dassl.utils import InputError, NonFiniteError
from harness import make_trainer
from prompting import PromptingError

NAMES = tiny_clip.CLASSNAMES
INDEPENDENT = {"PROMPT_DEPTH_VISION": 2, "PROMPT_DEPTH_TEXT": 3, "N_CTX_VISION": 1, "N_CTX_TEXT": 2}
METHODS = {
    "CoOp": {"N_CTX": 3},
    "CoCoOp": {"N_CTX": 3},
    "MetaPrompt": {"N_CTX": 3, "N_PRO": 1, "LAYERS": 2},
    "MaPLe": {"PROMPT_DEPTH": 2},
    "VPT": {"PROMPT_DEPTH_VISION": 2, "N_CTX_VISION": 3},
    "IVLP": INDEPENDENT,
    "PromptSRC": INDEPENDENT,
    "CoPrompt": {"PROMPT_DEPTH": 2},
    "ProMetaR": INDEPENDENT,
}


def batch(size=8, classes=10, domains=1, step=0):
    return tiny_clip.batch("test", step, size, classes, domains)


def logits(trainer, images=None):
    trainer.set_model_mode("eval")
    with torch.no_grad():
        values = trainer.model_inference(batch(5)["img"] if images is None else images)
    trainer.set_model_mode("train")
    return values


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [2, 7])
def test_a_step_lowers_the_loss_and_leaves_clip_alone(method, size, clip_model):
    before = copy.deepcopy(clip_model.state_dict())
    trainer = make_trainer(method, clip_model, NAMES, METHODS[method])
    data = batch(size)
    if len(set(data["label"].tolist())) < 2:
        data["label"][0] = (data["label"][0] + 1) % 10
    losses = [trainer.forward_backward(data)["loss"] for _ in range(8)]
    assert losses[-1] < losses[0]
    assert all(torch.equal(v, before[k]) for k, v in clip_model.state_dict().items())
    assert all(p.dtype == torch.float32 for p in trainer.trainables)


def test_cocoop_takes_one_image(clip_model):
    trainer = make_trainer("CoCoOp", clip_model, NAMES, {"N_CTX": 4})
    assert trainer.forward_backward(batch(1))["loss"] > 0


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("words", ["", "a photo of a"])
def test_coop_in_all_its_forms(position, csc, words, clip_model):
    trainer = make_trainer("CoOp", clip_model, NAMES,
                           {"N_CTX": 5, "CSC": csc, "CTX_INIT": words, "CLASS_TOKEN_POSITION": position})
    assert trainer.trainables[0].shape == (*([10] if csc else []), 4 if words else 5, 128)
    assert trainer.class_bound(trainer.cfg) is csc
    start = trainer.trainables[0].detach().clone()
    trainer.forward_backward(batch())
    moved = (trainer.trainables[0] - start).abs().flatten(1).sum(1)
    assert (moved > 0).all()


@pytest.mark.parametrize("options", [{"SPLIT": "class"}, {"SPLIT": "domain"}, {"SPLIT": "domain", "ORDER": 2},
                                     {"SPLIT": "class", "VARIANT": "released"},
                                     {"SPLIT": "domain", "VARIANT": "released"}])
@pytest.mark.parametrize(("size", "domains"), [(4, 2), (9, 3)])
def test_metaprompt_moves_the_prompt_its_split_is_about(options, size, domains, clip_model):
    """META_STEP scales the move of one prompt and leaves the other where the in-domain update put it."""
    results = []
    for meta_step in (0.2, 5.0):
        trainer = make_trainer("MetaPrompt", clip_model, NAMES, {**METHODS["MetaPrompt"], **options,
                                                               "META_STEP": meta_step}, domains=domains)
        if options.get("VARIANT") == "released":  # its one draw may leave a half without images
            trainer.class_order = lambda label: [*range(0, 10, 2), *range(1, 10, 2)]
        data = batch(size, domains=domains)
        data["label"][:2] = torch.tensor([0, 1])
        trainer.forward_backward(data)
        results.append({n: p.detach().clone() for n, p in trainer.model.named_parameters()})
        assert len(trainer.held_out_losses) == (2 if options["SPLIT"] == "class" else domains)
    text = (results[0]["prompt_learner.ctx"] - results[1]["prompt_learner.ctx"]).abs().max()
    image = (results[0]["vision_prompt_learner.ctx"] - results[1]["vision_prompt_learner.ctx"]).abs().max()
    moved, still = (text, image) if options["SPLIT"] == "class" else (image, text)
    assert moved > 0 and still == 0


def test_class_halves_are_a_function_of_seed_epoch_and_batch(clip_model):
    trainer = make_trainer("MetaPrompt", clip_model, NAMES, METHODS["MetaPrompt"])
    label = torch.tensor([0, 1, 2, 3])
    draws = []
    for trainer.epoch, trainer.batch_idx in ((0, 0), (0, 1), (1, 0), (0, 0)):
        draws.append(trainer.class_order(label))
    assert draws[0] == draws[3] and draws[0] != draws[1] and draws[0] != draws[2]


def test_few_classes(clip_model, capsys):
    trainer = make_trainer("MetaPrompt", clip_model, NAMES[:3], METHODS["MetaPrompt"])
    assert capsys.readouterr().out.count("no meta-update") == 1
    summary = trainer.forward_backward(batch(4, classes=3))
    assert "held_out" not in summary and "no meta-update" not in capsys.readouterr().out
    with pytest.raises(InputError, match="has one class"):
        make_trainer("MetaPrompt", clip_model, NAMES[:1], METHODS["MetaPrompt"])


def test_what_metaprompt_refuses(clip_model):
    for options, message in (({"SPLIT": "domain"}, "two source domains"), ({"LAYERS": 5}, "1 to 4 blocks"),
                             ({"SPLIT": "both"}, "both"), ({"ORDER": 3}, "ORDER"), ({"VARIANT": "mine"}, "released"),
                             ({"VARIANT": "released", "ORDER": 2}, "ORDER"), ({"N_PRO": 0}, "at least 1")):
        with pytest.raises((InputError, PromptingError), match=message):
            make_trainer("MetaPrompt", clip_model, NAMES, {**METHODS["MetaPrompt"], **options})
    trainer = make_trainer("MetaPrompt", clip_model, NAMES, METHODS["MetaPrompt"], domains=2)
    with pytest.raises(PromptingError, match="all of one domain"):
        trainer.forward_backward(batch(4, domains=1))


DEAR = ("PromptSRC", "ProMetaR")  # a step of theirs takes as long as those of all others; IVLP has their model


@pytest.mark.parametrize("method", [pytest.param(name, marks=pytest.mark.slow if name in DEAR else ())
                                    for name in METHODS])
def test_precisions_agree_within_what_half_precision_allows(method, clip_model):
    values = {}
    for precision in ("fp32", "amp", "fp16"):
        trainer = make_trainer(method, clip_model, NAMES, {**METHODS[method], "PREC": precision}, batch=4)
        trainer.precision.scale = min(trainer.precision.scale, 256.0)  # no step is left out
        for step in range(2):
            summary = trainer.forward_backward(batch(4, step=step))
            assert summary["loss"] > 0
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in trainer.trainables)
        values[precision] = logits(trainer)
    scale = values["fp32"].abs().max()
    assert (values["amp"] - values["fp32"]).abs().max() < 0.1 * scale  # bfloat16 has 8 bits
    assert (values["fp16"] - values["fp32"]).abs().max() < 0.02 * scale


@pytest.mark.parametrize("method", ["CoOp", "MetaPrompt"])
def test_bf16_on_the_cpu_is_amp(method, clip_model):
    found = {}
    for precision in ("amp", "bf16", "fp32"):
        trainer = make_trainer(method, clip_model, NAMES, {**METHODS[method], "PREC": precision}, batch=4)
        summary = trainer.forward_backward(batch(4))
        found[precision] = summary, [p.detach().clone() for p in trainer.trainables], logits(trainer)
    (amp, learned, scores), (bf16, own, same) = found["amp"], found["bf16"]
    assert amp == bf16 and torch.equal(scores, same) and all(map(torch.equal, learned, own))
    assert not torch.equal(found["fp32"][2], same)


def test_an_update_of_1e_5_does_not_vanish_in_half_precision(clip_model):
    trainer = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 2, "PREC": "fp16"})
    trainer.optim.param_groups[0].update(lr=1e-7, weight_decay=0)
    start = trainer.trainables[0].detach().clone()
    trainer.forward_backward(batch())
    assert 0 < (trainer.trainables[0] - start).abs().max() < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_an_overflowing_scaled_gradient_lowers_the_scale_and_is_left_out(method, clip_model):
    trainer = make_trainer(method, clip_model, NAMES, {**METHODS[method], "PREC": "fp16"})
    starts = [p.detach().clone() for p in trainer.trainables]
    trainer.precision.scale = 2.0 ** 40
    assert trainer.forward_backward(batch(4)) == {"overflow": 1}
    assert all(torch.equal(p, start) for p, start in zip(trainer.trainables, starts))
    assert trainer.precision.scale == 2.0 ** 39
    trainer.precision.scale = 2.0 ** 16  # the steps between overflow as well
    for _ in range(17):
        summary = trainer.forward_backward(batch(4))
        if "loss" in summary:
            break
    assert "loss" in summary and not torch.equal(trainer.trainables[0], starts[0])


def test_a_gradient_that_is_not_finite_without_scaling_stops_the_run(clip_model):
    trainer = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 2})
    with pytest.raises(NonFiniteError, match="gradient is not finite in epoch 1.*; lower OPTIM.LR, or use PREC bf16"):
        trainer.apply_gradients([torch.full_like(trainer.trainables[0], float("inf"))])


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_not_finite_stops_with_step_rate_and_files(method, clip_model):
    trainer = make_trainer(method, clip_model, NAMES, METHODS[method])
    data = batch(4)
    data["img"][:] = float("nan")
    data["impath"] = [f"photo{i}.jpg" for i in range(4)]
    trainer.batch, trainer.batch_idx = data, 6
    with pytest.raises(NonFiniteError, match=r"[Ll]oss is .*epoch 1, batch 7, at learning rate 0\.01, on photo0\.jpg"):
        trainer.forward_backward(data)


def test_class_features_are_encoded_once_an_evaluation(clip_model):
    trainer = make_trainer("CoOp", clip_model, NAMES, METHODS["CoOp"])
    calls, encode = [], trainer.model.encode_classes
    trainer.model.encode_classes = lambda: calls.append(1) or encode()
    trainer.set_model_mode("eval")
    with torch.no_grad():
        first = trainer.model_inference(batch(3)["img"])
        trainer.model_inference(batch(5)["img"])
        assert len(calls) == 1
        trainer.trainables[0] += 0.5
        trainer.set_model_mode("train")
        trainer.set_model_mode("eval")
        assert not torch.allclose(first, trainer.model_inference(batch(3)["img"]))
    assert len(calls) == 2


def test_cocoop_evaluates_in_chunks_without_changing_numbers(clip_model, monkeypatch):
    trainer = make_trainer("CoCoOp", clip_model, NAMES, METHODS["CoCoOp"])
    whole = logits(trainer)
    monkeypatch.setattr("trainers.cocoop.PROMPTS_AT_ONCE", 20)
    torch.testing.assert_close(logits(trainer), whole)


def test_zero_shot_ensembles(clip_model):
    one = make_trainer("ZeroshotCLIP", clip_model, NAMES)
    seven = make_trainer("ZeroshotCLIP2", clip_model, NAMES)
    eighty = make_trainer("ZeroshotCLIP2", clip_model, NAMES, {"TEMPLATES": "all"})
    assert not one.trainables
    assert not torch.allclose(logits(one), logits(seven)) and not torch.allclose(logits(seven), logits(eighty))
    with pytest.raises(InputError, match="selected"):
        make_trainer("ZeroshotCLIP2", clip_model, NAMES, {"TEMPLATES": "some"})


def test_several_updates_a_step_see_each_other_under_autocast(clip_model):
    """Autocast keeps half-precision copies of weights; an update must drop them."""
    trainer = make_trainer("CoCoOp", clip_model, NAMES, {"N_CTX": 2, "PREC": "amp"}, batch=4)
    losses = []

    def three_updates(data):
        for _ in range(3):
            loss, logits = trainer.compute_loss(data)
            trainer.apply_gradients(trainer.gradients(loss, trainer.trainables))
            losses.append(loss.item())
        return {"loss": losses[-1]}

    trainer.training_step = three_updates
    trainer.optim.param_groups[0].update(lr=0.1)
    for parameter in trainer.trainables:  # only the network, whose weights autocast copies, is left to learn
        parameter.requires_grad_(parameter.dim() == 2 and parameter.shape != (2, 128))
    trainer.trainables = [p for p in trainer.trainables if p.requires_grad]
    trainer.forward_backward(batch(4))
    assert len(set(losses)) == 3
