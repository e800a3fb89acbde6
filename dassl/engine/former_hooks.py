"""Methods of earlier releases that are not called any more. A method file that defines one is refused: what it says
would have no effect."""
from dassl.utils import InputError

FORMER_HOOKS = {  # base class -> {method: what to use}
    "SimpleTrainer": {
        "check_images": "the images are checked by dassl.engine.checks.require_images",
        "check_validation": "validation images are checked by dassl.engine.checks.require_validation",
    },
    "PromptTrainer": {
        "to_device": "the batch is moved by training.batches.to_device; change it in training_step",
        "whole": "ranks join their parts in all_gather_batch; override that",
        "require_honoured": "options are checked by training.options.require_honoured; use self.cross_entropy and "
                            "self.apply_gradients",
        "prune_checkpoints": "old checkpoints are removed by self.checkpointer.prune",
        "forget_interruption": "the interrupted checkpoint is removed by self.checkpointer.forget_interruption",
    },
}


def require_no_former_hook(trainer: type) -> None:
    """Raise InputError for a trainer class that defines a method which is not called any more."""
    for base in trainer.__mro__:
        for hook, instead in FORMER_HOOKS.get(base.__name__, {}).items():
            if hasattr(trainer, hook):
                raise InputError(f"{trainer.__name__} defines {hook}, which the engine does not call any more: "
                                 f"{instead}; rename it where the file calls it itself")
