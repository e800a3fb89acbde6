"""What a run keeps beside its accuracy, and what can be done with it without its dataset."""
import csv
import gzip
import json
import shutil
from pathlib import Path

import drawn
import numpy as np
import pytest
import torch
from PIL import Image

import train
from dassl.data.datasets import Datum, dataset_digest, relative_path
from dassl.utils import InputError
from prompting.openai import tokenizer
from tools import interpret_prompt, predict
from tools.predict import load_run
from tools.results import loaded_run

BOUND = str(Path(__file__).parent / "plugins" / "bound.py")


def rows_of(folder):
    with gzip.open(Path(folder) / "predictions.csv.gz", "rt", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_config, clip_file, clips):
    """(folder of runs on the base classes, a function that makes more): the dataset is gone afterwards."""
    place = tmp_path_factory.mktemp("world")
    drawn.write_caltech(place / "data")

    def run(trainer, name, *words):
        root = Path(__file__).resolve().parents[1]
        return train.main(["--root", str(place / "data"), "--seed", "1", "--trainer", trainer, "--backbone", clip_file,
                           "--dataset-config-file", str(root / "configs" / "datasets" / "caltech101.yaml"),
                           "--config-file", tiny_config, "--output-dir", str(place / name), *words], clips=clips)

    base = ("DATASET.SUBSAMPLE_CLASSES", "base")
    results = {
        "CoOp": run("CoOp", "CoOp", *base), "MetaPrompt": run("MetaPrompt", "MetaPrompt", *base),
        "ZeroshotCLIP": run("ZeroshotCLIP", "ZeroshotCLIP", *base),
        "words": run("CoOp", "words", *base, "TRAINER.COOP.CTX_INIT", "a photo of a", "OPTIM.LR", "0.0001"),
        "CSC": run("CoOp", "CSC", *base, "TRAINER.COOP.CSC", "True"),
    }
    pictures = place / "pictures"
    shutil.move(place / "data" / "caltech-101" / "101_ObjectCategories", pictures)
    shutil.rmtree(place / "data")
    return place, results


@pytest.fixture(autouse=True)
def one_clip(monkeypatch, clip_model):
    monkeypatch.setattr("training.towers.load_clip", lambda name: clip_model)
    monkeypatch.setattr(interpret_prompt, "load_clip", lambda name: clip_model)


# ---- results ----
def test_what_a_run_keeps(world, clip_model):
    place, results = world
    found = results["CoOp"]
    rows = rows_of(place / "CoOp")
    assert list(rows[0]) == ["path", "label", "prediction", "confidence"]
    assert len(rows) == 9 and all((place / "pictures" / Path(row["path"]).relative_to(
        "caltech-101/101_ObjectCategories")).is_file() for row in rows)
    assert 100 * np.mean([row["label"] == row["prediction"] for row in rows]) == pytest.approx(
        found["metrics"]["test"]["accuracy"])
    assert all(1 / 3 - 1e-6 <= float(row["confidence"]) <= 1 for row in rows)
    classes = found["classes"]
    assert classes["name"] == drawn.CLASSES[:3] and classes["total"] == [3, 3, 3]
    for label, accuracy in enumerate(classes["accuracy"]):
        own = [row["prediction"] == row["label"] for row in rows if int(row["label"]) == label]
        assert accuracy == pytest.approx(100 * np.mean(own))
    assert found["trained_parameters"] == 3 * clip_model.ln_final.weight.shape[0]
    assert results["ZeroshotCLIP"]["trained_parameters"] == 0
    assert found["peak_memory"]["of"] == "process" and 5e7 < found["peak_memory"]["bytes"] < 1e11
    assert {"python", "torch", "torchvision", "numpy", "Pillow"} <= set(found["versions"])
    assert found["versions"]["torch"] == torch.__version__ and found["device"] == "cpu" and found["device_name"]
    assert found["domains"] == {}


