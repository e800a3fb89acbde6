"""Python source -> its mutants: the same program with one small fault.

The operators are those of mutmut 3, on the syntax tree: a number one higher, a comparison's or operation's neighbour,
`and` for `or`, an argument left out, an assigned value None and so on, without its None in an argument's place, which
hardly any test lets pass. Four are our own: a condition turned round, and a statement, a returned value or a decorator
left out.

No mutants are made of docstrings, annotations, `__all__` and the words of messages (what stands in a `raise` and in
calls that print; their numbers and conditions count): what they say is for people to judge. `words` counts them.
"""
import ast
import copy
from dataclasses import dataclass

MESSAGES = ("print", "note", "warn")  # calls whose words are for people
COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
               ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
OPERATIONS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div,
              ast.Mod: ast.Div, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr,
              ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd, ast.Pow: ast.Mult, ast.MatMult: ast.Add}
METHODS = {"lower": "upper", "lstrip": "rstrip", "find": "rfind", "partition": "rpartition", "split": "rsplit",
           "removeprefix": "removesuffix"}
METHODS |= {other: name for name, other in METHODS.items()}
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Mutant:
    """One mutant. `number` is its place among the file's; `function` is (qualified name, first line) of the outermost
    function that it is in, None for what is run at import; `lines`: first and last of the changed statement's head."""

    path: str
    number: int
    line: int
    lines: tuple
    function: tuple | None
    before: str
    after: str


def mutants(source, path):
    """All mutants of a source, in order."""
    found = []
    for number, place in enumerate(_faults(ast.parse(source), with_text=True)):
        found.append(Mutant(path, number, place.line, place.lines, place.function, place.before,
                            _text(place.statement)))
    return found


def mutated(source, number):
    """The syntax tree of the mutant of that number."""
    tree = ast.parse(source)
    for count, _ in enumerate(_faults(tree)):
        if count == number:
            return ast.fix_missing_locations(copy.deepcopy(tree))
    raise LookupError(f"there are only {count + 1} mutants, not {number + 1}")


def words(source):
    """How many texts are left out because they are words of messages, docstrings or `__all__`."""
    skipped = []
    list(_nodes(ast.parse(source), skipped))
    return len(skipped)


@dataclass
class _Place:
    statement: ast.stmt
    function: tuple | None
    line: int
    lines: tuple
    before: str = ""


def _faults(tree, with_text=False):
    """Make each fault in turn in the tree itself, and undo it when asked for the next."""
    for place, container, key in _nodes(tree, []):
        node = container[key] if isinstance(container, list) else getattr(container, key)
        statement = place.statement
        for other in _replacements(node):
            if with_text:
                place.before = place.before or _text(statement)
            _put(container, key, other)
            place.statement = other if node is statement else statement
            yield place
            _put(container, key, node)


def _put(container, key, node):
    if isinstance(container, list):
        container[key] = node
    else:
        setattr(container, key, node)


def _nodes(node, skipped, statement=None, function=None, names=(), message=False):
    """(place, container, key) of every node that may be changed, parents first."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "format_spec", "type_params") or not isinstance(value, (ast.AST, list)):
            continue
        container = value if isinstance(value, list) else node
        for key in range(len(value)) if isinstance(value, list) else (field,):
            child = value[key] if isinstance(value, list) else value
            if not isinstance(child, ast.AST):
                continue
            within = child if isinstance(child, ast.stmt) else statement
            if _is_words(child, message):
                skipped.append(child)
                continue
            inside = function
            if isinstance(node, SCOPES) and field == "body" and function is None:
                inside = (".".join(names), node.decorator_list[0].lineno if node.decorator_list else node.lineno)
            yield _Place(within, inside, getattr(child, "lineno", within.lineno), _first_line(within)), container, key
            more = (*names, child.name) if isinstance(child, (*SCOPES, ast.ClassDef)) and inside is None else names
            yield from _nodes(child, skipped, within, inside, more, message or _prints(child))


def _is_words(node, message):
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring
    if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
        return True
    return message and isinstance(node, ast.Constant) and isinstance(node.value, str)


def _prints(node):
    name = node.func if isinstance(node, ast.Call) else None
    return isinstance(node, ast.Raise) or getattr(name, "attr", getattr(name, "id", "")) in MESSAGES


def _replacements(node):
    """What may stand in a node's place."""
    for operator in (_constants, _operations, _conditions, _statements, _calls):
        for other in operator(node):
            yield ast.copy_location(other, node)
    if isinstance(node, ast.comprehension):
        for i in range(len(node.ifs)):
            yield _with(node, ifs=node.ifs[:i] + node.ifs[i + 1:])
    for i in range(len(getattr(node, "decorator_list", ()))):
        yield _with(node, decorator_list=node.decorator_list[:i] + node.decorator_list[i + 1:])


def _with(node, **fields):
    """A copy of the node with other fields."""
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def _constants(node):
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield ast.Constant(not node.value)
        elif isinstance(node.value, (int, float)):
            yield ast.Constant(node.value + 1)
        elif isinstance(node.value, str):
            yield ast.Constant(f"XX{node.value}XX")


def _operations(node):
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            yield _with(node, ops=[*node.ops[:i], COMPARISONS[type(operator)](), *node.ops[i + 1:]])
    if isinstance(node, ast.BinOp):
        yield _with(node, op=OPERATIONS[type(node.op)]())
    if isinstance(node, ast.AugAssign):
        yield _with(node, op=OPERATIONS[type(node.op)]())
        yield ast.Assign([node.target], node.value)
    if isinstance(node, ast.BoolOp):
        yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    if isinstance(node, ast.UnaryOp):
        yield node.operand


def _conditions(node):
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, (ast.If, ast.IfExp)):
        for value in (False, True):
            yield _with(node, test=ast.Constant(value))


def _statements(node):
    if isinstance(node, (ast.Expr, ast.Raise, ast.Delete, ast.Assert)):
        yield ast.Pass()
    if isinstance(node, (ast.Assign, ast.AnnAssign, ast.Return)) and node.value is not None:
        nothing = isinstance(node.value, ast.Constant) and node.value.value is None
        yield _with(node, value=ast.Constant("" if nothing else None))
    if isinstance(node, ast.Break):
        yield ast.Return()
    if isinstance(node, ast.Continue):
        yield ast.Break()
    if isinstance(node, ast.Lambda):
        yield _with(node, body=ast.Constant(None))


def _calls(node):
    if not isinstance(node, ast.Call):
        return
    for i in range(len(node.args) if len(node.args) + len(node.keywords) > 1 else 0):
        yield _with(node, args=node.args[:i] + node.args[i + 1:])
    for i in range(len(node.keywords)):
        yield _with(node, keywords=node.keywords[:i] + node.keywords[i + 1:])
    if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
        yield _with(node, func=_with(node.func, attr=METHODS[node.func.attr]))


def _first_line(statement):
    """(first, last line) of a simple statement, of the head of another one."""
    start = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", ()))])
    body = getattr(statement, "body", None)
    return (start, max(statement.lineno, body[0].lineno - 1)) if body else (start, statement.end_lineno)


def _text(statement):
    """A simple statement, or the head of another one, as source on one line."""
    if getattr(statement, "body", None):
        empty = {name: [] for name in ("orelse", "finalbody", "handlers") if hasattr(statement, name)}
        statement = _with(statement, body=[ast.Pass()], **empty)
        if isinstance(statement, ast.Try):
            return "try:"
        lines = ast.unparse(ast.fix_missing_locations(copy.deepcopy(statement))).splitlines()[:-1]
        return " ".join(line.strip() for line in lines)
    return " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(statement))).split("\n"))
