"""Errors that are the user's to mend. Everything else that is raised is a bug and keeps its traceback."""


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: what, where, what to do about it."""

    def __init__(self, message):
        # A loader worker hands an exception on by calling its class with the worker's whole traceback as the
        # message; only its last line is meant for the user.
        if "Original Traceback" in message:
            message = message.rstrip().rsplit("InputError: ", 1)[-1]
        super().__init__(" ".join(message.split()))


class NonFiniteError(InputError, FloatingPointError):
    """The loss became infinite or NaN."""
