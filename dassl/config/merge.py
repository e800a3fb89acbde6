"""Merges YAML files and `KEY value` options into the config tree. An unknown key is told with the nearest known one."""
import ast
import copy
import math
import os
import re

import yaml
from yacs.config import CfgNode as CN

from dassl.config.near import meant_key
from dassl.config.per_dataset import PER_DATASET, entries_of, place_of
from dassl.config.reading import BASE, Loader, config_layers, keys_of
from dassl.config.tree import dotted, leaves
from dassl.utils.checkpoint import write_atomically
from dassl.utils.errors import InputError

WORD = re.compile(r"[\w.+/:-]+")  # an entry of a list that is written as words between commas
NUMBERS = {"MODEL.HEAD.HIDDEN_LAYERS": 0}  # lists of numbers that are empty by default -> an example entry


def merge_file(cfg, path, open_trainer=False):
    """Merge a YAML file into `cfg`, after the files that its BASE names; not what they say under PER_DATASET.

    Args:
        path: a .yaml or .yml file; nothing in it is executed.
        open_trainer: keys under TRAINER that `cfg` lacks are added (for a plugin that declares no config of its own).
    Raises:
        InputError: no such file, not YAML, an unknown key, a value of another type than the default, or a BASE that
            cannot be read (`read_config`).
    """
    for told, text in config_layers(path):
        merge_text(cfg, text, told, open_trainer)


def merge_text(cfg, text, path, open_trainer=False):
    """Merge the text of one config file, without its BASE and PER_DATASET. path: for the messages; for the rest see
    `merge_file`."""
    entries_of(text, path)  # it raises where they are none
    keys = {name: value for name, value in keys_of(text, path).items() if name not in (BASE, PER_DATASET)}
    for name in keys:
        if isinstance(name, str) and name.upper() in (BASE, PER_DATASET):
            raise InputError(f"config {path}: unknown key {name} (did you mean '{name.upper()}'?)")
    _merge_tree(cfg, keys, f"config {path}", open_trainer)


def merge_entry(cfg, text, path, dataset, open_trainer=False):
    """Merge what the text of one config file says under PER_DATASET for a dataset, by its DATASET.NAME. The rest as of
    `merge_text`.

    Returns:
        the dotted keys that were set, in order.
    """
    return _merge_tree(cfg, entries_of(text, path).get(dataset, {}), place_of(path, dataset), open_trainer)


def _merge_tree(cfg, tree, where, open_trainer):
    """Set what a tree of keys says. where: how messages begin. Returns the dotted keys."""
    found = []
    for names, value in leaves(tree):
        if wrong := [name for name in names if not isinstance(name, str)]:
            above = "".join(f"{name}." for name in names[:names.index(wrong[0])])
            raise InputError(f"{where}: the key {above}{wrong[0]!r} is not a name")
        found.append(".".join(names))
        _set(cfg, found[-1], copy.deepcopy(value), where, open_trainer)
    return found


def merge_options(cfg, options, open_trainer=False):
    """Merge `["OPTIM.LR", "0.002", "SEED=3", ...]` into `cfg`. Raises InputError as `merge_file` does."""
    options = paired(options)
    for key, text in zip(options[::2], options[1::2]):
        if key.upper() == BASE:
            raise InputError(f"option: {BASE} belongs in a config file; --config-file takes one")
        if key.upper().partition(".")[0] == PER_DATASET:
            raise InputError(f"option: {PER_DATASET} belongs in a config file; an option gives the key itself, for "
                             "whatever dataset is run")
        _set(cfg, key, text, "option", open_trainer)


def merge_flag(cfg, key, value, flag):
    """Set `key` to what a flag of the command line was given: words as they are, in a list where there are several."""
    _set(cfg, key, value, flag, False)


def paired(words):
    """Options given as KEY VALUE or as KEY=VALUE -> [KEY, VALUE, ...]. Raises InputError for a key without a value."""
    words, pairs = [word for word in words if word != "--"], []
    while words:
        key, equals, value = words[0].partition("=")
        if equals and re.fullmatch(r"[\w.]+", key):
            pairs += [key, value]
            del words[0]
        elif len(words) == 1:
            raise InputError(f"options come in pairs KEY VALUE; '{words[0]}' has no value")
        else:
            pairs += words[:2]
            del words[:2]
    return pairs


