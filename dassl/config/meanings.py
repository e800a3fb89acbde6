"""What a config key means: the comment where it is declared, behind its value or right above it."""
import ast
import functools
import inspect
import io
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from typing import Any

from dassl.config import defaults
from dassl.config.tree import dotted


@functools.cache
def engine_meanings() -> dict[str, str]:
    """{key: meaning} of the engine's keys; "" for one without a comment."""
    told = declared(defaults._defaults)
    return {key: told.get(tuple(key.split(".")), "") for key in dotted(defaults.get_cfg_default())}


def method_meanings(trainer: Any, node: dict[str, Any]) -> dict[str, str]:
    """{name in its node: meaning} of the keys that a method declares in `extend_cfg`; "" for one without a comment.

    Args:
        trainer: the class. Where its `extend_cfg` calls a function of its file for the node, that one's comments count,
            too, and so do those of the classes that it is made from.
        node: what it has added to the config.
    """
    told = [names for base in trainer.__mro__ if "extend_cfg" in vars(base)
            for names in _declared_with_calls(base.extend_cfg)]
    return {key: next((found for names in told for suffix, found in names.items()
                       if suffix[-len(key.split(".")):] == tuple(key.split(".")) and found), "")
            for key in dotted(node)}


def _declared_with_calls(function: Callable[..., Any]) -> Iterator[dict[tuple[str, ...], str]]:
    """`declared` of a function, and of those that it calls by their name."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    yield declared(function)
    for name in function.__code__.co_names:
        called = function.__globals__.get(name)
        if inspect.isfunction(called):
            yield declared(called)


@functools.cache
def declared(function: Callable[..., Any]) -> dict[tuple[str, ...], str]:
    """{names of an attribute that a function sets, without those of the object: the comment there}, such as
    ("OPTIM", "LR") of `cfg.OPTIM.LR = 0.1`; {} where Python has no source of it."""
    try:
        text = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        return {}
    comments = _comments(text)
    found = {}
    for statement in ast.walk(ast.parse(text)):
        if isinstance(statement, ast.Assign):
            meaning = _comment_at(statement, comments)
            for target in statement.targets:
                for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                    if isinstance(part, ast.Attribute):
                        found[tuple(ast.unparse(part).split("."))[1:]] = meaning
    return found


def _comments(text: str) -> dict[int, tuple[str, bool]]:
    """{line: (comment, whether it stands alone)} of a text of Python."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
            for token in tokens if token.type == tokenize.COMMENT}


def _comment_at(statement: ast.stmt, comments: dict[int, tuple[str, bool]]) -> str:
    """The comment behind a statement, else the lines of comment right above it, else ""."""
    behind = comments.get(statement.end_lineno or statement.lineno)
    if behind:
        return behind[0]
    above: list[str] = []
    line = statement.lineno - 1
    while line in comments and comments[line][1]:
        above.insert(0, comments[line][0])
        line -= 1
    return " ".join(above)
