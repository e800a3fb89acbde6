"""TaskRes, PLOT and PLOT++ beyond their records: transport, starts, the two stages, new classes, refused settings."""
from pathlib import Path

import clip
import numpy as np
import pytest
import torch
from golden_contexts import tokens_of

import tiny_clip
import train
from dassl.utils import InputError
from harness import make_trainer
from prompting import transport
from prompting.templates import IMAGENET_SELECT, TRANSPORT_STARTS, transport_starts_of
from prompting.towers import normalize
from prompting.transport import TransportCLIP, transport_plans
from trainers.plotpp import PromptTransportCLIP

NAMES = tiny_clip.CLASSNAMES
SMALL = {"PLOT": {"N": 2, "N_CTX": 2}, "PLOTPP": {"N": 2, "M": 2}, "TaskRes": {}}


def batch(size=4):
    return tiny_clip.batch("contexts", 0, size, 10)


def cosines(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# ---- transport ----
def test_plans_share_each_feature_out_evenly():
    plans, rounds = transport_plans(0.3 * cosines(3, 5, 6, 4))
    assert plans.shape == (3, 5, 6, 4) and 1 < rounds < 100
    torch.testing.assert_close(plans.sum(dim=2), torch.full((3, 5, 4), 1 / 4))
    torch.testing.assert_close(plans.sum(dim=3), torch.full((3, 5, 6), 1 / 6), atol=1e-2, rtol=0)


def test_the_cheapest_way_is_taken():
    plans, _ = transport_plans(torch.eye(3))
    torch.testing.assert_close(plans, torch.eye(3) / 3, atol=1e-4, rtol=0)


def test_the_rounds_of_a_call_are_those_of_its_mean_pair_and_at_most_100(monkeypatch):
    easy, hard = torch.zeros(1, 4, 4), 8 * cosines(1, 4, 4)
    rounds = [transport_plans(pairs)[1] for pairs in (easy, torch.cat([easy, hard]), hard)]
    assert rounds[0] == 2 < rounds[1] <= rounds[2]
    monkeypatch.setattr(transport, "CLOSE_ENOUGH", 0.0)
    assert transport_plans(hard)[1] == 100


def test_the_gradient_runs_through_the_cosines_alone(towers):
    images, classes = torch.randn(2, 6, 64).requires_grad_(), torch.randn(3, 5, 64).requires_grad_()
    model = TransportCLIP(towers)
    logits = model.transported(images, classes)
    similarity = torch.einsum("bme,nce->bcmn", normalize(images), normalize(classes))
    plans = transport_plans(similarity)[0].detach()
    same = towers.logit_scale * (plans * similarity).sum(dim=(2, 3))
    torch.testing.assert_close(logits, same)
    for ours, theirs in zip(torch.autograd.grad(logits.square().sum(), (images, classes)),
                            torch.autograd.grad(same.square().sum(), (images, classes))):
        torch.testing.assert_close(ours, theirs)


def test_costs_are_not_rounded_in_mixed_precision(towers):
    model, images, classes = TransportCLIP(towers), torch.randn(2, 6, 64), torch.randn(3, 5, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.transported(images, classes)
    assert torch.equal(mixed, model.transported(images, classes))


# ---- PLOT ----
def test_plot_adds_the_pooled_logits_on_the_named_datasets(clip_model):
    trainers = [make_trainer("PLOT", clip_model, NAMES, {**SMALL["PLOT"], **options}, dataset=dataset)
                for dataset, options in (("Caltech101", {}), ("ImageNet", {}), ("ImageNet", {"POOLED_ON": ()}))]
    with torch.no_grad():
        plain, pooled, without = (trainer.model(batch()["img"]) for trainer in trainers)
        model = trainers[0].model
        images = model.towers.encode_image(batch()["img"])
        added = model.towers.cosine_logits(images, model.encode_classes().mean(dim=0))
    assert torch.equal(plain, without)
    torch.testing.assert_close(pooled, plain + added, atol=1e-4, rtol=1e-4)


# ---- PLOT++ ----
@pytest.mark.parametrize("dataset", [*TRANSPORT_STARTS, "Caltech101"])
def test_the_prompts_are_the_sentences_of_the_starts(dataset, clip_model):
    """But for ImageNet's third start, which has a word fewer than the first."""
    trainer = make_trainer("PLOTPP", clip_model, NAMES[6:8], dataset=dataset)
    starts = list(transport_starts_of(dataset))
    if dataset == "ImageNet":
        starts[2] = "this is a a"
        trainer.cfg.TRAINER.PLOTPP.STARTS = starts
    sentences = clip.tokenize([f"{start} {name}." for start in starts for name in ("person", "alarm clock")])
    assert tokens_of(trainer, 16).tolist() == sentences[:, :16].tolist()
    words = clip_model.token_embedding(sentences[::2])
    n_ctx = len(starts[0].split())
    torch.testing.assert_close(trainer.model.prompt_learner.ctx.detach(), words[:, 1:1 + n_ctx].float())
    with torch.no_grad():
        features = clip_model.encode_text(sentences).view(4, 2, -1)
        torch.testing.assert_close(trainer.model.encode_classes(), features, atol=1e-4, rtol=1e-4)


def test_each_set_of_visual_prompts_has_a_pass_of_its_own(towers):
    prompts = torch.randn(3, 2, 128)
    together = PromptTransportCLIP(towers, NAMES, ["a photo of a"], prompts, True, False)
    with torch.no_grad():
        found = together.encode_images(batch()["img"])
        for number, own in enumerate(prompts):
            alone = towers.image.encode(towers.image.embed(batch()["img"]), [own])
            torch.testing.assert_close(found[:, number], alone, atol=1e-4, rtol=1e-4)


def test_text_prompts_that_stay_at_their_words_are_computed_once(clip_model):
    options = {**SMALL["PLOTPP"], "MODEL_UPD": "vision"}
    vision = make_trainer("PLOTPP", clip_model, NAMES, options)
    joint = make_trainer("PLOTPP", clip_model, NAMES, SMALL["PLOTPP"])
    assert list(vision.trained_tensors()) == ["prompt_learner.ctx_vision"]
    with torch.no_grad():
        torch.testing.assert_close(vision.model(batch()["img"]), joint.model(batch()["img"]))
    before = vision.towers.passes.texts
    vision.forward_backward(batch())
    assert vision.towers.passes.texts == before


# ---- TaskRes ----
def test_taskres_takes_names_as_they_are_and_templates_anew_each_time(clip_model):
    for _ in range(2):
        trainer = make_trainer("TaskRes", clip_model, NAMES, dataset="ImageNet")
        templates = [*IMAGENET_SELECT, "a photo of a {}."]
        with torch.no_grad():
            texts = [clip_model.encode_text(clip.tokenize(t.format("alarm_clock")))[0] for t in templates]
        torch.testing.assert_close(trainer.model.base_text_features[7], torch.stack(texts).mean(dim=0),
                                   atol=1e-4, rtol=1e-4)


def test_taskres_starts_as_the_users_templates(clip_model):
    own = ["a sketch of a {}.", "art of the {}."]
    trainer = make_trainer("TaskRes", clip_model, NAMES, settings={"DATASET.TEMPLATES": own})
    with torch.no_grad():
        texts = torch.stack([clip_model.encode_text(clip.tokenize([t.format(name) for name in NAMES])) for t in own])
        logits = trainer.towers.cosine_logits(clip_model.encode_image(batch()["img"]), texts.mean(dim=0))
        torch.testing.assert_close(trainer.model(batch()["img"]), logits, atol=1e-4, rtol=1e-4)


# ---- runs ----
@pytest.fixture
def run(arguments, clips):
    """(trainer, output, *options) -> results of a run on the drawn Caltech101; with `trained`, a run folder, of its
    evaluation."""
    def go(method, output, *options, trained=None):
        flags = ["--eval-only", "--model-dir", trained] if trained else []
        small = [word for key, value in SMALL[method].items() for word in (f"TRAINER.{method.upper()}.{key}", value)]
        return train.main(arguments(method, output, *flags, *small, *options), clips=clips)
    return go


def test_plot_scores_new_classes(run, tmp_path):
    base = run("PLOT", tmp_path / "base", "DATASET.SUBSAMPLE_CLASSES", "base")
    assert not base["class_bound"] and base["test_time"]["transductive"]
    new = run("PLOT", tmp_path / "new", "DATASET.SUBSAMPLE_CLASSES", "new", trained=tmp_path / "base")
    assert new["classes"]["name"] and not set(new["classes"]["name"]) & set(base["classes"]["name"])


def test_plotpp_in_two_stages(run, tmp_path, capsys):
    words = ("DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 1, "OPTIM.WARMUP_EPOCH", 0)
    run("PLOTPP", tmp_path / "vision", *words, "TRAINER.PLOTPP.MODEL_UPD", "vision", "TRAINER.PLOTPP.TRADE_OFF", True)
    checkpoint = tmp_path / "vision" / "prompt_learner" / "model.pth.tar-1"
    capsys.readouterr()
    run("PLOTPP", tmp_path / "joint", *words, "MODEL.INIT_WEIGHTS", checkpoint, "OPTIM.LR", 1e-9)
    assert f"Loaded 1 tensors from {checkpoint}\n" in capsys.readouterr().out
    first, second = (torch.load(tmp_path / stage / "prompt_learner" / checkpoint.name, weights_only=True)["state_dict"]
                     for stage in ("vision", "joint"))
    assert set(second) - set(first) == {"prompt_learner.ctx"}
    name = "prompt_learner.ctx_vision"
    torch.testing.assert_close(second[name], first[name], atol=1e-7, rtol=0)
    new = run("PLOTPP", tmp_path / "new", "DATASET.SUBSAMPLE_CLASSES", "new", trained=tmp_path / "joint")
    assert new["classes"]["name"] and not new["class_bound"]


def test_taskres_belongs_to_its_classes(run, tmp_path):
    assert run("TaskRes", tmp_path / "base", "DATASET.SUBSAMPLE_CLASSES", "base")["class_bound"]
    with pytest.raises(InputError, match="other classes"):
        run("TaskRes", tmp_path / "new", "DATASET.SUBSAMPLE_CLASSES", "new", trained=tmp_path / "base")


def test_taskres_scores_some_of_its_classes_by_their_rows(run, tmp_path):
    """As those of ImageNet-A after a training on ImageNet."""
    run("TaskRes", tmp_path / "all", "OPTIM.LR", 0.1, "TEST.SAVE_LOGITS", True)
    run("TaskRes", tmp_path / "some", "DATASET.SUBSAMPLE_CLASSES", "new", "TEST.SAVE_LOGITS", True,
        trained=tmp_path / "all")
    every, some = (np.load(tmp_path / name / "logits.npz") for name in ("all", "some"))
    rows = [every["paths"].tolist().index(path) for path in some["paths"]]
    columns = [every["classnames"].tolist().index(name) for name in some["classnames"]]
    assert 0 < len(columns) < len(every["classnames"])
    np.testing.assert_allclose(some["logits"], every["logits"][rows][:, columns], atol=1e-4)


@pytest.mark.parametrize(("method", "options", "said"), [
    ("TaskRes", {"RESIDUAL_SCALE": 0.0}, "RESIDUAL_SCALE must be positive"),
    ("PLOT", {"N": 0}, "N and N_CTX must be at least 1, they are 0 and 16"),
    ("PLOT", {"N_CTX": 0}, "they are 4 and 0"),
    ("PLOTPP", {"N": 5}, "N must be 1 to 4, the number of starts, it is 5"),
    ("PLOTPP", {"N": 2, "STARTS": ("a photo of a",)}, "N must be 1 to 1"),
    ("PLOTPP", {"M": 0}, "M and N_CTX_V must be at least 1, they are 0 and 2"),
    ("PLOTPP", {"STARTS": ("a photo of a", " ")}, "STARTS is a list of texts with words"),
    ("PLOTPP", {"MODEL_UPD": "text"}, "MODEL_UPD: 'text' is not known"),
])
def test_settings_without_a_meaning_are_refused(method, options, said, clip_model):
    with pytest.raises(InputError, match=said):
        make_trainer(method, clip_model, NAMES, options)


@pytest.mark.parametrize(("method", "does"), [("PLOT", "reads patch tokens"), ("PLOTPP", "prompts the image tower")])
def test_a_resnet_is_refused(method, does, arguments, resnet_file, tmp_path, one_line):
    line = one_line(lambda: train.main(arguments(method, tmp_path / "out", backbone=resnet_file)))
    assert f"{method} {does} and needs a ViT backbone" in line


@pytest.mark.parametrize(("dataset", "scale", "rate"), [("caltech101", 0.5, 0.002), ("oxford_flowers", 1.0, 0.002),
                                                        ("imagenet", 0.5, 0.0002)])
def test_taskres_has_its_authors_settings_of_each_dataset(dataset, scale, rate, arguments, tmp_path):
    config = Path(train.__file__).parent / "configs" / "trainers" / "TaskRes" / "vit_b16.yaml"
    cfg = train.build(train.parse_arguments(arguments("TaskRes", tmp_path, dataset=dataset, config=config))).cfg
    assert (cfg.TRAINER.TASKRES.RESIDUAL_SCALE, cfg.OPTIM.LR) == (scale, rate)
