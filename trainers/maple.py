"""MaPLe: Khattak et al., "MaPLe: Multi-modal Prompt Learning", arXiv 2210.03117.

Learned: prompts at the input and in the first blocks of the text tower, and for each of these depths a linear function
that computes the image tower's prompts from them (section 3.2). Loss: cross-entropy.
"""
from torch import Tensor
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from prompting.deep import CoupledCLIP, check_prompts, worded_prompts
from prompting.towers import Towers
from training import PromptTrainer


def coupled_prompts_cfg():
    """The settings of coupled prompts: a config node with MaPLe's defaults."""
    node = CN()
    node.N_CTX = 2  # prompt tokens of each tower
    node.CTX_INIT = "a photo of a"  # words; N_CTX tokens of them start the context, the others stay in the prompt
    node.PROMPT_DEPTH = 9  # blocks of each tower with prompts, from the first; 1: at the input only
    node.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto
    return node


@TRAINER_REGISTRY.register()
class MaPLe(PromptTrainer):
    static_step = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.MAPLE = coupled_prompts_cfg()

    def build_model(self, towers: Towers, classnames: list[str]) -> CoupledCLIP:
        return CoupledCLIP(towers, classnames, *self.start_of_prompts(towers))

    def start_of_prompts(self, towers: Towers) -> tuple[Tensor, str]:
        """(what the text prompts start as (J, n, W), the fixed words behind them)"""
        node, name = self.node, type(self).__name__
        for tower in (towers.promptable_image(name), towers.text):
            check_prompts(f"TRAINER.{name.upper()}.PROMPT_DEPTH and N_CTX", tower, node.PROMPT_DEPTH, node.N_CTX)
        return worded_prompts(towers.text, node.CTX_INIT, node.PROMPT_DEPTH, node.N_CTX)
