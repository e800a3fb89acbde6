"""Methods, one per file. Every file here is found by itself; files from elsewhere come by `--plugin` or entry point."""
import sys

import training.episodes
import training.frozen_features
import training.prompt_trainer

# Where method files of earlier releases import PromptTrainer, FrozenFeatures and split_of from.
for _name, _module in (("base", training.prompt_trainer), ("episodes", training.episodes),
                       ("frozen_features", training.frozen_features)):
    sys.modules[f"{__name__}.{_name}"] = _module
