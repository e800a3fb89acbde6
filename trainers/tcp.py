"""TCP: Yao et al., "TCP: Textual-based Class-aware Prompt Tuning for Visual-Language Model", arXiv 2311.18231.

Learned: CoOp's context at the input, and a network that computes prompts of each class from its frozen text feature.
These replace the context in one later layer of the text tower.
"""
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError
from prompting.class_prompts import ClassPrompts, readable
from prompting.consistency import cosine_distance
from prompting.model import PromptedCLIP, PromptWithNet
from prompting.templates import tcp_template_of, tcp_words_of
from prompting.towers import Towers
from training import Batch, PromptTrainer

CLASS_TOKENS = 4  # prompt tokens per class that the network makes


class TCPCLIP(PromptedCLIP):
    """Class prompts from class features.

    Args:
        towers: prompting.Towers.
        classnames: n_cls names; templates: those of their frozen features.
        ctx: what the context starts as, (n_ctx, W).
        words: (before, after) the class name in the learned prompt.
        layer: the layer of the text tower, from 0, at whose input the class prompts are inserted.
    """

    def __init__(self, towers: Towers, classnames: Sequence[str], templates: Sequence[str], ctx: Tensor,
                 words: tuple[str, str], layer: int) -> None:
        from clip.model import QuickGELU  # slow to import

        super().__init__(towers)
        width, dim = towers.text.width, towers.embed_dim
        before, after = words
        self.layer = layer
        self.class_prompts = ClassPrompts(towers.text, classnames, len(ctx), between=before, after=after)
        self.frozen_text_features = towers.encode_classnames([readable(name) for name in classnames], templates)
        self.prompt_learner = PromptWithNet(ctx, nn.Sequential(OrderedDict([
            ("linear1", nn.Linear(dim, dim // 4)),
            ("gelu", QuickGELU()),
            ("linear2", nn.Linear(dim // 4, CLASS_TOKENS * width)),
        ])))

    def encode_classes(self) -> Tensor:
        ctx, n_cls = self.prompt_learner.ctx, len(self.frozen_text_features)
        own = self.prompt_learner.meta_net(self.frozen_text_features).float().view(n_cls, CLASS_TOKENS, -1)
        # Prompts that differ between classes must stand behind the shared prefix, so the context is given per class.
        return self.towers.text.encode(self.class_prompts(ctx.expand(n_cls, 1, -1, -1)), {self.layer: own})[0]


@TRAINER_REGISTRY.register()
class TCP(PromptTrainer):
    model: TCPCLIP
    frozen_images = True
    static_step = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.TCP = CN()
        cfg.TRAINER.TCP.N_CTX = 4  # number of context vectors
        cfg.TRAINER.TCP.CTX_INIT = ""  # words to start from; their number then is the number of context vectors
        cfg.TRAINER.TCP.W = 8.0  # weight of the distance to the frozen class features
        cfg.TRAINER.TCP.LAYER = 8  # the text tower's block, from 0, at whose input the class prompts are inserted
        cfg.TRAINER.TCP.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    def check_cfg(self, cfg):
        node = self.node_of(cfg)
        if not node.W >= 0:
            raise InputError(f"TRAINER.TCP.W must not be negative, it is {node.W}")

    def build_model(self, towers: Towers, classnames: list[str]) -> TCPCLIP:
        layer, dataset = self.node.LAYER, self.cfg.DATASET.NAME
        if not 1 <= layer < towers.text.layers:
            raise InputError(f"TRAINER.TCP.LAYER must be 1 to {towers.text.layers - 1} with this CLIP, not {layer}")
        ctx = self.initial_context(towers)
        if len(ctx) < CLASS_TOKENS:
            raise InputError(f"TCP's {CLASS_TOKENS} class prompts take the places of as many context vectors, there "
                             f"are {len(ctx)}; raise TRAINER.TCP.N_CTX")
        templates, words = self.frozen_templates(tcp_template_of(dataset)), tcp_words_of(dataset, self.own_templates())
        return TCPCLIP(towers, classnames, templates, ctx, words, layer)

    def compute_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        text = self.model.class_features()
        logits = self.model.logits(self.model.encode_images(batch["img"]), text)
        loss = self.cross_entropy(logits, batch["label"])
        return loss + self.node.W * cosine_distance(text, self.model.frozen_text_features), logits
