"""Replaying the records of the methods that train the towers' weights: WiSE-FT, CLIPood and 2SFS."""
import torch
from golden_case import Case

import tiny_clip
from harness import make_trainer

CHECKS_WITHIN = 3e-4  # the sums over a whole tensor in `check_...`


def check_rows(names, now, start):
    """A row of four numbers for each tensor, as `check_...` of a record; `now` and `start` are {name: tensor}."""
    rows = []
    for name in names:
        value = now[name].detach().double().cpu()
        change = value - start[name].double().cpu()
        against = torch.from_numpy(tiny_clip.normal(f"check/{name}", *value.shape)).double()
        rows.append([value.norm(), change.norm(), change.sum(), (change * against).sum()])
    return torch.tensor(rows)


class PlannedCase(Case):
    """A training whose length is known beforehand, with what it computes on the way."""

    def settings(self):
        template = self.theirs.get("template", "")  # of WiSE-FT it is the name of a list
        return {**super().settings(), **({"DATASET.TEMPLATES": [template]} if "{}" in template else {})}

    def prepare(self, trainer):
        trainer.planned_steps = self.meta["steps"]
        trainer.optimizers = trainer.build_optimizers()
        trainer.optim, trainer.sched = trainer.optimizers[0]
        self.trainer, self.rates, self.train_logits = trainer, [], []
        self.start = {name: tensor.detach().clone() for name, tensor in self.all_tensors(trainer).items()}
        self.evaluation = {"img": tiny_clip.batch("eval", 0, 16, self.meta["classes"])["img"].to(trainer.device)}
        entropy = trainer.cross_entropy

        def seen(logits, labels):
            self.train_logits.append(logits.detach().clone())
            return entropy(logits, labels)

        trainer.cross_entropy = seen

    def ours(self, name):
        """Our name of an authors' tensor."""
        return f"clip.{name}"

    def all_tensors(self, trainer):
        """{authors' name: our tensor} of all that is trained."""
        own = dict(trainer.model.named_parameters())
        names = self.meta.get("check_names") or [key[len("init/"):] for key in self.record if key.startswith("init/")]
        assert {self.ours(name) for name in names} == set(trainer.trained_tensors())
        return {name: own[self.ours(name)] for name in names}

    def tensors(self, trainer):
        """Those of which the record has values."""
        return {name: tensor for name, tensor in self.all_tensors(trainer).items() if f"init/{name}" in self.record}

    def batch(self, batch):
        self.rates.append(self.trainer.optim.param_groups[0]["lr"])
        return batch

    def extras(self, trainer):
        record, now = self.record, self.all_tensors(trainer)
        found = [(f"fine-tuned {name}", now[name], record[f"finetuned/{name}"], self.tensors_within)
                 for name in now if f"finetuned/{name}" in record]
        if "check_finetuned" in record:
            rows = check_rows(self.meta["check_names"], now, self.start)
            found.append(("check of the fine-tuned", rows, record["check_finetuned"], CHECKS_WITHIN))
        if "extra/train_logits" in record:
            found.append(("training logits", torch.stack(self.train_logits), record["extra/train_logits"]))
        if "extra/learning_rates" in record:
            found.append(("learning rates", self.rates, record["extra/learning_rates"], 1e-9))
        return found

    def checked_average(self, trainer, name):
        """The `check_...` of what is evaluated."""
        weights = trainer.evaluated_weights()
        now = {theirs: weights[self.ours(theirs)] for theirs in self.meta["check_names"]}
        return f"check of {name}", check_rows(self.meta["check_names"], now, self.start), \
            self.record[f"check_{name}"], CHECKS_WITHIN


