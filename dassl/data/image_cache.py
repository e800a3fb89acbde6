"""Decoded pictures of a small training set, so that an epoch only augments."""
import mmap
import os
import struct

from PIL import Image

from dassl.data.contents import state_of
from dassl.utils import read_image
from dassl.utils.images import size_of

STATE = struct.Struct("=3q")  # of a picture's file when it was decoded (`contents.State`)


class ImageCache:
    """Pictures by their index in a list, read from their files once.

    A picture is decoded when it is first asked for. Its pixels, (H, W, 3) uint8, are kept in memory that the workers of
    a loader share with the process that forked them: what one worker has decoded, no other decodes again. Workers that
    are started afresh instead of forked each fill a memory of their own. No file is opened before the first use, or
    `reserve`. A picture whose file has changed since is decoded every time.

    Args:
        paths: the files.
        budget: bytes to keep at most. Pictures are taken in the order of the list while they fit; the others are
            decoded every time.
        exif: turn pictures upright as their EXIF says.
    """

    def __init__(self, paths, budget, exif=False):
        self.paths, self.budget, self.exif = list(paths), budget, exif
        self.places: dict[int, tuple[int, tuple[int, int]]] = {}  # index -> (first byte, (width, height))
        self.memory: mmap.mmap | None = None
        self.reserved = False

    def reserve(self):
        """Give each picture its place, by the size in its file's header. Done once, before workers are forked."""
        if self.reserved:
            return
        self.reserved = True
        # In front of all, per picture: one byte that says whether it is there, and then its file's state.
        used = len(self.paths) * (1 + STATE.size)
        for index, path in enumerate(self.paths):
            found = size_of(path, self.exif)
            if found is None:
                continue
            size, _ = found
            length = 3 * size[0] * size[1]
            if used + length > self.budget:
                break
            self.places[index] = used, size
            used += length
        # Pages of anonymous memory are taken as they are written to, and do not count as files in /dev/shm.
        if self.places:
            self.memory = mmap.mmap(-1, used)

    def __len__(self):
        """How many pictures have a place."""
        self.reserve()
        return len(self.places)

    def __getstate__(self):
        return {"paths": self.paths, "budget": self.budget, "exif": self.exif}

    def __setstate__(self, state):
        vars(self).update(vars(ImageCache(**state)))

    def read(self, index):
        """The RGB picture of `paths[index]`. Raises InputError when there is none or it does not decode."""
        self.reserve()
        memory = self.memory
        if memory is None or index not in self.places:
            return read_image(self.paths[index], self.exif)
        start, (width, height) = self.places[index]
        length, place = 3 * width * height, len(self.paths) + index * STATE.size
        state = _state(self.paths[index])
        if not memory[index]:
            picture = read_image(self.paths[index], self.exif)
            if picture.size != (width, height):  # the file has changed, or its header did not tell
                return picture
            memory[start:start + length] = picture.tobytes()
            STATE.pack_into(memory, place, *(state or (0, 0, 0)))
            memory[index] = 1  # last: who sees it, sees the whole picture
        elif state and STATE.unpack_from(memory, place) != state:  # another worker may read what is kept meanwhile
            return read_image(self.paths[index], self.exif)
        return Image.frombytes("RGB", (width, height), memory[start:start + length])


def _state(path):
    """The state of a file; None where it cannot be asked for, such as one that is gone."""
    try:
        return state_of(os.stat(path))
    except OSError:
        return None
