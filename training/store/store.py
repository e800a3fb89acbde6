"""The folder of the feature store."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from training.store.entries import Entry


class Store:
    """Entries of frozen features in a folder that many processes read and write.

    Args:
        folder: made when something is first written.
        megabytes: the most that is kept; what was not used for longest goes first.
    """

    def __init__(self, folder: str, megabytes: int) -> None:
        self.folder, self.megabytes = folder, megabytes

    def read(self, entry: Entry) -> dict[int, Tensor]:
        """{number of a piece: features (rows, views, E) float32} of the pieces that are kept."""
        return {}

    def write(self, entry: Entry, pieces: Mapping[int, Tensor]) -> None:
        """Keep pieces of an entry beside those that are kept already."""

    @contextlib.contextmanager
    def claim(self, entry: Entry) -> Iterator[bool]:
        """Context in which no other process computes this entry; gives whether that is so."""
        yield True

    def wait(self, entry: Entry, meanwhile: Callable[[], None]) -> None:
        """Wait while another process computes this entry. meanwhile: is called again and again, and may raise."""
