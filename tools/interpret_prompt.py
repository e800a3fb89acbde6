"""The words nearest to each learned context vector of a run's text prompts, as an evaluation has them.

    metaprompt interpret-prompt output/.../seed1 --top 3

Distances are Euclidean, between a vector and the embeddings of CLIP's vocabulary, as CoOp's authors look at theirs
(Zhou et al., arXiv 2109.01134). Vectors that replace tokens at a deeper layer do not live among word embeddings; their
neighbours are listed and mean less.
"""
import os
import sys

import torch
from tabulate import tabulate

import train
from dassl.engine.identity import require_own_backbone
from dassl.utils import InputError, checkpoint_to_evaluate, load_checkpoint, printable
from dassl.utils.stored import problem_of_values
from prompting import load_clip
from prompting.backbone import weights_digest
from prompting.openai import tokenizer
from tools.results.loaded_run import add_run_flags, run_config

CONTEXT = ("prompt_learner.ctx", "ctx")  # where methods of this project, and CoOp's own files, keep the text context


def text_context(folder, epoch=None):
    """(context, classnames): the run's learned text context, (..., n_ctx, W) float32, as it is evaluated, and its
    training classes.

    Raises InputError where there is no checkpoint, or none that holds a text context of finite numbers."""
    path, state = learned(folder, epoch)
    tensors = state.get("state_dict")
    if isinstance(tensors, dict):
        tensors = {**tensors, **state.get("evaluated", {})}
    if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise InputError(f"{path} is not a checkpoint of prompts: its state_dict does not hold named tensors")
    for name in CONTEXT:
        if name in tensors:
            context = tensors[name]
            if context.dim() < 2 or not context.numel():
                raise InputError(f"{path}: {name} has shape {tuple(context.shape)}, which is no list of vectors")
            if problem := problem_of_values(context, torch.empty(0)):
                raise InputError(f"{path}: {name} {problem}; train again")
            return context.float(), list(state.get("classnames", ()))
    raise InputError(f"{state.get('trainer', 'the method')} learns no text context, it learns "
                     f"{', '.join(sorted(map(str, tensors)))[:300]}")


def learned(folder, epoch=None):
    """(file, contents) of a run's checkpoint: of `epoch` (from 1), else the best kept, else the newest."""
    path = checkpoint_to_evaluate(os.path.join(folder, "prompt_learner"), epoch or None)
    if path is None:
        raise InputError(f"{folder} holds no learned prompts; its method learns none, or it was only evaluated")
    if not os.path.isfile(path):
        raise InputError(f"no checkpoint at {path}; check --load-epoch")
    return path, load_checkpoint(path)


def nearest_words(vectors, embeddings, top):
    """[[(word, distance)]] for each row of `vectors` (n, W) among `embeddings` (vocabulary, W), nearest first."""
    # by differences: the faster way over a matrix product loses the small distances
    distances = torch.cdist(vectors, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    distances, tokens = distances.topk(top, dim=1, largest=False)
    return [[(word_of(token), distance) for token, distance in zip(row, values)]
            for row, values in zip(tokens.tolist(), distances.tolist())]


def word_of(token):
    """A token of CLIP's vocabulary as text; "-" behind one that is not the end of a word."""
    text = tokenizer.decoder[token]
    return text.removesuffix("</w>") if text.endswith("</w>") or text.startswith("<|") else f"{text}-"


def interpret(folder, top=3, epoch=None, backbone="", plugins=()):
    """[(group, number of the vector, [(word, distance)])] for all context vectors of a run.

    A group is "" for one context, "layer 0", "layer 1", ... for a deep prompt, "prompt 1", "prompt 2", ... for several
    prompts per class, a class name for class-specific ones.
    """
    train.discover(plugins)
    context, classnames = text_context(folder, epoch)
    cfg = run_config(folder, backbone)
    name = cfg.MODEL.BACKBONE.NAME
    path, state = learned(folder, epoch)
    require_own_backbone(path, state, {"name": name, "digest": weights_digest(name)})
    embeddings = load_clip(cfg.MODEL.BACKBONE.NAME).token_embedding.weight.float()
    if context.shape[-1] != embeddings.shape[1]:
        raise InputError(f"the context vectors of {folder} have {context.shape[-1]} dimensions, the words of "
                         f"{cfg.MODEL.BACKBONE.NAME} {embeddings.shape[1]}; it is another CLIP")
    stacked = context.reshape(-1, *context.shape[-2:])
    if context.dim() == 2:
        groups = [""]
    elif is_class_specific(cfg) and len(classnames) == len(stacked):
        groups = classnames
    elif has_several_prompts(cfg):
        groups = [f"prompt {number}" for number in range(1, len(stacked) + 1)]
    else:
        groups = [f"layer {layer}" for layer in range(len(stacked))]
    return [(group, number, words) for group, vectors in zip(groups, stacked)
            for number, words in enumerate(nearest_words(vectors, embeddings, top), start=1)]


def is_class_specific(cfg):
    """Whether the run's method has contexts of its own for each class: CoOp's CSC."""
    return bool(cfg.TRAINER.get(cfg.TRAINER.NAME.upper(), {}).get("CSC", False))


def has_several_prompts(cfg):
    """Whether the run's method has several prompts per class: PLOT's N."""
    return "N" in cfg.TRAINER.get(cfg.TRAINER.NAME.upper(), {})


def parse_arguments(argv):
    parser = train.ArgumentParser(description="The words nearest to each learned context vector.")
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--top", type=int, default=3, help="how many words per vector (default 3)")
    add_run_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Print a row per context vector; returns what `interpret` gives."""
    args = parse_arguments(argv)
    if args.top < 1:
        raise InputError(f"--top must be at least 1, not {args.top}")
    found = interpret(args.run, args.top, args.load_epoch, args.backbone, args.plugin)
    rows = [[printable(group), number, *(f"{word} ({distance:.4f})" for word, distance in words)]
            for group, number, words in found]
    print(tabulate(rows, headers=["", "vector", *(f"nearest {i}" for i in range(1, args.top + 1))]))
    if any(group.startswith("layer ") and group != "layer 0" for group, *_ in found):
        print("\nVectors of deeper layers are not among word embeddings; the words near them mean less.")
    return found


def command_line():
    """The program; returns its exit status."""
    return train.command_line(main)


if __name__ == "__main__":
    sys.exit(command_line())
