"""The parser of every program: its complaints are InputErrors that name what was meant, its help says each default."""
import argparse
import re
import sys
from collections.abc import Iterable
from typing import Any

from dassl.config.defaults import get_cfg_default
from dassl.config.tree import dotted
from dassl.utils.errors import InputError
from dassl.utils.registry import is_slip, nearest, quoted, similar

REQUIRED = "the following arguments are required"  # how argparse begins that message


class HelpFormatter(argparse.HelpFormatter):
    """Ends the help of a flag with its default where the help does not say it."""

    def _format_action(self, action: argparse.Action) -> str:
        if action.help is None and action.option_strings:  # else argparse asks for no help string
            action.help = f"default {default_of(action)}"
        return super()._format_action(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        told = action.help or ""
        if not action.option_strings or isinstance(action, argparse._HelpAction) or re.search(r"\bdefault\b", told):
            return told
        return f"{told} ({'required' if action.required else f'default {default_of(action)}'})".strip()


def default_of(action: argparse.Action) -> str:
    """What an option of a parser is without its flag, in words."""
    if isinstance(action.default, bool):
        return "on" if action.default else "off"
    values = action.default if isinstance(action.default, (list, tuple)) else [action.default]
    words = " ".join(str(value) for value in values if value is not None)
    return words.replace("%", "%%") or "none"


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose complaints are InputErrors. Words without a flag may stand before, between and behind flags."""

    def __init__(self, **settings: Any):
        super().__init__(**{"formatter_class": HelpFormatter, **settings})
        self._greedy = ""  # the flag of the words being parsed that takes several; for the message

    def error(self, message: str):
        if self._greedy and message.startswith(REQUIRED) and "--" not in message:
            message += f" in front of the flags: {self._greedy} takes all words that follow it"
        raise InputError(f"{message}; see --help")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The arguments of a command line. Raises InputError for what does not fit, and for an unknown flag before
        anything else."""
        args = sys.argv[1:] if args is None else list(args)
        if self._subparsers is not None:
            return super().parse_args(args, namespace)
        require_known_flags(self, args)
        self._greedy = next((word for word in args if is_flag(word) and takes(self, word) > 1), "")
        return self.parse_intermixed_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = list(map(str, action.choices))
            raise argparse.ArgumentError(action, f"invalid choice '{value}'{nearest(value, known)}; "
                                                 f"known: {', '.join(known)}")


def is_flag(word: str) -> bool:
    return re.match(r"--[A-Za-z]|-h$", word) is not None


def action_of(parser: argparse.ArgumentParser, flag: str) -> argparse.Action | None:
    """What a flag does, also where its first letters are given and they are enough; None for an unknown one."""
    known, name = parser._option_string_actions, flag.partition("=")[0]
    begun = (action for other, action in known.items() if parser.allow_abbrev and other.startswith(name))
    return known.get(name) or next(begun, None)


def takes(parser: argparse.ArgumentParser, flag: str) -> float:
    """How many words a flag takes at most."""
    action = action_of(parser, flag)
    if action is None or action.nargs == 0:
        return 0
    return action.nargs if isinstance(action.nargs, int) else 1 if action.nargs in (None, "?") else float("inf")


def require_known_flags(parser: argparse.ArgumentParser, words: Iterable[str]) -> None:
    """Raise InputError for a flag that the parser does not have, with the one that was meant, or the config key."""
    before = ""
    for word in words:
        if word == "--":
            return
        # Behind a flag that needs a word it is that word that is missing.
        lacks = is_flag(before) and "=" not in before and takes(parser, before) == 1
        before = word
        if is_flag(word) and action_of(parser, word) is None and not lacks:
            name = word.partition("=")[0]
            raise InputError(f"unknown flag {name}{_meant(parser, name.lstrip('-'))}; see --help")


def _meant(parser: argparse.ArgumentParser, name: str) -> str:
    """`" (did you mean ...?)"` for an unknown flag: flags, the config key that is called so, or nothing."""
    flags = [flag.lstrip("-") for flag, action in parser._option_string_actions.items()
             if flag.startswith("--") and action.help != argparse.SUPPRESS]
    close = [f"--{flag}" for flag in similar(name, flags)]
    slip = any(is_slip(name.casefold(), flag.casefold()) for flag in flags)
    if not slip and any(action.dest == "opts" for action in parser._actions):
        called = name.replace("-", "_").casefold()
        keys = [key for key in dotted(get_cfg_default()) if called in (key.casefold(), key.split(".")[-1].casefold())]
        if keys:
            return f" (did you mean the option {' or '.join(f'{key} VALUE' for key in keys)}?)"
    return f" (did you mean {' or '.join(map(quoted, close))}?)" if close else ""
