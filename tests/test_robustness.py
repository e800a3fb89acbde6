"""Bad and hostile input of every kind: one line, exit status 2, no traceback, no results.

`pytest -m robustness` says how many there were.

Each test is a list of inputs, tried one after the other through the program's own entry, `train.command_line`.
"""

import contextlib
import errno
import io
import json
import os
import pickle
import shutil
import signal
import socket
import struct
import subprocess
import warnings
import zipfile
import zlib
from pathlib import Path

import drawn
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from yacs.config import CfgNode as CN

import tiny_clip
import train
from dassl.config import get_cfg_default
from dassl.config.check import BOUNDS
from dassl.utils import FolderLock, InputError, checkpoints_newest_first, read_image, surroundings
from dassl.utils.images import bombs_are_errors, fault_of
from training import PromptTrainer

pytestmark = pytest.mark.robustness
PACS = ("--source-domains", "photo", "cartoon", "--target-domains", "sketch")
AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


class Refusals:
    """Tries inputs; `wrong` collects those that were not refused as they should be."""

    def __init__(self, tally, arguments, clips, folder):
        self.tally, self.arguments, self.clips, self.folder = tally, arguments, clips, folder
        self.wrong, self.number = [], 0

    def run(self, argv, clips=None):
        """(exit status, stderr) of the program with these words, in this process."""
        errors = io.StringIO()
        with (
            contextlib.redirect_stderr(errors),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(record=True) as warned,
        ):
            warnings.filterwarnings("ignore", "pkg_resources|Deprecated call to `pkg_resources")
            try:
                status = train.command_line(lambda: train.main(argv, clips=self.clips if clips is None else clips))
            except BaseException as error:  # what would be a traceback
                status = f"{type(error).__name__}: {error}"[:300]
        return status, errors.getvalue() + "".join(f"{warning.message}\n" for warning in warned)  # as Python shows them

    def __call__(self, name, trainer="CoOp", *words, parts=(), output=None, shared=True, **kwargs):
        """Try one input called `name`; its line must hold every one of `parts`."""
        self.number += 1
        output = output or self.folder / f"out{self.number}"
        argv = self.arguments(trainer, output, *words, **kwargs)
        status, line = self.run(argv, None if shared else {})
        self.judge(name, status, line, parts, output)
        return line

    def judge(self, name, status, line, parts, output):
        self.tally["inputs"].add(name)
        faults = [f"exit status {status}"] if status != 2 else []
        if not line.startswith("error: ") or line.count("\n") != 1 or "Traceback" in line or len(line) > 1500:
            faults.append(f"not one line: {line[:500]!r}")
        faults += [f"does not say {part!r}: {line.strip()}" for part in parts if str(part) not in line]
        if Path(output).is_dir() and (Path(output) / "results.json").exists():
            faults.append("left a results.json")
        if faults:
            self.wrong.append((name, *faults))
        else:
            self.tally["refused"].add(name)


@pytest.fixture
def refused(tally, arguments, clips, tmp_path):
    refusals = Refusals(tally, arguments, clips, tmp_path)
    yield refusals
    assert refusals.wrong == [], "\n".join(map(str, refusals.wrong))


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, CN):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nested(key, value):
    """{"A": {"B": value}} of "A.B"."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


# ---- configs ----
@pytest.mark.parametrize("which", [*(pytest.param(number, marks=pytest.mark.slow) for number in (0, 1)), 2])
def test_every_key_refuses_other_types(which, refused, tmp_path):
    """Nothing, a group of keys, or another type than the default's."""
    for key, default in leaves(train.default_config()):
        wrong = [None, {"a": 1}]
        wrong.append(
            "words" if isinstance(default, (bool, int, float)) else [[1]] if isinstance(default, str) else None
        )
        number = 1 if which == 2 and wrong[2] is None else which
        path = tmp_path / "wrong.yaml"
        path.write_text(yaml.safe_dump(nested(key, wrong[number])))
        refused(f"config {key}: {wrong[number]!r} ({number})", "CoOp", "--dataset-config-file", path, parts=[key])


def test_every_bound_is_kept(refused):
    for key, (least, most) in BOUNDS.items():
        default = dict(leaves(train.default_config()))[key]
        for value in (least - 1, most + 1, -(10**20), 10**20, "nan", "inf", "-inf"):
            whole = not isinstance(default, float)
            if whole and isinstance(value, str):
                value = f"'{value}'"
            refused(f"option {key} {value}", "CoOp", key, value, parts=[key])


@pytest.mark.parametrize(
    ("trainer", "node", "values"),
    [
        (
            "CoOp",
            "COOP",
            {
                "N_CTX": [0, -1, 10**3, 10**12],
                "PREC": ["", "FP32", "bfloat16"],
                "CLASS_TOKEN_POSITION": ["", "END"],
                "CTX_INIT": ["word " * 80],
            },
        ),
        ("CoCoOp", "COCOOP", {"N_CTX": [0, -1, 10**3, 10**12], "PREC": ["", "tf32"], "CTX_INIT": ["word " * 80]}),
        (
            "MetaPrompt",
            "METAPROMPT",
            {
                "N_CTX": [0, -1, 10**3, 10**12],
                "N_PRO": [0, -5, 10**12],
                "LAYERS": [0, -1, 5, 10**9],
                "META_STEP": [-1.0, "nan", "inf"],
                "ORDER": [0, -1, 3],
                "VARIANT": ["", "newest"],
                "SPLIT": ["", "both", "domain"],
                "PREC": ["", "half"],
            },
        ),
    ],
)
def test_every_method_key_is_bounded(trainer, node, values, refused):
    for key, wrong in values.items():
        for value in wrong:
            refused(f"option TRAINER.{node}.{key} {str(value)[:20]}", trainer, f"TRAINER.{node}.{key}", value)


