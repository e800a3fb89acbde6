"""Views of test images (`test_views`): the same in an evaluation and in a prediction, wherever and whenever they are
made; and nothing of a training is disturbed."""
import json
import random
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from dassl.config import get_cfg_default
from dassl.data import DatasetWrapper
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import Datum
from dassl.data.views import Views, build_views, content_of
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError, set_random_seed
from tools import predict
from tools.predict import load_run
from tools.results import loaded_run

PLUGIN = '''
"""The mean of the logits of an image's views."""
import torch
from dassl.data import DataManager, DatasetWrapper
from dassl.engine import TRAINER_REGISTRY
from prompting.model import Prompt, PromptedCLIP
from training import PromptTrainer


class Moved(PromptedCLIP):
    def __init__(self, towers, classnames):
        super().__init__(towers)
        self.text = towers.frozen_text(classnames, ["a photo of a {}."])
        self.move = Prompt(torch.zeros(towers.embed_dim))

    def encode_classes(self):
        return self.text + self.move.ctx


class Shown(PromptTrainer):
    """Notes what it is shown."""

    shown, batches = {}, []

    def build_model(self, towers, classnames):
        return Moved(towers, classnames)

    def predict(self, batch):
        assert "label" not in batch or len(batch["label"]) == len(batch["img"])
        type(self).batches.append(len(batch["img"]))
        views = batch.get("views", batch["img"][:, None])
        assert views.shape == (len(batch["img"]), self.test_views or 1, 3, 32, 32)
        for path, image, of_image in zip(batch["impath"], batch["img"], views):
            type(self).shown[path] = (image.cpu().clone(), of_image.cpu().clone())
        return self.model_inference(views.flatten(0, 1)).unflatten(0, views.shape[:2]).mean(1)


@TRAINER_REGISTRY.register()
class Averaged(Shown):
    test_views = 5
    shown, batches = {}, []


@TRAINER_REGISTRY.register()
class Single(Shown):
    shown, batches = {}, []


@TRAINER_REGISTRY.register()
class Together(Averaged):
    trains, transductive = False, True
    shown, batches = {}, []


class Counting(Moved):
    def __init__(self, towers, classnames):
        super().__init__(towers, classnames)
        self.register_buffer("seen", torch.ones(()), persistent=False)


@TRAINER_REGISTRY.register()
class Surer(Averaged):
    """The more images it has seen, the surer it is."""

    trains, stateful = False, True
    shown, batches = {}, []

    def build_model(self, towers, classnames):
        return Counting(towers, classnames).requires_grad_(False)

    def predict(self, batch):
        self.model.seen += 0.1
        return super().predict(batch) * self.model.seen


class Bare:
    """A dataset_wrapper of one's own, without views."""

    def __init__(self, cfg, data_source, transform=None, is_train=False):
        self.inner = DatasetWrapper(cfg, data_source, transform, is_train)

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        return {**self.inner[index], "bare": True}


class Named(DatasetWrapper):
    def __getitem__(self, index):
        return {**super().__getitem__(index), "named": True}


class Wrapped(Averaged):
    def build_data_loader(self):
        self.take(self.build_data_manager(dataset_wrapper=self.wrapper))

    def take(self, dm):
        self.train_loader_x, self.train_loader_u = dm.train_loader_x, None
        self.val_loader, self.test_loader, self.dm = dm.val_loader, dm.test_loader, dm
        self.num_classes, self.num_source_domains, self.lab2cname = dm.num_classes, 0, dm.lab2cname

    def predict(self, batch):
        assert self.wrapper.__name__.lower() in batch
        return super().predict(batch)


@TRAINER_REGISTRY.register()
class WithBare(Wrapped):
    wrapper = Bare


@TRAINER_REGISTRY.register()
class BareWithoutViews(Wrapped):
    wrapper, test_views = Bare, 0


@TRAINER_REGISTRY.register()
class WithNamed(Wrapped):
    wrapper = Named
    shown, batches = {}, []


@TRAINER_REGISTRY.register()
class OwnManager(Wrapped):
    def build_data_loader(self):
        self.take(DataManager(self.cfg))


@TRAINER_REGISTRY.register()
class TransformOfOne(Averaged):
    """Views of its own, among them none of one size."""

    @classmethod
    def view_transform(cls, cfg):
        return lambda picture: torch.zeros(3, 8, torch.randint(8, 99, ()).item())


@TRAINER_REGISTRY.register()
class NoNumber(Averaged):
    test_views = 1.5


@TRAINER_REGISTRY.register()
class Fewer(Averaged):
    test_views = 3
    shown, batches = {}, []
'''


