"""What goes wrong in the caller's hands, and which of the known names was meant."""
import difflib
from collections.abc import Iterable


class PromptingError(ValueError):
    """Something the caller gave is wrong: a name, a file, a class list. The message is one line and says what to do."""


def meant(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'X'?)"` for the known name that is most like `name` in any letters, or nothing."""
    folded = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.5)
    return f" (did you mean '{folded[close[0]]}'?)" if close else ""