WORDS = {
    "OPTIM.LR": [0, -0.1, "nan", "inf", "-inf", "1e999", "", "0,1", "[0.1]"],
    "OPTIM.NAME": ["", "Adam", "sgd "],
    "OPTIM.LR_SCHEDULER": ["", "linear"],
    "OPTIM.WARMUP_TYPE": ["", "cosine"],
    "OPTIM.STEPSIZE": ["()", "('a',)", "1.5.2"],
    "OPTIM.GAMMA": ["nan"],
    "OPTIM.WEIGHT_DECAY": ["-inf"],
    "OPTIM.MAX_EPOCH": ["1.5", "1e3", "0x", "ten"],
    "INPUT.SIZE": ["()", "(32,)", "(32,32,32)", "(0,0)", "(-1,-1)", "(10000,10000)", "32.5", "(32,'a')"],
    "INPUT.PIXEL_MEAN": ["[]", "[1]", "[1,1,'a']", "[nan,0,0]"],
    "INPUT.PIXEL_STD": ["[0,0,0]", "[1,1]", "[-1,1,1]"],
    "INPUT.INTERPOLATION": ["", "BICUBIC", "lanczos"],
    "INPUT.TRANSFORMS": ["flip", "random_flip,zoom", "[1]", "[[]]", "('normalize', None)"],
    "DATASET.NAME": ["", "caltech101", "../x"],
    "DATASET.SUBSAMPLE_CLASSES": ["", "BASE", "first"],
    "DATASET.NUM_SHOTS": ["1.5", "two", "[1]", "True"],
    "DATALOADER.TRAIN_X.SAMPLER": ["", "Sequential"],
    "DATALOADER.TEST.SAMPLER": ["", "none"],
    "TEST.EVALUATOR": ["", "classification"],
    "TEST.FINAL_MODEL": ["", "last"],
    "TEST.SPLIT": ["", "training", "all"],
    "TRAINER.NAME": ["coop", "Coop", "CoOp,MetaPrompt"],
    "MODEL.BACKBONE.NAME": ["ViT", "/", "..", "RN50x1000"],
    "MODEL.INIT_WEIGHTS": ["/nowhere/w.pt", "/", __file__],
    "OUTPUT_DIR": ["", " ", "/dev/null", "/dev/null/x", "/proc/x"],
    "RESUME": ["/nowhere", "/dev/null"],
    "SEED": ["1.5", "-"],
    "USE_CUDA": ["maybe", "1", "[]"],
    "VERBOSE": ["2", "yes"],
    "TRAIN.PRINT_FREQ": ["-1"],
    "LR": ["0.1"],
    "OPTIM": ["sgd", "{}"],
    "OPTIM.": ["1"],
    "OPTIM.LR.X": ["1"],
    "TRAINER": ["CoOp"],
    "TRAINER.COOP": ["1"],
    "TRAINER.NEW.KEY": ["1"],
    "A.B.C": ["1"],
    "OPTIM.LEARNING_RATE": ["1"],
    "optim.lr": ["1"],
    "DATASETS.NAME": ["x"],
    "INPUT.RRCROP_SCALE": ["(2,'a')"],
    "INPUT.GB_K": ["4"],
}


def test_wrong_options(refused):
    for key, values in WORDS.items():
        for value in values:
            words = ("INPUT.TRANSFORMS", "gaussian_blur") if key == "INPUT.GB_K" else ()
            refused(f"option {key} {value!r}", "CoOp", *words, key, value)


def test_wrong_words(refused):
    for words in (
        ["--seed"],
        ["--seed", "1.5"],
        ["--seed", "x"],
        ["--seed", 2**63],
        ["--seed", 10**30],
        ["--load-epoch", "last"],
        ["--unknown"],
        ["--eval-only"],
        ["--eval-only", "--model-dir", ""],
        ["--config-file", "/nowhere.yaml"],
        ["--config-file", "/"],
        ["--config-file", "/dev/null"],
        ["--config-file", __file__],
        ["--dataset-config-file", "/nowhere.yaml"],
        ["--resume", "/nowhere"],
        ["--plugin", "/nowhere.py"],
        ["--plugin", "/"],
        ["--plugin", "no.module"],
        ["--plugin", ""],
        ["--trainer", "None"],
        ["--trainer", "../zsclip"],
        ["--backbone", "ViT-B/1"],
        ["--backbone", "/dev/null"],
        ["--source-domains", "photo"],
        ["--transforms", "flop"],
        ["OPTIM.LR"],
        ["OPTIM.LR", "0.1", "SEED"],
        ["stray"],
        ["--root", "/nowhere"],
        ["--root", "/dev/null"],
        ["--root", ""],
        ["--eval-only=1"],
        ["--output-dir", "/dev/null/run"],
        ["--output-dir", "x" * 300],
        ["--model-dir"],
    ):
        if words[0] == "--source-domains":
            refused(f"words {words}", "MetaPrompt", *words, dataset="pacs")
        else:
            refused(f"words {words}", "CoOp", *words)


YAML = {
    "a tab": "OPTIM:\n\tLR: 1",
    "an open bracket": "OPTIM: [1, 2",
    "an open brace": "OPTIM: {LR: 1",
    "an open quote": 'OPTIM: "x',
    "two documents": "A: 1\n---\nB: 2",
    "a colon too many": "OPTIM: LR: 1",
    "a list": "- 1\n- 2",
    "a number": "1",
    "a text": "only words",
    "a python object": "OPTIM: !!python/object:os.system {}",
    "a python call": "OPTIM: !!python/object/apply:os.system ['touch SPRUNG']",
    "a python name": "OPTIM: !!python/name:os.system",
    "a new object": "OPTIM: !!python/object/new:os.system ['touch SPRUNG']",
    "a module": "OPTIM: !!python/module:os",
    "a tuple": "INPUT: {SIZE: !!python/tuple [1]}",
    "a local tag": "OPTIM: !mine 1",
    "an alias": "OPTIM: &a {LR: 1}\nINPUT: *a",
    "a laugh": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))
    + "INPUT: {TRANSFORMS: *i}",
    "itself": "INPUT: &a {TRANSFORMS: *a}",
    "a merge": "X: &x {LR: 1}\nOPTIM: {<<: *x}",
    "an unknown alias": "OPTIM: *none",
    "depth": "INPUT: {TRANSFORMS: " + "[" * 3000 + "]" * 3000 + "}",
    "depth of keys": "".join(" " * i + "A:\n" for i in range(500)),
    "a key twice": "SEED: 1\nSEED: 2",
    "a group twice": "OPTIM: {LR: 1}\nOPTIM: {}",
    "a key that is a number": "1: 2",
    "a key that is a list": "? [1, 2]\n: 3",
    "a key that is a date": "2020-01-01: 3",
    "a date": "OPTIM: {LR: 2020-01-01}",
    "no date": "OPTIM: {LR: 2020-13-45}",
    "bytes": "OPTIM: {LR: !!binary aGVsbG8=}",
    "a set": "OPTIM: {LR: !!set {a, b}}",
    "a sexagesimal": "OPTIM: {MAX_EPOCH: 190:20:30.5}",
    "a zero byte": 'OPTIM: {NAME: "a\\0b"}',
    "a zero byte in a path": 'OUTPUT_DIR: "a\\0b"',
    "an int of a thousand digits": "OPTIM: {MAX_EPOCH: " + "9" * 1000 + "}",
    "an int of ten thousand digits": "OPTIM: {MAX_EPOCH: " + "9" * 10000 + "}",
    "not a number": "OPTIM: {LR: .nan}",
    "infinity": "OPTIM: {LR: .inf}",
    "a large number": "OPTIM: {LR: 1e999}",
    "size": "# " + "x" * 2**20 + "\nSEED: 1",
    "an empty group": "OPTIM: {LR: }",
    "a group as a value": "OPTIM: 3",
    "a value as a group": "SEED: {A: 1}",
    "a control character": "OPTIM: \x01",
    "a directive": "%YAML 9.9\n---\nA: 1",
    "a bool for a number": "SEED: true",
}


