"""CoPrompt: Roy and Etemad, "Consistency-guided Prompt Learning for Vision-Language Models", arXiv 2306.01195.

Learned: MaPLe's coupled prompts and an adapter behind each tower. Loss, with t, v the adapted features, s0 the frozen
feature of one sentence per class and v0 the frozen feature of a second view of the image:

    CE + W [(1 - mean cos(t, s0)) + (1 - mean cos(v, v0))]

In the paper a language model writes the sentences; here they come from a JSON file of the user's
(docs/COPROMPT_SENTENCES.md).
"""
import functools
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError, open_regular
from dassl.utils.stored import require
from dassl.utils.tools import MOST_JSON
from prompting.adapter import Adapter
from prompting.class_prompts import readable
from prompting.consistency import cosine_distance
from prompting.deep import CoupledCLIP
from prompting.templates import ensemble_of, fill
from prompting.towers import Towers
from trainers.maple import MaPLe, coupled_prompts_cfg
from training import Batch


class CoPromptCLIP(CoupledCLIP):
    """MaPLe with an adapter behind each tower, in training and in evaluation.

    Args:
        text, between: what the text prompts start as, (J, n, W), and the fixed words behind them.
        image_ratio, text_ratio: the adapters' share of the features.
    """

    def __init__(self, towers: Towers, classnames: Sequence[str], text: Tensor, between: str, image_ratio: float,
                 text_ratio: float) -> None:
        super().__init__(towers, classnames, text, between)
        self.adapter_image, self.image_ratio = Adapter(towers.embed_dim), image_ratio
        self.adapter_text, self.text_ratio = Adapter(towers.embed_dim), text_ratio

    def encode_images(self, images: Tensor) -> Tensor:
        return blend(super().encode_images(images).float(), self.adapter_image, self.image_ratio)

    def encode_classes(self) -> Tensor:
        return blend(super().encode_classes().float(), self.adapter_text, self.text_ratio)


def blend(features: Tensor, adapter: Adapter, ratio: float) -> Tensor:
    return ratio * adapter(features) + (1 - ratio) * features


@TRAINER_REGISTRY.register()
class CoPrompt(MaPLe):
    model: CoPromptCLIP
    frozen_features = True  # those of the second view
    static_step = True

    @staticmethod
    def extend_cfg(cfg):
        node = cfg.TRAINER.COPROMPT = coupled_prompts_cfg()
        node.W = 8.0  # weight of the consistency loss
        node.IMAGE_ADAPTER_RATIO = 0.1  # share of the adapter in the mixture with the image feature
        node.TEXT_ADAPTER_RATIO = 0.2  # share of the adapter in the mixture with the class feature
        node.SENTENCES = ""  # a JSON file {class name: [sentence, ...]}; without one, hand-written templates

    @classmethod
    def complete_cfg(cls, cfg):
        """Every training image is seen twice."""
        super().complete_cfg(cfg)
        if cfg.DATALOADER.K_TRANSFORMS != 2:
            cfg.DATALOADER.K_TRANSFORMS = 2

    def build_model(self, towers: Towers, classnames: list[str]) -> CoPromptCLIP:
        node = self.node
        self.written = read_sentences(node.SENTENCES) if node.SENTENCES else None
        self.templates_taken = self.written is None  # in training
        return CoPromptCLIP(towers, classnames, *self.start_of_prompts(towers), node.IMAGE_ADAPTER_RATIO,
                            node.TEXT_ADAPTER_RATIO)

    def step_inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {"sentence": torch.tensor([self.sentence_number(len(self.sentence_features))])}

    def compute_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        first = batch["img"][0] if isinstance(batch["img"], list) else batch["img"]
        images, texts = self.model.encode_images(first), self.model.encode_classes()
        logits = self.model.logits(images, texts)
        sentences = self.sentence_features.index_select(0, batch["sentence"])[0]
        consistency = (cosine_distance(texts, sentences) + cosine_distance(images, batch["frozen"]))
        return self.cross_entropy(logits, batch["label"]) + self.node.W * consistency, logits

    def sentence_number(self, count: int) -> int:
        """The number of the sentence of this step, drawn once for all classes."""
        return self.step_rng("sentence").randrange(count)

    @functools.cached_property
    def sentence_features(self) -> Tensor:
        """Frozen features (S, n_cls, E); a class with fewer than S sentences repeats them. Only training needs them.

        Raises InputError for a class without sentences."""
        names = [readable(name) for name in self.dm.dataset.classnames]
        if self.written is None:
            self.note("Note: TRAINER.COPROMPT.SENTENCES names no file; hand-written templates stand in for the "
                      "sentences of a language model (docs/COPROMPT_SENTENCES.md)")
            templates = ensemble_of(self.cfg.DATASET.NAME, own=self.own_templates())
            sentences = [[fill(template, name) for template in templates] for name in names]
        else:
            missing = [name for name in names if not self.written.get(name)]
            if missing:
                raise InputError(f"{self.node.SENTENCES} has no sentences for {len(missing)} of {len(names)} classes "
                                 f"({', '.join(missing[:3])}, ...); it needs every class that is trained on")
            sentences = [self.written[name] for name in names]
        most = max(map(len, sentences))
        return torch.stack([self.towers.text.encode_texts([own[number % len(own)] for own in sentences])
                            for number in range(most)])


def read_sentences(path):
    """{readable class name: [sentence, ...]} of a JSON file. Raises InputError when it is something else."""
    hint = 'a JSON file {"class name": ["sentence", ...]} is needed; see docs/COPROMPT_SENTENCES.md'
    try:
        with open_regular(path, "r", MOST_JSON, encoding="utf-8-sig") as file:
            written = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"TRAINER.COPROMPT.SENTENCES: cannot read {path} ({error}); {hint}") from None
    if not isinstance(written, dict):
        raise InputError(f"TRAINER.COPROMPT.SENTENCES: {path} has another form; {hint}")
    require("sentences", written, f"TRAINER.COPROMPT.SENTENCES: {path}", hint)
    return {readable(name): own for name, own in written.items()}
