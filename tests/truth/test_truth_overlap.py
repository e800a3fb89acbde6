"""Training images among the test images; parts, templates and class names that contradict themselves."""
import json
import os
import shutil
from pathlib import Path

import drawn
import numpy as np
import pytest
from PIL import Image

from dassl.data.overlap import RECORD
from dassl.evaluation import EVALUATOR_REGISTRY, EvaluatorBase

PHOTO = ("--source-domains", "photo", "--target-domains", "photo")
ONE = ("OPTIM.MAX_EPOCH", 1)


def rewrite_split(root, change):
    """Caltech101's split file with `change(split)` applied to it."""
    path = Path(root) / "caltech-101" / "split_zhou_Caltech101.json"
    split = json.loads(path.read_text())
    change(split)
    path.write_text(json.dumps(split))
    return root


@pytest.fixture
def caltech(tmp_path):
    """A Caltech101 of one's own, to spoil."""
    drawn.write_caltech(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def pictures(tmp_path):
    """An image_folder with train/ and test/ of two classes, three pictures each, all different."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            for i in range(3):
                drawn.draw(tmp_path / "own" / part / name / f"{part}_{i}.png", name)
    return tmp_path / "own"


@pytest.fixture
def domains(tmp_path):
    """A domain_folder of two domains with six pictures of each of two classes, all different."""
    for domain in ("ink", "oil"):
        for name in ("cat", "dog"):
            for i in range(6):
                drawn.draw(tmp_path / "domains" / domain / name / f"{domain}_{i}.png", name)
    return tmp_path / "domains"


# ---- the same files are trained on and measured on ----
@pytest.mark.parametrize(("words", "line"), [
    (PHOTO, "8 of 20 test images are training images, first "),
    (("--source-domains", "sketch", "photo", "--target-domains", "photo"), "8 of 20 test images are training images"),
    (("--source-domains", "photo", "--target-domains", "sketch", "photo"), "8 of 40 test images are training images"),
    ((*PHOTO, "DATASET.NUM_SHOTS", -1), "12 of 20 test images are training images"),
    ((*PHOTO, "--no-train"), "8 of 20 test images are training images"),
])
def test_a_domain_that_is_source_and_target(words, line, refused):
    told = refused("CoOp", *words, dataset="pacs")
    assert line in told and "/photo/" in told and "set DATASET.ALLOW_OVERLAP True" in told


def test_it_is_measured_on_where_it_is_asked_for(made):
    results, printed = made("CoOp", *PHOTO, "DATASET.ALLOW_OVERLAP", True, *ONE, dataset="pacs")
    assert results["overlap"] == {"test": 8, "val": 8, "of": 20, "by_path": 8, "val_train": 0}
    assert printed.count("Warning: 8 of 20 test images are training images, first ") == 1


def test_its_test_part_alone_is_apart(domains, made):
    words = ("--source-domains", "ink", "--target-domains", "ink", "DATASET.TARGET_PART", "test", *ONE)
    results, _ = made("CoOp", *words, dataset="domain_folder", root=domains)
    assert results["overlap"] == {"test": 0, "val": 0, "of": 4, "by_path": 0, "val_train": 0}


@pytest.mark.parametrize("method", ["TipAdapter", "TipAdapterF", "LinearProbe", "MetaPrompt"])
def test_whatever_learns_from_images(method, refused):
    words = (f"TRAINER.{method.upper()}.AUGMENT_EPOCH", 1) if method.startswith("Tip") else ()
    assert "8 of 20 test images are training images" in refused(method, *PHOTO, *words, dataset="pacs")


def test_zero_shot_has_no_training_images(made):
    results, printed = made("ZeroshotCLIP", *PHOTO, dataset="pacs")
    assert results["overlap"] is None and "Warning: " not in printed


def test_a_split_whose_test_is_its_train(caltech, refused):
    rewrite_split(caltech, lambda split: split.update(test=split["train"]))
    assert "24 of 24 test images are training images" in refused("CoOp", "DATASET.NUM_SHOTS", -1, root=caltech)


def test_one_entry_of_a_split_comes_in_two_parts(caltech, refused):
    rewrite_split(caltech, lambda split: split["test"].append(split["train"][5]))
    told = refused("CoOp", "DATASET.NUM_SHOTS", -1, root=caltech)
    assert "1 of 19 test images are training images" in told and "image_0000.png" in told


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_one_file_under_two_names(link, pictures, refused):
    for i in range(3):
        path = pictures / "test" / "dog" / f"test_{i}.png"
        path.unlink()
        link(pictures / "train" / "dog" / f"train_{i}.png", path)
    told = refused("CoOp", "DATASET.NUM_SHOTS", -1, dataset="image_folder", root=pictures)
    assert "3 of 6 test images are training images" in told and "(trained on as " in told


def test_a_test_folder_that_is_a_link_to_train(pictures, refused):
    shutil.rmtree(pictures / "test")
    (pictures / "test").symlink_to(pictures / "train")
    assert "6 of 6 test images are" in refused("CoOp", "DATASET.NUM_SHOTS", -1, dataset="image_folder", root=pictures)


def test_domains_of_ones_own(domains, refused):
    told = refused("CoOp", "--source-domains", "ink", "oil", "--target-domains", "oil", dataset="domain_folder",
                   root=domains)
    assert "4 of 12 test images are training images" in told


def test_an_imagenet_variant_is_not_trained_on(tmp_path, refused):
    """Its test images stand in for training images, so that its classes are known."""
    drawn.write_imagenet_variant(tmp_path / "data", "imagenet_r")
    told = refused("LinearProbe", "DATASET.NUM_SHOTS", -1, dataset="imagenet_r", root=tmp_path / "data")
    assert "9 of 9 test images are training images" in told


def test_a_foreign_trainer(refused):
    plugin = Path(__file__).parents[1] / "plugins" / "habits.v2.py"
    told = refused("OwnTest", "--plugin", plugin, *PHOTO, dataset="pacs")
    assert "8 of 20 test images are training images" in told


def test_a_plugin_dataset(tmp_path, drawn_root, refused):
    plugin = tmp_path / "both.py"
    plugin.write_text("""
import os
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum

@DATASET_REGISTRY.register()
class Both(DatasetBase):
    def __init__(self, cfg):
        folder = os.path.join(cfg.DATASET.ROOT, "caltech-101", "101_ObjectCategories")
        items = [Datum(os.path.join(folder, name, f"image_{i:04d}.png"), label, 0, name)
                 for label, name in enumerate(("dog", "horse")) for i in range(3)]
        super().__init__(items[:5], test=items[4:])
""")
    told = refused("CoOp", "--plugin", plugin, "DATASET.NAME", "Both", root=drawn_root)
    assert "1 of 2 test images are training images" in told


def test_a_protocol_says_it_before_it_has_a_number(caltech, clip_file, tiny_config, protocol_refused, tmp_path):
    rewrite_split(caltech, lambda split: split.update(test=split["train"]))
    told = protocol_refused("base2new", "--trainer", "CoOp", "--dataset", "caltech101", "--root", caltech, "--seeds", 1,
                            "--output", tmp_path / "out", "--backbone", clip_file, "--cfg", tiny_config)
    assert "test images are training images" in told
    assert not list((tmp_path / "out").rglob("results.json"))


# ---- other files with the same content ----
def test_copies_are_counted_and_told(pictures, made):
    for i in range(2):
        shutil.copy(pictures / "train" / "cat" / f"train_{i}.png", pictures / "test" / "cat" / f"test_{i}.png")
    results, printed = made("CoOp", "DATASET.NUM_SHOTS", -1, *ONE, dataset="image_folder", root=pictures)
    assert results["overlap"] == {"test": 2, "val": 0, "of": 6, "by_path": 0, "val_train": 0}
    assert printed.count("Warning: 2 of 6 test images have the same content as training images, first ") == 1


def test_a_copy_in_another_class_is_one(pictures, made):
    shutil.copy(pictures / "train" / "cat" / "train_0.png", pictures / "test" / "dog" / "test_0.png")
    results, _ = made("CoOp", "DATASET.NUM_SHOTS", -1, *ONE, dataset="image_folder", root=pictures)
    assert (results["overlap"]["test"], results["overlap"]["by_path"]) == (1, 0)


def test_another_picture_of_the_same_size_is_none(pictures, made):
    """Files alike in length, and in their first and last 4 KB."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            for i in range(3):
                pixels = np.zeros((64, 64, 3), np.uint8)
                pixels[32, 32] = (hash((part, name, i)) % 255, i, ord(name[0]))
                pixels[31, 31, 0] = 1 + (part == "test")
                (pictures / part / name / f"{part}_{i}.png").unlink()
                Image.fromarray(pixels).save(pictures / part / name / f"{part}_{i}.bmp")
    assert len({path.stat().st_size for path in pictures.rglob("*.bmp")}) == 1
    results, printed = made("CoOp", "DATASET.NUM_SHOTS", -1, *ONE, dataset="image_folder", root=pictures)
    assert results["overlap"]["test"] == 0 and "Warning: " not in printed


# ---- selection ----
@pytest.mark.parametrize(("part", "line"), [
    ("test", "12 of 18 test images are validation images"), ("train", "12 of 12 validation images are training images"),
])
def test_selection_on_images_that_are_in_another_part(part, line, caltech, refused):
    words = ("DATASET.NUM_SHOTS", -1, "TEST.FINAL_MODEL", "best_val")
    rewrite_split(caltech, lambda split: split.update(val=split[part][:12]))
    assert line in refused("CoOp", *words, root=caltech)


@pytest.mark.parametrize("part", ["test", "train"])
def test_a_search_leaves_such_images_alone(part, caltech, made):
    rewrite_split(caltech, lambda split: split.update(val=split[part][:12]))
    words = ("DATASET.NUM_SHOTS", -1, "TRAINER.TIPADAPTER.AUGMENT_EPOCH", 1)
    results, printed = made("TipAdapter", *words, root=caltech)
    assert results["overlap"]["val" if part == "test" else "val_train"] == 12
    assert "no validation images apart from its test and training images" in printed and "Searched on" not in printed


def test_validation_that_is_evaluated_and_trained_on(caltech, refused):
    rewrite_split(caltech, lambda split: split.update(val=split["train"][:6]))
    told = refused("CoOp", "DATASET.NUM_SHOTS", -1, "TEST.SPLIT", "val", root=caltech)
    assert "6 of 6 validation images are training images" in told


# ---- what a checkpoint was trained on ----
@pytest.fixture
def trained(made, tmp_path):
    """The folder of a run that was trained on the photos of PACS."""
    made("CoOp", "--source-domains", "photo", "--target-domains", "sketch", *ONE, dataset="pacs", out="trained")
    return tmp_path / "trained"


def test_evaluation_knows_what_the_checkpoint_was_trained_on(trained, refused):
    told = refused("CoOp", "--eval-only", "--model-dir", trained, "--source-domains", "sketch",
                   "--target-domains", "photo", *ONE, dataset="pacs")
    assert "8 of 20 test images are training images" in told and "/photo/" in told


def test_evaluation_elsewhere_knows_it_too(trained, drawn_root, tmp_path, refused):
    shutil.copytree(drawn_root / "pacs", tmp_path / "moved" / "pacs")
    told = refused("CoOp", "--eval-only", "--model-dir", trained, *PHOTO, *ONE, dataset="pacs", root=tmp_path / "moved")
    assert "8 of 20 test images are training images" in told


def test_evaluation_of_renamed_copies(trained, drawn_root, tmp_path, made):
    shutil.copytree(drawn_root / "pacs" / "images" / "photo", tmp_path / "own" / "train")
    for path in sorted((tmp_path / "own" / "train").rglob("*.png")):
        path.rename(path.with_name(f"renamed_{path.name}"))
    shutil.copytree(tmp_path / "own" / "train", tmp_path / "own" / "test")
    results, printed = made("CoOp", "--eval-only", "--model-dir", trained, *ONE, dataset="image_folder",
                            root=tmp_path / "own")
    assert results["overlap"] == {"test": 8, "val": 8, "of": 20, "by_path": 0, "val_train": 3}
    assert "Warning: 8 of 20 test images have the same content as training images" in printed


def test_other_pictures_at_the_same_place_are_none(trained, tmp_path, made):
    drawn.write_pacs(tmp_path / "other", classes=drawn.PACS_CLASSES[::-1])
    results, _ = made("CoOp", "--eval-only", "--model-dir", trained, "--source-domains", "sketch",
                      "--target-domains", "cartoon", *ONE, dataset="pacs", root=tmp_path / "other")
    assert results["overlap"]["test"] == 0


def test_a_run_that_does_not_say_what_it_was_trained_on(trained, made):
    (trained / RECORD).unlink()
    results, printed = made("CoOp", "--eval-only", "--model-dir", trained, *PHOTO, *ONE, dataset="pacs")
    assert results["overlap"] is None
    assert f"Note: {trained} does not say which images it was trained on" in printed and "unknown" in printed


@pytest.mark.parametrize("spoil", [lambda whole: whole[:40], lambda whole: b"path,size\n", lambda whole: b""])
def test_a_damaged_list_of_training_images(spoil, trained, refused):
    whole = (trained / RECORD).read_bytes()
    (trained / RECORD).write_bytes(spoil(whole))
    told = refused("CoOp", "--eval-only", "--model-dir", trained, *PHOTO, *ONE, dataset="pacs")
    assert f"{RECORD} is not a run's list of its training images" in told


@pytest.mark.parametrize("words", [("--resume", "{}"), ("MODEL.INIT_WEIGHTS", "{}/prompt_learner/model.pth.tar-1")])
def test_a_run_goes_on_from_one_that_saw_the_test_images(words, trained, refused):
    words = [word.format(trained) for word in words]
    told = refused("CoOp", "--source-domains", "sketch", "--target-domains", "photo", *words, dataset="pacs")
    assert "8 of 20 test images are training images" in told


# ---- TEST.SPLIT and what is kept of a run ----
def test_a_table_is_not_made_of_training_images(drawn_root, clip_file, tiny_config, protocol_refused, tmp_path):
    told = protocol_refused("fewshot", "--trainer", "CoOp", "--dataset", "caltech101", "--root", drawn_root, "--seeds",
                            1, "--shots", 1, "--output", tmp_path / "out", "--backbone", clip_file, "--cfg",
                            tiny_config, "TEST.SPLIT", "train")
    assert "leave out TEST.NO_TEST and TEST.SPLIT" in told


def test_training_images_are_no_domain_of_the_test_images(made):
    words = ("--source-domains", "photo", "--target-domains", "sketch", "TEST.SPLIT", "train", *ONE)
    results, _ = made("CoOp", *words, dataset="pacs")
    assert set(results["metrics"]) == {"train"} and results["domains"] == {}
    assert sum(results["classes"]["total"]) == 8
    assert results["overlap"] == {"test": 8, "val": 0, "of": 8, "by_path": 8, "val_train": 0, "part": "train"}


def test_a_test_of_ones_own_evaluates_another_part(made):
    plugin = Path(__file__).parents[1] / "plugins" / "habits.v2.py"
    results, printed = made("OwnTest", "--plugin", plugin, "TEST.SPLIT", "train", *ONE)
    assert set(results["metrics"]) == {"test"}
    assert "TEST.SPLIT asks for the train part, but OwnTest has a test() of its own that evaluated the test part" in (
        printed)


def test_a_class_without_images_has_no_recall(caltech, made):
    rewrite_split(caltech, lambda split: split.update(test=[entry for entry in split["test"] if entry[1] != 2]))
    results, _ = made("ZeroshotCLIP", "TEST.PER_CLASS_RESULT", True, "TEST.COMPUTE_CMAT", True, root=caltech)
    classes, found = results["classes"], np.array(results["confusion"])
    assert classes["recall"][2] is None and classes["f1"][2] is None and found[2].sum() == 0
    never = [label for label in range(6) if found[:, label].sum() == 0]
    assert never and all(classes["precision"][label] is None for label in never)


@pytest.mark.parametrize(("key", "word"), [
    ("SAVE_LOGITS", "has no class scores"), ("COMPUTE_CMAT", "no numbers per class"),
    ("PER_CLASS_RESULT", "no numbers per class"),
])
def test_an_evaluator_that_cannot_give_what_is_asked_for(key, word, made, tmp_path):
    @EVALUATOR_REGISTRY.register()
    class Counts(EvaluatorBase):
        def __init__(self, cfg, lab2cname=None):
            super().__init__(cfg)
            self.reset()

        def reset(self):
            self.right = self.total = 0

        def process(self, mo, gt):
            self.right, self.total = self.right + int((mo.argmax(1) == gt).sum()), self.total + len(gt)

        def evaluate(self):
            return {"accuracy": 100 * self.right / self.total}

    results, printed = made("ZeroshotCLIP", f"TEST.{key}", True, "TEST.EVALUATOR", "Counts")
    assert printed.count(f"Note: TEST.{key}") == 1 and word in printed
    assert "classes" not in results and not (tmp_path / "out" / "logits.npz").exists()


# ---- templates ----
@pytest.mark.parametrize(("templates", "line"), [
    (["a photo of a dog."], "lacks {}"),
    (["a photo of a {}.", "a photo."], "'a photo.' lacks {}"),
    (["a photo of a {name}."], "lacks {}"),
    (["a {0}."], "lacks {}"),
    (["a {} of {kind}."], "more braces than those of {}"),
    (["a photo of a {}}."], "more braces than those of {}"),
    (["{ a {}."], "more braces than those of {}"),
    (["a {{}}."], "more braces than those of {}"),
    (["a {}.", "the {}.", "a {}."], "gives the template 'a {}.' twice"),
    ([7], "7"),
    ([""], "has an empty entry"),
])
@pytest.mark.parametrize(("method", "key"), [("ZeroshotCLIP", "DATASET.TEMPLATES"),
                                         ("TipAdapter", "TRAINER.TIPADAPTER.TEMPLATES")])
def test_a_template_without_the_name(templates, line, method, key, refused):
    told = refused(method, key, repr(templates))
    assert f"{key}" in told and line in told


@pytest.mark.parametrize(("method", "words"), [
    ("CoOp", ()), ("CoCoOp", ()), ("MaPLe", ("TRAINER.MAPLE.PROMPT_DEPTH", 2)),
    ("ZeroshotCLIP2", ("TRAINER.ZEROSHOTCLIP2.TEMPLATES", "all")), ("LinearProbe", ()),
    ("TipAdapter", ("TRAINER.TIPADAPTER.TEMPLATES", "['the {}.']", "TRAINER.TIPADAPTER.AUGMENT_EPOCH", 1)),
])
def test_templates_that_act_nowhere(method, words, made):
    _, printed = made(method, "DATASET.TEMPLATES", "['an X-ray of a {}.']", *words, *ONE)
    assert f"Note: DATASET.TEMPLATES changes nothing here: {method} has no frozen prompts" in printed


def test_templates_that_a_foreign_trainer_does_not_read(made):
    plugin = Path(__file__).parents[1] / "plugins" / "habits.v2.py"
    _, printed = made("OwnTest", "--plugin", plugin, "DATASET.TEMPLATES", "['an X-ray of a {}.']", *ONE)
    assert "without effect in this run: DATASET.TEMPLATES (the trainer makes its prompts without it)" in printed


def test_words_to_start_from_that_stand_behind_the_name(refused):
    told = refused("ProGrad", "TRAINER.PROGRAD.TEMPLATE_INIT", True, "DATASET.TEMPLATES", "['a {} on an X-ray.']")
    assert "none of DATASET.TEMPLATES (a {} on an X-ray.) has all its words there" in told


# ---- names ----
@pytest.mark.parametrize(("text", "line"), [
    ("hors = stallion", "Caltech101 has no class or folder 'hors' (did you mean 'horse'?)"),
    ("horse = stallion\nhorse = mare", "line 2: 'horse' is given a name twice, 'stallion' and 'mare'"),
    ("horse =", "line 1: 'horse' has an empty new name"),
    ("= stallion", "has an empty class or folder"),
    ("horse stallion", "line 1: 'horse stallion' is no \"class or folder = new name\""),
    ("horse = hound\ndog = hound", "one name, 'hound'"),
    ("horse = Alarm Clock", "one name"),
    ("", "gives no names"),
    ('{"horse": "stallion"', "is not valid JSON"),
    ('{"horse": "stallion", "horse": "mare"}', "'horse' is given a name twice"),
    ('{"horse": 7}', "the new name of 'horse' is 7, not a text"),
    ("horse = stallion".encode("utf-16"), "as a text in UTF-8"),
    (None, "No such file"),
])
def test_names_that_name_nothing(text, line, refused, tmp_path):
    path = tmp_path / "names.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    told = refused("ZeroshotCLIP", "DATASET.CLASSNAMES", path)
    assert line in told and "names.txt" in told


@pytest.mark.parametrize(("text", "line"), [
    ("missile = rocket", "'missile' stands for 2 classes of ImageNetSketch; name them by their folders"),
    ("n01440764 = fish\ntench = carp", "names the class 'tench' twice, 'fish' and 'carp'"),
])
def test_names_of_two_classes(text, line, refused, tmp_path):
    drawn.write_imagenet_variant(tmp_path / "data", "imagenet_sketch")
    (tmp_path / "names.txt").write_text(text)
    told = refused("ZeroshotCLIP", "DATASET.CLASSNAMES", tmp_path / "names.txt", dataset="imagenet_sketch",
                   root=tmp_path / "data")
    assert line in told


def test_one_of_two_classes_of_a_name(made, tmp_path):
    drawn.write_imagenet_variant(tmp_path / "data", "imagenet_sketch")
    (tmp_path / "names.txt").write_text("\ufeffn03773504 = cruise missile\n", encoding="utf-8")
    results, _ = made("ZeroshotCLIP", "DATASET.CLASSNAMES", tmp_path / "names.txt", dataset="imagenet_sketch",
                      root=tmp_path / "data")
    assert results["classes"]["name"] == ["tench", "goldfish", "cruise missile", "missile"]


@pytest.mark.parametrize(("half", "names"), [("base", ["stallion", "dog", "alarm_clock"]),
                                         ("new", ["cabin", "guitar", "water_lilly"])])
def test_names_of_base_and_new_classes_are_in_one_file(half, names, made, tmp_path):
    (tmp_path / "names.txt").write_text("horse = stallion\nhouse = cabin\n")
    results, _ = made("ZeroshotCLIP", "DATASET.CLASSNAMES", tmp_path / "names.txt", "DATASET.SUBSAMPLE_CLASSES", half)
    assert results["classes"]["name"] == names


def test_a_typing_error_is_found_in_either_half(refused, tmp_path):
    (tmp_path / "names.txt").write_text("horse = stallion\nhuose = cabin\n")
    told = refused("ZeroshotCLIP", "DATASET.CLASSNAMES", tmp_path / "names.txt", "DATASET.SUBSAMPLE_CLASSES", "base")
    assert "no class or folder 'huose' (did you mean 'house'?)" in told


@pytest.mark.parametrize(("dataset", "text", "names"), [
    ("image_folder", "cat = tabby", ["tabby", "dog"]),
    ("domain_folder", '{"dog": "hound", "cat": "tabby"}', ["tabby", "hound"]),
    ("eurosat", "SeaLake = open water", None),
    ("imagenet_r", "n03773504 = cruise missile", ["tench", "goldfish", "cruise missile"]),
])
def test_folders_are_known_by_their_names(dataset, text, names, pictures, domains, made, tmp_path):
    """Also where the published class name is another than the folder's."""
    (tmp_path / "names").write_text(text)
    root = {"image_folder": pictures, "domain_folder": tmp_path / "domains"}.get(dataset, tmp_path / "data")
    if dataset == "eurosat":
        drawn.write_split_dataset(root, dataset)
    elif dataset == "imagenet_r":
        drawn.write_imagenet_variant(root, dataset)
    words = ("--source-domains", "ink", "--target-domains", "oil") if dataset == "domain_folder" else ()
    results, _ = made("ZeroshotCLIP", *words, "DATASET.NUM_SHOTS", -1, "DATASET.CLASSNAMES", tmp_path / "names",
                      dataset=dataset, root=root)
    if names is None:
        assert results["classes"]["name"].count("open water") == 1 and len(results["classes"]["name"]) == 4
    else:
        assert results["classes"]["name"] == names


def test_a_pipe_among_the_pictures(refused, tmp_path):
    """It is told, not waited for: nothing will ever be written into it."""
    drawn.write_caltech(tmp_path / "data")
    [path] = (tmp_path / "data").rglob("dog/image_0001.png")
    path.unlink()
    os.mkfifo(path)
    assert f"{path} (it is not a regular file)" in refused("CoOp", "DATASET.NUM_SHOTS", -1, root=tmp_path / "data")
