"""Replaying the records of the methods that adapt the towers' blocks: CLIP-LoRA and MMA."""

CASES: dict = {}
REPLAYS: dict = {}
