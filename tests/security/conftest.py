"""Hostile files and situations: each ends in one line, or does no harm. Every test below this folder is one of them;
`pytest -m security` counts them."""
import pytest


@pytest.fixture(autouse=True)
def nothing_stays_registered(own_registries):
    """What an input registers is forgotten after it."""
