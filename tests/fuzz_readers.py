"""What the fuzzer reads: for every kind of file or words a corpus, how inputs are made of it, and the project's own
entries that read them."""
import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import math
import os
import pickle
import re
import shutil
import struct
import tarfile
import types
import warnings
import zipfile
import zlib
from pathlib import Path
from unittest import mock

import drawn
import numpy as np
import torch
import yaml
from fuzz_mutate import NUMBERS, TEXTS, as_json, deep, mutate_bytes, mutate_tree, pool
from PIL import Image

import tiny_clip
import train
from dassl.data.datasets import build_dataset
from dassl.data.overlap import RECORD, ImageSet
from dassl.engine.run_folder import Sources, finished_results
from dassl.utils.images import bombs_are_errors, fault_of, is_picture, read_image, size_of
from datasets.files import read_mat
from prompting import Towers, load_clip
from prompting.backbone import describe_weights, weights_digest
from runs.build_config import CONFIGS as OWN_CONFIGS
from tools import predict, report
from tools.downloads import layouts, sources
from tools.downloads.archives import Bounds, unpack
from tools.results.significance import read_predictions
from tools.running import slurm_settings, status
from tools.running.plans import Place, Run
from trainers.coprompt import read_sentences

CONFIGS = Path(OWN_CONFIGS)
MARK = b"/FUZZ/"  # stands in inputs for the folder that the fuzzer works in, which has another name each time
BOMBS = [zlib.compress(bytes(size)) for size in (100, 10**6, 2**26)]


class Fault(Exception):
    """What was read is not what may be read."""


class Trap:
    """Unpickling it raises what nothing here raises."""

    def __reduce__(self):
        return exec, ("raise SystemError('the code of a file was run')",)


def wipe(folder):
    """Empty a folder, whatever modes its contents have."""
    for path, names, _ in os.walk(folder):
        for name in names:
            inner = os.path.join(path, name)
            if not os.path.islink(inner):
                with contextlib.suppress(OSError):
                    os.chmod(inner, 0o700)
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.remove(entry.path)


def finite(numbers, where):
    """Raise Fault unless all numbers in a tree of dicts and lists are finite."""
    if isinstance(numbers, dict):
        numbers = list(numbers.values())
    if isinstance(numbers, (list, tuple)):
        for number in numbers:
            finite(number, where)
    elif isinstance(numbers, float) and not math.isfinite(numbers):
        raise Fault(f"{where}: {numbers}")
    elif torch.is_tensor(numbers) and not torch.isfinite(numbers).all():
        raise Fault(f"{where}: a tensor that is not finite")


class World:
    """What all readers share: drawn data, the tiny CLIP, a finished run of CoOp. Made once, before any input.

    Attributes: folder; data: a DATASET.ROOT; run: the run's folder; values: plain values to put into trees."""

    def __init__(self, folder, seed):
        self.folder = Path(os.path.realpath(folder))
        self.scratch, self.current = self.folder / "scratch", self.folder / "current.input"
        self.data, self.run = self.folder / "data", self.folder / "run"
        self.scratch.mkdir()
        self.values = pool(seed, 400)
        drawn.write_caltech(self.data)
        weights = self.folder / "tiny.pt"
        torch.save(tiny_clip.state_dict(), weights)
        # Checkpoints say how much memory a pass may take, which by default is what is free at the moment.
        fixed = drawn.CONFIG.replace("PRINT_FREQ: 1", "PRINT_FREQ: 1, TEXT_MEMORY_MB: 64")
        (self.folder / "tiny.yaml").write_text(fixed)
        train.discover()
        self.clips = {str(weights): load_clip(str(weights))}
        train.main(self.words(self.run), clips=self.clips)
        self.cfg = train.build_config(train.parse_arguments(self.words(self.run)))

    def words(self, output, *words, trainer="CoOp", dataset="caltech101", root=None, config="tiny.yaml"):
        """The words of a run's command line."""
        return ["--root", str(root or self.data), "--seed", "1", "--trainer", trainer, "--backbone",
                str(self.folder / "tiny.pt"), "--dataset-config-file", str(CONFIGS / "datasets" / f"{dataset}.yaml"),
                "--config-file", str(self.folder / config), "--output-dir", str(output), *map(str, words)]

    def predict(self, folder):
        """Classify a picture with the run in a folder."""
        run = predict.load_run(str(folder), clips=self.clips)
        [found] = run.predict([str(self.data / "caltech-101" / "101_ObjectCategories" / "dog" / "image_0000.png")])
        finite([probability for _, probability in found.top], "predicted")

    def finished(self, folder):
        """Ask whether a folder holds the world's run, and whether it is whole."""
        cfg = train.build_config(train.parse_arguments(self.words(folder)))
        evaluation = {"eval_only": False, "load_epoch": None, "checkpoint": None}
        finished_results(cfg, lambda: train.default_config(cfg), evaluation, Sources(cfg, weights_digest))

    def fresh(self):
        """The folder that an input may write to, empty."""
        self.scratch.mkdir(exist_ok=True)
        wipe(self.scratch)
        return self.scratch

    @property
    def mark(self):
        return MARK.ljust(len(str(self.folder)), b"_")

    def portable(self, data):
        """Bytes without the name of this folder."""
        return data.replace(str(self.folder).encode(), self.mark)

    def local(self, data):
        return re.sub(MARK + b"_*", lambda found: str(self.folder).encode(), data) if MARK in data else data

    def fixed(self, tree):
        """Without what is another each time: seconds, and the name of the folder."""
        if isinstance(tree, dict):
            return {key: 1 if key == "bytes" or "second" in str(key) else self.fixed(value)
                    for key, value in tree.items()}
        if isinstance(tree, (list, tuple)):
            return type(tree)(map(self.fixed, tree))
        return self.portable(tree.encode()).decode() if isinstance(tree, str) else tree


