"""docs/SPEED.md from stored measurements."""


def write(stored, folder):
    pass
