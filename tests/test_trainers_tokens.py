"""MMRL and RPO beyond their records: which classes are scored how, names and templates, refused settings."""
import pytest
import torch

import tiny_clip
import train
from dassl.utils import InputError
from harness import make_trainer
from prompting.towers import normalize

NAMES = tiny_clip.CLASSNAMES
OPTIONS = {"MMRL": {"REP_LAYERS": [3, 4], "REP_DIM": 16, "N_REP_TOKENS": 2, "ALPHA": 0.6}, "RPO": {"K": 3}}


def pictures(classes=10):
    return tiny_clip.batch("tokens", 0, 5, classes)["img"]


def logits(trainer):
    return trainer.logits_of({"img": pictures()})


@pytest.mark.parametrize("method", ["MMRL", "RPO"])
def test_what_was_learned_on_base_classes_scores_new_ones(method, arguments, clips, tmp_path):
    words = [word for key, value in OPTIONS[method].items() for word in (f"TRAINER.{method}.{key}", value)]

    def run(part, output, *flags):
        return train.main(arguments(method, tmp_path / output, *flags, *words, "DATASET.SUBSAMPLE_CLASSES", part),
                          clips=clips)

    base = run("base", "base")
    assert not base["class_bound"]
    new, again = (run(part, f"{part} again", "--eval-only", "--model-dir", tmp_path / "base")
                  for part in ("new", "base"))
    assert 0 <= new["metrics"]["test"]["accuracy"] <= 100
    assert again["metrics"]["test"] == base["metrics"]["test"]


def test_mmrl_scores_trained_classes_with_both_features_and_others_with_one(clip_model, tmp_path):
    trained = make_trainer("MMRL", clip_model, NAMES[:5], OPTIONS["MMRL"])
    for step in range(2):
        trained.forward_backward(tiny_clip.batch("tokens", step, 8, 5))
    trained.save_model(0, str(tmp_path))

    def loaded(names, dataset="Caltech101"):
        trainer = make_trainer("MMRL", clip_model, names, OPTIONS["MMRL"], dataset=dataset)
        trainer.load_model(str(tmp_path))
        with torch.no_grad():
            return logits(trainer), *trainer.model.both_logits(pictures())

    for names, dataset, fused in ((NAMES[:5], "Caltech101", True),  # the target domain of a dg run is such a case, too
                                  (NAMES[5:], "Caltech101", False), (NAMES, "Caltech101", False),
                                  (NAMES[:5], "ImageNetV2", False)):
        found, of_class, of_tokens = loaded(names, dataset)
        assert (of_class - of_tokens).abs().max() > 1
        torch.testing.assert_close(found, 0.6 * of_class + 0.4 * of_tokens if fused else of_class, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(loaded(NAMES[:5])[0], logits(trained), rtol=1e-4, atol=1e-3)


def test_rpo_keeps_the_underscore_of_a_name_and_mmrl_does_not(clip_model):
    for method, same in (("RPO", False), ("MMRL", True)):
        model = make_trainer(method, clip_model, ["alarm_clock", "alarm clock"], OPTIONS[method]).model
        first, second = model.encode_classes().detach()
        assert torch.allclose(first, second, atol=1e-5) == same


@pytest.mark.parametrize("method", ["MMRL", "RPO"])
def test_several_templates_give_the_mean_of_their_features(method, clip_model):
    templates = ["a photo of a {}.", "a sketch of a {}."]

    def features(*templates):
        trainer = make_trainer(method, clip_model, NAMES, OPTIONS[method],
                               settings={"DATASET.TEMPLATES": list(templates)})
        return trainer.model.encode_classes().detach()

    mean = sum(normalize(features(template)) for template in templates) / 2
    torch.testing.assert_close(features(*templates), mean, rtol=0, atol=1e-5)


def test_rpo_starts_near_the_tokens_it_stands_for(clip_model):
    model = make_trainer("RPO", clip_model, NAMES, OPTIONS["RPO"]).model
    for prompt, token in ((model.text_prompt, clip_model.token_embedding.weight[49407]),
                          (model.image_prompt, clip_model.visual.class_embedding)):
        torch.testing.assert_close((prompt - token).norm(dim=1), torch.full((3,), 0.1))


@pytest.mark.parametrize("method", ["MMRL", "RPO"])
def test_a_resnet_has_no_tokens(method, arguments, resnet_file, tmp_path, one_line):
    argv = arguments(method, tmp_path / "a", backbone=resnet_file)
    assert f"{method} prompts the image tower and needs a ViT backbone" in one_line(lambda: train.main(argv))


@pytest.mark.parametrize(("method", "options", "line"), [
    ("MMRL", {"ALPHA": 1.5}, "TRAINER.MMRL.ALPHA must be 0 to 1, it is 1.5"),
    ("MMRL", {"REG_WEIGHT": -1.0}, "TRAINER.MMRL.REG_WEIGHT must not be negative"),
    ("MMRL", {"N_REP_TOKENS": 0}, "TRAINER.MMRL.N_REP_TOKENS must be at least 1"),
    ("MMRL", {"REP_DIM": 0}, "TRAINER.MMRL.REP_DIM must be at least 1"),
    ("MMRL", {"LOGIT_SCALE": 0.0}, "TRAINER.MMRL.LOGIT_SCALE must be positive"),
    ("MMRL", {"REP_LAYERS": []}, "TRAINER.MMRL.REP_LAYERS must name blocks from 1 on"),
    ("MMRL", {"REP_LAYERS": [3, 2]}, r"each once and in their order, such as \[2, 3, 4\], it is \[3, 2\]"),
    ("MMRL", {"REP_LAYERS": [4, 5]}, r"has block 5, and the towers of this backbone have 4 \(image\) and 4 \(text\)"),
    ("RPO", {"K": 0}, "TRAINER.RPO.K must be at least 1, not 0"),
    ("RPO", {"K": 68}, "TRAINER.RPO.K 68: behind the 15 tokens of 'a photo of a Boeing 737-200.' there is room for 62"),
])
def test_settings_that_are_refused(method, options, line, clip_model):
    with pytest.raises(InputError, match=line):
        make_trainer(method, clip_model, NAMES, {**OPTIONS[method], **options})
