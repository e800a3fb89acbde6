"""RPO: Lee et al., "Read-only Prompt Optimization for Vision-Language Few-shot Learning", ICCV 2023.

Learned: K read-only prompts in each tower. They see CLIP's own tokens, in the text tower those of "a photo of a
<class>." from the start to the end-of-text token, and are seen by none, not even by each other: what CLIP itself
computes stays as it is. Text prompts start near the end-of-text token, image prompts near the class token, and the
features are read out at them. Prompt k of the image tower meets prompt k of the text tower alone:

    logits = exp(logit_scale) mean over k of cos(v_k, t_k)

Loss: cross-entropy. As in the authors' code the prompts have no positional embedding, "_" in a class name stays, and
every dataset has the same template (DATASET.TEMPLATES names another one; of several, t_k is the mean of length 1). The
authors' CTX_INIT does nothing and is left out. Since the prompts are no sequence of their own, `prompting.readers`
computes CLIP's tokens without gradients and lets the prompts alone have a backward pass.
"""
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError
from prompting.class_prompts import EOS
from prompting.model import PromptedCLIP
from prompting.readers import read_images, read_texts
from prompting.templates import DEFAULT, fill
from prompting.towers import Towers, normalize
from training import PromptTrainer

SPREAD = 0.1  # how far from CLIP's token a prompt starts


class ReadOnlyCLIP(PromptedCLIP):
    """Read-only prompts in both towers.

    Args:
        towers: prompting.Towers of a ViT.
        classnames: n_cls names, which go into the templates as they are.
        templates: of the frozen prompts of the classes.
        text_prompt, image_prompt: what the prompts start as, (K, width of the tower).
    Raises:
        InputError: a class's prompt and K more tokens are longer than CLIP's context.
    """

    def __init__(self, towers: Towers, classnames: Sequence[str], templates: Sequence[str], text_prompt: Tensor,
                 image_prompt: Tensor) -> None:
        super().__init__(towers)
        self.image_tower, self.templates = towers.promptable_image("RPO"), len(templates)
        texts = [fill(template, name) for template in templates for name in classnames]
        tokens = towers.text.tokenize(texts)
        longest = int(tokens.argmax(dim=1).argmax())
        length, room = int(tokens[longest].argmax()) + 1, towers.text.context_length
        if length + len(text_prompt) > room:
            raise InputError(f"TRAINER.RPO.K {len(text_prompt)}: behind the {length} tokens of '{texts[longest][:80]}' "
                             f"there is room for {room - length} read-only prompts, as CLIP reads {room} tokens; lower "
                             "it, or shorten the class name")
        self.class_prompts = towers.text.sentences(tokens)
        self.text_prompt, self.image_prompt = nn.Parameter(text_prompt), nn.Parameter(image_prompt)

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K, E)."""
        return read_images(self.image_tower, self.image_tower.embed(images), self.image_prompt)

    def encode_classes(self) -> Tensor:
        """-> (n_cls, K, E)."""
        read = read_texts(self.towers.text, self.class_prompts, self.text_prompt)
        if self.templates == 1:
            return read
        return normalize(read).view(self.templates, -1, *read.shape[1:]).mean(dim=0)

    def logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """(B, K, E) and (n_cls, K, E) -> (B, n_cls)."""
        images, classes = (normalize(features).flatten(1) for features in (image_features, class_features))
        return self.towers.logit_scale * images @ classes.t() / image_features.shape[1]


@TRAINER_REGISTRY.register()
class RPO(PromptTrainer):
    model: ReadOnlyCLIP
    static_step = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.RPO = CN()
        cfg.TRAINER.RPO.K = 24  # read-only prompts in each tower; they come in pairs
        cfg.TRAINER.RPO.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    def check_cfg(self, cfg):
        if self.node_of(cfg).K < 1:
            raise InputError(f"TRAINER.RPO.K must be at least 1, not {self.node_of(cfg).K}")

    def build_model(self, towers: Towers, classnames: list[str]) -> ReadOnlyCLIP:
        end = towers.text.embed_tokens(torch.tensor(EOS))
        first = towers.promptable_image("RPO").visual.class_embedding.float()
        text, image = (token + SPREAD * normalize(torch.randn(self.node.K, len(token))).to(token.device)
                       for token in (end, first))
        return ReadOnlyCLIP(towers, classnames, self.frozen_templates(DEFAULT), text, image)