class Reader:
    """A kind of input. `make(rng)` gives one as bytes, or raises where what was drawn cannot be written;
    `read(data, scratch)` reads it or raises."""

    name = ""

    def __init__(self, world):
        self.world = world
        self.prepare()

    def prepare(self):
        pass

    def make(self, rng):
        raise NotImplementedError

    def read(self, data, scratch):
        raise NotImplementedError

    def tree(self, rng, tree, **words):
        return mutate_tree(rng, tree, self.world.values, **words)


def headed(word, data):
    """An input that says in its first line what it is."""
    return word.encode() + b"\n" + data


def parted(data):
    word, _, rest = data.partition(b"\n")
    return word.decode(errors="replace"), rest


# ---- images ------------------------------------------------------------------------------------------------------


class Images(Reader):
    name = "images"

    def prepare(self):
        self.corpus = []
        pixels = np.random.RandomState(0).randint(0, 256, (13, 17, 3), np.uint8)
        picture, exif = Image.fromarray(pixels), Image.Exif()
        exif[274] = 6
        grey = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        kinds = [(kind, picture, {}) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "ICO", "PCX", "PPM",
                                                  "SGI", "DDS", "TGA", "JPEG2000", "AVIF")]
        kinds += [("PNG", picture.convert(mode), {}) for mode in ("1", "L", "LA", "P", "RGBA")] + [("PNG", grey, {})]
        kinds += [("JPEG", picture, {"progressive": True}), ("JPEG", picture.convert("CMYK"), {}),
                  *((kind, picture, {"exif": exif}) for kind in ("JPEG", "PNG", "TIFF")),
                  ("WEBP", picture, {"lossless": True, "exif": exif}), ("TIFF", grey, {}), ("PPM", grey, {}),
                  ("TIFF", Image.fromarray(pixels[..., 0].astype(np.float32)), {}),
                  ("TIFF", Image.fromarray(pixels[..., 0].astype(np.int32)), {}),
                  ("GIF", picture, {"save_all": True, "append_images": [picture.rotate(90)] * 2}),
                  ("TGA", picture, {"compression": "tga_rle"}), ("PPM", picture.convert("1"), {})]
        kinds += [("TIFF", picture, {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")]
        kinds += [("TIFF", picture.convert("1"), {"compression": "group4"})]
        for kind, image, words in kinds:
            buffer = io.BytesIO()
            with contextlib.suppress(OSError, KeyError, ValueError):  # what this Pillow was built without
                image.save(buffer, kind, **words)
                self.corpus.append(buffer.getvalue())
        self.corpus += [b"P3\n2 2\n255\n" + b"1 " * 12, b"P1\n2 2\n1 0 1 1\n", b"Pf\n2 2\n-1.0\n" + bytes(16),
                        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]

    def make(self, rng):
        data = rng.choice(self.corpus)
        if data[:4] == b"\x89PNG" and rng.random() < 0.7:
            return self.chunks(rng, data)
        return mutate_bytes(rng, data, self.corpus)

    @staticmethod
    def chunks(rng, data):
        """A PNG of changed chunks, whose check sums are right."""
        place, chunks = 8, []
        while place < len(data):
            length, = struct.unpack_from(">I", data, place)
            chunks.append([data[place + 4:place + 8], data[place + 8:place + 8 + length]])
            place += 12 + length
        for _ in range(rng.choice((1, 1, 2, 3))):
            chunk = rng.choice(chunks)
            kind = rng.randrange(6)
            if kind == 0:
                chunk[0] = rng.choice((b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"PLTE", b"tRNS", b"acTL", b"fcTL",
                                       b"fdAT", b"IDAT", b"pHYs", b"gAMA", b"cHRM", b"IHDR", b"IEND"))
            elif kind == 1:
                chunks.insert(rng.randrange(len(chunks) + 1), [rng.choice((b"zTXt", b"iCCP", b"iTXt")),
                              b"k\0\0" + rng.choice(BOMBS)])
            elif kind == 2:
                chunks.insert(rng.randrange(len(chunks) + 1), list(chunk))
            elif kind == 3 and chunk[0] == b"IHDR":
                size = [rng.choice((1, 2, 17, 5000, 9000, 20000, 2**31 - 1)) for _ in range(2)]
                chunk[1] = struct.pack(">II", *size) + chunk[1][8:]
            else:
                chunk[1] = mutate_bytes(rng, chunk[1])
        return data[:8] + b"".join(struct.pack(">I", len(body)) + kind + body +
                                   struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks)

    def read(self, data, scratch):
        path = str(scratch / "picture.png")
        Path(path).write_bytes(data)
        is_picture(path)
        with bombs_are_errors():
            fault_of(path)
        size_of(path)
        size_of(path, exif=True)
        read_image(path)
        read_image(path, exif=True)


# ---- what torch writes -------------------------------------------------------------------------------------------


def saved(tree):
    """A tree as torch.save writes it. Raises whatever it raises for one that it cannot write."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(tree, buffer)
    return buffer.getvalue()


def saved_before(tree):
    """As torch wrote before its version 1.6. One tensor at most: it is named by where it lies in memory, here by 1."""
    buffer = io.BytesIO()
    torch.save(tree, buffer, _use_new_zipfile_serialization=False)
    return re.sub(rb"X[\x09-\x12]\0\0\0\d{9,18}(?=q|K)", b"X\x01\0\0\x001", buffer.getvalue())


class Checkpoints(Reader):
    """A run goes on from a checkpoint, evaluates it, begins with it or predicts with it."""

    name = "checkpoints"
    WAYS = ("resume", "other folder", "interrupted", "evaluate", "best", "begin", "predict", "pointer")

    def prepare(self):
        models = self.world.run / "prompt_learner"
        self.trees, self.files = [], []
        for number in (1, 2):
            tree = torch.load(models / f"model.pth.tar-{number}", weights_only=True)
            tree = self.world.fixed(tree)
            self.trees.append(tree)
            self.files.append(saved(tree))
        self.files.append(saved_before({key: self.trees[1][key] for key in ("trainer", "classnames", "state_dict",
                                                                             "epoch", "made_for")}))

    def make(self, rng):
        way = rng.choice(self.WAYS)
        if way == "pointer":  # the file that names the newest
            return headed(way, mutate_bytes(rng, b"model.pth.tar-2\n"))
        if rng.random() < 0.25:
            return headed(way, mutate_bytes(rng, rng.choice(self.files), self.files, near=3000))
        tree = self.trees[way in ("evaluate", "best", "predict")]
        if rng.random() < 0.02:
            tree = {**tree, rng.choice(list(tree)): rng.choice((Trap(), deep(rng.choice((100, 3000)), 1)))}
        return headed(way, saved(self.tree(rng, tree, tensors=True)))

    def read(self, data, scratch):
        way, content = parted(data)
        before, out = scratch / "before", scratch / "out"
        models = before / "prompt_learner"
        models.mkdir(parents=True)
        for name in ("config.yaml", RECORD):
            shutil.copy(self.world.run / name, before / name)
        number = 1 if way in ("resume", "other folder") else 2
        name = {"best": "model-best.pth.tar", "interrupted": "model-interrupted.pth.tar"}.get(
            way, f"model.pth.tar-{number}")
        (models / name).write_bytes(self.world.local(saved(self.trees[1]) if way == "pointer" else content))
        if way == "pointer":
            (models / "checkpoint").write_bytes(content)
        elif way not in ("best", "interrupted"):
            (models / "checkpoint").write_text(f"{name}\n")
        words = {"resume": (before,), "interrupted": (before,), "other folder": (out, "--resume", before),
                 "begin": (out, "MODEL.INIT_WEIGHTS", models / name)}.get(
                     way, (out, "--eval-only", "--model-dir", before))
        if way == "predict":
            self.world.predict(before)
        else:
            results = train.main(self.world.words(*words), clips=self.world.clips)
            finite(results["metrics"], "metrics")
            if not 0 <= results["metrics"]["test"]["accuracy"] <= 100:
                raise Fault("an accuracy that is none")
            for path in (Path(words[0]) / "prompt_learner").glob("model.pth.tar-*"):
                finite(torch.load(path, weights_only=True)["state_dict"], f"trained tensors, {way}")
            json.loads((Path(words[0]) / "results.json").read_text(), parse_constant=_no_number)


def _no_number(word):
    raise Fault(f"results.json holds {word}")


class Weights(Reader):
    """A backbone: safetensors, a saved state dict, TorchScript. What is accepted must compute."""

    name = "weights"

    def prepare(self):
        from clip.model import CLIP
        from safetensors.torch import save

        torch.manual_seed(0)
        self.save, self.trees, self.files = save, [], []
        # a whole vocabulary computes, a small one is quickly read
        for vocabulary, layers in ((49408, 4), (49408, (1, 1, 1, 1)), (64, 4)):
            width = 64 if layers == 4 else 16
            model = CLIP(embed_dim=64, image_resolution=32, vision_layers=1 if layers == 4 else layers,
                         vision_width=width, vision_patch_size=16 if layers == 4 else None, context_length=77,
                         vocab_size=vocabulary, transformer_width=64, transformer_heads=1, transformer_layers=1)
            tree = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
            if vocabulary > 64:
                tree = {name: tensor.half() for name, tensor in tree.items()}
            self.trees.append(tree)
            self.files += [headed("safetensors", save(tree)), headed("pt", saved(tree))]
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), buffer)
        self.files.append(headed("pt", buffer.getvalue()))

    def make(self, rng):
        if rng.random() < 0.4:
            kind, data = parted(rng.choice(self.files))
            if kind == "safetensors" and rng.random() < 0.5:
                return headed(kind, self.header(rng, data))
            return headed(rng.choice((kind, kind, kind, "pt", "safetensors")), mutate_bytes(rng, data, near=4000))
        tree = rng.choice(self.trees)
        if rng.random() < 0.4:
            mutant = self.tree(rng, tree, tensors=True)
            return headed("safetensors", self.save({str(name): value.contiguous() for name, value in mutant.items()
                                                    if torch.is_tensor(value) and value.numel() < 10**8}))
        if rng.random() < 0.02:
            tree = {**tree, "x": Trap()}
        if rng.random() < 0.1:
            tree = {"state_dict": tree}
        return headed("pt", saved(self.tree(rng, tree, tensors=True)))

    def header(self, rng, data):
        """A safetensors file of a changed header."""
        length, = struct.unpack_from("<Q", data)
        changed = as_json(rng, self.tree(rng, json.loads(data[8:8 + length])))
        size = len(changed) if rng.random() < 0.9 else rng.choice(NUMBERS) % 2**64
        return struct.pack("<Q", size) + changed + data[8 + length:]

    def read(self, data, scratch):
        kind, content = parted(data)
        path = str(scratch / f"weights.{kind}")
        Path(path).write_bytes(content)
        try:
            describe_weights(path)
        finally:
            model = load_clip(path)
        towers = Towers(model)
        with torch.no_grad():
            texts = towers.text.encode_texts(["a photo of a dog.", "cat"])
            size = model.visual.input_resolution
            if size > 512:
                return
            images = towers.encode_image(torch.zeros(1, 3, size, size))
        # what the weights say is what comes out: only shapes are the reader's
        if texts.shape[1] != images.shape[1]:
            raise Fault(f"texts of {tuple(texts.shape)}, images of {tuple(images.shape)}")


# ---- run folders -------------------------------------------------------------------------------------------------


class Results(Reader):
    """One of two runs of a protocol has another results.json; it is reported, and its folder is asked whether it is
    finished."""

    name = "results"

    def prepare(self):
        self.good = self.world.fixed(json.loads((self.world.run / "results.json").read_bytes()))
        self.predictions = (self.world.run / "predictions.csv.gz").read_bytes()

    def place(self, trainer, seed=1):
        return Place("base2new", "caltech101", trainer, "tiny", "train_base", 2, seed)

    def make(self, rng):
        way = rng.choice(("text", "latex", "csv", "budget", "published", "finished", "predict"))
        data = as_json(rng, self.tree(rng, self.good))
        if rng.random() < 0.2:
            data = mutate_bytes(rng, json.dumps(self.good).encode())
        return headed(way, data)

    def read(self, data, scratch):
        way, content = parted(data)
        content = self.world.local(content)
        if way in ("finished", "predict"):
            folder = scratch / "run"
            shutil.copytree(self.world.run, folder)
            (folder / "results.json").write_bytes(content)
            if way == "predict":
                self.world.predict(folder)
            else:
                self.world.finished(folder)
            return
        for number, trainer in enumerate(("CoOp", "MetaPrompt")):
            folder = scratch / self.place(trainer).folder
            folder.mkdir(parents=True)
            (folder / "results.json").write_bytes(content if number else self.world.local(
                json.dumps(self.good).encode()))
            (folder / "predictions.csv.gz").write_bytes(self.predictions)
        report.main([str(scratch), *(["--format", way] if way in ("text", "latex", "csv") else [f"--{way}"])])


class Predictions(Reader):
    """predictions.csv.gz of a compared run, and train_images.csv.gz."""

    name = "predictions"

    def prepare(self):
        self.files = [self.world.portable(gzip.decompress((self.world.run / name).read_bytes()))
                      for name in ("predictions.csv.gz", RECORD)]
        self.good = json.loads((self.world.run / "results.json").read_bytes())

    def make(self, rng):
        which = rng.randrange(2)
        text = self.files[which]
        if rng.random() < 0.4:
            rows = list(csv.reader(io.StringIO(text.decode())))
            buffer = io.StringIO()
            csv.writer(buffer, lineterminator="\n").writerows(
                row if isinstance(row, list) else [row] for row in _listed(self.tree(rng, rows)))
            text = buffer.getvalue().encode("utf-8", "surrogatepass")
        elif rng.random() < 0.7:
            text = mutate_bytes(rng, text, self.files)
        if rng.random() < 0.01:
            text = text + bytes(rng.choice((10**6, 10**7, 5 * 10**8)))
        packed = gzip.compress(text, rng.choice((1, 9)), mtime=0)
        if rng.random() < 0.3:
            packed = mutate_bytes(rng, packed)
        return headed(("predictions", "record")[which], packed)

    def read(self, data, scratch):
        which, content = parted(data)
        if which == "record":
            (scratch / RECORD).write_bytes(content)
            ImageSet(root=str(self.world.data)).add_noted(str(scratch))
            return
        (scratch / "predictions.csv.gz").write_bytes(content)
        read_predictions(str(scratch))
        for seed in (1, 2, 3):
            for trainer in ("CoOp", "MetaPrompt"):
                folder = scratch / Place("base2new", "caltech101", trainer, "tiny", "train_base", 2, seed).folder
                folder.mkdir(parents=True)
                (folder / "results.json").write_text(json.dumps({**self.good, "trainer": trainer, "seed": seed}))
                shutil.copy(scratch / "predictions.csv.gz" if seed == 1 and trainer == "CoOp" else
                            self.world.run / "predictions.csv.gz", folder / "predictions.csv.gz")
        report.main([str(scratch), "--compare", "CoOp", "MetaPrompt"])


def _listed(value):
    return value if isinstance(value, list) else [value]


class Jobs(Reader):
    """What lies in the output folder of a protocol that runs on a cluster."""

    name = "jobs"

    def prepare(self):
        self.place = Place("base2new", "caltech101", "CoOp", "tiny", "train_base", 2, 1)
        self.good = {
            "sweep/jobs.json": {self.place.folder: "4711_0", "base2new/x/seed1": "4711_1"},
            f"{self.place.folder}/.lock": {"pid": 1, "host": "node", "job": "4711_0", "started": 1.0},
            f"{self.place.folder}/log.txt": "epoch [1/2]\nloss 1.0\n",
            f"{self.place.folder}/config.yaml": self.world.fixed(yaml.safe_load((self.world.run /
                                                                                        "config.yaml").read_text())),
            f"{self.place.folder}/prompt_learner/checkpoint": "model.pth.tar-2\n",
            "sweep/jobs/4711_0_reason.json": {"error": "no image at a.png"},
            "sweep/jobs/4711_0_0_result.pkl": ("error", "Traceback\ndassl.utils.errors.InputError: no\n"),
        }

    def make(self, rng):
        name = rng.choice(list(self.good))
        good = self.good[name]
        if name.endswith(".pkl"):
            tree = Trap() if rng.random() < 0.1 else tuple(_listed(self.tree(rng, list(good))))
            data = pickle.dumps(tree, rng.randrange(5))
            return headed(name, mutate_bytes(rng, data) if rng.random() < 0.4 else data)
        if isinstance(good, str):
            return headed(name, mutate_bytes(rng, good.encode()))
        data = as_json(rng, self.tree(rng, good))
        return headed(name, mutate_bytes(rng, data) if rng.random() < 0.4 else data)

    def read(self, data, scratch):
        name, content = parted(data)
        for path, good in self.good.items():
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            if path in (name, "sweep/jobs.json"):
                data = content if path == name else json.dumps(good).encode()
                (scratch / path).write_bytes(self.world.local(data))
        folder = scratch / self.place.folder
        if not name.startswith("sweep"):
            shutil.copy(self.world.run / "prompt_learner" / "model.pth.tar-2", folder / "prompt_learner")
        idle = types.SimpleNamespace(state=lambda job: ("", ""))
        with (mock.patch.object(status, "Queue", return_value=idle),
              mock.patch.object(status, "ended_as", return_value="FAILED"),
              mock.patch.object(status, "shutil", types.SimpleNamespace(which=lambda name: name))):
            status.describe(status.states([Run(self.place, train.parse_arguments(self.world.words(folder)))],
                                          str(scratch)))


# ---- configs and words -------------------------------------------------------------------------------------------


class Configs(Reader):
    """YAML of a method, of a dataset, and of a run folder that is gone on with or predicted with."""

    name = "configs"

    def prepare(self):
        files = [self.world.folder / "tiny.yaml", *sorted((CONFIGS / "datasets").glob("*.yaml"))[:4],
                 *sorted((CONFIGS / "trainers" / "CoOp").glob("*.yaml"))[:3]]
        self.texts = [path.read_bytes().replace(b"../../inputs/", b"inputs/") for path in files]
        self.texts.append(self.world.portable((self.world.run / "config.yaml").read_bytes()))
        self.trees = [yaml.safe_load(text) for text in self.texts]

    def make(self, rng):
        way = rng.choice(("method", "method", "dataset", "folder", "predict"))
        number = rng.randrange(len(self.texts)) if way in ("method", "dataset") else -1
        if rng.random() < 0.5:
            data = mutate_bytes(rng, self.texts[number], self.texts)
        else:
            data = as_yaml(rng, self.tree(rng, self.trees[number]))
        return headed(way, data)

    def read(self, data, scratch):
        way, content = parted(data)
        content = self.world.local(content)
        if way in ("method", "dataset"):
            (scratch / "own.yaml").write_bytes(content)
            shutil.copytree(CONFIGS / "inputs", scratch / "inputs")
            words = self.world.words(scratch / "out")
            words[words.index("--config-file" if way == "method" else "--dataset-config-file") + 1] = "own.yaml"
            train.build_config(train.parse_arguments(words))
            return
        folder = scratch / "run"
        shutil.copytree(self.world.run, folder, ignore=shutil.ignore_patterns("results.json"))
        (folder / "config.yaml").write_bytes(content)
        if way == "predict":
            self.world.predict(folder)
        else:
            self.world.finished(folder)


def as_yaml(rng, tree):
    """A tree as YAML, now and then as JSON, which is YAML, too."""
    if rng.random() < 0.7:
        with contextlib.suppress(yaml.YAMLError, RecursionError, ValueError):
            return yaml.safe_dump(tree, allow_unicode=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return as_json(rng, tree)


class Words(Reader):
    """Words of the command line."""

    name = "words"

    def prepare(self):
        cfg = train.default_config()
        self.keys = sorted(_leaves(cfg))
        self.flags = ["--root", "--output-dir", "--resume", "--seed", "--source-domains", "--target-domains",
                      "--transforms", "--config-file", "--dataset-config-file", "--trainer", "--backbone", "--head",
                      "--eval-only", "--model-dir", "--load-epoch", "--no-train", "--skip-bad-images", "--help", "-h",
                      "--", "--se", "--no", "--seed=1", "--x", "-1", "--config-file=", "--t"]
        self.good = ["1", "2", "0.5", "True", "False", "CoOp", "MetaPrompt", "Caltech101", "ViT-B/16", "tiny", "auto",
                     "(1, 2)", "[32, 32]", "()", "[a, b]", "a,b", "sgd", "cosine", "32", "photo", "'a photo of a {}.'",
                     "{'a': 1}", "1e-3", "nan", "1" * 5000, "(" * 200, "[" * 500, "-" * 300, "9**9**9", "'a' * 10**9",
                     "__import__('os')", "1_000", "0x1F", "1j", "b'a'", "{1, 2}", "...", "a photo of a {}.",
                     "{0.__class__}", "{:>999999999}", "{!r}", "{{}}"]

    def value(self, rng):
        kind = rng.randrange(5)
        value = rng.choice(self.good) if kind < 3 else rng.choice(self.world.values if kind == 3 else NUMBERS)
        value = str(value) if rng.random() < 0.9 else json.dumps(value)
        return value.replace("\0", "")  # no system hands one over

    def make(self, rng):
        words = []
        for _ in range(rng.choice((1, 1, 2, 3, 6))):
            kind = rng.randrange(8)
            if kind < 3:
                words += [rng.choice(self.keys), self.value(rng)]
            elif kind < 5:
                words.append(f"{rng.choice(self.keys)}={self.value(rng)}")
            elif kind == 5:
                words += [rng.choice(self.flags), *(self.value(rng) for _ in range(rng.randrange(3)))]
            elif kind == 6:
                words.append(self.value(rng))
            else:
                key = rng.choice(self.keys)
                words += [rng.choice((key.lower(), key + ".X", key.rpartition(".")[0], f".{key}", key[1:])),
                          self.value(rng)]
        way = rng.choice(("train", "train", "train", "train", "predict", "report", "cluster"))
        return headed(way, json.dumps(words).encode())

    def read(self, data, scratch):
        way, content = parted(data)
        words = [os.fsdecode(word.encode("utf-8", "surrogatepass")) for word in json.loads(content)]
        if way == "train":
            train.build_config(train.parse_arguments([*self.world.words(scratch / "out"), *words]))
        elif way == "predict":
            args = predict.parse_arguments(["a.png", "--model-dir", "x", "--classes", *words[:1]])
            predict.given_classes(args.classes, args.classes_file)
        elif way == "report":
            report.main([str(self.world.folder), *words])
        else:
            parser = train.ArgumentParser()
            slurm_settings.add_arguments(parser)
            slurm_settings.slurm_parameters(parser.parse_args(["--time", words[0], "--slurm", words[-1]]))


def _leaves(node, prefix=""):
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


class Clusters(Reader):
    """The YAML file of --cluster."""

    name = "clusters"

    def prepare(self):
        text = (CONFIGS / "cluster" / "example.yaml").read_text()
        self.texts = [text.encode(), text.replace("# ", "").encode()]
        self.good = {**yaml.load(text, yaml.BaseLoader), "account": "a", "qos": "normal", "setup": ["module load cuda"],
                     "slurm": {"constraint": "a100", "exclude": "node[3-4]", "exclusive": "true"}}
        self.texts.append(yaml.safe_dump(self.good).encode())

    def make(self, rng):
        if rng.random() < 0.5:
            return mutate_bytes(rng, rng.choice(self.texts), self.texts)
        return as_yaml(rng, self.tree(rng, self.good))

    def read(self, data, scratch):
        (scratch / "cluster.yaml").write_bytes(data)
        parser = train.ArgumentParser()
        slurm_settings.add_arguments(parser)
        slurm_settings.slurm_parameters(parser.parse_args(["--cluster", "cluster.yaml"]))


# ---- lists of data -----------------------------------------------------------------------------------------------


def mirrored(source, target, name, content):
    """Make `target` a copy of the folder `source`, of links, whose file `name` has this content."""
    here, there = Path(source), Path(target)
    there.mkdir()
    for part in (parts := Path(name).parts):
        for entry in os.scandir(here) if here.is_dir() else ():
            if entry.name != part:
                os.symlink(entry.path, there / entry.name)
        here, there = here / part, there / part
        if part != parts[-1]:
            there.mkdir()
    there.write_bytes(content)


class DataFile(Reader):
    """A file of a dataset's folder, or one that names its classes. Configs are built once: all inputs lie alike."""

    def prepare(self):
        self.cfg = self.config()

    def config(self, *words, dataset="caltech101"):
        """The config of a run on the folder `data` that an input makes."""
        words = self.world.words("out", *words, dataset=dataset, root=self.world.scratch / "data")
        return train.build_config(train.parse_arguments(words))

    def built(self, cfg, name, content, source=None):
        """Build the dataset of a config from a copy of the folder `source`, in which the file `name` is another."""
        mirrored(source or self.world.data, self.world.scratch / "data", name, content)
        build_dataset(cfg)


class Splits(DataFile):
    name = "splits"
    file = "caltech-101/split_zhou_Caltech101.json"

    def prepare(self):
        super().prepare()
        self.good = json.loads((self.world.data / self.file).read_text())

    def make(self, rng):
        data = as_json(rng, self.tree(rng, self.good))
        return mutate_bytes(rng, json.dumps(self.good).encode()) if rng.random() < 0.25 else data

    def read(self, data, scratch):
        self.built(self.cfg, self.file, data)


class Draws(Splits):
    """A kept few-shot draw."""

    name = "draws"
    file = "caltech-101/split_fewshot/shot_2-seed_1.json"

    def prepare(self):
        DataFile.prepare(self)
        self.good = json.loads((self.world.run / "split_fewshot" / "shot_2-seed_1.json").read_text())


class Names(DataFile):
    """Files of class names: DATASET.CLASSNAMES and --classes-file."""

    name = "names"

    def prepare(self):
        self.cfg = self.config("DATASET.CLASSNAMES", self.world.scratch / "names.txt")
        self.good = {name: f"a {name} thing" for name in drawn.CLASSES}
        self.texts = ["\n".join(f"{name} = {new}" for name, new in self.good.items()).encode(),
                      "\n".join(drawn.CLASSES).encode()]

    def make(self, rng):
        kind = rng.randrange(4)
        if kind == 0:
            return as_json(rng, self.tree(rng, self.good))
        if kind == 1:
            words = [rng.choice((*drawn.CLASSES, *TEXTS)) for _ in range(rng.randrange(8))]
            return "\n".join(rng.choice((word, f"{word}={rng.choice(TEXTS)}")) for word in words).encode(
                "utf-8", "surrogatepass")
        return mutate_bytes(rng, rng.choice(self.texts), self.texts)

    def read(self, data, scratch):
        path = scratch / "names.txt"
        path.write_bytes(data)
        try:
            predict.given_classes([], str(path))
        finally:
            os.symlink(self.world.data, scratch / "data")
            build_dataset(self.cfg)


class Lists(DataFile):
    """Lists as datasets are published with: of images, of classes, MATLAB's, JSON's."""

    name = "lists"
    FILES = {"pacs/splits/photo_train_kfold.txt": "pacs", "fgvc_aircraft/variants.txt": "fgvc_aircraft",
             "fgvc_aircraft/images_variant_train.txt": "fgvc_aircraft", "imagenet/classnames.txt": "imagenet",
             "domainnet/splits/clipart_train.txt": "domainnet"}
    TERRA = "terra_incognita/caltech_images_20210113.json"

    def prepare(self):
        from scipy.io import savemat

        self.root = self.world.folder / "lists"
        for config in ("pacs", "fgvc_aircraft", "imagenet", "domainnet"):
            drawn.LAYOUTS[config](self.root)
        domains = {"pacs": ("--source-domains", "photo", "--target-domains", "sketch"),
                   "domainnet": ("--source-domains", "clipart", "--target-domains", "sketch")}
        self.cfgs = {name: self.config(*domains.get(name, ()), dataset=name) for name in set(self.FILES.values())}
        self.texts = {name: (self.root / name).read_bytes() for name in self.FILES}
        self.mats = []
        for pressed in (False, True):
            buffer = io.BytesIO()
            savemat(buffer, {"labels": np.arange(6)[None], "names": np.array(["a", "b"], object)},
                    do_compression=pressed)
            data = buffer.getvalue()
            self.mats.append(b"MATLAB 5.0 MAT-file".ljust(116) + data[116:])  # its first words say the time
        self.terra = {"categories": [{"id": 1, "name": "bird"}, {"id": 2, "name": "dog"}],
                      "annotations": [{"image_id": str(i), "category_id": 1 + i % 2} for i in range(8)],
                      "images": [{"id": str(i), "file_name": f"{i}.jpg", "location": (38, 43, 46, 100)[i % 4]}
                                 for i in range(8)]}

    def make(self, rng):
        kind = rng.randrange(8)
        if kind == 0:
            return headed("mat", mutate_bytes(rng, rng.choice(self.mats), self.mats))
        if kind == 1:
            return headed(self.TERRA, as_json(rng, self.tree(rng, self.terra)))
        name = rng.choice(list(self.FILES))
        text = self.texts[name]
        if kind < 5:
            lines = text.decode().splitlines()
            text = "\n".join(map(str, _listed(self.tree(rng, lines)))).encode("utf-8", "surrogatepass")
        return headed(name, text if kind == 2 else mutate_bytes(rng, text, list(self.texts.values())))

    def read(self, data, scratch):
        name, content = parted(data)
        if name == "mat":
            (scratch / "a.mat").write_bytes(content)
            read_mat(str(scratch / "a.mat"), "labels", "fetch it again")
        elif name == self.TERRA:
            folder = scratch / "terra_incognita"
            (folder / layouts.TERRA_IMAGES).mkdir(parents=True)
            (scratch / self.TERRA).write_bytes(content)
            for number in range(8):
                (folder / layouts.TERRA_IMAGES / f"{number}.jpg").write_bytes(b"")
            layouts.arrange_terra_incognita(str(scratch), sources.SOURCES["terra_incognita"].bounds)
        else:
            self.built(self.cfgs[self.FILES[name]], name, content, self.root)


class Sentences(Reader):
    """The sentences of TRAINER.COPROMPT.SENTENCES."""

    name = "sentences"

    def prepare(self):
        (self.world.folder / "coprompt.yaml").write_text(drawn.CONFIG.replace("  COOP: {N_CTX: 3}",
                                                                        "  COPROMPT: {N_CTX: 2, PROMPT_DEPTH: 2}"))
        self.good = {name: [f"a {name}.", f"A photo of a {name}, which is {number}."]
                     for number, name in enumerate(drawn.CLASSES)}

    def make(self, rng):
        data = as_json(rng, self.tree(rng, self.good))
        return mutate_bytes(rng, json.dumps(self.good).encode()) if rng.random() < 0.25 else data

    def read(self, data, scratch):
        path = scratch / "sentences.json"
        path.write_bytes(data)
        read_sentences(str(path))
        words = self.world.words(scratch / "out", "TRAINER.COPROMPT.SENTENCES", path, "OPTIM.MAX_EPOCH", 1,
                                 "OPTIM.WARMUP_EPOCH", 0, "DATASET.NUM_SHOTS", 1, trainer="CoPrompt",
                                 config="coprompt.yaml")
        finite(train.main(words, clips=self.world.clips)["metrics"], "metrics")


# ---- archives ----------------------------------------------------------------------------------------------------


class Archives(Reader):
    """Archives that are unpacked: nothing may come to lie, or be changed, outside their folder."""

    name = "archives"
    # Whatever is unpacked wrongly is to come to lie in the scratch folder, in which `target` lies deep, or here:
    ELSEWHERE = "/dev/shm/fuzz-sprung"
    NAMES = ["a", "a/b", "a/b/c.txt", "b", "c", "link", "link/x", "link/../x", "../x", "../sentinel/keep.txt",
             "../../x", "a/../../x", ELSEWHERE, f"/{ELSEWHERE}/x", "..", ".", "", "./a", "a//b", "a/.", "a/..",
             "a\\..\\..\\x", "..\\x", "C:\\x", "C:x", "x" * 120, "x" * 300, "/".join("d" * 90), "é", "e\u0301",
             "\udc80", "a\nb", "\x1b[2J", "-rf", ".lock", " ", "a ", "CON", "nul:", "a/b/" * 40 + "x"]
    TARGETS = ["a", "b", "..", ".", "", "../sentinel", "../sentinel/keep.txt", "../..", ELSEWHERE, f"{ELSEWHERE}/x",
               "link", "a/..", "a/../..", "link/..", "./../sentinel", "x" * 300]
    TYPES = [tarfile.REGTYPE, tarfile.REGTYPE, tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.DIRTYPE,
             tarfile.SYMTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
             tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"V", b"Z"]
    PACKED = {"tar": bytes, "tar.gz": lambda data: gzip.compress(data, 1, mtime=0), "tar.bz2": bz2.compress,
              "tar.xz": lambda data: lzma.compress(data, preset=0)}

    def make(self, rng):
        if rng.random() < 0.4:
            data = self.zip(rng)
            return headed("zip", mutate_bytes(rng, data) if rng.random() < 0.5 else data)
        data, kind = self.tar(rng), rng.choice(("tar", "tar", "tar", "tar.gz", "tar.gz", "tar.bz2", "tar.xz"))
        if rng.random() < 0.4:
            data = self.headers(rng, data)
        if rng.random() < 0.3:
            data = mutate_bytes(rng, data)
        data = self.PACKED[kind](data)
        return headed(kind, mutate_bytes(rng, data) if rng.random() < 0.15 else data)

    def content(self, rng):
        return rng.choice((b"", b"text", rng.randbytes(700), bytes(rng.choice((512, 5000, 3 * 10**6)))))

    def tar(self, rng):
        buffer = io.BytesIO()
        form = rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            for _ in range(rng.choice((1, 2, 3, 3, 4, 8))):
                member = tarfile.TarInfo(rng.choice(self.NAMES))
                member.type, member.linkname = rng.choice(self.TYPES), rng.choice(self.TARGETS)
                member.mode = rng.choice((0o644, 0o755, 0o777, 0, 0o4755, 0o7777, 0o2000, 0o1777, 2**20))
                member.mtime = rng.choice((0, 1, 1e9, 2**31, 2**33 - 1, -1))
                member.uid = member.gid = rng.choice((0, 1000, 2**21 - 1))
                if form == tarfile.PAX_FORMAT and rng.random() < 0.4:
                    member.pax_headers = {
                        rng.choice(("path", "linkpath", "size", "mtime", "uid", "GNU.sparse.name", "GNU.sparse.size",
                                    "GNU.sparse.map", "GNU.sparse.major", "GNU.sparse.realsize", "hdrcharset",
                                    "SCHILY.xattr.user.a", "comment")):
                        rng.choice((*self.NAMES, *self.TARGETS, *map(str, NUMBERS), "1.5", "nan", "0,10,20", "BINARY"))
                        .replace("\udc80", "?")}
                content = self.content(rng) if member.isreg() else b""
                member.size = len(content)
                with contextlib.suppress(ValueError, UnicodeError, OverflowError):  # what this form cannot say
                    tar.addfile(member, io.BytesIO(content))
        return buffer.getvalue()

    @staticmethod
    def headers(rng, data):
        """Fields of headers changed, with check sums that are right."""
        data = bytearray(data)
        blocks = [at for at in range(0, len(data), 512) if data[at + 257:at + 262] == b"ustar"]
        for at in rng.sample(blocks, min(len(blocks), rng.choice((1, 2)))):
            start, size = rng.choice(((0, 100), (100, 8), (108, 8), (124, 12), (124, 12), (136, 12), (156, 1),
                                      (157, 100), (257, 8), (329, 8), (345, 155), (386, 12), (482, 1), (483, 12)))
            value = rng.choice((b"%o" % (abs(rng.choice(NUMBERS)) % 8 ** (size - 1)) if size > 1 else b"S",
                                b"\x80" + rng.randbytes(size), b"\xff" * size, bytes(size), b"-1", b"../" * 2,
                                rng.choice(b"0123456789SLKxgMVDA").to_bytes(1, "big"), rng.randbytes(size)))
            data[at + start:at + start + size] = value[:size].ljust(size, b"\0")
            data[at + 148:at + 156] = b" " * 8
            data[at + 148:at + 156] = b"%06o\0 " % sum(data[at:at + 512])
        return bytes(data)

    def zip(self, rng):
        buffer = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as file:
            warnings.simplefilter("ignore")  # a name twice
            for _ in range(rng.choice((1, 2, 3, 5))):
                member = zipfile.ZipInfo(rng.choice(self.NAMES) or "a", (1980, 1, 1, 0, 0, 0))
                member.compress_type = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED,
                                                   zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
                kind = rng.choice((0o100000, 0o100000, 0o120000, 0o040000, 0o010000, 0o060000, 0))
                member.external_attr = (kind | rng.choice((0o644, 0o777, 0o4777, 0))) << 16 | rng.choice((0, 0x10))
                member.create_system = rng.choice((0, 3, 3, 255))
                member.extra = rng.choice((b"", b"", b"\x01\x00\x08\x00" + bytes(8), b"up\x03\x00abc",
                                           rng.randbytes(9)))
                member.comment = rng.choice((b"", b"c", bytes(1000)))
                with contextlib.suppress(UnicodeError, ValueError, OSError):
                    file.writestr(member, rng.choice(self.TARGETS).encode() if kind == 0o120000 else self.content(rng))
        data = bytearray(buffer.getvalue())
        if rng.random() < 0.3:  # in the list at the end, or before the contents
            sign, fields = rng.choice(((b"PK\x01\x02", 46), (b"PK\x03\x04", 30), (b"PK\x05\x06", 22)))
            found = [at.start() for at in re.finditer(re.escape(sign), data)]
            if found:
                at = rng.choice(found) + rng.randrange(4, fields, 2)
                data[at:at + 2] = (rng.choice(NUMBERS) % 65536).to_bytes(2, "little")
        return bytes(data)

    def read(self, data, scratch):
        kind, content = parted(data)
        place = scratch / "1" / "2" / "3" / "4" / "5"
        archive, target, sentinel = place / f"a.{kind}", place / "target", place / "sentinel"
        target.mkdir(parents=True)
        archive.write_bytes(content)
        (sentinel / "folder").mkdir(parents=True)
        (sentinel / "keep.txt").write_text("kept")
        os.chmod(sentinel / "keep.txt", 0o640)
        before = seen_of(scratch)
        try:
            unpack(str(archive), str(target), Bounds(10_000, 3 * 10**8))
        finally:
            if seen_of(scratch) != before:
                raise Fault(f"changed outside the folder: {set(seen_of(scratch)) ^ set(before)}")
        if shape := hostile_in(target, sentinel):
            raise Fault(shape)


def seen_of(scratch):
    """What lies in a folder beside the folder `target` in it: (name, mode, size, links, content)."""
    found = []
    for path, names, files in os.walk(scratch):
        if "target" in names:
            names.remove("target")
        for name in (*names, *files):
            inner = os.path.join(path, name)
            stat = os.lstat(inner)
            kept = Path(inner).read_bytes() if name == "keep.txt" else b""
            found.append((os.path.relpath(inner, scratch), stat.st_mode, stat.st_size if kept else 0,
                          stat.st_nlink if kept else 0, stat.st_mtime_ns if kept else 0, kept))
    return sorted(found)


def hostile_in(target, sentinel):
    """What an unpacked folder may not hold, "" if nothing is: links that lead out, pipes, devices, bits of another
    user's rights, more than 300 MB."""
    root, size = f"{os.path.realpath(target)}/", 0
    for path, names, files in os.walk(target):
        for name in (*names, *files):
            inner = os.path.join(path, name)
            stat = os.lstat(inner)
            size += stat.st_blocks * 512
            if os.path.islink(inner):
                if not f"{os.path.realpath(inner)}/".startswith(root):
                    return "a link that leads outside"
            elif not (os.path.isfile(inner) or os.path.isdir(inner)):
                return "a pipe or a device"
            elif stat.st_mode & 0o6000:
                return "a file with another one's rights"
    return "more than 300 MB" if size > 300 << 20 else ""


READERS = (Images, Checkpoints, Weights, Results, Configs, Splits, Names, Draws, Predictions, Sentences, Archives,
           Clusters, Jobs, Words, Lists)
