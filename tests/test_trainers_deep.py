"""The methods with deep prompts beyond their records: shallow forms, new classes, resuming, draws, bad settings."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_prompting import plain_image, plain_text, same
from test_trainers import METHODS as ALL

import tiny_clip
import train
from dassl.utils import InputError
from harness import make_trainer
from prompting import PromptingError
from prompting.deep import CoupledCLIP, IndependentCLIP, worded_prompts
from training import PromptTrainer

NAMES = tiny_clip.CLASSNAMES
METHODS = {name: ALL[name] for name in ("MaPLe", "VPT", "IVLP", "PromptSRC", "CoPrompt", "ProMetaR")}
SMALL = METHODS["IVLP"]


def batch(size=8, step=0):
    return tiny_clip.batch("test", step, size, len(NAMES))


# ---- the shared part ----
@pytest.mark.parametrize("depth", [1, 3])
def test_features_of_both_towers_equal_the_plain_towers(towers, clip_model, depth):
    torch.manual_seed(0)
    text, visual = torch.randn(depth, 2, 128) * 0.1, torch.randn(depth, 3, 128) * 0.1
    images, names = batch(3)["img"], NAMES[:4]
    independent, coupled = IndependentCLIP(towers, names, text, visual), CoupledCLIP(towers, names, text)
    projected = [layer(prompts) for layer, prompts in zip(coupled.prompt_learner.proj, text)]
    assert len(projected) == depth
    with torch.no_grad():
        plain = plain_text(clip_model, text[0].expand(4, -1, -1), names, "end",
                           {layer: text[layer] for layer in range(1, depth)})
        same(independent.encode_classes(), plain)
        same(coupled.encode_classes(), plain)
        same(independent.encode_images(images), plain_image(clip_model, images, visual))
        same(coupled.encode_images(images), plain_image(clip_model, images, projected))


def test_deep_projections_start_as_one_and_the_inputs_is_another(towers):
    at_input, *deeper = CoupledCLIP(towers, NAMES, torch.zeros(4, 2, 128)).prompt_learner.proj
    assert all(torch.equal(layer.weight, deeper[0].weight) for layer in deeper)
    assert not torch.equal(at_input.weight, deeper[0].weight)
    assert len({layer.weight.data_ptr() for layer in deeper}) == 3


@pytest.mark.parametrize(("n_ctx", "between"), [(1, "photo of a"), (2, "of a"), (4, ""), (5, "")])
def test_words_that_are_not_learned_stay_in_the_prompt(towers, n_ctx, between):
    prompts, left = worded_prompts(towers.text, "a_photo of a", 2, n_ctx)
    words = towers.text.embed_words("a photo of a")
    assert prompts.shape == (2, n_ctx, 128) and left == between
    assert torch.equal(prompts[0], words[:n_ctx]) is (n_ctx < 5)
    assert 0 < prompts[1].std() < 0.03


# ---- every method ----
@pytest.mark.parametrize(("method", "options"), [
    ("MaPLe", {"PROMPT_DEPTH": 5}), ("MaPLe", {"N_CTX": 0}), ("CoPrompt", {"PROMPT_DEPTH": 0}),
    ("VPT", {"PROMPT_DEPTH_VISION": 5}), ("IVLP", {"PROMPT_DEPTH_TEXT": 0}), ("PromptSRC", {"N_CTX_VISION": 0}),
    ("ProMetaR", {"PROMPT_DEPTH_VISION": 12})])
def test_prompts_that_do_not_fit_are_named(method, options, clip_model):
    key = next(iter(options))
    with pytest.raises(PromptingError, match=rf"TRAINER\.{method.upper()}\..*{key}.* 1 to 4 blocks"):
        make_trainer(method, clip_model, NAMES, {**METHODS[method], **options})


@pytest.mark.parametrize("method", METHODS)
def test_a_resnet_is_refused_in_one_line(method, arguments, resnet_file, tmp_path, capsys):
    argv = arguments(method, tmp_path, backbone=resnet_file)
    assert train.command_line(lambda: train.main(argv)) == 2
    line = capsys.readouterr().err
    assert f"{method} prompts the image tower and needs a ViT" in line and line.count("\n") == 1


# ---- whole runs ----
@pytest.fixture
def run(arguments, clips):
    def run(method, output, *words, **kwargs):
        options = [word for key, value in METHODS[method].items()
                   for word in (f"TRAINER.{method.upper()}.{key}", value)]
        return train.main(arguments(method, output, *words, *options, **kwargs), clips=clips)

    return run


def checkpoint(folder, epoch=2):
    return torch.load(Path(folder) / "prompt_learner" / f"model.pth.tar-{epoch}", weights_only=True)


@pytest.mark.parametrize("method", METHODS)
def test_base_trained_prompts_score_new_classes(method, run, tmp_path):
    base = run(method, tmp_path / "base", "DATASET.SUBSAMPLE_CLASSES", "base")
    new = run(method, tmp_path / "new", "--eval-only", "--model-dir", tmp_path / "base", "DATASET.SUBSAMPLE_CLASSES",
              "new")
    assert not base["class_bound"]
    assert 0 <= new["metrics"]["test"]["accuracy"] <= 100
    assert all(tensor.dtype == torch.float32 for tensor in checkpoint(tmp_path / "base")["state_dict"].values())


@pytest.mark.parametrize("method", ["PromptSRC", "CoPrompt", "ProMetaR"])
def test_an_interrupted_run_ends_in_the_same_prompts(method, run, tmp_path, monkeypatch):
    options = ["OPTIM.MAX_EPOCH", 4]
    if method == "PromptSRC":
        options += ["TRAINER.PROMPTSRC.GPA_MEAN", 2, "TRAINER.PROMPTSRC.GPA_STD", 2]
    whole = run(method, tmp_path / "whole", *options)

    def interrupt(self):
        if self.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "before_epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(method, tmp_path / "cut", *options)
    assert run(method, tmp_path / "cut", *options)["metrics"] == whole["metrics"]
    first, second = (checkpoint(tmp_path / name, 4)["state_dict"] for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---- PromptSRC ----
def test_the_average_ends_near_the_epoch_its_gaussian_names(run, tmp_path):
    """A narrow Gaussian around one epoch deploys that epoch's prompts."""
    narrow = ("TRAINER.PROMPTSRC.GPA_MEAN", 2, "TRAINER.PROMPTSRC.GPA_STD", 0.1)
    run("PromptSRC", tmp_path, "OPTIM.MAX_EPOCH", 4, "TRAIN.CHECKPOINT_FREQ", 1, *narrow)
    second, third, trained = (checkpoint(tmp_path, epoch)["state_dict"] for epoch in (2, 3, 4))
    last = checkpoint(tmp_path, 4)["extra"]["average"]
    assert last.keys() == trained.keys()
    for name in last:
        torch.testing.assert_close(last[name], second[name])
        assert not torch.allclose(last[name], third[name]) and not torch.allclose(last[name], trained[name])
    words = ("--eval-only", "--model-dir", tmp_path, "TEST.SAVE_LOGITS", True, *narrow)
    run("PromptSRC", tmp_path / "4", *words)
    run("PromptSRC", tmp_path / "2", *words, "--load-epoch", 2)
    with np.load(tmp_path / "4" / "logits.npz") as end, np.load(tmp_path / "2" / "logits.npz") as in_training:
        np.testing.assert_allclose(end["logits"], in_training["logits"], atol=1e-4)


