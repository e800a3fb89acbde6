"""What the golden records of these methods do not cover: new classes, what selection may see, starts, bad settings."""
from itertools import combinations

import clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import tiny_clip
import train
from dassl.data import data_manager
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError
from harness import make_trainer
from prompting import ClassPrompts, load_clip
from prompting.consistency import diverse_text_features
from prompting.templates import IMAGENET_SELECT, tcp_words_of
from trainers.prograd import without_conflict

NAMES = tiny_clip.CLASSNAMES
OPTIONS = {"KgCoOp": {}, "ProGrad": {"N_CTX": 4}, "TCP": {"LAYER": 2}, "CLIPAdapter": {}, "DePT": {"N_CTX": 4},
           "LinearProbe": {}, "TipAdapter": {"AUGMENT_EPOCH": 2}, "TipAdapterF": {"AUGMENT_EPOCH": 2}}


def batch(size=8, step=0):
    return tiny_clip.batch("methods", step, size, 10)


@torch.no_grad()
def logits(trainer):
    trainer.set_model_mode("eval")
    return trainer.model_inference(batch(5)["img"])


def words_of(method):
    return [word for key, value in OPTIONS[method].items() for word in (f"TRAINER.{method.upper()}.{key}", value)]


@pytest.fixture
def run(arguments, clips):
    """(trainer, output, *options) -> results of a run on the drawn Caltech101; with `trained`, a run folder, of its
    evaluation."""
    def go(method, output, *options, trained=None):
        flags = ["--eval-only", "--model-dir", trained] if trained else []
        return train.main(arguments(method, output, *flags, *words_of(method), *options), clips=clips)
    return go


@pytest.mark.parametrize("method", ["KgCoOp", "ProGrad", "TCP", "CLIPAdapter", "DePT"])
def test_what_was_learned_on_base_classes_scores_new_ones(method, run, tmp_path):
    base = run(method, tmp_path / "base", "DATASET.SUBSAMPLE_CLASSES", "base")
    assert not base["class_bound"] and "test" in base["metrics"]
    new = run(method, tmp_path / "new", "DATASET.SUBSAMPLE_CLASSES", "new", trained=tmp_path / "base")
    assert 0 <= new["metrics"]["test"]["accuracy"] <= 100
    again = run(method, tmp_path / "again", "DATASET.SUBSAMPLE_CLASSES", "base", trained=tmp_path / "base")
    assert again["metrics"]["test"] == base["metrics"]["test"]


@pytest.mark.parametrize("method", ["LinearProbe", "TipAdapterF"])
def test_what_belongs_to_its_classes_says_so(method, run, tmp_path):
    assert run(method, tmp_path / "base", "DATASET.SUBSAMPLE_CLASSES", "base")["class_bound"]
    with pytest.raises(InputError, match="classes"):
        run(method, tmp_path / "new", "DATASET.SUBSAMPLE_CLASSES", "new", trained=tmp_path / "base")


def test_dept_scores_its_own_classes_with_both_heads_and_others_by_cosine(clip_model, tmp_path):
    trained = make_trainer("DePT", clip_model, NAMES[:5], OPTIONS["DePT"])
    data = tiny_clip.batch("methods", 0, 8, 5)
    for _ in range(3):
        trained.forward_backward(data)
    model, images = trained.model, trained.model.encode_images(data["img"])
    cosine = trained.towers.cosine_logits(images, model.encode_classes())
    head = model.linear_probe_proj(model.film_lp_img(images))
    torch.testing.assert_close(model(data["img"]), 0.3 * cosine + 0.7 * head)
    trained.save_model(0, str(tmp_path))

    others = make_trainer("DePT", clip_model, NAMES[5:], OPTIONS["DePT"])
    others.load_model(str(tmp_path))
    coop = make_trainer("CoOp", clip_model, NAMES[5:], {"N_CTX": 4})
    coop.model.prompt_learner.ctx.data.copy_(model.prompt_learner.ctx)
    torch.testing.assert_close(logits(others), logits(coop))
    same = make_trainer("DePT", clip_model, NAMES[:5], OPTIONS["DePT"])
    same.load_model(str(tmp_path))
    torch.testing.assert_close(logits(same), logits(trained))


vectors = st.lists(st.floats(-10, 10, width=32), min_size=6, max_size=6).map(lambda v: torch.tensor(v).view(2, 3))


