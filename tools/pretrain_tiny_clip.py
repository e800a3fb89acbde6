"""Pretrains the tiny CLIP that ships with the toolkit, on captioned drawings.

    python -m tools.pretrain_tiny_clip                  # about 45 minutes on one CPU core
    python -m tools.pretrain_tiny_clip --steps 300 --text-steps 100 --pool 8000 --work-dir trial --out trial

The model is OpenAI's `clip.model.CLIP` in small: 64 pixels, patches of 16, four blocks a tower, width 128.

Pictures come from the drawing code of the Shapes dataset, over a broader distribution: 10 shapes and 11 patterns
instead of 5 and 8, with mostly photos, and with six of the dataset's classes left out (`pictures.LEFT_OUT`). Their keys
differ from every key of the dataset in the highest bit, so no picture of the dataset is ever seen.

Captions are written in several registers, as captions found on the web are of several kinds (`captions.REGISTERS`):

* ordinary ones ("a photo of a ..."), more than half. They often leave the pattern out and confuse names that are close
  in a systematic way: many striped things are called pinstriped, many hexagrams stars (`captions.LOOSE_NAMES`).
* those of specialists ("on the flag: a ..."). Each names everything right in its own field, which is some patterns on
  some shapes or, rarely, some patterns on all shapes, and is looser than others outside it. No register is right about
  everything.

So the image tower must tell all patterns and shapes apart, while "a photo of a striped star." asks for the wrong
pictures: what holds zero-shot recognition back is language. A context shared by all classes can move their prompts
into better registers or between them, and this is what prompt learning has to find. It has a choice between what helps
its training classes only and what helps all classes. The fields are blocks of the chessboard by which Shapes tells base
and new classes apart; the base classes hold two of the four, and the new ones the other two.

Training has two phases. First the image tower alone learns from auxiliary heads (shape, pattern, both together, colour,
domain), which are dropped then. Then it is locked, as in LiT (Zhai et al., CVPR 2022), and the text tower learns by the
contrastive loss over the features of the pool: captions can be written anew without a new image tower.

A run is a function of its seed; started again with the same settings, it continues from its last checkpoint. It prints
zero-shot and probe accuracy as it goes, on drawings of its own, kept apart from the dataset's; the dataset's test part
is measured once, at the end, for the model card.
"""

import argparse
import hashlib
import math
import os

import clip
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from datasets import shapes as dataset
from datasets._drawing import DOMAINS
from tools.pretraining.captions import caption, rules, vocabulary
from tools.pretraining.card import write_card
from tools.pretraining.loop import train
from tools.pretraining.measures import Evaluation
from tools.pretraining.model import (
    ARCHITECTURE,
    Heads,
    build_model,
    contrast,
    export,
    image_features,
    load,
)
from tools.pretraining.optimizers import build_optimizers
from tools.pretraining.pictures import CHECK_PICTURES, check_pictures, drawn_pool, shifted, to_pixels


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = os.path.dirname(os.path.abspath(__file__))
    parser.add_argument(
        "--out",
        default=os.path.join(here, "..", "prompting", "assets"),
        help="folder of the weights and the model card",
    )
    parser.add_argument("--work-dir", default="build/tiny_clip", help="folder of the picture pool and the checkpoints")
    parser.add_argument("--steps", type=int, default=7500, help="of the image tower")
    parser.add_argument("--text-steps", type=int, default=1200, help="of the text tower")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pool", type=int, default=120000, help="number of drawings (12 kB each on disk)")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--eval-every", type=int, default=500)
    parser.add_argument("--save-every", type=int, default=250)
    return parser.parse_args(argv)


def image_settings(args):
    """What the image tower's checkpoint must agree on to be continued."""
    return {k: getattr(args, k) for k in ("steps", "batch", "pool", "lr", "seed")}


