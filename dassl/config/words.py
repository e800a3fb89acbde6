"""The words of a command line: flags, config options and names, and which word is which."""
import argparse
import os
import re
from collections.abc import Iterable

from dassl.config.defaults import get_cfg_default
from dassl.config.merge import paired
from dassl.config.tree import dotted
from dassl.utils.errors import InputError

METHOD_KEY = re.compile(r"trainer(\.[A-Za-z_]\w*){2,}", re.IGNORECASE)  # in small letters, too
TOP_LEVEL_KEYS = ("VERSION", "OUTPUT_DIR", "RESUME", "SEED", "USE_CUDA", "VERBOSE")


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose complaints are InputErrors."""

    def error(self, message: str):
        raise InputError(f"{message}; see --help")


def is_key(word: str) -> bool:
    """Whether a word is a config key.

    A key in small letters counts, too: the config then refuses `optim.lr` and names OPTIM.LR. It counts only if it
    is one of the engine's, or could be one of a method's (TRAINER.<method>.<key>), and if it is no file.
    """
    if word in TOP_LEVEL_KEYS or re.fullmatch(r"[A-Z0-9_]+(\.[A-Z0-9_]+)+", word):
        return True
    return "." in word and not _is_file(word) and (METHOD_KEY.fullmatch(word) is not None
                                                   or word.upper() in dotted(get_cfg_default()))


def _is_file(word: str) -> bool:
    """Whether a word names a config file, or any file that is there."""
    return word.endswith((".yaml", ".yml")) or os.path.isfile(word)


def is_option(word: str) -> bool:
    """Whether an option begins with this word: it is KEY or KEY=VALUE."""
    return is_key(word.partition("=")[0])


def is_flag(word: str) -> bool:
    return re.match(r"--[A-Za-z]|-h$", word) is not None


def parse_words(parser: argparse.ArgumentParser, argv: Iterable[str]) -> argparse.Namespace:
    """The arguments of a command line whose flags and options stand in any order; `opts` becomes [KEY, VALUE, ...].

    A flag that takes several words ends before the next flag or option.

    Args:
        parser: an ArgumentParser with the positional argument `opts` (`add_options`).
    Raises:
        InputError: an unknown flag, or an option without a value.
    """
    words, flags, options = list(argv), [], []
    while words:
        word = words.pop(0)
        if is_flag(word):
            flags.append(word)
            most = 0 if "=" in word else _most_words(parser, word)
            while most and words and not is_flag(words[0]) and not (most > 1 and is_option(words[0])):
                flags.append(words.pop(0))
                most -= 1
        elif word == "--" or "=" in word:
            options.append(word)
        elif words and is_flag(words[0]):
            raise InputError(f"options come in pairs KEY VALUE; '{word}' has no value, {words[0]} follows")
        else:
            options += [word, *words[:1]]
            del words[:1]
    args = parser.parse_args(flags)
    args.opts = paired(options)
    return args


def _most_words(parser: argparse.ArgumentParser, flag: str) -> float:
    """How many words a flag takes at most; argparse takes a flag's first letters, too, where they are enough."""
    known = parser._option_string_actions
    action = known.get(flag) or next((action for name, action in known.items() if name.startswith(flag)), None)
    if action is None or action.nargs == 0:
        return 0
    return action.nargs if isinstance(action.nargs, int) else 1 if action.nargs in (None, "?") else float("inf")


def add_options(parser: argparse.ArgumentParser, help: str = "config options: KEY VALUE or KEY=VALUE ...") -> None:
    """Give a parser the positional argument `opts`, the config options that `parse_words` finds."""
    parser.add_argument("opts", nargs="*", default=[], metavar="OPTION", help=help)
