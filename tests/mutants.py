"""Every small change of a source: what `tests.mutation` makes, one at a time, to see whether a test notices.

A mutant is text put in place of an expression or a statement, so that the rest of the file stays as it is.

Left out, since no test is to hold them: docstrings, annotations, imports, ``__all__``, strings of error messages and
other f-strings, `None`, and what `typing` reads alone (a `cast`, an alias of types). Arguments do not change places
where their order is nothing: see `_COMMUTE`. A condition whose comparison is turned round is not negated as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple

_COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATIONS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_COMMUTE = ("transpose", "maximum", "minimum", "max", "min", "promote_types")
_BEHIND_THE_HEAD = ("body", "orelse", "finalbody", "handlers", "cases")  # of a compound statement


class Mutant(NamedTuple):
    """A changed file.

    Attributes:
        line: the first that differs.
        lines: those of the statement, or of the head of a compound one, that holds the change.
        within: the lines of the function around it, or of the file.
        mutation: what stood there, and what does.
        source: the file, changed.
    """

    line: int
    lines: range
    within: range
    mutation: str
    source: str


class _Place(NamedTuple):
    """Where in the file the walk is: the lines of a statement and of a function."""

    lines: range
    within: range


def mutants_of(source: str) -> list[Mutant]:
    """All mutants of a file, in the order of its lines."""
    encoded = source.encode()
    starts = [0]
    for line in encoded.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = {}
    for node, text, place in _changes(ast.parse(source)):
        first, last = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        old = encoded[first:last].decode()
        changed = (encoded[:first] + text.encode() + encoded[last:]).decode()
        if changed != source and changed not in found:
            one_line = " ".join(old.split())
            found[changed] = Mutant(node.lineno, place.lines, place.within, f"{one_line} -> {text}", changed)
    return sorted(found.values(), key=lambda mutant: mutant.line)


def _changes(tree: ast.Module) -> Iterator[tuple[ast.AST, str, _Place]]:
    """(what is replaced, by what, where)."""
    whole = range(1, 1 + max((node.end_lineno for node in tree.body), default=1))
    for statement in tree.body:
        yield from _of_statement(statement, whole)


def _of_statement(node: ast.stmt, within: range) -> Iterator[tuple[ast.AST, str, _Place]]:
    """The changes of a statement and of all inside it."""
    if _is_left_out(node):
        return
    bodies = [one for name in _BEHIND_THE_HEAD for one in getattr(node, name, [])]
    first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
    last = min((one.lineno for one in bodies if hasattr(one, "lineno")), default=node.end_lineno + 1)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        within = range(first, node.end_lineno + 1)
    place = _Place(range(first, max(last, node.lineno + 1)), within)
    for node_in_place, text in _of_whole(node):
        yield node_in_place, text, place
    if not isinstance(node, ast.Raise):
        for field, value in ast.iter_fields(node):
            if field not in ("annotation", "returns", "type_params", *_BEHIND_THE_HEAD):
                for one in value if isinstance(value, list) else [value]:
                    if isinstance(one, ast.AST):
                        for changed, text in _of_expression(one):
                            yield changed, text, place
    for one in bodies:
        inner = one.body if isinstance(one, ast.ExceptHandler | ast.match_case) else [one]
        for statement in inner:
            yield from _of_statement(statement, within)


def _is_left_out(node: ast.stmt) -> bool:
    """Imports, docstrings, `__all__`, aliases of types and what a type checker alone runs."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return name == "__all__" or (isinstance(value, ast.BinOp) and _is_type(value))
    return False


def _is_type(node: ast.expr) -> bool:
    """Whether it is a union of types, as ``int | str | None``."""
    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _is_type(left) and _is_type(right)
        case ast.Constant(value=None) | ast.Subscript() | ast.Attribute():
            return True
    return isinstance(node, ast.Name) and (node.id[0].isupper() or node.id in ("int", "str", "float", "bool"))


def _of_whole(node: ast.stmt) -> Iterator[tuple[ast.AST, str]]:
    """A statement that is gone, a result that is None, a condition turned round, a decorator that is off."""
    match node:
        case ast.AugAssign(target=target, op=operator, value=value):
            yield node, "pass"
            yield node, ast.unparse(ast.AugAssign(target, _OPERATIONS[type(operator)](), value))
        case ast.Expr() | ast.Raise() | ast.Delete():
            yield node, "pass"
        case ast.If(test=test) | ast.While(test=test):
            yield from _negated(test)
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield node, "pass"
        case ast.Return(value=value) if value is not None and not _is_none(value):
            yield value, "None"
    for decorator in getattr(node, "decorator_list", []):
        yield decorator, "(lambda undecorated: undecorated)"


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _of_expression(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """The changes of an expression and of all inside it."""
    match node:
        case ast.JoinedStr() | ast.Call(func=ast.Name(id="cast")):
            return
        case ast.Compare(left=left, ops=[operator, *others], comparators=comparators):
            yield node, _written(ast.Compare(left, [_COMPARISONS[type(operator)](), *others], comparators))
        case ast.BinOp(left=left, op=operator, right=right):
            yield node, _written(ast.BinOp(left, _OPERATIONS[type(operator)](), right))
        case ast.BoolOp(op=operator, values=values):
            yield node, _written(ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values))
        case ast.UnaryOp(operand=operand):
            yield node, _written(operand)
        case ast.Constant(value=value):
            changed = _other_constant(value)
            if changed is not None:
                yield node, repr(changed)
        case ast.Call(func=func, args=args, keywords=keywords):
            yield from _of_call(node, func, args, keywords)
        case ast.IfExp(test=test):
            yield from _negated(test)
        case ast.comprehension(ifs=conditions):
            for condition in conditions:
                yield from _negated(condition)
    for field, value in ast.iter_fields(node):
        if field != "annotation":
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, ast.AST):
                    yield from _of_expression(one)


def _of_call(
    node: ast.Call, func: ast.expr, args: list[ast.expr], keywords: list[ast.keyword]
) -> Iterator[tuple[ast.AST, str]]:
    """Two arguments that change places, and every keyword left out."""
    name = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
    if len(args) > 1 and name not in _COMMUTE and not any(isinstance(one, ast.Starred) for one in args[:2]):
        yield node, ast.unparse(ast.Call(func, [args[1], args[0], *args[2:]], keywords))
    for left_out in keywords:
        yield node, ast.unparse(ast.Call(func, args, [one for one in keywords if one is not left_out]))


def _other_constant(value: object) -> object:
    """A constant beside this one, or None for those that are left as they are."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return 2 * value if value else 1.0
        case str():
            return f"{value}_"
    return None


def _negated(condition: ast.expr) -> Iterator[tuple[ast.AST, str]]:
    match condition:
        case ast.Compare(ops=[ast.Is() | ast.IsNot() | ast.Eq() | ast.NotEq() | ast.In() | ast.NotIn()]):
            return
        case ast.UnaryOp(op=ast.Not()):
            return
    yield condition, _written(ast.UnaryOp(ast.Not(), condition))


def _written(node: ast.expr) -> str:
    return f"({ast.unparse(node)})"
