"""OpenAI's CLIP in small, the readouts that train its image tower, and the file that holds it."""

import hashlib
import json
import math
import os

import torch
import torch.nn.functional as F
from clip.model import CLIP
from safetensors.torch import load_file, save_file
from torch import nn

from datasets._drawing import COLORS, DOMAINS, PATTERNS, SHAPES, SIZE
from prompting.weights import whole_vocabulary
from tools.pretraining.pictures import to_pixels

ARCHITECTURE = {
    "embed_dim": 128,
    "image_resolution": SIZE,
    "vision_layers": 4,
    "vision_width": 128,
    "vision_patch_size": 16,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 128,
    "transformer_heads": 2,
    "transformer_layers": 4,
}
TRAINED_POSITIONS = 30  # captions are shorter; the remaining positions repeat the last trained one


def cosine_patches(count, patch=16):
    """The `count` smoothest cosine patterns of a colour patch, (count, 3, patch, patch), orthonormal.

    As initial patch filters they keep the coarse content of a patch, which random filters mix with its noise.
    """
    place = (torch.arange(patch) + 0.5) * math.pi / patch
    waves = torch.stack([torch.cos(k * place) * math.sqrt((1 if k == 0 else 2) / patch) for k in range(patch)])
    tints = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
    tints = tints / tints.norm(dim=1, keepdim=True)
    # colour is coarser than brightness to a viewer, so its waves are ranked as if they were finer
    order = sorted(
        (k * k + m * m + (24 if t else 0), t, k, m) for t in range(3) for k in range(patch) for m in range(patch)
    )
    return torch.stack([tints[t][:, None, None] * waves[k][:, None] * waves[m] for _, t, k, m in order[:count]])


class Heads(nn.Module):
    """Linear readouts of what a picture shows, from its normalised feature."""

    def __init__(self, dim):
        super().__init__()
        sizes = {
            "shape": len(SHAPES),
            "pattern": len(PATTERNS),
            "both": len(SHAPES) * len(PATTERNS),
            "domain": len(DOMAINS),
            "color": len(COLORS),
        }
        self.readouts = nn.ModuleDict({name: nn.Linear(dim, size) for name, size in sizes.items()})

    def loss(self, features, facts):
        """Sum of cross-entropies. features: (B, dim), unit length; facts: (B, 4) as of `drawn_pool`."""
        features = features * features.shape[1] ** 0.5
        shape, pattern, domain, color = facts.T
        logits = {name: readout(features) for name, readout in self.readouts.items()}
        seen = domain != DOMAINS.index("sketch")  # a sketch shows no colour
        return (
            F.cross_entropy(logits["shape"], shape)
            + F.cross_entropy(logits["pattern"], pattern)
            + F.cross_entropy(logits["both"], shape * len(PATTERNS) + pattern)
            + 0.2 * F.cross_entropy(logits["domain"], domain)
            + 0.2 * F.cross_entropy(logits["color"][seen], color[seen])
        )


def build_model(vocab):
    """The CLIP to be trained, with a vocabulary of the trained tokens only."""
    model = CLIP(**ARCHITECTURE | {"vocab_size": len(vocab), "context_length": TRAINED_POSITIONS})
    with torch.no_grad():
        model.visual.conv1.weight.copy_(cosine_patches(ARCHITECTURE["vision_width"]))
    return model


def text_features(model, tokens):
    """Unit-length text features, running no token after the longest end of text.

    tokens: (N, L) in the reduced vocabulary.
    """
    ends = tokens.argmax(dim=-1)
    length = int(ends.max()) + 1
    x = model.token_embedding(tokens[:, :length])
    x = (x + model.positional_embedding[:length]).permute(1, 0, 2)
    mask = torch.full((length, length), float("-inf"), device=x.device).triu_(1)
    for block in model.transformer.resblocks:
        whole, block.attn_mask = block.attn_mask, mask
        x = block(x)
        block.attn_mask = whole
    x = model.ln_final(x[ends, torch.arange(len(ends), device=ends.device)])  # only the token that is read out
    return F.normalize(x @ model.text_projection, dim=-1)


def image_features(model, images, device, chunk=480):
    """Unit-length features of (B, 64, 64, 3) uint8 pictures, (B, dim)."""
    with torch.no_grad():
        parts = [model.visual(to_pixels(images[i : i + chunk], device)) for i in range(0, len(images), chunk)]
    return F.normalize(torch.cat(parts), dim=-1)


def contrast(model, images, tokens, which):
    """Symmetric contrastive loss where several pictures may share a caption.

    images: (B, dim) unit-length features; tokens: (N, L) unique captions; which: (B,) the caption of each picture.
    """
    logits = model.logit_scale.exp() * images @ text_features(model, tokens).T
    owned = F.one_hot(which, len(tokens)).float()
    to_image = -(F.log_softmax(logits, dim=0) * owned / owned.sum(0)).sum(0).mean()
    return (F.cross_entropy(logits, which) + to_image) / 2


def export(model, vocab, path):
    """Writes the weights as half-precision safetensors under OpenAI's names, except for the token embedding.

    Of that, `token_embedding.rows` (int64) names the trained rows and `token_embedding.values` holds them.
    Returns the SHA-256 of the file.
    """
    state = {k: v.detach().cpu() for k, v in model.state_dict().items()}
    positions = state["positional_embedding"]
    rest = positions[-1:].expand(ARCHITECTURE["context_length"] - len(positions), -1)
    state["positional_embedding"] = torch.cat([positions, rest])
    values = state.pop("token_embedding.weight")
    state = {k: v.half().contiguous() for k, v in state.items()}
    state["logit_scale"] = model.logit_scale.detach().cpu().float()
    state["token_embedding.rows"], state["token_embedding.values"] = vocab.cpu().long(), values.half()
    save_file(state, path + ".tmp", metadata={"architecture": json.dumps(ARCHITECTURE)})
    os.replace(path + ".tmp", path)
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def load(path, device="cpu"):
    """The exported model with its full vocabulary, as `clip.model.CLIP` in float32."""
    model = CLIP(**ARCHITECTURE)
    model.load_state_dict(whole_vocabulary(load_file(path)))
    return model.to(device).eval()
