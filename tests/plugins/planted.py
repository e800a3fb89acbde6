"""The picture that the environment names as PLANTED becomes NaN as it is read."""
import os

import torch

from dassl.data.data_manager import DatasetWrapper

read = DatasetWrapper.__getitem__


def planted(self, idx):
    item = read(self, idx)
    if item["impath"].endswith(os.environ["PLANTED"]):
        item["img"] = torch.full_like(item["img"], float("nan"))
    return item


DatasetWrapper.__getitem__ = planted  # type: ignore[method-assign]  # this plants a fault