@settings(max_examples=60, deadline=None)
@given(vectors, vectors, st.floats(0, 1))
def test_prograd_takes_out_what_conflicts_and_nothing_else(domain, general, weight):
    kept, dot = without_conflict(domain, general, weight), (domain * general).sum()
    if dot >= 0:
        assert torch.equal(kept, domain)
    else:
        torch.testing.assert_close((kept * general).sum(), (1 - weight) * dot, rtol=1e-3, atol=1e-3)
        removed = (domain - kept).flatten()  # along the general direction alone
        parallel = F.cosine_similarity(removed, general.flatten(), dim=0).abs()
        assert removed.norm() < 1e-5 or parallel > 0.999


def test_prograd_follows_no_rounding_error():
    domain, general = torch.tensor([1.0, 0.5]), torch.tensor([-1.0, 0.0])
    assert torch.equal(without_conflict(domain, 1e-7 * general, 1.0), domain)
    assert torch.equal(without_conflict(domain, 1e-4 * general, 1.0), torch.tensor([0.0, 0.5]))
    assert torch.equal(without_conflict(domain, 1e-4 * general, 1.0, torch.float16), domain)
    length = domain.norm()
    for dtype, least in ((torch.float32, 16 * 2.0 ** -23), (torch.float16, 2.0 ** -8), (torch.bfloat16, 2.0 ** -8)):
        assert torch.equal(without_conflict(domain, 0.99 * least * length * general, 1.0, dtype), domain)
        assert torch.equal(without_conflict(domain, 1.01 * least * length * general, 1.0, dtype),
                           torch.tensor([0.0, 0.5]))


def test_prograd_without_lambda_is_coop(clip_model):
    prograd = make_trainer("ProGrad", clip_model, NAMES, {"N_CTX": 4, "LAMBDA": 0.0})
    coop = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 4})
    for step in range(3):
        prograd.forward_backward(batch(step=step))
        coop.forward_backward(batch(step=step))
    torch.testing.assert_close(prograd.model.prompt_learner.ctx, coop.model.prompt_learner.ctx)


def test_prograd_starts_from_the_template_behind_zeros(clip_model):
    trainer = make_trainer("ProGrad", clip_model, NAMES, {"N_CTX": 9, "TEMPLATE_INIT": True}, dataset="OxfordPets")
    ctx = trainer.model.prompt_learner.ctx
    words = trainer.towers.text.embed_words("a type of pet, a photo of a")
    assert len(words) == 9 and torch.equal(ctx, words)
    longer = make_trainer("ProGrad", clip_model, NAMES, {"N_CTX": 12, "TEMPLATE_INIT": True}, dataset="OxfordPets")
    assert not longer.model.prompt_learner.ctx[:3].any() and torch.equal(longer.model.prompt_learner.ctx[3:], words)


@pytest.mark.parametrize(("dataset", "sentence"), [("DescribableTextures", "a photo of a {} texture."),
                                                   ("UCF101", "a photo of a person doing {}."),
                                                   ("StanfordCars", "a photo of a {}, a type of car"),
                                                   ("Caltech101", "a photo of a {}.")])
def test_tcp_prompts_hold_the_words_of_the_dataset(dataset, sentence, towers):
    before, after = tcp_words_of(dataset)
    prompts = ClassPrompts(towers.text, NAMES, 4, between=before, after=after)
    features = towers.text.encode(prompts(towers.text.embed_words("a photo of a")))[0]
    plain = towers.text.encode_texts([sentence.format(name.replace("_", " ")) for name in NAMES])
    torch.testing.assert_close(features, plain)


def test_tcp_class_prompts_are_made_for_classes_never_trained_on(clip_model):
    """What a class's prompts do does not depend on which other classes there are."""
    base = make_trainer("TCP", clip_model, NAMES[:5], OPTIONS["TCP"])
    every = make_trainer("TCP", clip_model, NAMES, OPTIONS["TCP"])
    every.model.load_state_dict(base.model.state_dict())
    torch.testing.assert_close(every.model.encode_classes()[:5], base.model.encode_classes())


# ---- Tip-Adapter ----
@pytest.mark.parametrize("method", ["TipAdapter", "TipAdapterF"])
def test_tip_adapter_chooses_without_a_look_at_test_images(method, run, tmp_path, monkeypatch):
    seen, read = [], data_manager.read_image
    monkeypatch.setattr(data_manager, "read_image", lambda path, exif: seen.append(path) or read(path, exif))
    test = TRAINER_REGISTRY.get(method).test
    before, state = [], {}

    def watched(self, split=None):
        before.extend(seen)
        state.update(test={item.impath for item in self.dm.dataset.test}, val=[i.impath for i in self.dm.dataset.val])
        return test(self, split)

    monkeypatch.setattr(TRAINER_REGISTRY.get(method), "test", watched)
    run(method, tmp_path / "run")
    assert not set(before) & state["test"]
    assert all(before.count(path) == 1 for path in state["val"])  # validation features are computed once


