"""Parts of `benchmarks.gpu` that compare numbers: the GPU's with the CPU's, with the golden records, and its own after
an interruption.

Runs and records are those of the tests: what is compared here is what the tests compare on a CPU.
"""
import contextlib
import json
import os
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

import torch

import train
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import Terminated
from prompting import load_clip, precision
from training import PromptTrainer

ROOT = Path(__file__).resolve().parents[1]
HEADERS = {
    "equality": ["run", "float32: losses", "gradients", "learned", "confidences", "amp: losses", "gradients",
                 "fp16: losses", "gradients", "passes"],
    "parity": ["record", "largest difference", "of what is allowed", "passes"],
    "resume": ["trainer", "stopped in batch", "tensors compared", "equal", "passes"],
}
FLOAT32 = 1e-4  # losses, first gradients, learned tensors and confidences against the CPU's
HALF_LOSS, HALF_GRADIENT = 2e-2, 0.15  # of the first batch, half precision against float32: 11 bits in every product
BFLOAT16 = 8  # times as coarse: what amp uses on a CPU
HALF_SCALE = 2.0 ** 8  # a loss scale at which no gradient of these runs overflows, so that the same steps are compared
OVERFLOWING = ("CoOp", "CoCoOp", "MetaPrompt", "PromptSRC", "ProMetaR")
FEW = ("CoOp", "MetaPrompt", "MetaPrompt, second order", "TipAdapter")  # without a GPU, to try the program
PIXELS = ("CoOp", "MetaPrompt")  # compared without stored features, too: their batches then go through the towers
STORED = ("CoOp", "MetaPrompt")  # made again from a full store, bit by bit
NOT_STARTED_HALF = ("CoOp as written for Dassl",)  # its fp16 trains half-precision vectors, without a loss scale


