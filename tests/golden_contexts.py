"""Replaying the records of TaskRes, PLOT and PLOT++."""

CASES: dict = {}
REPLAYS: dict = {}