@pytest.mark.parametrize("method", ["TipAdapter", "TipAdapterF"])
@pytest.mark.parametrize("there_is_one", [True, False])
def test_tip_adapter_searches_on_no_validation_part_but_its_own(method, there_is_one, clip_model, capsys):
    """The listed dataset's validation part is its test part."""
    trainer = make_trainer(method, clip_model, NAMES, {"BETA": 2.0, "ALPHA": 0.5})
    if not there_is_one:
        trainer.val_loader = None
    trainer.search()
    assert (trainer.model.beta, trainer.model.alpha) == (2.0, 0.5)
    assert "no validation images apart from its test and training images" in capsys.readouterr().out


def test_tip_adapter_scores_an_image_of_its_cache_by_that_image(clip_model):
    data = batch(20)
    trainer = make_trainer("TipAdapter", clip_model, NAMES, {"AUGMENT_EPOCH": 1, "BETA": 100.0, "ALPHA": 1e4},
                           labels=sorted({*range(10)} | set(data["label"].tolist())) + data["label"].tolist(),
                           overrides={"few_shot_batches": lambda self, number: [batch(10, step=1), data]})
    trainer.fill_cache()
    assert (trainer.model_inference(data["img"]).argmax(1) == data["label"]).all()


def test_tip_adapters_keys_are_the_mean_over_different_views(run, clip_model, tmp_path, monkeypatch):
    """Published are ten augmentations of each image; a key is the mean of their features, of length 1."""
    cls, views, trainers = TRAINER_REGISTRY.get("TipAdapter"), [], []
    few_shot_batches, search = cls.few_shot_batches, cls.search

    def watched(self, number):
        batches = list(few_shot_batches(self, number))
        views.append(torch.cat([batch["img"] for batch in batches]))
        return batches

    monkeypatch.setattr(cls, "few_shot_batches", watched)
    monkeypatch.setattr(cls, "search", lambda self: trainers.append(self) or search(self))
    run("TipAdapter", tmp_path, "TRAINER.TIPADAPTER.AUGMENT_EPOCH", 10, "STORE.USE", False)  # which looks at pictures
    assert len(views) == 10 and len(views[0]) == 12  # 6 classes, 2 shots
    assert not any(torch.equal(*pair) for images in zip(*views) for pair in combinations(images, 2))
    with torch.no_grad():
        mean = torch.stack([clip_model.encode_image(images) for images in views]).mean(dim=0)
    keys = trainers[0].model.adapter.weight.detach()
    torch.testing.assert_close(keys, F.normalize(mean, dim=1), rtol=1e-4, atol=1e-5)


def test_tip_adapter_f_keeps_the_first_of_its_best_epochs(clip_model):
    trainer = make_trainer("TipAdapterF", clip_model, NAMES, {"ALPHA": 0.0})  # keys change no prediction
    features = trainer.model.encode_images(batch(20)["img"])
    right = trainer.model.logits(features, trainer.model.encode_classes()).argmax(dim=1)
    half_right = torch.where(torch.arange(20) < 10, right, (right + 1) % 10)
    kept = []
    for epoch, labels in enumerate((half_right, half_right, right, half_right, right)):
        trainer.validation = features, labels
        trainer.model.adapter.weight.data.fill_(epoch)
        trainer.keep_best()
        kept.append((trainer.best_keys.unique().item(), trainer.best_accuracy))
    assert kept == [(0, 0.5), (0, 0.5), (2, 1.0), (2, 1.0), (2, 1.0)]
    trainer.validation = None  # nothing to choose by: the last epoch
    trainer.keep_best()
    assert trainer.best_keys.unique().item() == 4


def test_tip_adapter_takes_the_first_best_point_of_its_grid(clip_model):
    trainer = make_trainer("TipAdapter", clip_model, NAMES, {"SEARCH_SCALE": (4.1, 2.1), "SEARCH_STEP": (4, 2)})
    model, seen, cache_logits = trainer.model, [], trainer.model.cache_logits
    model.cache_logits = lambda affinity, beta: seen.append(beta) or cache_logits(affinity, beta)
    model.values.zero_()  # the cache says nothing, so every point is as good
    features = model.encode_images(batch(20)["img"])
    labels = model.logits(features, model.encode_classes()).argmax(dim=1)
    seen.clear()
    labels[:5] = (labels[:5] + 1) % 10
    assert model.search(features, labels, trainer.node.SEARCH_SCALE, trainer.node.SEARCH_STEP) == 0.75
    assert seen == pytest.approx([0.1, 1.1, 2.1, 3.1]) and (model.beta, model.alpha) == (0.1, 0.1)


