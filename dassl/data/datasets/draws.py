"""What a run keeps of the draws that its images come from."""
import hashlib
import os

from dassl.utils import require_own_folder, write_json

LONGEST_NAME = 200  # bytes; disks take 255, and a temporary name is longer


def keep_draws(dataset, folder):
    """Write what was drawn for a dataset (`draw_records`) into a run folder, as JSON.

    It is a record: a draw is a function of the dataset's lists, the shots, the seed and the domains, and is made anew
    by every run. Put into the dataset's own folder, a record is honoured as long as it fits the lists.

    Args:
        dataset: a DatasetBase, or None.
        folder: the run folder.
    """
    for name, record in getattr(dataset, "draw_records", {}).items():
        place, file = os.path.split(name)
        if len(os.fsencode(file)) > LONGEST_NAME:  # many domains
            file = f"{file[:60]}-{hashlib.sha256(os.fsencode(file)).hexdigest()[:16]}.json"
        require_own_folder(os.path.join(folder, place), below=folder)
        write_json(record, os.path.join(folder, place, file))
