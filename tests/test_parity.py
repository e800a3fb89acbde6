"""Every golden record against our trainers: the same start, the same batches, the same numbers."""
import pytest
from golden_replay import FOLDER, RECORDS, replay


@pytest.mark.parametrize("path", RECORDS, ids=[p.stem for p in RECORDS])
def test_record(path, clip_model, record_property, tmp_path):
    found = replay(path, clip_model, tmp_path)
    print({what: f"{difference:.1e}" for what, difference, _ in found})
    record_property("largest_difference", max(difference for _, difference, _ in found))
    for what, difference, allowed in found:
        assert difference <= allowed, f"{what}: largest difference {difference:.2e}, allowed {allowed:.0e}"


def test_there_are_records():
    assert RECORDS, f"no records in {FOLDER}"