def test_wrong_yaml(refused, tmp_path):
    for name, text in YAML.items():
        path = tmp_path / "wrong.yaml"
        path.write_text(text.replace("SPRUNG", str(tmp_path / "SPRUNG")))
        refused(f"YAML with {name}", "CoOp", "--dataset-config-file", path)
    for name, content in (
        ("Latin-1", b"NAME: \xe4"),
        ("UTF-16", "A: 1".encode("utf-16")),
        ("noise", bytes(range(256))),
    ):
        path.write_bytes(content)
        refused(f"YAML in {name}", "CoOp", "--dataset-config-file", path)
    os.symlink(tmp_path / "loop.yaml", tmp_path / "loop.yaml")
    refused("YAML that is a loop", "CoOp", "--dataset-config-file", tmp_path / "loop.yaml")
    assert not (tmp_path / "SPRUNG").exists()


# ---- datasets ----
@pytest.fixture
def own_data(tmp_path):
    drawn.write_caltech(tmp_path / "own")
    return tmp_path / "own"


def entries(labels=(0, 1, 2, 3, 4, 5), names=None):
    split = drawn.caltech_entries()
    return {
        part: [
            [path, label, names.get(label, name) if names else name] for path, label, name in items if label in labels
        ]
        for part, items in split.items()
    }


def changed(part="train", **fields):
    """The split with its first entry changed."""
    split = drawn.caltech_entries()
    entry = split[part][0]
    split[part][0] = [fields.get("path", entry[0]), fields.get("label", entry[1]), fields.get("name", entry[2])]
    return split


GOOD = drawn.caltech_entries()
SPLITS = {
    "nothing": "",
    "a torn end": json.dumps(GOOD)[:-20],
    "text": "split",
    "null": "null",
    "a number": "7",
    "a list": "[]",
    "no parts": "{}",
    "no test": {"train": GOOD["train"], "val": []},
    "no train": {"val": [], "test": GOOD["test"]},
    "an empty train": {**GOOD, "train": []},
    "an empty test": {**GOOD, "test": []},
    "null parts": {**GOOD, "train": None},
    "parts as a dict": {**GOOD, "train": {"a": 1}},
    "parts as text": {**GOOD, "train": "abc"},
    "entries of two": {**GOOD, "train": [e[:2] for e in GOOD["train"]]},
    "entries of four": {**GOOD, "train": [[*e, 1] for e in GOOD["train"]]},
    "null entries": {**GOOD, "train": [None]},
    "a path that is a number": changed(path=3),
    "a path that is null": changed(path=None),
    "an empty path": changed(path=""),
    "a path that is not there": changed(path="dog/gone.png"),
    "a path that is a folder": changed(path="dog"),
    "a path out of the folder": changed(path="../../../etc/hostname.png"),
    "a zero byte in a path": changed(path="dog/\0.png"),
    "an absolute path": changed(path="/nowhere/image.png"),
    "a path of 1,000 letters": changed(path="x" * 1000 + ".png"),
    "a label that is text": changed(label="dog"),
    "a label that is null": changed(label=None),
    "a label of -1": changed(label=-1),
    "a label of -10^12": changed(label=-(10**12)),
    "a label of 10^12": changed(label=10**12),
    "a label of 10^30": changed(label=10**30),
    "a label of NaN": changed(label=float("nan")),
    "a label of infinity": changed(label=float("inf")),
    "a label of 1.5": changed(label=1.5),
    "a list as label": changed(label=[1]),
    "a label gap": entries((0, 1, 3)),
    "labels from 1": entries((1, 2)),
    "a class with two names": changed(name="another"),
    "depth": "[" * 100000,
    "ten thousand digits": '{"train": [["a", ' + "9" * 10000 + ', "a"]]}',
}


def test_wrong_splits(refused, own_data):
    path = own_data / "caltech-101" / "split_zhou_Caltech101.json"
    for name, content in SPLITS.items():
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        shutil.rmtree(own_data / "caltech-101" / "split_fewshot", ignore_errors=True)
        refused(f"split with {name}", "CoOp", "DATASET.NUM_SHOTS", 4, root=own_data)
    for name, content in (("Latin-1", b'{"train": "\xe4"}'), ("noise", bytes(range(256)))):
        path.write_bytes(content)
        refused(f"split in {name}", "CoOp", root=own_data)
    path.unlink()
    path.mkdir()
    refused("a folder as split", "CoOp", root=own_data, parts=[path])
    path.rmdir()
    path.symlink_to(path)
    refused("a split that is a loop", "CoOp", root=own_data, parts=[path])


def test_wrong_kept_draws(refused, own_data):
    kept = own_data / "caltech-101" / "split_fewshot" / "shot_2-seed_1.json"
    kept.parent.mkdir()
    for content in (
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"train": [[]], "val": []}',
        '{"train": 3, "val": []}',
        '{"train": [[["a"], 0, "a"]], "val": []}',
    ):
        kept.write_text(content)
        refused(f"kept draw {content}", "CoOp", root=own_data)


def test_wrong_lists(refused, tmp_path):
    path = drawn.write_pacs(tmp_path / "own") / "splits" / "photo_train_kfold.txt"
    good = path.read_text()
    for content in (
        "photo/dog/pic_000.png",
        "photo/dog/pic_000.png one",
        "pic_000.png 1",
        "photo/dog/gone.png 1",
        "photo/dog/pic_000.png 0",
        "photo/dog/pic_000.png 1.5",
        "1",
        "a b c d",
        "photo/dog/pic_000.png -3",
        "photo/dog/pic_000.png 999999999999",
        "/ 1",
        "photo/dog/\0.png 1",
    ):
        path.write_text(good + content + "\n")
        refused(f"PACS list with {content!r}", "MetaPrompt", *PACS, dataset="pacs", root=tmp_path / "own")
    path.write_bytes(b"\xff\xfe\x00")
    refused("PACS list that is no text", "MetaPrompt", *PACS, dataset="pacs", root=tmp_path / "own")
    for words in (
        ("--source-domains", "photo"),
        ("--target-domains", "photo"),
        (),
        ("--source-domains", "photo", "photo", "--target-domains", "sketch"),
        ("--source-domains", "Photo", "--target-domains", "sketch"),
        ("--source-domains", "photo", "--target-domains", ""),
    ):
        refused(f"domains {words}", "MetaPrompt", *words, dataset="pacs")


