"""The reference of `lop`, from the commands themselves: what typer parses is what is written."""

import enum
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer

from lop.cli import app


@dataclass(frozen=True)
class Option:
    """An option, or an argument, whose one name is then in capitals; `default` is empty where there is none."""

    names: tuple[str, ...]
    type: str
    default: str
    help: str
    variable: str | None
    is_required: bool


@dataclass(frozen=True)
class DocumentedCommand:
    """`name` as it is typed, without `lop`; `help` is Markdown."""

    name: str
    help: str
    options: tuple[Option, ...]


def commands() -> list[DocumentedCommand]:
    """Every command of `lop`, in the order of its help."""
    return list(_below(typer.main.get_command(app), ""))


def commands_page() -> str:
    """The page, as Markdown."""
    lines = [
        "# Commands",
        "",
        "Exit codes: 0 done, 2 the input breaks a rule (one line on stderr says which), 130 interrupted.",
        "",
    ]
    for command in commands():
        lines += [f"## `lop {command.name}`", "", command.help, ""]
        if command.options:
            lines += ["| option | value | default | meaning |", "|---|---|---|---|"]
            lines += [_row(option) for option in command.options]
            lines.append("")
    return "\n".join(lines)


def _row(option: Option) -> str:
    names = ", ".join(f"`{name}`" for name in option.names)
    default = "required" if option.is_required else option.default
    variable = f" (`{option.variable}`)" if option.variable else ""
    return f"| {names} | {option.type} | {default} | {option.help}{variable} |"


def _below(node: Any, name: str) -> Iterator[DocumentedCommand]:
    if hasattr(node, "commands"):
        for word, inner in node.commands.items():
            yield from _below(inner, f"{name} {word}".strip())
        return
    options = tuple(_option(parameter) for parameter in node.params)
    yield DocumentedCommand(name, inspect.cleandoc(node.help or ""), options)


def _option(parameter: Any) -> Option:
    is_option = bool(parameter.opts) and parameter.opts[0].startswith("-")
    names = (*parameter.opts, *parameter.secondary_opts) if is_option else (str(parameter.name).upper(),)
    default = parameter.default
    if isinstance(default, enum.Enum):
        default = default.value
    is_unset = default is None or callable(default) or isinstance(default, bool) or default == "" or default == ()
    return Option(
        names=tuple(sorted(names, key=lambda name: not name.startswith("--"))),
        type="" if getattr(parameter, "is_flag", False) else _type_of(parameter),
        default="" if is_unset or parameter.required else f"`{default}`",
        help=" ".join((parameter.help or "").split()).replace("|", "\\|"),
        variable=parameter.envvar if isinstance(parameter.envvar, str) else None,
        is_required=bool(parameter.required),
    )


def _type_of(parameter: Any) -> str:
    annotation = parameter.type_descriptor.annotation
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return ", ".join(f"`{member.value}`" for member in annotation)
    name = getattr(annotation, "__name__", "text")
    words = {"int": "whole number", "float": "number", "Path": "path", "bool": "yes or no", "str": "text"}.get(
        name, "text"
    )
    least, most = parameter.min, parameter.max
    if least is not None and most is not None:
        return f"{words}, {least} to {most}"
    return words if least is None else f"{words}, at least {least}"
