"""Which config each method of a protocol runs with (--cfg), and named variants of methods (--variant).

    --cfg vit_b16                                a config of each method's folder configs/trainers/<method>
    --cfg CoOp=mine.yaml MetaPrompt=vit_b16      a config for each method that is named; the others take their default
    --cfg mine.yaml                              a file for the method it belongs to, or one that sets no method's node
    --variant lr01 OPTIM.LR 0.01                 every method once more with these options, as a row "CoOp (lr01)"
    --variant CoOp:csc TRAINER.COOP.CSC True     only this one
"""
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dassl.config import methods_of
from dassl.config.words import is_key, is_option
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError
from dassl.utils.registry import nearest
from protocols.parts.place import MARK
from runs.build_config import owner_of_config, registered_name
from runs.run_spec import stem

# What the protocol itself says of a run: its folders and tables would lie about a run with other values.
OF_THE_PROTOCOL = {
    "DATASET.NUM_SHOTS": "--shots", "DATASET.SUBSAMPLE_CLASSES": "the protocol", "DATASET.NAME": "--dataset",
    "DATASET.SOURCE_DOMAINS": "the protocol", "DATASET.TARGET_DOMAINS": "the protocol", "DATASET.ROOT": "--root",
    "SEED": "--seeds", "OUTPUT_DIR": "--output", "TRAINER.NAME": "--trainer", "MODEL.BACKBONE.NAME": "--backbone",
}
OF_THE_TEST = ("DATASET.CLASSNAMES", "DATASET.TARGET_PART")  # rows of one table have one test set
OF_THE_TRAINING = ("OPTIM.", "TRAIN.", "DATALOADER.TRAIN_")  # the same numbers for a method that is not trained


def require_free(options: Sequence[str], where: str) -> None:
    """Raise InputError for an option [KEY, VALUE, ...] that the protocol's own flags decide."""
    for key in (word.partition("=")[0] for word in options):
        if key in OF_THE_PROTOCOL:
            flag = OF_THE_PROTOCOL[key]
            by = f"give {flag} instead" if flag.startswith("--") else "the protocol chooses; train.py makes other runs"
            raise InputError(f"{where}: {key} does not go with a protocol, whose folders and tables would not say so; "
                             f"{by}")


# ---- --cfg ----
class MethodConfigs:
    """The words of --cfg.

    Args:
        words: names, files and METHOD=name-or-file pairs; a str is one word, "" none.
    Raises:
        InputError: words that do not go together.
    """

    def __init__(self, words: str | Iterable[str] = ()) -> None:
        words = [words] if isinstance(words, str) else list(words or ())
        self.bare = ""
        self.own: dict[str, str] = {}
        for word in filter(None, words):
            method, mark, config = word.partition("=")
            if mark and not os.path.exists(word) and os.sep not in method:
                self._add(word, method, config)
            elif self.bare:
                raise InputError(f"--cfg: {self.bare} and {word} are both for all methods; give a config for each: "
                                 f"--cfg METHOD={self.bare} OTHER={word}")
            else:
                self.bare = word
        for config in (self.bare, *self.own.values()):
            if MARK in stem(config):
                raise InputError(f"--cfg: the name of {config} has a '{MARK}' in it, which in a run's folder stands "
                                 "before a variant's name; rename the file")

    def _add(self, word: str, method: str, config: str) -> None:
        """Note the config of one method. word: that names both."""
        TRAINER_REGISTRY.get(method)
        if not config:
            raise InputError(f"--cfg: '{word}' names no config; give {method}=NAME or {method}=FILE.yaml")
        if method in self.own:
            raise InputError(f"--cfg names two configs for {method}: {self.own[method]} and {config}")
        self.own[method] = config

    def __bool__(self) -> bool:
        return bool(self.bare or self.own)

    def of(self, method: str) -> str:
        """The name or file for a method, "" for its default."""
        return self.own.get(method, self.bare)

    def require_for(self, methods: Sequence[str]) -> list[str]:
        """Notes on configs that are not quite a method's own: a list of lines.

        Raises:
            InputError: a pair for a method that is not run, or a file of another method."""
        for method in self.own:
            if method not in methods:
                raise InputError(f"--cfg {method}={self.own[method]}: {method} is not among the methods that are run "
                                 f"({', '.join(methods)}){nearest(method, methods)}")
        notes = []
        for method in methods:
            file = self.of(method)
            if is_file(file):
                try:
                    notes.append(note_on(file, method))
                except InputError as error:
                    raise InputError(f"--cfg: {error}{self._hint(file, method, methods)}") from None
        return [note for note in notes if note]

    def _hint(self, file: str, method: str, methods: Sequence[str]) -> str:
        """The end of a message on a file that is not for `method`: what --cfg could be where several methods are run.
        """
        if len(methods) < 2:
            return ""
        words = [f"{other}={self.of(other) or 'FILE'}" if other != method and
                 (other in self.own or not self.own and fits(file, other)) else
                 f"{other}=FILE-OR-NAME" for other in methods]
        return f"; give each method its own: --cfg {' '.join(words)}"