def png(chunks):
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def header(width, height, depth=8, colour=2):
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


def encoded(kind, size=(40, 40)):
    buffer = io.BytesIO()
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (*size[::-1], 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


ROWS = zlib.compress(b"\0" * (40 * 121))
PICTURES = {
    "nothing": b"",
    "one byte": b"\x89",
    "text": b"no picture",
    "zeros": bytes(3000),
    "HTML": b"<html>404</html>",
    "a PNG's name only": b"\x89PNG\r\n\x1a\n",
    "a PNG cut in its header": encoded("PNG")[:20],
    "a PNG cut in half": encoded("PNG")[:2000],
    "a PNG without its last bytes": encoded("PNG")[:-30],
    "a PNG with a wrong sum": encoded("PNG")[:100] + b"\0" + encoded("PNG")[101:],
    "a PNG of no width": png([header(0, 40), (b"IDAT", ROWS), (b"IEND", b"")]),
    "a PNG without pixels": png([header(40, 40), (b"IEND", b"")]),
    "a PNG of another depth": png([header(40, 40, 7), (b"IDAT", ROWS), (b"IEND", b"")]),
    "a PNG of 2^31 pixels a side": png([header(2**31 - 1, 2**31 - 1), (b"IDAT", ROWS), (b"IEND", b"")]),
    "a bomb of 400 megapixels": png([header(20000, 20000), (b"IDAT", ROWS), (b"IEND", b"")]),
    "a bomb of 100 megapixels": png([header(10000, 10000), (b"IDAT", ROWS), (b"IEND", b"")]),
    "a bomb in a text": png(
        [header(40, 40), (b"zTXt", b"k\0\0" + zlib.compress(bytes(2**26))), (b"IDAT", ROWS), (b"IEND", b"")]
    ),
    "a JPEG cut in its header": encoded("JPEG")[:30],
    "a JPEG cut in half": encoded("JPEG")[:900],
    "a JPEG's first bytes": b"\xff\xd8\xff\xe0",
    "a GIF's name": b"GIF89a",
    "a GIF cut": encoded("GIF")[:30],
    "a BMP cut": encoded("BMP")[:60],
    "a WebP cut": encoded("WEBP")[:40],
    "a TIFF cut": encoded("TIFF")[:100],
    "a PPM of no size": b"P6\n-1 -1\n255\n",
    "a PPM of 10^9 pixels a side": b"P6\n1000000000 1000000000\n255\n",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(SPRUNG) (w) file showpage\n",
    "an archive": b"PK\x03\x04" + bytes(100),
    "a pickle": pickle.dumps([1, 2]),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
}


def test_wrong_pictures(refused, own_data):
    folder = own_data / "caltech-101" / "101_ObjectCategories" / "dog"
    victim, good = folder / "image_0000.png", (folder / "image_0000.png").read_bytes()
    for name, content in PICTURES.items():
        victim.write_bytes(content)
        refused(
            f"a training image that is {name}",
            "CoOp",
            "DATASET.NUM_SHOTS",
            4,
            root=own_data,
            parts=[victim, "--skip-bad-images"],
        )
    victim.unlink()
    refused("a training image that is not there", "CoOp", "DATASET.NUM_SHOTS", 4, root=own_data, parts=[victim])
    victim.mkdir()
    refused("a training image that is a folder", "CoOp", "DATASET.NUM_SHOTS", 4, root=own_data, parts=[victim])
    victim.rmdir()
    victim.symlink_to(victim)
    refused("a training image that is a loop", "CoOp", "DATASET.NUM_SHOTS", 4, root=own_data, parts=[victim])
    victim.unlink()
    os.mkfifo(victim)
    refused("a training image that is a pipe", "CoOp", "DATASET.NUM_SHOTS", 4, root=own_data, parts=[victim])
    victim.unlink()
    victim.write_bytes(good)
    tests = folder / "image_0009.png"
    tests.write_bytes(b"no picture")
    for workers in (0, 2):
        refused(
            f"a test image that is text, {workers} workers",
            "CoOp",
            "DATALOADER.NUM_WORKERS",
            workers,
            root=own_data,
            parts=[tests],
        )
    assert not list(refused.folder.rglob("SPRUNG")) and not Path("SPRUNG").exists()


def test_a_bad_picture_stops_the_run_before_it_starts(refused, own_data):
    (own_data / "caltech-101" / "101_ObjectCategories" / "dog" / "image_0000.png").write_bytes(encoded("JPEG")[:900])
    refused(
        "a cut JPEG in the last epoch", "CoOp", "DATASET.NUM_SHOTS", 4, root=own_data, output=refused.folder / "early"
    )
    assert "epoch [" not in (refused.folder / "early" / "log.txt").read_text()
    assert not (refused.folder / "early" / "prompt_learner").exists()


def test_bad_pictures_are_left_out_and_listed(arguments, clips, own_data, tmp_path):
    folder = own_data / "caltech-101" / "101_ObjectCategories" / "dog"
    for number, content in ((0, b""), (9, encoded("JPEG")[:900])):  # a training and a test image
        (folder / f"image_{number:04d}.png").write_bytes(content)
    words = ("--skip-bad-images", "DATASET.NUM_SHOTS", 4)
    results = train.main(arguments("CoOp", tmp_path / "out", *words, root=own_data), clips=clips)
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results == stored
    assert set(stored["skipped_images"]) == {str(folder / "image_0000.png"), str(folder / "image_0009.png")}
    assert "* total: 17\n" in (tmp_path / "out" / "log.txt").read_text()


def test_a_bad_test_picture_can_be_left_out_after_the_training(refused, arguments, clips, own_data, tmp_path, capsys):
    (own_data / "caltech-101" / "101_ObjectCategories" / "dog" / "image_0009.png").write_bytes(b"")
    refused("a test image of no bytes", "CoOp", root=own_data, output=tmp_path / "out")
    capsys.readouterr()
    results = train.main(arguments("CoOp", tmp_path / "out", "--skip-bad-images", root=own_data), clips=clips)
    assert "epoch [" not in capsys.readouterr().out  # it was trained before
    assert len(results["skipped_images"]) == 1
    line = refused.run(arguments("CoOp", tmp_path / "out", root=own_data))[1]
    assert "DATASET.SKIP_BAD_IMAGES is True there" in line


def test_a_class_of_bad_pictures_is_refused(refused, own_data):
    for path in (own_data / "caltech-101" / "101_ObjectCategories" / "dog").iterdir():
        path.write_bytes(b"")
    refused("a class of empty files", "CoOp", "--skip-bad-images", root=own_data, parts=["dog"])


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["dog", "cat"], ("DATASET.NUM_SHOTS", 1)),
        (drawn.CLASSES, ("DATASET.NUM_SHOTS", 1000)),
        (drawn.CLASSES, ("DATALOADER.TRAIN_X.BATCH_SIZE", 1000)),
        (drawn.CLASSES, ("DATALOADER.NUM_WORKERS", 10**6)),
    ],
)
def test_little_data_and_large_numbers_run(classes, words, arguments, clips, tmp_path):
    """One image per class, more shots than images, a batch larger than the data, workers without end."""
    drawn.write_caltech(tmp_path / "own", classes=classes)
    results = train.main(
        arguments("CoOp", tmp_path / "out", "OPTIM.MAX_EPOCH", 1, *words, root=tmp_path / "own"), clips=clips
    )
    assert 0 <= results["metrics"]["test"]["accuracy"] <= 100


