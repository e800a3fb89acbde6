from dassl.engine.build import TRAINER_REGISTRY, build_trainer, learns
from dassl.engine.trainer import SimpleTrainer, TrainerX
from dassl.engine.trainer_base import TrainerBase

__all__ = ["TRAINER_REGISTRY", "SimpleTrainer", "TrainerBase", "TrainerX", "build_trainer", "learns"]
