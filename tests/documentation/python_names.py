"""Reads Python without running it: every name is known, every attribute there, every call one that the function takes.

Types are followed as far as annotations say them, from `import` and from the names that a page defines. What is of no
known type (what a call without a return annotation gives, say) is taken as it is.
"""

import ast
import builtins
import importlib
import inspect
import types
import typing
from typing import Any

UNKNOWN: Any = object()


class Instance:
    """A value of which only its class is known."""

    def __init__(self, of: type) -> None:
        self.of = of


def check_python(text: str, names: dict[str, Any]) -> None:
    """Fails at the first import, name, attribute or argument that there is not; adds to `names` what `text` defines."""
    for statement in ast.parse(text).body:
        _check(statement, names)


def _check(statement: ast.stmt, names: dict[str, Any]) -> None:
    match statement:
        case ast.Import():
            for alias in statement.names:
                module = importlib.import_module(alias.name)
                names[alias.asname or alias.name.split(".")[0]] = module if alias.asname else _top(alias.name)
        case ast.ImportFrom(module=str(name)):
            for alias in statement.names:
                module = importlib.import_module(name)
                assert hasattr(module, alias.name), f"{name} has no {alias.name}"
                names[alias.asname or alias.name] = getattr(module, alias.name)
        case ast.Assign(targets=[ast.Name(id=name)]):
            names[name] = value_of(statement.value, names)
        case ast.Expr():
            value_of(statement.value, names)
        case ast.With():
            for item in statement.items:
                found = value_of(item.context_expr, names)
                if isinstance(item.optional_vars, ast.Name):
                    names[item.optional_vars.id] = found
            for inner in statement.body:
                _check(inner, names)
        case ast.For(target=ast.Name(id=name)):
            value_of(statement.iter, names)
            names[name] = UNKNOWN
            for inner in statement.body:
                _check(inner, names)
        case _:
            raise AssertionError(
                f"line {statement.lineno}: {type(statement).__name__} is nothing that this test can read"
            )


def _top(name: str) -> types.ModuleType:
    return importlib.import_module(name.split(".")[0])


def value_of(node: ast.expr, names: dict[str, Any]) -> Any:
    """The value of an expression, an `Instance` where only its class is known, or UNKNOWN."""
    match node:
        case ast.Name(id=name):
            if name in names:
                return names[name]
            assert hasattr(builtins, name), f"line {node.lineno}: no {name} is defined before"
            return getattr(builtins, name)
        case ast.Attribute():
            return _attribute(value_of(node.value, names), node)
        case ast.Call():
            return _called(node, names)
        case ast.Await():
            return value_of(node.value, names)
        case _:
            for inner in ast.iter_child_nodes(node):
                if isinstance(inner, ast.expr):
                    value_of(inner, names)
            return UNKNOWN


def _attribute(owner: Any, node: ast.Attribute) -> Any:
    if owner is UNKNOWN:
        return UNKNOWN
    of = owner.of if isinstance(owner, Instance) else owner
    hints = _hints(of) if isinstance(of, type) else {}
    if node.attr in hints:
        return _of_type(hints[node.attr])
    assert hasattr(of, node.attr), f"line {node.lineno}: {getattr(of, '__name__', of)} has no {node.attr}"
    found = inspect.getattr_static(of, node.attr) if isinstance(of, type) else getattr(of, node.attr)
    if isinstance(found, property) and isinstance(owner, Instance):
        return _of_type(_hints(found.fget).get("return"))
    if isinstance(found, classmethod | staticmethod):
        return getattr(of, node.attr)
    if inspect.isfunction(found) and isinstance(owner, Instance):
        return _Method(found)
    return found


class _Method:
    """A function whose first argument is given."""

    def __init__(self, function: Any) -> None:
        self.function = function


def _called(node: ast.Call, names: dict[str, Any]) -> Any:
    function = value_of(node.func, names)
    positional = [value_of(argument, names) for argument in node.args]
    named = {str(keyword.arg): value_of(keyword.value, names) for keyword in node.keywords}
    if function is UNKNOWN or isinstance(function, Instance):
        return UNKNOWN
    is_method = isinstance(function, _Method)
    target = function.function if is_method else function
    try:
        signature = inspect.signature(target)
    except ValueError:  # of some builtins
        return UNKNOWN
    try:
        signature.bind(*([None] if is_method else []), *positional, **named)
    except TypeError as error:
        raise AssertionError(f"line {node.lineno}: {ast.unparse(node.func)}: {error}") from None
    if isinstance(target, type):
        return Instance(target)
    return _of_type(_hints(target).get("return"))


def _of_type(hint: Any) -> Any:
    """An instance of an annotation's class; of `X | None`, one of X."""
    options = [x for x in typing.get_args(hint) if x is not types.NoneType]
    if typing.get_origin(hint) in (typing.Union, types.UnionType) and len(options) == 1:
        hint = options[0]
    if typing.get_origin(hint) is typing.Annotated:
        hint = options[0]
    hint = typing.get_origin(hint) or hint
    return Instance(hint) if isinstance(hint, type) and hint is not types.NoneType else UNKNOWN


def _hints(of: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(of)
    except (NameError, TypeError):  # names that exist for type checkers alone
        return {}
