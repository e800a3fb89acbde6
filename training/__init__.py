"""What trainers share: PromptTrainer, the base of a method that learns a little around a frozen CLIP, and its parts."""
from training.batches import Batch
from training.episodes import split_of
from training.frozen_features import FrozenFeatures
from training.prompt_trainer import PromptTrainer

__all__ = ["Batch", "FrozenFeatures", "PromptTrainer", "split_of"]
