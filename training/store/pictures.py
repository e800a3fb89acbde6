"""Files of pictures, known by their content."""
from __future__ import annotations

from collections.abc import Sequence

from dassl.data.overlap import File


class Pictures:
    """SHA-256 of files, read once and then known by path, size and times of change.

    Args:
        folder: of the store, where they are noted for later runs; None: they are known to this process only.
    """

    def __init__(self, folder: str | None) -> None:
        self.folder = folder

    def digests(self, paths: Sequence[str]) -> list[str]:
        """SHA-256 of each file. Raises InputError as `read_image` does for one that cannot be read."""
        return [File.at(path).digest() for path in paths]
