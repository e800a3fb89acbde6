"""Where the feature store of a run lies."""
from __future__ import annotations

import os
from collections.abc import Collection

from yacs.config import CfgNode

from training.store.files import IS_SPACE, MARK

NAME = "features"  # of the folder, in a run folder or in the output folder that the runs of a protocol share


def store_folder(cfg: CfgNode) -> str | None:
    """The folder of the feature store of a run's config, which need not exist; None with STORE.USE False
    or STORE.MB 0."""
    if not cfg.STORE.USE or not cfg.STORE.MB:
        return None
    return os.path.expanduser(cfg.STORE.DIR) if cfg.STORE.DIR else os.path.join(cfg.OUTPUT_DIR, NAME)


def without_features(names: Collection[str], files: Collection[str]) -> list[str]:
    """Those of the folders in a folder, in order, that may hold runs: of a store there may be thousands of files. A
    store is known by what is in it, as STORE.DIR may have any name.

    files: those in the same folder."""
    return [name for name in sorted(names) if MARK not in files or not IS_SPACE.fullmatch(name)]