def test_methods_on_one_seed_have_one_digest(world):
    _, results = world
    digests = {name: found["dataset_digest"] for name, found in results.items()}
    assert digests["CoOp"] == digests["MetaPrompt"] == digests["ZeroshotCLIP"]
    assert set(digests["CoOp"]) == {"train", "val", "test"} and len(set(digests["CoOp"].values())) == 3


def test_the_digest_is_of_the_lists_wherever_they_lie():
    def listed(root, label=0, name="cat", order=1):
        items = [Datum(f"{root}/x/{i}.png", label, 0, name) for i in range(3)][::order]
        return dataset_digest(type("D", (), {"train_x": items, "val": None, "test": items[:2]}), root)

    first = listed("/here")
    assert first == listed("/some where/else") and first["val"] is None
    for other in (listed("/here", label=1), listed("/here", name="dog"), listed("/here", order=-1)):
        assert other["train"] != first["train"]
    assert relative_path("/data/a/b.png", "/data") == relative_path("/data/a/b.png", "/data/") == "a/b.png"
    assert relative_path("/elsewhere/b.png", "/data") == "/elsewhere/b.png"


def test_domains_are_told_apart(arguments, clips, tmp_path):
    words = arguments("ZeroshotCLIP", tmp_path / "two", "--source-domains", "photo", "--target-domains", "sketch",
                      "cartoon", dataset="pacs")
    found = train.main(words, clips=clips)
    by_domain = {"sketch": [], "cartoon": []}
    for row in rows_of(tmp_path / "two"):
        by_domain[row["path"].split("/")[2]].append(row["label"] == row["prediction"])
    assert found["domains"] == {name: pytest.approx(100 * np.mean(hits)) for name, hits in by_domain.items()}
    words = arguments("ZeroshotCLIP", tmp_path / "one", "--source-domains", "photo", "--target-domains", "sketch",
                      dataset="pacs")
    assert train.main(words, clips=clips)["domains"] == {"sketch": pytest.approx(100 * np.mean(by_domain["sketch"]))}


def test_no_predictions_of_another_part(arguments, clips, tmp_path):
    found = train.main(arguments("ZeroshotCLIP", tmp_path, "TEST.SPLIT", "val"), clips=clips)
    assert not (tmp_path / "predictions.csv.gz").exists()
    assert found["classes"]["total"] == [2] * 6  # of the part that TEST.SPLIT names


# ---- prediction ----
@pytest.mark.parametrize("method", ["CoOp", "MetaPrompt", "ZeroshotCLIP", "CSC"])
def test_a_run_predicts_as_it_was_tested_without_its_dataset(method, world):
    place, _ = world
    rows = rows_of(place / method)
    files = [str(place / "pictures" / Path(row["path"]).relative_to("caltech-101/101_ObjectCategories"))
             for row in rows]
    run = load_run(place / method)
    assert run.classes == drawn.CLASSES[:3]
    for row, file, prediction in zip(rows, files, run.predict(files)):
        assert prediction.path == file and len(prediction.top) == 3
        assert prediction.top[0][0] == drawn.CLASSES[int(row["prediction"])]
        assert prediction.top[0][1] == pytest.approx(float(row["confidence"]), abs=1e-4)
        assert sum(p for _, p in prediction.top) == pytest.approx(1)


def test_any_classes(world):
    place, _ = world
    picture = Image.open(next((place / "pictures" / "dog").iterdir()))
    run = load_run(place / "MetaPrompt")
    [prediction] = run.predict([picture], classes=["an old shoe", "dog", "cat", "house", "sun", "moon"], top=4)
    assert len(prediction.top) == 4 and prediction.path == ""
    assert {name for name, _ in prediction.top} < {"an old shoe", "dog", "cat", "house", "sun", "moon"}
    probabilities = [p for _, p in prediction.top]
    assert probabilities == sorted(probabilities, reverse=True)
    [two] = run.predict([picture], classes=["dog", "cat"])
    assert sum(p for _, p in two.top) == pytest.approx(1)
    for classes, line in ((["dog"], "at least two"), (["dog", "cat", "dog"], "'dog' is given more than once")):
        with pytest.raises(InputError, match=line):
            run.predict([picture], classes=classes)


