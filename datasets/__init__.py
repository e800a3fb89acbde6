"""Datasets, one per file, found by themselves; files whose name begins with an underscore are helpers. `base.py` holds
what datasets share: split files, few-shot draws, base and new classes."""
