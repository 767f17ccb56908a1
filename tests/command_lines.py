"""Command lines of `lop` in files that nobody runs: read by the real commands, with the types of their options."""

from functools import cache
from typing import Any

import typer

from lop.cli import app


@cache
def _command() -> Any:
    return typer.main.get_command(app)


def parse(command: list[str]) -> dict[str, Any]:
    """The options that `lop` reads from a command line; fails as the shell would if there is no such command."""
    assert command[0] == "lop"
    node = _command()
    words = command[1:]
    while hasattr(node, "resolve_command"):
        context = node.make_context(node.name, list(words))
        name, node, words = node.resolve_command(context, words)
        assert node is not None, name
    options: dict[str, Any] = node.make_context(node.name, list(words)).params
    return options
