"""`Towers`: what a method sees of a CLIP."""
from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prompting.blocks import ACTIVATION, is_plain
from prompting.errors import PromptingError
from prompting.image import ImageTower, require_pictures
from prompting.parallel import Collectives, SingleProcess, divide
from prompting.passes import Passes
from prompting.templates import fill
from prompting.text import TextTower
from prompting.text_memory import Remembered, TextMemory

if TYPE_CHECKING:
    from clip.model import CLIP


READS_TOKENS = "reads patch tokens"  # what a method does that has `image_tokens`


class Towers:
    """What a method sees of a CLIP: promptable towers, the logit scale, frozen features.

    The model that is handed in is never changed: it is copied unless it already is frozen, on the device and of the
    right type. Nothing here is a registered submodule, so the parameters and the state dict of a method's module are
    what the method learns and nothing else.

    Trainable towers have a copy of their own, `model`, that may be changed at any time: its weights may want gradients
    (none does at first), its modules may be replaced or parametrised. The features follow.

    Args:
        model: `clip.model.CLIP`.
        device: where to run.
        half: frozen weights in float16 (PREC fp16).
        ranks: the processes that divide the towers' work; by default this one alone.
        trainable: whether weights or modules are to be changed.
        passes: the counter; by default a new one.
        text_memory: of frozen sentences, shared by towers over this model; by default none. Trainable towers use none.
    Raises:
        PromptingError: a block has another activation than QuickGELU; what is trainable is to be in half precision.
    Attributes:
        model: the CLIP; trainable;
        text: TextTower; image: ImageTower, or None for a ResNet; resolution (pixels per side), embed_dim E;
        passes: Passes, how much went through both towers.
    """

    def __init__(self, model: CLIP, device: str | torch.device = "cpu", half: bool = False,
                 ranks: Collectives | None = None, trainable: bool = False, passes: Passes | None = None,
                 text_memory: TextMemory | None = None) -> None:
        _require_known_activation(model)
        if half and trainable:
            raise PromptingError("towers that are trained cannot be in half precision; use PREC amp, bf16 or fp32")
        device, self.ranks = torch.device(device), ranks or SingleProcess()
        wanted = torch.float16 if half else torch.float32
        weight, given = model.text_projection, model
        if (trainable or weight.device.type != device.type or weight.dtype != wanted or model.training
                or any(p.requires_grad for p in model.parameters())):
            model = copy.deepcopy(model).requires_grad_(False).float().eval().to(device)
            if half:
                from clip.model import convert_weights

                convert_weights(model)
        self.model, self.device, self.trainable = model, device, trainable
        self.passes = Passes() if passes is None else passes
        self.text = TextTower(model, self.ranks, self.passes, trainable)
        if text_memory is not None and not trainable:
            self.text.memory = Remembered(text_memory, given, model, self.ranks.world_size)
        self.image = (ImageTower(model, self.ranks, self.passes, trainable) if hasattr(model.visual, "transformer")
                      else None)
        self.resolution: int = model.visual.input_resolution
        self.embed_dim = self.text.embed_dim
        self._logit_scale: float = model.logit_scale.exp().item()

    @property
    def logit_scale(self) -> float | Tensor:
        """The factor of the cosines in the logits; a tensor () where it may be trained."""
        return self.model.logit_scale.exp() if self.trainable else self._logit_scale

    def frozen_names(self, module: nn.Module) -> set[str]:
        """The names, in a method's module, of the CLIP's tensors that are not trained. What was computed of them when
        the module was built would not follow another value, and no checkpoint would hold it."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        frozen = {id(tensor) for tensor in tensors if not tensor.requires_grad}
        return {name for named in (module.named_parameters(), module.named_buffers())
                for name, tensor in named if id(tensor) in frozen}

    def promptable_image(self, method: str, does: str = "prompts the image tower") -> ImageTower:
        """The ImageTower. Raises PromptingError, which names the method and what it does, for a ResNet: it has no
        tokens."""
        if self.image is None:
            raise PromptingError(f"{method} {does} and needs a ViT backbone (ViT-B/16, ViT-B/32, ViT-L/14), not a "
                                 "ResNet")
        return self.image

    def encode_image_tokens(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W') -> features of the class token and of all patches, (B, 1 + patches, E), not normalised.

        Raises PromptingError for a ResNet, which has no such tokens, and for frozen features (B, E)."""
        image = self.promptable_image("encode_image_tokens", READS_TOKENS)
        return image.encode_tokens(image.embed(images))

    def encode_image(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W') -> features (B, E), not normalised; frozen ones where the towers are.

        Frozen features (B, E) that were computed before are given back as they are; they count as passes, too. Raises
        PromptingError for those where the image tower is trained, which would give others."""
        if images.dim() == 2:
            if self.trainable and any(p.requires_grad for p in self.model.visual.parameters()):
                require_pictures(images)
            self.passes.add(images=len(images))
            return images
        if self.image is not None:
            return self.image.encode_unprompted(images)

        def share(rows: slice) -> Tensor:
            features: Tensor = self.model.visual(images[rows].to(self.text.dtype))
            return features

        self.passes.add(images=len(images))
        return divide(self.ranks, len(images), share, draws=self.device if self.trainable else None)

    def encode_classnames(self, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Text features of classes (len(classnames), E), float32, of length 1; with gradients where the text tower is
        trained.

        The feature of each template is normalised, and their mean is normalised again (CLIP, section 3.1.4).

        Args:
            classnames: the names as they stand in the prompts (`readable` takes "_" out).
            templates: prompts with {} for the name.
        """
        if self.text.trained:  # in one pass, whose memory is then looked after as a whole
            texts = [fill(template, name) for template in templates for name in classnames]
            features = normalize(self.text.encode_texts(texts)).view(len(templates), len(classnames), -1)
            return normalize(features.mean(dim=0))
        total = torch.zeros(len(classnames), self.embed_dim, device=self.text.device)
        for template in templates:
            total = total + normalize(self.text.encode_texts([fill(template, name) for name in classnames]))
        return normalize(total / len(templates))

    def frozen_text(self, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
        """The same as `encode_classnames`: its name in earlier releases, which method files use."""
        return self.encode_classnames(classnames, templates)

    def cosine_logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """(B, E) and (C, E), of any length -> exp(logit_scale) * cosine, (B, C) float32."""
        return self.logit_scale * normalize(image_features) @ normalize(text_features).transpose(-1, -2)


def normalize(features: Tensor) -> Tensor:
    """To length 1 along the last dimension, in float32."""
    features = features.float()
    length: Tensor = features.norm(dim=-1, keepdim=True)
    return features / length


def _require_known_activation(model: CLIP) -> None:
    for tower in (model, model.visual):
        for block in getattr(getattr(tower, "transformer", None), "resblocks", ()):
            if not hasattr(block, "mlp"):
                continue  # another kind of block is called, whatever it computes
            name = type(getattr(block.mlp, "gelu", None)).__name__
            if is_plain(block.mlp, nn.Sequential) and name != ACTIVATION:
                raise PromptingError(f"the CLIP that was handed in has {name} in its blocks, which are computed with "
                                     f"{ACTIVATION} here: its numbers would be wrong; hand in OpenAI's kind of CLIP")