def test_epoch_weights_sum_to_one_even_when_the_mean_is_far_away(clip_model):
    trainer = make_trainer("PromptSRC", clip_model, NAMES, {**SMALL, "GPA_MEAN": 900.0, "GPA_STD": 1.0})
    trainer.max_epoch = 5
    weights = [trainer.epoch_weight(epoch) for epoch in range(1, 6)]
    assert sum(weights) == pytest.approx(1) and weights == sorted(weights)


def test_promptsrc_refuses_an_average_without_width(clip_model):
    with pytest.raises(InputError, match="GPA_STD must be positive"):
        make_trainer("PromptSRC", clip_model, NAMES, {**SMALL, "GPA_STD": 0.0})


# ---- CoPrompt ----
def test_coprompt_sees_every_training_image_twice(run, tmp_path, monkeypatch):
    shapes, step = [], PromptTrainer.forward_backward

    def look(self, data):
        shapes.append([tuple(view.shape) for view in data["img"]])
        return step(self, data)

    monkeypatch.setattr(PromptTrainer, "forward_backward", look)
    results = run("CoPrompt", tmp_path)
    assert shapes[0] == [(4, 3, 32, 32)] * 2
    assert results["config"]["DATALOADER"]["K_TRANSFORMS"] == 2


def test_coprompts_second_view_is_what_the_features_stay_near(clip_model):
    trainer = make_trainer("CoPrompt", clip_model, NAMES, METHODS["CoPrompt"])
    data = batch()
    losses = []

    def noting(batch):
        losses.append(trainer.compute_loss(batch))
        return {}

    trainer.training_step, trainer.watch.over = noting, True
    trainer.honoured.update(("OPTIM.LABEL_SMOOTHING", "OPTIM.CLIP_GRAD_NORM"))
    for second in (data["img"], data["img"] + 1):
        trainer.forward_backward({**data, "img": [data["img"], second]})
    (first, logits), (other, same) = losses
    assert torch.equal(logits, same) and first != other


