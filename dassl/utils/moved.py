"""Modules and names of earlier releases that are somewhere else now, for the message to a plugin that imports them."""
import contextlib
import re
from collections.abc import Iterator

from dassl.utils.errors import InputError

OWN_PACKAGES = ("dassl", "datasets", "prompting", "protocols", "runs", "tools", "trainers", "training")
MOVED = {
    "dassl.utils.first_within": "dassl.utils.rank_zero_within",
    "dassl.utils.from_first": "dassl.utils.broadcast",
    "dassl.utils.highest": "dassl.utils.all_reduce_max",
    "dassl.utils.of_all": "dassl.utils.all_gather",
    "dassl.utils.one_machine_first": "dassl.utils.main_process_first",
    "dassl.utils.processes_here": "dassl.utils.local_world_size",
    "dassl.utils.ranks": "dassl.utils.distributed",
    "prompting.ranks": "dassl.utils.distributed",
    "trainers.checkpoints": "training.trained_tensors",
    "trainers.without_data": "training.without_data",
}


@contextlib.contextmanager
def naming_what_moved(plugin: str) -> Iterator[None]:
    """Within it the import of a module or name that this toolkit does not have raises InputError, which says where it
    is now, if it is known. What else cannot be imported is left as it is.

    plugin: what is imported, for the message."""
    try:
        yield
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] not in OWN_PACKAGES:
            raise
        name = re.match(r"cannot import name '(\w+)'", str(error))
        missing = f"{error.name}.{name[1]}" if name else error.name
        now = MOVED.get(missing)
        raise InputError(f"{plugin}: it imports {missing}, which " +
                         (f"is {now} now" if now else "is not part of this release")) from None
