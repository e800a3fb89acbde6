"""Where the feature store of a run lies."""
from __future__ import annotations

import os

from yacs.config import CfgNode

NAME = "features"  # of the folder in an output folder


def store_folder(cfg: CfgNode) -> str | None:
    """The folder of the store that a run uses; None with STORE.USE False."""
    if not cfg.STORE.USE:
        return None
    folder: str = cfg.STORE.DIR or os.path.join(cfg.OUTPUT_DIR, NAME)
    return folder
