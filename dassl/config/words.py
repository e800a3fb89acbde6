"""The words of a command line: flags, config options and names, and which word is which."""
import argparse
import os
import re
from collections.abc import Callable, Iterable, Sequence

from dassl.config.defaults import get_cfg_default
from dassl.config.flags import ArgumentParser, action_of, is_flag, require_known_flags, takes
from dassl.config.merge import paired
from dassl.config.tree import dotted
from dassl.utils.errors import InputError
from dassl.utils.registry import is_slip

METHOD_KEY = re.compile(r"trainer(\.[A-Za-z_]\w*){2,}", re.IGNORECASE)  # in small letters, too
TOP_LEVEL_KEYS = ("VERSION", "OUTPUT_DIR", "RESUME", "SEED", "USE_CUDA", "VERBOSE")

__all__ = ["ArgumentParser", "add_options", "is_flag", "is_key", "is_option", "parse_words"]


def is_key(word: str) -> bool:
    """Whether a word is a config key.

    A key in small letters counts, too: the config then refuses `optim.lr` and names OPTIM.LR. It counts only if it
    is one of the engine's, or a slip of one, or could be one of a method's (TRAINER.<method>.<key>), and if it is no
    file.
    """
    if word in TOP_LEVEL_KEYS or re.fullmatch(r"[A-Z0-9_]+(\.[A-Z0-9_]+)+", word):
        return True
    return "." in word and not _is_file(word) and (METHOD_KEY.fullmatch(word) is not None
                                                   or _is_nearly_key(word.upper()))


def _is_nearly_key(word: str) -> bool:
    return any(word == key or ("." in key and is_slip(word, key)) for key in dotted(get_cfg_default()))


def _is_file(word: str) -> bool:
    """Whether a word names a config file, or any file that is there."""
    return word.endswith((".yaml", ".yml")) or os.path.isfile(word)


def is_option(word: str) -> bool:
    """Whether an option begins with this word: it is KEY or KEY=VALUE."""
    return is_key(word.partition("=")[0])


def parse_words(parser: argparse.ArgumentParser, argv: Iterable[str],
                flag_of: Callable[[str], str] = lambda word: "") -> argparse.Namespace:
    """The arguments of a command line whose flags and options stand in any order; `opts` becomes [KEY, VALUE, ...].

    A flag that takes several words ends before the next flag or option, one that has got numbers also before a name.

    Args:
        parser: an ArgumentParser with the positional argument `opts` (`add_options`).
        flag_of: tells of a word that stands where an option could begin which flag it belongs to, one that takes
            several words; "" for none.
    Raises:
        InputError: an unknown flag, or an option without a value.
    """
    words, flags, options = list(argv), [], []
    named: dict[str, list[str]] = {}  # flag -> the words that belong to it by `flag_of`
    require_known_flags(parser, words)
    while words:
        word = words.pop(0)
        if is_flag(word):
            flags.append(word)
            count = _words_of_flag(0 if "=" in word else takes(parser, word), words, flag_of)
            flags += words[:count]
            del words[:count]
        elif word == "--" or "=" in word:
            options.append(word)
        elif not is_key(word) and (flag := flag_of(word)):
            named.setdefault(flag, []).append(word)
        elif words and is_flag(words[0]):
            raise InputError(f"options come in pairs KEY VALUE; '{word}' has no value, {words[0]} follows")
        else:
            options += [word, *words[:1]]
            del words[:1]
    for flag, more in named.items():
        flags = _with_words(parser, flags, flag, more)
    args = parser.parse_args(flags)
    args.opts = paired(options)
    return args


def _words_of_flag(most: float, words: Sequence[str], flag_of: Callable[[str], str]) -> int:
    """How many of the words that follow a flag are its own. most: how many it takes."""
    count = 0
    while count < min(most, len(words)) and not is_flag(words[count]):
        ends = is_option(words[count]) or (count and words[0].isdecimal() and flag_of(words[count]))
        if most > 1 and ends:
            break
        count += 1
    return count


def _with_words(parser: argparse.ArgumentParser, flags: list[str], flag: str, more: list[str]) -> list[str]:
    """The words of a command line with more words for one of its flags, which may stand there already."""
    places = [place for place, word in enumerate(flags)
              if is_flag(word) and "=" not in word and action_of(parser, word) is action_of(parser, flag)]
    if not places:
        return [*flags, flag, *more]
    end = places[-1] + 1
    while end < len(flags) and not is_flag(flags[end]):
        end += 1
    return [*flags[:end], *more, *flags[end:]]


def add_options(parser: argparse.ArgumentParser, help: str = "config options: KEY VALUE or KEY=VALUE ...") -> None:
    """Give a parser the positional argument `opts`, the config options that `parse_words` finds."""
    parser.add_argument("opts", nargs="*", default=[], metavar="OPTION", help=help)