def test_one_class_where_two_are_needed(refused, tmp_path):
    drawn.write_caltech(tmp_path / "own", classes=["dog"])
    refused("one class for MetaPrompt", "MetaPrompt", root=tmp_path / "own")
    refused("one class for CoOp", "CoOp", root=tmp_path / "own", parts=["'dog'", "always 100 %"])
    refused("one class, its new half", "CoOp", "DATASET.SUBSAMPLE_CLASSES", "new", root=tmp_path / "own")


# ---- nothing unsafe is loaded ----
class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def scripted(path):
    """A TorchScript archive whose loading would be harmless, but might not be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


def zip_of_pickle(path, trap):
    """torch's archive form with a hostile pickle inside."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(trap, 2))
        archive.writestr("archive/version", "3")
        archive.writestr("archive/byteorder", "little")


def climbing(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../SPRUNG", "out of the folder")


def huge_header(path):
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")


def test_nothing_planted_runs(refused, arguments, clips, tmp_path):
    """Malicious files as backbone, as checkpoint to resume, to evaluate and to begin with: none runs."""
    sprung = tmp_path / "SPRUNG"
    traps = {
        "a pickle": lambda path: path.write_bytes(pickle.dumps(Trap(sprung))),
        "a pickle of protocol 0": lambda path: path.write_bytes(pickle.dumps(Trap(sprung), 0)),
        "a saved trap": lambda path: torch.save(Trap(sprung), path),
        "a trap among tensors": lambda path: torch.save({**tiny_clip.state_dict(), "x": Trap(sprung)}, path),
        "a trap as state": lambda path: torch.save({"state_dict": {"x": Trap(sprung)}, "epoch": 2}, path),
        "a trap in the old form": lambda path: torch.save(
            {"epoch": Trap(sprung)}, path, _use_new_zipfile_serialization=False
        ),
        "an archive with a trap": lambda path: zip_of_pickle(path, {"state_dict": Trap(sprung)}),
        "TorchScript": scripted,
        "a whole module": lambda path: torch.save(torch.nn.Linear(1, 1), path),
        "an archive that climbs": climbing,
        "a header of 2^60 bytes": huge_header,
    }
    first = tmp_path / "first"
    train.main(arguments("CoOp", first), clips=clips)
    (first / "results.json").unlink()
    for name, plant in traps.items():
        for ending in ("pt", "safetensors"):
            plant(tmp_path / f"weights.{ending}")
            refused(f"backbone: {name} (.{ending})", backbone=tmp_path / f"weights.{ending}", shared=False)
        refused(f"MODEL.INIT_WEIGHTS: {name}", "CoOp", "MODEL.INIT_WEIGHTS", tmp_path / "weights.pt")
        for path in (first / "prompt_learner").glob("model.pth.tar-*"):
            plant(path)
        refused(f"--resume: {name}", "CoOp", "--resume", first)
        refused(f"resumed: {name}", "CoOp", output=first)
        refused(f"--model-dir: {name}", "CoOp", "--eval-only", "--model-dir", first)
        plant(first / "prompt_learner" / "model-best.pth.tar")
        refused(f"the best of --model-dir: {name}", "CoOp", "--eval-only", "--model-dir", first)
        (first / "prompt_learner" / "model-best.pth.tar").unlink()
    assert not sprung.exists() and not (tmp_path.parent / "SPRUNG").exists()


# ---- checkpoints and backbones ----
def test_wrong_checkpoints(refused, arguments, clips, tmp_path):
    first = tmp_path / "first"
    train.main(arguments("CoOp", first), clips=clips)
    newest = first / "prompt_learner" / "model.pth.tar-2"
    good = torch.load(newest, weights_only=True)
    whole = newest.read_bytes()

    def other(**fields):
        return lambda path: torch.save({**good, **fields}, path)

    def without(key):
        return lambda path: torch.save({k: v for k, v in good.items() if k != key}, path)

    ctx = good["state_dict"]["prompt_learner.ctx"]
    both = {
        "cut in half": lambda path: path.write_bytes(whole[: len(whole) // 2]),
        "without its last byte": lambda path: path.write_bytes(whole[:-1]),
        "of no bytes": lambda path: path.write_bytes(b""),
        "of zeros": lambda path: path.write_bytes(bytes(len(whole))),
        "of another method": other(trainer="CoCoOp"),
        "of a method without a name": without("trainer"),
        "with a longer context": other(state_dict={"prompt_learner.ctx": ctx.repeat(2, 1)}),
        "with a context per class": other(state_dict={"prompt_learner.ctx": ctx.repeat(6, 1, 1)}),
        "of another width": other(state_dict={"prompt_learner.ctx": ctx[:, :8]}),
        "with other names": other(state_dict={"ctx": ctx}),
        "with no tensors": other(state_dict={}),
        "with text as tensors": other(state_dict={"prompt_learner.ctx": "text"}),
        "with a list of tensors": other(state_dict=[ctx]),
        "without tensors": without("state_dict"),
        "with a non-finite context": other(state_dict={"prompt_learner.ctx": ctx * float("nan")}),
    }
    only_resumed = {
        "with an epoch that is text": other(epoch="two"),
        "with a step that is text": other(step="two"),
        "with another optimizer": other(optimizers=[]),
        "with an empty optimizer": other(optimizers=[{}]),
        "without optimizers": without("optimizers"),
        "without schedules": without("schedules"),
        "without generators": without("rng"),
        "with torn generators": other(rng={"python": 3}),
        "with no threads": other(threads=0),
        "with text as precision": other(precision="fp32"),
        "with a negative epoch": other(epoch=-3),
        "with a negative step": other(step=-3),
    }
    for name, spoil in (both | only_resumed).items():
        for path in (first / "prompt_learner").glob("model.pth.tar-*"):
            spoil(path)
        refused(f"--resume a checkpoint {name}", "CoOp", "--resume", first, parts=["model.pth.tar-"])
        if name in both:
            refused(
                f"evaluate a checkpoint {name}", "CoOp", "--eval-only", "--model-dir", first, parts=["model.pth.tar-2"]
            )
    for path in (first / "prompt_learner").glob("model.pth.tar-*"):
        path.write_bytes(whole)
    refused("evaluate a later epoch", "CoOp", "--eval-only", "--model-dir", first, "--load-epoch", 9)
    refused("evaluate a negative epoch", "CoOp", "--eval-only", "--model-dir", first, "--load-epoch", -1)
    refused("evaluate another method", "CoCoOp", "--eval-only", "--model-dir", first)
    refused("evaluate with another depth", "CoOp", "--eval-only", "--model-dir", first, "TRAINER.COOP.N_CTX", 5)
    for content in (b"", b"\xff\xfe", b"../../x", b"model.pth.tar-77"):
        (first / "prompt_learner" / "checkpoint").write_bytes(content)
        refused(f"evaluate the checkpoint {content}", "CoOp", "--eval-only", "--model-dir", first)


def test_other_classes_in_a_class_bound_checkpoint(refused, arguments, clips, tmp_path):
    words = ("TRAINER.COOP.CSC", "True", "DATASET.SUBSAMPLE_CLASSES")
    train.main(arguments("CoOp", tmp_path / "first", *words, "base"), clips=clips)
    for which in ("new", "all"):
        refused(
            f"class-bound prompts for {which} classes",
            "CoOp",
            "--eval-only",
            "--model-dir",
            tmp_path / "first",
            *words,
            which,
            parts=["classes"],
        )


def test_wrong_backbones(refused, tmp_path):
    good = tiny_clip.state_dict()

    def saved(state):
        return lambda path: torch.save(state, path)

    def changed(**tensors):
        return saved({**good, **{name.replace("__", "."): tensor for name, tensor in tensors.items()}})

    torch.save(good, tmp_path / "good.pt")
    save_file({k: v.contiguous().clone() for k, v in good.items()}, tmp_path / "good.safetensors")
    for ending in ("pt", "safetensors"):
        whole = (tmp_path / f"good.{ending}").read_bytes()
        for name, content in (
            ("nothing", b""),
            ("half", whole[: len(whole) // 2]),
            ("all but a byte", whole[:-1]),
            ("zeros", bytes(1000)),
            ("HTML", b"<html>404</html>"),
            ("its second half", whole[len(whole) // 2 :]),
        ):
            path = tmp_path / f"torn.{ending}"
            path.write_bytes(content)
            refused(f"a .{ending} download of {name}", backbone=path, shared=False, parts=[path])
    states = {
        "no tensors": saved({}),
        "a list": saved([torch.zeros(2)]),
        "another network": saved(torch.nn.Linear(2, 2).state_dict()),
        "text": saved(dict.fromkeys(good, "text")),
        "one tensor": saved(torch.zeros(3)),
        "null": saved(None),
        "no logit scale": saved({k: v for k, v in good.items() if k != "logit_scale"}),
        "no image tower": saved({k: v for k, v in good.items() if not k.startswith("visual")}),
        "no text tower": saved({k: v for k, v in good.items() if not k.startswith("transformer")}),
        "a missing block": saved({k: v for k, v in good.items() if "resblocks.1." not in k}),
        "an unknown tensor": changed(more=torch.zeros(2)),
        "a scalar projection": changed(text_projection=torch.zeros(())),
        "another projection": changed(text_projection=torch.zeros(3, 3)),
        "an empty embedding": changed(token_embedding__weight=torch.zeros(0, 64)),
        "an infinite tensor": changed(ln_final__weight=torch.full((64,), float("inf"))),
        "a tensor that is no number": changed(text_projection=good["text_projection"] * float("nan")),
    }
    for name, write in states.items():
        write(tmp_path / "wrong.pt")
        refused(f"a backbone with {name}", backbone=tmp_path / "wrong.pt", shared=False)


# ---- numbers ----
def test_numbers_that_explode(refused):
    for words in (
        ("OPTIM.LR", 1e38),
        ("INPUT.PIXEL_STD", "[1e-38,1e-38,1e-38]"),
        ("OPTIM.LR", 1e30, "OPTIM.MOMENTUM", 1.0),
        ("OPTIM.LR", 1e38, "OPTIM.NAME", "rmsprop"),
        ("OPTIM.LR", 1e38, "TRAINER.COOP.PREC", "fp16"),
        ("OPTIM.WARMUP_CONS_LR", 1e6, "OPTIM.WEIGHT_DECAY", 1e6),
    ):
        refused(f"numbers {words}", "CoOp", "OPTIM.MAX_EPOCH", 9, "OPTIM.WARMUP_EPOCH", 1, *words)


# ---- run folders ----
def test_wrong_run_folders(refused, arguments, clips, tmp_path):
    done = tmp_path / "done"
    results = train.main(arguments("CoOp", done), clips=clips)
    stored = (done / "results.json").read_text()
    tries = 0

    def attempt(name, *words, trainer="CoOp", **contents):
        nonlocal tries
        tries += 1
        folder = tmp_path / f"folder{tries}"
        shutil.copytree(done, folder)
        (folder / "results.json").unlink()
        for file, content in contents.items():
            (folder / file.replace("_", ".")).write_text(content)
        errors = refused.run(arguments(trainer, folder, *words))
        refused.judge(name, *errors, (), tmp_path / "nothing")

    attempt("a folder of another rate", "OPTIM.LR", 0.3)
    attempt("a folder of another method", trainer="CoCoOp")
    attempt("a folder of another seed", "--seed", 7)
    attempt("a finished folder of another rate", "OPTIM.LR", 0.3, results_json=stored)
    attempt("a finished folder, other epochs", "OPTIM.MAX_EPOCH", 7, results_json=stored)
    for content in ("", "a: [", "3", "- 1", "\x00", "{OPTIM: 3}", "OPTIM: !!python/object:os.system {}"):
        attempt(f"a config.yaml of {content!r}", config_yaml=content)
    for content in ("[]", "3", "null", "{}", '{"config": 1, "evaluation": 2, "metrics": 3}'):
        attempt(f"a results.json of {content!r}", results_json=content)
    attempt("a finished folder to evaluate in", "--eval-only", "--model-dir", done)
    assert results["metrics"]


def test_a_torn_results_file_is_no_finished_run(arguments, clips, tmp_path):
    whole = train.main(arguments("CoOp", tmp_path / "out"), clips=clips)
    path = tmp_path / "out" / "results.json"
    for content in ("", path.read_text()[:100]):
        path.write_text(content)
        assert train.main(arguments("CoOp", tmp_path / "out"), clips=clips)["metrics"] == whole["metrics"]
        assert json.loads(path.read_text())["metrics"] == whole["metrics"]


# ---- surroundings ----
def test_places_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (
        "/dev/null",
        "/dev/null/x",
        "/proc/self/run",
        "/sys/run",
        str(tmp_path / "file"),
        str(tmp_path / "file" / "x"),
    ):
        refused(f"output to {place.replace(str(tmp_path), '')}", "CoOp", output=Path(place), parts=[place])
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(AS_ROOT, reason="root may write and read everywhere")
def test_no_permission(refused, own_data, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    refused("output without permission", "CoOp", output=closed / "run", parts=[closed, "Permission denied"])
    victim = own_data / "caltech-101" / "101_ObjectCategories" / "dog" / "image_0000.png"
    victim.chmod(0)
    refused("an image without permission", "CoOp", "DATASET.NUM_SHOTS", 4, root=own_data, parts=[victim])
    split = own_data / "caltech-101" / "split_zhou_Caltech101.json"
    split.chmod(0)
    refused("a split without permission", "CoOp", root=own_data, parts=[split])


@contextlib.contextmanager
def small_disk(place, options):
    """A tmpfs at `place`. The test is skipped where it may not be mounted."""
    place.mkdir()
    done = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False)
        if AS_ROOT and shutil.which("mount")
        else None
    )
    if done is None or done.returncode:
        pytest.skip("a small tmpfs needs the right to mount" + (f": {done.stderr.decode().strip()}" if done else ""))
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_read_only_disk(refused, tmp_path):
    with small_disk(tmp_path / "disk", "ro") as place:
        refused("output to a read-only disk", "CoOp", output=place / "run", parts=[place, "Read-only"])


def test_a_full_disk_leaves_the_checkpoint_before(refused, arguments, clips, tmp_path, monkeypatch):
    """The disk fills up during the second epoch: its checkpoint fails, the first stays, and the run goes on later."""
    whole = train.main(arguments("CoOp", tmp_path / "whole"), clips=clips)
    with small_disk(tmp_path / "disk", "size=1m") as place:
        fill = place / "fill"
        step = PromptTrainer.forward_backward

        def filling(self, batch):
            if self.epoch == 1 and not fill.exists():
                with open(fill, "wb") as file, contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(4096))
                        file.flush()
            return step(self, batch)

        with monkeypatch.context() as patch:
            patch.setattr(PromptTrainer, "forward_backward", filling)
            refused("a disk that fills up", "CoOp", output=place / "run", parts=["No space left", "free some space"])
        assert fill.stat().st_size > 2**18
        names = [path.name for path in (place / "run" / "prompt_learner").iterdir()]
        assert sorted(names) == ["checkpoint", "model.pth.tar-1"]
        assert torch.load(place / "run" / "prompt_learner" / "model.pth.tar-1", weights_only=True)["epoch"] == 1
        refused("a disk that is full", "CoOp", output=place / "run", parts=["No space left"])
        fill.unlink()
        resumed = train.main(arguments("CoOp", place / "run"), clips=clips)
        assert resumed["metrics"] == whole["metrics"]
        log = (place / "run" / "log.txt").read_text()
        assert "after epoch 1" in log
        same_prompts(place / "run", tmp_path / "whole")


def same_prompts(first, second, epoch=2):
    states = [
        torch.load(folder / "prompt_learner" / f"model.pth.tar-{epoch}", weights_only=True)["state_dict"]
        for folder in (first, second)
    ]
    assert set(states[0]) == set(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_in_a_checkpoint(error, refused, arguments, clips, tmp_path, monkeypatch):
    whole = train.main(arguments("CoOp", tmp_path / "whole"), clips=clips)
    sync = os.fsync

    def failing(handle):
        path = os.readlink(f"/proc/self/fd/{handle}")
        if "model.pth.tar-2" in path:
            raise OSError(error, os.strerror(error), path)
        return sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        refused(f"a disk that says {os.strerror(error)}", "CoOp", output=tmp_path / "out", parts=[os.strerror(error)])
    assert not list((tmp_path / "out").rglob("*.tmp*"))
    assert train.main(arguments("CoOp", tmp_path / "out"), clips=clips)["metrics"] == whole["metrics"]
    same_prompts(tmp_path / "out", tmp_path / "whole")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(refused):
    refused("USE_CUDA True without a GPU", "CoOp", "USE_CUDA", "True", parts=["USE_CUDA", "GPU"])


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ..."),
            ["BATCH_SIZE", "PREC amp or bf16", "nvidia-smi"],
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), ["nvidia-smi"]),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), ["nvidia-smi"]),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."), ["nvidia-smi"]),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
            ["memory"],
        ),
        (MemoryError(), ["memory"]),
        (RuntimeError("DataLoader worker (pid 77) is killed by signal: Killed. "), ["NUM_WORKERS"]),
        (OSError(errno.EMFILE, "Too many open files", "x.png"), ["ulimit"]),
    ],
)
def test_a_machine_that_gives_out(error, parts, refused, monkeypatch):
    def fail(self, batch):
        raise error

    monkeypatch.setattr(PromptTrainer, "forward_backward", fail)
    refused(f"a machine that says {type(error).__name__} {str(error)[:40]}", "CoOp", parts=parts)


