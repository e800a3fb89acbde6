"""A record that a reference has made, replayed by our trainer."""
from golden_replay import replay


def require_replayed(path, clip_model, folder):
    """The names of what a record in a file holds, all of which our trainer gives within what is allowed."""
    found = replay(path, clip_model, folder)
    for what, largest, allowed in found:
        assert largest <= allowed, f"{what}: largest difference {largest:.2e}, allowed {allowed:.0e}"
    return {what for what, _, _ in found}
