"""Replaying the records of TaskRes, PLOT and PLOT++."""
import numpy as np
from golden_case import Case

from prompting.text import tokenizer


class TaskRes(Case):
    def options(self):
        return {"RESIDUAL_SCALE": float(self.theirs["RESIDUAL_SCALE"])}

    def extras(self, trainer):
        return [("text features", trainer.model.base_text_features, self.record["extra/base_text_features"])]


class Transported(Case):
    """Counts the rounds of each call of the model: an evaluation, the steps, an evaluation."""

    def prepare(self, trainer):
        self.rounds = []
        trainer.model.register_forward_hook(lambda model, *_: self.rounds.append(model.sinkhorn_rounds))

    def extras(self, trainer):
        return [("rounds", self.rounds, self.record["extra/sinkhorn_rounds"])]


class PLOT(Transported):
    def options(self):
        return {key: int(self.theirs[key]) for key in ("N", "N_CTX")}


class PLOTPP(Transported):
    def options(self):
        return {**{key: int(self.theirs[key]) for key in ("N", "M", "N_CTX_V")},
                "MODEL_UPD": self.theirs["MODEL_UPD"], "TRADE_OFF": self.theirs["TRADE_OFF"] == "True"}

    def extras(self, trainer):
        theirs = self.record["extra/tokenized_prompts"]
        return [*super().extras(trainer), ("tokens", tokens_of(trainer, theirs.shape[1]), theirs)]


def tokens_of(trainer, length):
    """The first `length` tokens of all prompts (N * n_cls, length), prompt by prompt, with the words that they start
    from in the place of what is learned."""
    starts, rows = trainer.starts(trainer.cfg), {}
    for numbers, prompts in trainer.model.class_prompts:
        for n in numbers:
            words = np.zeros((prompts.n_cls, max(length, prompts.tokens.shape[1])), dtype=np.int64)
            words[:, :prompts.tokens.shape[1]] = prompts.tokens.cpu().numpy()
            words[:, 1:1 + prompts.n_ctx] = tokenizer.encode(starts[n])[:prompts.n_ctx]
            rows[n] = words[:, :length]
    return np.concatenate([rows[n] for n in sorted(rows)])


CASES = {"TaskRes": TaskRes, "PLOT": PLOT, "PLOTPP": PLOTPP}
REPLAYS: dict = {}