def test_bugs_keep_their_traceback():
    assert surroundings(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    with pytest.raises(ZeroDivisionError):
        train.command_line(lambda: 1 / 0)


# ---- anything at all ----
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=8,
)
KEYS = sorted(key for key, _ in leaves(get_cfg_default()) if key not in ("OUTPUT_DIR", "OPTIM.MAX_EPOCH"))
PROPERTY = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@PROPERTY
@given(key=st.sampled_from(KEYS), value=TREES)
def test_any_value_of_any_key_runs_or_is_refused(key, value, refused, tmp_path):
    path = tmp_path / "any.yaml"
    path.write_text(yaml.safe_dump(nested(key, value)))
    status, line = refused.run(
        refused.arguments(
            "ZeroshotCLIP", tmp_path / "any", "--no-train", "--dataset-config-file", path, "DATASET.NAME", "Caltech101"
        )
    )
    shutil.rmtree(tmp_path / "any", ignore_errors=True)
    if status != 0:
        refused.judge(f"any config {key}: {value!r}"[:200], status, line, (), tmp_path / "any")


@PROPERTY
@given(text=st.text(max_size=60))
def test_any_text_as_config_runs_or_is_refused(text, refused, tmp_path):
    path = tmp_path / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    status, line = refused.run(
        refused.arguments(
            "ZeroshotCLIP", tmp_path / "any", "--no-train", "--dataset-config-file", path, "DATASET.NAME", "Caltech101"
        )
    )
    if status != 0:
        refused.judge(f"any text as config: {text!r}", status, line, (), tmp_path / "any")


