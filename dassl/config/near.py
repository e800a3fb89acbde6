"""Which config keys a word may stand for."""
from collections.abc import Iterable

from dassl.utils.registry import is_slip, quoted, similar

MOST_TOLD = 3


def near_keys(word: str, keys: Iterable[str], method: str = "") -> list[str]:
    """The keys that a word may stand for, at most three: in other letters, by its last part alone (`lr`), with one
    slip, else the most alike.

    Args:
        method: name of the method that is run; where its keys are among those found, those of others are left out.
    """
    word, keys = word.casefold(), list(keys)
    for same in (str.__eq__, is_slip):
        for part in (_whole, _last):
            if found := _of_method([key for key in keys if same(word, part(key).casefold())], method):
                return found[:MOST_TOLD]
    return similar(word, keys)


def meant_key(word: str, keys: Iterable[str], method: str = "") -> str:
    """`" (did you mean 'OPTIM.LR'?)"`, or nothing where no key is close. Arguments are those of `near_keys`."""
    found = near_keys(word, keys, method)
    return f" (did you mean {' or '.join(map(quoted, found))}?)" if found else ""


def _whole(key: str) -> str:
    return key


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _of_method(keys: list[str], method: str) -> list[str]:
    """These keys without those of other methods, where some are the method's own."""
    own = [key for key in keys if key.startswith(f"TRAINER.{method.upper()}.")]
    return [key for key in keys if key in own or not key.startswith("TRAINER.")] if own and method else keys