def test_a_class_bound_method_refuses_other_classes(world):
    place, _ = world
    picture = str(next((place / "pictures" / "dog").iterdir()))
    run = load_run(place / "CSC")
    assert run.predict([picture], classes=drawn.CLASSES[:3])[0].top
    with pytest.raises(InputError, match=r"CoOp learned belongs to its 3 training classes \(horse, dog"):
        run.predict([picture], classes=["cat", "dog", "cow"])


def test_a_method_made_of_its_images_reads_them_again(arguments, clips, tmp_path, capsys):
    words = arguments("MadeOfImages", tmp_path / "run", "--plugin", BOUND, "DATASET.SUBSAMPLE_CLASSES", "base")
    train.main(words, clips=clips)
    rows = rows_of(tmp_path / "run")
    root = Path(words[words.index("--root") + 1])
    run = load_run(tmp_path / "run", plugins=[BOUND], clips=clips)
    predictions = run.predict([str(root / row["path"]) for row in rows])
    assert [p.top[0][0] for p in predictions] == [run.classes[int(row["prediction"])] for row in rows]
    assert "builds its model from the images" in capsys.readouterr().err
    with pytest.raises(InputError, match="training classes"):
        run.predict([str(root / rows[0]["path"])], classes=["a", "b"])


@pytest.fixture
def album(tmp_path):
    """A folder of odd pictures, one file that claims to be one and one that does not."""
    folder = tmp_path / "my album" / "größe"
    folder.mkdir(parents=True)
    pixels = np.random.RandomState(0).randint(0, 256, (40, 50, 4)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "alpha.PNG")
    Image.fromarray(pixels).convert("CMYK").save(folder / "four inks.JPEG")
    Image.fromarray(pixels[..., 0]).save(folder / "grey.jpg")
    (folder / "broken.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("nothing")
    (folder / ".hidden.jpg").write_text("nothing")
    return tmp_path / "my album"


def test_bad_files_are_named_and_the_others_predicted(world, album, capsys):
    place, _ = world
    words = ["--model-dir", str(place / "CoOp"), str(album), "--classes", "dog, cat,alarm clock"]
    assert train.command_line(lambda: predict.main(words)) == 2
    said = capsys.readouterr()
    assert [name for name in ("alpha.PNG", "four inks.JPEG", "grey.jpg") if name not in said.out] == []
    assert "broken.jpg" not in said.out and "hidden" not in said.out + said.err
    lines = said.err.splitlines()
    assert len(lines) == 4 and "notes.txt" in lines[0] and "is not one of OpenAI's" in lines[1]
    assert "cannot decode" in lines[2] and "broken.jpg" in lines[2]
    assert lines[3].startswith("error: 1 of 4 files") and said.out.count("alarm clock") == 3
    (album / "größe" / "broken.jpg").unlink()
    assert train.command_line(lambda: predict.main([*words, "--json", "--top", "2"])) == 0
    found = json.loads(capsys.readouterr().out)
    assert [len(entry["top"]) for entry in found] == [2, 2, 2] and "größe" in found[0]["path"]
    assert set(found[0]["top"][0]) == {"class", "probability"}


def test_a_table_is_as_wide_as_its_files_and_classes(world, capsys):
    place, _ = world
    files = sorted(map(str, (place / "pictures").glob("*/*")))[:40]
    capsys.readouterr()
    predict.main(["--model-dir", str(place / "CoOp"), *files, "--classes", "dog,a very old alarm clock", "--top", "2"])
    head, line, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["image", "class", "probability"] and len(rows) == 2 * len(files)
    assert {len(row) for row in rows} == {len(head)} == {len(line)}
    assert [row.split()[0] for row in rows[::2]] == files and all(row.startswith(" ") for row in rows[1::2])


@pytest.mark.parametrize(("words", "part"), [
    (["--model-dir", "{place}/nowhere", "{picture}"], "no config.yaml"),
    (["--model-dir", "{place}/CSC", "{picture}", "--classes", "a,b"], "training classes"),
    (["--model-dir", "{place}/CoOp", "{place}/nothing.jpg"], "nothing.jpg"),
    (["--model-dir", "{place}/CoOp", "{place}/empty"], "no image in"),
    (["--model-dir", "{place}/CoOp", "{picture}", "--load-epoch", "9"], "model.pth.tar-9"),
    (["--model-dir", "{place}/CoOp", "{picture}", "--top", "0"], "--top"),
])
def test_what_cannot_be_predicted(words, part, world, capsys):
    place, _ = world
    (place / "empty").mkdir(exist_ok=True)
    picture = next((place / "pictures" / "dog").iterdir())
    words = [word.format(place=place, picture=picture) for word in words]
    assert train.command_line(lambda: predict.main(words)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and part in line, line


# ---- interpretation ----
def test_words_near_a_context_that_started_from_them(world, capsys):
    place, _ = world
    found = interpret_prompt.main([str(place / "words"), "--top", "2"])
    assert [(group, number) for group, number, _ in found] == [("", 1), ("", 2), ("", 3), ("", 4)]
    assert [words[0][0] for *_, words in found] == ["a", "photo", "of", "a"]
    assert all(0 < words[0][1] < 0.1 < words[1][1] for *_, words in found)
    assert "photo (0.0" in capsys.readouterr().out


def test_distances_are_those_of_all_words(clip_model):
    embeddings = clip_model.token_embedding.weight.float()
    vector = torch.randn(1, embeddings.shape[1], generator=torch.Generator().manual_seed(0)) * 0.02
    [[(word, distance), *_]] = interpret_prompt.nearest_words(vector, embeddings, 2)
    known = (embeddings - vector).norm(dim=1)
    assert distance == pytest.approx(known.min().item(), rel=1e-4)
    assert word == interpret_prompt.word_of(known.argmin().item())
    assert interpret_prompt.word_of(tokenizer.encode("photo")[0]) == "photo"


def test_deep_prompts_layer_by_layer_and_class_contexts_class_by_class(world, capsys):
    place, _ = world
    found = interpret_prompt.main([str(place / "MetaPrompt")])
    assert [group for group, *_ in found] == [f"layer {layer}" for layer in range(4) for _ in range(2)]
    assert "deeper layers" in capsys.readouterr().out
    found = interpret_prompt.main([str(place / "CSC"), "--load-epoch", "1"])
    assert [group for group, *_ in found] == [name for name in drawn.CLASSES[:3] for _ in range(3)]


def test_several_prompts_per_class_are_no_layers(arguments, clips, tmp_path, capsys):
    train.main(arguments("PLOT", tmp_path / "run", "TRAINER.PLOT.N", 2, "TRAINER.PLOT.N_CTX", 3), clips=clips)
    capsys.readouterr()
    found = interpret_prompt.main([str(tmp_path / "run")])
    assert [group for group, *_ in found] == [f"prompt {number}" for number in (1, 2) for _ in range(3)]
    assert "layer" not in capsys.readouterr().out


def test_methods_without_text_context_say_so(world, arguments, clips, tmp_path):
    place, _ = world
    with pytest.raises(InputError, match="holds no learned prompts"):
        interpret_prompt.main([str(place / "ZeroshotCLIP")])
    train.main(arguments("LinearOnly", tmp_path / "run", "--plugin", BOUND), clips=clips)
    with pytest.raises(InputError, match="LinearOnly learns no text context, it learns weights"):
        interpret_prompt.main([str(tmp_path / "run"), "--plugin", BOUND])
    with pytest.raises(InputError, match="no checkpoint at"):
        interpret_prompt.main([str(place / "CoOp"), "--load-epoch", "7"])


def test_a_run_folder_or_a_backbone_that_begins_as_a_flag(tmp_path, tiny_config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-run").mkdir()
    (tmp_path / "-run" / "config.yaml").write_text("TRAINER: {NAME: CoOp}\n")
    cfg = loaded_run.run_config("-run", "-clip.pt")
    assert (cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME, cfg.VERBOSE) == ("CoOp", "-clip.pt", False)