@PROPERTY
@given(
    where=st.sampled_from(["train", "val", "test"]), position=st.integers(0, 17), field=st.integers(0, 2), value=TREES
)
def test_any_entry_of_a_split_runs_or_is_refused(where, position, field, value, refused, tmp_path, own_root):
    split = drawn.caltech_entries()
    split[where][position][field] = value
    (own_root / "caltech-101" / "split_zhou_Caltech101.json").write_text(json.dumps(split))
    shutil.rmtree(own_root / "caltech-101" / "split_fewshot", ignore_errors=True)
    status, line = refused.run(refused.arguments("ZeroshotCLIP", tmp_path / "any", "--no-train", root=own_root))
    shutil.rmtree(tmp_path / "any", ignore_errors=True)
    if status != 0:
        refused.judge(f"any split {where}[{position}][{field}] = {value!r}"[:200], status, line, (), tmp_path / "any")


@pytest.fixture(scope="session")
def own_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    drawn.write_caltech(root)
    return root


@settings(PROPERTY, max_examples=300)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"]),
    cut=st.integers(0, 3000),
    flips=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=6),
)
def test_any_damage_to_a_picture_is_read_or_refused(kind, cut, flips, tmp_path_factory):
    content = bytearray(encoded(kind))
    for place, value in flips:
        content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "any_picture"
    path.write_bytes(bytes(content[: len(content) - cut] if cut < len(content) else content))
    with bombs_are_errors():
        fault = fault_of(str(path))
    found = None
    with contextlib.suppress(InputError):
        found = read_image(str(path))
    if kind == "JPEG":  # decoded to an eighth, it fails where it fails whole
        assert (found is not None) == (fault is None)


