"""MMA: Yang et al., "MMA: Multi-Modal Adapter for Vision-Language Models", CVPR 2024.

Learned: bottleneck adapters beside blocks of both towers, whose middle layer both share. Loss: cross-entropy.

Of block i, with the frozen block B and its first LayerNorm ln_1, the output for the tokens x is

    B(x) + s up_i(relu(shared_i(relu(down_i(ln_1(x))))))

where down_i and up_i are each tower's own, and shared_i is one layer for both. s is ADAPTER_SCALE. As in the authors'
code the adapters get their gradient as if s were 1, and x its true one. Blocks are counted from 1, as there, from
ADAPTER_START to ADAPTER_END, both included. Number 0 is no block but the input of a tower: there the adapter's own
input is x itself, the word vectors without positions or the image tokens behind ln_pre, and all gradients are true.
Prompts are "a photo of a {}." for every dataset, and new classes are scored as base classes are.
"""
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError
from prompting.adapted import AdaptedCLIP
from prompting.block_adapters import AT_INPUT, BlockAdapter, Norm
from prompting.gradient_scale import scale_gradient, scale_value
from prompting.towers import Towers
from training import PromptTrainer


class Bottleneck(BlockAdapter):
    """One tower's adapter of a block or, with `at_input`, of the tokens in front of all blocks.

    Args:
        width: of the tower.
        shared: (dim, dim), the layer that is both towers'; it is registered elsewhere.
        scale: s, the factor of what is added.
    """

    def __init__(self, width: int, shared: nn.Linear, scale: float, at_input: bool) -> None:
        super().__init__()
        self.down, self.up = linear(width, shared.in_features), linear(shared.out_features, width)
        self.scale, self.at_input = scale, at_input
        self.both = [shared]  # in a list it is no part of this module

    def bottleneck(self, x: Tensor) -> Tensor:
        added: Tensor = self.up(F.relu(self.both[0](F.relu(self.down(x)))))
        return added

    def beside(self, x: Tensor, norm: Norm) -> Tensor:
        if self.at_input:
            return self.scale * self.bottleneck(x)
        # Behind the bottleneck the gradient lacks the factor s, and in front of it that is made up for. So no gradient
        # is ever multiplied by 1 / s, with which half precision would overflow.
        return scale_value(self.bottleneck(norm(scale_gradient(x, self.scale))), self.scale)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A layer as the authors' start: weights normal by Kaiming's rule for a ReLU and the number of outputs, bias 0."""
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


@TRAINER_REGISTRY.register()
class MMA(PromptTrainer):
    static_step = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.MMA = CN()
        cfg.TRAINER.MMA.TEXT_CTX_INIT = "a photo of a"  # the words in front of a class name
        cfg.TRAINER.MMA.ADAPTER_START = 5  # the first block with adapters, counted from 1; 0: the input, too
        cfg.TRAINER.MMA.ADAPTER_END = 12  # the last block with adapters
        cfg.TRAINER.MMA.ADAPTER_DIM = 32  # width of the layer that both towers share
        cfg.TRAINER.MMA.ADAPTER_SCALE = 0.001  # factor of what an adapter adds
        cfg.TRAINER.MMA.PREC = "auto"  # precision of the frozen towers: fp32, amp, bf16, fp16 or auto

    def check_cfg(self, cfg):
        node, key = self.node_of(cfg), "TRAINER.MMA"
        if not 0 <= node.ADAPTER_START <= node.ADAPTER_END:
            raise InputError(f"{key}: ADAPTER_START {node.ADAPTER_START} to ADAPTER_END {node.ADAPTER_END} are no "
                             "blocks; count from 1 (0: the input, too), and let START be at most END")
        if node.ADAPTER_DIM < 1 or not node.ADAPTER_SCALE > 0:
            raise InputError(f"{key}: ADAPTER_DIM must be at least 1 and ADAPTER_SCALE positive, they are "
                             f"{node.ADAPTER_DIM} and {node.ADAPTER_SCALE}")

    def build_model(self, towers: Towers, classnames: list[str]) -> AdaptedCLIP:
        node, text = self.node, towers.text
        image = towers.promptable_image("MMA", "adapts the image tower")
        for tower, name in ((text, "text"), (image, "image")):
            if node.ADAPTER_END > tower.layers:
                raise InputError(f"TRAINER.MMA.ADAPTER_END {node.ADAPTER_END} is beyond the {name} tower, which has "
                                 f"{tower.layers} blocks; set it to {min(text.layers, image.layers)} at most")
        layers = [number - 1 for number in range(node.ADAPTER_START, node.ADAPTER_END + 1)]  # block 1 is layer 0
        shared = {layer: linear(node.ADAPTER_DIM, node.ADAPTER_DIM) for layer in layers}
        own, others = ({layer: Bottleneck(tower.width, shared[layer], node.ADAPTER_SCALE, layer == AT_INPUT)
                        for layer in layers} for tower in (text, image))
        prompt = f"{node.TEXT_CTX_INIT.replace('_', ' ')} {{}}.".strip()
        model = AdaptedCLIP(towers, classnames, [prompt], own, others, "MMA")
        model.shared_adapter = nn.ModuleDict({str(layer): module for layer, module in shared.items()})
        return model
