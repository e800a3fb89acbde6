"""Replaying the records of the methods that train the towers' weights: WiSE-FT, CLIPood and 2SFS."""

CASES: dict = {}
REPLAYS: dict = {}