def is_file(config: str) -> bool:
    """Whether a config is named by its file."""
    return config.endswith((".yaml", ".yml"))


def fits(file: str, method: str) -> bool:
    """Whether a config file is for a method, or for any."""
    owners = methods_of(file)
    return not owners or method.upper() in owners


def note_on(file: str, method: str) -> str:
    """A line where a method runs with a file that is not written for it, else "". Raises InputError where it must not.
    """
    owner = owner_of_config(file, method)
    if owner:
        return f"Note: {method} has no config of its own and runs with {owner}'s, {file}"
    owners = methods_of(file)
    if owners and method.upper() not in owners and getattr(TRAINER_REGISTRY.get(method), "trains", True):
        names = ", ".join(sorted(map(registered_name, owners)))
        return f"Note: {file} is for {names}; {method} takes only what is not under TRAINER"
    return ""


# ---- --variant ----
@dataclass(frozen=True)
class Variant:
    """A named set of options. method: the only one it is for, "" for all that it changes anything for."""

    name: str
    options: tuple[str, ...]
    method: str = ""

    @property
    def flag(self) -> str:
        """The words that begin it on a command line, for messages."""
        return f"--variant {self.method + ':' if self.method else ''}{self.name}"

    @property
    def settings(self) -> dict[str, str]:
        """{KEY: VALUE}"""
        return dict(zip(self.options[::2], self.options[1::2]))


def take_variants(argv: Iterable[str]) -> tuple[list[str], list[list[str]]]:
    """(the other words of a command line, a list of words for each --variant in it: NAME, KEY, VALUE, ...).

    All options that follow a --variant are its own, to the next flag."""
    words, groups = list(argv), []
    others: list[str] = []
    while words:
        word = words.pop(0)
        if word.partition("=")[0] != "--variant":
            others.append(word)
            continue
        group = [word.partition("=")[2] or (words.pop(0) if words else "")]
        while words and is_option(words[0]):
            key, mark, value = words.pop(0).partition("=")
            group += [key, value] if mark else [key, *words[:1]]
            del words[:0 if mark else 1]
        groups.append(group)
    return others, groups


def read_variants(groups: Iterable[Sequence[str]], methods: Sequence[str]) -> list[Variant]:
    """The Variants of --variant.

    Args:
        groups: a list of words [NAME or METHOD:NAME, KEY, VALUE, ...] for each flag.
        methods: those that are run.
    Raises:
        InputError: a name that cannot be a folder's, no options, or the same variant twice.
    """
    found: list[Variant] = []
    for words in groups:
        variant = _variant(words, methods)
        _require_options(variant)
        for other in found:
            _require_another(variant, other)
        found.append(variant)
    return found


def _variant(words: Sequence[str], methods: Sequence[str]) -> Variant:
    """The Variant of the words of one --variant. Raises InputError where they name none."""
    word, *options = words
    method, mark, name = word.rpartition(":")
    if not re.fullmatch(r"\w[\w.-]*", name) or (mark and not method):
        raise InputError(f"--variant: '{word}' is no name; give NAME or METHOD:NAME of letters, digits, '.', '_' and "
                         "'-', then KEY VALUE ...")
    if is_key(name) or not options or len(options) % 2:
        raise InputError(f"--variant {word}: give a name, then options in pairs: --variant NAME KEY VALUE ...")
    if method:
        TRAINER_REGISTRY.get(method)
        if method not in methods:
            raise InputError(f"--variant {word}: {method} is not among the methods that are run "
                             f"({', '.join(methods)}){nearest(method, methods)}")
    return Variant(name, tuple(options), method)


def _require_options(variant: Variant) -> None:
    """Raise InputError for an option that a variant cannot have, or has twice."""
    require_free(variant.options, variant.flag)
    if tested := sorted(variant.settings.keys() & set(OF_THE_TEST)):
        raise InputError(f"{variant.flag}: {', '.join(tested)} changes what is tested, and rows of one table have one "
                         "test set; give it to every run, in front of the variants, with an --output of its own")
    if len(variant.settings) < len(variant.options) // 2:
        raise InputError(f"{variant.flag} sets an option twice")


def _require_another(variant: Variant, other: Variant) -> None:
    """Raise InputError where two variants that one method may have both have one name, or set the same."""
    if variant.method and other.method and variant.method != other.method:
        return
    if other.name == variant.name:
        raise InputError(f"{variant.flag}: there are two variants of this name")
    if other.settings == variant.settings:
        raise InputError(f"{variant.flag} sets the same options as {other.flag}: the same runs twice")


def differ(first: Mapping[str, Any], second: Mapping[str, Any], trains: bool) -> bool:
    """Whether two flat configs of a method can give different numbers."""
    changed = [key for key in first.keys() | second.keys() if first.get(key) != second.get(key)]
    return any(trains or not key.startswith(OF_THE_TRAINING) for key in changed)