def write(path, written):
    path.write_text(json.dumps(written))
    return str(path)


def test_sentences_are_drawn_by_a_number_for_all_classes(clip_model, tmp_path, capsys):
    path = write(tmp_path / "s.json", {name: [f"one {name}.", f"two {name}.", f"three {name}."][:1 + i % 3]
                                       for i, name in enumerate(NAMES)})
    trainer = make_trainer("CoPrompt", clip_model, NAMES, {**METHODS["CoPrompt"], "SENTENCES": path})
    features = trainer.sentence_features
    assert features.shape == (3, 10, 64)
    assert torch.equal(features[1, 0], features[0, 0])  # its one sentence again
    expected = trainer.towers.text.encode_texts(["three giraffe."])[0]
    torch.testing.assert_close(features[2, 2], expected, atol=1e-5, rtol=1e-5)
    assert "hand-written" not in capsys.readouterr().out
    draws = []
    for trainer.epoch, trainer.batch_idx in [(0, step) for step in range(20)] + [(0, 3)]:
        draws.append(trainer.sentence_number(3))
    assert set(draws) == {0, 1, 2} and draws[3] == draws[-1]


def test_without_sentences_templates_stand_in_and_it_says_so(clip_model, capsys):
    trainer = make_trainer("CoPrompt", clip_model, NAMES, METHODS["CoPrompt"])
    for step in range(2):
        trainer.forward_backward(batch(step=step))
    assert capsys.readouterr().out.count("hand-written templates stand in") == 1
    assert trainer.sentence_features.shape == (8, 10, 64)


def test_a_sentence_file_needs_the_classes_that_are_trained_on_only(run, tmp_path):
    base = run("CoPrompt", tmp_path / "names", "DATASET.SUBSAMPLE_CLASSES", "base")
    names = checkpoint(tmp_path / "names")["classnames"]
    assert base
    some = write(tmp_path / "some.json", {name: ["a thing."] for name in names[1:]})
    every = write(tmp_path / "every.json", {name: ["a thing."] for name in names})
    words = ("DATASET.SUBSAMPLE_CLASSES", "base", "TRAINER.COPROMPT.SENTENCES")
    with pytest.raises(InputError, match=rf"some\.json has no sentences for 1 of {len(names)} classes"):
        run("CoPrompt", tmp_path / "a", *words, some)
    run("CoPrompt", tmp_path / "b", *words, every)
    run("CoPrompt", tmp_path / "c", "--eval-only", "--model-dir", tmp_path / "b", "DATASET.SUBSAMPLE_CLASSES", "new",
        "TRAINER.COPROMPT.SENTENCES", every)


