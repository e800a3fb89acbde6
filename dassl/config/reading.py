"""Reading config files: YAML of plain values, and the other files that one includes as its BASE."""
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from dassl.utils.errors import InputError
from dassl.utils.files import open_regular

MOST_CONFIG_BYTES = 2**20  # of a config file
MOST_SHARED = 16  # entries of a list that an alias may stand for
MOST_DEEP = 8  # files that include one another in a row
MOST_FILES = 64  # files that one config consists of
BASE = "BASE"  # the key of a config file that includes others


class Loader(yaml.SafeLoader):
    """Plain values only.

    Two things that YAML allows are refused. An alias can make a few lines stand for more than memory holds; only
    aliases of short lists are read, which config.yaml files of early runs have. Of a key that comes twice YAML would
    silently keep the last."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            shared = self.anchors.get(event.anchor)
            if not (isinstance(shared, yaml.SequenceNode) and len(shared.value) <= MOST_SHARED
                    and all(isinstance(entry, yaml.ScalarNode) for entry in shared.value)):
                raise yaml.composer.ComposerError(None, None, f"the alias *{event.anchor} is not read here; write out "
                                                  "what it stands for", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice} comes twice", node.start_mark)
        return super().construct_mapping(node, deep)


@functools.lru_cache(maxsize=128)
def parse(text: str) -> Any:
    """What a YAML text holds; the caller must not change it. It is cached by the text: thousands of runs share a few
    files, and a file that changes is another text.

    Raises:
        yaml.YAMLError, RecursionError, ValueError: the text does not hold plain values.
    """
    return yaml.load(text, Loader)


def keys_of(text: str, path: str) -> dict:
    """The tree of keys that the text of a config file holds, not to be changed; {} for an empty file.

    Raises InputError, naming `path`, for what is not YAML or holds no keys."""
    try:
        loaded = parse(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date that is none
        raise InputError(f"config {path} is not valid YAML: {error}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InputError(f"config {path} holds no keys (expected lines like 'OPTIM:')")
    return loaded


@dataclass(frozen=True)
class ConfigFile:
    """A config file with the files that it includes.

    Args:
        path: where it lies.
        told: how messages name it: its path and the chain of files that include it.
        text: what it holds.
        bases: the files that its BASE names, in order.
    """

    path: str
    told: str
    text: str
    bases: "tuple[ConfigFile, ...]" = ()

    def layers(self) -> tuple[tuple[str, str], ...]:
        """((name for messages, text), ...) in the order in which they are merged: each file after its bases. A file
        that is included twice is merged once, at its first place."""
        found: dict[str, tuple[str, str]] = {}
        for file in self._in_order():
            found.setdefault(os.path.realpath(file.path), (file.told, file.text))
        return tuple(found.values())

    def _in_order(self) -> "Iterator[ConfigFile]":
        for base in self.bases:
            yield from base._in_order()
        yield self


def config_layers(path: str) -> tuple[tuple[str, str], ...]:
    """`ConfigFile.layers` of a config file. Two equal results merge into equal configs, whatever lies on the disk.
    Raises InputError as `read_config` does."""
    return read_config(path).layers()


def read_config(path: str) -> ConfigFile:
    """Read a config file and the files that its BASE names, whose paths are relative to its folder.

    Raises:
        InputError: a file cannot be read, is no YAML or too large; BASE is not a path or a list of paths; files
            include one another in a circle, too deep, or too many.
    """
    return _read(path, path, (), [])


def _read(path: str, told: str, above: tuple[str, ...], seen: list[str]) -> ConfigFile:
    """above: the paths of the files that include this one, the outermost first. seen: every file read so far."""
    chain = (*above, path)
    if os.path.realpath(path) in map(os.path.realpath, above):
        raise InputError(f"config {above[0]}: its BASE leads in a circle: {' -> '.join(chain)}")
    if len(chain) > MOST_DEEP:
        raise InputError(f"config {above[0]}: more than {MOST_DEEP} files include one another: {' -> '.join(chain)}")
    seen.append(path)
    if len(seen) > MOST_FILES:
        raise InputError(f"config {chain[0]}: it includes more than {MOST_FILES} files by its BASE")
    text = _text(path, told)
    bases = []
    for name in _names_of_bases(keys_of(text, told), told):
        base = os.path.normpath(os.path.join(os.path.dirname(path), name))
        bases.append(_read(base, f"{base} (BASE of {' <- '.join(reversed(chain))})", chain, seen))
    return ConfigFile(path, told, text, tuple(bases))


def _names_of_bases(keys: dict, told: str) -> list[str]:
    if BASE not in keys:
        return []
    names = keys[BASE] if isinstance(keys[BASE], list) else [keys[BASE]]
    for name in names:
        if not isinstance(name, str) or not name.strip() or not _names_a_file(name):
            raise InputError(f"config {told}: BASE must be the path of a config file or a list of paths, not "
                             f"{keys[BASE]!r}")
    return names


def _names_a_file(name: str) -> bool:
    """Whether a file could have this name at all."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _text(path: str, told: str) -> str:
    """What the config file at `path` holds."""
    if not path.endswith((".yaml", ".yml")):
        raise InputError(f"config {told}: configs are YAML files (.yaml); other kinds are not read")
    try:
        with open_regular(path, "r", encoding="utf-8-sig") as file:  # some editors begin one with a byte-order mark
            text = file.read(MOST_CONFIG_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        # A base that is not there: most often the file was copied from another folder.
        advice = "" if told == path or not isinstance(error, FileNotFoundError) else (
            f"; {BASE} is relative to the file that says it: give the path from there, or write its keys into the file")
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read the config {told}: {why}{advice}") from None
    if len(text) > MOST_CONFIG_BYTES:
        raise InputError(f"config {told} is larger than {MOST_CONFIG_BYTES} characters; that is no config")
    return text