def test_tip_adapter_f_resumes_to_the_same_numbers(run, tmp_path, monkeypatch):
    words = ("OPTIM.MAX_EPOCH", 3, "OPTIM.NAME", "adamw")
    whole = run("TipAdapterF", tmp_path / "whole", *words)
    cls, after_epoch = TRAINER_REGISTRY.get("TipAdapterF"), TRAINER_REGISTRY.get("TipAdapterF").after_epoch

    def killed(self):
        after_epoch(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cls, "after_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            run("TipAdapterF", tmp_path / "cut", *words)
    resumed = run("TipAdapterF", tmp_path / "cut", *words)
    states = [torch.load(tmp_path / folder / "prompt_learner" / "model.pth.tar-3", weights_only=True)
              for folder in ("whole", "cut")]
    torch.testing.assert_close(states[0]["state_dict"], states[1]["state_dict"], rtol=0, atol=0)
    assert states[0]["extra"]["beta"] == states[1]["extra"]["beta"] and whole["metrics"] == resumed["metrics"]
    loaded = run("TipAdapterF", tmp_path / "eval", *words, trained=tmp_path / "cut")
    assert loaded["metrics"] == whole["metrics"]


# ---- linear probe ----
def test_a_probe_that_starts_from_text_predicts_as_zero_shot_clip(clip_model):
    probe = make_trainer("LinearProbe", clip_model, NAMES, {"INIT": "text"}, dataset="EuroSAT")
    zero_shot = make_trainer("ZeroshotCLIP", clip_model, NAMES, dataset="EuroSAT")
    torch.testing.assert_close(logits(probe), logits(zero_shot))
    assert not logits(make_trainer("LinearProbe", clip_model, NAMES, {"INIT": "zero"})).any()


# ---- all ----
@pytest.mark.parametrize("method", OPTIONS)
def test_resnet_backbones_work(method, resnet_file):
    options = {**OPTIONS[method], **({"LAYER": 1} if method == "TCP" else {})}
    trainer = make_trainer(method, load_clip(resnet_file), NAMES, options, settings={"OPTIM.LR": 0.002},
                           overrides={"few_shot_batches": lambda self, number: [batch(80)]})
    if not trainer.trains:
        trainer.fill_cache()
        assert logits(trainer).isfinite().all()
        return
    losses = [trainer.forward_backward(batch())["loss"] for _ in range(12)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("method", "options", "message"), [
    ("KgCoOp", {"W": -1.0}, "W must not be negative"),
    ("KgCoOp", {"CTX_INIT": "", "N_CTX": 0}, "KGCOOP.N_CTX must be at least 1"),
    ("ProGrad", {"T": 0.0}, "T must be positive"),
    ("ProGrad", {"N_CTX": 3, "TEMPLATE_INIT": True}, "raise it"),
    ("TCP", {"LAYER": 4}, "LAYER must be 1 to 3"),
    ("TCP", {"LAYER": 2, "N_CTX": 3}, "raise TRAINER.TCP.N_CTX"),
    ("CLIPAdapter", {"RATIO": 1.5}, "RATIO must be 0 to 1"),
    ("CLIPAdapter", {"REDUCTION": 0}, "REDUCTION 1 to 64"),
    ("DePT", {"WEIGHT": 2.0}, "WEIGHT must be 0 to 1"),
    ("LinearProbe", {"INIT": "words"}, "'words' is not known"),
    ("TipAdapter", {"AUGMENT_EPOCH": 0}, "AUGMENT_EPOCH must be at least 1"),
    ("TipAdapterF", {"SEARCH_STEP": (10,)}, "two numbers each"),
])
def test_bad_settings_are_refused_in_one_line(method, options, message, clip_model):
    with pytest.raises(InputError, match=message) as error:
        make_trainer(method, clip_model, NAMES, options)
    assert "\n" not in str(error.value)


# ---- templates of one's own ----
OWN = ["an X-ray of a {}.", "a scan of the {}"]
FROZEN = {  # where a method keeps the features of its frozen prompts
    "ZeroshotCLIP": lambda t: t.model.frozen_text_features, "CLIPAdapter": lambda t: t.model.frozen_text_features,
    "TipAdapter": lambda t: t.model.frozen_text_features, "LinearProbe": lambda t: t.model.weight,
    "KgCoOp": lambda t: t.frozen_text_features, "TCP": lambda t: t.model.frozen_text_features,
    "ProGrad": lambda t: t.frozen_text_features,
    "MetaPrompt": lambda t: t.model.frozen_text_features, "VPT": lambda t: t.model.frozen_text_features,
    "PromptSRC": lambda t: t.frozen_text_features, "ProMetaR": lambda t: t.frozen_text_features,
    "CoPrompt": lambda t: t.sentence_features, "ZeroshotCLIP2": lambda t: t.model.frozen_text_features,
}


@pytest.mark.parametrize("method", sorted(FROZEN))
def test_own_templates_are_every_method_s_frozen_prompts(method, clip_model, capsys):
    options = dict(OPTIONS.get(method, {}))
    if method in ("VPT", "PromptSRC", "ProMetaR", "CoPrompt", "MetaPrompt"):
        options.update({"VPT": {"PROMPT_DEPTH_VISION": 2}, "CoPrompt": {"PROMPT_DEPTH": 2},
                        "MetaPrompt": {"LAYERS": 2}}.get(method, {"PROMPT_DEPTH_VISION": 2, "PROMPT_DEPTH_TEXT": 2}))
    if method == "LinearProbe":
        options["INIT"] = "text"
    trainer = make_trainer(method, clip_model, NAMES, options, dataset="OxfordPets", settings={
        "DATASET.TEMPLATES": OWN})
    towers, names = trainer.towers, [name.replace("_", " ") for name in NAMES]
    expected = towers.encode_classnames(names, OWN)
    if method == "ZeroshotCLIP2":
        expected = towers.encode_classnames(names, [*IMAGENET_SELECT, *OWN])
    elif method == "CoPrompt":
        expected = torch.stack([towers.text.encode_texts([t.replace("{}", name) for name in names])
                                for t in (*IMAGENET_SELECT, *OWN)])
    elif method in ("PromptSRC", "ProMetaR"):
        expected = diverse_text_features(towers, NAMES, OWN)
    torch.testing.assert_close(FROZEN[method](trainer).detach(), expected)
    assert "changes nothing here" not in capsys.readouterr().out


PETS, TEXTURES = "OxfordPets", "DescribableTextures"
PLAIN = {PETS: "a photo of a {}, a type of pet.", TEXTURES: "{} texture."}
PUBLISHED = {  # the frozen prompt of a method for a dataset
    **dict.fromkeys(("ZeroshotCLIP", "CLIPAdapter", "TipAdapter", "LinearProbe"), PLAIN),
    "KgCoOp": {**PLAIN, TEXTURES: "a photo of a {}, a type of texture."},
    "TCP": {**PLAIN, TEXTURES: "a photo of a {}, a type of texture."},
    "ProGrad": {PETS: "a type of pet, a photo of a {}.", TEXTURES: "a texture of {}."},
    "MetaPrompt": {PETS: "a photo of a {}, a type of pet", TEXTURES: "{} texture"},
    "VPT": dict.fromkeys(PLAIN, "a photo of a {}."),
}


@pytest.mark.parametrize("dataset", [PETS, TEXTURES])
@pytest.mark.parametrize("method", PUBLISHED)
def test_frozen_prompts_are_those_published_for_the_dataset(method, dataset, clip_model):
    options = {**OPTIONS.get(method, {}), **{"LinearProbe": {"INIT": "text"}, "MetaPrompt": {"LAYERS": 2},
                                             "VPT": {"PROMPT_DEPTH_VISION": 2}}.get(method, {})}
    trainer = make_trainer(method, clip_model, NAMES, options, dataset=dataset)
    sentences = [PUBLISHED[method][dataset].replace("{}", name.replace("_", " ")) for name in NAMES]
    with torch.no_grad():
        expected = F.normalize(clip_model.encode_text(clip.tokenize(sentences)), dim=1)
    torch.testing.assert_close(FROZEN[method](trainer).detach(), expected, rtol=1e-4, atol=1e-5)


def test_own_templates_are_the_initial_words_too(clip_model):
    settings = {"DATASET.TEMPLATES": ["a {} on an X-ray.", "an X-ray of a {}."]}
    trainer = make_trainer("ProGrad", clip_model, NAMES, {"TEMPLATE_INIT": True, "N_CTX": 8}, settings=settings)
    words = trainer.towers.text.embed_words("an X-ray of a")
    torch.testing.assert_close(trainer.model.prompt_learner.ctx.detach()[-len(words):], words.cpu())