@pytest.mark.parametrize("text", [None, "not json", "[]", '{"dog": "a dog."}', '{"dog": [1]}'])
def test_a_sentence_file_of_another_form_is_refused(text, clip_model, tmp_path):
    path = tmp_path / "s.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=r"TRAINER\.COPROMPT\.SENTENCES: .*s\.json.*COPROMPT_SENTENCES\.md"):
        make_trainer("CoPrompt", clip_model, NAMES, {**METHODS["CoPrompt"], "SENTENCES": str(path)})


# ---- ProMetaR ----
def prometar(clip_model, **options):
    return make_trainer("ProMetaR", clip_model, NAMES, {**SMALL, "ADAPT_LR": 0.5, "LR_RATIO": 1.0, "VNET_LR": 0.1,
                                                      **options})


def test_a_batch_of_one_class_makes_the_first_update_only(clip_model):
    trainer = prometar(clip_model)
    data, before = batch(4), trainer.trained_state()
    data["label"][:] = 3
    assert "query" not in trainer.forward_backward(data)
    after = trainer.trained_state()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"prompt_learner.ctx", "vision_prompt_learner.ctx"}
    assert "query" in trainer.forward_backward(batch(4))
    assert not torch.equal(after["vnet.0.nets.0.0.weight"], trainer.trained_state()["vnet.0.nets.0.0.weight"])


def test_the_order_of_the_meta_gradient_matters(clip_model):
    results = []
    for order in (1, 2):
        trainer = prometar(clip_model, ORDER=order)
        trainer.forward_backward(batch())
        results.append(trainer.trained_state())
    assert not torch.allclose(results[0]["prompt_learner.ctx"], results[1]["prompt_learner.ctx"])


def test_episodes_are_a_function_of_seed_epoch_and_batch(clip_model):
    trainer, label, draws = prometar(clip_model), torch.tensor([0, 0, 1, 2, 2, 2]), []
    for trainer.epoch, trainer.batch_idx in ((0, 0), (0, 1), (1, 0), (0, 0)):
        chosen, ratio, partners = trainer.draw_episode(label)
        assert chosen in (0, 1, 2) and len(ratio) == len(partners) == (label == chosen).sum()
        assert ((0 <= ratio) & (ratio <= 1)).all() and (partners < (label != chosen).sum()).all()
        draws.append((chosen, ratio.tolist(), partners.tolist()))
    assert draws[0] == draws[3] and draws[0] != draws[1] and draws[0] != draws[2]


def test_a_gates_value_lies_between_task_and_regularised_gradient(clip_model):
    gate = prometar(clip_model).model.vnet[0]
    task, regulariser = torch.randn(3, 2, 128), torch.randn(3, 2, 128)
    share = (gate(task, regulariser) - task) / regulariser
    assert ((0 < share) & (share < 1)).all()
    groups = share.view(3, -1, 8)
    torch.testing.assert_close(groups, groups[..., :1].expand_as(groups), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("options", "message"), [
    ({"ORDER": 3}, "ORDER is 1 or 2"), ({"MIXUP_ALPHA": 0.0}, "MIXUP"), ({"DIM_RATE": 7}, "DIM_RATE must divide"),
    ({"DIM_RATE": 0}, "DIM_RATE must divide"), ({"VNET_LR": 0.0}, "positive")])
def test_what_prometar_refuses(options, message, clip_model):
    with pytest.raises(InputError, match=message):
        prometar(clip_model, **options)


def test_prometar_needs_two_images_a_batch(clip_model):
    with pytest.raises(InputError, match="at least 2 images"):
        make_trainer("ProMetaR", clip_model, NAMES, SMALL, batch=1)