def helpers():
    """The tests' modules `ranks`, `harness`, `golden_replay` and `tiny_clip`; they live where pytest finds them."""
    for folder in (ROOT / "tests", ROOT / "tests" / "golden"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    import golden_replay
    import ranks

    import harness
    import tiny_clip

    return ranks, harness, golden_replay, tiny_clip


def exact_float32():
    """Products of float32 matrices without TF32, which keeps 10 bits."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(1)


# ---- equality ----
def equality_rows(device):
    """(title, function -> row) of every run and of overflows."""
    exact_float32()
    ranks, *_ = helpers()
    cases = ranks.cases()
    folder = Path(tempfile.mkdtemp())  # in it Shapes is drawn once
    for name in ("CoOp", "MetaPrompt"):
        yield f"{name}, TF32 in convolutions (torch's default)", partial(with_tf32, name, device, folder)
    cases = [name for name in cases if not name.endswith(ranks.SHIPPED)]  # whose steps are rounding in places
    last = [name for name in cases if name in ranks.FOREIGN]  # takes the place of this project's trainer
    for name in [name for name in cases if name not in last and (device != "cpu" or name in FEW)]:
        yield name, partial(compared_run, name, device, folder)
    for name in PIXELS:
        yield f"{name}, without the feature store", partial(compared_run, name, device, folder, ("STORE.USE", False))
    for name in OVERFLOWING if device != "cpu" else OVERFLOWING[:2]:
        for prec in ("amp", "fp16") if device != "cpu" else ("fp16",):
            yield f"{name}, {prec}: a gradient overflows", partial(overflow, name, prec, device)
    for name in last:
        yield name, partial(compared_run, name, device, folder)


def compared_run(name, device, folder, more=()):
    place = folder / "_".join([*name.split(), *map(str, more)])  # one folder per run: a finished one is not run again
    on_cpu = made_run(name, "cpu", "fp32", place.with_name(f"{place.name}_cpu"), more)
    exact = made_run(name, device, "fp32", place.with_name(f"{place.name}_fp32"), more)
    assert sorted(on_cpu["learned"]) == sorted(exact["learned"])
    names = sorted(on_cpu["learned"])
    found = {
        "losses": furthest(exact["losses"], on_cpu["losses"]),
        "gradients": gradient_difference(exact["gradients"], on_cpu["gradients"]),
        "learned": furthest(*([run["learned"][each].flatten() for each in names] for run in (exact, on_cpu))),
        "confidences": furthest(exact["confidences"], on_cpu["confidences"]),
        "tested": [len(exact["tested"]), [row[:2] for row in exact["tested"]] == [row[:2] for row in on_cpu["tested"]]],
    }
    ok = found["tested"][1] and len(on_cpu["losses"]) == len(exact["losses"]) and all(
        found[key] is None or found[key] <= FLOAT32 for key in ("losses", "gradients", "learned", "confidences"))
    for prec in ("amp", "fp16"):
        if prec == "fp16" and name in NOT_STARTED_HALF:
            found[prec] = {"losses": None, "all losses": None, "gradients": None}
            continue
        half = made_run(name, device, prec, place.with_name(f"{place.name}_{prec}"), more)
        losses = "losses" if exact["losses"] else "confidences"  # where nothing is trained
        found[prec] = {"losses": furthest(*(run[losses][:1 if exact["losses"] else None] for run in (half, exact))),
                       "all losses": furthest(half["losses"], exact["losses"]),
                       "gradients": gradient_difference(half["gradients"], exact["gradients"])}
        coarse = BFLOAT16 if prec == "amp" and device == "cpu" else 1
        ok = ok and all(found[prec][key] is None or found[prec][key] <= coarse * limit
                        for key, limit in (("losses", HALF_LOSS), ("gradients", HALF_GRADIENT)))
    cells = [found["losses"], found["gradients"], found["learned"], found["confidences"],
             *(found[prec][key] for prec in ("amp", "fp16") for key in ("losses", "gradients"))]
    return {**found, "losses by run": {"cpu": on_cpu["losses"], device: exact["losses"]},
            "cells": ["-" if cell is None else f"{cell:.1e}" for cell in cells], "ok": ok}


def with_tf32(name, device, folder):
    """What a user of PREC fp32 gets who leaves torch's defaults, against exact float32."""
    place = folder / f"{name}_tf32"
    exact = made_run(name, device, "fp32", place.with_name(f"{place.name}_off"))
    torch.backends.cudnn.allow_tf32 = True
    try:
        found = made_run(name, device, "fp32", place)
    finally:
        exact_float32()
    cells = [furthest(found["losses"], exact["losses"]), gradient_difference(found["gradients"], exact["gradients"])]
    return {"ok": None, "cells": [f"{cell:.1e}" for cell in cells]}


def made_run(name, device, prec, folder, more=()):
    """What `ranks.make_run` gives, and the gradients that the first batch applied."""
    ranks, *_ = helpers()
    trainer, options = ranks.cases()[name]
    apply_gradients, init = PromptTrainer.apply_gradients, precision.Precision.__init__
    gradients: list[torch.Tensor] = []

    def noted(self, found, *args, **kwargs):
        found = list(found)
        if (self.epoch, self.batch_idx) == (0, 0):
            gradients.extend(gradient.detach().float().cpu() for gradient in found)
        return apply_gradients(self, found, *args, **kwargs)

    def scaled_by_less(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.scale = min(self.scale, HALF_SCALE)

    words = (f"TRAINER.{trainer.upper()}.PREC", prec, "USE_CUDA", device != "cpu", *more)
    with (mock.patch.object(PromptTrainer, "apply_gradients", noted),
          mock.patch.object(precision.Precision, "__init__", scaled_by_less)):
        found = ranks.make_run(folder, trainer, options, ranks.FOREIGN.get(name, ()), ranks.STEPS.get(name), words)
    return {**found, "gradients": gradients, "confidences": [float(row[-1]) for row in found["tested"]]}


def furthest(ours, theirs):
    """The largest difference of two lists of numbers or tensors, in units of what is larger than 1; None of nothing.
    Numbers that are not there (of a batch that overflowed) make it infinite."""
    worst = None
    for a, b in zip(ours, theirs, strict=True):
        a, b = (torch.as_tensor(value, dtype=torch.float64).cpu() for value in (a, b))
        difference = float((a - b).abs().max() / max(1.0, float(b.abs().max())))
        worst = max(worst or 0.0, difference if difference == difference else float("inf"))
    return worst


def gradient_difference(ours, theirs):
    """The largest norm of a difference over the norm; a gradient below a thousandth of the longest counts as that."""
    if not theirs:
        return None
    floor = max(float(gradient.norm()) for gradient in theirs) / 1000
    return max(float((a.double() - b.double()).norm() / max(float(b.norm()), floor, 1e-30))
               for a, b in zip(ours, theirs, strict=True))


def overflow(name, prec, device):
    """A huge loss scale: the batch ends, the scale is halved, no weight changes; a small one: the step is made."""
    _, harness, _, tiny_clip = helpers()
    names, depth = ["cat", "dog", "tree", "red car", "house", "plane"], tiny_clip.LAYERS
    options = {"MetaPrompt": {"LAYERS": depth}}
    for deep in ("PromptSRC", "ProMetaR"):
        options[deep] = {"PROMPT_DEPTH_TEXT": depth, "PROMPT_DEPTH_VISION": depth}
    trainer = harness.make_trainer(name, golden_clip(), names, {"PREC": prec, **options.get(name, {})}, device=device)
    batch = tiny_clip.batch("overflow", 0, 8, len(names))
    start = trainer.trained_state()

    def changed():
        return [key for key, tensor in trainer.trained_state().items() if not torch.equal(tensor, start[key])]

    trainer.precision.scale = 2.0 ** 100
    summary, scale, moved = trainer.forward_backward(batch), trainer.precision.scale, changed()
    trainer.precision.scale = HALF_SCALE
    good = trainer.forward_backward(batch)
    ended = summary == {"overflow": 1} and scale == 2.0 ** 99 and not moved
    return {"ok": ended and "loss" in good and bool(changed()),
            "cells": [f"the batch gives {summary}", f"scale halved: {scale == 2.0 ** 99}",
                      f"tensors changed: {len(moved)}",
                      f"then, scaled by {HALF_SCALE:g}: loss {good.get('loss', float('nan')):.3f}"]}


def golden_clip():
    """The tiny CLIP of the golden records."""
    *_, tiny_clip = helpers()
    with tempfile.TemporaryDirectory() as folder:
        weights = os.path.join(folder, "tiny.pt")
        torch.save(tiny_clip.state_dict(), weights)
        return load_clip(weights)


# ---- parity ----
def parity_rows(device):
    exact_float32()
    *_, golden_replay, _ = helpers()
    train.discover()
    clip_model = golden_clip()
    for path in golden_replay.RECORDS:
        if device != "cpu" or path.stem in ("coop_end", "tip_adapter_f"):
            yield path.stem, partial(replayed, path, clip_model, device)


def replayed(path, clip_model, device):
    *_, golden_replay, _ = helpers()
    with tempfile.TemporaryDirectory() as folder:
        found = golden_replay.replay(path, clip_model, Path(folder), device)
    what, difference, allowed = max(found, key=lambda entry: entry[1] / (entry[2] or 1e-12))
    share = difference / (allowed or 1e-12)
    return {"differences": {what: [difference, allowed] for what, difference, allowed in found}, "ok": share <= 1,
            "cells": [f"{max(entry[1] for entry in found):.1e}", f"{share:.2f} ({what})"]}


# ---- resume ----
def resume_rows(device):
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # before the first product on the GPU
    exact_float32()
    torch.use_deterministic_algorithms(True)
    ranks, *_ = helpers()
    folder = Path(tempfile.mkdtemp())
    for name, (trainer, _) in ranks.cases().items():
        trains = getattr(TRAINER_REGISTRY.get(trainer), "trains", True)  # a foreign trainer does not say
        if name not in ranks.FOREIGN and trains and (device != "cpu" or name in FEW):
            yield name, partial(interrupted_run, name, device, folder)
    for name in STORED:
        yield f"{name}, from a full feature store", partial(from_full_store, name, device, folder)


def interrupted_run(name, device, folder, epochs=3, stop=4):
    """Stopped by a signal in step `stop` (from 0), in the middle of an epoch, and started again."""
    more = ("OPTIM.MAX_EPOCH", epochs)
    places = [folder / f"{name}, {kind}".replace(" ", "_") for kind in ("whole", "cut")]
    note = "yes"
    try:
        whole = made_run(name, device, "auto", places[0], more)
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        note = f"yes, with a warning: {str(error).splitlines()[0][:100]}"
        torch.use_deterministic_algorithms(True, warn_only=True)
        places = [place.with_name(f"{place.name}_again") for place in places]
        whole = made_run(name, device, "auto", places[0], more)
    try:
        step, calls = PromptTrainer.forward_backward, []

        def stopping(self, batch):
            calls.append(1)
            if len(calls) == stop + 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, batch)

        with mock.patch.object(PromptTrainer, "forward_backward", stopping), contextlib.suppress(Terminated):
            made_run(name, device, "auto", places[1], more)
            raise AssertionError("the run was not interrupted")
        stopped = torch.load(places[1] / "prompt_learner" / "model-interrupted.pth.tar", weights_only=True)
        again = made_run(name, device, "auto", places[1], more)
    finally:
        torch.use_deterministic_algorithms(True)
    states, tensors = checkpoints(places, epochs)
    equal = (len(tensors[0]) == len(tensors[1]) and all(torch.equal(a, b) for a, b in zip(*tensors))
             and whole["tested"] == again["tested"] and whole["losses"][stop + 1:] == again["losses"])
    largest = furthest([t.flatten() for t in states[0]["state_dict"].values()],
                       [t.flatten() for t in states[1]["state_dict"].values()])
    return {"ok": equal, "cells": [f"{stop % (len(whole['losses']) // epochs) + 1} of epoch {stopped['epoch'] + 1}",
                                   str(len(tensors[0])), note if equal else f"no, by {largest:.1e}"],
            "losses": whole["losses"]}


def checkpoints(places, epochs):
    """(what the runs in some folders have stored after so many epochs, all that has to be equal of it, as tensors)."""
    states = [torch.load(place / "prompt_learner" / f"model.pth.tar-{epochs}", weights_only=True, map_location="cpu")
              for place in places]
    kept = ("state_dict", "optimizers", "schedules", "precision", "extra", "rng")
    return states, [list(tensors_of({key: state[key] for key in kept})) for state in states]


def from_full_store(name, device, folder, epochs=2):
    """A run that fills a feature store, and the same one that computes no feature any more."""
    places = [folder / f"{name}_{kind}_store" for kind in ("empty", "full")]
    more = ("OPTIM.MAX_EPOCH", epochs, "STORE.DIR", folder / f"{name}_features")
    first, again = (made_run(name, device, "auto", place, more) for place in places)
    _, tensors = checkpoints(places, epochs)
    computed = [json.loads((place / "results.json").read_text())["features"]["computed"] for place in places]
    equal = (len(tensors[0]) == len(tensors[1]) and all(torch.equal(a, b) for a, b in zip(*tensors))
             and first["tested"] == again["tested"] and first["losses"] == again["losses"])
    return {"ok": equal and computed[0] > computed[1] == 0, "computed": computed,
            "cells": ["-", str(len(tensors[0])), f"{'yes' if equal else 'no'}; encoded: {computed[0]}, {computed[1]}"]}


def tensors_of(value):
    """The tensors and numbers within nested containers, as tensors."""
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from tensors_of(value[key])
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from tensors_of(entry)
    elif isinstance(value, (int, float)):
        yield torch.tensor(value, dtype=torch.float64)