def text_settings(args):
    """What the text tower's checkpoint must agree on to be continued: the image tower and the captions, too."""
    digest = hashlib.sha256(rules().encode()).hexdigest()
    return image_settings(args) | {"text_steps": args.text_steps, "captions": digest}


def image_losses(model, heads, pool, facts, args, step):
    """The losses of a step of the image tower. Its batch depends on the seed and the step alone, so that a continued
    run sees what an unbroken one sees."""
    rng = np.random.RandomState([args.seed, step])
    rows = np.sort(rng.randint(0, len(pool), args.batch))
    images = F.normalize(model.visual(to_pixels(shifted(pool[rows], rng), args.device)), dim=-1)
    return {"heads": heads.loss(images, torch.from_numpy(facts[rows]).to(args.device))}


def text_losses(model, vocab, features, facts, args, step):
    """The losses of a step of the text tower; its batch, too, depends on the seed and the step alone."""
    rng = np.random.RandomState([args.seed, 1, step])
    rows = rng.randint(0, len(features), args.batch)
    long = step % 10 == 0  # long captions are rare but together, so that the others stay short
    lines = [caption(rng, fact, long=long and i % 4 == 0) for i, fact in enumerate(facts[rows])]
    unique = sorted(set(lines))
    which = torch.tensor([unique.index(line) for line in lines], device=args.device)
    tokens = torch.searchsorted(vocab, clip.tokenize(unique)).to(args.device)
    return {"contrast": contrast(model, features[torch.from_numpy(rows)], tokens, which)}


def main(argv=None):
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    os.makedirs(args.work_dir, exist_ok=True)
    os.makedirs(args.out, exist_ok=True)

    pool, facts = drawn_pool(args.work_dir, args.pool, args.seed)
    vocab = vocabulary()
    torch.manual_seed(args.seed)
    heads = Heads(ARCHITECTURE["embed_dim"]).to(args.device)
    torch.manual_seed(args.seed + 1)
    model = build_model(vocab).to(args.device)
    image = build_optimizers(model.visual, [heads], args.lr)
    probe_shots = dataset.draw_part("photo", "train")
    check = {domain: check_pictures(domain, CHECK_PICTURES, args.seed) for domain in DOMAINS}
    evaluate = Evaluation(vocab, probe_shots, check, args.device)

    seconds = train(
        "image", args, args.steps, image_settings(args), (model.visual, heads), image,
        lambda step: image_losses(model.train(), heads, pool, facts, args, step),
        lambda: None, lambda: evaluate.probes(model.eval()),
    )  # fmt: skip
    for parameter in model.visual.parameters():
        parameter.requires_grad_(False)
    model.eval()
    features = image_features(model, pool, args.device)
    rest = nn.ModuleDict({"transformer": model.transformer, "tokens": model.token_embedding, "norm": model.ln_final})
    loose = nn.ParameterDict({k: getattr(model, k) for k in ("positional_embedding", "text_projection", "logit_scale")})
    text = build_optimizers(rest, [loose], args.lr)
    seconds += train(
        "text", args, args.text_steps, text_settings(args), (rest, loose), text,
        lambda step: text_losses(model, vocab, features, facts, args, step),
        lambda: model.logit_scale.clamp_(max=math.log(100)), lambda: evaluate(model),
    )  # fmt: skip

    weights = os.path.join(args.out, "tiny_clip.safetensors")
    digest = export(model, vocab, weights)
    test = {domain: dataset.draw_part(domain, "test") for domain in DOMAINS}
    everything = torch.arange(ARCHITECTURE["vocab_size"])
    exported = load(weights, args.device)
    measured = Evaluation(everything, probe_shots, test, args.device)
    result = measured(exported) | measured.probes(exported)
    print("test part:\n" + "\n".join(f"  {name} {value:.1f}" for name, value in result.items()), flush=True)
    write_card(os.path.join(args.out, "tiny_clip.md"), args, digest, os.path.getsize(weights), result, seconds)
    return result


if __name__ == "__main__":
    main()
