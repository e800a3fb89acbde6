"""Train ClassOffsets on Discs with the libraries alone: python -m class_offsets.alone FOLDER prints the accuracies."""
import json
import sys

from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from dassl.utils import set_random_seed

from . import ClassOffsets


def config(folder):
    cfg = get_cfg_default()
    ClassOffsets.extend_cfg(cfg)
    cfg.merge_from_list([
        "TRAINER.NAME", "ClassOffsets", "DATASET.NAME", "Discs", "DATASET.ROOT", f"{folder}/data", "OUTPUT_DIR",
        f"{folder}/run", "MODEL.BACKBONE.NAME", "tiny", "INPUT.SIZE", (64, 64), "DATALOADER.NUM_WORKERS", 0,
        "DATALOADER.TRAIN_X.BATCH_SIZE", 16, "OPTIM.NAME", "sgd", "OPTIM.LR", 0.1, "OPTIM.MAX_EPOCH", 15, "SEED", 1])
    return cfg


def main(folder):
    """{"before", "after"}: test accuracies in per cent."""
    set_random_seed(1)
    trainer = build_trainer(config(folder))
    before = trainer.test()
    trainer.train()
    return {"before": before, "after": trainer.test()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
