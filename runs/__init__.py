"""One run: the words of a command line become a RunSpec, that a config, and that a run with its results."""
