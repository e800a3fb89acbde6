"""Replaying the records of the methods with deep prompts. The authors keep each depth's prompts as a tensor of its own,
ours are one tensor (depth, n, width) a tower."""
import json

import torch
from golden_case import Case


def to_type(value):
    """A number of the authors' config, or the text."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value


class DeepCase(Case):
    """The authors' keys are ours."""

    left_out = {"PREC"}

    def options(self):
        return {key: to_type(value) for key, value in self.theirs.items() if key not in self.left_out}


class Independent(DeepCase):
    def tensors(self, trainer):
        found = {}
        learners = {"image": "vision_prompt_learner", "text": "prompt_learner"}
        inputs = {"image": "image_encoder.VPT", "text": "prompt_learner.ctx"}
        for tower, learner in learners.items():
            if hasattr(trainer.model, learner):
                first, *deep = getattr(trainer.model, learner).ctx
                found[inputs[tower]] = first
                for block, prompts in enumerate(deep, start=1):
                    found[f"{tower}_encoder.transformer.resblocks.{block}.VPT_shallow"] = prompts
        return found


class VPT(Independent):
    left_out = {"PREC", "CTX_INIT"}  # ignored by the authors' code


class Coupled(DeepCase):
    def tensors(self, trainer):
        found = {name: tensor for name, tensor in trainer.model.named_parameters() if "prompt_learner" not in name}
        learner = trainer.model.prompt_learner
        for depth, (prompts, layer) in enumerate(zip(learner.ctx, learner.proj)):
            text, proj = (("ctx", "proj") if depth == 0 else
                          (f"compound_prompts_text.{depth - 1}", f"compound_prompt_projections.{depth - 1}"))
            found[f"prompt_learner.{text}"] = prompts
            found[f"prompt_learner.{proj}.weight"] = layer.weight
            found[f"prompt_learner.{proj}.bias"] = layer.bias
        return found


class PromptSRC(Independent):
    def __init__(self, record, folder):
        super().__init__(record, folder)
        self.epoch_ends = []

    def prepare(self, trainer):
        trainer.max_epoch = self.meta["max_epoch"]
        trainer.output_dir = str(self.folder)

    def after_step(self, trainer):
        steps = self.meta["epoch_steps"]
        if (trainer.batch_idx + 1) % steps == 0:
            trainer.epoch = trainer.batch_idx // steps
            tensors, names = self.tensors(trainer), [key[5:] for key in self.record if key.startswith("init/")]
            self.epoch_ends.append(torch.cat([tensors[name].detach().flatten() for name in names]))
            trainer.after_epoch()

    def extras(self, trainer):
        yield "frozen text features", trainer.frozen_text_features, self.record["extra/fixed_text_features"]
        weights = [trainer.epoch_weight(epoch) for epoch in range(1, self.meta["max_epoch"] + 1)]
        yield "epoch weights", weights, self.record["extra/epoch_weights"]
        if self.epoch_ends:
            yield "prompts of epoch ends", torch.stack(self.epoch_ends), self.record["extra/epoch_end_prompts"]


class CoPrompt(Coupled):
    left_out = {"PREC", "DISTILL"}

    def options(self):
        templates = json.loads(str(self.record["extra/sentences"]))
        names = [name.replace("_", " ") for name in self.meta["classnames"]]
        path = self.folder / "sentences.json"
        path.write_text(json.dumps({name: [template.format(name) for template in templates] for name in names}))
        return {**super().options(), "SENTENCES": str(path)}

    def overrides(self):
        numbers = self.record["extra/sentence_numbers"].tolist()
        return {"sentence_number": lambda trainer, count: numbers[trainer.batch_idx]}

    def batch(self, batch):
        return {**batch, "img": [batch["img"], batch["img"].flip(3)]}

    def extras(self, trainer):
        features = torch.nn.functional.normalize(trainer.sentence_features, dim=-1)
        yield "sentence features", features, self.record["extra/frozen_text_features"]


class ProMetaR(Independent):
    left_out = {"PREC", "FAST_ADAPTATION"}
    tensors_within = 2e-4

    def options(self):
        return {**super().options(), "ORDER": 2, "VNET_LR": 1.0, "VNET_WEIGHT_DECAY": 0.0}

    def overrides(self):
        draws = [value for _, value in json.loads(str(self.record["extra/draws"]))]

        def draw_episode(trainer, label):
            order, ratio, partners = draws[3 * trainer.batch_idx:3 * trainer.batch_idx + 3]
            return (label.unique()[order[0]].item(), torch.tensor(ratio, device=label.device),
                    torch.tensor(partners, device=label.device))

        return {"draw_episode": draw_episode}

    def tensors(self, trainer):
        found = super().tensors(trainer)
        for kind, gate in zip(("text", "vision"), trainer.model.vnet):
            for depth, net in enumerate(gate.nets):
                for layer, linear in enumerate(net):
                    found[f"vnet.linear_{kind}_gamma.{depth}.{layer}.weight"] = linear.weight
        return found

    def loss(self, trainer, summary):
        return trainer.node.LR_RATIO * summary["query"]

    def extras(self, trainer):
        yield "frozen text features", trainer.frozen_text_features, self.record["extra/fixed_text_features"]


CASES = {"MaPLe": Coupled, "IVLP": Independent, "VPT": VPT, "PromptSRC": PromptSRC, "CoPrompt": CoPrompt,
         "ProMetaR": ProMetaR}
