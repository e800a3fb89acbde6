"""Methods, one per file. Every file here is found by itself; files from elsewhere come by `--plugin` or entry point."""
import sys

import training.prompt_trainer

# Where method files of earlier releases import PromptTrainer from.
sys.modules[f"{__name__}.base"] = training.prompt_trainer