# ---- one writer a folder ----
def holding(folder):
    """Fork a process that holds the lock of a folder until it is killed; returns its number."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            with FolderLock(str(folder)):
                os.write(write, b"held\n")
                signal.pause()
        finally:
            os._exit(1)
    os.close(write)
    with open(read, "rb") as told:
        assert told.readline() == b"held\n"
    return pid


def test_the_second_process_is_told_of_the_first(refused, arguments, clips, tmp_path):
    out = tmp_path / "out"
    holder = holding(out)
    try:
        for words in ((), ("--eval-only", "--model-dir", tmp_path), ("--no-train",)):
            refused(
                f"a folder in use {words[:1]}",
                "ZeroshotCLIP",
                *words,
                output=out,
                parts=[f"process {holder} on {socket.gethostname()}", "--output-dir"],
            )
        assert [path.name for path in out.iterdir()] == [".lock"]
        train.main(arguments("ZeroshotCLIP", tmp_path / "other"), clips=clips)
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    assert (out / ".lock").exists()  # killed, it could not remove its lock: it is taken over
    assert train.main(arguments("ZeroshotCLIP", out), clips=clips)["metrics"]
    assert not (out / ".lock").exists()


def test_a_lock_of_another_machine_is_not_guessed_about(refused, arguments, clips, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".lock").write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    refused("a lock of another machine", "CoOp", output=out, parts=["process 7 on elsewhere", "delete", out / ".lock"])
    for content in ("", "{", "[]", '{"pid": "x"}', "\x00" * 50):
        (out / ".lock").write_text(content)
        with FolderLock(str(out)):
            pass
    assert train.main(arguments("CoOp", out), clips=clips)["metrics"]


def test_a_file_system_without_locks_goes_by_the_file(tmp_path, monkeypatch):
    from dassl.utils import lock

    def none(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", none)
    ended = subprocess.Popen(["true"])
    ended.wait()
    for pid, free in ((ended.pid, True), (os.getppid(), False)):
        (tmp_path / ".lock").write_text(json.dumps({"pid": pid, "host": socket.gethostname()}))
        if free:
            with FolderLock(str(tmp_path)):
                assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        else:
            with pytest.raises(InputError, match=f"process {pid} on"), FolderLock(str(tmp_path)):
                pass


# ---- checkpoints fall back ----
@pytest.fixture(scope="module")
def three_epochs(tmp_path_factory):
    """The folder of a run that is made once."""
    return tmp_path_factory.mktemp("three_epochs")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:700]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: torch.save({"epoch": 3}, path),
    ],
    ids=["torn", "empty", "missing", "of another form"],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage, arguments, clips, three_epochs, tmp_path, capsys):
    words = ("OPTIM.MAX_EPOCH", 3)
    undisturbed = three_epochs / "whole"
    whole = train.main(arguments("MetaPrompt", undisturbed, *words), clips=clips)  # taken over from the first test on
    shutil.copytree(undisturbed, tmp_path / "out")
    (tmp_path / "out" / "results.json").unlink()
    newest = tmp_path / "out" / "prompt_learner" / "model.pth.tar-3"
    damage(newest)
    capsys.readouterr()
    resumed = train.main(arguments("MetaPrompt", tmp_path / "out", *words), clips=clips)
    printed = capsys.readouterr().out
    assert "Warning" in printed and "model.pth.tar-3" in printed and "after epoch 2" in printed
    assert resumed["metrics"] == whole["metrics"]
    same_prompts(tmp_path / "out", undisturbed, 3)


def test_which_checkpoint_is_furthest(tmp_path):
    def write(name, epoch, step=0):
        torch.save({"epoch": epoch, "step": step, "state_dict": {}}, tmp_path / name)

    assert list(checkpoints_newest_first(str(tmp_path / "nowhere"))) == []
    write("model.pth.tar-9", 9)
    write("model.pth.tar-10", 10)
    write("model-interrupted.pth.tar", 9, 5)
    found = [(state["epoch"], state["step"]) for _, state in checkpoints_newest_first(str(tmp_path))]
    assert found == [(10, 0), (9, 5), (9, 0)]
    write("model-interrupted.pth.tar", 10, 1)
    assert next(checkpoints_newest_first(str(tmp_path)))[1]["step"] == 1
