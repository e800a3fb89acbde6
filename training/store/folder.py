"""Where the feature store of a run lies."""
from __future__ import annotations

import os
import re

from yacs.config import CfgNode

NAME = "features"  # of the folder, in a run folder or in the output folder that runs of a protocol share
SPACE = re.compile(r"[0-9a-f]{16}")  # the folder of a Space in it: the first digits of its digest
FACTS = "space.json"  # in the folder of a Space


def store_folder(cfg: CfgNode) -> str | None:
    """The folder of the feature store of a run's config, which need not exist; None where STORE.USE is False."""
    if not cfg.STORE.USE:
        return None
    return os.path.expanduser(cfg.STORE.DIR) if cfg.STORE.DIR else os.path.join(cfg.OUTPUT_DIR, NAME)


def without_features(path: str, names: list[str]) -> list[str]:
    """Those of the folders `names` in `path` that hold no features: of a store there may be thousands of files, and
    no run. A store is known by what is in it, as STORE.DIR may have any name."""
    return [name for name in names
            if not (SPACE.fullmatch(name) and os.path.isfile(os.path.join(path, name, FACTS)))]
