"""Shared fixtures: the tiny CLIP of the golden records, a drawn toy dataset, real images where TEST_DATA names them."""
import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "golden"))
sys.path.insert(0, str(ROOT))

import tiny_clip  # noqa: E402

# The models are tiny: a second thread costs more than it brings, far more where another program uses the cores.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory):
    """The tiny CLIP as a weights file."""
    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    torch.save(tiny_clip.state_dict(), path)
    return str(path)


@pytest.fixture(scope="session")
def clip_model(clip_file):
    from prompting import load_clip

    return load_clip(clip_file)


@pytest.fixture(scope="session")
def towers(clip_model):
    from prompting import Towers

    return Towers(clip_model)


@pytest.fixture(scope="session", autouse=True)
def registries():
    """Everything this project registers."""
    import train

    train.discover()


@pytest.fixture(scope="session")
def real_data():
    """The folder of real images; the test is skipped without it."""
    folder = os.environ.get("TEST_DATA")
    if not folder:
        pytest.skip("TEST_DATA is not set")
    return Path(folder)
