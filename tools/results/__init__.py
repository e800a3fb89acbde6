"""Finished runs: read from their folders, compared, and loaded to classify with."""
