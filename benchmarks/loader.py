"""Data time against step time."""


def measure_loader():
    return {}
