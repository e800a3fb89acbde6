"""Datasets, one a file, found by themselves. `base.py` holds what they share: split files, few-shot draws, base and new
classes."""