@pytest.fixture
def method(tmp_path, arguments, clips):
    """(name, folder, *words) -> (results, {name of a picture's file: (img, views)} that it was shown)"""
    file = tmp_path / "averaged.py"
    file.write_text(PLUGIN)

    def run(name, folder, *words, **more):
        train.discover([str(file)])
        seen = TRAINER_REGISTRY.get(name).shown
        seen.clear()
        TRAINER_REGISTRY.get(name).batches.clear()
        words = arguments(name, tmp_path / folder, "--plugin", str(file), "TEST.SAVE_LOGITS", "True", *words, **more)
        results = train.main(words, clips=clips)
        return results, dict(seen)

    run.file = str(file)
    return run


def logits_of(folder):
    with np.load(Path(folder) / "logits.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def same(first, second):
    """Whether two {path: (img, views)} are of the same pictures, bit by bit."""
    return first.keys() == second.keys() and all(
        torch.equal(a, b) for path in first for a, b in zip(first[path], second[path], strict=True))


# ---- evaluation and prediction ----
def test_a_prediction_has_the_views_and_probabilities_of_the_evaluation(method, tmp_path, clips, capsys, monkeypatch):
    _, evaluated = method("Averaged", "run")
    assert len(evaluated) == 18
    image, views = next(iter(evaluated.values()))
    assert views.shape == (5, 3, 32, 32) and len({view.numpy().tobytes() for view in views}) == 5
    assert not any(torch.equal(view, image) for view in views)
    probabilities = dict(zip(evaluated, torch.tensor(logits_of(tmp_path / "run")["logits"]).softmax(1).tolist()))
    run = load_run(tmp_path / "run", clips=clips)
    cls, files = TRAINER_REGISTRY.get("Averaged"), sorted(evaluated)  # in another order

    def found(predictions):
        return [sorted(p for _, p in prediction.top) for prediction in predictions]

    wanted = [pytest.approx(sorted(probabilities[file]), abs=1e-6) for file in files]
    cls.shown.clear()
    assert found(run.predict(files, top=6)) == wanted
    assert same(cls.shown, evaluated)
    monkeypatch.setattr(loaded_run, "MOST_VIEWS", 3 * 5 * 3 * 32 * 32 * 4 + 1)  # of three pictures
    cls.shown.clear()
    cls.batches.clear()
    assert found(run.predict([Image.open(file) for file in files], top=6, files=files)) == wanted
    assert same(cls.shown, evaluated) and cls.batches == [3] * 6
    monkeypatch.setattr(loaded_run, "MOST_VIEWS", 1)
    cls.batches.clear()
    capsys.readouterr()
    predict.main(["--model-dir", str(tmp_path / "run"), "--plugin", method.file, "--json", "--top", "6", *files[:2]])
    told = capsys.readouterr()
    assert cls.batches == [1, 1] and "depends on the pictures" not in told.err
    assert [sorted(entry["probability"] for entry in picture["top"]) for picture in json.loads(told.out)] == [
        pytest.approx(sorted(probabilities[file]), abs=1e-4) for file in files[:2]]


def test_workers_order_and_batches_change_nothing(method, tmp_path):
    _, first = method("Averaged", "one")
    _, workers = method("Averaged", "two", "DATALOADER.NUM_WORKERS", "2")
    assert same(first, workers)
    assert np.array_equal(logits_of(tmp_path / "one")["logits"], logits_of(tmp_path / "two")["logits"])
    _, shuffled = method("Averaged", "three", "DATALOADER.TEST.SAMPLER", "RandomSampler",
                         "DATALOADER.TEST.BATCH_SIZE", "7")
    assert list(shuffled) != list(first) and same(first, shuffled)


def test_a_copy_elsewhere_has_the_same_views_and_another_seed_others(method, tmp_path, clips, drawn_root):
    _, first = method("Averaged", "one")
    shutil.copytree(drawn_root / "caltech-101", tmp_path / "moved" / "caltech-101")
    _, moved = method("Averaged", "two", root=tmp_path / "moved")
    assert same({path.removeprefix(str(drawn_root)): seen for path, seen in first.items()},
                {path.removeprefix(str(tmp_path / "moved")): seen for path, seen in moved.items()})
    run, cls, path = load_run(tmp_path / "one", clips=clips), TRAINER_REGISTRY.get("Averaged"), next(iter(first))
    copy = str(tmp_path / "of the same pixels.bmp")
    Image.open(path).save(copy)
    run.predict([copy, path])
    assert torch.equal(cls.shown[copy][1], first[path][1])
    _, other = method("Averaged", "three", seed=2)
    assert other.keys() == first.keys() and all(torch.equal(other[file][0], first[file][0])
                                                and not torch.equal(other[file][1], first[file][1]) for file in first)


def test_view_k_is_the_same_however_many_there_are(method):
    _, five = method("Averaged", "five")
    _, three = method("Fewer", "three")
    assert all(torch.equal(views, five[path][1][:3]) for path, (_, views) in three.items())


def test_views_are_of_the_picture_that_is_turned_upright(method, tmp_path, clips):
    _, first = method("Averaged", "run")
    path = next(iter(first))
    exif = Image.Exif()
    exif[274] = 3
    stored = str(tmp_path / "upside down.png")
    Image.open(path).transpose(Image.Transpose.ROTATE_180).save(stored, exif=exif)
    run, cls = load_run(tmp_path / "run", clips=clips), TRAINER_REGISTRY.get("Averaged")
    run.predict([stored])
    assert torch.equal(cls.shown[stored][1], first[path][1])
    load_run(tmp_path / "run", clips=clips, exif=False).predict([stored])
    assert not torch.equal(cls.shown[stored][1], first[path][1])


def test_all_parts_have_views_and_a_training_is_not_disturbed(method, tmp_path, clips):
    words = ("TEST.FINAL_MODEL", "best_val", "DATALOADER.NUM_WORKERS", "2")  # validated after each epoch
    with_views, seen = method("Averaged", "with", *words)
    without, _ = method("Single", "without", *words)
    assert len(seen) == 18 + 12  # test and validation
    assert with_views["budget"] == without["budget"]
    states = [torch.load(tmp_path / folder / "prompt_learner" / "model.pth.tar-2", weights_only=True)["state_dict"]
              for folder in ("with", "without")]
    assert states[0].keys() == states[1].keys() and all(torch.equal(states[0][name], states[1][name])
                                                        for name in states[0])
    assert any(tensor.abs().max() > 0 for tensor in states[0].values())
    _, trained_on = method("Averaged", "train", "--eval-only", "--model-dir", str(tmp_path / "with"),
                           "TEST.SPLIT", "train")
    assert len(trained_on) == 12 and not set(trained_on) & set(seen)


def test_a_transductive_method_keeps_its_batch_and_the_user_is_told(method, tmp_path, capsys, monkeypatch):
    _, seen = method("Together", "run")
    monkeypatch.setattr(loaded_run, "MOST_VIEWS", 1)
    cls = TRAINER_REGISTRY.get("Together")
    cls.batches.clear()
    predict.main(["--model-dir", str(tmp_path / "run"), "--plugin", method.file, *seen])
    assert cls.batches == [18]
    assert "Note: what Together answers for a picture depends on the pictures that are given with it, 32 at a time" \
        in capsys.readouterr().err


def test_the_user_is_told_that_the_order_of_pictures_matters(method, tmp_path, capsys):
    _, seen = method("Surer", "run")
    predict.main(["--model-dir", str(tmp_path / "run"), "--plugin", method.file, *list(seen)[:2]])
    assert "Note: what Surer answers for a picture depends on the pictures before it" in capsys.readouterr().err


def test_what_a_method_learns_lasts_for_a_stream_and_no_longer(method, tmp_path, clips, monkeypatch):
    _, seen = method("Surer", "run")
    wanted = torch.tensor(logits_of(tmp_path / "run")["logits"]).softmax(1).sort(descending=True)[0]
    monkeypatch.setattr(loaded_run, "MOST_VIEWS", 7 * 5 * 3 * 32 * 32 * 4)  # of seven pictures
    run, files = load_run(tmp_path / "run", clips=clips), list(seen)

    def found(**more):
        return torch.tensor([[p for _, p in prediction.top] for prediction in run.predict(files, top=6, **more)])

    first = found()
    torch.testing.assert_close(first, wanted)
    stream = run.predict_stream(files)
    next(stream)
    stream.close()  # one that is not asked for the rest
    assert torch.equal(found(), first)
    stream = run.predict_stream(files, top=6)
    begun = next(stream)
    assert torch.equal(found(), first)  # another one beside it
    both = [begun, *stream]
    assert torch.equal(torch.tensor([[p for _, p in prediction.top] for prediction in both]), first)
    torch.testing.assert_close(found(batch_size=1), first)
    assert (torch.tensor([run.predict([file], top=6)[0].top[0][1] for file in files[5:]]) < first[5:, 0]).all()


# ---- the views themselves ----
class Slow:
    """Draws from all three generators, slowly, so that another thread would come between."""

    def __call__(self, picture):
        drawn = []
        for _ in range(3):
            drawn += [random.random(), np.random.rand(), torch.rand(()).item()]
            time.sleep(0.0005)
        return torch.tensor(drawn).view(3, 3, 1)


def pictures(number):
    rng = np.random.RandomState(0)
    return [Image.fromarray(rng.randint(0, 256, (9, 7, 3)).astype(np.uint8)) for _ in range(number)]


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_threads_do_not_mix_their_draws_and_the_generators_stay_as_they_were():
    views, of = Views(4, Slow(), seed=3, method="Mine"), pictures(12)
    alone = [views(picture) for picture in of]
    set_random_seed(5)
    before = states()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            runs = [list(pool.map(views, of)) for _ in range(2)]
            makers = [Views(4, Slow(), seed=3, method="Mine") for _ in of]  # several runs that predict at a time
            runs.append(list(pool.map(lambda maker, picture: maker(picture), makers, of)))
    finally:
        sys.setswitchinterval(interval)
    assert states() == before
    assert all(torch.equal(a, b) for found in runs for a, b in zip(found, alone, strict=True))
    assert len({found.numpy().tobytes() for found in alone}) == 12


def test_the_content_is_mode_size_and_pixels():
    [first, second] = pictures(2)
    assert content_of(first) == content_of(first.copy()) != content_of(second)
    grey = Image.frombytes("L", (6, 2), bytes(12))
    others = [Image.frombytes("L", (2, 6), bytes(12)), Image.frombytes("RGB", (2, 2), bytes(12))]
    assert content_of(grey) not in map(content_of, others) and content_of(others[0]) != content_of(others[1])


# ---- what cannot be ----
@pytest.mark.parametrize("number", [-1, 1.5, True, "8", None])
def test_a_number_that_is_none(number):
    method = type("Mine", (), {"test_views": number})
    with pytest.raises(InputError, match=r"Mine: test_views must be a whole number of 0 or more, not "):
        build_views(method, get_cfg_default())
    assert build_views(type("Mine", (), {"test_views": 0}), get_cfg_default()) is None
    assert build_views(type("Mine", (), {}), get_cfg_default()) is None


@pytest.mark.parametrize(("name", "words", "line"), [
    ("NoNumber", (), "NoNumber: test_views must be a whole number"),
    ("Averaged", ("INPUT.NO_TRANSFORM", "True"), "test_views), which INPUT.NO_TRANSFORM does not make; leave it off"),
    ("TransformOfOne", (), "TransformOfOne.view_transform gives (3, 8, "),
    ("WithBare", (), "the items of its dataset_wrapper Bare have none; derive it from dassl.data.DatasetWrapper"),
    ("OwnManager", (), "its own build_data_loader makes none; take self.build_data_manager(...)"),
])
def test_what_cannot_be_shown_is_one_line(name, words, line, method, one_line):
    assert line in one_line(lambda: method(name, "run", *words))


def test_wrappers_of_plugins(method):
    assert method("BareWithoutViews", "bare")[0]["metrics"]["test"]
    _, plain = method("Averaged", "plain")
    _, named = method("WithNamed", "named")
    assert same(plain, named)


def test_a_wrapper_may_make_its_views_by_itself(tmp_path):
    class Own:
        def __init__(self, cfg, data_source, transform=None, is_train=False):
            self.inner = DatasetWrapper(cfg, data_source, transform, is_train)

        def __len__(self):
            return len(self.inner)

        def __getitem__(self, index):
            return {**self.inner[index], "views": self.test_views(Image.open(self.inner.data_source[index].impath))}

    [picture] = pictures(1)
    picture.save(tmp_path / "a.png")
    cfg = get_cfg_default()
    cfg.DATALOADER.NUM_WORKERS, cfg.SEED = 0, 1
    views = Views(2, Slow(), 1, "Mine")
    loader = build_data_loader(cfg, data_source=[Datum(str(tmp_path / "a.png"))], tfm=Slow(), is_train=False,
                               dataset_wrapper=Own, test_views=views)
    assert torch.equal(next(iter(loader))["views"], views(picture)[None])


def test_batches_that_take_much_memory_are_noted(method, monkeypatch, capsys):
    monkeypatch.setattr("dassl.data.views.MOST_BYTES", 18 * 5 * 3 * 32 * 32 * 4 - 1)
    method("Averaged", "much")
    assert ("Note: the views of a test batch take 0.0 GB (18 images, 5 views of each), and each loader worker makes "
            "two such batches ahead; a lower DATALOADER.TEST.BATCH_SIZE takes less\n") in capsys.readouterr().out
    method("Averaged", "less", "DATALOADER.TEST.BATCH_SIZE", "17")
    method("Single", "none")
    assert "Note: the views" not in capsys.readouterr().out