class WiSEFT(PlannedCase):
    def options(self):
        templates = {"simple_template": "simple", "openai_imagenet_template": "all"}[self.theirs["template"]]
        own = {"TEMPLATES": templates, "WARMUP": int(self.theirs["warmup_length"]) / self.meta["steps"]}
        return own | ({"ALPHA": float(self.theirs["alpha"])} if self.meta["method"] == "WiSEFT" else {})

    def settings(self):
        return {**super().settings(), "OPTIM.LABEL_SMOOTHING": float(self.theirs["ls"]),
                "OPTIM.CLIP_GRAD_NORM": float(self.theirs["clip_grad_norm"])}

    def ours(self, name):
        return name.replace("classification_head.", "head.").replace("image_encoder.model.", "clip.")

    def prepare(self, trainer):
        super().prepare(trainer)
        self.lengths, clipped = [], trainer.clipped

        def measured(gradients):
            self.lengths.append(torch.stack([gradient.norm() for gradient in gradients]).norm())
            return clipped(gradients)

        trainer.clipped = measured

    def logits_at(self, trainer, alpha):
        node, before = trainer.node, trainer.node.ALPHA
        node.ALPHA = float(alpha)
        try:
            return trainer.logits_of(self.evaluation)
        finally:
            node.ALPHA = before

    def extras(self, trainer):
        record = self.record
        found = [*super().extras(trainer), ("gradient norms", torch.stack(self.lengths),
                                            record["extra/gradient_norms"])]
        if "ALPHA" in trainer.node:
            found += [(f"logits at {alpha}", self.logits_at(trainer, alpha), logits)
                      for alpha, logits in zip(record["extra/alphas"], record["extra/interpolated_logits"])]
            found += [("fine-tuned logits", self.logits_at(trainer, 1), record["logits_finetuned"]),
                      self.checked_average(trainer, "half")]
        return found


class CLIPood(PlannedCase):
    def options(self):
        temperature = self.theirs["temperature"]
        return {"MARGIN": float(self.theirs["lam"]), "BETA": float(self.theirs["beta"]),
                "TEMPERATURE": 0.0 if temperature == "CLIP's" else float(temperature)}

    def prepare(self, trainer):
        super().prepare(trainer)
        self.average_logits = []

    def batch(self, batch):
        order = batch["domain"].sort(stable=True).indices  # one batch a domain, one after the other
        return super().batch({key: value[order] for key, value in batch.items()})

    def after_step(self, trainer):
        self.average_logits.append(trainer.logits_of(self.evaluation))

    def extras(self, trainer):
        record, steps = self.record, self.meta["steps"]
        found = [*super().extras(trainer), self.checked_average(trainer, "average"),
                 ("average weights", [trainer.average_weight(i) for i in range(steps + 1)],
                  record["extra/average_weights"], 1e-6),
                 ("logits of the average", torch.stack(self.average_logits), record["extra/average_logits"])]
        trainer.evaluated_weights = lambda: None
        return [*found, ("fine-tuned logits", trainer.logits_of(self.evaluation), record["logits_finetuned"])]


class TwoSFS(PlannedCase):
    def options(self):
        return {"FRAC": float(self.theirs["n_iters_frac"])}

    def ours(self, name):
        return name if name == "classifier" else f"clip.{name}"

    def prepare(self, trainer):
        super().prepare(trainer)
        begin = trainer.model.begin_rows

        def begun():
            begin()
            self.rows = trainer.model.classifier.detach().clone()

        trainer.model.begin_rows = begun

    def after_step(self, trainer):
        if trainer.batch_idx + 1 == self.meta["stage1_steps"]:
            self.logits = trainer.logits_of(self.evaluation)

    def logits_of(self, trainer, classnames):
        """Logits for other classes: those of a trainer that takes over what was trained."""
        other = make_trainer("TwoSFS", trainer.clip_model, classnames, self.options(), settings=self.settings(),
                             device=trainer.device.type)
        own, state = other.trained_tensors(), trainer.trained_state()
        for name in set(state) - {"classifier"}:
            own[name].data.copy_(state[name])
        other.load_extra_state(trainer.extra_state())
        return other.logits_of(self.evaluation)

    def extras(self, trainer):
        record, first = self.record, self.meta["stage1_steps"]
        found = [*super().extras(trainer),
                 ("the classifier's start", self.rows, record["init/classifier"]),
                 ("logits after stage 1", self.logits, record["logits_stage1"]),
                 ("training logits of stage 1", torch.stack(self.train_logits[:first]),
                  record["extra/train_logits_stage1"]),
                 ("training logits of stage 2", torch.stack(self.train_logits[first:]),
                  record["extra/train_logits_stage2"])]
        new = self.meta.get("new_classnames")
        for key, names in (("logits_new", new), ("logits_all", [*self.meta["classnames"], *(new or ())])):
            if new and key in record:
                found.append((key, self.logits_of(trainer, names), record[key]))
        return found


CASES: dict = {"WiSEFT": WiSEFT, "FineTune": WiSEFT, "CLIPood": CLIPood, "TwoSFS": TwoSFS}
REPLAYS: dict = {}
