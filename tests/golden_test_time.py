"""Replaying the records of the methods that look at test images: TPT and DPL."""

CASES: dict = {}
REPLAYS: dict = {}
