"""How a golden record is replayed: what `test_parity.py` asks about a method. The defaults fit a method with one loss
that keeps its tensors under the authors' names; `golden_deep.py` and `golden_methods.py` have what others need."""


def authors_options(meta):
    """{last part of the authors' config key: value}."""
    pairs = (line.split("=", 1) for line in meta.get("authors_config", []))
    return {key.rsplit(".", 1)[-1]: value for key, value in pairs}


def optimizer_of(meta):
    """The OPTIM settings of a record; {} where it has none of its own (SGD at 0.01)."""
    theirs = meta.get("optimizer", {})
    keys = {"name": "NAME", "lr": "LR", "momentum": "MOMENTUM", "weight_decay": "WEIGHT_DECAY"}
    return {f"OPTIM.{key}": theirs[name].lower() if name == "name" else theirs[name]
            for name, key in keys.items() if name in theirs}


class Case:
    """
    Args:
        record: the arrays of the record, and its `meta`.
        folder: a folder for files the method reads or writes.
    """

    tensors_within = 2e-5  # how close the tensors, the losses and the logits are to be
    losses_within = logits_within = 5e-5
    again: tuple[type, ...] = ()  # other classes that replay the record once more

    def __init__(self, record, folder):
        self.record, self.meta, self.folder = record, record["meta"], folder
        self.theirs = authors_options(self.meta)

    def options(self):
        """Our config keys for what the record's meta describes."""
        return {}

    def settings(self):
        """Config keys outside of the method's node, {"OPTIM.NAME": ...}; default: the record's optimizer."""
        return optimizer_of(self.meta)

    def overrides(self):
        """{name: function} that replaces methods of the trainer: the record's draws."""
        return {}

    def prepare(self, trainer):
        """Called once before the first step."""

    def tensors(self, trainer):
        """{authors' name: our tensor, or a view of a part of it}"""
        return dict(trainer.model.named_parameters())

    def batch(self, batch):
        """The batch as the trainer takes it."""
        return batch

    def loss(self, trainer, summary):
        """The number that the record holds as a step's loss."""
        return summary["loss"]

    def after_step(self, trainer):
        """Called after each step; `trainer.batch_idx` counts the steps from 0."""

    def final(self, name, ours, theirs):
        """(ours, theirs) of a tensor after training, as they are compared."""
        return ours, theirs

    def extras(self, trainer):
        """(what, ours, theirs) of whatever else the record holds, and where it is not `logits_within`, how close."""
        return ()
