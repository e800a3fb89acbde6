"""Rows that belong to classes: what a method has learned for a class, found again by the name of the class.

A class-bound method that keeps its `class_tensors` so can score any of the classes that it was trained on."""
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dassl.utils import InputError
from dassl.utils.stored import require_like


def rows_state(classnames: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a checkpoint keeps of rows: {"classnames", "rows": {name: tensor (n_cls, ...)}}."""
    return {"classnames": list(classnames), "rows": {name: tensor.detach().cpu() for name, tensor in tensors.items()}}


@torch.no_grad()
def take_rows(state: Mapping[str, Any], classnames: Sequence[str], tensors: Mapping[str, Tensor]) -> list[bool]:
    """Put the stored rows of those classes that have some into `tensors`, {name: (n_cls, ...)}. Where the classes are
    those that were trained, nothing is put: the checkpoint has the tensors themselves.

    Returns:
        for each of `classnames` whether it has stored rows.
    Raises:
        InputError: the state does not hold such rows.
    """
    trained, rows = state.get("classnames"), state.get("rows")
    if not isinstance(trained, list) or not all(isinstance(name, str) for name in trained):
        raise InputError("its rows say no names of classes")
    require_like(rows, {name: tensor[:1].expand(len(trained), *tensor.shape[1:]) for name, tensor in tensors.items()},
                 "its rows of the trained classes")
    assert rows is not None
    if trained != list(classnames):
        place = {name: row for row, name in enumerate(trained)}
        for row, name in enumerate(classnames):
            for key, tensor in tensors.items() if name in place else ():
                tensor[row].copy_(rows[key][place[name]])
    return [name in trained for name in classnames]