def _set(cfg, key, value, where, open_trainer):
    """Set the dotted `key`, refusing what the tree does not have."""
    *nodes, leaf = key.split(".")
    node = cfg
    free = open_trainer and nodes[:1] == ["TRAINER"]
    for name in nodes:
        if free and name not in node:
            node[name] = CN()
        node = node.get(name) if isinstance(node, CN) else None
        if not isinstance(node, CN):
            break
    if not isinstance(node, CN) or (leaf not in node and not free):
        method = cfg.get("TRAINER", {}).get("NAME", "")
        raise InputError(f"{where}: unknown key {key}{meant_key(key, dotted(cfg), method)}")
    if isinstance(value, str) and not isinstance(node.get(leaf), (str, tuple, list)):
        value = _decode(value)
    if leaf not in node:
        node[leaf] = value
        return
    if isinstance(node[leaf], CN):
        raise InputError(f"{where}: {key} is a group of keys ({', '.join(list(node[leaf])[:6])}), not a value")
    node[leaf] = _coerce(node[leaf], value, key, where)


def _decode(text):
    """The value that a text writes in Python's notation, such as "(224, 224)" or "1e-3"; else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def _coerce(default, value, key, where):
    """`value` as the type of `default`; YAML reads 1e-3 as text and 1 as a whole number, both are fine for a rate."""
    if isinstance(default, float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is not None:
            if not math.isfinite(number):
                raise InputError(f"{where}: {key} must be a finite number, not {value!r}")
            return number
    elif isinstance(default, (tuple, list)) and not isinstance(value, (dict, type(None))):
        example = _example(default, key)
        if isinstance(value, str):
            value = _entries(value, example, key, where)
        value = list(value) if isinstance(value, (tuple, list)) else [value]
        if example is not None:
            value = [_entry(example, entry, key, where) for entry in value]
        return type(default)(value)
    elif isinstance(default, str) and not isinstance(value, (list, tuple, dict, type(None), bool)):
        if "\0" in str(value):
            raise InputError(f"{where}: {key} has a zero byte in it: {value!r}")
        return str(value)
    elif default is None or type(value) is type(default):
        return value
    hint = ("; in YAML a word such as off or no is written in quotes"
            if isinstance(default, str) and isinstance(value, bool) else "")
    raise InputError(f"{where}: {key} must be of type {type(default).__name__} (as its default {default!r}), "
                     f"not {value!r}{hint}")


def _example(default, key):
    """A value like the entries of a list: its first one, a name where it is empty. None for a list that is empty in a
    method's own settings, which may hold anything."""
    if default:
        return default[0]
    if key.startswith("TRAINER.") and not key.endswith(".TEMPLATES"):
        return None
    return NUMBERS.get(key, "")


def _entries(text, example, key, where):
    """The entries of a list that is given as text: in Python's or YAML's notation, as plain words between commas, or
    one entry that is anything else, such as "a photo of a {}, a type of pet."."""
    text = text.strip()
    value = text
    if text[:1] in ("(", "[", "'", '"') or example is None:
        value = _decode(text)
        if isinstance(value, str) and text[:1] == "[":
            try:
                value = yaml.load(text, Loader)
            except (yaml.YAMLError, RecursionError, ValueError):
                value = text
    if not isinstance(value, str):
        return value
    if value != text:  # it was quoted
        return [value]
    pieces = [piece.strip() for piece in text.split(",")]
    if not pieces[-1]:
        pieces.pop()  # ("a,") as in Python's notation
    if not all(WORD.fullmatch(piece) for piece in pieces if piece):
        return [text]
    if "" in pieces:
        raise InputError(f"{where}: {key} has an empty entry: {text!r}")
    return pieces if isinstance(example, str) or example is None else [_decode(piece) for piece in pieces]


def _entry(example, value, key, where):
    """An entry of a list as the type of `example`."""
    if isinstance(example, str):
        if isinstance(value, (bool, list, tuple, dict, type(None))):
            raise InputError(f"{where}: {key} is a list of names, and {value!r} is none; put quotes around it if it is")
        if not str(value).strip():
            raise InputError(f"{where}: {key} has an empty entry")
    elif isinstance(value, str):
        value = _decode(value)
    return _coerce(example, value, key, where)


class _Dumper(yaml.SafeDumper):
    """Writes a list out wherever it stands, also one that several keys share."""

    def ignore_aliases(self, data):
        return True


def dump(cfg):
    """A config, or a part of one, as YAML that `merge_file` reads."""
    return yaml.dump(_plain(cfg), Dumper=_Dumper)


def _plain(node):
    return {key: _plain(value) for key, value in node.items()} if isinstance(node, dict) else node


def write_config(cfg, folder):
    """Write `config.yaml` of a run folder and return its path."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "config.yaml")
    write_atomically(path, lambda file: file.write(dump(cfg).encode()))
    return path
