"""VPT on CLIP: the prompts of Jia et al., "Visual Prompt Tuning", arXiv 2203.12119, section 3.2, in CLIP's image tower,
as in the comparisons of MaPLe (Khattak et al., arXiv 2210.03117).

Learned: image prompts, at the input (shallow) or also in the first blocks (deep). The classes stay "a photo of a
<class>.". Loss: cross-entropy.
"""
from collections.abc import Sequence

from torch import Tensor
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from prompting.class_prompts import readable
from prompting.deep import check_prompts
from prompting.model import Prompt, PromptedCLIP, random_vectors
from prompting.templates import DEFAULT
from prompting.towers import Towers
from training import PromptTrainer


class VisualPromptCLIP(PromptedCLIP):
    """Image prompts, which start as `visual` (J, n, W), and the frozen text features of `templates`."""

    def __init__(self, towers: Towers, classnames: Sequence[str], visual: Tensor,
                 templates: Sequence[str] = (DEFAULT,)) -> None:
        super().__init__(towers)
        self.image_tower = towers.promptable_image("VPT")
        self.vision_prompt_learner = Prompt(visual)
        self.frozen_text_features = towers.encode_classnames([readable(name) for name in classnames], templates)

    def encode_images(self, images: Tensor) -> Tensor:
        return self.image_tower.encode(self.image_tower.embed(images), self.vision_prompt_learner.ctx)

    def encode_classes(self) -> Tensor:
        return self.frozen_text_features


@TRAINER_REGISTRY.register()
class VPT(PromptTrainer):
    static_step = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.VPT = CN()
        cfg.TRAINER.VPT.N_CTX_VISION = 8  # image prompt tokens
        cfg.TRAINER.VPT.PROMPT_DEPTH_VISION = 12  # blocks with prompts, from the first; 1: shallow
        cfg.TRAINER.VPT.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    def build_model(self, towers: Towers, classnames: list[str]) -> VisualPromptCLIP:
        node, image = self.node, towers.promptable_image("VPT")
        check_prompts("TRAINER.VPT.PROMPT_DEPTH_VISION and N_CTX_VISION", image, node.PROMPT_DEPTH_VISION,
                      node.N_CTX_VISION)
        visual = random_vectors(node.PROMPT_DEPTH_VISION, node.N_CTX_VISION, image.width)
        return VisualPromptCLIP(towers, classnames, visual, self.frozen_templates(DEFAULT))
