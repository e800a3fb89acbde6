"""Replaying the records of the methods with tokens of their own in the towers: MMRL and RPO."""

CASES: dict = {}
REPLAYS: dict = {}
