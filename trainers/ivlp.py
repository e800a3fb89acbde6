"""IVLP: independent vision-language prompting, the baseline of MaPLe (Khattak et al., arXiv 2210.03117) and PromptSRC
(Khattak et al., arXiv 2307.06948).

Learned: prompts at the input and in the first blocks of both towers, independent of each other. Loss:
cross-entropy.
"""
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from prompting.deep import IndependentCLIP, check_prompts, worded_prompts
from prompting.model import random_vectors
from prompting.towers import Towers
from training import PromptTrainer


def independent_prompts_cfg(n_ctx):
    """The settings of independent prompts with `n_ctx` tokens per tower: a config node."""
    node = CN()
    node.N_CTX_VISION = n_ctx  # image prompt tokens per block
    node.N_CTX_TEXT = n_ctx  # text prompt tokens per block
    node.CTX_INIT = "a photo of a"  # words; N_CTX_TEXT tokens of them start the context, the others stay in the prompt
    node.PROMPT_DEPTH_VISION = 9  # image blocks with prompts, from the first; 1: at the input only
    node.PROMPT_DEPTH_TEXT = 9  # text blocks with prompts, from the first; 1: at the input only
    node.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto
    return node


@TRAINER_REGISTRY.register()
class IVLP(PromptTrainer):
    static_step = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.IVLP = independent_prompts_cfg(n_ctx=2)

    def build_model(self, towers: Towers, classnames: list[str]) -> IndependentCLIP:
        node, name = self.node, type(self).__name__
        image = towers.promptable_image(name)
        for tower, kind in ((image, "VISION"), (towers.text, "TEXT")):
            check_prompts(f"TRAINER.{name.upper()}.PROMPT_DEPTH_{kind} and N_CTX_{kind}", tower,
                          node[f"PROMPT_DEPTH_{kind}"], node[f"N_CTX_{kind}"])
        text, between = worded_prompts(towers.text, node.CTX_INIT, node.PROMPT_DEPTH_TEXT, node.N_CTX_TEXT)
        visual = random_vectors(node.PROMPT_DEPTH_VISION, node.N_CTX_VISION, image.width)
        return IndependentCLIP(towers, classnames, text, visual, between)
