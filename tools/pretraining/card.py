"""The model card of the tiny CLIP."""

from datasets._drawing import DOMAINS, PATTERNS, SHAPES
from datasets.shapes import CLASSNAMES
from tools.pretraining.captions import LOOSE_NAMES, PATTERN_MENTIONED, REGISTERS, SPECIALIST_CARE
from tools.pretraining.model import ARCHITECTURE
from tools.pretraining.pictures import DOMAIN_SHARE, LEFT_OUT

CARD = """# Tiny CLIP

Weights: `tiny_clip.safetensors` ({size:.1f} MB, SHA-256 `{digest}`),
made by `python -m tools.pretrain_tiny_clip {settings}`.

OpenAI's `clip.model.CLIP` in small: {architecture}.
It exists so that prompt learning can be tried, tested and taught without a download. It knows nothing but drawings of
patterned shapes.

## Data

{pool} drawings ({shares}) of {n_shapes} shapes and {n_patterns} patterns,
moved and mirrored at random, captioned anew at every step. Left out were every picture of the Shapes dataset,
and these of its classes: {left_out}.

Captions are written in registers, each with turns of phrase of its own. Outside what a register names right, its
captions leave the pattern out in {silent:.0f} % of the cases and confuse names in a fixed way; specialists outside
their field use a thing's own name {care} times as often as given here.

| register | share | names right | for example |
| --- | --- | --- | --- |
{registers}

| thing | loose captions call it |
| --- | --- |
{names}

This is on purpose: it is what holds zero-shot recognition back, as loose captions do for models of the web, and what a
learned context can repair. The image tower is not the bottleneck: a linear probe on its frozen features is given below.

## Training

{steps} steps of {batch} pictures trained the image tower alone with auxiliary heads (shape, pattern, both, colour,
domain), which are not part of the weights. Then it was locked, and {text_steps} steps of {batch} pictures and captions
trained the text tower by the contrastive loss. Muon for the matrices, AdamW for the rest, peak learning rate {lr}, seed
{seed}. {hours}

## Accuracy

On the test part of Shapes, in per cent, with the prompt "a photo of a {{}}."; base is the first {half} classes, new the
other {other}. The probe is logistic regression on the features of 16 photos of each class, over all classes; on the
other domains it shows how far they are from photos:

| domain | all | base | new | probe |
| --- | --- | --- | --- | --- |
{domains}

With the first of each register's prompts, on photos; told to show what a context can do, it is for no method to use:

| register | base | new |
| --- | --- | --- |
{photos}

The drawings and the captions were chosen by zero-shot and probe accuracy alone: zero-shot between 45 and 70 % on base
classes, new ones and each domain, the probe on photos at 95 % or more.
"""


def _field(register):
    """What a register names right, in words."""
    if not register.shapes:
        return "nothing special"
    return (
        f"{', '.join(register.patterns)} on {'anything' if register.shapes == SHAPES else ', '.join(register.shapes)}"
    )


def _row(name, values):
    return f"| {name} | " + " | ".join(f"{value:.1f}" for value in values) + " |"


def write_card(path, args, digest, size, result, seconds):
    """Writes the model card. result: measured accuracies in per cent, by name."""
    a = ARCHITECTURE
    names = [
        f"| {thing} | " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items()) + " |"
        for thing, shares in LOOSE_NAMES.items()
    ]
    registers = [
        f'| {name} | {100 * r.share:.0f} % | {_field(r)} | "{r.templates[0].format("striped star")}" |'
        for name, r in REGISTERS.items()
    ]
    parts = [f"zero-shot {{}} {part}" for part in ("all", "base", "new")] + ["probe {}"]
    domains = [_row(domain, [result[part.format(domain)] for part in parts]) for domain in DOMAINS]
    named = [name for name in REGISTERS if name != "ordinary"]
    photos = [_row(name, [result[f"{name} photo {half}"] for half in ("base", "new")]) for name in named]
    half = -(-len(CLASSNAMES) // 2)
    text = CARD.format(
        size=size / 1e6,
        digest=digest,
        settings=f"--steps {args.steps} --text-steps {args.text_steps} --batch {args.batch} --pool {args.pool} "
        f"--seed {args.seed}",
        architecture=(
            f"{a['image_resolution']} pixels, patches of {a['vision_patch_size']}, {a['vision_layers']} blocks a tower,"
            "\n"
            f"width {a['vision_width']} with {a['vision_width'] // 64} heads, {a['embed_dim']} dimensions in common, "
            f"{a['context_length']} tokens"
        ),
        pool=args.pool,
        shares=", ".join(f"{share} % {domain}" for share, domain in zip(DOMAIN_SHARE, DOMAINS)),
        n_shapes=len(SHAPES),
        n_patterns=len(PATTERNS),
        left_out=", ".join(f'"{name}"' for name in LEFT_OUT),
        care=SPECIALIST_CARE,
        registers="\n".join(registers),
        silent=100 * (1 - PATTERN_MENTIONED),
        names="\n".join(names),
        steps=args.steps,
        batch=args.batch,
        text_steps=args.text_steps,
        half=half,
        other=len(CLASSNAMES) - half,
        lr=args.lr,
        seed=args.seed,
        hours=f"It took {seconds / 60:.0f} minutes on {args.device} ({args.threads} thread).",
        domains="\n".join(domains),
        photos="\n".join(photos),
    )
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
